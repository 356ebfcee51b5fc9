"""Pixel spacing of TIFF pictures from OME-XML, ImageJ or the resolution tags."""

from __future__ import annotations

import re
from typing import Any

from medssl.data.formats.base import LARGEST_MM
from medssl.data.formats.placement import millimeters

_OTHER_MM = {"dm": 100.0, "pm": 1e-9, "inch": 25.4, "in": 25.4, "å": 1e-7}  # units of OME-XML and ImageJ alone
_FINER_THAN_PRINT_MM = 0.02  # smaller than pixels of displays, printers and film scanners
_DISPLAY_DPI = (72, 96, 120, 150, 300, 600)  # defaults of programs that do not know the size

Spacing = tuple[tuple[float, float], tuple[str, ...]]  # (rows, columns) in mm, and notes


def spacing_of(file: Any, page: Any) -> Spacing:
    """Spacing in mm from the first of OME-XML, ImageJ and the resolution tags that states it; else 1 mm."""
    if file.is_ome and (spacing := _ome(file.ome_metadata or "")):
        return spacing
    across, down = (_ratio(page.tags.valueof(code)) for code in (282, 283))  # pixels per unit
    if file.is_imagej and (spacing := _imagej(str((file.imagej_metadata or {}).get("unit", "")), across, down)):
        return spacing
    return _resolution(across, down, page.tags.valueof(296))


def _ome(text: str) -> Spacing | None:
    """PhysicalSizeX and PhysicalSizeY of the first picture, in micrometers without a unit."""
    sizes = []
    for axis in "YX":
        size = re.search(rf'PhysicalSize{axis}="([^"]*)"', text)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]*)"', text)
        factor = _factor(unit.group(1) if unit else "um")
        try:
            sizes.append(float(size.group(1)) * factor if size and factor else 0.0)
        except ValueError:
            sizes.append(0.0)
    return _plausible((sizes[0], sizes[1]), "OME-XML")


def _imagej(unit: str, across: float, down: float) -> Spacing | None:
    """Resolution in the unit that ImageJ names in its description."""
    factor = _factor(unit)
    if not factor or not across or not down:
        return None
    return _plausible((factor / down, factor / across), "ImageJ")


def _resolution(across: float, down: float, unit: object) -> Spacing:
    """Spacing from the resolution tags, in inches without a unit (TIFF 6)."""
    if not across or not down:
        return (1.0, 1.0), ()
    notes: tuple[str, ...] = ()
    length = {"None": 25.4, "2": 25.4, "3": 10.0}.get(str(unit if unit is None else int(str(unit))), 0.0)
    if length and not across == down == 1:
        sizes, inches = (length / down, length / across), across * 25.4 / length
        shown = length == 25.4 or any(abs(inches / usual - 1) < 0.005 for usual in _DISPLAY_DPI)
        if (not shown or max(sizes) < _FINER_THAN_PRINT_MM) and (spacing := _plausible(sizes, "its resolution")):
            return spacing
        notes = (f"{inches:.4g} dots per inch are not taken as the size of pixels",)
    ratio = across / down
    if abs(ratio - 1) >= 0.01:
        return (ratio, 1.0), (*notes, f"pixels are not square: {ratio:.4g} times as high as wide")
    return (1.0, 1.0), notes


def _plausible(sizes: tuple[float, float], source: str) -> Spacing | None:
    """A plausible spacing with a note about its source; None if it is not plausible."""
    if not all(0 < size <= LARGEST_MM for size in sizes):
        return None
    text = f"{sizes[0]:.4g}" if abs(sizes[0] / sizes[1] - 1) < 1e-6 else f"{sizes[0]:.4g} x {sizes[1]:.4g}"
    return sizes, (f"pixels of {text} mm by {source}",)


def _factor(unit: str) -> float:
    """Millimeters in a unit of length; 0 for an unknown unit."""
    text = unit.strip().replace("\\u00B5", "u").replace("\\u00b5", "u")
    text = text.replace("\u00b5", "u").replace("\u03bc", "u").replace("&#181;", "u").replace("&#xB5;", "u")
    if text in ("M", "Mm"):  # mega
        return 0.0
    return _OTHER_MM.get(text.lower()) or millimeters(text) or 0.0


def _ratio(value: object) -> float:
    """A rational number of a tag; 0 if it is missing or not valid."""
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return 0.0
    number = float(value[0]) / float(value[1])
    return number if 0 < number < 1e12 else 0.0
