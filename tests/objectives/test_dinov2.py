"""DINOv2: embeddings that are spread, and the Gram stage."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from objectives.distilled import make

from medssl.nn.self_distillation import PATCH, POOLED
from medssl.objectives.contract import example_batch
from medssl.objectives.dinov2 import DINOv2, Gram, Regularization
from medssl.ops.gram import gram_distance
from medssl.ops.masking import Masks
from medssl.ops.spreading import kde, koleo


@pytest.mark.parametrize(("spread", "function"), [("koleo", koleo), ("kde", kde)])
def test_embeddings_of_each_global_view_are_spread(spread, function):
    objective = make(DINOv2, regularization=Regularization(spread, 0.3), masks=Masks((0.1, 0.5), 1.0))
    batch, step = example_batch(objective.needs, 1)
    loss = objective(batch, step)
    with torch.no_grad():
        want = sum(function(objective.encoder(view.image).pooled) for view in batch.views[:2])
    torch.testing.assert_close(loss.terms["spread"], want)
    predicted = loss.terms[POOLED] + loss.terms[PATCH]
    torch.testing.assert_close(loss.total.detach(), predicted + 0.3 * want)


def test_the_gram_distance_is_that_of_loops_and_free_of_rotations():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    total = 0.0
    for a, b in zip(x, y, strict=True):
        for i in range(3):
            for j in range(3):
                one = float(a[i] @ a[j] / (a[i].norm() * a[j].norm()))
                other = float(b[i] @ b[j] / (b[i].norm() * b[j].norm()))
                total += (one - other) ** 2
    assert gram_distance(x, y).item() == pytest.approx(total / 18, rel=1e-12)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert gram_distance(x, x @ rotation).item() == pytest.approx(0, abs=1e-24)
    counted = torch.tensor([[True, True, False], [False, False, False]])
    assert gram_distance(x, y, counted).item() == pytest.approx(gram_distance(x[:1, :2], y[:1, :2]).item() / 2)


@pytest.mark.parametrize("resolution", [1, 2])
def test_the_gram_teacher_is_the_teacher_of_an_earlier_step(resolution):
    regularization = Regularization(gram=Gram(2.0, start=0.5, every=0.2, resolution=resolution))
    objective = make(DINOv2, regularization=regularization)
    batch, step = example_batch(objective.needs, 1)
    renewed = []
    for index in range(10):
        now = replace(step, index=index, total=10)
        loss = objective(batch, now)
        assert ("gram" in loss.terms) == (index >= 5)
        if "gram" in loss.terms:
            rest = loss.terms[POOLED] + loss.terms[PATCH] + 0.1 * loss.terms["spread"]
            torch.testing.assert_close(loss.total.detach(), rest + 2 * loss.terms["gram"])
            assert loss.terms["gram"] > 0
        with torch.no_grad():
            for parameter in objective.encoder.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        before = copy.deepcopy(objective.gram_teacher.state_dict())
        objective.after_step(now)
        state = objective.gram_teacher.state_dict()
        if any(not torch.equal(state[key], before[key]) for key in state):
            renewed.append(index + 1)
            assert all(torch.equal(value, objective.teacher.state_dict()[key]) for key, value in state.items())
    assert renewed == [5, 7, 9]
