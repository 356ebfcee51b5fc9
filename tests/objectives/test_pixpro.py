"""PixPro against loops over positions; pairs by coordinates after flips, shifts and scales."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from objectives.pairs import batch_in_double, made
from objectives.small import SIZES

from medssl.objectives.contract import example_batch
from medssl.objectives.pixpro import PixPro
from medssl.ops.regions import nearest_places, same_places

SMALL = {"projection": (16, 8)}


def cos(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / max(math.hypot(*x) * math.hypot(*y), 1e-300)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_that_of_loops_over_pairs(ndim):
    objective = made(PixPro, ndim, **SMALL)
    batch, step = batch_in_double(objective, scans=2)
    network = copy.deepcopy(objective)
    with torch.no_grad():
        images = torch.cat([view.image for view in batch.views])
        x = network.projection(network.encoder(images).maps[-1])
        t = network.transform(x).flatten(2).mT.tolist()
        targets = network.teacher["projection"](network.teacher["encoder"](images).maps[-1]).flatten(2).mT.tolist()
    x = x.flatten(2).mT.tolist()
    pairs, losses = objective.pairs(batch), []
    for view, sample, other in ((0, 0, 2), (0, 1, 3), (1, 2, 0), (1, 3, 1)):
        here = pairs[sample % 2] if view == 0 else pairs[sample % 2].T
        errors = []
        for i, j in here.nonzero().tolist():
            weights = [max(cos(x[sample][i], row), 0) ** 2 for row in x[sample]]
            y = [sum(w * row[d] for w, row in zip(weights, t[sample], strict=True)) for d in range(8)]
            errors.append(2 - 2 * cos(y, targets[other][j]))
        losses.append(sum(errors) / len(errors))
    assert float(objective(batch, step).total.detach()) == pytest.approx(sum(losses) / 4, rel=1e-7)


def views(affine: torch.Tensor, ndim: int = 2):
    """Two equal views, the second one behind an affine from its voxels to those of the first."""
    batch, _ = example_batch(made(PixPro, ndim, **SMALL).needs, 1, scans=2)
    first = replace(
        batch.views[0], valid=torch.ones_like(batch.views[0].valid), scored=torch.ones_like(batch.views[0].valid)
    )
    return first, replace(first, world_affine=first.world_affine.double() @ affine)


@pytest.mark.parametrize("ndim", [2, 3])
def test_cells_of_the_same_view_pair_with_themselves(ndim):
    first, second = views(torch.eye(ndim + 1, dtype=torch.float64), ndim)
    cells = [side // 4 for side in SIZES[ndim]]
    assert torch.equal(same_places(first, second, cells, 0.2)[0], torch.eye(math.prod(cells), dtype=torch.bool))


def test_a_flip_pairs_mirrored_cells_and_a_shift_moves_them():
    height, width = SIZES[2]
    flip = torch.tensor([[1.0, 0, 0], [0, -1, width - 1], [0, 0, 1]], dtype=torch.float64)
    match, near = nearest_places(*views(flip), [4, 6], 0.3)
    assert match[0].view(4, 6).tolist() == [[6 * row + 5 - column for column in range(6)] for row in range(4)]
    assert near.all()
    shift = torch.tensor([[1.0, 0, height / 4], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    match, near = nearest_places(*views(shift), [4, 6], 0.3)
    assert match[0].view(4, 6)[1:].tolist() == [[6 * row + column for column in range(6)] for row in range(3)]
    assert near[0].view(4, 6).any(1).tolist() == [False, True, True, True]


def test_views_without_overlap_have_no_pair_and_cost_nothing():
    objective = made(PixPro, **SMALL)
    batch, step = batch_in_double(objective)
    far = batch.views[1].world_affine.clone()
    far[:, 0, -1] += 1000
    batch = replace(batch, views=(batch.views[0], replace(batch.views[1], world_affine=far)))
    loss = objective(batch, step)
    assert float(loss.total.detach()) == 0
    loss.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters() if p.requires_grad)


def test_padding_has_no_pair():
    first, second = views(torch.eye(3, dtype=torch.float64))
    valid = first.valid.clone()
    valid[:, :, :16] = False
    pairs = same_places(replace(first, valid=valid), second, [4, 6], 0.7)
    assert pairs[0].any(1).view(4, 6).any(1).tolist() == [False, False, True, True]


def test_accumulation_counts_crops_with_pairs():
    objective = made(PixPro, **SMALL)
    batch, step = batch_in_double(objective)
    far = batch.views[1].world_affine.clone()
    far[:3, 0, -1] += 1000
    batch = replace(batch, views=(batch.views[0], replace(batch.views[1], world_affine=far)))
    assert int(objective.counts(batch, step)) == 1
    whole = float(objective(batch, step).total.detach())
    halved = objective(batch, replace(step, counts=torch.tensor(2.0)))
    assert float(halved.total.detach()) == pytest.approx(whole / 2, rel=0.1)
