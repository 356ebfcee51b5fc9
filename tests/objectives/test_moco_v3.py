"""MoCo v3 against the formula by loops, the frozen patch projection, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from objectives.pairs import batch_in_double, embedded, made, optimizer_of, trained
from objectives.small import SIZES, vit

from medssl.objectives.base import select_rows
from medssl.objectives.moco_v3 import MoCoV3
from medssl.types import UserError, ViewSpec

SMALL = {"projection": (16, 16, 8), "prediction": 16}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_the_formula(ndim):
    objective = made(MoCoV3, ndim, temperature=0.5, **SMALL)
    trained(objective, optimizer_of(objective), range(2))
    batch, step = batch_in_double(objective)
    network = copy.deepcopy(objective)
    with torch.no_grad():
        q = network.predictor(embedded(objective, batch))
        images = torch.cat([view.image for view in batch.views])
        k = network.teacher["projection"](network.teacher["encoder"](images).pooled)
    q, k = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
    directions = []
    for rows, keys in ((q[:4], k[4:]), (q[4:], k[:4])):
        directions.append(torch.nn.functional.cross_entropy(rows @ keys.T / 0.5, torch.arange(4)) * 2 * 0.5)
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(float(sum(directions)), rel=1e-9)
    assert float(loss.terms["chance"]) == pytest.approx(2 * math.log(4))  # two directions of 2 x 0.5 log 4


def test_patches_are_projected_at_random_forever():
    torch.manual_seed(0)
    objective = MoCoV3(vit(2), view=ViewSpec(SIZES[2]), **SMALL).double()
    before = {name: p.clone() for name, p in objective.encoder.named_parameters()}
    trained(objective, optimizer_of(objective), range(1))
    fixed = {name for name, p in objective.encoder.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in before if name.startswith("patch_embed.")} <= fixed
    assert any(name.startswith("blocks.") for name in before.keys() - fixed)


def test_one_crop_has_nothing_to_be_compared_with():
    objective = made(MoCoV3, **SMALL).eval()
    batch, step = batch_in_double(objective)
    message = "MoCo v3 tells crops from each other, and the batch has one: take a larger training.batch_size"
    with pytest.raises(UserError, match=f"^{message}$"):
        objective(*select_rows(batch, step, [0]))
