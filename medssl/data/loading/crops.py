"""Which crop of a scan: a pure function of (seed, global sample number) and the scan's shape and foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medssl.data.store.coding import cell_side
from medssl.ops.draws import keyed_generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medssl.types import Sampling

GRID = 16  # crops start on multiples of a block: nothing is decoded that is not used


def region_at(
    seed: int,
    sample: int,
    shape: tuple[int, ...],
    size: tuple[int, ...],
    sampling: Sampling,
    *,
    cells: NDArray[np.bool_] | None = None,
    around: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Returns the first voxel of the crop of a global sample, per stored axis.

    Starts lie on multiples of 16, or at the last start that fits; where the scan is smaller than the crop, the crop is
    centered on it and starts before it.

    Args:
        seed: Seed of the run.
        sample: Global sample number.
        shape: The scan's voxels per stored axis.
        size: Voxels of the crop per stored axis (1 along an axis that slices are taken across).
        sampling: Regions per scan, stratified axis and shares of crops around labels and in the foreground.
        cells: Foreground map of the scan (``coding.foreground_cells``).
        around: Voxel that the crop is centered on (``Places.draw``); None for one that is not drawn around a label.
    """
    generator = keyed_generator(seed, sample, "region")
    slack = np.asarray(shape) - np.asarray(size)
    first = generator.random(len(shape)) * (slack + 1) - 0.5
    place, keep = place_along(seed, sample, shape, size, sampling), None
    if place is not None and (keep := sampling.stratified_axis) is not None:
        first[keep] = place * shape[keep] - size[keep] / 2
    wanted = generator.random() * (1 - sampling.labeled) < sampling.foreground
    if around is not None:
        first = np.asarray(around) + 0.5 - np.asarray(size) / 2
    elif wanted and cells is not None and cells.any():
        first = _around_foreground(generator, (shape, size), cells, first, keep)
    return tuple(
        _snapped(float(f), int(s), step=1 if n == 1 else GRID) for f, s, n in zip(first, slack, size, strict=True)
    )


def tile_center(seed: int, sample: int, table: NDArray[np.int32], size: int) -> tuple[int, int]:
    """Returns a random pixel in a random tile of a slide, which the crop of a sample is centered on.

    Args:
        seed: Seed of the run.
        sample: Global sample number.
        table: Tiles of the slide, one a row: first row, first column (``Store.tile_table``).
        size: Rows and columns of a tile.
    """
    generator = keyed_generator(seed, sample, "tile")
    row, column, _ = table[int(generator.integers(len(table)))]
    down, along = generator.integers(size, size=2)
    return int(row + down), int(column + along)


def place_along(
    seed: int, sample: int, shape: tuple[int, ...], size: tuple[int, ...], sampling: Sampling
) -> float | None:
    """Returns where the crop of a sample is to lie along the stratified axis, its center as a share of the scan.

    The regions of a scan lie in as many equal parts, one in each. Of slices it is the middle of one whose middle is in
    the part, each as likely; where a part has none, the nearest one. None without a stratified axis.
    """
    axis, parts = sampling.stratified_axis, sampling.regions_per_scan
    if axis is None or parts == 1 or axis >= len(shape):
        return None
    draw, turn = divmod(sample, parts)
    part = int(keyed_generator(seed, draw, "strata").permutation(parts)[turn])
    share = float(keyed_generator(seed, sample, "along").random())
    if size[axis] > 1:
        return (part + share) / parts
    doubled = 2 * np.arange(shape[axis]) + 1  # twice the middles of the slices, whole numbers
    inside = np.flatnonzero(doubled * parts // (2 * shape[axis]) == part)
    if not len(inside):
        inside = np.array([np.abs(doubled * parts - (2 * part + 1) * shape[axis]).argmin()])
    return float(doubled[inside[int(share * len(inside))]] / (2 * shape[axis]))


def slice_axes(affine: NDArray[np.float64], axis: int) -> tuple[int, int]:
    """Returns the (row, column) axes of slices taken across ``axis`` of a volume.

    The column axis is the one whose direction is nearer to left-right, so that a slice lies like any other image: its
    horizontal axis is the one that a flip must not turn.
    """
    first, second = (a for a in range(3) if a != axis)
    sideways = np.abs(_directions(affine)[0])
    return (second, first) if sideways[first] > sideways[second] else (first, second)


def slice_world(affine: NDArray[np.float64], axes: tuple[int, int], first: tuple[int, ...]) -> NDArray[np.float64]:
    """Returns the 3x3 affine (row, column) -> mm in the plane, of a slice along two axes of a volume.

    Distances are those of the volume, however oblique the slice lies. The two rows stand for the world axes nearest to
    the slice's row and column axis (exactly these where the slice is not oblique).

    Args:
        affine: Voxel -> world mm of the volume, 4x4.
        axes: Row and column axis.
        first: First voxel of the slice per axis of the volume; the one across the slice says which slice it is.
    """
    plane, inside = np.linalg.qr(affine[:3, list(axes)])  # orthonormal basis [3, 2] and the slice's axes in it
    across = next(a for a in range(3) if a not in axes)
    through = int(np.argmin(np.square(plane).sum(axis=1)))
    in_plane = [w for w in range(3) if w != through]
    if abs(_directions(affine)[in_plane[0], axes[0]]) < abs(_directions(affine)[in_plane[1], axes[0]]):
        in_plane.reverse()
    left, _, right = np.linalg.svd(plane[in_plane])
    turn = left @ right  # the rotation (or reflection) nearest to looking along the world axes
    out = np.eye(3)
    out[:2, :2] = turn @ inside
    out[:2, 2] = turn @ plane.T @ (affine[:3, 3] + affine[:3, across] * first[across])
    return out


def _directions(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors [3, 3] in world space, one column for each axis of the array."""
    columns = affine[:3, :3]
    unit: NDArray[np.float64] = columns / np.linalg.norm(columns, axis=0)
    return unit


def _around_foreground(
    generator: np.random.Generator,
    box: tuple[tuple[int, ...], tuple[int, ...]],
    cells: NDArray[np.bool_],
    first: NDArray[np.float64],
    keep: int | None,
) -> NDArray[np.float64]:
    """Moves the crop's center into a foreground cell; along the stratified axis into one that is near."""
    shape, size = box
    side = cell_side(shape)
    counts = [-(-n // side) for n in shape]
    foreground = np.argwhere(cells[: int(np.prod(counts))].reshape(counts))
    if keep is not None:
        distance = np.abs((foreground[:, keep] + 0.5) * side - (first[keep] + size[keep] / 2))
        foreground = foreground[distance <= max(side / 2, float(distance.min()))]
    cell = foreground[int(generator.integers(len(foreground)))]
    center = (cell + generator.random(len(shape))) * side
    moved: NDArray[np.float64] = np.minimum(center, np.asarray(shape) - 0.5) - np.asarray(size) / 2
    if keep is not None:
        moved[keep] = first[keep]
    return moved


def _snapped(first: float, slack: int, *, step: int) -> int:
    """Nearest start on the grid that fits, the last fitting one included; centered where nothing fits."""
    if slack < 0:
        return -(-slack // 2)
    first = min(max(first, 0.0), float(slack))
    below = min(int(first // step) * step, slack)
    above = min(below + step, slack)
    return below if first - below <= above - first else above
