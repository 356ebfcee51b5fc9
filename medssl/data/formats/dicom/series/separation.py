"""Separates the slices of one grid into volumes by their attributes.

1. Contrasts (``CONTRASTS``) always separate. One exception: a measured number (echo time, inversion time, flip angle)
   that differs on nearly every slice is a property of the slice, and is noted.
2. If places repeat, other attributes (``MOMENTS``) separate, alone or up to three together, if no place repeats within
   a group and each group fills every place. If none does, times are tried: the n-th slice of each place by time belongs
   to volume n, if all places have the same number of slices. Then attributes separate if no place repeats, and one
   group fills every place (the others are incomplete) or each group is a complete volume with even steps.
3. If no place repeats, a moment separates only if each of its groups is a complete volume with even steps and the
   groups cover about the same range (interleaved acquisitions), or if the slices together have no even steps. Slices
   whose header declares their common step (SpacingBetweenSlices; in MR also a thickness without overlap) are not
   separated: they were acquired in an interleaved order.
4. InstanceNumber alone separates nothing. If the header declares NumberOfTemporalPositions, and runs of numbers fill
   every place exactly that many times, the runs are points in time, and this is noted.

Measured numbers (times of the sequence, angles, lengths, directions) within 0.5 % of each other count as equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from medssl.data.formats.dicom.attributes import CLOCKS, DESCRIPTIONS, MOMENTS, is_contrast
from medssl.data.formats.dicom.series.steps import (
    FEWEST_SLICES,
    declared,
    origins_of,
    places_of,
    ranks_of,
    same_place_mm,
    step_of,
    unevenness,
)
from medssl.data.formats.dicom.slices import Slice

_OF_A_SLICE = (
    "EchoTime", "EffectiveEchoTime", "InversionTime", "InversionTimes", "FlipAngle",
)  # fmt: skip
_MEASURED = (
    *_OF_A_SLICE, "RepetitionTime", "SliceThickness", "SpacingBetweenSlices", "ReconstructionDiameter",
    "DiffusionGradientOrientation", "VelocityEncodingDirection", "KVP", "MonoenergeticEnergyEquivalent",
)  # fmt: skip
_ORIGIN = "ImagePositionPatient"
_EQUAL = 5e-3
_SAME_RANGE = 0.75  # of the common range that each of several interleaved volumes covers
_MANY = 4000  # slices above which attributes are tried two together at most


@dataclass(frozen=True)
class Split:
    """Slices in volumes, with a note about their separation, or the reason why they cannot be separated."""

    parts: list[list[Slice]]
    note: str = ""
    problem: str = ""


def by_contrast(slices: Sequence[Slice]) -> Split:
    """Separates by all contrasts."""
    levels = _levels_of(slices)
    names = [name for name in levels if is_contrast(name)]
    per_slice = [name for name in names if name in _OF_A_SLICE and _differs_everywhere(levels[name])]
    names = [name for name in names if name not in per_slice]
    parts = [[slices[i] for i in part] for part in _parts(levels, names, len(slices))]
    notes = [f"split by {_listed(names)}"] if len(parts) > 1 else []
    notes += [f"{_listed(per_slice)} differs from slice to slice"] if per_slice else []
    return Split(parts, "; ".join(notes))


def by_moment(slices: Sequence[Slice]) -> Split:
    """Separates a part of ``by_contrast`` by moments and descriptions."""
    places = places_of(slices)
    ranks = ranks_of(places, same_place_mm(slices))
    levels = _levels_of(slices)
    names = [name for name in levels if not is_contrast(name) or name in _OF_A_SLICE]
    order = [*MOMENTS, *DESCRIPTIONS]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    counts = Counter(ranks.tolist())
    levels, names = _with_origins(slices, levels, names)
    if max(counts.values()) == 1:
        return _interleaved(slices, levels, names)
    if len(counts) < FEWEST_SLICES:
        return Split([list(slices)])
    return (
        _by_words(slices, ranks, (levels, names), lambda parts: all(len(part) == len(counts) for part in parts))
        or _by_clock(slices, ranks)
        or _by_declared_times(slices, ranks)
        or _by_words(slices, ranks, (levels, names), lambda parts: _whole(slices, parts, len(counts)))
        or _refused(slices, ranks, names)
    )


def _by_words(
    slices: Sequence[Slice],
    ranks: np.ndarray,
    attributes: tuple[dict[str, list[int]], list[str]],
    whole: Callable[[list[list[int]]], bool],
) -> Split | None:
    """Separates by the first combination of attributes whose groups repeat no place and are ``whole``."""
    levels, names = attributes
    for count in (1, 2, 3)[: 3 if len(slices) < _MANY else 2]:
        for words in combinations(names, count):
            parts = _parts(levels, words, len(slices))
            once = all(len(set(ranks[part].tolist())) == len(part) for part in parts)
            if len(parts) > 1 and once and whole(parts):
                return Split([[slices[i] for i in part] for part in parts], f"split by {_listed(words)}")
    return None


def _refused(slices: Sequence[Slice], ranks: np.ndarray, names: Sequence[str]) -> Split:
    counts = Counter(ranks.tolist())
    times = sum(count > 1 for count in counts.values())
    first = min(rank for rank, count in counts.items() if count > 1)
    repeated = [slice_ for slice_, rank in zip(slices, ranks.tolist(), strict=True) if rank == first]
    files = ", ".join(slice_.file_name for slice_ in repeated[:2])
    place = places_of([slices[0], *repeated])[1]
    problem = f"two different slices in one place: {times} times, first at {place:.2f} mm ({files}); "
    if names:
        problem += f"no attribute separates them into whole volumes ({_listed(names)} differ)"
    elif len(
        {(rank, slice_.slice_attributes.get("number")) for slice_, rank in zip(slices, ranks.tolist(), strict=True)}
    ) > len(counts):
        problem += "none of the attributes that can tell volumes apart does (InstanceNumber differs, but is no proof)"
    else:
        problem += "none of the attributes that can tell volumes apart differs"
    return Split([list(slices)], problem=problem)


# --- no place repeats


def _interleaved(slices: Sequence[Slice], levels: dict[str, list[int]], names: Sequence[str]) -> Split:
    ordered = _sorted(slices)
    even = len(slices) < FEWEST_SLICES or not unevenness(ordered)
    for name in names:
        parts = [[slices[i] for i in part] for part in _parts(levels, [name], len(slices))]
        whole = [_sorted(part) for part in parts if len(part) >= FEWEST_SLICES]
        if len(parts) < 2 or not whole or any(unevenness(part) for part in whole):
            continue
        if even and (len(whole) < len(parts) or not _same_range(whole) or _in_turns(ordered)):
            continue
        if name in CLOCKS and 2 * len(parts) > min(map(len, parts)):
            continue
        return Split(parts, f"split by {name}")
    return Split([list(slices)])


def _same_range(parts: Sequence[Sequence[Slice]]) -> bool:
    """Whether volumes cover about the same range along the normal."""
    normal_first = parts[0][0]
    ends = []
    for part in parts:
        places = places_of([normal_first, *part])[1:]
        ends.append((float(places.min()), float(places.max()), step_of(part)))
    union = max(high for _, high, _ in ends) - min(low for low, _, _ in ends)
    return all(high - low + step >= _SAME_RANGE * (union + step) for low, high, step in ends)


def _in_turns(slices: Sequence[Slice]) -> bool:
    """Whether the header declares that interleaved slices are one volume."""
    step, between = step_of(slices), declared(slices, "SpacingBetweenSlices")
    if between is not None:
        return abs(between - step) <= 0.1 * step
    thickness = declared(slices, "SliceThickness")
    return slices[0].facts["modality"] == "MR" and thickness is not None and thickness <= 1.1 * step


def _sorted(slices: Sequence[Slice]) -> list[Slice]:
    order = np.argsort(places_of(slices), kind="stable")
    return [slices[i] for i in order]


# --- places repeat


def _whole(slices: Sequence[Slice], parts: Sequence[Sequence[int]], places: int) -> bool:
    """Whether one group fills all places, or each group is a volume with even steps."""
    if any(len(part) == places for part in parts):
        return True
    return all(len(part) >= FEWEST_SLICES and not unevenness(_sorted([slices[i] for i in part])) for part in parts)


def _with_origins(
    slices: Sequence[Slice], levels: dict[str, list[int]], names: list[str]
) -> tuple[dict[str, list[int]], list[str]]:
    """Adds the in-plane position of the first pixel, which separates adjacent stacks (both knees, both breasts)."""
    direction = np.array(slices[0].pose or ())[:6].reshape(2, 3)
    in_plane = np.round(origins_of(slices) @ direction.T, 1)
    levels_of_origins: dict[tuple[float, ...], int] = {}
    values = [tuple(row) for row in in_plane.tolist()]
    for value in sorted(set(values)):
        levels_of_origins[value] = len(levels_of_origins)
    if len(levels_of_origins) < 2:
        return levels, names
    return levels | {_ORIGIN: [levels_of_origins[value] for value in values]}, [_ORIGIN, *names]


def _by_clock(slices: Sequence[Slice], ranks: np.ndarray) -> Split | None:
    """Separates by time: the n-th slice of each place belongs to volume n."""
    several = set(Counter(ranks.tolist()).values())
    if len(several) > 1:
        return None
    for name in CLOCKS:
        values = [slice_.attributes.get(name) for slice_ in slices]
        if None in values or len(set(zip(ranks.tolist(), values, strict=True))) < len(slices):
            continue
        parts: list[list[Slice]] = [[] for _ in range(several.copy().pop())]
        filled: Counter[int] = Counter()
        for i in sorted(range(len(slices)), key=lambda i: (values[i], int(ranks[i]))):
            parts[filled[int(ranks[i])]].append(slices[i])
            filled[int(ranks[i])] += 1
        return Split(parts, f"split by {name}, in the order of time at each place")
    return None


def _by_declared_times(slices: Sequence[Slice], ranks: np.ndarray) -> Split | None:
    """Separates by points in time that the header declares and that runs of InstanceNumber confirm."""
    times = declared(slices, "NumberOfTemporalPositions")
    numbers = [slice_.slice_attributes.get("number", 0.0) for slice_ in slices]
    places = int(ranks.max()) + 1
    order = sorted(range(len(slices)), key=numbers.__getitem__)
    steps = {numbers[b] - numbers[a] for a, b in pairwise(order)}
    if times is None or steps != {1.0} or len(slices) != places * int(times):
        return None
    in_order = ranks[order].reshape(int(times), places)
    if (np.sort(in_order, axis=1) == np.arange(places)).all():
        parts = np.array(order).reshape(int(times), places).tolist()
    elif (ranks[order].reshape(places, int(times)).std(axis=1) == 0).all():
        parts = np.array(order).reshape(places, int(times)).T.tolist()
    else:
        return None
    note = f"split by InstanceNumber into the {int(times)} points in time that NumberOfTemporalPositions declares"
    return Split([[slices[i] for i in part] for part in parts], note)


# --- values


def _levels_of(slices: Sequence[Slice]) -> dict[str, list[int]]:
    """For each attribute that differs between slices: the rank of each slice's value."""
    attributes = [slice_attributes.attributes for slice_attributes in slices]
    names = sorted(
        {name for slice_attributes in attributes for name in slice_attributes} - {"number", "NumberOfTemporalPositions"}
    )
    differing = {}
    for name in names:
        levels = _levels(
            [slice_attributes.get(name) for slice_attributes in attributes], _EQUAL if name in _MEASURED else 0.0
        )
        if len(set(levels)) > 1:
            differing[name] = levels
    return differing


