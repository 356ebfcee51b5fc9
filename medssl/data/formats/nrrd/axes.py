"""Roles of the axes of an NRRD, and the affine of its voxels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS, FormatError
from medssl.data.formats.nrrd.header import NrrdHeader
from medssl.data.formats.placement import check_affine, converted_note, millimeters

_SPACES = {  # name -> signs that make it RAS; None: not defined
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior-time": (1, 1, 1), "rast": (1, 1, 1),
    "left-anterior-superior-time": (-1, 1, 1), "last": (-1, 1, 1),
    "left-posterior-superior-time": (-1, -1, 1), "lpst": (-1, -1, 1),
    "scanner-xyz": None, "scanner-xyz-time": None, "3d-right-handed": None, "3d-right-handed-time": None,
}  # fmt: skip
_LEFT_HANDED = ("3d-left-handed", "3d-left-handed-time")
_SPATIAL = ("domain", "space", "???", "none", "")
_FRAMES = ("list", "time")
_COLORS = {"rgb-color": 3, "3-color": 3, "rgba-color": 4, "4-color": 4}
_VECTORS = (
    "vector", "2-vector", "3-vector", "4-vector", "covariant-vector", "normal", "3-normal", "3-gradient", "point",
)  # fmt: skip
_DROPPED = ("scalar", "stub")
_VECTOR = re.compile(r"none|\(([^()]*)\)", re.IGNORECASE)


@dataclass(frozen=True)
class Axes:
    """Axes of an NRRD.

    Attributes:
        roles: One letter for each axis: i, j, k, c, t or - (see ``Layout``).
        noun: Name of the frames in messages.
        colors: Whether the channels are colors.
        notes: Notes for the user.
    """

    roles: str
    noun: str
    colors: bool
    notes: tuple[str, ...]


def axes_of(header: NrrdHeader) -> Axes:
    """Determines the role of each axis.

    Raises:
        FormatError: The axes form neither a picture nor a volume, or the values are not those of a scan.
    """
    sizes, kinds, directions = header.sizes, _kinds(header), _directions(header)
    roles, notes = [], []
    spatial = _spatial(header, kinds, directions)
    colors = False
    for axis, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        if axis in spatial:
            if kind not in _SPATIAL:
                message = f"axis {axis + 1} is of kind {kind[:40]!r} and has a direction in space: expected one of both"
                raise FormatError(message)
            roles.append("ijk"[spatial.index(axis)])
        elif kind in _FRAMES or kind in _SPATIAL:
            roles.append("t" if size > 1 else "-")
            if size > 1 and kind not in _FRAMES:
                notes.append(f"axis {axis + 1} has no kind: taken as frames")
        elif kind in _COLORS or kind in _VECTORS:
            roles.append("c")
            colors = kind in _COLORS
        elif kind in _DROPPED and size == 1:
            roles.append("-")
        else:
            message = f"no scan: axis {axis + 1} of {size} values is of kind {kind[:40]!r}"
            raise FormatError(message)
    axis_roles = "".join(roles)
    if axis_roles.count("t") > 1 or axis_roles.count("c") > 1:
        message = f"sizes {' '.join(map(str, sizes))}: more than one axis of frames or of channels; split the file"
        raise FormatError(message)
    if any(kind in _VECTORS for kind in kinds):
        notes.append(
            f"vectors of {sizes[axis_roles.index('c')]} values taken as channels; a displacement field is no scan"
        )
        if "measurementframe" in header.fields:
            notes.append("measurement frame not applied to the vectors")
    return Axes(axis_roles, _noun(header, kinds, axis_roles), colors, tuple(notes))


def _noun(header: NrrdHeader, kinds: tuple[str, ...], roles: str) -> str:
    noun = "volumes" if "k" in roles else "pictures"
    if header.pairs.get("modality", "").upper() == "DWMRI":
        return f"diffusion-weighted {noun}"
    kind = kinds[roles.index("t")] if "t" in roles else ""
    return f"{noun} along axis {roles.index('t') + 1} ({kind or 'no kind'})" if "t" in roles else noun


def _kinds(header: NrrdHeader) -> tuple[str, ...]:
    kinds = header.fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != header.dimension:
        message = f"kinds of {len(kinds)} axes: expected {header.dimension}"
        raise FormatError(message)
    return tuple(kinds) or ("",) * header.dimension


def _spatial(header: NrrdHeader, kinds: tuple[str, ...], directions: list[np.ndarray | None]) -> list[int]:
    """Numbers of the axes in space."""
    count = header.dimension
    if directions:
        axes = [
            axis
            for axis, direction in enumerate(directions)
            if direction is not None and (len(direction) < 4 or direction[:3].any())
        ]
    else:
        axes = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL]
        if len(axes) > 3 and "spacings" in header.fields:
            steps = _reals(header, "spacings", count)
            axes = [axis for axis in axes if not np.isnan(steps[axis])]
        axes = axes[:3]
    if len(axes) not in (2, 3):
        message = f"{len(axes)} axes in space among {count}: expected 2 (picture) or 3 (volume)"
        raise FormatError(message)
    return axes


def geometry(header: NrrdHeader, axes: Axes) -> tuple[np.ndarray, tuple[str, ...]]:
    """Affine in mm: (4, 4) RAS of a volume; (3, 3) of a picture, from its first pixel, columns before rows.

    Raises:
        FormatError: The geometry cannot be used.
    """
    order = [axes.roles.index(letter) for letter in "ijk" if letter in axes.roles]
    directions = _directions(header)
    if directions:
        matrix, notes = _in_space(header, [directions[axis] for axis in order])
    else:
        matrix, notes = _along_axes(header, order)
    if len(order) == 2:
        steps = np.linalg.norm(matrix[:, :2], axis=0)
        affine = np.diag([*steps, 1.0])
    else:
        affine = np.eye(4)
        affine[:3] = matrix
    return affine + 0.0, notes + check_affine(affine, "the affine")


def _in_space(header: NrrdHeader, directions: list[np.ndarray | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns of axes and origin (3, n+1) from space directions, in RAS mm."""
    dimension = _space_dimension(header)
    columns = np.array([direction for direction in directions if direction is not None]).T
    if dimension == 4 and columns[3].any():
        message = "space directions: an axis that lies in space and in time"
        raise FormatError(message)
    stated_origin = _vectors(header, "spaceorigin", dimension, 1)[0] if "spaceorigin" in header.fields else None
    origin = np.zeros(dimension) if stated_origin is None else stated_origin
    world = min(dimension, 3)
    if world < columns.shape[1]:
        message = f"{columns.shape[1]} axes in a space of {world} dimensions"
        raise FormatError(message)
    factors, notes = _unit_factors(header, "spaceunits", range(world))
    matrix = np.column_stack([columns[:world], origin[:world]]) * factors[:, None]
    _check_spacings(header, columns[:world])
    axes = [axis for axis, direction in enumerate(_directions(header)) if direction is not None]
    if "spaceunits" not in header.fields and (_unit_factors(header, "units", axes)[0] != 1).any():
        message = "units of axes other than mm beside space directions: expected space units in their place"
        raise FormatError(message)
    if world < 3:
        return matrix, notes
    if columns.shape[1] == 3:
        signs, space_notes = _signs(header)
        return matrix * np.array(signs)[:, None], notes + space_notes
    return matrix, notes


