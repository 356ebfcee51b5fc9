"""Places of voxels: units of length, plausible spacings, and checks of affines."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from medssl.data.formats.base import FormatError

CONVERTED = "lengths converted to mm from"  # beginning of the note where a unit of the file was followed
_MM = {
    "mm": "mm millimeter millimeters millimeter millimeters",
    "um": "um µm μm micron microns micrometer micrometers micrometer micrometers",
    "nm": "nm nanometer nanometers nanometer nanometers",
    "cm": "cm centimeter centimeters centimeter centimeters",
    "m": "m meter meters meter meters",
}
_FACTORS = {"mm": 1.0, "um": 1e-3, "nm": 1e-6, "cm": 10.0, "m": 1e3}
_SHEAR = 5e-3  # cosine between two axes that rounding explains
_FLAT = 1e-4  # volume of a voxel over the product of its edges


def millimeters(unit: str) -> float | None:
    """Millimeters in one ``unit``; None for an unknown name."""
    word = unit.strip().strip('"').strip().casefold()
    return next((_FACTORS[short] for short, names in _MM.items() if word in names.casefold().split()), None)


def check_affine(affine: np.ndarray, noun: str) -> tuple[str, ...]:
    """Refuses an affine that is singular; returns a note if its axes are not at right angles.

    Args:
        affine: Voxel-to-world affine (n+1, n+1).
        noun: Name of the affine in messages.

    Raises:
        FormatError: Values are not finite, or the axes lie in one plane.
    """
    steps = affine[:-1, :-1]
    if not np.isfinite(affine).all():
        message = f"geometry unusable: {noun} has values that are no finite numbers"
        raise FormatError(message)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(steps, axis=0)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        message = f"geometry unusable: {noun} has an axis without length, it cannot be inverted"
        raise FormatError(message)
    cosines = steps / lengths
    if abs(np.linalg.det(cosines)) < _FLAT:
        message = f"geometry unusable: the axes of {noun} lie in one plane, it cannot be inverted"
        raise FormatError(message)
    largest_cosine = float(np.abs(cosines.T @ cosines - np.eye(len(cosines))).max())
    if largest_cosine > _SHEAR:
        degrees = np.degrees(np.arcsin(min(largest_cosine, 1.0)))
        return (f"sheared axes: {noun} is {degrees:.2g} degrees off right angles; distances are those along its axes",)
    return ()


def is_left_handed(affine: np.ndarray) -> bool:
    """Whether the axes of the array form a left-handed system, a mirror image of right-anterior-superior."""
    return bool(np.linalg.det(affine[:-1, :-1]) < 0)


def converted_note(units: Iterable[str]) -> tuple[str, ...]:
    """Note that lengths were converted, if a unit is not the millimeter."""
    converted = sorted({unit.strip().strip('"') for unit in units if millimeters(unit) not in (None, 1.0)})
    return (f"{CONVERTED} {', '.join(converted)}",) if converted else ()
