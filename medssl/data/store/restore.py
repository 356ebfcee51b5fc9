"""From the stored grid back to the grid of a scan's file: the inverse of ``preprocess.prepare`` for predictions.

Probabilities come plane by plane and are interpolated linearly, axis by axis, at the voxels of the source; the class of
the highest wins. Never more than two planes are held, whatever the size of the scan.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float, Int
    from numpy.typing import NDArray
    from torch import Tensor

    from medssl.data.store.preprocess import Prepared

OFF_AXIS = 0.1  # stored voxels by which the axes of the two grids may part over the whole scan


@dataclass(frozen=True)
class GridMapping:
    """Where the voxels of a scan lie on its stored grid.

    Attributes:
        shape: Voxels of the scan per axis, as in its file.
        axes: Stored axis of each axis of the scan.
        start: First voxel, per axis of the scan, that lies inside the stored part (the foreground crop).
        positions: Per axis of the scan, the places of the voxels from ``start`` on, in stored voxels.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    start: tuple[int, ...]
    positions: tuple[NDArray[np.float64], ...]


def mapping_to_source(prepared: Prepared, affine: NDArray[np.float64]) -> GridMapping:
    """Finds where the voxels of a scan lie on its stored grid.

    Args:
        prepared: The scan as it is stored.
        affine: Voxel -> world mm of the scan as it lies on disk.

    Raises:
        UserError: A transform of the user rotated the scan, so that no axis of one grid is one of the other.
    """
    undo, last = prepared.undo, len(prepared.undo.shape)
    oriented = np.linalg.inv(np.asarray(undo.affine)) @ affine
    stored = np.linalg.inv(prepared.affine) @ affine
    turned, axes = _axes(oriented), _axes(stored)
    shape = tuple(undo.shape[axis] for axis in turned)
    apart = np.abs(stored[:last, :last])
    apart[list(axes), range(last)] = 0.0
    off = float((apart @ np.array(shape)).max())
    if sorted(axes) != list(range(last)) or off > OFF_AXIS:
        message = (
            f"they rotate the scan (up to {off:.2g} voxels off its axes), so a prediction cannot be brought back to "
            "the scan's grid"
        )
        raise UserError(message, key="preprocess.transforms", hint="Leave out the transform that rotates")
    starts, positions = [], []
    for axis, (middle, final) in enumerate(zip(turned, axes, strict=True)):
        index = np.arange(shape[axis])
        cropped = np.rint(oriented[middle, axis] * index + oriented[middle, last]) - undo.crop_start[middle]
        stored_place = stored[final, axis] * index + stored[final, last]
        size = prepared.image.shape[final + 1]
        inside = (cropped >= 0) & (cropped < undo.crop_size[middle])
        inside &= (stored_place > -0.501) & (stored_place < size - 0.499)
        starts.append(int(inside.argmax()))
        positions.append(_clamped(stored_place[inside], size))
    return GridMapping(shape, axes, tuple(starts), tuple(positions))


