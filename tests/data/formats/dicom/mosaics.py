"""Siemens mosaics for the tests: tiles of a known volume, and the private elements that say where they lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from data.make_scans import AXIAL, Series, noise, slice_dataset, write_slice


def csa_header(values: dict[str, list[str]], *, second: bool = True) -> bytes:
    """A CSA image header of the newer ("SV10") or the older layout."""
    data = (b"SV10\4\3\2\1" if second else b"") + struct.pack("<II", len(values), 77)
    base = len(next(iter(values.values())))
    for name, texts in values.items():
        kind = b"SH\0\0" if name.endswith("Text") else b"US\0\0" if "Number" in name else b"DS\0\0"
        data += name.encode().ljust(64, b"\0") + struct.pack("<i4siii", len(texts), kind, 3, len(texts), 77)
        for text in texts:
            raw = text.encode() + b"\0"
            length = (len(raw), len(raw), 77, len(raw)) if second else (len(raw) + base, 0, 77, 0)
            data += struct.pack("<iiii", *length) + raw.ljust(-(-len(raw) // 4) * 4, b"\0")
    return data


@dataclass
class Mosaic:
    """A mosaic to write; ``reversed_normal``: the slices follow each other against rows x columns."""

    shape: tuple[int, int, int] = (6, 4, 7)  # columns, rows, slices
    orientation: tuple[float, ...] = AXIAL
    position: tuple[float, float, float] = (-30.0, -20.0, 10.0)
    step_mm: float = 4.0
    reversed_normal: bool = False
    seed: int = 0
    second: bool = True
    csa: dict[str, list[str]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def pixels(self) -> np.ndarray:
        columns, rows, slices = self.shape
        return noise((slices, rows, columns), np.uint16, seed=self.seed)

    def write(self, file: Path, *, number: int = 1) -> np.ndarray:
        """Write the file; returns (slice, row, column)."""
        volume = self.pixels()
        columns, rows, slices = self.shape
        side = int(np.ceil(np.sqrt(slices)))
        picture = np.zeros((side * rows, side * columns), np.uint16)
        for tile in range(slices):
            row, column = tile // side * rows, tile % side * columns
            picture[row : row + rows, column : column + columns] = volume[tile]
        normal = np.cross(self.orientation[:3], self.orientation[3:]) * (-1 if self.reversed_normal else 1)
        series = Series((side * columns, side * rows, 1), self.orientation, dtype=np.uint16)
        dataset = slice_dataset(series, number - 1, picture)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        dataset.ImagePositionPatient = list(self.position)
        dataset.SpacingBetweenSlices = self.step_mm
        dataset.AcquisitionNumber = dataset.InstanceNumber = number
        values: dict[str, list[str]] = {
            "EchoLinePosition": [],
            "EchoColumnPosition": [],
            "AcquisitionMatrixText": [f"{rows}*{columns}"],
            "NumberOfImagesInMosaic": [str(slices)],
            "SliceNormalVector": [f"{value:.9f}" for value in normal],
            "ProtocolSliceNumber": ["0"],
        } | self.csa
        group = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        group.add_new(0x0A, "US", slices)
        group = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        group.add_new(0x10, "OB", csa_header(values, second=self.second))
        for name, value in self.extra.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        write_slice(file, dataset)
        return volume
