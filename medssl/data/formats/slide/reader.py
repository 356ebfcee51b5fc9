"""Reads any region of a slide at any pixel size, from the best level of its pyramid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.slide.backends import open_file
from medssl.data.formats.slide.base import WHITE, Description, Details, Level, OpenFile
from medssl.data.formats.slide.handles import HANDLES
from medssl.data.formats.slide.resampling import area_average

_BLOCK_PIXELS = 1 << 22  # of a level that are in memory at once
_BLOCK_COLUMNS = 2048
_COARSER = 1.01  # a level may be this much coarser than the target spacing


@dataclass(frozen=True)
class _Window:
    """Pixels of a level that one block of the target grid covers: start, and steps of the block in them."""

    level: int
    low: tuple[float, float]
    step: tuple[float, float]
    size: tuple[int, int]


class SlideReader:
    """A whole slide. It is opened when it is first read, and can be pickled at any time.

    Files are opened through a cache of 32 per process; a reader itself holds no file.
    """

    def __init__(self, paths: tuple[Path, ...], spacing_mm: tuple[float, float] | None = None) -> None:
        self.paths = paths
        self._spacing_mm = spacing_mm
        self._description: Description | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of level 0."""
        return self._describe().shape

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """Distance of rows and of columns at level 0, mm; None if nothing states it."""
        return self._describe().spacing_mm

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels, from the finest to the coarsest."""
        return self._describe().levels

    @property
    def details(self) -> Details:
        """Scanner, stain, objective, bounds and notes."""
        return self._describe().details

    def shape_at(self, spacing_mm: tuple[float, float]) -> tuple[int, int]:
        """Rows and columns of the slide at another spacing, rounded."""
        rows, columns = (
            max(1, round(length / step)) for length, step in zip(self.shape, self._steps(spacing_mm), strict=True)
        )
        return rows, columns

    def read(self, start: tuple[int, int], size: tuple[int, int], spacing_mm: tuple[float, float]) -> np.ndarray:
        """Reads a region at a spacing: the mean color of the area that each pixel covers.

        Pixels come from the coarsest level that is at least as fine as ``spacing_mm`` (1 percent more is accepted).
        What lies outside of the slide, or was not scanned, is white.

        Args:
            start: Row and column of the first pixel, in pixels of ``spacing_mm``; the grid begins at the corner of
                level 0. Negative numbers lie outside.
            size: Rows and columns, in pixels of ``spacing_mm``, at least 1.
            spacing_mm: Distance of rows and of columns, mm, above 0.

        Returns:
            uint8 [3, rows, columns].

        Raises:
            FormatError: A tile is damaged, or the spacing of the slide is not known.
            OSError: The file cannot be opened.
        """
        steps = self._steps(spacing_mm)
        level = self._best_level(steps)
        step = _snapped((steps[0] / self.levels[level].factor[0], steps[1] / self.levels[level].factor[1]))
        result = np.empty((3, *size), np.uint8)
        rows, columns = _block_size(size, step)
        with HANDLES.opened(self.paths, self._open) as file:
            for row in range(0, size[0], max(rows, 1)):
                for column in range(0, size[1], max(columns, 1)):
                    part = (min(rows, size[0] - row), min(columns, size[1] - column))
                    low = ((start[0] + row) * step[0], (start[1] + column) * step[1])
                    block = self._block(file, _Window(level, low, step, part))
                    result[:, row : row + part[0], column : column + part[1]] = block.transpose(2, 0, 1)
        return result

    def _block(self, file: OpenFile, window: _Window) -> np.ndarray:
        """One block of the target grid [rows, columns, 3]."""
        length = self.levels[window.level].shape
        first, last = [], []
        for axis in (0, 1):
            margin = 1 if window.step[axis] < 1 else 0  # interpolation needs the next pixel
            first.append(int(np.floor(window.low[axis] + 1e-6)) - margin)
            last.append(int(np.ceil(window.low[axis] + window.size[axis] * window.step[axis] - 1e-6)) + margin)
        inside = [(max(low, 0), min(high, count)) for low, high, count in zip(first, last, length, strict=True)]
        if any(low >= high for low, high in inside):
            return np.full((*window.size, 3), WHITE, np.uint8)
        pixels = file.read_level(
            window.level, (inside[0][0], inside[1][0]), (inside[0][1] - inside[0][0], inside[1][1] - inside[1][0])
        )
        around = [(low - begin, end - high) for (low, high), begin, end in zip(inside, first, last, strict=True)]
        if any(any(pair) for pair in around):
            pixels = np.pad(pixels, (*around, (0, 0)), constant_values=WHITE)
        offset = (window.low[0] - first[0], window.low[1] - first[1])
        return area_average(pixels, _snapped(offset), window.step, window.size)

    def _steps(self, spacing_mm: tuple[float, float]) -> tuple[float, float]:
        """Pixels of level 0 in one pixel of a spacing, for rows and columns."""
        source = self.spacing_mm
        if source is None:
            message = f"no spacing: {self.details.spacing_reason}"
            raise FormatError(message)
        if not min(spacing_mm) > 0:
            message = f"spacing {spacing_mm[0]:g} x {spacing_mm[1]:g} mm: expected lengths above 0"
            raise ValueError(message)
        return spacing_mm[0] / source[0], spacing_mm[1] / source[1]

    def _best_level(self, steps: tuple[float, float]) -> int:
        best = 0
        for number, level in enumerate(self.levels):
            fits = all(factor <= step * _COARSER for factor, step in zip(level.factor, steps, strict=True))
            if fits and level.factor >= self.levels[best].factor:
                best = number
        return best

    def _describe(self) -> Description:
        if self._description is None:
            with HANDLES.opened(self.paths, self._open) as file:
                description = file.describe()
            if self._spacing_mm is not None:
                details = replace(description.details, spacing_reason="")
                description = replace(description, spacing_mm=self._spacing_mm, details=details)
            self._description = description
        return self._description

    def _open(self) -> OpenFile:
        return open_file(self.paths)


def open_slide(path: Path | str, *more: Path | str, spacing_mm: tuple[float, float] | None = None) -> SlideReader:
    """A reader of a slide; no file is opened before it is needed.

    Args:
        path: The slide's file; of a DICOM slide any of its files.
        more: The other files of a DICOM slide.
        spacing_mm: Distance of rows and of columns at level 0, mm, in place of what the file says.
    """
    return SlideReader(tuple(Path(one) for one in (path, *more)), spacing_mm)


def _snapped(values: tuple[float, float]) -> tuple[float, float]:
    """Values within 1e-6 of a whole number become it."""
    first, second = (float(round(value)) if abs(value - round(value)) < 1e-6 else value for value in values)
    return first, second


def _block_size(size: tuple[int, int], step: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns of the target grid whose pixels of the level fit into memory."""
    columns = min(size[1], max(1, int(_BLOCK_COLUMNS / step[1])))
    rows = min(size[0], max(1, int(_BLOCK_PIXELS / (max(columns, 1) * step[0] * step[1]))))
    return rows, columns
