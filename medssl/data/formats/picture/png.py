"""PNG pictures (PNG specification, third edition): chunks, checksums, samples."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FileHeader, FormatError, Frames, Reading, picture_grid
from medssl.data.formats.picture import orientation
from medssl.data.formats.picture.base import TRANSPARENCY, uneven_spacing, wide_colors
from medssl.types import ValueDomain

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {
    _GRAY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GRAY_ALPHA: (8, 16), _RGB_ALPHA: (8, 16),
}  # fmt: skip
_SAMPLES = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGB_ALPHA: 4}
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_READ_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"pHYs", b"eXIf", b"acTL")
_MAX_CHUNK_BYTES = 1 << 20  # bytes of a chunk that is looked into
_DEFLATE_LIMIT = 1032  # bytes out of one byte in


@dataclass(frozen=True)
class _Chunks:
    """Header of a PNG file.

    Attributes:
        size: Stored (height, width).
        depth: Bits of a sample.
        color: Color type.
        blocks: Content of the chunks that are used.
        packed: Bytes of compressed samples of the still picture.
        hidden: Whether the still picture is not a frame of the animation.
    """

    size: tuple[int, int]
    depth: int
    color: int
    blocks: dict[bytes, bytes]
    packed: int
    hidden: bool = False


def read_header(path: Path) -> FileHeader:
    """Reads size and colors, and checks that all chunks up to the end mark are present.

    Raises:
        FormatError: The file is truncated or damaged, or has more samples than its bytes can hold.
    """
    with path.open("rb", buffering=0) as stream:
        chunks = _read_chunks(lambda start, count: os.pread(stream.fileno(), count, start), path.stat().st_size)
    return _header(chunks)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, FileHeader]:
    """Reads an array [C, row, column], reoriented for display, and the header; checksums are verified.

    Raises:
        FormatError: The file is truncated or damaged.
    """
    content = path.read_bytes()
    chunks = _read_chunks(lambda start, count: content[start : start + count], len(content), sums=True)
    header = _header(chunks)
    if header.frames.count > 1:
        array = _decode_animation(content, frame, header, reading)
    elif chunks.depth == 16:
        array = _decode_16_bit(content, chunks)
    else:
        array = _decode_8_bit(content, chunks, reading)
    return orientation.turn(array, _orientation(chunks)), header


def _read_chunks(read: Any, size: int, *, sums: bool = False) -> _Chunks:
    """Reads all chunks; ``read(start, count)`` returns bytes of the file, ``sums`` verifies checksums."""
    start, packed, hidden = len(SIGNATURE), 0, True
    blocks: dict[bytes, bytes] = {}
    while True:
        head = read(start, 8)
        if len(head) < 8:
            message = f"truncated: {size:,} bytes without the end mark IEND"
            raise FormatError(message)
        length, name = struct.unpack(">I4s", head)
        if start + 12 + length > size:
            message = f"truncated: {size:,} of at least {start + 12 + length:,} bytes"
            raise FormatError(message)
        if not name[0] & 0x20 and name not in _CRITICAL:
            message = f"a chunk {name.decode('latin-1')!r} that must be understood and is not in the standard"
            raise FormatError(message)
        if not packed and name == b"fcTL":
            hidden = False
        if sums or name == b"IHDR":
            content, stored_sum = read(start + 8, length), read(start + 8 + length, 4)
            if zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(stored_sum, "big"):
                message = f"damaged: the check sum of chunk {name.decode('latin-1')!r} does not fit"
                raise FormatError(message)
        if name in _READ_CHUNKS and name not in blocks and length <= _MAX_CHUNK_BYTES:
            blocks[name] = read(start + 8, length)
        packed += length if name == b"IDAT" else 0
        start += 12 + length
        if name == b"IEND":
            break
    return _parse_header(blocks, packed, hidden=hidden)


def _parse_header(blocks: dict[bytes, bytes], packed: int, *, hidden: bool) -> _Chunks:
    """Checks size, depth and color type, and returns the header."""
    if len(blocks.get(b"IHDR", b"")) != 13:
        message = "not readable as a PNG picture: no chunk IHDR of 13 bytes"
        raise FormatError(message)
    width, height, depth, color, packing, filters, interlace = struct.unpack(">IIBBBBB", blocks[b"IHDR"])
    if depth not in _DEPTHS.get(color, ()) or packing or filters or interlace > 1:
        message = (
            f"not readable as a PNG picture: color type {color} of {depth} bits, compression {packing}, filter "
            f"{filters}, interlace {interlace} are not in the standard"
        )
        raise FormatError(message)
    if color == _PALETTE and (not blocks.get(b"PLTE") or len(blocks[b"PLTE"]) % 3):
        message = "damaged: a picture with a palette, but without a whole chunk PLTE"
        raise FormatError(message)
    needed = height * (width * depth * _SAMPLES[color] + 7) // 8
    if needed > _DEFLATE_LIMIT * packed:
        message = f"damaged: {packed:,} bytes cannot hold {width} x {height} pixels"
        raise FormatError(message)
    return _Chunks((height, width), depth, color, blocks, packed, hidden)


def _header(chunks: _Chunks) -> FileHeader:
    """Kind, channels, grid and notes."""
    domain: ValueDomain = "gray" if chunks.color in (_GRAY, _GRAY_ALPHA) else "rgb"
    channels = 1 if domain == "gray" else 3
    notes: tuple[str, ...] = orientation.note(_orientation(chunks))
    if domain == "rgb" and chunks.depth == 16:
        domain, notes = "gray", (*notes, wide_colors(16))
    if chunks.color in (_GRAY_ALPHA, _RGB_ALPHA) or b"tRNS" in chunks.blocks:
        notes = (*notes, TRANSPARENCY)
    spacing, uneven = _spacing(chunks.blocks.get(b"pHYs", b""))
    turn = _orientation(chunks)
    grid = picture_grid(*orientation.turned_shape(chunks.size, turn), orientation.turned_pair(spacing, turn))
    return FileHeader(
        "image", domain, channels, grid, _frames(chunks), "uint16" if chunks.depth == 16 else "uint8",
        (*notes, *uneven), _details(chunks),
    )  # fmt: skip


def _details(chunks: _Chunks) -> dict[str, Any]:
    """Facts that help to distinguish masks from pictures."""
    details: dict[str, Any] = {} if chunks.depth in (8, 16) else {"bits": chunks.depth}
    return details | ({"palette": len(chunks.blocks[b"PLTE"]) // 3} if chunks.color == _PALETTE else {})


def _frames(chunks: _Chunks) -> Frames:
    """Frames of an animation (chunk acTL), and the still picture if it is not one of them."""
    block = chunks.blocks.get(b"acTL", b"")
    count = int.from_bytes(block[:4], "big") + chunks.hidden if len(block) == 8 else 1
    return Frames(count, "pictures of an animation") if count > 1 else Frames()


def _orientation(chunks: _Chunks) -> int:
    return orientation.exif_orientation(chunks.blocks.get(b"eXIf", b""))


def _spacing(block: bytes) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Spacing of (rows, columns): 1 mm, or the ratio of pHYs if pixels are not square."""
    if len(block) != 9:
        return (1.0, 1.0), ()
    across, down, _ = struct.unpack(">IIB", block)
    return uneven_spacing(across, down)


