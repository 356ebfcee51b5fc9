"""NRRD (``.nrrd``, ``.nhdr``).

This decoder is used because libraries open any path that a header names, do not verify checksums, and may end the
process on damaged headers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FileHeader, Reading
from medssl.data.formats.nrrd.axes import Axes, axes_of, geometry
from medssl.data.formats.nrrd.header import NrrdHeader, read_text, sources
from medssl.data.formats.placement import is_left_handed
from medssl.data.formats.voxels.layout import Layout, arrange, check_sources, from_text, grid_of, read_values
from medssl.data.formats.voxels.streams import Source
from medssl.types import Grid, ValueDomain

SUFFIXES = (".nrrd", ".nhdr")
NOUN = "an NRRD file"
NEEDS_SUFFIX = False
_SEGMENT = re.compile(r"Segment\d+_(ID|LabelValue)")  # keys of 3D Slicer's segmentations


def matches(first: bytes) -> bool:
    """Whether a file starts with the signature of NRRD."""
    return re.match(rb"NRRD000[1-9]\r?\n", first) is not None


def read_header(path: Path) -> FileHeader:
    """Reads shape, type and grid, and checks the lengths of the files.

    Raises:
        FormatError: The file is truncated or damaged, or holds no scan.
    """
    header = read_text(path)
    axes = axes_of(header)
    layout = _layout(header, axes)
    affine, notes = geometry(header, axes)
    grid = grid_of(layout, affine)
    voxel_sources = sources(path, header, layout)
    _check(header, layout, voxel_sources)
    details: dict[str, Any] = {}
    if any(source.companion for source in voxel_sources):
        details["companions"] = [source.path.relative_to(path.parent).as_posix() for source in voxel_sources]
    if any(_SEGMENT.fullmatch(key) for key in header.pairs):
        details["intent"] = "label"
    if len(grid.shape) == 3 and is_left_handed(affine):
        details["handedness"] = "left"
    domain: ValueDomain = "rgb" if axes.colors and layout.channels == 3 and layout.dtype.itemsize == 1 else "gray"
    if layout.keep:
        notes += ("transparency left out",)
    if {"oldmin", "oldmax"} & set(header.fields):
        notes += ("values are quantized: old min and old max of the header not applied",)
    kind: Any = "volume" if len(grid.shape) == 3 else "image"
    name = layout.dtype.newbyteorder("=").name
    notes = header.notes + axes.notes + notes
    return FileHeader(kind, domain, layout.channels, grid, layout.frames(axes.noun), name, notes, details)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Reads an array [C, i, j, k] or [C, row, column] in the number type of the file, and its grid.

    Raises:
        FormatError: The file is truncated or damaged.
    """
    del reading
    header = read_text(path)
    axes = axes_of(header)
    layout = _layout(header, axes)
    affine, _ = geometry(header, axes)
    voxel_sources = sources(path, header, layout)
    if header.encoding in ("text", "hex"):
        values, single_frame = from_text(voxel_sources, layout, header.encoding), False
    else:
        check_sources(voxel_sources, layout)
        values, single_frame = read_values(voxel_sources, layout, frame)
    return arrange(values, layout, frame, alone=single_frame), grid_of(layout, affine)


def _check(header: NrrdHeader, layout: Layout, voxel_sources: tuple[Source, ...]) -> None:
    if header.encoding in ("text", "hex"):
        from_text(voxel_sources, layout, header.encoding)  # only decoding tells how many numbers there are
    else:
        check_sources(voxel_sources, layout)


def _layout(header: NrrdHeader, axes: Axes) -> Layout:
    layout = Layout(header.dtype, header.sizes, axes.roles)
    if axes.colors and layout.length("c") == 4:
        return Layout(header.dtype, header.sizes, axes.roles, 3)
    return layout
