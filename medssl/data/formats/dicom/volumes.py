"""The slices of one DICOM series -> volumes and images, with a true affine, or the reason why not.

Slices are ordered by their position along the normal of the stack (DICOM PS3.3 C.7.6.2.1.1), never by number. Nothing
is filled in: a gap, two different slices in one place or uneven steps make the volume fail, in one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import PurePath

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS, make_grid, picture_grid
from medssl.data.formats.dicom.header import Slice
from medssl.types import Grid, Status

SAME_DIRECTION = 1e-3  # difference of direction cosines that is rounding
SAME_PLACE_MM = 1e-2
FEWEST_SLICES = 3
UNEVEN = 0.15  # share of the step that a slice may lie off its place
_TURNS = ("time", "echo", "b_value", "echo_time", "trigger", "part", "acquisition", "mosaic")

SamePixels = Callable[[Slice, Slice], bool]


@dataclass(frozen=True)
class Stack:
    """Slices that make one scan; ``name`` tells it from the others of its series; ``volume`` is number and count."""

    slices: tuple[Slice, ...]
    status: Status
    name: str = "0"
    grid: Grid | None = None
    volume: tuple[int, int] = (1, 1)


def stacks_of(slices: Sequence[Slice], same_pixels: SamePixels) -> list[Stack]:
    """Group the slices of one series.

    Args:
        slices: All slices of the series, in any order.
        same_pixels: Whether two slices hold equal pixels; asked only for two slices in one place.
    """
    ordered = sorted(slices, key=lambda one: (one.turn.get("number", 0.0), one.path, one.frame or 0))
    unique = list({one.instance: one for one in reversed(ordered)}.values())[::-1]
    copies = len(ordered) - len(unique)
    stacks = [_picture(one) for one in unique if one.kind == "image"]
    stacks += _volumes([one for one in unique if one.kind == "volume"], same_pixels)
    if copies:
        stacks = [_noted(stack, f"{copies} duplicated files dropped") for stack in stacks]
    return stacks


def _noted(stack: Stack, note: str) -> Stack:
    """Add what was done to the reason."""
    reason = f"{stack.status.reason}; {note}" if stack.status.reason else note
    return replace(stack, status=replace(stack.status, reason=reason))


def _picture(one: Slice) -> Stack:
    grid = picture_grid(one.shape[0], one.shape[1], one.spacing_mm or (1.0, 1.0))
    return Stack((one,), Status(), name=one.instance, grid=grid)


def _volumes(slices: list[Slice], same_pixels: SamePixels) -> list[Stack]:
    """Volumes of a series: split by direction and shape, then by time, echo and the like, then checked."""
    if not slices:
        return []
    lost = [one for one in slices if one.pose is None or one.spacing_mm is None]
    if lost:
        message = f"no geometry: {len(lost)} of {len(slices)} slices without position or spacing ({_name(lost[0])})"
        return [Stack(tuple(slices), Status("failed", message))]
    clusters = _by_direction(slices)
    problem = _mixed(clusters)
    if problem:
        return [Stack(tuple(slices), problem)]
    stacks = []
    for number, cluster in enumerate(clusters):
        parts, note = _by_turn(cluster, same_pixels)
        for turn, part in enumerate(parts):
            stack = Stack(tuple(part), Status(), f"{number}.{turn}", volume=(turn + 1, len(parts)))
            stacks.append(_checked(stack, note, fullest=max(map(len, parts))))
    return stacks


def _by_direction(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Clusters of slices that look the same way with the same shape and spacing, largest first."""
    clusters: list[list[Slice]] = []
    for one in slices:
        for cluster in clusters:
            first = cluster[0]
            if (
                one.shape == first.shape
                and _close(_direction(one), _direction(first), SAME_DIRECTION)
                and _close(_spacing(one), _spacing(first), 1e-3 * max(_spacing(first)))
            ):
                cluster.append(one)
                break
        else:
            clusters.append([one])
    return sorted(clusters, key=len, reverse=True)