def _levels(values: Sequence[Any], tolerance: float) -> list[int]:
    """Ranks of values; measured values that differ by rounding share a rank; -1 for a missing value."""
    keys = [tuple(value) if isinstance(value, list) else value for value in values]
    level_of: dict[Any, int] = {}
    firsts: list[Any] = []
    for key in sorted({key for key in keys if key is not None}, key=lambda key: (str(type(key)), key)):
        candidates = range(len(firsts)) if isinstance(key, tuple) else range(len(firsts))[-1:]  # numbers come in order
        same = next((n for n in candidates if tolerance and _equal(firsts[n], key, tolerance)), None)
        if same is None:
            firsts.append(key)
        level_of[key] = len(firsts) - 1 if same is None else same
    return [-1 if key is None else level_of[key] for key in keys]


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_equal(left, right, tolerance) for left, right in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-6)
    return bool(a == b)


def _parts(levels: dict[str, list[int]], names: Sequence[str], count: int) -> list[list[int]]:
    """Groups of slices with equal values, ordered by the values."""
    if not names:
        return [list(range(count))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(zip(*(levels[name] for name in names), strict=True)):
        groups.setdefault(key, []).append(i)
    return [groups[key] for key in sorted(groups)]


def _differs_everywhere(levels: Sequence[int]) -> bool:
    return len(set(levels)) >= FEWEST_SLICES and max(Counter(levels).values()) < FEWEST_SLICES


def _listed(names: Sequence[str], limit: int = 4) -> str:
    shown = [*names[:limit], "..."] if len(names) > limit else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
