"""JPEG pictures (ITU-T T.81, JFIF, EXIF): markers, colors, and checks that the compressed data are complete."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medssl.data.formats.base import FileHeader, FormatError, picture_grid
from medssl.data.formats.picture import orientation
from medssl.data.formats.picture.base import uneven_spacing

START = b"\xff\xd8\xff"
_HEAD = 1 << 16  # bytes that hold the markers of most files
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_READ = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_SCAN, _END, _APP1, _APP2, _APP0, _APP14, _INTERVAL = 0xDA, 0xD9, 0xE1, 0xE2, 0xE0, 0xEE, 0xDD
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # that ends the compressed data of a scan
_FILLER = bytes((0x5A, 0xA5, 0x3C, 0xC3)) * 64
_PIXELS_PER_BYTE = 1024  # upper limit of compression


@dataclass(frozen=True)
class Scan:
    """Header of a scan (in the sense of JPEG), and the place of its compressed data.

    Attributes:
        components: Identifiers of its components.
        band: First and last coefficient.
        low_bit: Lowest bit of the coefficients in this scan (progressive).
        data: First byte of the compressed data, and the byte after them.
        interval: Minimum coded units between restart markers; 0 without markers.
    """

    components: tuple[int, ...]
    band: tuple[int, int]
    low_bit: int
    data: tuple[int, int]
    interval: int


@dataclass
class Markers:
    """Contents of the markers of a JPEG file.

    Attributes:
        process: Last byte of the marker of the frame (0xC0 baseline, 0xC2 progressive ...).
        precision: Bits of a sample.
        size: Stored (height, width).
        factors: Sampling factors (across, down) of each component, by its identifier.
        scans: The scans in their order.
        blocks: First APP0, APP1 (EXIF), APP2 (several pictures) and APP14 segment.
    """

    process: int = 0
    precision: int = 0
    size: tuple[int, int] = (0, 0)
    factors: dict[int, tuple[int, int]] = field(default_factory=dict)
    scans: list[Scan] = field(default_factory=list)
    blocks: dict[int, bytes] = field(default_factory=dict)
    interval: int = 0


def read_header(path: Path) -> FileHeader:
    """Reads size and colors, and checks that the end mark is present.

    Raises:
        FormatError: The file is truncated or damaged, or its colors or process are not supported.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
        try:
            markers = read_markers(head, whole=False)
        except _EndsEarly:
            head = stream.read(-1) if not head else head + stream.read(-1)
            markers = _read_all_markers(head)
        stream.seek(-min(64, size), 2)
        if b"\xff\xd9" not in stream.read():
            stream.seek(0)
            _read_all_markers(stream.read())
    return _header(markers, size)


def read_pixels(path: Path) -> tuple[np.ndarray, FileHeader]:
    """Reads an array [C, row, column], reoriented for display, and the header.

    Raises:
        FormatError: The file is truncated or damaged, or its colors or process are not supported.
    """
    content = path.read_bytes()
    markers = _read_all_markers(content)
    header = _header(markers, len(content))
    array = _decode(content, markers)
    _check_scans(content, markers, array, lambda data: _decode(data, markers))
    channels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return orientation.turn(channels, _orientation(markers)), header


class _EndsEarly(FormatError):
    """The bytes end before the compressed data begin or end."""


def _read_all_markers(content: bytes) -> Markers:
    """Reads all markers up to the end mark."""
    try:
        return read_markers(content, whole=True)
    except _EndsEarly as error:
        message = f"truncated: {len(content):,} bytes without the end mark of a JPEG picture"
        raise FormatError(message) from error


