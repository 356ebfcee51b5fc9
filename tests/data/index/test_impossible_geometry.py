"""Geometry that no body has is refused in every format: not finite, without length, of negative size, too far away."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from data.make_scans import noise, write_series
from data.store.test_cache import index_folder

SHAPE = (6, 5, 4)


def nifti(folder: Path, what: str, value: float) -> None:
    """Header written byte by byte: the library refuses some of these."""
    array = noise(SHAPE)
    image = nibabel.Nifti1Image(array, np.diag([1.0, 1.5, 2.0, 1.0]))
    data = bytearray(image.to_bytes())

    def put(place: int, values: list[float], kind: str = "<f4") -> None:
        data[place : place + 4 * len(values) if kind == "<f4" else place + 2 * len(values)] = np.array(
            values, kind
        ).tobytes()

    if what == "spacing":
        put(280, [value])  # srow_x[0]
        put(80, [value])  # pixdim[1]
    elif what == "origin":
        put(292, [value])  # srow_x[3]
        put(268, [value])  # qoffset_x
    else:
        put(42, [int(value)], "<i2")  # dim[1]
    (folder / "bad.nii").write_bytes(data)


def nrrd(folder: Path, what: str, value: float) -> None:
    spacing, origin = (value if what == "spacing" else 1, value if what == "origin" else 0)
    size = int(value) if what == "size" else SHAPE[0]
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {size} {SHAPE[1]} {SHAPE[2]}\n"
        f"space directions: ({spacing},0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\n"
        f"encoding: raw\nspace origin: ({origin},0,0)\n\n"
    )
    (folder / "bad.nrrd").write_bytes(header.encode() + noise(SHAPE).tobytes())


def metaimage(folder: Path, what: str, value: float) -> None:
    spacing, origin = (value if what == "spacing" else 1, value if what == "origin" else 0)
    size = int(value) if what == "size" else SHAPE[0]
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nOffset = {origin} 0 0\n"
        f"ElementSpacing = {spacing} 1 1\nDimSize = {size} {SHAPE[1]} {SHAPE[2]}\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n"
    )
    (folder / "bad.mha").write_bytes(header.encode() + noise(SHAPE).tobytes())


def dicom(folder: Path, what: str, value: float) -> None:
    _, files = write_series(folder)
    with warnings.catch_warnings(action="ignore"):
        for file in files:
            dataset = pydicom.dcmread(file)
            if what == "spacing":
                dataset["PixelSpacing"]._value = [str(value), str(value)]
            elif what == "origin":
                z = dataset.ImagePositionPatient[2]
                dataset["ImagePositionPatient"]._value = [str(value), "0", str(z)]
            else:
                dataset["Rows"].VR = "SS"
                dataset.Rows = int(value)
            dataset.save_as(file)


WRITERS: dict[str, Callable[[Path, str, float], None]] = {
    "nifti": nifti, "nrrd": nrrd, "metaimage": metaimage, "dicom": dicom
}  # fmt: skip
VALUES = [
    *[("spacing", value) for value in (float("nan"), float("inf"), 1e30, 0.0)],
    *[("origin", value) for value in (float("nan"), float("inf"), 1e30)],
    *[("size", value) for value in (-6, 0)],
]


@pytest.mark.parametrize(("what", "value"), VALUES)
@pytest.mark.parametrize("form", WRITERS)
def test_impossible_geometry_is_refused(form, what, value, tmp_path):
    (tmp_path / "scans").mkdir()
    WRITERS[form](tmp_path / "scans", what, value)
    index = index_folder(tmp_path / "scans", tmp_path / "index.sqlite")
    with closing(sqlite3.connect(index)) as connection:
        rows = connection.execute("SELECT status, reason FROM scans").fetchall()
        rows += connection.execute("SELECT state, reason FROM files WHERE state IN ('failed', 'rejected')").fetchall()
    assert rows
    assert not [row for row in rows if row[0] == "ok"]
    assert all(reason for _, reason in rows)
