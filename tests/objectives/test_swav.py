"""SwAV against loops over views, Sinkhorn in NumPy; the queue, frozen prototypes and the alarms of collapse."""

from __future__ import annotations

import copy
import math

import ddp
import numpy as np
import pytest
import torch
from objectives.pairs import batch_in_double, optimizer_of, trained
from objectives.small import LOCAL, SIZES, encoder

from medssl.metrics.health import alarms
from medssl.objectives.base import select_rows
from medssl.objectives.swav import Clusters, SwAV
from medssl.ops.collectives import rank, world_size
from medssl.types import UserError, ViewSpec


def made(ndim: int = 2, *, local_views: int = 2, **clusters) -> SwAV:
    torch.manual_seed(0)
    views = {"view": ViewSpec(SIZES[ndim]), "local_view": ViewSpec(LOCAL[ndim], kind="local")}
    options = Clusters(**{"count": 5, "queue": 0} | clusters)
    objective = SwAV(encoder(ndim), **views, local_views=local_views, clusters=options, projection=(16, 8))
    return objective.double().train()


def assigned(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Shares of columns and rows made equal in turn, starting from rows that sum to 1."""
    shares = np.exp(scores / epsilon)
    shares /= shares.sum(1, keepdims=True)
    for _ in range(3):
        shares /= shares.sum(0, keepdims=True)
        shares /= shares.sum(1, keepdims=True)
    return shares


def scores_of(objective: SwAV, batch) -> list[np.ndarray]:
    network = copy.deepcopy(objective)
    with torch.no_grad():
        pooled = [
            network.encoder(torch.cat([v.image for v in part])).pooled for part in (batch.views[:2], batch.views[2:])
        ]
        z = torch.nn.functional.normalize(network.projection(torch.cat(pooled)), dim=1)
        prototypes = torch.nn.functional.normalize(network.prototypes, dim=1)
        return list((z @ prototypes.T).unflatten(0, (4, 4)).numpy())


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_view_is_compared_with_the_assignments_of_the_other_large_views(ndim):
    objective = made(ndim)
    batch, step = batch_in_double(objective)
    scores = scores_of(objective, batch)
    losses = []
    for large in range(2):
        targets = assigned(scores[large], 0.05)
        for other in (number for number in range(4) if number != large):
            logits = scores[other] / 0.1
            logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            losses.append(-(targets * logs).sum(1).mean())
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(np.mean(losses), rel=1e-9)
    assert float(loss.terms["chance"]) == pytest.approx(math.log(5))


def test_a_full_queue_takes_part_in_the_assignment():
    objective = made(queue=8, queue_from=0.0)
    batch, step = batch_in_double(objective)
    scores = torch.from_numpy(scores_of(objective, batch)[0])
    alone = objective.assigned(0, scores, step).numpy()
    np.testing.assert_allclose(alone, assigned(scores.numpy(), 0.05), rtol=1e-9)  # random rows do not count
    trained(objective, optimizer_of(objective), range(2))
    rows = torch.nn.functional.normalize(objective.queues[0].rows, dim=1)
    prototypes = torch.nn.functional.normalize(objective.prototypes.detach(), dim=1)
    every = np.concatenate((scores.numpy(), (rows @ prototypes.T).numpy()))
    np.testing.assert_allclose(objective.assigned(0, scores, step).numpy(), assigned(every, 0.05)[:4], rtol=1e-6)


def with_a_queue(scores: torch.Tensor) -> torch.Tensor:
    objective = made(queue=8, queue_from=0.0)
    objective.queues[0].filled.fill_(8)
    batch, step = batch_in_double(objective)
    rows = range(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    return objective.assigned(0, scores[list(rows)], select_rows(batch, step, rows)[1])


@pytest.mark.ddp
def test_two_processes_count_the_queue_once():
    scores = torch.linspace(-1, 1, 20, dtype=torch.float64).sin().view(4, 5)
    torch.testing.assert_close(torch.cat(ddp.run_two(with_a_queue, scores)), with_a_queue(scores))


def test_prototypes_stay_at_first():
    objective = made(frozen=0.02)  # the first two steps of a hundred
    before = objective.prototypes.detach().clone()
    optimizer = optimizer_of(objective)
    trained(objective, optimizer, range(2))
    assert torch.equal(objective.prototypes, before)
    trained(objective, optimizer, range(2, 3))
    assert not torch.equal(objective.prototypes, before)


@pytest.mark.parametrize(("scale", "kind"), [(0.0, "teacher"), (1.0, None)])
def test_assignments_that_say_nothing_are_reported(scale, kind):
    """Equal scores of all prototypes: every assignment is uniform."""
    objective = made()
    with torch.no_grad():
        objective.prototypes.copy_(scale * objective.prototypes + (1 - scale))
    loss = objective(*batch_in_double(objective))
    entropy, chance = float(loss.terms["teacher_entropy"]), math.log(5)
    assert (entropy > 0.99 * chance) == (kind is not None)
    history = [
        {"step": step, "loss": chance * 0.9, "chance": chance, "teacher_entropy": entropy} for step in (1, 300, 310)
    ]
    assert [alarm.kind for alarm in alarms(history, settled=250)] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", 1, "at least 2"),
        ("epsilon", 0.0, "above 0"),
        ("queue", -1, "0 or more"),
        ("frozen", 2.0, "from 0 to 1"),
    ],
)
def test_clusters_out_of_range_are_refused(key, value, expected):
    with pytest.raises(UserError, match=rf"clusters\.{key}: must be {expected}"):
        Clusters(**{key: value})
