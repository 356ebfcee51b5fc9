"""The interface of a file format, and the types and checks that all formats share.

To add a format, write one module (or package) that satisfies ``Format`` and enter it in ``recognition.FORMATS``.
"""

from __future__ import annotations

import gzip
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medssl.types import Grid, Kind, ValueDomain

FIRST_BYTES = 352  # bytes of a file that decide what it is: a NIfTI header, a DICOM preamble
FARTHEST_MM = 1e6  # largest distance of the first voxel from the origin
SMALLEST_MM, LARGEST_MM = 1e-3, 100.0  # voxel spacings outside this range suggest another unit
LPS_TO_RAS = (-1.0, -1.0, 1.0)
DAMAGE = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, SyntaxError, EOFError,
    struct.error, zlib.error, gzip.BadGzipFile,
)  # fmt: skip
# errors that libraries raise on damaged files; one such file must not stop the indexing of all others

_PYTHON = re.compile(
    r"literal for|could not convert|unpack(_from)? requires|buffer|attribute|subscriptable|\bb['\"]|Error\b|object|"
    r"codec|expected str|dtype|NoneType|out of range|argument|operand|broadcast|reshape|integer|tuple"
)


class FormatError(ValueError):
    """A file of a known format that cannot be read as a scan: it is damaged, or its layout is not supported.

    Attributes:
        rejected: True: the file is sound, but no scan that is read. False: it is damaged.
    """

    def __init__(self, message: str = "", *, rejected: bool = False) -> None:
        super().__init__(printable(message))
        self.rejected = rejected


@dataclass(frozen=True)
class Frames:
    """Several arrays with one grid in one file: their number, and a noun for messages ("points in time")."""

    count: int = 1
    noun: str = ""


@dataclass(frozen=True)
class FileHeader:
    """Header of a file.

    Attributes:
        kind: Volume or image.
        value_domain: Meaning of the values; "gray" if the file does not say.
        channels: Number of values of a voxel in one frame (3 for RGB, the components of a vector).
        grid: Grid of one frame, in mm.
        frames: Volumes or pictures in the file; options of the data set decide how they are used.
        dtype: Number type of the values, by numpy's name.
        notes: Notes for the user: what was guessed, what was left out.
        details: Further facts of single formats as JSON values, such as "companions", "intent", "palette".
    """

    kind: Kind
    value_domain: ValueDomain
    channels: int
    grid: Grid
    frames: Frames = Frames()
    dtype: str = ""
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


class Format(Protocol):
    """What the module of a format provides.

    All functions raise ``FormatError`` (one line, without the path) for files that cannot be a scan.
    """

    @property
    def SUFFIXES(self) -> tuple[str, ...]:
        """Lower-case endings of file names, with the dot."""

    @property
    def NOUN(self) -> str:
        """The format with its article, as messages name it ("a NIfTI file")."""

    @property
    def NEEDS_SUFFIX(self) -> bool:
        """Whether the first bytes alone do not prove the format, since files of other kinds begin alike."""

    def matches(self, first: bytes) -> bool:
        """Whether the first 352 bytes of a file belong to this format."""

    def read_header(self, path: Path) -> FileHeader:
        """Read kind, grid and number type.

        Pixels are decoded only where nothing else shows whether the file is complete. ``details["companions"]`` names
        other files that hold part of the scan, such as a detached ``.raw``.
        """

    def read_pixels(self, path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
        """Read the values as the file defines them, [C, *s], and their grid."""


@dataclass(frozen=True)
class Reading:
    """Options for reading pixels that the file does not determine.

    Attributes:
        label: The file is a mask: palette indices are classes, and nothing is converted to colors.
        axes: Arrays only: one letter for each axis, slowest first ("kji", "ckji", "ji", "jic", "tkji").
        member: Arrays only: name of the array in an ``.npz`` or ``.h5`` file.
        spacing_mm: Arrays only: voxel spacings in mm, separated by commas, for the spatial axes in the order of
            ``axes``.
    """

    label: bool = False
    axes: str = ""
    member: str = ""
    spacing_mm: str = ""


def check_grid(header: FileHeader) -> FileHeader:
    """Refuses a header without voxels, or with an affine that cannot be used.

    Raises:
        FormatError: Names the problem.
    """
    if min(header.grid.shape, default=0) < 1:
        message = f"zero-size: shape {times(header.grid.shape)}"
        raise FormatError(message)
    affine = np.array(header.grid.affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-15:
        message = "geometry unusable: the affine in the header cannot be inverted"
        raise FormatError(message)
    offset_mm = float(np.abs(affine[:-1, -1]).max())
    if offset_mm > FARTHEST_MM:
        distance = f"{offset_mm:.3g} mm away: expected at most {FARTHEST_MM:g} mm"
        message = f"geometry unusable: the first voxel lies {distance}"
        raise FormatError(message)
    return header


def make_grid(shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """Grid from a voxel-to-world affine (n+1, n+1) in mm; the spacing is the length of its columns."""
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    rows = tuple(tuple(float(value) for value in row) for row in affine)
    return Grid(tuple(int(length) for length in shape), tuple(float(step) for step in spacing), rows)


def picture_grid(height: int, width: int, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Grid:
    """Grid of an image: (row, column) to millimeters from the first pixel."""
    return make_grid((height, width), np.diag([*spacing_mm, 1.0]))


def times(shape: Iterable[int]) -> str:
    """A shape as text for messages: "512x512x80"."""
    return "x".join(map(str, shape))


def printable(text: str) -> str:
    """Replaces control characters, which damaged headers may contain, by question marks."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def first_line(error: BaseException) -> str:
    """First line of an error's text; text about Python instead of the file is replaced."""
    if isinstance(error, zlib.error):
        return "the compressed data are damaged"
    if isinstance(error, EOFError):
        return "it ends early"
    lines = str(error).strip().splitlines()
    if not lines or _PYTHON.search(lines[0]):
        return "numbers or words in its header that make no sense"
    return printable(lines[0][:200])


@contextmanager
def silent() -> Iterator[None]:
    """Disables the loggers of nibabel and tifffile for the block; problems of files are raised instead."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "tifffile")]
    former = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, former, strict=True):
            logger.disabled = disabled
