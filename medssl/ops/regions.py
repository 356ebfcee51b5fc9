"""Regions of a map at fixed places: their corners, their voxels and their neighbors."""

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

MIN_CORNER_DISTANCE = 4  # smallest distance, in voxels, between the first and last region along an axis


def region_corners(size: Sequence[int], side: int) -> list[tuple[int, ...]]:
    """First voxels of regions: corners, middles of edges, center, and the points halfway between (13 in 2D).

    Along an axis that is too thin for three regions, all regions lie in the middle.

    Args:
        size: Voxels of the map per axis.
        side: Voxels of a region per axis.

    Raises:
        UserError: The map is too small for these regions.
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
    """Voxels of each region as one row; D = C * side^n."""
    leading_axes = slice(None), slice(None)
    boxes = [leading_axes + tuple(slice(first, first + side) for first in corner) for corner in corners]
    return torch.stack([maps[box].flatten(1) for box in boxes], 1)


def counted_regions(
    usable: Bool[Tensor, "B 1 *t"], size: Sequence[int], corners: Sequence[tuple[int, ...]], side: int
) -> Bool[Tensor, "B A"]:
    """Regions of a map of which at least half is usable.

    Args:
        usable: False for voxels of the view that are padding or not scored.
        size: Voxels of the map per axis.
        corners: First voxels of the regions.
        side: Voxels of a region per axis.
    """
    share = interpolate(usable.float(), tuple(size), mode="area")
    return rows_of(share, corners, side).mean(2) >= 0.5


def refuse_padding(counted: Bool[Tensor, "B A"], view: View) -> None:
    """Refuses views that are so much larger than their scans that no region of any process is usable.

    Raises:
        UserError: Names the size of the view and of the largest scan.
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
    """For each region (row): True for the ``count`` nearest other regions."""
    positions = torch.tensor(corners, dtype=torch.float64)
    distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
    is_nearest = torch.zeros(distances.shape, dtype=torch.bool)
    order = distances.argsort(dim=1, stable=True)[:, : min(count, len(corners) - 1)]
    return is_nearest.scatter_(1, order, value=True)