def _decode_16_bit(content: bytes, chunks: _Chunks) -> np.ndarray:
    """Samples of 16 bits [C, row, column]; Pillow would reduce colors to 8 bits."""
    import imagecodecs

    array = imagecodecs.png_decode(content).reshape(*chunks.size, -1)
    if array.dtype != np.uint16 or array.shape[2] < _SAMPLES[chunks.color]:
        message = f"truncated or damaged: decoded to {array.shape[2]} samples of type {array.dtype}"
        raise FormatError(message)
    channels = 1 if chunks.color in (_GRAY, _GRAY_ALPHA) else 3
    return np.asarray(array[..., :channels].transpose(2, 0, 1))


def _decode_8_bit(content: bytes, chunks: _Chunks, reading: Reading) -> np.ndarray:
    """Samples of up to 8 bits [C, row, column]. Gray values span 0 to 255 for any depth; a label is unchanged."""
    from PIL import PngImagePlugin

    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as image:
        image.load()
        if reading.label and chunks.color in (_GRAY_ALPHA, _RGB_ALPHA) and image.getextrema()[-1] != (255, 255):
            message = (
                "a mask with transparency: whether a class or its transparency counts is not certain; save it without"
            )
            raise FormatError(message)
        if chunks.color == _PALETTE:
            return _palette_colors(np.asarray(image), chunks.blocks[b"PLTE"], label=reading.label)
        if chunks.color in (_RGB, _RGB_ALPHA):
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        array = np.asarray(image.convert("L"))[None]
    return array // (255 // (2**chunks.depth - 1)) if reading.label else array


def _palette_colors(places: np.ndarray, palette: bytes, *, label: bool) -> np.ndarray:
    """The colors of a palette, or its indices if they are classes."""
    if label:
        return places[None]
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if places.size and int(places.max()) >= len(colors):
        message = f"damaged: place {int(places.max())} of a palette of {len(colors)} colors"
        raise FormatError(message)
    return colors.T[:, places]


def _decode_animation(content: bytes, frame: int | None, header: FileHeader, reading: Reading) -> np.ndarray:
    """One displayed picture of an animation, or all of them as channels."""
    from PIL import PngImagePlugin

    if reading.label:
        message = f"{header.frames.count} pictures of an animation: a mask is one picture"
        raise FormatError(message)
    mode = "L" if header.channels == 1 else "RGB"
    pictures = []
    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as image:
        for number in range(header.frames.count) if frame is None else [frame]:
            image.seek(number)
            array = np.asarray(image.convert(mode))
            pictures.append(array[None] if mode == "L" else array.transpose(2, 0, 1))
    return np.concatenate(pictures)