def read_markers(content: bytes, *, whole: bool) -> Markers:
    """Reads the markers to the first scan, or (with ``whole``) through all scans to the end mark.

    Raises:
        FormatError: A segment is damaged, or the bytes end too early.
    """
    markers, start = Markers(), 2
    while True:
        match = re.compile(rb"\xff+[^\xff]").match(content, start)
        if match is None:
            if len(content) - start < 4 and not content[start:].strip(b"\xff"):
                raise _EndsEarly
            message = f"damaged: no marker of a JPEG picture at byte {start:,}"
            raise FormatError(message)
        marker, start = content[match.end() - 1], match.end()
        if marker == _END and markers.scans:
            return markers
        if marker in _WITHOUT_LENGTH or marker == _END:
            continue
        length = int.from_bytes(content[start : start + 2], "big")
        if start + length > len(content) or len(content) < start + 2:
            raise _EndsEarly
        if length < 2:
            message = f"damaged: a JPEG segment of {length} bytes at byte {start:,}"
            raise FormatError(message)
        block, start = content[start + 2 : start + length], start + length
        _store_segment(markers, marker, block)
        if marker == _SCAN:
            if not whole:
                return markers
            end = _NEXT_MARKER.search(content, start)
            if end is None:
                raise _EndsEarly
            markers.scans.append(_scan(block, (start, end.start()), markers.interval))
            start = end.start()


def _scan(block: bytes, data: tuple[int, int], interval: int) -> Scan:
    """The header of a scan (T.81, B.2.3)."""
    count = block[0] if block else 0
    if not count or len(block) < 4 + 2 * count:
        message = "damaged: the header of a scan of the JPEG picture is too short"
        raise FormatError(message)
    first, last, bits = block[1 + 2 * count : 4 + 2 * count]
    return Scan(tuple(block[1 : 1 + 2 * count : 2]), (first, last), bits & 15, data, interval)


def _store_segment(markers: Markers, marker: int, block: bytes) -> None:
    """Stores the content of a segment in ``markers``."""
    if marker in _FRAMES and not markers.process:
        if len(block) < 6 or len(block) < 6 + 3 * block[5]:
            message = "damaged: the segment that says the size of the JPEG picture is too short"
            raise FormatError(message)
        markers.process, markers.precision = marker, block[0]
        height, width, count = struct.unpack(">HHB", block[1:6])
        markers.size = (height, width)
        for entry in range(6, 6 + 3 * count, 3):
            markers.factors[block[entry]] = (block[entry + 1] >> 4, block[entry + 1] & 15)
    elif marker == _INTERVAL and len(block) >= 2:
        markers.interval = int.from_bytes(block[:2], "big")
    elif marker in (_APP0, _APP2, _APP14) or (marker == _APP1 and block[:6] == b"Exif\0\0"):
        markers.blocks.setdefault(marker, block)


def _orientation(markers: Markers) -> int:
    return orientation.exif_orientation(markers.blocks.get(_APP1, b""))


def _header(markers: Markers, size: int) -> FileHeader:
    """File header from the markers."""
    count = len(markers.factors)
    if not markers.process or markers.process not in _READ or markers.precision not in (8, 12):
        kind = f"process {markers.process & 15}, {markers.precision} bits" if markers.process else "no size"
        message = f"a JPEG picture of a kind that is not read ({kind}): save it as PNG"
        raise FormatError(message)
    if count not in (1, 3) or (count == 3 and markers.precision != 8):
        colors = {4: "CMYK colors"}.get(count, f"{count} components of {markers.precision} bits")
        message = f"{colors}: only gray and RGB pictures are read: save it as RGB"
        raise FormatError(message)
    height, width = markers.size
    if height == 0 or any(0 in pair or max(pair) > 4 for pair in markers.factors.values()):
        message = "damaged: a JPEG picture without a height or with sampling factors of 0"
        raise FormatError(message)
    if height * width > _PIXELS_PER_BYTE * size:
        message = f"damaged: {size:,} bytes cannot hold {width} x {height} pixels"
        raise FormatError(message)
    turn = _orientation(markers)
    spacing, uneven = _spacing(markers.blocks.get(_APP0, b""))
    grid = picture_grid(*orientation.turned_shape(markers.size, turn), orientation.turned_pair(spacing, turn))
    notes = (*orientation.note(turn), *uneven)
    if markers.blocks.get(_APP2, b"").startswith(b"MPF\0"):
        notes = (*notes, "several pictures in one file (MPO): the first is taken")
    dtype = "uint8" if markers.precision == 8 else "uint16"
    return FileHeader("image", "gray" if count == 1 else "rgb", count, grid, dtype=dtype, notes=notes)


