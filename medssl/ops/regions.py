"""Regions of a map at fixed places: where they begin, what is in them, which lie next to each other."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from medssl.ops.collectives import reduce_sum
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.types import View

MIN_CORNER_DISTANCE = (
    4  # voxels between the first and the last region along an axis, at least: fewer would be nearly the same
)


def region_corners(size: Sequence[int], side: int) -> list[tuple[int, ...]]:
    """First voxels of regions: corners, middles of the edges, the center, and the points halfway between (2D: 13).

    Along an axis too thin for three regions (a slab's) they all lie in the middle: 13 of a thin volume, too.

    Raises:
        UserError: The map is too small for that many regions.
    """
    last_corner = [extent - side for extent in size]
    if min(last_corner) < 0 or sum(end >= MIN_CORNER_DISTANCE for end in last_corner) < 2:
        message = (
            f"the decoder's map has {tuple(size)} voxels, too few for regions of {side}: take a larger view or more "
            "steps of the decoder"
        )
        raise UserError(message)
    coarse_corners = product(
        *[(0, end // 2, end) if end >= MIN_CORNER_DISTANCE else (end // 2,) for end in last_corner]
    )
    halfway_corners = product(
        *[(end // 4, end - end // 4) if end >= MIN_CORNER_DISTANCE else (end // 2,) for end in last_corner]
    )
    return [*coarse_corners, *halfway_corners]


def rows_of(maps: Float[Tensor, "B C *s"], corners: Sequence[tuple[int, ...]], side: int) -> Float[Tensor, "B A D"]:
    """Voxels of each region as one row, D = C * side^n."""
    leading_axes = slice(None), slice(None)
    boxes = [leading_axes + tuple(slice(first, first + side) for first in corner) for corner in corners]
    return torch.stack([maps[box].flatten(1) for box in boxes], 1)


def counted_regions(
    usable: Bool[Tensor, "B 1 *t"], size: Sequence[int], corners: Sequence[tuple[int, ...]], side: int
) -> Bool[Tensor, "B A"]:
    """Regions of a map that may be compared: those of which at least half is usable.

    Args:
        usable: False where the view is padding, or not to be scored; voxel by voxel of what the map was made from.
        size: Voxels of the map per axis.
        corners: First voxels of the regions.
        side: Voxels of a region per axis.
    """
    share = interpolate(usable.float(), tuple(size), mode="area")
    return rows_of(share, corners, side).mean(2) >= 0.5


def refuse_padding(counted: Bool[Tensor, "B A"], view: View) -> None:
    """Refuses views that are so much larger than their scans that no region of any process can be compared.

    Raises:
        UserError: Names the view and the largest scan.
    """
    size, largest = list(view.image.shape[2:]), view.source_shape.amax(0).tolist()
    nothing_counted = int(reduce_sum(counted.sum())) == 0
    if nothing_counted and any(scan < side for scan, side in zip(largest, size, strict=True)):
        message = (
            f"every region is mostly padding: views have {size} voxels, the largest scan of this batch {largest}: make "
            "the objective's view.size smaller"
        )
        raise UserError(message)


def nearest_regions(corners: Sequence[tuple[int, ...]], count: int) -> Bool[Tensor, "A A"]:
    """For each region (row) the ``count`` others that are nearest to it."""
    positions = torch.tensor(corners, dtype=torch.float64)
    distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
    is_nearest = torch.zeros(distances.shape, dtype=torch.bool)
    order = distances.argsort(dim=1, stable=True)[:, : min(count, len(corners) - 1)]
    return is_nearest.scatter_(1, order, value=True)
