"""Size of a slide's pixels: what the reader says, then the resolution of TIFF; never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medssl.data.formats.slide.base import LARGEST_UM, SMALLEST_UM

Spacing = tuple[float, float]  # rows, columns in mm
_HINT = "give it in the column mpp of a table (label.values, label.key)"
_UNITS = {"inch": 25_400.0, "centimeter": 10_000.0}  # micrometers, by OpenSlide's names
_PLAIN = ("generic-tiff",)  # layouts whose only statement on pixels is the resolution of TIFF


def checked(rows_um: float | None, columns_um: float | None, source: str) -> tuple[Spacing | None, str]:
    """Spacing in mm from a stated size of pixels in micrometers, or None and the reason.

    Args:
        rows_um: Distance of rows (mpp-y); None if it is not stated.
        columns_um: Distance of columns (mpp-x); None if it is not stated.
        source: What states it.
    """
    if rows_um is None and columns_um is None:
        return None, f"no pixel size in the file: {_HINT}"
    if rows_um is None or columns_um is None:
        axis, size = ("x", columns_um) if rows_um is None else ("y", rows_um)
        return None, f"pixel size for mpp-{axis} alone ({size:g} um by {source}): {_HINT}"
    if not all(SMALLEST_UM <= size <= LARGEST_UM for size in (rows_um, columns_um)):
        shown = f"{columns_um:.4g}" if rows_um == columns_um else f"{columns_um:.4g} x {rows_um:.4g}"
        limits = f"{SMALLEST_UM:g} to {LARGEST_UM:g} um"
        return None, f"pixel size of {shown} um by {source} is not plausible (expected {limits}): {_HINT}"
    return (rows_um / 1000, columns_um / 1000), ""


def of_properties(properties: Mapping[str, str], vendor: str) -> tuple[Spacing | None, str]:
    """Spacing from the properties of OpenSlide: of the vendor, else the resolution of TIFF."""
    rows_um, columns_um = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
    source = "the resolution tags" if vendor in _PLAIN else "the scanner"
    if rows_um is None and columns_um is None:
        stated = number(properties.get("aperio.MPP"))  # that OpenSlide does not take, such as 0
        rows_um = columns_um = stated
    if rows_um is None and columns_um is None:
        unit = _UNITS.get(str(properties.get("tiff.ResolutionUnit", "")))
        across, down = (number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
        rows_um, columns_um = (unit / value if unit and value else None for value in (down, across))
        source = "the resolution tags"
    return checked(rows_um, columns_um, source)


def number(text: object) -> float | None:
    """A finite number; None for other text."""
    try:
        value = float(str(text).replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def objective(text: object) -> float | None:
    """A plausible magnification of an objective."""
    value = number(text)
    return value if value is not None and 0 < value <= 200 else None
