"""Jobs: why one failed, of this attempt alone and without the names of files where it is written; signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from medssl.comparison import jobs as processes
from medssl.comparison.jobs import Job, failure


def test_only_what_this_attempt_said_counts(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("the disk is full\n")
    before = log.stat().st_size
    with log.open("a") as stream:
        stream.write("step 5\nloss is not finite: stopped\n")
    job = Job("a", (("finetune",),), log)
    assert failure(job, 1).reason == "exit code 1; its log ends: loss is not finite: stopped"
    assert failure(job, 1, log.stat().st_size).reason == "exit code 1; its log ends: nothing"
    assert failure(job, 1).written == "exit code 1; its log says why"
    assert failure(job, -signal.SIGKILL, before).reason == "killed by SIGKILL, often because memory was full"


@pytest.mark.parametrize(
    ("words", "reason", "written"),
    [
        (("finetune", "--store", "/data/Miller Ann"), "medssl finetune needs a recipe", "its input was refused; its"),
        (("pretrain", "--training.steps", "few"), "--training.steps: the value has the wrong type (got 'few'; expected",
         "training.steps was refused; its log says why"),
        (("report", "/nowhere/page.html", "/data/Miller"), "/data/Miller", "its input was refused; its log says why"),
    ],
)  # fmt: skip
def test_a_process_writes_its_error_and_what_is_passed_on_names_no_file(tmp_path, words, reason, written):
    job = Job("a", (("--version",), words), tmp_path / "run.log")
    with (tmp_path / "lock").open("w") as lock:
        process = processes.start(job, 0, 1, lock)
        assert process.wait(60) == 2
    why = failure(job, process.returncode)
    assert reason in why.reason
    assert why.written.startswith(written)
    assert "/" not in why.written
    assert job.log.read_text().startswith("medssl ")


def test_an_error_of_an_earlier_attempt_is_gone(tmp_path):
    job = Job("a", (("--version",),), tmp_path / "run.log")
    job.error.write_text("{}")
    with (tmp_path / "lock").open("w") as lock:
        assert processes.start(job, 0, 1, lock).wait(60) == 0
    assert not job.error.exists()


def test_a_signal_that_comes_while_a_process_starts_reaches_it(tmp_path, monkeypatch):
    started = []

    def slowly(*_):
        started.append(subprocess.Popen(["sleep", "5"]))
        os.kill(os.getpid(), signal.SIGTERM)  # before it is known to run
        return started[0]

    monkeypatch.setattr(processes, "start", slowly)
    jobs = [Job(name, (), tmp_path / f"{name}.log") for name in "ab"]
    with (tmp_path / "lock").open("w") as lock:
        assert processes.run_jobs(jobs, lambda *_: None, at_once=1, lock=lock) == signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGTERM]


def test_a_job_whose_first_command_ends_with_the_signal_does_not_go_on_with_the_second(tmp_path, monkeypatch):
    """A signal during the last step is heard by a run that has nothing left to stop."""
    monkeypatch.setattr(processes, "REMINDER_S", 0.5)
    script = "trap 'touch first' TERM; touch ready; sleep 1 & wait; trap - TERM; touch second; exec sleep 30"
    ran = []

    def begin(*_):
        ran.append(subprocess.Popen(["bash", "-c", script], cwd=tmp_path))
        return ran[0]

    def tell():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(processes, "start", begin)
    teller = threading.Thread(target=tell)
    teller.start()
    with (tmp_path / "lock").open("w") as lock:
        assert processes.run_jobs([Job("a", (), tmp_path / "a.log")], lambda *_: None, at_once=1, lock=lock)
    teller.join()
    assert (tmp_path / "first").exists()
    assert ran[0].returncode == -signal.SIGTERM
