"""Slides in TIFF files, read tile by tile through tifffile: where OpenSlide does not read them, or is slower."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import DAMAGE, FormatError, first_line, silent
from medssl.data.formats.slide import pixel_size
from medssl.data.formats.slide.base import WHITE, BackendError, Description, Details, levels_of

_RGB, _YCBCR, _JPEG = 2, 6, 7
_MOST_BYTES = 1 << 28  # of one tile or strip


class TiffSlide:
    """The largest picture of a TIFF file and its reduced copies."""

    def __init__(self, path: Path) -> None:
        import tifffile

        self._stream = path.open("rb")
        try:
            with silent():
                self._file = tifffile.TiffFile(self._stream)
        except (*DAMAGE, tifffile.TiffFileError) as error:
            self._stream.close()
            message = f"not readable as TIFF: {first_line(error)}"
            raise BackendError(message) from error
        try:
            with silent():
                self._pages = self._levels()
        except FormatError:
            self.close()
            raise
        except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
            self.close()
            message = "damaged: tags that contradict each other or make no sense"
            raise BackendError(message) from error

    def _levels(self) -> list[Any]:
        """One page for each level.

        Raises:
            FormatError: The picture is not one of three colors of 8 bits.
        """
        series = self._file.series
        if not series:
            message = "a TIFF file without pages"
            raise BackendError(message)
        main = max(series, key=lambda one: one.keyframe.imagelength * one.keyframe.imagewidth)
        pages = [level.keyframe for level in main.levels]
        _check_color(main, pages[0])
        if not self._file.is_ome and pages[0].is_tiled:
            pages += _pages_beside(self._file, pages)
        sizes = sorted({(page.imagelength, page.imagewidth): page for page in pages}.items(), reverse=True)
        return [page for _, page in sizes]

    @property
    def is_jpeg(self) -> bool:
        """Whether the tiles of level 0 are JPEG."""
        return int(self._pages[0].compression) == _JPEG

    def describe(self) -> Description:
        """Levels, spacing and facts."""
        page = self._pages[0]
        levels = levels_of([(int(one.imagelength), int(one.imagewidth)) for one in self._pages])
        rows_um, columns_um, source = None, None, "OME-XML"
        if self._file.is_ome:
            rows_um, columns_um = pixel_size.of_ome(self._file.ome_metadata or "", levels[0].shape)
        if rows_um is None and columns_um is None:
            rows_um, columns_um = pixel_size.of_resolution(page)
            source = "the resolution tags"
        spacing, reason = pixel_size.checked(rows_um, columns_um, source)
        vendor = "ome-tiff" if self._file.is_ome else "generic-tiff"
        return Description(levels, spacing, Details(vendor, spacing_reason=reason))

    def read_level(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pixels uint8 [rows, columns, 3] of one level."""
        page = self._pages[level]
        tall, wide = _tile_size(page)
        across = -(-int(page.imagewidth) // wide)
        result = np.full((*size, 3), WHITE, np.uint8)
        for row in range(start[0] // tall, -(-(start[0] + size[0]) // tall)):
            for column in range(start[1] // wide, -(-(start[1] + size[1]) // wide)):
                tile = self._tile(page, row * across + column, level)
                if tile is None:
                    continue
                top, left = max(start[0], row * tall), max(start[1], column * wide)
                part = tile[top - row * tall :, left - column * wide :]
                part = part[: start[0] + size[0] - top, : start[1] + size[1] - left]
                place = (top - start[0], left - start[1])
                result[place[0] : place[0] + part.shape[0], place[1] : place[1] + part.shape[1]] = part
        return result

    def _tile(self, page: Any, number: int, level: int) -> np.ndarray | None:
        """One tile or strip [rows, columns, 3]; None where the file holds none."""
        planes = 3 if int(page.planarconfig) == 2 else 1
        count = len(page.dataoffsets) // planes
        parts = [self._decoded(page, number + plane * count, level) for plane in range(planes)]
        if any(part is None for part in parts):
            return None
        tile = np.concatenate([part for part in parts if part is not None], axis=-1)
        return _on_white(tile, page)

    def _decoded(self, page: Any, number: int, level: int) -> np.ndarray | None:
        """Samples [rows, columns, S] of one tile or strip."""
        if number >= len(page.dataoffsets) or number >= len(page.databytecounts):
            message = f"damaged: level {level} lacks a tile"
            raise FormatError(message)
        length = int(page.databytecounts[number])
        if not length:
            return None
        if length > _MOST_BYTES:
            message = f"damaged: a tile of {length:,} bytes"
            raise FormatError(message)
        data = os.pread(self._stream.fileno(), length, int(page.dataoffsets[number]))
        problem = f"level {level}, tile {number} of {len(page.dataoffsets)}"
        if len(data) < length:
            message = f"truncated: {problem} ends after the file"
            raise FormatError(message)
        try:
            decoded = page.decode(data, number, jpegtables=page.jpegtables)[0]
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            message = f"damaged: {problem} cannot be decoded"
            raise FormatError(message) from error
        if decoded is None:
            return None
        samples: np.ndarray = decoded[0]
        return samples

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._stream.close()


def _tile_size(page: Any) -> tuple[int, int]:
    """Rows and columns of a tile or a strip.

    Raises:
        FormatError: They are 0.
    """
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if min(int(tall), int(wide)) < 1:
        message = f"damaged: tiles of {tall}x{wide} pixels"
        raise FormatError(message)
    return min(int(tall), int(page.imagelength)) if not page.is_tiled else int(tall), int(wide)


def _check_color(series: Any, page: Any) -> None:
    """Refuses pictures that are not one of three colors.

    Raises:
        FormatError: Says what the file holds.
    """
    channels = dict(zip(series.axes, series.shape, strict=True)).get("C", 1)
    bits, samples = page.bitspersample, int(page.samplesperpixel)
    bits = max(bits) if isinstance(bits, tuple) else int(bits)
    advice = "a slide is read as three colors of 8 bits; export the channels as an RGB slide if they are to be used"
    if channels > 1 or samples not in (3, 4):
        count = max(int(channels), 1) * samples
        noun = "channel" if count == 1 else "channels"
        message = f"a slide of {count} {noun} of {bits} bits (fluorescence or gray): {advice}"
        raise FormatError(message, rejected=True)
    if bits != 8:
        message = f"a slide of colors of {bits} bits: {advice}"
        raise FormatError(message, rejected=True)
    if int(page.photometric) not in (_RGB, _YCBCR) or (int(page.photometric) == _YCBCR and int(page.compression) == 1):
        message = f"a slide of colors stored as {page.photometric.name}: save it as RGB"
        raise BackendError(message)
    planes = any(letter in "ZT" and length > 1 for letter, length in zip(series.axes, series.shape, strict=True))
    if planes or int(page.imagedepth) > 1:
        message = f"a slide of several focal planes or moments ({series.axes}): export one plane"
        raise FormatError(message, rejected=True)


def _pages_beside(file: Any, pages: list[Any]) -> list[Any]:
    """Reduced copies of the first page that tifffile does not list as levels."""
    main = pages[0]
    known = {page.index for page in pages}
    found = []
    for number in range(len(file.pages)):
        page = file.pages.get(number, aspage=True, validate=False)
        same = page.samplesperpixel == main.samplesperpixel and page.bitspersample == main.bitspersample
        if number in known or not same or not page.is_tiled or page.imagewidth >= main.imagewidth:
            continue
        ratio = (main.imagelength / page.imagelength) / (main.imagewidth / page.imagewidth)
        if abs(ratio - 1) <= 1.5 / min(page.imagelength, page.imagewidth):
            found.append(page)
    return found


def _on_white(tile: np.ndarray, page: Any) -> np.ndarray:
    """Three colors of a tile; transparency is put on white."""
    if tile.shape[-1] == 3:
        return tile
    extra = page.extrasamples[:1]
    kind = int(extra[0]) if extra else 0
    colors, alpha = tile[..., :3].astype(np.uint16), tile[..., 3:4].astype(np.uint16)
    if kind == 2:
        colors = (colors * alpha + WHITE * (255 - alpha) + 127) // 255
    elif kind == 1:
        colors = np.minimum(colors + (255 - alpha), 255)
    return colors.astype(np.uint8)