def _spacing(block: bytes) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Spacing of (rows, columns) by the ratio of the densities of JFIF."""
    if block[:5] != b"JFIF\0" or len(block) < 12:
        return (1.0, 1.0), ()
    across, down = struct.unpack(">HH", block[8:12])
    return uneven_spacing(across, down)


def _decode(content: bytes, markers: Markers) -> np.ndarray:
    """Array [row, column] or [row, column, 3]."""
    if markers.precision == 12:
        import imagecodecs

        return np.asarray(imagecodecs.jpeg8_decode(content))
    from PIL import JpegImagePlugin

    with JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def check_segment(content: bytes, tables: bytes | None = None) -> None:
    """Checks that a JPEG inside another file is complete.

    Args:
        content: Bytes from the first marker to the last.
        tables: Tables that are stored separately.

    Raises:
        FormatError: The JPEG is truncated or damaged.
    """
    import imagecodecs

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(imagecodecs.jpeg8_decode(data, tables=tables))

    _check_scans(content, _read_all_markers(content), decode(content), decode)


def _check_scans(content: bytes, markers: Markers, array: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> None:
    """Checks that the compressed data of every scan reach its last block.

    JPEG decoders silently fill in missing data. The picture is therefore decoded a second time, with filler bytes
    before the marker that ends each scan. They change the result only if data are missing.

    Raises:
        FormatError: The data of a scan are truncated.
    """
    message = "truncated: the compressed data of the JPEG picture end early"
    if not _brings_all_bits(markers):
        raise FormatError(message)
    pieces, position = [], 0
    for scan in markers.scans:
        start, end = scan.data
        marks = len(re.findall(rb"\xff[\xd0-\xd7]", content[start:end])) if scan.interval else 0
        if scan.interval and marks + 1 < -(-_units(markers, scan.components) // scan.interval):
            raise FormatError(message)
        pieces += [content[position:end], _FILLER]
        position = end
    with_filler = decode(b"".join((*pieces, content[position:])))
    if not np.array_equal(with_filler, array):
        raise FormatError(message)


def _brings_all_bits(markers: Markers) -> bool:
    """Whether the scans contain every component and, in progressive files, all of its bits.

    The first component (brightness) needs all 64 coefficients; an encoder may omit those of colors.
    """
    lowest: dict[tuple[int, int], int] = {}
    progressive = _READ.get(markers.process) == "progressive"
    for scan in markers.scans:
        for component in scan.components:
            for coefficient in range(scan.band[0], min(scan.band[1], 63) + 1) if progressive else (0,):
                lowest[component, coefficient] = scan.low_bit if progressive else 0
    needed = {(component, 0) for component in markers.factors}
    needed |= {(next(iter(markers.factors)), coefficient) for coefficient in range(64 if progressive else 1)}
    return needed <= set(lowest) and not any(lowest.values())


def _units(markers: Markers, components: tuple[int, ...]) -> int:
    """Number of minimum coded units of a scan (T.81, A.2)."""
    max_factors = [max(pair[axis] for pair in markers.factors.values()) for axis in (0, 1)]
    width, height = markers.size[1], markers.size[0]
    if len(components) > 1:
        return -(-width // (8 * max_factors[0])) * -(-height // (8 * max_factors[1]))
    across, down = markers.factors.get(components[0] if components else -1, (1, 1))
    columns, rows = -(-width * across // max_factors[0]), -(-height * down // max_factors[1])
    return -(-columns // 8) * -(-rows // 8)
