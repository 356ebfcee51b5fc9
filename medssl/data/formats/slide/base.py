"""Types that all readers of whole slides share: levels, facts of a slide, and the interface of an open file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from medssl.data.formats.base import FormatError

WHITE = 255
INSTALL = "cannot be opened: whole slides need openslide: pip install 'medssl[slides]', then index again"


class NotInstalledError(FormatError):
    """The package that reads a file is not installed: the file is tried again at the next update."""


class BackendError(FormatError):
    """One reader does not read a file that another one may read."""


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes:
        shape: Rows and columns.
        downsample: Pixels of level 0 for one pixel of this level, the mean of both axes, as OpenSlide states it.
        factor: The same for rows and columns: a whole number where the shape fits one, since scanners drop what is
            left over at the right and lower edge.
    """

    shape: tuple[int, int]
    downsample: float
    factor: tuple[float, float]


@dataclass(frozen=True)
class Details:
    """What a slide's file says about it; nothing that names a person or a place.

    Attributes:
        vendor: Layout of the file by OpenSlide's names ("aperio", "generic-tiff", "dicom").
        scanner: Manufacturer and model, as far as they are on a list of known words.
        objective: Nominal magnification of the objective; None if the file does not state it.
        stain: Stain, where the file codes it.
        spacing_reason: Why the size of a pixel is not known; "" if it is.
        bounds: Scanned area at level 0: first row, first column, rows, columns; None where it is the whole slide.
        notes: What was assumed or left out.
        facts: Further facts as JSON values.
    """

    vendor: str = ""
    scanner: str = ""
    objective: float | None = None
    stain: str = ""
    spacing_reason: str = ""
    bounds: tuple[int, int, int, int] | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """Geometry and facts of a slide.

    Attributes:
        levels: From the finest to the coarsest; the first is level 0.
        spacing_mm: Distance of rows and of columns at level 0; None if the file does not state a plausible one.
        details: Further facts.
    """

    levels: tuple[Level, ...]
    spacing_mm: tuple[float, float] | None
    details: Details

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of level 0."""
        return self.levels[0].shape


class OpenFile(Protocol):
    """An open slide of one backend. It is used by one thread at a time and never shared with another process."""

    def describe(self) -> Description:
        """Levels, spacing and facts."""

    def read_level(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pixels uint8 [rows, columns, 3] of one level; the window lies inside the level.

        Raises:
            FormatError: A tile is damaged.
        """

    def close(self) -> None:
        """Closes the file."""


def levels_of(shapes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their shapes, the first of which is level 0.

    Raises:
        FormatError: A level is empty or larger than level 0.
    """
    rows, columns = shapes[0] if shapes else (0, 0)
    if min(rows, columns) < 1:
        message = "zero-size: a slide without pixels"
        raise FormatError(message)
    levels = []
    for height, width in shapes:
        if not (0 < height <= rows and 0 < width <= columns):
            message = f"damaged: a level of {height}x{width} below one of {rows}x{columns}"
            raise FormatError(message)
        factor = _whole((rows, columns), (height, width))
        levels.append(Level((height, width), (rows / height + columns / width) / 2, factor))
    return tuple(levels)


def _whole(full: tuple[int, int], reduced: tuple[int, int]) -> tuple[float, float]:
    """Factor of both axes: the whole number of which both lengths are a rounded quotient, else the ratios."""
    ratios = [length / small for length, small in zip(full, reduced, strict=True)]
    for whole in sorted({round(ratios[0]), round(ratios[1]), round(sum(ratios) / 2)}):
        if all(abs(length / whole - small) < 1 for length, small in zip(full, reduced, strict=True)):
            return float(whole), float(whole)
    return ratios[0], ratios[1]
