"""A file that could not be opened for a while is read by the next index, and by the next cache, in every format."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import noise, write_itk, write_nifti, write_picture, write_series

from medssl.commands.cache import cache
from medssl.data.index.scan_index import ArrayOptions, FileOptions, Index, IndexOptions
from medssl.data.index.update import update

PICTURE = noise((30, 20), np.uint8)
FORMATS = {
    "nii": lambda folder: write_nifti(folder / "a.nii", noise((6, 5, 4))),
    "nii.gz": lambda folder: write_nifti(folder / "a.nii.gz", noise((6, 5, 4))),
    "nrrd": lambda folder: write_itk(folder / "a.nrrd", noise((6, 5, 4))),
    "mha": lambda folder: write_itk(folder / "a.mha", noise((6, 5, 4))),
    "mhd": lambda folder: write_itk(folder / "a.mhd", noise((6, 5, 4))),
    "png": lambda folder: write_picture(folder / "a.png", PICTURE),
    "jpg": lambda folder: write_picture(folder / "a.jpg", PICTURE),
    "tif": lambda folder: write_picture(folder / "a.tif", PICTURE),
    "npy": lambda folder: np.save(folder / "a.npy", noise((6, 5, 4))),
    "npz": lambda folder: np.savez(folder / "a.npz", noise((6, 5, 4))),
    "dicom": write_series,
}


class Trouble:
    """A file server that is away: the first ``begin`` openings of a file succeed, all later ones fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, begin: int, number: int) -> None:
        import builtins
        import io

        self.begin, self.number, self.counts = begin, number, dict[str, int]()
        for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
            monkeypatch.setattr(module, name, self.wrapped(getattr(module, name)))

    def wrapped(self, real):
        def opening(file, *more, **named):
            name = str(file)
            if "/scans/" in name:
                self.counts[name] = self.counts.get(name, 0) + 1
                if self.counts[name] > self.begin:
                    raise OSError(self.number, os.strerror(self.number), name)
            return real(file, *more, **named)

        return opening


def index(folder: Path) -> list[tuple[str, str]]:
    files = FileOptions(modality="MR", workers=0, arrays=ArrayOptions(axes="ijk"))
    with Index.open(folder / "index.sqlite", create=True) as opened:
        update(opened, [folder / "scans"], IndexOptions(r"(\w+)\.", files=files), key=b"k" * 32)
    with closing(sqlite3.connect(folder / "index.sqlite")) as connection:
        return connection.execute("SELECT status, reason FROM scans ORDER BY reason").fetchall()


@pytest.mark.parametrize("begin", [0, 1, 2])
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_was_missing_is_read_by_the_next_update(form, begin, tmp_path, monkeypatch):
    """At its first bytes, its header, or its end: whichever opening fails, it is not the file's fault."""
    (tmp_path / "scans").mkdir()
    FORMATS[form](tmp_path / "scans")
    trouble = Trouble(monkeypatch, begin, errno.ESTALE if begin else errno.EIO)
    rows = index(tmp_path)
    monkeypatch.undo()
    if max(trouble.counts.values()) > begin:
        assert not [row for row in rows if row[0] == "ok"], rows
        assert [reason for _, reason in rows if "cannot be opened" in reason], rows
    assert [status for status, _ in index(tmp_path)] == ["ok"]


def test_a_scan_that_was_missing_is_stored_by_the_next_run(tmp_path, monkeypatch, capsys):
    write_nifti(tmp_path / "scans/a.nii.gz", noise((30, 30, 30)))
    index(tmp_path)
    Trouble(monkeypatch, 0, errno.ESTALE)
    assert cache(tmp_path / "index.sqlite", tmp_path / "store", workers=0).exit_code == 1
    monkeypatch.undo()
    assert "(0 new, 0 stored before, 1 skipped)" in capsys.readouterr().out
    assert cache(tmp_path / "index.sqlite", tmp_path / "store", workers=0).exit_code == 0
    assert "(1 new, 0 stored before, 0 skipped)" in capsys.readouterr().out