def _along_axes(header: NrrdHeader, order: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns of axes and origin from spacings or axis limits; LPS is assumed."""
    count = header.dimension
    lows, highs, steps = (
        _reals(header, name, count) if name in header.fields else np.full(count, np.nan)
        for name in ("axismins", "axismaxs", "spacings")
    )
    cells = [word != "node" for word in header.fields.get("centers", "").lower().split()] or [True] * count
    if len(cells) != count:
        message = f"centers of {len(cells)} axes: expected {count}"
        raise FormatError(message)
    factors, notes = _unit_factors(header, "units", order)
    matrix = np.zeros((3, len(order) + 1))
    for number, axis in enumerate(order):
        step, low, high = steps[axis], lows[axis], highs[axis]
        divisor = header.sizes[axis] - (not cells[axis])
        if np.isnan(step) and not np.isnan(low) and not np.isnan(high) and divisor:
            step = (high - low) / divisor
        if np.isnan(step):
            step = 1.0
            notes += (f"axis {axis + 1} has no voxel size: 1 mm assumed",)
        if not 0 < step < np.inf:
            message = f"geometry unusable: voxel size {step:g} of axis {axis + 1}: expected a positive length"
            raise FormatError(message)
        matrix[number, number] = step * factors[number]
        matrix[number, -1] = (0.0 if np.isnan(low) else low + (step / 2 if cells[axis] else 0)) * factors[number]
    if len(order) == 3:
        notes += ("orientation is a guess: no space directions in the header (left-posterior-superior taken)",)
    return matrix * np.array(LPS_TO_RAS)[:, None], notes


def _signs(header: NrrdHeader) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Signs that convert the space of the header to RAS, with a note if it is guessed."""
    name = header.fields.get("space", "").lower()
    if name in _LEFT_HANDED:
        message = "space 3D-left-handed does not state where left is; name the space (such as left-posterior-superior)"
        raise FormatError(message)
    signs = _SPACES.get(name)
    if signs is None:
        space = f"space {name}" if name else "a space without a name"
        return (-1, -1, 1), (f"orientation is a guess: {space} (left-posterior-superior taken)",)
    return signs, ()


def _space_dimension(header: NrrdHeader) -> int:
    name = header.fields.get("space", "").lower()
    if name:
        if name not in _SPACES and name not in _LEFT_HANDED:
            message = f"space {name[:40]!r} is not known: expected one such as left-posterior-superior"
            raise FormatError(message)
        return 4 if name.endswith("-time") or name in ("rast", "last", "lpst") else 3
    text = header.fields.get("spacedimension", "")
    if text not in ("2", "3"):
        message = "space directions without a space or a space dimension of 2 or 3"
        raise FormatError(message)
    return int(text)


def _directions(header: NrrdHeader) -> list[np.ndarray | None]:
    """Directions of all axes, None for axes outside space; an empty list if the header has none."""
    if "spacedirections" not in header.fields:
        return []
    return _vectors(header, "spacedirections", _space_dimension(header), header.dimension)


def _vectors(header: NrrdHeader, name: str, dimension: int, count: int) -> list[np.ndarray | None]:
    text, name = header.fields[name], name.replace("space", "space ")
    vectors: list[np.ndarray | None] = []
    for match in _VECTOR.finditer(text):
        vectors.append(None if match[1] is None else _numbers(match[1].split(","), f"{name} {match[0][:40]!r}"))
    lengths = {len(vector) for vector in vectors if vector is not None}
    if _VECTOR.sub("", text).strip() or len(vectors) != count or lengths - {dimension}:
        message = f"{name} {text[:60]!r}: expected {count} vector{'s' * (count != 1)} of {dimension} numbers"
        raise FormatError(message)
    for vector in vectors:
        if vector is not None and not np.isfinite(vector).all():
            message = f"geometry unusable: {name} has values that are no finite numbers"
            raise FormatError(message)
    return vectors


def _check_spacings(header: NrrdHeader, columns: np.ndarray) -> None:
    if "spacings" not in header.fields:
        return
    steps = _reals(header, "spacings", header.dimension)
    steps = steps[~np.isnan(steps)]
    lengths = np.linalg.norm(columns, axis=0)
    if len(steps) != len(lengths) or not np.allclose(steps, lengths, rtol=1e-2):
        message = "geometry unusable: spacings and space directions contradict each other"
        raise FormatError(message)


def _unit_factors(header: NrrdHeader, name: str, axes: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Millimeters in the unit of each of ``axes``; a missing unit is taken as mm.

    Raises:
        FormatError: A unit is not known.
    """
    text = header.fields.get(name, "")
    units = re.findall(r'"([^"]*)"', text) if '"' in text else text.split()
    axis_units = [units[axis] if axis < len(units) else "" for axis in axes]
    axis_units = ["mm" if unit.strip().lower() in ("", "???", "none", "unknown") else unit for unit in axis_units]
    factors = [millimeters(unit) for unit in axis_units]
    if None in factors:
        unit = axis_units[factors.index(None)]
        message = f"unit of length {unit[:40]!r} is not known: expected mm, cm, m, um (microns) or nm"
        raise FormatError(message)
    return np.array(factors, np.float64), converted_note(axis_units)


def _reals(header: NrrdHeader, name: str, count: int) -> np.ndarray:
    values = _numbers(header.fields[name].split(), name)
    if len(values) != count:
        message = f"{name} of {len(values)} axes: expected {count}"
        raise FormatError(message)
    return values


def _numbers(words: list[str], name: str) -> np.ndarray:
    try:
        return np.array([float(word) for word in words])
    except ValueError as error:
        message = f"{name}: expected numbers"
        raise FormatError(message) from error
