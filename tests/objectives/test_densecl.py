"""DenseCL against loops over positions, both ways of matching, and both queues."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from objectives.pairs import batch_in_double, made, optimizer_of, trained

from medssl.objectives.densecl import DenseCL

SMALL = {"projection": (16, 8), "queue": 10}


def similar(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def nce(a, p, negatives, temperature=0.2):
    near = math.exp(similar(a, p) / temperature)
    return -math.log(near / (near + sum(math.exp(similar(a, n) / temperature) for n in negatives)))


@pytest.mark.parametrize(("ndim", "matching"), [(2, "places"), (3, "places"), (2, "features")])
def test_both_levels_are_those_of_loops(ndim, matching):
    objective = made(DenseCL, ndim, matching=matching, **SMALL)
    trained(objective, optimizer_of(objective), range(1))
    batch, step = batch_in_double(objective, scans=2)
    network = copy.deepcopy(objective)
    with torch.no_grad():
        one, two = network.encoder(batch.views[0].image), network.teacher["encoder"](batch.views[1].image)
        q, r = network.projection(one.pooled).tolist(), network.dense_projection(one.maps[-1]).flatten(2).mT.tolist()
        k = network.teacher["projection"](two.pooled).tolist()
        s = network.teacher["dense_projection"](two.maps[-1]).flatten(2).mT.tolist()
        maps = [part.maps[-1].flatten(2).mT.tolist() for part in (one, two)]
    if matching == "places":
        match, near = (part.tolist() for part in objective.matches(batch))
    else:
        match = [
            [max(range(len(y)), key=lambda j, a=a, y=y: similar(a, y[j])) for a in x]
            for x, y in zip(*maps, strict=True)
        ]
        near = [[True] * len(row) for row in match]
    whole = [nce(a, b, objective.queue.rows.tolist()) for a, b in zip(q, k, strict=True)]
    rows = objective.dense_queue.rows.tolist()
    dense = [nce(r[b][i], s[b][j], rows) for b in range(2) for i, j in enumerate(match[b]) if near[b][i]]
    expected = sum(whole) / len(whole) / 2 + sum(dense) / len(dense) / 2
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-6)
    objective.after_step(step)
    means = [[sum(position[d] for position in part) / len(part) for d in range(8)] for part in s]
    torch.testing.assert_close(objective.dense_queue.rows[-2:], torch.tensor(means, dtype=torch.float64))


def test_counts_are_of_matched_positions_where_places_match():
    objective = made(DenseCL, **SMALL)
    batch, step = batch_in_double(objective)
    assert int(objective.counts(batch, step)) == int(objective.matches(batch)[1].sum())
    assert made(DenseCL, matching="features", **SMALL).counts(batch, step) is None
