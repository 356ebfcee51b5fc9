"""Lengths in files with a missing or wrong unit: plausible spacings, and conversion to mm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from medssl.data.formats.base import LARGEST_MM, SMALLEST_MM
from medssl.data.formats.placement import CONVERTED, millimeters
from medssl.types import Grid

LengthUnit = Literal["", "um", "mm", "cm", "m"]
_FACTORS = {unit: millimeters(unit) or 1.0 for unit in get_args(LengthUnit) if unit}
_SAME = 1e-4  # relative difference of spacings that rounding explains


def in_unit(header: Mapping[str, Any], grid: Grid, unit: LengthUnit) -> Grid:
    """Converts the grid of a file whose lengths are in ``unit`` to mm.

    Files that state another unit than mm are not changed, since their reader has converted them. Pictures with the
    default spacing of 1 mm are not changed either.
    """
    stated = any(str(note).startswith(CONVERTED) for note in header.get("notes", ()))
    unknown = header["kind"] == "image" and grid.spacing_mm == (1.0, 1.0)
    return grid if not unit or stated or unknown else scaled(grid, _FACTORS[unit])


def scaled(grid: Grid, factor: float) -> Grid:
    """Multiplies all lengths of a grid by ``factor``."""
    if factor == 1:
        return grid
    rows = [tuple(value * factor for value in row) for row in grid.affine[:-1]]
    spacing = tuple(step * factor for step in grid.spacing_mm)
    return replace(grid, spacing_mm=spacing, affine=(*rows, grid.affine[-1]))


def out_of_range(grid: Grid, unit: LengthUnit) -> str:
    """Why a spacing is not plausible; "" if it is. The stated unit "mm" accepts every spacing."""
    low, high = min(grid.spacing_mm), max(grid.spacing_mm)
    if unit == "mm" or (low >= SMALLEST_MM * (1 - _SAME) and high <= LARGEST_MM * (1 + _SAME)):
        return ""
    shown = " x ".join(f"{step:.3g}" for step in grid.spacing_mm)
    hint = (
        "files.length_unit mm takes it as it is"
        if unit
        else ("state the unit of its lengths with files.length_unit um, mm, cm or m (mm takes them as they are)")
    )
    return f"spacing outside {SMALLEST_MM:g} to {LARGEST_MM:g} mm ({shown} mm): {hint}"


def factor_between(file: Grid, index: Grid) -> float:
    """Factor from the lengths of a file to those of the index, if they differ by a unit; else 1."""
    ratios = [
        index_step / file_step
        for file_step, index_step in zip(file.spacing_mm, index.spacing_mm, strict=False)
        if file_step > 0
    ]
    factors = [factor for factor in _FACTORS.values() if ratios and all(_close(ratio, factor) for ratio in ratios)]
    return factors[0] if factors else 1.0


def like_image(mask: Grid, image: Grid, factor: float) -> Grid:
    """The grid of a mask in the unit of its image; unchanged if its spacing already fits."""
    pairs = zip(sorted(mask.spacing_mm), sorted(image.spacing_mm), strict=False)
    return mask if all(_close(mask_step, image_step) for mask_step, image_step in pairs) else scaled(mask, factor)


def _close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_SAME)
