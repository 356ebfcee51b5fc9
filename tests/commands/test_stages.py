"""Runs that build on each other: their commands, what goes on after a stop, and one line for a list that cannot be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import labeled

from medssl import cli
from medssl.commands import stages as verb
from medssl.commands.stages import Stage, stages
from medssl.encoders.weights import load_card
from medssl.types import Preprocess, UserError

LIST = (
    Stage("first", "pretrain", "global_3d_small", settings={"training.steps": 9}),
    Stage("second", "pretrain", "local_3d_small", "first"),
    Stage("third", "finetune", "segment_3d_small", "second"),
)
SMALL = {"*.training.steps": 2, "*.training.batch_size": 4, "*.data.workers": 0, "*.training.output.picture_every": 2}


def test_the_commands_of_a_list():
    settings = {"*.training.steps": 5, "third.labels": 8, "first.training.precision": "bf16"}
    words = [" ".join(verb.words_of(stage, Path("s"), Path("o"), settings)) for stage in LIST]
    assert words == [
        "pretrain --config=global_3d_small --store=s --run=o/first --training.steps=5 --training.precision=bf16",
        "pretrain --config=local_3d_small --store=s --run=o/second --pretrained=o/first --training.steps=5",
        "finetune --config=segment_3d_small --store=s --run=o/third --pretrained=o/second --training.steps=5"
        " --labels=8",
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "place"
    labeled.volumes(folder / "scans")
    file = labeled.indexed(folder / "scans", folder / "index.sqlite", key=folder.parent / "key")
    return labeled.stored(file, folder / "store", Preprocess(foreground_crop=False, orientation=None))


@pytest.fixture
def here(monkeypatch):
    """Runs the stages in this process."""

    def run(words):
        mask, threads = os.umask(0o077), torch.get_num_threads()
        try:
            return cli.main(words)
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)

    def read(words):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            try:
                return cli.main([*words, "--print_config"]), ""
            except SystemExit as end:
                return end.code, text.getvalue()

    monkeypatch.setattr(verb, "run", run)
    monkeypatch.setattr(verb, "read", read)


def test_the_shipped_list_in_three_dimensions(store, here, tmp_path, capsys):
    """Global, local, fine-tuned: each takes over from the one before; a second call finds all of it done."""
    words = ["stages", "--config=global_local_3d_small", f"--store={store}", f"--out={tmp_path}"]
    settings = SMALL | {
        "global.objective.view.size": [16, 16, 8], "local.objective.view.size": [16, 16, 16], "tuned.labels": 2,
        "tuned.data.view.size": [16, 16, 8],
    }  # fmt: skip
    words += [f"--settings={json.dumps(settings)}"]
    assert cli.main(words) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert re.findall(r"stage (\d) of 3, (\w+): medssl (\w+)", said) == [
        ("1", "global", "pretrain"), ("2", "local", "pretrain"), ("3", "tuned", "finetune"),
    ]  # fmt: skip
    assert "encoder of step 2: 100% of the keys filled" in said
    assert re.search(r"(\d+) of the \d+ keys of the decoder too", said)
    assert [load_card(tmp_path / name).step for name in ("global", "local")] == [2, 2]
    assert load_card(tmp_path / "tuned").tuned is not None
    assert cli.main(words) == 0
    assert capsys.readouterr().out.count("all 2 steps are done already") == 3


MISTAKES = {
    "an unknown key": (
        {"tuned.trainin.steps": 2}, "unknown key 'trainin' (did you mean 'training'?)",
    ),
    "no such value": (
        {"tuned.data.target": "grade"}, "data.target: no scan of STORE has a value 'grade'",
    ),
    "a split without labels": (
        {"tuned.data.validation": "unseen"}, "no scan with 3 axes in split 'unseen' of STORE; scans by split: ",
    ),
}  # fmt: skip


def without_waiting(errors: str) -> str:
    """What was said, without the lines of slow machines."""
    return "".join(line for line in errors.splitlines(keepends=True) if "loading PyTorch" not in line)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_last_stage_is_found_before_the_first_begins(mistake, store, here, tmp_path, capsys):
    settings, message = MISTAKES[mistake]
    words = ["stages", "--config=global_local_3d_small", f"--store={store}", f"--out={tmp_path}"]
    assert cli.main([*words, f"--settings={json.dumps(settings)}"]) == 2
    said = capsys.readouterr()
    errors = without_waiting(said.err)
    assert errors.startswith("error: " + message.replace("STORE", str(store)))
    assert errors.count("\n") == 1
    assert "stage 1" not in said.out
    assert not list(tmp_path.iterdir())


def test_a_command_is_read_in_a_process_of_its_own(store, tmp_path, capfd):
    words = ["finetune", "--config=segment_3d_small", f"--store={store}", f"--run={tmp_path / 'run'}"]
    code, text = verb.read(words)
    assert code == 0
    assert yaml.safe_load(text)["data"]["target"] == "mask"
    assert verb.read([*words, "--labls=3"])[0] == 2
    assert without_waiting(capfd.readouterr().err).strip() == "error: unknown key 'labls' (did you mean 'labels'?)"
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_stops_the_rest(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(verb, "check", lambda *given: 0)
    monkeypatch.setattr(verb, "run", lambda words: done.append(words[0]) or (3 if len(done) == 2 else 0))
    assert stages(stages=LIST, store=tmp_path, out=tmp_path).exit_code == 3
    assert done == ["pretrain", "pretrain"]


SLEEPS = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent.parent

def main(words=None):
    def stop(*_):
        (folder / "stopped").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    (folder / "ready").touch()
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_stops_with_its_parent(number, tmp_path):
    """The command sleeps until it hears SIGTERM; a parent that is told hands that on, a killed one cannot."""
    (tmp_path / "medssl").mkdir()
    real = Path(verb.__file__).parent.parent
    (tmp_path / "medssl/__init__.py").write_text(f"__path__.append({str(real)!r})\n")  # all but the command is ours
    (tmp_path / "medssl/cli.py").write_text(SLEEPS)
    code = (
        "import os, sys\nfrom medssl.commands.stages import run\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}\nsys.exit(run(['pretrain']))"  # where the command is found
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(tmp_path / "ready")
    parent.send_signal(number)
    assert parent.wait(30) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_for(tmp_path / "stopped")


def wait_for(file: Path) -> None:
    for _ in range(600):
        if file.exists():
            return
        time.sleep(0.05)
    raise AssertionError(file)


BAD = [
    ("two of one name", (LIST[0], LIST[0]), {}, r"stage 'first': there are two of this name"),
    ("a later start", (LIST[1],), {}, r"stage 'second': it starts from 'first', which is no earlier stage"),
    ("a path", (Stage("a/b", "pretrain", "x"),), {}, r"stage 'a/b': a name is that of a folder, without slashes"),
    ("no such stage", LIST, {"fourth.labels": 1}, r"settings\.fourth\.labels: expected STAGE\.KEY or \*\.KEY, with a"),
    ("no key", LIST, {"first": 1}, r"settings\.first: expected STAGE\.KEY"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "settings", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_lists_that_cannot_be_done(given, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        stages(stages=given, store=tmp_path, out=tmp_path, settings=settings)
