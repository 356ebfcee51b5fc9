"""Which reader opens a slide: OpenSlide, or another one where it does not read the file."""

from __future__ import annotations

from pathlib import Path

from medssl.data.formats.slide.base import OpenFile


def open_file(paths: tuple[Path, ...]) -> OpenFile:
    """Opens a slide.

    Args:
        paths: Its file; several for a DICOM slide.

    Raises:
        FormatError: No reader reads it.
        OSError: The file cannot be opened.
    """
    from medssl.data.formats.slide.openslide_file import OpenSlideFile

    with paths[0].open("rb"):  # its error says why
        pass
    return OpenSlideFile(paths[0])
