"""SimSiam against numbers of Python; where the gradient stops."""

from __future__ import annotations

import copy

import pytest
import torch
from objectives.pairs import batch_in_double, embedded, made, unrelated

from medssl.objectives.simsiam import SimSiam

SMALL = {"projection": (16, 16, 8), "prediction": 4}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_compares_predictions_with_the_other_view(ndim):
    objective = made(SimSiam, ndim, **SMALL)
    batch, step = batch_in_double(objective)
    z = embedded(objective, batch)
    with torch.no_grad():
        predicted = copy.deepcopy(objective.predictor)(z)
    expected = unrelated(predicted, torch.cat((z[4:], z[:4])))
    assert float(objective(batch, step).total.detach()) == pytest.approx(expected, rel=1e-9)


def test_the_gradient_stops_at_the_target():
    """With a predictor that holds one value, nothing is left that a gradient could reach in the encoder."""
    objective = made(SimSiam, **SMALL)
    torch.nn.init.zeros_(objective.predictor.layers[-1].weight)
    torch.nn.init.ones_(objective.predictor.layers[-1].bias)
    objective(*batch_in_double(objective)).total.backward()
    assert all(not p.grad.any() for p in objective.encoder.parameters())
    assert objective.predictor.layers[-1].bias.grad.any()


def test_a_batch_norm_follows_the_last_layer_of_the_projection():
    objective = made(SimSiam, **SMALL)
    z = embedded(objective, batch_in_double(objective)[0])
    torch.testing.assert_close(z.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    assert objective.projection.layers[-1].bias is None
