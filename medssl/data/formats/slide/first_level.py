"""A slide whose level 0 is read by OpenSlide, and whose other levels are read by another reader."""

from __future__ import annotations

import numpy as np

from medssl.data.formats.slide.base import Description, OpenFile


class FirstLevel:
    """Two open files of one slide.

    OpenSlide places a window by pixels of level 0. On a level whose downsample is not a whole number the window begins
    between two pixels, and OpenSlide interpolates; the other reader gives the pixels of the level as they are.
    """

    def __init__(self, first: OpenFile, others: OpenFile) -> None:
        self._first, self._others = first, others

    def describe(self) -> Description:
        """Levels, spacing and facts by OpenSlide."""
        return self._first.describe()

    def read_level(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pixels uint8 [rows, columns, 3] of one level."""
        return (self._others if level else self._first).read_level(level, start, size)

    def close(self) -> None:
        """Closes both."""
        self._first.close()
        self._others.close()