def _close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    """Plain Python: millions of slices, six numbers each."""
    return a == b or all(abs(left - right) <= tolerance for left, right in zip(a, b, strict=True))


def _direction(one: Slice) -> tuple[float, ...]:
    return (one.pose or ())[:6]


def _spacing(one: Slice) -> tuple[float, float]:
    return one.spacing_mm or (0.0, 0.0)


def _normal(one: Slice) -> np.ndarray:
    direction = np.array(_direction(one))
    normal = np.cross(direction[:3], direction[3:])
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-12))


def _mixed(clusters: Sequence[Sequence[Slice]]) -> Status | None:
    """Several directions are a localiser (three planes, few slices), several stacks, or a broken series."""
    if len(clusters) < 2:
        return None
    normals = [_normal(cluster[0]) for cluster in clusters]
    turned = any(abs(float(a @ b)) < 1 - SAME_DIRECTION for a, b in combinations(normals, 2))
    sizes = [len(cluster) for cluster in clusters]
    upright = sum(abs(float(a @ b)) < 0.3 for a, b in combinations(normals, 2))
    if upright >= 3 and max(sizes) < 12:
        return Status("rejected", f"localiser: {len(clusters)} directions of at most {max(sizes)} slices")
    if min(sizes) < FEWEST_SLICES:
        what = "mixed orientations" if turned else "mixed shapes or spacings"
        odd = clusters[-1][0]
        return Status("failed", f"{what}: {_listed(sizes)} slices that do not fit together ({_name(odd)})")
    return None


def _listed(sizes: Sequence[int]) -> str:
    shown = [str(size) for size in sizes[:4]] + (["..."] if len(sizes) > 4 else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]])


def _name(one: Slice) -> str:
    return PurePath(one.path).name


# --- several slices in one place


def _places(slices: Sequence[Slice]) -> np.ndarray:
    """Millimetres along the normal, per slice."""
    normal = _normal(slices[0])
    return np.array([np.array((one.pose or ())[6:]) @ normal for one in slices])


def _ranks(places: np.ndarray) -> np.ndarray:
    """The same number for slices in the same place, counted along the normal."""
    order = np.argsort(places, kind="stable")
    steps = np.concatenate([[0], np.cumsum(np.diff(places[order]) > SAME_PLACE_MM)])
    ranks = np.empty(len(places), dtype=np.int64)
    ranks[order] = steps
    return ranks


