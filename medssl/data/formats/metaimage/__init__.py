"""MetaImage (``.mha``, ``.mhd``). This decoder verifies the checksum of compressed voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FileHeader, FormatError, Reading
from medssl.data.formats.metaimage.header import (
    MetaHeader,
    details_of,
    geometry,
    layout_of,
    read_text,
    scale_of,
    sources,
)
from medssl.data.formats.placement import is_left_handed
from medssl.data.formats.voxels.layout import Layout, arrange, check_sources, from_text, grid_of, read_values, scaled
from medssl.data.formats.voxels.streams import Source, check_length
from medssl.types import Grid, ValueDomain

SUFFIXES = (".mha", ".mhd")
NOUN = "a MetaImage file"
NEEDS_SUFFIX = False
_FIRST_FIELDS = (b"objecttype", b"ndims", b"comment")


def matches(first: bytes) -> bool:
    """Whether a file starts with a field of MetaImage, which has no signature."""
    start = first.lstrip()[:40].lower()
    name, mark, _ = start.partition(b"=")
    return bool(mark) and name.strip() in _FIRST_FIELDS and (name.strip() != b"comment" or b"ndims" in first.lower())


def read_header(path: Path) -> FileHeader:
    """Reads shape, type and grid, and checks the lengths of the files.

    Raises:
        FormatError: The file is truncated or damaged, or holds no scan.
    """
    header = read_text(path)
    layout = layout_of(header)
    affine, notes = geometry(header)
    grid = grid_of(layout, affine)
    voxel_sources = sources(path, header, layout)
    _check(header, layout, voxel_sources)
    details = details_of(header)
    if any(source.companion for source in voxel_sources):
        details["companions"] = [source.path.relative_to(path.parent).as_posix() for source in voxel_sources]
    if len(grid.shape) == 3 and is_left_handed(affine):
        details["handedness"] = "left"
    colors = layout.channels == 3 and layout.dtype.itemsize == 1 and layout.dtype.kind == "u"
    domain: ValueDomain = "rgb" if colors else "gray"
    notes += ("three channels of 8 bits taken as red, green, blue",) if colors and len(grid.shape) == 3 else ()
    notes += ("transparency left out",) if layout.keep else ()
    slope, offset = scale_of(header)
    if (slope, offset) != (1.0, 0.0):
        notes += (f"values scaled by ElementToIntensityFunction (slope {slope:g}, offset {offset:g})",)
    if "binarydatabyteordermsb" not in header.fields and layout.dtype.itemsize > 1 and not header.as_text:
        notes += ("does not state its byte order: little endian assumed",)
    kind: Any = "volume" if len(grid.shape) == 3 else "image"
    frames = layout.frames("volumes along the fourth axis")
    name = layout.dtype.newbyteorder("=").name
    return FileHeader(kind, domain, layout.channels, grid, frames, name, header.notes + notes, details)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Reads an array [C, i, j, k] or [C, row, column] in the number type of the file (or scaled), and its grid.

    Raises:
        FormatError: The file is truncated or damaged.
    """
    del reading
    header = read_text(path)
    layout = layout_of(header)
    affine, _ = geometry(header)
    voxel_sources = sources(path, header, layout)
    single_frame = False
    if header.as_text:
        values = from_text(voxel_sources, layout, "text")
    else:
        if not header.packed:
            check_sources(voxel_sources, layout)
        values, single_frame = read_values(voxel_sources, layout, frame)
    values = scaled(values, *scale_of(header))
    return arrange(values, layout, frame, alone=single_frame), grid_of(layout, affine)


def _check(header: MetaHeader, layout: Layout, voxel_sources: tuple[Source, ...]) -> None:
    """Checks lengths; compressed voxels are decoded only if the header does not state their length."""
    if header.as_text:
        from_text(voxel_sources, layout, "text")
    elif not header.packed:
        check_sources(voxel_sources, layout)
    elif not _has_stated_length(header, layout, voxel_sources):
        check_sources(voxel_sources, layout)


def _has_stated_length(header: MetaHeader, layout: Layout, voxel_sources: tuple[Source, ...]) -> bool:
    """Whether one file has exactly the stated number of compressed bytes, and they can hold the voxels."""
    stated_length = header.fields.get("compresseddatasize", "")
    if (
        len(voxel_sources) != 1
        or not stated_length.isdecimal()
        or len(stated_length) > 15
        or layout.bytes > 1032 * int(stated_length) + 1000
    ):
        return False
    try:
        return check_length(Source(voxel_sources[0].path, voxel_sources[0].offset), int(stated_length)) == 0
    except FormatError:
        return False
