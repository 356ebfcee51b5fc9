"""PNG, JPEG and BMP pictures; a picture is read by its content, whatever of them its name says."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import DAMAGE, FileHeader, FormatError, Reading, first_line, picture_grid
from medssl.data.formats.picture import jpeg, png
from medssl.data.formats.picture.base import TRANSPARENCY, uneven_spacing
from medssl.types import Grid

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib")
NOUN = "a picture"
NEEDS_SUFFIX = False
_NAMES = {"apng": "PNG", "jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "dib": "BMP"}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_BMP_PACKED = (1, 2, 4, 5)  # run lengths of 8 and of 4 bits, JPEG, PNG inside


def matches(first: bytes) -> bool:
    """Whether a file begins as one of the pictures does that are read."""
    return bool(_content(first))


def read_header(path: Path) -> FileHeader:
    """Read size and colors, and see whether the file is whole as far as that shows without decoding.

    Raises:
        FormatError: Truncated, damaged, or of colors or a format that are not read.
    """
    content = _content_of(path)
    try:
        header = {"PNG": png.read_header, "JPEG": jpeg.read_header, "BMP": _bmp_header}[content](path)
    except FormatError:
        raise
    except (OSError, *DAMAGE) as error:
        raise _as_format_error(error, f"not readable as a {content} picture") from error
    if _format_of_name(path) == content or not path.name.lower().endswith(SUFFIXES):
        return header
    return replace(header, notes=(*header.notes, f"named {path.suffix}, but is a {content} picture"))


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Read an array [C, row, column], turned as its tag Orientation says, and its grid.

    Args:
        path: The file.
        frame: Which picture of an animation; None takes all as channels.
        reading: A label keeps its stored values: places of a palette, 0 and 1 of one bit.

    Raises:
        FormatError: Truncated or damaged.
    """
    content = _content_of(path)
    try:
        if content == "PNG":
            array, header = png.read_pixels(path, frame, reading)
        elif content == "JPEG":
            array, header = jpeg.read_pixels(path)
        else:
            array, header = _bmp_pixels(path, reading), _bmp_header(path)
    except FormatError:
        raise
    except (OSError, *DAMAGE) as error:
        raise _as_format_error(error, "truncated or damaged") from error
    return np.ascontiguousarray(array), header.grid


def _format_of_name(path: Path) -> str:
    """The format that the ending of a name says."""
    suffix = path.suffix[1:].lower()
    return _NAMES.get(suffix, suffix.upper())


def _content(first: bytes) -> str:
    """The format that the first bytes are of, if it is one that is read."""
    if first[:8] == png.SIGNATURE:
        return "PNG"
    if first[:3] == jpeg.START and first[3:4] != b"\xf7":
        return "JPEG"
    if first[:2] == b"BM" and int.from_bytes(first[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return ""


def _content_of(path: Path) -> str:
    """The format that the file holds.

    Raises:
        FormatError: It is none that is read.
    """
    with path.open("rb") as stream:
        content = _content(stream.read(32))
    if not content:
        message = (
            f"not readable as a {_format_of_name(path)} picture: its first bytes are not those of PNG, JPEG or BMP"
        )
        raise FormatError(message)
    return content


def _as_format_error(error: BaseException, what: str) -> BaseException:
    """One line of an error of a decoder; an error of the system stays as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = first_line(error)
    if isinstance(error, (TypeError, AttributeError, LookupError, ArithmeticError, struct.error)):
        text = "numbers in its header that make no sense"
    return FormatError(f"{what}: {text}".replace("broken data stream when reading image file", "broken data"))


def _bmp_header(path: Path) -> FileHeader:
    """Size and colors of a BMP; the rows must be there."""
    with path.open("rb") as stream, _bmp(stream) as image:
        stream.seek(0)
        head = stream.read(54)
        small = int.from_bytes(head[14:18], "little") == 12
        bits = int.from_bytes(head[24:26] if small else head[28:30], "little")
        packing = 0 if small else int.from_bytes(head[30:34], "little")
        size, start = path.stat().st_size, int.from_bytes(head[10:14], "little")
        if packing not in _BMP_PACKED and start + image.height * ((image.width * bits + 31) // 32 * 4) - 3 > size:
            message = f"truncated: {size:,} bytes cannot hold {image.width} x {image.height} pixels of {bits} bits"
            raise FormatError(message)
        if packing in _BMP_PACKED and image.height * image.width > 256 * size:
            message = f"damaged: {size:,} bytes cannot hold {image.width} x {image.height} pixels"
            raise FormatError(message)
        gray = image.mode in ("1", "L")
        notes: tuple[str, ...] = (TRANSPARENCY,) if image.mode == "RGBA" else ()
        spacing, uneven = ((1.0, 1.0), ()) if small else uneven_spacing(*struct.unpack("<ii", head[38:46]))
        details: dict[str, Any] = {"palette": 2**bits} if image.mode == "P" else {}
        grid = picture_grid(image.height, image.width, spacing)
    return FileHeader(
        "image", "gray" if gray else "rgb", 1 if gray else 3, grid, dtype="uint8", notes=(*notes, *uneven),
        details=details,
    )  # fmt: skip


def _bmp_pixels(path: Path, reading: Reading) -> np.ndarray:
    """Samples [C, row, column] of a BMP; a label keeps the places of its palette."""
    _bmp_header(path)
    with path.open("rb") as stream, _bmp(stream) as image:
        image.load()
        if image.mode in ("1", "L"):
            array = np.asarray(image.convert("L"))[None]
            return array // 255 if reading.label and image.mode == "1" else array
        if image.mode == "P" and reading.label:
            return np.asarray(image)[None]
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _bmp(stream: Any) -> Any:
    """A BMP opened by Pillow; its other kinds are none that Pillow's own error describes well."""
    from PIL import BmpImagePlugin

    image = BmpImagePlugin.BmpImageFile(stream)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        message = f"colors of kind {image.mode}: only gray and RGB pictures are read"
        raise FormatError(message)
    return image
