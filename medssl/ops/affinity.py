"""Affinity of two views from their cells: each cell is compared with its nearest cell, by place and by feature.

Reference: Nguyen et al., LVM-Med, NeurIPS 2023, arXiv 2306.11925, after Bardes et al., VICRegL, NeurIPS 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from medssl.ops.coordinates import apply, cell_centers, compose, invert, nearest_cells, translation
from medssl.ops.similarity import cosine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types import View


class Cells(NamedTuple):
    """Cells of the maps of G graphs of N nodes, P cells each.

    Attributes:
        features: Features of each cell, in at least float32.
        counted: False for cells that are mostly padding or mostly not scored.
        affine: From the voxels of the view to mm, measured from the middle of the scan.
        centers: Centers of the cells, in voxels of the view; the same for all nodes.
    """

    features: Float[Tensor, "G N P C"]
    counted: Bool[Tensor, "G N P"]
    affine: Float[Tensor, "G N n+1 n+1"]
    centers: Float[Tensor, "P n"]


def map_cells(features: Float[Tensor, "B C *s"], view: View, *, nodes: int, max_cells: int) -> Cells:
    """The cells of a feature map; ``nodes`` consecutive samples form a graph.

    Args:
        features: Feature map of the whole view.
        view: The view.
        nodes: Number of nodes in a graph.
        max_cells: Largest number of cells along an axis; finer maps are averaged.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    graphs, shape = (len(features) // nodes, nodes), features.shape[2:]
    cells = [min(extent, max_cells) for extent in shape]
    usable = _pool((view.valid & view.scored).to(features.dtype), shape)
    centers = cell_centers(view.image.shape[2:], shape).T.reshape(1, -1, *shape).to(features.device)
    affine = _from_the_middle(view).to(features.device)
    return Cells(
        _pool(features, cells).flatten(2).transpose(1, 2).reshape(*graphs, -1, features.shape[1]),
        (_pool(usable, cells) >= 0.5).view(*graphs, -1),
        affine.view(*graphs, *affine.shape[1:]),
        _pool(centers, cells)[0].flatten(1).T,
    )


def local_affinity(cells: Cells, other_cells: Cells, *, share: float) -> Float[Tensor, "G N N"]:
    """Mean cosine of cells of node i of the first graphs and their partners in node a of the second graphs, -1 to 1.

    The partner of a cell is the nearest cell by place (in mm from the middle of each scan) or by features (Euclidean).
    The result is the mean over both, and over both directions (i to a, a to i). The choice of partners has no gradient.
    Cells that are not ``counted`` are left out; the result is 0 if none remain.

    Args:
        cells: Cells of the first graphs.
        other_cells: Cells of the second graphs.
        share: Share of a node's cells that are used, above 0 and at most 1: those with the nearest partners.
    """
    graphs, nodes, number, _ = cells.features.shape
    rows, columns = cells.features.flatten(1, 2), other_cells.features.flatten(1, 2)
    similarity = cosine(rows, columns).view(graphs, nodes, number, nodes, -1).transpose(2, 3)
    with torch.no_grad():
        length, other_length = (torch.linalg.vector_norm(side.features, dim=-1) for side in (cells, other_cells))
        squares = length[:, :, None, :, None].square() + other_length[:, None, :, None, :].square()
        squared_distances = squares - 2 * length[:, :, None, :, None] * other_length[:, None, :, None, :] * similarity
        squared_distances = squared_distances.masked_fill(~other_cells.counted[:, None, :, None, :], torch.inf)
        squared_distances = squared_distances.masked_fill(~cells.counted[:, :, None, :, None], torch.inf)
        forward_partners, backward_partners = (
            _by_place(cells, other_cells),
            _by_place(other_cells, cells, transposed=True),
        )
    backwards = similarity.transpose(3, 4)
    terms = (
        _mean_of_nearest(similarity, *forward_partners, share),
        _mean_of_nearest(similarity, *_nearest(squared_distances), share),
        _mean_of_nearest(backwards, *backward_partners, share),
        _mean_of_nearest(backwards, *_nearest(squared_distances.transpose(3, 4)), share),
    )
    return torch.stack(terms).mean(0)


# --- inside


def _pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pools to ``size``."""
    if len(size) == 2:
        return adaptive_avg_pool2d(x, (size[0], size[1]))
    return adaptive_avg_pool3d(x, (size[0], size[1], size[2]))


def _from_the_middle(view: View) -> Float[Tensor, "B n+1 n+1"]:
    """Affine from view voxels to mm from the middle of the stored scan, to compare places in two scans."""
    affine, world = view.affine.double(), view.world_affine.double()
    stored = (view.source_shape.to(affine) - 1)[:, None] / 2
    return compose(translation(-apply(world, apply(invert(affine), stored))[:, 0]), world)


def _by_place(cells: Cells, other_cells: Cells, *, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """The nearest cell in mm, and its distance; infinite if either cell is not counted.

    Rows and columns of the result are the nodes of ``cells`` and of ``other_cells``; transposed if ``transposed``.
    """
    graphs, nodes = cells.affine.shape[:2]
    size = (graphs, nodes, nodes, *cells.affine.shape[2:])
    cells_axis, other_axis = (1, 2) if transposed else (2, 1)
    index, distance = nearest_cells(
        cells.affine.unsqueeze(cells_axis).expand(size).flatten(0, 2),
        cells.centers,
        other_cells.affine.unsqueeze(other_axis).expand(size).flatten(0, 2),
        other_cells.centers,
    )
    index, distance = (table.view(graphs, nodes, nodes, -1) for table in (index, distance))
    partner = other_cells.counted.unsqueeze(other_axis).expand(graphs, nodes, nodes, -1).gather(3, index)
    return index, distance.masked_fill(~(cells.counted.unsqueeze(cells_axis) & partner), torch.inf)


def _nearest(distances: Float[Tensor, "*pairs P Q"]) -> tuple[Int[Tensor, "*pairs P"], Float[Tensor, "*pairs P"]]:
    """Index and distance of the nearest entry along the last axis."""
    distance, index = distances.min(-1)
    return index, distance


def _mean_of_nearest(
    similarity: Float[Tensor, "*pairs P Q"],
    partner: Int[Tensor, "*pairs P"],
    distance: Float[Tensor, "*pairs P"],
    share: float,
) -> Float[Tensor, "*pairs"]:
    """Mean similarity of the cells whose partners are nearest."""
    partner_similarity = similarity.gather(-1, partner[..., None])[..., 0]
    distance, nearest = distance.topk(max(1, round(share * partner_similarity.shape[-1])), largest=False)
    counted = distance.isfinite()
    total = torch.where(counted, partner_similarity.gather(-1, nearest), 0.0).sum(-1)
    return total / counted.sum(-1).clamp(min=1)
