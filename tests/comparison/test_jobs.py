"""Jobs: why one failed, of this attempt alone and without the names of files where it is written; signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from medssl.comparison import jobs as children
from medssl.comparison.jobs import Job, failure, nameless


def test_only_what_this_attempt_said_counts(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("error: the disk is full\n")
    before = log.stat().st_size
    with log.open("a") as stream:
        stream.write("step 5\nloss is not finite: stopped\n")
    job = Job("a", (("finetune",),), log)
    assert failure(job, 1).reason == "the disk is full"
    assert failure(job, 1, before).reason == "exit code 1; its log ends: loss is not finite: stopped"
    assert failure(job, 1, log.stat().st_size).reason == "exit code 1; its log ends: nothing"
    assert failure(job, -signal.SIGKILL, before).reason == "killed by SIGKILL, often a full memory"


def test_what_is_written_names_no_file(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("error: /data/Miller Ann/store/pack.bin cannot be read: see '/scans/Ann Miller/notes'\n")
    told = failure(Job("a", (("finetune", "--store", "/data/Miller Ann"),), log), 2)
    assert told.reason.startswith("/data/Miller Ann/store/pack.bin")
    assert told.written == "the file cannot be read: see the file"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("out/runs/a/2-0: no such folder", "the file: no such folder"),
        ("--labels 9: there are 6 (of /a/b)", "--labels 9: there are 6 (of the file)"),
        ("the loss is not finite", "the loss is not finite"),
    ],
)
def test_places_are_found_without_knowing_them(reason, expected):
    assert nameless(reason, []) == expected


def test_a_signal_that_comes_while_a_process_starts_reaches_it(tmp_path, monkeypatch):
    started = []

    def slowly(*_):
        started.append(subprocess.Popen(["sleep", "5"]))
        os.kill(os.getpid(), signal.SIGTERM)  # before it is known to run
        return started[0]

    monkeypatch.setattr(children, "start", slowly)
    jobs = [Job(name, (), tmp_path / f"{name}.log") for name in "ab"]
    with (tmp_path / "lock").open("w") as lock:
        assert children.run_jobs(jobs, lambda *_: None, at_once=1, lock=lock) == signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGTERM]


def test_a_job_whose_first_command_ends_with_the_signal_does_not_go_on_with_the_second(tmp_path, monkeypatch):
    """A signal during the last step is heard by a run that has nothing left to stop."""
    monkeypatch.setattr(children, "REMINDER_S", 0.5)
    script = "trap 'touch first' TERM; touch ready; sleep 1 & wait; trap - TERM; touch second; exec sleep 30"
    ran = []

    def begin(*_):
        ran.append(subprocess.Popen(["bash", "-c", script], cwd=tmp_path))
        return ran[0]

    def tell():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(children, "start", begin)
    teller = threading.Thread(target=tell)
    teller.start()
    with (tmp_path / "lock").open("w") as lock:
        assert children.run_jobs([Job("a", (), tmp_path / "a.log")], lambda *_: None, at_once=1, lock=lock)
    teller.join()
    assert (tmp_path / "first").exists()
    assert ran[0].returncode == -signal.SIGTERM
