"""PNG, JPEG and BMP pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medssl.data.formats.base import DAMAGE, FileHeader, FormatError, Reading, first_line, picture_grid
from medssl.types import Grid, ValueDomain

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def matches(first: bytes) -> bool:
    """Whether a file begins as one of these pictures does."""
    return first[:8] == b"\x89PNG\r\n\x1a\n" or first[:3] == b"\xff\xd8\xff" or first[:2] == b"BM"


def companions(path: Path) -> tuple[Path, ...]:
    """A picture is whole by itself."""
    del path
    return ()


def read_header(path: Path) -> FileHeader:
    """Read size and colors; a file without the end mark of its format is decoded to see whether it is whole.

    Raises:
        FormatError: Truncated, damaged, or of colors that are not read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            domain, channels = _layout(image.mode)
            if not _has_end(path, image.format):
                image.load()
            notes = ("transparency left out",) if image.mode in ("LA", "RGBA", "PA") else ()
            grid = picture_grid(image.height, image.width)
            return FileHeader("image", domain, channels, grid, notes=notes)
    except FormatError:
        raise
    except (OSError, *DAMAGE, Image.DecompressionBombError) as error:
        problem = first_line(error).replace(str(path), path.name)
        message = f"not readable as a {path.suffix[1:].upper()} picture: {problem}"
        raise FormatError(message) from error


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Read an array [C, row, column] and its grid.

    Raises:
        FormatError: Truncated or damaged.
    """
    del frame, reading
    from PIL import Image

    try:
        with Image.open(path) as image:
            domain, _ = _layout(image.mode)
            if domain == "rgb":
                array = np.asarray(image.convert("RGB"))
            else:
                array = np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)
    except FormatError:
        raise
    except (OSError, *DAMAGE, Image.DecompressionBombError) as error:
        message = f"truncated or damaged: {first_line(error).replace(str(path), path.name)}"
        raise FormatError(message) from error
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    channels = array.transpose(2, 0, 1) if array.ndim == 3 else array[None]
    return channels, picture_grid(*channels.shape[1:])


def _layout(mode: str) -> tuple[ValueDomain, int]:
    """Value domain and channels of a Pillow mode; a palette becomes RGB, transparency is left out."""
    if mode in ("L", "1", "I", "I;16", "I;16B", "I;16L", "F", "LA"):
        return "gray", 1
    if mode in ("RGB", "RGBA", "P", "PA"):
        return "rgb", 3
    message = f"colors of kind {mode}: only gray and RGB pictures are read"
    raise FormatError(message)


def _has_end(path: Path, form: str | None) -> bool:
    """Whether the last bytes are the end mark of the format; otherwise only decoding can tell."""
    with path.open("rb") as stream:
        stream.seek(-min(64, path.stat().st_size), 2)
        tail = stream.read()
    return b"IEND" in tail if form == "PNG" else b"\xff\xd9" in tail if form == "JPEG" else False
