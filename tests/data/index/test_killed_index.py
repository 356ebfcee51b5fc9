"""An update that is killed at any moment of any step, and started again, gives what an uninterrupted one gives."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from data.index.test_index import content
from data.make_scans import Series, noise, write_itk, write_nifti, write_series

from medssl.data.index import update as module
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions

KEY = b"k" * 32
OPTIONS = IndexOptions(labels=LabelOptions(masks="images=labels"), files=FileOptions(workers=0, modality="CT"))


def write_all(folder: Path) -> Path:
    """Scans, masks, label maps without a rule, a header with its voxels beside it, a series with unread neighbors."""
    for number in range(3):
        write_nifti(folder / "images" / f"{number}.nii.gz", noise((6, 5, 4), seed=number))
        write_nifti(folder / "labels" / f"{number}.nii.gz", noise((6, 5, 4), np.uint8, seed=number, high=3))
        write_nifti(folder / "more" / f"case{number}_seg.nii.gz", noise((6, 5, 4), np.uint8, seed=9 + number, high=3))
    write_itk(folder / "pair" / "a.mhd", noise((6, 5, 4)))
    _, files = write_series(folder / "series", Series(shape=(6, 5, 8)))
    files[3].write_bytes(files[3].read_bytes()[:40])
    return folder


def change(folder: Path) -> None:
    """What a second update has to do in every one of its steps."""
    write_nifti(folder / "images" / "3.nii.gz", noise((6, 5, 4), seed=3))
    (folder / "labels" / "1.nii.gz").unlink()
    raw = next((folder / "pair").glob("*raw"))
    os.utime(raw, ns=(1, 1))
    (folder / "series" / "extra").write_bytes(b"\1\2\3")


def run(file: Path, folder: Path, kill_at: int = 0) -> int:
    """Update in a process of its own, killed before the SQL statement of that number; how many there were if not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        statements = 0

        def count(_statement: str) -> None:
            nonlocal statements
            statements += 1
            if statements == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            with Index.open(file, create=True, root=folder.parent) as index:
                index.connection.set_trace_callback(count)
                module._FILES_AT_ONCE, module._SERIES_AT_ONCE = 4, 3
                module.update(index, [folder], OPTIONS, key=KEY)
            os.write(writing, str(statements).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        text = stream.read()
    assert (os.WTERMSIG(status) == signal.SIGKILL) if kill_at else status == 0
    return int(text or 0)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("moments", [4, pytest.param(150, marks=pytest.mark.slow)])
def test_killed_at_any_statement_and_started_again_equals_uninterrupted(tmp_path, moments):
    folder = write_all(tmp_path / "d")
    first = run(tmp_path / "whole", folder)
    run(tmp_path / "base", folder)
    change(folder)
    second = run(tmp_path / "whole", folder)
    for start, total in (("", first), ("base", second)):
        for moment in np.linspace(2, total, moments).astype(int).tolist():
            file = tmp_path / f"killed {start} {moment}"
            if start:
                file.write_bytes((tmp_path / start).read_bytes())
            run(file, folder, kill_at=moment)
            run(file, folder)
            assert content(file) == content(tmp_path / "whole"), (start, moment)
