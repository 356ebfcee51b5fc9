"""Worker processes: what goes wrong with one file is charged to it; they end with the process that started them."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from data import planted
from data.make_scans import noise, write_nifti

from medssl.cli import main
from medssl.data.index import update
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.store import writer
from medssl.data.store.store import Store
from medssl.io.limits import Limits, total_memory_gb
from medssl.io.processes import Lost, Pool, forking, one_thread

ROOT = Path(__file__).parents[2]

TASKS = """
import os, time

def task(items, tell):
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
PARENT = """
from medssl.io.limits import Limits
from medssl.io.processes import Pool, one_thread, spawning
from tasks import task

if __name__ == "__main__":
    with Pool(1, Limits(90, 2), context=spawning(), setup=one_thread) as pool:
        list(pool.map(task, iter([[1]])))
"""
REASONS = {
    "segv": r"the reader ended \(signal 11, an invalid access to memory\) while it read this",
    "abort": r"the reader ended \(signal 6, it gave up\) while it read this",
    "exit": r"the reader ended \(exit code 3\) while it read this",
    "hang": r"took longer than 1 s",
    "memory": r"needs more than 2 GB of memory",
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "tasks.py").write_text(TASKS)

    def heed_interrupts():  # a shell lets what it starts in the background ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        preexec_fn=heed_interrupts,
    ) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip() / "cmdline"
        assert worker.read_bytes()
        parent.send_signal(number)
        started = time.monotonic()
        parent.wait(20)
        assert time.monotonic() - started < 10
    for _ in range(100):
        if not worker.exists() or not worker.read_bytes():  # gone, or a zombie that nobody has buried yet
            return
        time.sleep(0.05)
    raise AssertionError(worker)


def double(items, tell):
    out = []
    for number, item in enumerate(items):
        tell(number)
        if item == "bad":
            os.kill(os.getpid(), signal.SIGSEGV)
        out.append(2 * item)
    return out


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_batches(workers):
    batches = [[1, 2], [3], list(range(4, 70)), [70]] * 3
    with Pool(workers, Limits(60, 2), context=forking(), setup=one_thread) as pool:
        found = list(pool.map(double, iter(batches)))
    assert [items for items, _ in found] == batches
    assert [result for _, result in found] == [[2 * item for item in batch] for batch in batches]


def test_the_items_of_a_batch_around_a_bad_one_are_done():
    batches = [[1, "bad", 2, "bad"], [3], ["bad"], [4, 5]]
    with Pool(2, Limits(60, 2), context=forking(), setup=one_thread) as pool:
        found = list(pool.map(double, iter(batches)))
    lost = [items for items, result in found if isinstance(result, Lost)]
    assert lost == [["bad"]] * 3
    assert [x for _, result in found if not isinstance(result, Lost) for x in result] == [2, 4, 6, 8, 10]


def rows(index: Path) -> dict[str, tuple]:
    with closing(sqlite3.connect(index)) as connection:
        query = "SELECT path, state, reason, header, size FROM files WHERE path NOT LIKE '%.tried'"
        return {Path(row[0]).name: row[1:] for row in connection.execute(query)}


def scans(folder: Path, bad: tuple[str, ...]) -> None:
    for name in ("a", "b", "c", *bad, "z"):
        write_nifti(folder / f"{name}.nii.gz", noise((70, 60, 32), np.int16, seed=ord(name[0])))


def index(folder: Path, file: Path) -> None:
    files = FileOptions(modality="MR", workers=1, seconds=1)
    with Index.open(file, create=True) as opened:
        update.update(opened, [folder], IndexOptions(r"(\w+)\.", files=files), key=b"k" * 32)


def test_a_file_that_kills_or_stops_its_reader_is_one_row_of_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(update, "read_files", planted.read_files)
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder, names in ((good, ()), (bad, (*REASONS, "once"))):
        scans(folder / "scans", names)
        index(folder / "scans", folder / "index.sqlite")
    found, expected = rows(bad / "index.sqlite"), rows(good / "index.sqlite")
    for kind, reason in REASONS.items():
        state, said, *_ = found.pop(f"{kind}.nii.gz")
        assert state == "failed"
        assert re.fullmatch(reason, said)
    assert found.pop("once.nii.gz")[0] == "scan"  # not to blame
    assert found == expected
    index(bad / "scans", bad / "index.sqlite")
    assert (bad / "hang.tried").read_text() == "x"  # remembered


