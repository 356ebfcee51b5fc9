"""Directories of a TIFF file, read without its pixels: which files are slides, and whether all tiles are there.

A TIFF file is a whole slide if one of these holds, else it is a picture:

- a slide scanner's software wrote it (Aperio, Hamamatsu, Leica, Ventana, Philips, Trestle, PerkinElmer);
- its largest page is colored (three or four samples of 8 bits) and tiled, and a smaller tiled page shows the same
  picture (a pyramid);
- its largest page is colored and has more than 2**26 pixels (8192 x 8192), or is a pyramid of any kind of that size.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import DAMAGE, FormatError

LARGE = 1 << 26  # pixels
_MOST_PAGES = 4096
_MOST_TEXT = 1 << 16
_FORMATS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_NDPI = 65420
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _TEXT = 256, 257, 258, 262, 270
_SUBTYPE, _SAMPLES, _SOFTWARE, _SUBIFDS, _XMP = 254, 277, 305, 330, 700
_STRIPS, _STRIP_COUNTS, _TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_COUNTS = 273, 279, 322, 323, 324, 325


@dataclass(frozen=True)
class Page:
    """One directory.

    Attributes:
        size: Rows and columns.
        samples: Samples of a pixel and their bits.
        color: Whether the samples are red, green and blue, or a transform of them.
        tiled: Whether it is stored in tiles.
        reduced: Whether it is marked as a reduced copy of another page, or is a child of one.
        texts: Description, software and XMP, at most 64 KiB each.
        end: Byte after the last tile or strip; 0 if the page states none.
        tiles: How many tiles or strips have no bytes, how many there are, and the pixels of one tile.
    """

    size: tuple[int, int]
    samples: tuple[int, int]
    color: bool
    tiled: bool
    reduced: bool
    texts: tuple[str, str, str] = ("", "", "")
    end: int = 0
    tiles: tuple[int, int, int] = (0, 0, 0)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.size[0] * self.size[1]

    @property
    def is_color(self) -> bool:
        """Whether it holds three or four samples of 8 bits that are colors."""
        return self.color and self.samples[0] in (3, 4) and self.samples[1] == 8


def is_tiff(first: bytes) -> bool:
    """Whether a file starts with the signature of TIFF or BigTIFF."""
    return first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_slide(path: Path) -> bool:
    """Whether a TIFF file is a whole slide by the rule of this module; False for files that are damaged.

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        pages = read_pages(path)
    except DAMAGE:
        return False
    if not pages:
        return False
    if vendor_of(pages):
        return True
    main = max(pages, key=lambda page: page.pixels)
    large = main.pixels > LARGE
    if main.is_color and large:
        return True
    return (main.is_color or large) and main.tiled and any(_is_level(page, main) for page in pages)


def check_color(pages: list[Page]) -> None:
    """Refuses a slide whose largest page is not one of three colors of 8 bits, or whose tiles are implausible.

    Raises:
        FormatError: Says what the file holds.
    """
    if not any(page.pixels for page in pages):
        return
    main = max(pages, key=lambda page: page.pixels)
    largest = max(page.tiles[2] for page in pages)
    if largest > LARGE:  # decoders would claim their memory at once
        message = f"damaged: tiles of {largest:,} pixels"
        raise FormatError(message)
    samples, bits = main.samples
    advice = "a slide is read as three colors of 8 bits; export the channels as an RGB slide if they are to be used"
    if samples not in (3, 4):
        count = samples * sum(page.size == main.size for page in pages)
        noun = "channel" if count == 1 else "channels"
        message = f"a slide of {count} {noun} of {bits} bits (fluorescence or gray): {advice}"
    elif bits != 8:
        message = f"a slide of colors of {bits} bits: {advice}"
    else:
        return
    raise FormatError(message, rejected=True)


def vendor_of(pages: list[Page]) -> str:
    """Scanner's software by the texts of the pages, by OpenSlide's names; "" if none of them wrote the file."""
    for page in pages:
        text, software, xmp = page.texts
        if text.startswith("Aperio"):
            return "aperio"
        if "NDPI" in software:
            return "hamamatsu"
        if "leica-microsystems.com/scn/" in text:
            return "leica"
        if "<iScan" in xmp or "<iScan" in text:
            return "ventana"
        if software.startswith("Philips DP") or 'ObjectType="DPUfsImport"' in text:
            return "philips-tiff"
        if software.startswith("MedScan"):
            return "trestle"
        if software.startswith("PerkinElmer-QPI") or "PerkinElmer-QPI-ImageDescription" in text:
            return "perkinelmer-qpi"
    return ""


