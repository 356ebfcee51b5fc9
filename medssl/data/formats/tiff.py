"""TIFF pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medssl.data.formats.base import DAMAGE, FileHeader, FormatError, Reading, first_line, picture_grid, silent
from medssl.types import Grid

SUFFIXES = (".tif", ".tiff")


def matches(first: bytes) -> bool:
    """Whether a file begins as TIFF or BigTIFF does."""
    return first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def companions(path: Path) -> tuple[Path, ...]:
    """A TIFF file is whole by itself."""
    del path
    return ()


def read_header(path: Path) -> FileHeader:
    """Read shape and type, and see whether all pixels that the header names are there.

    Raises:
        FormatError: Truncated, damaged, or of a layout that is no picture.
    """
    import tifffile

    try:
        with silent(), tifffile.TiffFile(path) as file:
            series = file.series[0]
            header = _header(series.axes, tuple(series.shape), series.dtype)
            ends = (
                offset + length
                for page in series.pages
                if page is not None
                for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)
            )
            last = max(ends, default=0)
    except FormatError:
        raise
    except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
        message = f"not readable as a TIFF picture: {first_line(error)}"
        raise FormatError(message) from error
    if last > path.stat().st_size:
        message = f"truncated: {path.stat().st_size:,} of at least {last:,} bytes"
        raise FormatError(message)
    return header


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Read an array [C, row, column] and its grid.

    Raises:
        FormatError: Truncated or damaged.
    """
    del frame, reading
    import tifffile

    try:
        with silent(), tifffile.TiffFile(path) as opened:
            series = opened.series[0]
            header = _header(series.axes, tuple(series.shape), series.dtype)
            axes = series.axes
            others = (number for number, letter in enumerate(axes) if letter not in "YX")
            order = (*others, axes.index("Y"), axes.index("X"))
            array = series.asarray().transpose(order).reshape(header.channels, *header.grid.shape)
    except FormatError:
        raise
    except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
        message = f"truncated or damaged: {first_line(error)}"
        raise FormatError(message) from error
    return array, header.grid


def _header(axes: str, shape: tuple[int, ...], dtype: np.dtype | None) -> FileHeader:
    """Kind, channels and grid of a TIFF series by its axis letters (Y, X and at most one axis of channels)."""
    if dtype is None or dtype.kind not in "iufb":
        message = f"pixels of type {dtype}: only whole and real numbers are read"
        raise FormatError(message)
    lengths = dict(zip(axes, shape, strict=True))
    others = {letter: length for letter, length in lengths.items() if letter not in "YX" and length > 1}
    if not {"Y", "X"} <= set(lengths) or len(others) > 1 or set(others) - set("CSQI"):
        message = f"layout {axes} {'x'.join(map(str, shape))}: only one picture, with channels, is read"
        raise FormatError(message)
    channels = next(iter(others.values()), 1)
    if channels > 64:
        message = f"{channels} pages: a stack of pictures is not one picture"
        raise FormatError(message)
    color = channels == 3 and "S" in others and dtype == np.uint8
    grid = picture_grid(lengths["Y"], lengths["X"])
    return FileHeader("image", "rgb" if color else "gray", channels, grid, dtype=dtype.name)