def restore(
    blocks: Iterable[tuple[int, Float[Tensor, "K n *rest"]]], mapping: GridMapping, *, axis: int, classes: int
) -> Int[np.ndarray, "*s"]:
    """Brings class probabilities back to the scan's own grid and takes the class of the highest.

    Args:
        blocks: First plane and probabilities [K, planes, the other stored axes], the planes in order without gaps.
        mapping: Where the scan's voxels lie.
        axis: Stored axis that the planes are counted along.
        classes: How many classes there are.

    Returns:
        Class numbers in the scan's own axes, 0 outside the stored part; uint8, uint16 beyond 256 classes.

    Raises:
        ValueError: Planes are missing at the end.
    """
    scan_axis = mapping.axes.index(axis)
    others = [other for other in range(len(mapping.axes)) if other != scan_axis]
    low, share = _split(mapping.positions[scan_axis])
    complete = low + (share > 0)  # the stored plane with which a plane of the scan can be made
    due = deque(np.argsort(mapping.positions[scan_axis], kind="stable").tolist())
    needed = set(low.tolist()) | set(complete.tolist())
    out: NDArray[Any] = np.zeros(mapping.shape, np.uint8 if classes <= 256 else np.uint16)
    box = out[tuple(slice(a, a + len(p)) for a, p in zip(mapping.start, mapping.positions, strict=True))]
    planes = np.moveaxis(box, scan_axis, 0)
    before: Tensor | None = None
    for first, block in blocks:
        for number, plane in enumerate(block.unbind(1), first):
            now = _in_plane(plane, mapping, others) if number in needed else None
            while due and complete[due[0]] == number:
                one = due.popleft()
                assert now is not None
                mixed = now if before is None or low[one] == number else torch.lerp(before, now, float(share[one]))
                planes[one] = mixed.argmax(0).numpy()
            before = now
    if due:
        message = f"the planes end too early: {len(due)} planes of the scan are left"
        raise ValueError(message)
    return out


def restore_labels(label: Int[np.ndarray, "*s"], mapping: GridMapping, *, axis: int = 0) -> Int[np.ndarray, "*s"]:
    """Brings a stored label map back the same way, each class as a probability of 0 or 1; equal ones give the first.

    Args:
        label: Classes on the stored grid.
        mapping: Where the scan's voxels lie.
        axis: Stored axis that is gone along.

    Returns:
        Classes on the scan's own grid, 0 outside the stored part.
    """
    values = np.unique(np.append(label, 0))
    planes = np.moveaxis(label, axis, 0)
    first = np.argsort(values != 0, kind="stable")  # class 0 comes first: it is what lies outside
    ordered = values[first].reshape(-1, *[1] * label.ndim)
    blocks = (
        (number, torch.from_numpy((plane[None, None] == ordered).astype(np.float32)))
        for number, plane in enumerate(planes)
    )
    numbers = restore(blocks, mapping, axis=axis, classes=len(values))
    labels: NDArray[Any] = values[first][numbers].astype(label.dtype)
    return labels


def _axes(matrix: NDArray[np.float64]) -> tuple[int, ...]:
    """For each axis of the one grid the axis of the other that it runs along most."""
    return tuple(int(axis) for axis in np.abs(matrix[:-1, :-1]).argmax(axis=0))


def _clamped(place: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Places of voxels where the stored values really are: the last one may be that of a voxel less far out.

    ``grid.resample`` reads its last voxel at the border where its place lies beyond it.
    """
    knots = np.arange(size, dtype=np.float64)
    if size > 1 and len(place) and size - 1.5 - 1e-3 < place.max() < size - 1:
        knots[-1] = place.max()
    return np.round(np.interp(place, knots, np.arange(size)), 6)  # rounding errors must not make a plane two


def _split(position: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The voxel below each place, and the share of the one above."""
    low = np.floor(position).astype(np.intp)
    return low, (position - low).astype(np.float32)


def _in_plane(plane: Float[Tensor, "K *rest"], mapping: GridMapping, others: list[int]) -> Float[Tensor, "K *rest"]:
    """One plane of the stored grid at the scan's own voxels, its axes in the scan's order."""
    if len(others) == 2 and mapping.axes[others[0]] > mapping.axes[others[1]]:
        plane = plane.transpose(1, 2)
    for dim, other in enumerate(others, 1):
        low, share = _split(mapping.positions[other])
        if share.any():
            weight = torch.from_numpy(share).reshape([-1 if d == dim else 1 for d in range(plane.ndim)])
            above = torch.from_numpy(np.minimum(low + 1, plane.shape[dim] - 1))
            plane = plane.index_select(dim, torch.from_numpy(low)).lerp_(plane.index_select(dim, above), weight)
        elif not np.array_equal(low, np.arange(plane.shape[dim])):
            plane = plane.index_select(dim, torch.from_numpy(low))
    return plane
