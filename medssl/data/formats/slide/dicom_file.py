"""DICOM whole slides (PS3.3 C.8.12): one series, one or more files for each level, tiles as frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.dicom.elements import DicomError, damage, parse, quiet, reason_of
from medssl.data.formats.dicom.pixels import PixelFile
from medssl.data.formats.dicom.pixels.layout import Layout, check_fits, layout_of
from medssl.data.formats.dicom.whole_slide import TAGS, SlideFile, describe, tile_places
from medssl.data.formats.slide import pixel_size
from medssl.data.formats.slide.base import WHITE, BackendError, Description, Details, OpenFile, levels_of
from medssl.data.formats.slide.first_level import FirstLevel

_MOST_BESIDE = 64  # files of a folder that OpenSlide may look through whenever it opens a slide


@dataclass
class _Part:
    """One open file of a level: the frame of each tile by its row and column."""

    file: PixelFile
    layout: Layout
    frames: dict[tuple[int, int], int]


def open_dicom(paths: Sequence[Path]) -> OpenFile:
    """Opens a slide through OpenSlide, or through pydicom where OpenSlide does not read it or would read many files.

    OpenSlide looks through the folder of a file for the others of its series.
    """
    beside = len({path.parent for path in paths}) == 1 and _few(paths[0].parent)
    if beside:
        from medssl.data.formats.slide.openslide_file import OpenSlideFile

        with suppress(FormatError):
            slide = OpenSlideFile(paths[0])
            if len(paths) == 1:
                return slide
            parts = DicomSlide(paths)
            about = parts.describe()
            if [level.shape for level in about.levels] == [level.shape for level in slide.describe().levels]:
                return FirstLevel(slide, parts)
            slide.close()
            return parts
    return DicomSlide(paths)


def _few(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return sum(1 for _, _ in zip(entries, range(_MOST_BESIDE + 1), strict=False)) <= _MOST_BESIDE


def _read(path: Path) -> tuple[Any, SlideFile]:
    """Header of one file.

    Raises:
        FormatError: It cannot be read, or is no level of a slide.
    """
    try:
        with path.open("rb") as stream, quiet():
            dataset = parse(stream, TAGS)
            return dataset, describe(dataset)
    except DicomError as error:
        raise FormatError(str(error), rejected=error.rejected) from error
    except damage() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(reason_of(error)) from error


class DicomSlide:
    """A DICOM slide whose frames are read by pydicom's header and the decoders of DICOM pictures."""

    def __init__(self, paths: Sequence[Path]) -> None:
        parts: dict[tuple[int, int], list[tuple[Path, Any, SlideFile]]] = {}
        for path in paths:
            dataset, about = _read(path)
            if about.flavor == "VOLUME":
                parts.setdefault(about.size, []).append((path, dataset, about))
        if not parts:
            message = "no level of a slide: only its label or an overview"
            raise BackendError(message)
        ordered = sorted(parts.items(), key=lambda item: item[0][0] * item[0][1], reverse=True)
        self._levels = [(size, files) for size, files in ordered]
        self._open: dict[int, list[_Part]] = {}

    def describe(self) -> Description:
        """Levels, spacing and facts."""
        about = self._levels[0][1][0][2]
        rows_um, columns_um = (None if step is None else step * 1000 for step in about.spacing_mm or (None, None))
        spacing, reason = pixel_size.checked(rows_um, columns_um, "PixelSpacing")
        details = Details("dicom", about.scanner, about.objective, about.stain, reason)
        return Description(levels_of([size for size, _ in self._levels]), spacing, details)

    def read_level(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pixels uint8 [rows, columns, 3] of one level; white where no file holds a tile."""
        result = np.full((*size, 3), WHITE, np.uint8)
        try:
            with quiet():
                for part in self._parts(level):
                    self._paste(part, start, result)
        except DicomError as error:
            message = f"damaged: level {level}: {error}"
            raise FormatError(message) from error
        except damage() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            message = f"damaged: level {level}: {reason_of(error)}"
            raise FormatError(message) from error
        return result

    def close(self) -> None:
        """Closes all files."""
        for part in [part for parts in self._open.values() for part in parts]:
            part.file.close()
        self._open = {}

    def _parts(self, level: int) -> list[_Part]:
        if level not in self._open:
            parts = []
            for path, dataset, about in self._levels[level][1]:
                file = PixelFile(path).open()
                layout = layout_of(file.dataset, file.extent.element)
                check_fits(layout, file.syntax)
                parts.append(_Part(file, layout, tile_places(dataset, about)))
            self._open[level] = parts
        return self._open[level]

    def _paste(self, part: _Part, start: tuple[int, int], result: np.ndarray) -> None:
        """Copies the tiles of one file into the window that begins at ``start``."""
        tall, wide, _ = part.layout.shape
        for (row, column), frame in _near(part.frames, start, result.shape, (tall, wide)):
            tile = np.empty(part.layout.shape, part.layout.bits.dtype)
            part.file.read_into(tile, frame, part.layout, [])
            top, left = max(start[0], row), max(start[1], column)
            piece = tile[top - row :, left - column :]
            piece = piece[: start[0] + result.shape[0] - top, : start[1] + result.shape[1] - left]
            place = (top - start[0], left - start[1])
            result[place[0] : place[0] + piece.shape[0], place[1] : place[1] + piece.shape[1]] = piece


def _near(
    frames: dict[tuple[int, int], int], start: tuple[int, int], size: tuple[int, ...], tile: tuple[int, int]
) -> list[tuple[tuple[int, int], int]]:
    """Tiles that a window meets, by their first row and column."""
    rows = range(start[0] // tile[0] * tile[0], start[0] + size[0], tile[0])
    columns = range(start[1] // tile[1] * tile[1], start[1] + size[1], tile[1])
    if all(place[0] % tile[0] == 0 and place[1] % tile[1] == 0 for place in frames):
        return [(place, frames[place]) for row in rows for column in columns if (place := (row, column)) in frames]
    return [
        (place, frame)
        for place, frame in frames.items()
        if all(
            low < first + length and first < low + step
            for low, length, first, step in zip(start, size, place, tile, strict=False)
        )
    ]
