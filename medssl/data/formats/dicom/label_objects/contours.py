"""Structure sets (DICOM PS3.3 A.19, C.8.8.5, C.8.8.6): a map of classes on the grid of a scan.

A voxel belongs to a region of interest if its center lies inside an odd number of the region's contours on its slice
(even-odd rule). A contour inside another is therefore a hole, and a keyhole contour is filled without its channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS
from medssl.data.formats.dicom.elements import DicomError, damage, quiet, reason_of
from medssl.data.formats.dicom.label_objects.class_map import ClassMap
from medssl.types import Grid

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_CONTOUR_DATA = 0x30060050
_PLANE = 0.1  # steps between slices that the points of a contour may lie apart
_REPORTED = 0.1  # contours that lie farther off their slice are counted
_FARTHEST = 0.45  # nearer to half a step, the nearest slice is a matter of rounding
_EDGES_AT_ONCE = 4096


@dataclass(frozen=True)
class _Contour:
    """A closed contour: points in voxels of its slice [N, 2], number of the slice, and exact position in slices."""

    points: np.ndarray
    index: int
    plane: float
    xor: bool


def read_structures(file: Path, classes: Mapping[int, int], grid: Grid) -> ClassMap:
    """Reads a structure set and fills its contours.

    Args:
        file: An RT Structure Set.
        classes: Class value by number of the region of interest; other regions are left out.
        grid: Grid of the scan, RAS+; its last axis runs from slice to slice.

    Returns:
        The classes. Where regions of two classes overlap, the higher class value is used, with a note.

    Raises:
        DicomError: The file is damaged, or contours do not lie on slices of the scan.
    """
    import pydicom

    try:
        with quiet():
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
            regions = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or ()}
            return _filled(regions, classes, grid)
    except DicomError:
        raise
    except damage() as error:
        message = f"structure set damaged: {reason_of(error)}"
        raise DicomError(message) from error


def _filled(regions: Mapping[int, Any], classes: Mapping[int, int], grid: Grid) -> ClassMap:
    result = ClassMap.empty(grid, classes)
    for number, value in sorted(classes.items(), key=lambda pair: (pair[1], pair[0])):  # a higher value is put later
        if not value:
            continue
        items = regions[number].get("ContourSequence") or () if number in regions else ()
        kinds = [str(item.get("ContourGeometricType", "")).upper() for item in items]
        open_kinds = [kind for kind in kinds if kind not in _CLOSED]
        if open_kinds:
            shown = ", ".join(sorted(set(open_kinds)))
            result.notes.append(f"region {number}: {len(open_kinds)} contours that enclose nothing left out ({shown})")
        pairs = zip(items, kinds, strict=True)
        contours = [_contour(item, kind, number, grid) for item, kind in pairs if kind in _CLOSED]
        if not contours:
            result.notes.append(f"region {number} has no closed contour")
            continue
        result.notes += _check_slices(contours, number)
        for index in sorted({contour.index for contour in contours}):
            mask = _slice_mask(
                [contour for contour in contours if contour.index == index], number, grid.shape[:2], result.notes
            )
            voxels = np.argwhere(mask)
            result.put(np.column_stack([voxels, np.full(len(voxels), index)]), value)
    if result.overlap:
        result.notes.append(f"regions overlap at {result.overlap:,} voxels: the class with the higher value is taken")
    return result


def _contour(item: Any, kind: str, number: int, grid: Grid) -> _Contour:
    """Converts one contour to voxels.

    Raises:
        DicomError: The contour has no triples of numbers, or does not lie in a slice.
    """
    raw = item.get_item(_CONTOUR_DATA)
    value = b"" if raw is None or raw.value is None else raw.value
    texts = value.strip(b" \0").split(b"\\") if isinstance(value, bytes) else [str(entry) for entry in value]
    numbers = np.array([float(text) for text in texts if text])
    if len(numbers) < 9 or len(numbers) % 3 or not np.isfinite(numbers).all():
        message = f"region {number} has a contour of {len(numbers)} numbers: expected x, y, z of at least 3 points"
        raise DicomError(message)
    points = np.column_stack([numbers.reshape(-1, 3) * LPS_TO_RAS, np.ones(len(numbers) // 3)])
    voxels = np.linalg.solve(np.array(grid.affine), points.T)[:3].T
    slices = voxels[:, 2]
    plane = float(slices.mean())
    if float(np.ptp(slices)) > _PLANE:
        message = f"region {number} has a contour across {np.ptp(slices):.2f} slices: contours must lie in slices"
        raise DicomError(message)
    index = round(plane)
    if not 0 <= index < grid.shape[2]:
        message = f"region {number} has a contour outside of the scan, {plane:.1f} steps from its first slice"
        raise DicomError(message)
    if abs(plane - index) > _FARTHEST:
        message = f"region {number} has a contour between slices, {abs(plane - index):.2f} steps off: draw it on slices"
        raise DicomError(message)
    return _Contour(voxels[:, :2], index, plane, kind.endswith("XOR"))


def _check_slices(contours: Sequence[_Contour], number: int) -> list[str]:
    """Notes about the slices of a region's contours.

    Raises:
        DicomError: The contours were drawn on finer or coarser slices than those of the scan.
    """
    indices = np.unique([contour.index for contour in contours])
    for index in indices:
        planes = [contour.plane for contour in contours if contour.index == index]
        if max(planes) - min(planes) > _PLANE:
            message = f"region {number} has contours in several planes of one slice: it was drawn on finer slices"
            raise DicomError(message)
    gaps = np.diff(indices)
    if len(gaps) and gaps.min() > 1:
        message = f"region {number} has contours on every {int(gaps.min())}th slice only: fill in the slices between"
        raise DicomError(message)
    notes = []
    offsets = [abs(contour.plane - contour.index) for contour in contours]
    if max(offsets) > _REPORTED:
        count = sum(value > _REPORTED for value in offsets)
        notes.append(
            f"region {number}: {count} contours lie up to {max(offsets):.2f} steps off the slice they are put on"
        )
    missing = int((gaps - 1).sum())
    if missing:
        notes.append(f"region {number}: {missing} slices without a contour between others")
    return notes


def _slice_mask(contours: list[_Contour], number: int, shape: tuple[int, ...], notes: list[str]) -> np.ndarray:
    """Voxels (i, j) inside an odd number of the contours of one slice.

    Raises:
        DicomError: Two contours cross each other, which has no defined meaning.
    """
    masks = [inside(contour.points, shape) for contour in contours]
    total = masks[0].copy()
    for later, mask in enumerate(masks[1:], start=1):
        for earlier, earlier_mask in enumerate(masks[:later]):
            common = int((mask & earlier_mask).sum())
            if common in (0, int(mask.sum()), int(earlier_mask.sum())) and not (
                common and np.array_equal(mask, earlier_mask)
            ):
                continue
            if contours[later].xor and contours[earlier].xor:
                continue
            what = "twice" if np.array_equal(mask, earlier_mask) else "across each other"
            message = f"region {number} has contours {what} on slice {contours[later].index}: one outline, one hole"
            raise DicomError(message)
        total ^= mask
    return total


def inside(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels (i, j) whose centers lie inside a closed polygon, by the even-odd rule.

    Args:
        points: Corners [N, 2] in voxels; the last one joins the first.
        shape: Voxels along i and j.
    """
    columns, rows = shape[:2]
    toggles = np.zeros((columns + 1, rows), np.int64)
    following = np.roll(points, -1, axis=0)
    for start in range(0, len(points), _EDGES_AT_ONCE):
        ends = points[start : start + _EDGES_AT_ONCE], following[start : start + _EDGES_AT_ONCE]
        reversed_edges = (ends[0][:, 1] > ends[1][:, 1])[
            :, None
        ]  # an edge crosses where its reverse does, to the last bit:
        lower, upper = (
            np.where(reversed_edges, ends[1], ends[0]),
            np.where(reversed_edges, ends[0], ends[1]),
        )  # keyholes close
        first = np.clip(np.ceil(lower[:, 1]), 0, rows).astype(int)  # a row belongs to an edge from its lower end up
        count = np.clip(np.ceil(upper[:, 1]), 0, rows).astype(int) - first  # to, not including, its upper end
        edge = np.repeat(np.arange(len(lower)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        share = (row - lower[edge, 1]) / (upper[edge, 1] - lower[edge, 1])  # 0 to 1: no slope that overflows
        crossing = lower[edge, 0] + share * (upper[edge, 0] - lower[edge, 0])
        column = np.clip(np.ceil(crossing), 0, columns).astype(int)
        np.add.at(toggles, (column, row), 1)
    return np.asarray(np.cumsum(toggles, axis=0)[:columns] % 2 == 1)
