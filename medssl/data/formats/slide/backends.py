"""Which reader opens a slide: OpenSlide, or another one where OpenSlide does not read the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.slide import tiff_pages
from medssl.data.formats.slide.base import BackendError, Description, OpenFile
from medssl.data.formats.slide.first_level import FirstLevel

if TYPE_CHECKING:
    from medssl.data.formats.slide.openslide_file import OpenSlideFile
    from medssl.data.formats.slide.tiff_file import TiffSlide

_BY_TILES = ("aperio", "generic-tiff")  # layouts whose pages are levels and whose tiles are TIFF's
_CHECKED = 32  # rows and columns that both readers must agree on


def open_file(paths: tuple[Path, ...]) -> OpenFile:
    """Opens a slide.

    Args:
        paths: Its file; several for a DICOM slide.

    Raises:
        FormatError: No reader reads it.
        OSError: The file cannot be opened.
    """
    with paths[0].open("rb") as stream:
        first = stream.read(132)
    if first[128:132] == b"DICM":
        from medssl.data.formats.slide.dicom_file import open_dicom

        return open_dicom(paths)
    from medssl.data.formats.slide.openslide_file import OpenSlideFile

    if not tiff_pages.is_tiff(first):
        try:
            return OpenSlideFile(paths[0])
        except BackendError as error:
            message = f"not readable as a slide: {error}"
            raise FormatError(message) from error
    tiff_pages.check_color(tiff_pages.read_pages(paths[0]))
    try:
        slide = OpenSlideFile(paths[0])
    except BackendError as error:
        return _tiff(paths[0], str(error))
    return _by_tiles(paths[0], slide)


def _tiff(path: Path, problem: str) -> OpenFile:
    """The file through tifffile; ``problem`` is what OpenSlide says."""
    from medssl.data.formats.slide.tiff_file import TiffSlide

    try:
        return TiffSlide(path)
    except BackendError as error:
        message = f"not readable as a slide: {error}" + (f"; {problem}" if problem else "")
        raise FormatError(message) from error


def _by_tiles(path: Path, slide: OpenSlideFile) -> OpenFile:
    """OpenSlide's levels and facts with tiles read by tifffile, where both read the same pixels; else OpenSlide.

    Tiles of JPEG are read faster by tifffile, those of JPEG 2000 by OpenSlide, which then reads level 0.
    """
    from medssl.data.formats.slide.tiff_file import TiffSlide

    about = slide.describe()
    if about.details.vendor not in _BY_TILES:
        return slide
    try:
        tiles = TiffSlide(path)
    except FormatError:
        return slide
    own = tiles.describe()
    shapes, listed = ([level.shape for level in one.levels] for one in (own, about))
    is_ome = own.details.vendor == "ome-tiff"
    try:
        same = shapes[: len(listed)] == listed and _equal(slide, tiles, about)
    except FormatError:
        slide.close()
        tiles.close()
        raise
    if not same:
        tiles.close()
        return slide
    if shapes == listed and not tiles.is_jpeg and not is_ome:
        return FirstLevel(slide, tiles)
    slide.close()
    return _Tiles(tiles, about if shapes == listed else None)


def _equal(slide: OpenSlideFile, tiles: TiffSlide, about: Description) -> bool:
    """Whether both read the same: the first pixels of each level, and some in the middle of level 0.

    Raises:
        FormatError: OpenSlide cannot read them: the slide is damaged.
    """
    rows, columns = about.shape
    windows = [(number, (0, 0), level.shape) for number, level in enumerate(about.levels)]
    windows.append((0, (rows // 2, columns // 2), (rows - rows // 2, columns - columns // 2)))
    for level, start, limit in windows:
        size = (min(_CHECKED, limit[0]), min(_CHECKED, limit[1]))
        expected = slide.read_level(level, start, size)
        try:
            same = np.array_equal(expected, tiles.read_level(level, start, size))
        except FormatError:
            return False
        if not same:
            return False
    return True


class _Tiles:
    """A file whose tiles are read by tifffile; levels and facts are OpenSlide's, where it lists the same levels."""

    def __init__(self, tiles: TiffSlide, about: Description | None) -> None:
        self._tiles, self._about = tiles, about
        self.read_level = tiles.read_level
        self.close = tiles.close

    def describe(self) -> Description:
        """Levels, spacing and facts."""
        own = self._tiles.describe()
        if self._about is None:
            return own
        spacing, details = self._about.spacing_mm, self._about.details
        if own.details.vendor == "ome-tiff":  # OpenSlide does not read OME-XML
            details = replace(details, vendor="ome-tiff", spacing_reason=own.details.spacing_reason)
            spacing = own.spacing_mm
        return Description(own.levels, spacing, details)
