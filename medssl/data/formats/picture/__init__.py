"""PNG, JPEG and BMP pictures. The content of a file determines its format, not its name."""

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
    """Whether a file starts with the signature of PNG, JPEG or BMP."""
    return bool(_content(first))


def read_header(path: Path) -> FileHeader:
    """Reads size and colors, and checks that the file is complete, as far as possible without decoding.

    Raises:
        FormatError: The file is truncated or damaged, or its colors or format are not supported.
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
    """Reads an array [C, row, column], reoriented by its tag Orientation, and its grid.

    Args:
        path: The file.
        frame: Number of the picture in an animation; None takes all as channels.
        reading: A label keeps its stored values: palette indices, and 0 and 1 of one bit.

    Raises:
        FormatError: The file is truncated or damaged.
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
    """The format by the suffix of the name."""
    suffix = path.suffix[1:].lower()
    return _NAMES.get(suffix, suffix.upper())


def _content(first: bytes) -> str:
    """The format by the first bytes; "" for other formats."""
    if first[:8] == png.SIGNATURE:
        return "PNG"
    if first[:3] == jpeg.START and first[3:4] != b"\xf7":
        return "JPEG"
    if first[:2] == b"BM" and int.from_bytes(first[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return ""


def _content_of(path: Path) -> str:
    """The format of a file by its first bytes.

    Raises:
        FormatError: The format is not supported.
    """
    with path.open("rb") as stream:
        content = _content(stream.read(32))
    if not content:
        message = (
            f"not readable as a {_format_of_name(path)} picture: its first bytes are not those of PNG, JPEG or BMP"
        )
        raise FormatError(message)
    return content


_DECODER_TEXTS = {"broken data stream when reading image file": "broken data"}  # of Pillow, in shorter words


def _as_format_error(error: BaseException, what: str) -> BaseException:
    """Converts an error of a decoder to a ``FormatError``; errors of the system are returned unchanged."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = first_line(error)
    if isinstance(error, (TypeError, AttributeError, LookupError, ArithmeticError, struct.error)):
        text = "numbers in its header that make no sense"
    return FormatError(f"{what}: {_DECODER_TEXTS.get(text, text)}")


def _bmp_header(path: Path) -> FileHeader:
    """Reads size and colors of a BMP, and checks that all rows are present."""
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
    """Samples [C, row, column] of a BMP; a label keeps its palette indices."""
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
    """Opens a BMP with Pillow; kinds that are not supported raise a ``FormatError``."""
    from PIL import BmpImagePlugin

    image = BmpImagePlugin.BmpImageFile(stream)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        message = f"colors of kind {image.mode}: only gray and RGB pictures are read"
        raise FormatError(message)
    return image
