"""Regions of a map: their corners, their voxels in every view that shows them, and their neighbors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import grid_sample, interpolate

from medssl.ops import coordinates
from medssl.ops.collectives import reduce_sum
from medssl.ops.limits import expect
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types import View

MIN_CORNER_DISTANCE = 4  # smallest distance, in voxels, between the first and last region along an axis


@dataclass(frozen=True)
class Regions:
    """Regions of a map.

    Attributes:
        side: Cells along each axis of a region, at least 1.
        nearest: Number of nearest other regions to use as negatives, at least 1.
    """

    side: int = 3
    nearest: int = 5

    def __post_init__(self) -> None:
        expect(self.side >= 1, "regions.side", self.side, "at least 1")
        expect(self.nearest >= 1, "regions.nearest", self.nearest, "at least 1")


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


def tracked_points(
    views: Sequence[View], corners: Sequence[tuple[int, ...]], side: int, size: Sequence[int]
) -> list[Float[Tensor, "B A K n"]]:
    """Where each view shows the regions that lie at ``corners`` in the first view.

    Args:
        views: Views of one size.
        corners: First voxels of the regions.
        side: Voxels of a region per axis; a region has K = side^n.
        size: Voxels of the map per axis.

    Returns:
        For each view, the centers of the voxels of each region, in voxels of that view's map (float64).
    """
    offsets = torch.tensor(list(product(range(side), repeat=len(size))), dtype=torch.float64)
    points = torch.tensor(corners, dtype=torch.float64)[:, None] + offsets
    stride = torch.tensor(views[0].image.shape[2:], dtype=torch.float64) / torch.tensor(size)
    points, stride = (x.to(views[0].affine.device) for x in (points, stride))
    to_stored = views[0].affine.double()
    stored = coordinates.apply(to_stored, ((points + 0.5) * stride - 0.5).flatten(0, 1)[None])
    tracked = []
    for view in views:
        inside = coordinates.apply(coordinates.invert(view.affine.double()), stored)
        tracked.append(((inside + 0.5) / stride - 0.5).view(len(stored), *points.shape))
    return tracked


def same_places(first: View, second: View, cells: Sequence[int], reach: float) -> Bool[Tensor, "B N M"]:
    """Pairs of cells of two views that show the same place.

    Args:
        first: A view.
        second: Another view of the same scans, with as many voxels.
        cells: Cells per axis.
        reach: Largest distance of two centers in the world, as a share of the longer diagonal of their cells.

    Returns:
        True for pairs of cells; none where half of a cell or more is padding or not scored.
    """
    distances, limit, usable = _apart(first, second, cells, reach)
    return (distances <= limit[:, None, None]) & usable


def nearest_places(
    first: View, second: View, cells: Sequence[int], reach: float
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """For each cell of the first view the nearest usable one of the second, and whether it is near enough.

    Arguments are those of :func:`same_places`.
    """
    distances, limit, usable = _apart(first, second, cells, reach)
    nearest, match = distances.masked_fill(~usable, torch.inf).min(2)
    return match, nearest <= limit[:, None]


def _apart(
    first: View, second: View, cells: Sequence[int], reach: float
) -> tuple[Float[Tensor, "B N M"], Float[Tensor, "B"], Bool[Tensor, "B N M"]]:
    """Distances of the cells of two views in mm, the largest that counts, and which pairs are usable."""
    size = first.image.shape[2:]
    centers = coordinates.cell_centers(size, cells).to(first.world_affine.device)
    stride = torch.tensor(size, dtype=torch.float64, device=centers.device) / torch.tensor(cells, device=centers.device)
    points, diagonals, shares = [], [], []
    for view in (first, second):
        affine = view.world_affine.double()
        points.append(coordinates.apply(affine, centers[None]))
        diagonals.append(torch.linalg.vector_norm(affine[:, :-1, :-1] @ stride, dim=1))
        shares.append(interpolate((view.valid & view.scored).float(), tuple(cells), mode="area").flatten(1) >= 0.5)
    distances = torch.cdist(points[0], points[1], compute_mode="donot_use_mm_for_euclid_dist")
    limit = reach * torch.stack(diagonals).amax(0)
    return distances, limit, shares[0][:, :, None] & shares[1][:, None, :]


def rows_at(maps: Float[Tensor, "B C *s"], points: Float[Tensor, "B A K n"]) -> Float[Tensor, "B A C*K"]:
    """Values of each region as one row, interpolated linearly; beyond the border, those of the border."""
    return _sampled(maps, points, padding="border").flatten(2)


def counted_at(usable: Bool[Tensor, "B 1 *t"], points: Float[Tensor, "B A K n"], size: Sequence[int]) -> Tensor:
    """Regions [B, A] of a map of which at least half lies in the view and is usable.

    Args:
        usable: False for voxels of the view that are padding or not scored.
        points: As from ``tracked_points``.
        size: Voxels of the map per axis.
    """
    share = interpolate(usable.float(), tuple(size), mode="area")
    return _sampled(share, points, padding="zeros")[:, :, 0].mean(2) >= 0.5 - 1e-4  # rounding of places


def _sampled(maps: Float[Tensor, "B C *s"], points: Float[Tensor, "B A K n"], *, padding: str) -> Tensor:
    """Values [B, A, C, K] of a map at points in its voxels."""
    axes, last = points.shape[3], torch.tensor(maps.shape[2:], device=points.device) - 1
    grid = (points / last.clamp(min=1) * 2 - 1).flip(3).to(maps.dtype)
    grid = grid if axes == 2 else grid.unsqueeze(3)
    values = grid_sample(maps, grid, padding_mode=padding, align_corners=True)
    return values.view(*values.shape[:4]).transpose(1, 2)


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


def refuse_partial(view: View, axis: int) -> None:
    """Refuses crops that do not contain whole slices, where regions of different volumes are positives.

    Args:
        view: A view.
        axis: Stored axis across the slices.

    Raises:
        UserError: A scan is larger than the view within the slices.
    """
    largest, size = view.source_shape.amax(0).tolist(), view.image.shape[2:]
    compared_axes = [number for number in range(len(size)) if len(size) == 2 or number != axis]
    if any(largest[number] > size[number] for number in compared_axes):
        shown = [[sides[number] for number in compared_axes] for sides in (size, largest)]
        message = (
            "cues.cross compares regions of different volumes by their place in the view, which must hold whole "
            f"slices: the view has {shown[0]} voxels, the largest scan of this batch {shown[1]}: make the "
            "objective's view.size that large, or cues.cross false"
        )
        raise UserError(message)
