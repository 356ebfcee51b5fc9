"""NNCLR against loops, and what enters the queue."""

from __future__ import annotations

import copy

import pytest
import torch
from objectives.pairs import batch_in_double, embedded, made, optimizer_of, trained

from medssl.objectives.base import select_rows
from medssl.objectives.nnclr import NNCLR
from medssl.types import UserError

SMALL = {"projection": (16, 16, 8), "prediction": 16, "queue": 12}


@pytest.mark.parametrize("ndim", [2, 3])
def test_neighbors_of_one_view_are_compared_with_predictions_of_the_other(ndim):
    objective = made(NNCLR, ndim, temperature=0.3, **SMALL)
    trained(objective, optimizer_of(objective), range(2))
    batch, step = batch_in_double(objective)
    z = embedded(objective, batch)
    with torch.no_grad():
        p = torch.nn.functional.normalize(copy.deepcopy(objective.predictor)(z), dim=1)
    z = torch.nn.functional.normalize(z, dim=1)
    queue = torch.nn.functional.normalize(objective.queue.rows, dim=1)
    neighbors = torch.stack([min(queue, key=lambda row: float((row - one).square().sum())) for one in z])
    pairs = ((neighbors[:4], p[4:]), (neighbors[4:], p[:4]))
    losses = [torch.nn.functional.cross_entropy(n @ other.T / 0.3, torch.arange(4)) for n, other in pairs]
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(float(sum(losses)) / 2, rel=1e-6)


def test_the_first_view_enters_the_queue():
    objective = made(NNCLR, **SMALL)
    batch, step = batch_in_double(objective)
    z = embedded(objective, batch)
    objective(batch, step)
    objective.after_step(step)
    torch.testing.assert_close(objective.queue.rows[-4:], z[:4])


def test_one_crop_has_nothing_to_be_compared_with():
    objective = made(NNCLR, **SMALL).eval()
    message = "NNCLR tells crops from each other, and the batch has one: take a larger training.batch_size"
    with pytest.raises(UserError, match=f"^{message}$"):
        objective(*select_rows(*batch_in_double(objective), [0]))
