"""BYOL against numbers of Python; what the teacher does; the alarm where all embeddings become alike."""

from __future__ import annotations

import copy

import pytest
import torch
from objectives.pairs import batch_in_double, embedded, made, optimizer_of, trained, unrelated

from medssl.metrics.health import alarms
from medssl.objectives.byol import BYOL
from medssl.types import UserError

SMALL = {"projection": (16, 8), "prediction": 16}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_compares_predictions_with_the_teachers_other_view(ndim):
    objective = made(BYOL, ndim, **SMALL)
    trained(objective, optimizer_of(objective), range(2))  # the teacher differs from the student
    batch, step = batch_in_double(objective)
    network = copy.deepcopy(objective)
    with torch.no_grad():
        predicted = network.predictor(embedded(objective, batch))
        images = torch.cat([view.image for view in batch.views])
        targets = network.teacher["projection"](network.teacher["encoder"](images).pooled)
    expected = unrelated(predicted, torch.cat((targets[4:], targets[:4])))
    assert float(objective(batch, step).total.detach()) == pytest.approx(expected, rel=1e-9)


def test_the_teacher_has_statistics_of_the_batch_and_no_gradient():
    objective = made(BYOL, **SMALL)
    batch, step = batch_in_double(objective)
    norms = [m for m in objective.teacher.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(norm.training for norm in norms)
    objective(batch, step).total.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert not any(norm.training for norm in norms if objective.eval())


@pytest.mark.parametrize(("momentum", "moves"), [((1.0, 1.0), 0.0), ((0.0, 0.0), 1.0), ((0.75, 0.75), 0.25)])
def test_the_teacher_moves_by_what_the_momentum_leaves(momentum, moves):
    objective = made(BYOL, momentum=momentum, **SMALL)
    before = [p.clone() for p in objective.teacher["encoder"].parameters()]
    trained(objective, optimizer_of(objective), range(1))
    pairs = zip(before, objective.teacher["encoder"].parameters(), objective.encoder.parameters(), strict=True)
    for old, teacher, student in pairs:
        torch.testing.assert_close(teacher, old + moves * (student - old))


def test_loaded_weights_reach_the_teacher():
    objective = made(BYOL, **SMALL)
    with torch.no_grad():
        next(objective.encoder.parameters()).add_(1)
    objective.after_load()
    assert torch.equal(next(objective.teacher["encoder"].parameters()), next(objective.encoder.parameters()))


def test_equal_directions_cost_nothing_and_are_reported():
    """One direction for everything: loss 0 and uniformity 0, which health reports as collapse."""
    objective = made(BYOL, **SMALL)
    for network in (objective.predictor, objective.projection, objective.teacher["projection"]):
        torch.nn.init.zeros_(network.layers[-1].weight)
        torch.nn.init.ones_(network.layers[-1].bias)
    loss = objective(*batch_in_double(objective))
    assert float(loss.total.detach()) == pytest.approx(0, abs=1e-9)
    assert float(loss.terms["uniformity"]) == pytest.approx(0, abs=1e-9)
    row = {name: float(term) for name, term in loss.terms.items()}
    history = [{**row, "step": 1.0, "loss": 1.9, "uniformity": -1.0}, {**row, "step": 300.0}, {**row, "step": 310.0}]
    (alarm,) = alarms(history, settled=250)
    assert alarm.kind == "collapse"
    assert "what the loss compares has collapsed: the loss is 0.0% of that of unrelated embeddings" in alarm.message
    spread = [{**part, "uniformity": -1.0} for part in history]
    assert not alarms(spread, settled=250)


def test_a_momentum_above_1_is_refused():
    with pytest.raises(UserError, match=r"momentum: must be from 0 to 1"):
        made(BYOL, momentum=(0.9, 1.1), **SMALL)