def _by_turn(slices: list[Slice], same_pixels: SamePixels) -> tuple[list[list[Slice]], str]:
    """Split slices that share places into volumes: by what the header says, else by number; else keep the trouble."""
    ranks = _ranks(_places(slices))
    counts = Counter(ranks.tolist())
    several = max(counts.values())
    if several == 1:
        return [slices], ""
    for count in (1, 2):
        for words in combinations(_TURNS, count):
            parts: dict[tuple[float | str, ...], list[int]] = {}
            for number, one in enumerate(slices):
                parts.setdefault(tuple(one.turn.get(word, 0.0) for word in words), []).append(number)
            apart = all(len(set(ranks[part])) == len(part) for part in parts.values())
            if len(parts) == several and apart:
                named = " and ".join(words).replace("_", " ")
                return [[slices[i] for i in parts[key]] for key in sorted(parts, key=str)], f"split by {named}"
    middle = [one for one, rank in zip(slices, ranks.tolist(), strict=True) if rank == int(ranks.max()) // 2][:2]
    even = len(counts) >= FEWEST_SLICES and min(counts.values()) == several
    if even and not same_pixels(*middle):
        parts_by_number: list[list[Slice]] = [[] for _ in range(several)]
        met: Counter[int] = Counter()
        for one, rank in zip(slices, ranks.tolist(), strict=True):  # slices come ordered by number
            parts_by_number[met[rank]].append(one)
            met[rank] += 1
        return parts_by_number, "split by instance number"
    same = _repeated(slices, ranks, same_pixels)
    kept = [one for one, repeated in zip(slices, same, strict=True) if not repeated]
    return [kept], f"{sum(same)} duplicated slices dropped" if any(same) else ""


def _repeated(slices: Sequence[Slice], ranks: np.ndarray, same_pixels: SamePixels) -> list[bool]:
    """For each slice whether the first one in its place holds the same pixels."""
    first: dict[int, Slice] = {}
    return [
        (earlier := first.setdefault(rank, one)) is not one and same_pixels(earlier, one)
        for one, rank in zip(slices, ranks.tolist(), strict=True)
    ]


# --- geometry


def _checked(stack: Stack, note: str, *, fullest: int) -> Stack:
    """Sort by place, check the steps, and give the stack its grid; ``fullest`` is the size of its largest sibling."""
    places = _places(stack.slices)
    order = np.argsort(places, kind="stable")
    slices = tuple(stack.slices[index] for index in order)
    stack = replace(stack, slices=slices)
    if len(slices) < fullest:
        status = Status(
            "failed",
            f"incomplete volume: number {stack.volume[0]} of {stack.volume[1]} has {len(slices)} of {fullest} slices",
        )
        return replace(stack, status=status)
    if len(slices) < FEWEST_SLICES:
        few = f"too few slices for a volume: {len(slices)} of at least {FEWEST_SLICES}"
        return replace(stack, status=Status("rejected", few))
    origins = np.array([(one.pose or ())[6:] for one in slices])
    problem = _uneven(slices, places[order], origins)
    if problem:
        return replace(stack, status=Status("failed", problem))
    step = (origins[-1] - origins[0]) / (len(slices) - 1)
    stack = replace(stack, grid=_grid(slices, origins[0], step))
    tilt = float(np.degrees(np.arccos(np.clip(step @ _normal(slices[0]) / np.linalg.norm(step), -1, 1))))
    if tilt > 0.5:
        stack = _noted(stack, f"gantry tilt of {tilt:.1f} degrees: the affine is sheared")
    return _noted(stack, note) if note else stack


def _uneven(slices: Sequence[Slice], places: np.ndarray, origins: np.ndarray) -> str:
    """What is wrong with the steps between slices, or nothing."""
    steps = np.diff(places)
    same = np.flatnonzero(steps <= SAME_PLACE_MM)
    if len(same):
        here = int(same[0])
        names = f"{_name(slices[here])}, {_name(slices[here + 1])}"
        return f"two different slices in one place: {len(same)} times, first at {places[here]:.2f} mm ({names})"
    usual = float(np.median(steps))
    gaps = np.flatnonzero(steps > 1.5 * usual)
    if len(gaps):
        here = int(gaps[0])
        missing = int(sum(round(float(steps[gap]) / usual) - 1 for gap in gaps))
        where = f"between {places[here]:.2f} and {places[here + 1]:.2f} mm ({_name(slices[here])})"
        return (
            f"missing slice: a gap of {steps[here]:.2f} mm {where} where the step is {usual:.2f} mm; {missing} missing"
        )
    line = origins[0] + np.linspace(0, 1, len(origins))[:, None] * (origins[-1] - origins[0])
    off = float(np.linalg.norm(origins - line, axis=1).max())
    if off > UNEVEN * usual:
        return (
            f"uneven slices: steps of {steps.min():.2f} to {steps.max():.2f} mm, up to {off:.2f} mm off a straight line"
        )
    return ""


def _grid(slices: Sequence[Slice], origin: np.ndarray, step: np.ndarray) -> Grid:
    """Grid of the array (column, row, slice): RAS+ from DICOM's LPS."""
    direction = np.array(_direction(slices[0]))
    between_rows, between_columns = _spacing(slices[0])
    affine = np.eye(4)
    affine[:3] = np.column_stack([direction[:3] * between_columns, direction[3:] * between_rows, step, origin])
    affine[:3] *= np.array(LPS_TO_RAS)[:, None]
    rows, columns, _ = slices[0].shape
    return make_grid((columns, rows, len(slices)), affine)
