"""Bad input to the cache, one row each: what is built, the line that must be said, the exit code."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import noise, truncate, write_nifti
from data.store.test_cache import content, index_folder

from medssl.cli import main
from medssl.data.store import caching, disk, records, writer
from medssl.data.store.store import Store
from medssl.types import Preprocess


def volume(folder: Path, name: str, change: Callable[[np.ndarray], None] | None = None) -> Path:
    values = noise((70, 60, 40), np.int16, seed=len(name)).astype(np.float32)
    if change:
        change(values)
    write_nifti(folder / "images" / f"{name}.nii.gz", values)
    return folder / "images" / f"{name}.nii.gz"


def nan(folder: Path) -> None:
    def change(values):
        values[3, 4, 5:9] = np.nan

    volume(folder, "bad", change)


def infinite(folder: Path) -> None:
    def change(values):
        values[0] = np.inf

    volume(folder, "bad", change)


def truncated_after_indexing(folder: Path) -> None:
    """A file that loses its end between index and cache, and keeps its header."""
    truncate(volume(folder, "bad"))


def shrunk(folder: Path) -> None:
    volume(folder, "bad")
    write_nifti(folder / "images" / "bad.nii.gz", noise((8, 8, 8)))


def gone(folder: Path) -> None:
    volume(folder, "bad").unlink()


def label_value(folder: Path) -> None:
    volume(folder, "bad")
    write_nifti(folder / "labels" / "bad.nii.gz", np.full((70, 60, 40), 7, np.uint8))


def labeled(folder: Path) -> None:
    volume(folder, "bad")
    write_nifti(folder / "labels" / "bad.nii.gz", np.ones((70, 60, 40), np.uint8))


def label_shape(folder: Path) -> None:
    write_nifti(folder / "labels" / "bad.nii.gz", np.ones((70, 60, 41), np.uint8))


def excluded(folder: Path) -> None:
    volume(folder, "bad")
    write_nifti(folder / "faces" / "bad.nii.gz", np.ones((70, 60, 40), np.uint8))


def excluded_shape(folder: Path) -> None:
    write_nifti(folder / "faces" / "bad.nii.gz", np.ones((70, 60, 41), np.uint8))


@dataclass(frozen=True)
class Row:
    """One bad scan beside a good one: ``before`` is built before the index is made, ``after`` after it."""

    message: str
    before: Callable[[Path], object] | None = None
    after: Callable[[Path], object] | None = None


ROWS = {
    "NaN voxels": Row("4 of 168000 voxels are NaN or infinite", nan),
    "infinite voxels": Row("2400 of 168000 voxels are NaN or infinite", infinite),
    "truncated .nii.gz": Row(
        "bad.nii.gz has changed since it was indexed: index the scans again",
        lambda f: volume(f, "bad"),
        truncated_after_indexing,
    ),
    "changed since it was indexed": Row(
        "bad.nii.gz has changed since it was indexed", lambda f: volume(f, "bad"), shrunk
    ),
    "gone since it was indexed": Row("no such file", lambda f: volume(f, "bad"), gone),
    "label value not in the class map": Row("label value not in the class map .* 7 \\(168,000 voxels\\)", label_value),
    "all voxels excluded": Row(
        "skipped [0-9a-f]+: all voxels of the scan are excluded. Leave the scan out, or repair its mask of excluded "
        "voxels$",
        excluded,
    ),
    "mask of excluded voxels of another shape": Row(
        "skipped [0-9a-f]+: bad.nii.gz has changed since it was indexed: index the scans again$",
        excluded,
        excluded_shape,
    ),
    "label of another shape": Row("bad.nii.gz has changed since it was indexed", labeled, label_shape),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_bad_scan_is_listed_and_the_others_are_stored(row, tmp_path, capfd):
    folder = tmp_path / "scans"
    volume(folder, "good")
    if row.before:
        row.before(folder)
    rules = {
        "masks": "images=labels" if (folder / "labels").is_dir() else "",
        "excluded": "images=faces",
        "class_names": "0=a,1=b",
    }
    index = index_folder(folder, tmp_path / "index.sqlite", **rules)
    if row.after:
        row.after(folder)
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 0
    out, err = capfd.readouterr()
    lines = [line for line in (out + err).replace("\r", "\n").splitlines() if "skipped" in line and ": " in line]
    assert any(re.search(row.message, line) for line in lines), out + err
    assert "(1 new, 0 stored before, 1 skipped)" in out
    assert "Traceback" not in out + err
    assert len(Store.open(tmp_path / "store")) == 1
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 0  # tried again, skipped again
    assert "(0 new, 1 stored before, 1 skipped)" in capfd.readouterr().out


def test_nothing_stored_is_an_error(tmp_path, capfd):
    nan(tmp_path / "scans")
    index = index_folder(tmp_path / "scans", tmp_path / "index.sqlite")
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 1
    assert "0 scans, " in capfd.readouterr().out


def test_a_full_disk_stops_with_one_line_and_keeps_stored_scans(tmp_path, capfd, monkeypatch):
    folder = tmp_path / "scans"
    for name in ("a", "bb", "ccc", "dddd"):
        volume(folder, name)
    index = index_folder(folder, tmp_path / "index.sqlite")
    assert main(["cache", str(index), str(tmp_path / "whole"), "--workers", "0"]) == 0
    fsync, count = os.fsync, []

    def full(descriptor):
        count.append(descriptor)
        if len(count) == 7:  # the description, two scans, each with its folder, then the disk is full
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    capfd.readouterr()
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 2
    out, err = capfd.readouterr()
    assert "error: the store's disk is full: make room and run the same command again (2 scans stored" in err
    assert "Traceback" not in out + err
    assert not list((tmp_path / "store").rglob("*.part"))
    monkeypatch.undo()
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 0
    assert "(2 new, 2 stored before, 0 skipped)" in capfd.readouterr().out
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_a_full_disk_is_reported_for_the_table(tmp_path):
    connection = records.connect(tmp_path / "records.sqlite")
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite answers as on a full disk
    plan = writer.StorePlan(tmp_path, tmp_path, Preprocess(), "chunked", {})
    with pytest.raises(disk.DiskFull, match="the store's disk is full"):
        writer.record_outcome(plan, connection, writer.Outcome(skipped=(("a", "k" * 100_000, "no reason"),)))
    assert connection.execute("SELECT count(*) FROM failures").fetchone() == (0,)
    connection.close()
    copied = pickle.loads(pickle.dumps(disk.DiskFull()))  # as a worker process sends it
    assert str(copied) == str(disk.DiskFull())


def test_too_little_disk_space_is_reported_before_the_start(tmp_path, capfd, monkeypatch):
    volume(tmp_path / "scans", "a")
    index = index_folder(tmp_path / "scans", tmp_path / "index.sqlite")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 2
    assert "needs about 0.000269 GB and 1e-06 GB are free" in capfd.readouterr().err
    assert not list((tmp_path / "store").rglob("*.b2nd"))


def test_a_store_of_another_preprocess_is_refused(tmp_path, capfd):
    volume(tmp_path / "scans", "a")
    index = index_folder(tmp_path / "scans", tmp_path / "index.sqlite")
    words = ["cache", str(index), str(tmp_path / "store"), "--workers", "0"]
    assert main(words) == 0
    before = content(tmp_path / "store")
    assert main([*words, "--preprocess.orientation", "LPS", "--preprocess.intensity.mr.low", "1.5"]) == 2
    err = capfd.readouterr().err
    assert "was made by another Preprocess" in err
    assert "intensity.mr.low 0.5 -> 1.5, orientation RAS -> LPS" in err
    assert content(tmp_path / "store") == before


def test_a_worker_that_dies_is_reported(tmp_path, capfd, monkeypatch):
    volume(tmp_path / "scans", "a")
    index = index_folder(tmp_path / "scans", tmp_path / "index.sqlite")
    monkeypatch.setattr(caching, "_start", _die)
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "1"]) == 2
    err = capfd.readouterr().err
    assert "error: 3 worker processes in a row ended before they had begun (exit code 9): run the same command" in err


def _die() -> None:
    os._exit(9)
