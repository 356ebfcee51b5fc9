"""Positions of slices along their common normal, and checks of the steps between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from medssl.data.formats.base import LARGEST_MM, SMALLEST_MM
from medssl.data.formats.dicom.slices import Slice

SAME_PLACE_MM = 1e-2
FEWEST_SLICES = 3
UNEVEN = 0.15  # largest offset of a slice from its place, as a share of the step
_COARSEST = 0.35  # coarsest rounding of positions, as a share of the step
_GAP = 1.5  # of the step or of the thickness: more is a gap


def normal_of(slice_: Slice) -> np.ndarray:
    """Direction from slice to slice, LPS."""
    pose = slice_.pose or ()
    normal = np.cross(pose[:3], pose[3:6])
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-12))


def places_of(slices: Sequence[Slice]) -> np.ndarray:
    """Millimeters along the normal of the first slice, per slice."""
    return np.asarray(origins_of(slices) @ normal_of(slices[0]))


def origins_of(slices: Sequence[Slice]) -> np.ndarray:
    """Positions of the first pixels (slice, 3), LPS mm."""
    return np.array([(slice_.pose or ())[6:] for slice_ in slices])


def same_place_mm(slices: Sequence[Slice]) -> float:
    """Distance below which places are equal; also small compared with the pixels of a microscope."""
    return min(SAME_PLACE_MM, 0.05 * min(slices[0].spacing_mm or (1.0, 1.0)))


def ranks_of(places: np.ndarray, same: float = SAME_PLACE_MM) -> np.ndarray:
    """Rank of each slice's place along the normal; slices in the same place have the same rank."""
    order = np.argsort(places, kind="stable")
    steps = np.concatenate([[0], np.cumsum(np.diff(places[order]) > same)])
    ranks = np.empty(len(places), dtype=np.int64)
    ranks[order] = steps
    return ranks


def unevenness(slices: Sequence[Slice]) -> str:
    """What is wrong with the steps between slices, which are sorted by place; "" if nothing is."""
    places, origins = places_of(slices), origins_of(slices)
    steps = np.diff(places)
    same = np.flatnonzero(steps <= same_place_mm(slices))
    if len(same):
        index = int(same[0])
        names = f"{slices[index].file_name}, {slices[index + 1].file_name}"
        return f"two different slices in one place: {len(same)} times, first at {places[index]:.2f} mm ({names})"
    median_step = float(np.median(steps))
    gaps = np.flatnonzero(steps > _GAP * median_step)
    if len(gaps):
        index = int(gaps[0])
        missing = int(sum(round(float(steps[n]) / median_step) - 1 for n in gaps))
        where = f"between {places[index]:.2f} and {places[index + 1]:.2f} mm ({slices[index].file_name})"
        gap = f"a gap of {steps[index]:.2f} mm {where} where the step is {median_step:.2f} mm"
        return f"missing slice: {gap}; {missing} missing"
    start, step = line_of(origins)
    largest_offset = float(np.linalg.norm(origins - start - np.arange(len(origins))[:, None] * step, axis=1).max())
    if largest_offset > UNEVEN * median_step:
        extremes = f"steps of {steps.min():.2f} to {steps.max():.2f} mm"
        return f"uneven slices: {extremes}, up to {largest_offset:.2f} mm off a straight line"
    mean = float(np.linalg.norm(step))
    if not SMALLEST_MM <= mean <= LARGEST_MM:
        return f"slices {mean:g} mm apart: expected {SMALLEST_MM:g} to {LARGEST_MM:g} mm (DICOM measures in mm)"
    return ""


def line_of(origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and step in mm of the line with even distances through the origins of sorted slices.

    The line runs from the first origin to the last. If rounding explains the offsets from that line, a least-squares
    fit is used instead, since the ends are rounded, too.
    """
    count = len(origins)
    start, step = origins[0], (origins[-1] - origins[0]) / (count - 1)
    largest_offset = np.abs(origins - start - np.arange(count)[:, None] * step).max()
    unit = _rounded_to(origins)
    if not 1e-3 * np.linalg.norm(step) < largest_offset <= 1.001 * unit < _COARSEST * np.linalg.norm(step):
        return start, step
    fitted = np.polynomial.polynomial.polyfit(np.arange(count), origins, 1)
    return fitted[0], fitted[1]


def _rounded_to(origins: np.ndarray) -> float:
    """Decimal unit of all coordinates: 0.1 mm, 0.01 mm or 0.001 mm; 0 if there is none."""
    for digits in (1, 2, 3):
        if np.allclose(origins, origins.round(digits), rtol=0, atol=1e-7):
            return 10.0**-digits
    return 0.0


def step_of(slices: Sequence[Slice]) -> float:
    """Mean distance in mm between neighboring slices along the normal; slices are sorted by place."""
    places = places_of(slices)
    return float(abs(places[-1] - places[0]) / max(len(places) - 1, 1))


def declared(slices: Sequence[Slice], name: str) -> float | None:
    """A number above zero that all slices declare, equal except for rounding; None if there is none."""
    values = sorted(float(value) for slice_ in slices if (value := slice_.attributes.get(name)) is not None)
    if len(values) < len(slices) or values[0] <= 0 or values[-1] > 1.01 * values[0]:
        return None
    return values[len(values) // 2]


def contiguous(slices: Sequence[Slice]) -> bool:
    """Whether the header proves that no slice is missing between neighbors.

    This holds if ``SpacingBetweenSlices`` equals the step, or if the slices are about as thick as the step.
    """
    step = step_of(slices)
    between, thickness = declared(slices, "SpacingBetweenSlices"), declared(slices, "SliceThickness")
    if between is not None and abs(between - step) <= 0.05 * step:
        return True
    return thickness is not None and step <= 1.25 * thickness


def skipped(slices: Sequence[Slice], numbers: frozenset[float]) -> str:
    """Why slices with even steps seem to be every second (third ...) slice of a volume; "" if they do not.

    Args:
        slices: Sorted by place.
        numbers: Instance numbers of the whole series.
    """
    step = step_of(slices)
    between, thickness = declared(slices, "SpacingBetweenSlices"), declared(slices, "SliceThickness")
    if between is not None and between < step:
        times = round(step / between)
        gap_alone = thickness is not None and between < 0.98 * thickness  # some writers give the gap for the distance
        if times >= 2 and abs(step - times * between) <= 0.03 * step:
            if not (gap_alone and abs(step - between - (thickness or 0.0)) <= 0.03 * step):
                return (
                    f"missing slices: steps of {step:.2f} mm where SpacingBetweenSlices is {between:.2f} mm, so that "
                    f"{times - 1} of {times} slices are missing"
                )
    stack_numbers = [slice_.slice_attributes.get("number", 0.0) for slice_ in slices]
    jumps = {round(abs(second - first)) for first, second in itertools.pairwise(stack_numbers)}
    if contiguous(slices) or len(jumps) != 1 or min(jumps) < 2:
        return ""
    between_numbers = set(np.arange(min(stack_numbers), max(stack_numbers) + 1).tolist()) - set(stack_numbers)
    if between_numbers & numbers:
        return ""
    return (
        f"missing slices: steps of {step:.2f} mm, InstanceNumber goes in steps of {min(jumps)}, no file of the series "
        "holds the numbers between, and no header says that the steps are that long"
    )