def read_pages(path: Path) -> list[Page]:
    """All directories, children after their parents; those before the first damaged one.

    Raises:
        OSError: The file cannot be opened.
    """
    with path.open("rb") as stream:
        if path.stat().st_size < 16:
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return list(_pages(data))


def _is_level(page: Page, main: Page) -> bool:
    """Whether a page is a smaller tiled copy of the main one: the same shape within one pixel, and the same samples."""
    if page.pixels >= main.pixels or not page.tiled or page.samples != main.samples or min(page.size) < 1:
        return False
    ratios = [full / small for full, small in zip(main.size, page.size, strict=True)]
    least = min(page.size)
    return page.reduced or abs(ratios[0] / ratios[1] - 1) <= 1.5 / least


def _pages(data: mmap.mmap) -> Iterator[Page]:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    start = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
    pending, met = [(start, False)], set[int]()
    while pending and len(met) < _MOST_PAGES:
        place, child = pending.pop()
        if not 0 < place < len(data) or place in met:  # nowhere, or before the first byte
            continue
        met.add(place)
        directory = _Directory(data, order, place, big=big)
        if not directory.read():
            return
        yield directory.page(child=child)
        if not child:
            pending.append((directory.next, False))
        pending += [(int(one), True) for one in reversed(directory.numbers(_SUBIFDS)[:64])]


class _Directory:
    """The entries of one directory."""

    def __init__(self, data: mmap.mmap, order: str, place: int, *, big: bool) -> None:
        self.data, self.order, self.place, self.big = data, order, place, big
        self.entries: dict[int, tuple[int, int, int]] = {}  # kind, count, place of the values
        self.next = 0

    def read(self) -> bool:
        """Reads the entries; False if they lie outside of the file."""
        head, length = ("Q", 8) if self.big else ("H", 2)
        entry, inline = (20, 8) if self.big else (12, 4)
        offset = "Q" if self.big else "I"
        try:
            (count,) = struct.unpack_from(self.order + head, self.data, self.place)
            if count > 4096:
                return False
            for number in range(count):
                place = self.place + length + number * entry
                tag, kind = struct.unpack_from(f"{self.order}HH", self.data, place)
                (values,) = struct.unpack_from(self.order + offset, self.data, place + 4)
                size = struct.calcsize("<" + _FORMATS[kind]) if kind in _FORMATS else 8
                held = place + entry - inline
                if values * size > inline:
                    (held,) = struct.unpack_from(self.order + offset, self.data, held)
                self.entries[tag] = (kind, values, held)
            (self.next,) = struct.unpack_from(self.order + offset, self.data, self.place + length + count * entry)
        except struct.error:
            return bool(self.entries)
        return True

    def numbers(self, tag: int) -> Any:
        """Values of a tag as an array; empty if it is missing or lies outside of the file."""
        kind, count, place = self.entries.get(tag, (0, 0, 0))
        code = _FORMATS.get(kind)
        if code is None or count < 1:
            return np.empty(0, np.int64)
        dtype = np.dtype(self.order + code)
        if place + count * dtype.itemsize > len(self.data):
            return np.empty(0, np.int64)
        return np.frombuffer(self.data[place : place + count * dtype.itemsize], dtype).astype(np.int64)

    def number(self, tag: int, default: int = 0) -> int:
        """First value of a tag."""
        values = self.numbers(tag)
        return int(values[0]) if len(values) else default

    def text(self, tag: int) -> str:
        """Text of a tag, at most 64 KiB."""
        kind, count, place = self.entries.get(tag, (0, 0, 0))
        if kind not in (1, 2, 7):
            return ""
        return self.data[place : place + min(count, _MOST_TEXT)].split(b"\0\0")[0].decode("utf-8", "replace")

    def page(self, *, child: bool) -> Page:
        """What the entries say."""
        tiled = _TILES in self.entries or _TILE_WIDTH in self.entries
        offsets = self.numbers(_TILES if tiled else _STRIPS)
        counts = self.numbers(_TILE_COUNTS if tiled else _STRIP_COUNTS)
        number = min(len(offsets), len(counts))
        ends = offsets[:number] + counts[:number]
        software = "NDPI" if _NDPI in self.entries else self.text(_SOFTWARE)
        bits = self.numbers(_BITS)
        return Page(
            (self.number(_LENGTH), self.number(_WIDTH)),
            (self.number(_SAMPLES, 1), int(bits.max()) if len(bits) else 1),
            self.number(_PHOTOMETRIC) in (2, 6),
            tiled,
            bool(self.number(_SUBTYPE) & 1) or child,
            (self.text(_TEXT), software, self.text(_XMP)),
            int(ends.max()) if number else 0,
            (int((counts[:number] == 0).sum()), number, self.number(_TILE_WIDTH) * self.number(_TILE_LENGTH)),
        )
