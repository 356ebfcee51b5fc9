"""Affinities of cells against loops, and what must not count."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medssl.ops import coordinates as co
from medssl.ops.affinity import Cells, local_affinity, map_cells
from medssl.types import View

SHAPES = {2: ((12, 20), (3, 5), (24, 40)), 3: ((8, 12, 4), (2, 3, 1), (20, 24, 10))}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view_of(rows: int, ndim: int, seed: int) -> View:
    """Views that are turned, scaled and moved, of scans of 1, 2 and 3 mm that lie anywhere."""
    shape, _, stored = SHAPES[ndim]
    angles = 0.3 * random(rows, 1 if ndim == 2 else 3, seed=seed)
    scale = 1 + 0.2 * random(rows, ndim, seed=seed + 1).tanh()
    affine = co.compose(co.translation(3 * random(rows, ndim, seed=seed + 2)), co.rotation(angles), co.scaling(scale))
    spacing = torch.arange(1.0, ndim + 1, dtype=torch.float64).expand(rows, ndim)
    # the same scan for the same row, whatever the view
    world = co.compose(co.translation(100 * random(rows, ndim, seed=77)), co.scaling(spacing), affine)
    generator = torch.Generator().manual_seed(seed + 3)
    valid = torch.rand(rows, 1, *shape, generator=generator) < 0.9
    valid[0, :, : shape[0] // 2] = False
    scored = torch.ones_like(valid)
    scored[1, ..., shape[-1] // 2 :] = False
    image = torch.zeros(rows, 1, *shape, dtype=torch.float64)
    size = torch.tensor(stored).expand(rows, ndim)
    return View(image, affine, world, spacing, size, valid, scored, torch.ones(rows, 1, dtype=torch.bool))


def pair_by_loops(one, other, share: float) -> float:
    """Both terms from the cells of one node to those of another: (features, counted, places in mm) of each."""
    values = []
    (x, x_counted, x_place), (y, y_counted, y_place) = one, other
    for kind in ("place", "feature"):
        found = []
        for p in range(len(x)):
            if kind == "place":
                far = [math.dist(x_place[p], y_place[q]) for q in range(len(y))]
                q = int(np.argmin(far))
                far[q] = far[q] if y_counted[q] else math.inf
            else:
                far = [math.dist(x[p], y[q]) if y_counted[q] else math.inf for q in range(len(y))]
                q = int(np.argmin(far))
            if x_counted[p] and math.isfinite(far[q]):
                cosine = float(x[p] @ y[q]) / math.sqrt(float(x[p] @ x[p]) * float(y[q] @ y[q]))
                found.append((far[q], cosine))
        kept = [cosine for _, cosine in sorted(found)[: max(1, round(share * len(x)))]]
        values.append(sum(kept) / len(kept) if kept else 0.0)
    return sum(values) / 2


def nodes_by_loops(features: torch.Tensor, view: View, size) -> list:
    """Features, whether they count, and place of the cells of every node, for a map of a cell per block of voxels."""
    shape = view.image.shape[2:]
    step = [extent // count for extent, count in zip(shape, size, strict=True)]
    nodes = []
    for row in range(len(features)):
        linear, usable = view.world_affine[row].numpy(), (view.valid & view.scored)[row, 0].numpy()
        stored = np.append((view.source_shape[row].numpy() - 1) / 2, 1)
        middle = (linear @ np.linalg.inv(view.affine[row].numpy()) @ stored)[:-1]
        cells = []
        for place in np.ndindex(*size):
            box = tuple(slice(k * s, k * s + s) for k, s in zip(place, step, strict=True))
            center = [k * s + (s - 1) / 2 for k, s in zip(place, step, strict=True)]
            where = (linear @ np.append(center, 1))[:-1] - middle
            cells.append((features[row][(slice(None), *place)].numpy(), usable[box].mean() >= 0.5, where))
        nodes.append(tuple(zip(*cells, strict=True)))
    return nodes


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_local_affinity_is_its_definition(ndim, share):
    size = SHAPES[ndim][1]
    maps = [random(6, 5, *size, seed=seed) for seed in (10, 20)]
    views = [view_of(6, ndim, seed) for seed in (30, 40)]
    cells = [map_cells(x, view, nodes=3, max_cells=9) for x, view in zip(maps, views, strict=True)]
    found = local_affinity(*cells, share=share)
    assert found.shape == (2, 3, 3)
    assert float(found.abs().max()) <= 1
    first, second = (nodes_by_loops(x, view, size) for x, view in zip(maps, views, strict=True))
    for graph in range(2):
        for i in range(3):
            for a in range(3):
                one, other = first[3 * graph + i], second[3 * graph + a]
                expected = (pair_by_loops(one, other, share) + pair_by_loops(other, one, share)) / 2
                assert float(found[graph, i, a]) == pytest.approx(expected, abs=1e-9), (graph, i, a)


def test_identical_views_fit_fully():
    view = view_of(4, 2, 1)
    view = replace(view, valid=torch.ones_like(view.valid), scored=torch.ones_like(view.scored))
    cells = map_cells(random(4, 6, 3, 5, seed=2), view, nodes=4, max_cells=9)
    found = local_affinity(cells, cells, share=1.0)[0]
    torch.testing.assert_close(found.diagonal(), torch.ones(4, dtype=torch.float64))
    assert float((found - 2 * torch.eye(4)).max()) < 1 - 1e-6  # less than full everywhere else


def test_what_is_not_counted_has_no_influence_and_no_gradient():
    view = view_of(4, 2, 5)
    features = random(4, 6, 3, 5, seed=6)
    cells = map_cells(features, view, nodes=4, max_cells=9)
    assert 0 < int(cells.counted.sum()) < cells.counted.numel()
    changed = torch.where(cells.counted[0][..., None], cells.features[0], 50 * random(4, 15, 6, seed=7))
    other = cells._replace(features=changed[None].requires_grad_())
    whole = map_cells(random(4, 6, 3, 5, seed=8), view_of(4, 2, 9), nodes=4, max_cells=9)
    found = local_affinity(other, whole, share=0.4)
    torch.testing.assert_close(found, local_affinity(cells, whole, share=0.4))
    (gradient,) = torch.autograd.grad(found.sum(), other.features)
    assert float(gradient[~cells.counted].abs().max()) == 0
    assert float(gradient[cells.counted].abs().max()) > 0
    nothing = cells._replace(counted=torch.zeros_like(cells.counted))
    assert float(local_affinity(nothing, whole, share=0.4).abs().max()) == 0


def test_finer_maps_are_averaged_and_keep_their_places():
    view = view_of(2, 2, 1)
    cells = map_cells(random(2, 4, 6, 10, seed=1), view, nodes=2, max_cells=5)
    assert cells.features.shape == (1, 2, 25, 4)
    torch.testing.assert_close(
        cells.features[0, 0, 0], random(2, 4, 6, 10, seed=1)[0, :, :2, :2].mean((1, 2))
    )  # the first cell is the mean of rows 0 and 1 and columns 0 and 1: its center lies between them
    torch.testing.assert_close(cells.centers[0], torch.tensor([1.5, 1.5], dtype=torch.float64))


def test_a_permuted_view_permutes_columns():
    views = [view_of(4, 2, seed) for seed in (1, 2)]
    one, other = (
        map_cells(random(4, 6, 3, 5, seed=s), v, nodes=4, max_cells=9) for s, v in zip((3, 4), views, strict=True)
    )
    order = [2, 0, 3, 1]
    moved = Cells(other.features[:, order], other.counted[:, order], other.affine[:, order], other.centers)
    found = local_affinity(one, other, share=0.4)
    torch.testing.assert_close(local_affinity(one, moved, share=0.4), found[:, :, order])
    torch.testing.assert_close(local_affinity(other, one, share=0.4), found.mT)


def test_autocast_changes_nothing():
    views = [view_of(4, 2, seed) for seed in (1, 2)]
    maps = [random(4, 6, 3, 5, seed=seed).float() for seed in (3, 4)]
    cells = [map_cells(x, view, nodes=4, max_cells=9) for x, view in zip(maps, views, strict=True)]
    plain = local_affinity(*cells, share=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        cells = [map_cells(x, view, nodes=4, max_cells=9) for x, view in zip(maps, views, strict=True)]
        assert torch.equal(local_affinity(*cells, share=0.4), plain)
