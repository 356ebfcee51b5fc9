"""Whole slides: recognized, described for the index, and read region by region at any pixel size.

Only the levels of a slide are read. Its label, which shows names, and its macro image are not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medssl.data.formats.base import FileHeader, FormatError, Reading
from medssl.data.formats.slide.base import Details as Details
from medssl.data.formats.slide.base import Level as Level
from medssl.data.formats.slide.reader import SlideReader as SlideReader
from medssl.data.formats.slide.reader import open_slide as open_slide
from medssl.data.formats.slide.tiff_pages import is_tiff as _is_tiff
from medssl.types import Grid

SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".qptiff")
NOUN = "a whole slide"
NEEDS_SUFFIX = True


def matches(first: bytes) -> bool:
    """Whether a file may be a slide of one of these names: TIFF, a JPEG picture (.mrxs), or text (.vms, .vmu)."""
    return _is_tiff(first) or first.startswith((b"\xff\xd8\xff", b"["))


def read_header(path: Path) -> FileHeader:
    """Size, spacing, levels and facts.

    Raises:
        FormatError: The slide is damaged or of a kind that is not read.
        OSError: It cannot be opened.
    """
    from medssl.data.formats.slide.header import read_header as read

    return read(path)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Slides have no array of all their pixels.

    Raises:
        FormatError: Always.
    """
    message = "a whole slide is read region by region (open_slide), not as one array"
    raise FormatError(message)
