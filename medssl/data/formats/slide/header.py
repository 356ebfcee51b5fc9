"""What the index lists of a slide that is one file, and the checks that its levels can be read."""

from __future__ import annotations

import re
from pathlib import Path

from medssl.data.formats.base import FileHeader, FormatError, picture_grid
from medssl.data.formats.slide import tiff_pages
from medssl.data.formats.slide.backends import open_file
from medssl.data.formats.slide.base import Description, OpenFile

_TRIED = 16  # rows and columns of each level that are decoded
_INI_VALUE = re.compile(rb"=([^\r\n=]{1,255})\r?$", re.MULTILINE)


def read_header(path: Path) -> FileHeader:
    """Size, spacing and facts of a slide; one tile of each level is decoded.

    ``details["slide"]`` holds the spacing in mm or None with the reason, levels, scanner, objective and stain. Where
    the spacing is not known, that of the grid is 1 mm and means nothing.

    Raises:
        FormatError: The slide is damaged or of a kind that is not read.
        OSError: It cannot be opened.
    """
    companions = companions_of(path)
    with path.open("rb") as stream:
        first = stream.read(8)
    if tiff_pages.is_tiff(first):
        _check_pages(path)
    file = open_file((path,))
    try:
        about = file.describe()
        _try_levels(file, about)
    finally:
        file.close()
    return _header(about, companions)


def listed(about: Description) -> dict[str, object]:
    """Facts of a slide as JSON values."""
    details = about.details
    return {
        "spacing_mm": about.spacing_mm, "spacing_reason": details.spacing_reason, "vendor": details.vendor,
        "levels": [level.shape for level in about.levels], "scanner": details.scanner, "objective": details.objective,
        "stain": details.stain,
    }  # fmt: skip


def companions_of(path: Path) -> list[str]:
    """Files beside a slide that hold its pixels: the folder of an .mrxs, the pictures that a .vms or .vmu names."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        if not folder.is_dir():
            message = f"the folder {folder.name}, which holds the pixels, is missing"
            raise FormatError(message)
        return sorted(f"{folder.name}/{one.name}" for one in folder.iterdir() if one.is_file())
    if suffix in (".vms", ".vmu"):
        with path.open("rb") as stream:
            text = stream.read(1 << 16)
        names = {value.decode("utf-8", "replace").strip() for value in _INI_VALUE.findall(text)}
        return sorted(name for name in names if name and "/" not in name and (path.parent / name).is_file())
    return []


def _header(about: Description, companions: list[str]) -> FileHeader:
    grid = picture_grid(*about.shape, about.spacing_mm or (1.0, 1.0))
    notes = about.details.notes
    if about.spacing_mm is not None and abs(about.spacing_mm[0] / about.spacing_mm[1] - 1) > 0.01:
        rows_um, columns_um = (step * 1000 for step in about.spacing_mm)
        notes = (*notes, f"pixels are not square: mpp-x {columns_um:.4g}, mpp-y {rows_um:.4g}")
    details: dict[str, object] = {"slide": listed(about)}
    if companions:
        details["companions"] = companions
    return FileHeader("slide", "rgb", 3, grid, dtype="uint8", notes=notes, details=details)


def _check_pages(path: Path) -> None:
    """Refuses TIFF files that are shorter than their tiles, or have a level without tiles."""
    pages = tiff_pages.read_pages(path)
    vendor = tiff_pages.vendor_of(pages)
    if not any(page.pixels for page in pages):
        message = "damaged: no directory of TIFF can be read"
        raise FormatError(message)
    if vendor == "hamamatsu":  # places beyond 4 GB need rules of their own
        return
    size, end = path.stat().st_size, max(page.end for page in pages)
    if end > size:
        message = f"truncated: {size:,} of at least {end:,} bytes"
        raise FormatError(message)
    for page in pages:
        if page.tiled and page.is_color and page.tiles[0] == page.tiles[1]:
            message = f"damaged: a level of {page.size[0]}x{page.size[1]} has no tiles"
            raise FormatError(message)


def _try_levels(file: OpenFile, about: Description) -> None:
    """Decodes a tile in the middle of each level.

    Raises:
        FormatError: Names the level.
    """
    for number, level in enumerate(about.levels):
        rows, columns = (min(_TRIED, length) for length in level.shape)
        start = ((level.shape[0] - rows) // 2, (level.shape[1] - columns) // 2)
        file.read_level(number, start, (rows, columns))
