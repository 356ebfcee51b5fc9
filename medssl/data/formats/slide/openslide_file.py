"""Slides through OpenSlide 4: SVS, NDPI, MRXS, SCN, BIF, generic tiled TIFF, DICOM and others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FormatError, first_line
from medssl.data.formats.slide import pixel_size
from medssl.data.formats.slide.base import (
    INSTALL,
    WHITE,
    BackendError,
    Description,
    Details,
    NotInstalledError,
    levels_of,
)

CACHE_BYTES = 64 << 20  # decoded tiles of all open slides of a process
_MAKERS = {
    "aperio": "Aperio", "hamamatsu": "Hamamatsu", "mirax": "3DHISTECH", "leica": "Leica", "ventana": "Ventana",
    "philips-tiff": "Philips", "philips": "Philips", "trestle": "Trestle", "sakura": "Sakura", "zeiss": "Zeiss",
}  # fmt: skip
_MODELS = ("aperio.ScannerType", "hamamatsu.Product", "tiff.Model", "leica.device-model", "ventana.ScannerModel",
           "philips.DICOM_MANUFACTURERS_MODEL_NAME", "dicom.ManufacturerModelName")  # fmt: skip
_KNOWN_MODEL = re.compile(
    r"NanoZoomer [\w. -]{1,8}|C\d{4,5}(-\d\d)?|(Leica )?SCN400F?|UFS(?: Scanner)?|SG\d{2,3}|DP ?\d{3}|iScan [\w]{2,8}|"
    r"(Aperio )?(GT ?450(?: DX)?|AT2(?: DX)?|AT Turbo|CS2|LV1|VERSA \d+)|ScanScope [A-Z]{1,3}\d?"
)


class OpenSlideFile:
    """A slide that OpenSlide has opened. Label and macro images are never asked for."""

    def __init__(self, path: Path) -> None:
        openslide = _openslide()
        self._errors = (openslide.OpenSlideError,)
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            message = "OpenSlide does not know this format"
            raise BackendError(message) from error
        except openslide.OpenSlideError as error:
            raise BackendError(_reason(error, path)) from error
        self._slide.set_cache(_tile_cache())
        self._properties = dict(self._slide.properties)  # after an error, OpenSlide gives none
        self._downsamples = tuple(self._slide.level_downsamples)
        self._sizes = tuple(self._slide.level_dimensions)

    def describe(self) -> Description:
        """Levels, spacing and facts."""
        properties = self._properties
        vendor = str(properties.get("openslide.vendor", ""))
        levels = levels_of([(rows, columns) for columns, rows in self._sizes])
        spacing, reason = pixel_size.of_properties(properties, vendor)
        scanner = " ".join(filter(None, (_MAKERS.get(vendor, ""), _model(properties))))
        details = Details(vendor, scanner, _objective(properties), "", reason, _bounds(properties))
        return Description(levels, spacing, details)

    def read_level(self, level: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pixels uint8 [rows, columns, 3], on white where the scanner has none."""
        place = (round(start[1] * self._downsamples[level]), round(start[0] * self._downsamples[level]))
        try:
            region = np.asarray(self._slide.read_region(place, level, (size[1], size[0])))
        except self._errors as error:
            message = f"damaged: level {level} cannot be read near row {start[0]}, column {start[1]}"
            raise FormatError(message) from error
        alpha = region[..., 3]
        if int(alpha.min()) == WHITE:
            return region[..., :3]
        share = alpha[..., None].astype(np.uint16)
        return ((region[..., :3] * share + WHITE * (255 - share) + 127) // 255).astype(np.uint8)

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()


def _openslide() -> Any:
    """The package.

    Raises:
        NotInstalledError: Says how to install it.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:  # the package without its library raises either
        raise NotInstalledError(INSTALL) from error
    return openslide


@cache
def _tile_cache() -> Any:
    return _openslide().OpenSlideCache(CACHE_BYTES)


def _reason(error: Exception, path: Path) -> str:
    """Reason of OpenSlide without names of files."""
    text = first_line(error).replace(str(path), "").replace(path.name, "").replace(str(path.parent), "")
    return "OpenSlide: " + re.sub(r"\S*[/\\]\S*", "a file", text).strip(" :")


def _model(properties: Mapping[str, str]) -> str:
    """The scanner's model where it is on the list: other text of the file might name a person or a place."""
    for name in _MODELS:
        if match := _KNOWN_MODEL.fullmatch(str(properties.get(name, "")).strip()):
            return match[0]
    return ""


def _objective(properties: Mapping[str, str]) -> float | None:
    return pixel_size.objective(properties.get("openslide.objective-power"))


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    names = ("y", "x", "height", "width")
    texts = [str(properties.get(f"openslide.bounds-{name}", "")) for name in names]
    if not all(text.isdigit() for text in texts):
        return None
    row, column, rows, columns = (int(text) for text in texts)
    return row, column, rows, columns