def test_a_scan_that_kills_or_stops_its_reader_is_skipped_by_the_cache(tmp_path, capsys, monkeypatch):
    scans(tmp_path / "scans", ("segv", "hang", "memory"))
    index(tmp_path / "scans", tmp_path / "index.sqlite")
    monkeypatch.setattr(writer, "write_scans", planted.write_scans)
    words = ["cache", str(tmp_path / "index.sqlite"), str(tmp_path / "store"), "--workers", "1", "--memory_gb", "2"]
    assert main([*words, "--seconds", "2"]) == 0
    out, err = capsys.readouterr()
    said = out + err
    for kind in ("segv", "memory"):
        assert re.search(f"skipped [0-9a-f]+: {REASONS[kind]}", said), said
    assert re.search(r"skipped [0-9a-f]+: took longer than 2\.1 s", said), said
    assert "(4 new, 0 stored before, 3 skipped)" in said
    assert len(Store.open(tmp_path / "store")) == 4
    assert main([*words, "--seconds", "2"]) == 0
    out, err = capsys.readouterr()
    assert "took longer than 2.1 s in an earlier run, and is tried again with a higher seconds" in out + err
    assert "(0 new, 4 stored before, 3 skipped)" in out
    assert (tmp_path / "hang.tried").read_text() == "x"
    monkeypatch.undo()  # the decoder is mended
    assert main([*words[:4], "0", "--seconds", "9", "--memory_gb", "3"]) == 0
    assert "(3 new, 4 stored before, 0 skipped)" in capsys.readouterr().out


def test_an_absurd_size_is_one_row(tmp_path, capsys, monkeypatch):
    """Not a refusal of everything: "needs about 3e10 GB"."""
    scans(tmp_path / "scans", ())
    index(tmp_path / "scans", tmp_path / "index.sqlite")
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection, connection:
        name = connection.execute("SELECT min(scan_id) FROM scans").fetchone()[0]
        connection.execute("UPDATE scans SET size_i = 2000000000, size_j = 2000000000 WHERE scan_id = ?", (name,))
    words = ["cache", str(tmp_path / "index.sqlite"), str(tmp_path / "store"), "--workers", "0"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert re.search(f"skipped {name}: needs about [0-9.e+]+ GB of memory, the limit is", out + err), out + err
    assert "(3 new, 0 stored before, 1 skipped)" in out


def test_memory_and_time_limits_of_the_machine():
    assert Limits(61, 2).wider_than("took longer than 60 s")
    assert not Limits(60, 9).wider_than("took longer than 60 s")
    assert Limits(60, 2.5).wider_than("needs more than 2 GB of memory")
    assert not Limits(999, 2).wider_than("needs more than 2 GB of memory")
    assert not Limits(999, 999).wider_than("truncated: 3 of 4 bytes")
    assert 0.1 < total_memory_gb() < 1e5
    assert Limits(60, 2, lambda item: item / 2).seconds_of(8) == 64


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_a_pipe_is_never_opened(tmp_path, ending):
    """Neither one among the scans nor one that a header names as its data, nor one behind a link."""
    folder = tmp_path / "scans"
    folder.mkdir()
    os.mkfifo(folder / "pipe.raw")
    os.mkfifo(folder / "pipe.nii")
    (folder / "link.raw").symlink_to("pipe.raw")
    (folder / "zero.raw").symlink_to("/dev/zero")
    for name in ("pipe", "link", "zero"):
        if ending == "mhd":
            text = "NDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
            text += f"ElementDataFile = {name}.raw\n"
        else:
            text = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
            text += f"spacings: 1 1 1\ndata file: {name}.raw\n"
        (folder / f"{name}.{ending}").write_text(text)
    index(folder, tmp_path / "index.sqlite")
    found = rows(tmp_path / "index.sqlite")
    assert len(found) == 7
    for name, (state, reason, *_) in found.items():
        assert state in ("failed", "ignored"), (name, state, reason)
        assert "longer" not in reason, (name, reason)


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    """Workers that index and cache do not run the program that started them."""
    scans(tmp_path / "scans", ())
    (tmp_path / "script.py").write_text(
        "from medssl.cli import main\n"
        "print('script runs')\n"
        "assert main(['index', 'scans', '--index', 'index.sqlite', '--files.modality', 'MR']) == 0\n"
        "assert main(['cache', 'index.sqlite', 'store', '--workers', '1']) == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("script runs") == 1
    assert "(4 new, 0 stored before, 0 skipped)" in done.stdout
