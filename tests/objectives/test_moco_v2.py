"""MoCo v2 against the formula by loops; the queue: order, resuming, processes."""

from __future__ import annotations

import copy
import math

import ddp
import pytest
import torch
from objectives.pairs import batch_in_double, made, optimizer_of, trained
from safetensors.torch import load, save

from medssl.objectives.moco_v2 import MoCoV2
from medssl.ops.collectives import rank, world_size
from medssl.types import UserError

SMALL = {"projection": (16, 8), "queue": 10}


def similar(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_the_formula(ndim):
    objective = made(MoCoV2, ndim, temperature=0.3, **SMALL)
    trained(objective, optimizer_of(objective), range(2))
    batch, step = batch_in_double(objective)
    network = copy.deepcopy(objective)
    with torch.no_grad():
        q = network.projection(network.encoder(batch.views[0].image).pooled).tolist()
        k = network.teacher["projection"](network.teacher["encoder"](batch.views[1].image).pooled).tolist()
    losses = []
    for a, p in zip(q, k, strict=True):
        near = math.exp(similar(a, p) / 0.3)
        losses.append(
            -math.log(near / (near + sum(math.exp(similar(a, n) / 0.3) for n in objective.queue.rows.tolist())))
        )
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert float(loss.terms["chance"]) == pytest.approx(math.log(11))


def test_rows_of_the_present_batch_enter_after_the_step():
    objective = made(MoCoV2, **SMALL)
    batch, step = batch_in_double(objective)
    before = objective.queue.rows.clone()
    objective(batch, step).total.backward()
    objective(batch, step)
    assert torch.equal(objective.queue.rows, before)
    objective.after_step(step)
    assert torch.equal(objective.queue.rows[:2], before[8:])
    assert int(objective.queue.filled) == 8


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit():
    whole = made(MoCoV2, **SMALL)
    losses = trained(whole, optimizer_of(whole), range(6))
    first, second = made(MoCoV2, **SMALL), made(MoCoV2, **SMALL)
    torch.nn.init.zeros_(second.queue.rows)
    trained(first, optimizer_of(first), range(3))
    second.load_state_dict(load(save({name: value.clone() for name, value in first.state_dict().items()})))
    assert trained(second, optimizer_of(second), range(3, 6)) == losses[3:]
    assert torch.equal(second.queue.rows, whole.queue.rows)
    assert second.queue.full


def test_it_has_no_rows_of_evaluation():
    objective = made(MoCoV2, **SMALL).eval()
    batch, step = batch_in_double(objective)
    before = objective.queue.rows.clone()
    objective(batch, step)
    objective.after_step(step)
    assert torch.equal(objective.queue.rows, before)


def queued(rows):
    """Three steps of a queue, in each the rows of this process; samples alternate between processes."""
    from medssl.nn.queue import Queue

    torch.manual_seed(0)
    queue = Queue(5, 3).double().train()
    for step in range(3):
        samples = [4 * step + number for number in range(rank(), 4, world_size())]
        queue.add(rows[samples], samples)
        queue.after_step()
    return queue.rows, int(queue.filled)


@pytest.mark.ddp
def test_two_processes_fill_the_queue_as_one_does():
    rows = torch.randn(12, 3, dtype=torch.float64)
    expected, filled = queued(rows)
    assert torch.equal(expected, rows[-5:])
    for found, count in ddp.run_two(queued, rows):
        assert torch.equal(found, expected)
        assert count == filled == 5


def test_a_queue_without_rows_is_refused():
    with pytest.raises(UserError, match=r"queue: must be at least 1"):
        made(MoCoV2, projection=(16, 8), queue=0)
