"""Moves arrays between grids: reorient, crop, resample; every step keeps the affine true.

Arrays are [C, *s]; affines map voxel index -> world mm. Resampling along the grid's own axes gives what MONAI's
``Spacing`` gives (bilinear, border padding; its test compares the two), separably: a fraction of the time and memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLAB = 16  # planes that one step of a resampling pass holds in floating point


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Returns the distance in mm between neighboring voxels along each array axis."""
    return tuple(float(x) for x in np.linalg.norm(affine[:-1, :-1], axis=0))


def orient(array: NDArray[Any], affine: NDArray[np.float64], codes: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Flips and permutes the axes of a volume so that they point to ``codes``.

    Args:
        array: Volume [C, i, j, k].
        affine: Voxel -> world mm RAS+, 4x4.
        codes: Three letters, the direction in which each axis grows ("RAS": right, anterior, superior).

    Returns:
        A view of the array and its affine; no value is changed.
    """
    from nibabel import orientations

    now = orientations.io_orientation(affine)
    change = orientations.ornt_transform(now, orientations.axcodes2ornt(codes))
    moved = affine @ orientations.inv_ornt_aff(change, array.shape[1:])
    steps = tuple(slice(None, None, int(sign)) for sign in change[:, 1])
    order = np.argsort(change[:, 0])
    return array[(slice(None), *steps)].transpose(0, *(order + 1)), moved


def crop(
    array: NDArray[Any], affine: NDArray[np.float64], start: tuple[int, ...], stop: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Cuts the box [start, stop) of the spatial axes out of an array [C, *s]; the affine's origin moves with it."""
    moved = affine.copy()
    moved[:-1, -1] = affine[:-1, :-1] @ np.asarray(start, float) + affine[:-1, -1]
    return array[(slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))], moved


def resample(
    array: NDArray[Any], affine: NDArray[np.float64], spacing_mm: tuple[float, ...], *, nearest: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Resamples along the array's own axes; the first voxel keeps its place.

    Args:
        array: [C, *s].
        affine: Voxel -> world mm.
        spacing_mm: Target per axis; 0 keeps an axis.
        nearest: Take the nearest voxel (labels, dtype kept) instead of linear interpolation (float32).

    Returns:
        The array on the new grid and its affine; the inputs themselves where nothing changes.
    """
    steps = [new / old if new > 0 else 1.0 for new, old in zip(spacing_mm, spacing_of(affine), strict=True)]
    changed = [axis for axis, step in enumerate(steps) if abs(step - 1.0) > 1e-4]
    for axis in sorted(changed, key=lambda a: -steps[a]):  # the axis that loses most goes first: less left to do
        size = array.shape[axis + 1]
        count = round((size - 1) / steps[axis]) + 1
        position = np.minimum(np.arange(count) * steps[axis], size - 1.0)
        if nearest:
            array = array.take(np.rint(position).astype(np.intp), axis=axis + 1)
        else:
            array = _interpolate(array, axis + 1, position)
    if not changed:
        return array, affine
    moved = affine.copy()
    moved[:-1, :-1] *= [step if axis in changed else 1.0 for axis, step in enumerate(steps)]
    return array, moved


def resize_image(
    array: NDArray[Any], affine: NDArray[np.float64], size: tuple[int, int], *, nearest: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Resizes an image [C, H, W] to ``size``: antialiased linear (float32), or nearest with the dtype kept."""
    import torch
    from torch.nn.functional import interpolate

    shape = array.shape[1:]
    if shape == size:
        return array, affine
    scale = np.asarray(shape, float) / np.asarray(size, float)
    change = np.eye(3)
    change[(0, 1), (0, 1)] = scale
    change[:2, 2] = (scale - 1.0) / 2.0  # centers of the new pixels, in old pixels
    if nearest:
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * s).astype(np.intp), o - 1)
            for n, s, o in zip(size, scale, shape, strict=True)
        )
        return array[:, rows][:, :, columns], affine @ change
    source = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
    resized = interpolate(source, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].numpy(), affine @ change


def _interpolate(array: NDArray[Any], axis: int, position: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear interpolation at ``position`` along one axis, slab by slab so that temporaries stay small."""
    low = np.minimum(position.astype(np.intp), array.shape[axis] - 1)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    shape = list(array.shape)
    shape[axis] = len(position)
    out = np.empty(shape, np.float32)
    weight = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    other = 2 if axis == 1 else 1
    for first in range(0, shape[other], SLAB):
        cut = tuple(slice(first, first + SLAB) if a == other else slice(None) for a in range(array.ndim))
        slab = np.asarray(array[cut], np.float32)
        lower = slab.take(low, axis)
        rise = slab.take(high, axis)
        rise -= lower
        rise *= weight
        np.add(lower, rise, out=out[cut])
    return out
