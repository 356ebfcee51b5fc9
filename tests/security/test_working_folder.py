"""A working folder with modules of others: no process of medssl, nor any that it starts, imports them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from commands import labeled
from data.make_scans import noise, write_nifti

from medssl.io import safe_path
from medssl.io.processes import spawning

PACKAGE = Path(safe_path.__file__).parent.parent
MODULES = (
    "torch", "numpy", "json", "sqlite3", "textwrap", "yaml", "monai", "csv", "pickle", "multiprocessing", "subprocess",
    "lightning", "jsonargparse", "pydicom", "nibabel", "medssl_own", "tqdm", "blosc2", "concurrent", "dataclasses",
)  # fmt: skip
COMMANDS = {
    "module": [sys.executable, "-m", "medssl"],
    "script": [str(Path(sys.executable).parent / "medssl")],
}


@pytest.fixture
def planted(tmp_path):
    """A working folder in which every module that is imported leaves its name in a file."""
    folder = tmp_path / "working"
    folder.mkdir()
    for name in MODULES:
        mark = f"Path({str(tmp_path / 'mark')!r}).open('a').write({name + ' '!r})"
        text = f"from pathlib import Path\n{mark}\nraise SystemExit(9)\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def medssl(command: list[str], folder: Path, *words: object) -> str:
    """Runs a command in the folder; returns what it said."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment |= {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    mark = folder.parent / "mark"
    assert not mark.exists(), f"these modules of the working folder ran: {mark.read_text()}"
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_index_and_its_workers(command, planted, tmp_path):
    write_nifti(tmp_path / "scans" / "a.nii.gz", noise((8, 8, 4)))
    said = medssl(
        COMMANDS[command], planted, "index", tmp_path / "scans", f"--index={tmp_path / 'place' / 'index.sqlite'}",
        f"--files.key={tmp_path / 'key'}", "--files.workers=2",
    )  # fmt: skip
    assert "scans: 1" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_verb_that_starts_processes(command, planted, tmp_path):
    labeled.volumes(tmp_path / "scans")
    (tmp_path / "key").mkdir(exist_ok=True)
    (tmp_path / "place").mkdir()
    file = labeled.indexed(tmp_path / "scans", tmp_path / "place" / "index.sqlite", key=tmp_path / "key" / "key")
    start, store = COMMANDS[command], tmp_path / "store"
    medssl(
        start, planted, "cache", file, store, "--workers=2", "--preprocess.foreground_crop=false",
        "--preprocess.orientation=null",
    )  # fmt: skip
    short = ("--training.steps=2", "--training.batch_size=4")
    medssl(
        start, planted, "pretrain", "--config=global_3d_small", f"--store={store}", f"--run={tmp_path / 'run'}",
        *short, "--data.workers=1", "--objective.view.size=[16,16,8]",
    )  # fmt: skip
    size = "--data.view.size=[16,16,8]"
    settings = {"training.steps": 2, "training.batch_size": 4, "data.workers": 1, "data.view.size": [16, 16, 8]}
    settings["pretrained"] = str(tmp_path / "run")
    stage = {"name": "one", "verb": "finetune", "config": "segment_3d_small", "settings": settings}
    medssl(
        start, planted, "stages", f"--stages={json.dumps([stage])}", f"--store={store}", f"--out={tmp_path / 'stages'}"
    )  # fmt: skip
    medssl(
        start, planted, "compare", f"few={tmp_path / 'run'}", "--config=segment_3d_small", f"--store={store}",
        f"--index={file}", f"--out={tmp_path / 'study'}", "--labels=[2]", "--runs=1", size, *short, "--data.workers=1",
    )  # fmt: skip


def test_a_process_is_started_in_one_way_alone():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "safe_path.py":
            assert "sys.executable" not in text, file
        if file.name != "processes.py":
            assert not re.search(r"get_context\(|ProcessPoolExecutor\((?![^)]*spawning\(\))", text), file
    assert safe_path.python_command() == [sys.executable, "-P"]
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert isinstance(spawning(), type(get_context("spawn")))


def test_the_folder_of_python_m_is_left(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for first in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "argv", ["-m"])
        monkeypatch.setattr(sys, "path", [first, "elsewhere"])
        safe_path.leave_working_folder()
        assert sys.path == ["elsewhere", str(PACKAGE.parent)]
    monkeypatch.setattr(sys, "argv", ["script.py"])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    safe_path.leave_working_folder()
    assert sys.path == [str(tmp_path)]
