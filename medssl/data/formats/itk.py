"""NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS, FileHeader, FormatError, Reading, make_grid, picture_grid
from medssl.types import Grid

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def matches(first: bytes) -> bool:
    """Whether a file begins as NRRD or MetaImage does."""
    return first[:4] == b"NRRD" or first.lstrip()[:10] in (b"ObjectType", b"NDims = 3\n")


def companions(path: Path) -> tuple[Path, ...]:
    """Detached pixels are not followed."""
    del path
    return ()


def read_header(path: Path) -> FileHeader:
    """Read shape, type and grid.

    Raises:
        FormatError: Damaged, or neither two nor three axes.
    """
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        message = f"not readable: {_reason(error)}"
        raise FormatError(message) from error
    return _header(reader)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Read an array [C, i, j, k] or [C, row, column] and its grid.

    Raises:
        FormatError: Truncated or damaged.
    """
    del frame, reading
    import SimpleITK

    try:
        reader = _reader(path)
        reader.ReadImageInformation()
        header, image = _header(reader), reader.Execute()
    except RuntimeError as error:
        message = f"truncated or damaged: {_reason(error)}"
        raise FormatError(message) from error
    array = SimpleITK.GetArrayFromImage(image)  # k, j, i[, C]
    if header.channels == 1:
        array = array[..., None]
    if header.kind == "image":
        return np.moveaxis(array, -1, 0), header.grid
    return array.transpose(3, 2, 1, 0), header.grid


def _reader(path: Path) -> Any:
    """A SimpleITK reader of the format that the name says."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    return reader


def _reason(error: RuntimeError) -> str:
    """The line of an ITK error that says something, without paths in memory."""
    lines = [line.strip() for line in str(error).splitlines() if "ITK ERROR" in line or "rror" in line]
    return (lines[-1].split("): ")[-1] if lines else "damaged header")[:200]


def _header(reader: Any) -> FileHeader:
    """Kind, channels and grid of what a SimpleITK reader has read of the header; LPS becomes RAS."""
    size, dimension = reader.GetSize(), reader.GetDimension()
    channels = reader.GetNumberOfComponents()
    if dimension == 2:
        width, height = size
        across, down = reader.GetSpacing()
        domain: Any = "rgb" if channels in (3, 4) else "gray"
        return FileHeader("image", domain, channels, picture_grid(height, width, (down, across)))
    if dimension != 3:
        message = f"{dimension} axes: only 2 and 3 (with channels) are read"
        raise FormatError(message)
    affine = np.eye(4)
    directions = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    affine[:3] = np.column_stack([directions, reader.GetOrigin()]) * np.array(LPS_TO_RAS)[:, None]
    return FileHeader("volume", "gray", channels, make_grid(tuple(size), affine))
