"""Size of a slide's pixels: what the reader says, then the resolution of TIFF; never a guess."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

SMALLEST_UM, LARGEST_UM = 0.1, 20.0  # plausible sizes of a pixel of level 0, micrometers
Spacing = tuple[float, float]  # rows, columns in mm
_HINT = "give it in the column mpp of a table (label.values, label.key)"
_UNITS = {"inch": 25_400.0, "centimeter": 10_000.0}  # micrometers, by OpenSlide's names
_OME_UNITS = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "pm": 1e-6, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6,
    "in": 25_400.0, "Å": 1e-4,
}  # fmt: skip
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


def of_ome(text: str, shape: tuple[int, int]) -> tuple[float | None, float | None]:
    """Distances of rows and of columns in micrometers by OME-XML, each None if it is not stated in a known unit.

    Args:
        text: The XML.
        shape: Rows and columns of the picture, which choose among several of the file.
    """
    pictures = re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", text)
    same = [one for one in pictures if (_attribute(one, "SizeY"), _attribute(one, "SizeX")) == tuple(map(str, shape))]
    about = (same or pictures or [""])[0]
    rows_um, columns_um = (_ome_size(about, axis) for axis in "YX")
    return rows_um, columns_um


def of_resolution(page: Any) -> tuple[float | None, float | None]:
    """Distances of rows and of columns in micrometers by the resolution tags of a page, each None if not stated.

    Args:
        page: A page of tifffile.
    """
    unit = page.tags.valueof(296)
    length = {2: 25_400.0, 3: 10_000.0}.get(2 if unit is None else int(unit))
    values = [page.tags.valueof(code) for code in (283, 282)]
    counts = [one[0] / one[1] if isinstance(one, tuple) and len(one) == 2 and one[1] else 0.0 for one in values]
    rows_um, columns_um = (length / count if length and count > 0 else None for count in counts)
    return rows_um, columns_um


def _attribute(text: str, name: str) -> str:
    match = re.search(rf'\b{name}="([^"]*)"', text)
    return match.group(1) if match else ""


def _ome_size(text: str, axis: str) -> float | None:
    """One physical size of OME-XML in micrometers; the unit is um where it is not stated."""
    unit = _attribute(text, f"PhysicalSize{axis}Unit") or "um"
    unit = unit.replace("&#181;", "µ").replace("&#xB5;", "µ")
    size, factor = number(_attribute(text, f"PhysicalSize{axis}")), _OME_UNITS.get(unit)
    return None if size is None or factor is None else size * factor
