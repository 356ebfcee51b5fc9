"""Epps-Pulley along random directions: the closed form, its value for normal rows, what raises it, two processes."""

from __future__ import annotations

import math

import ddp
import pytest
import torch

from medssl.ops.collectives import rank, reduce_sum, world_size
from medssl.ops.normality import NULL, epps_pulley, random_directions


def normal(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(x):
    """The integral, solved: pairs of samples, samples with the normal distribution, and that with itself."""
    n = len(x)
    pairs = sum(math.exp(-0.5 * float(a - b) ** 2) for a in x for b in x) * math.sqrt(2 * math.pi) / n**2
    mixed = 2 * sum(math.exp(-0.25 * float(a) ** 2) for a in x) * math.sqrt(math.pi) / n
    return n * (pairs - mixed + math.sqrt(2 * math.pi / 3))


def test_the_sum_over_points_is_the_closed_form():
    x, directions = normal(9, 4), random_directions(4, 5, 0, 0).double()
    found = epps_pulley(x, directions)
    for column, value in enumerate(found):
        assert value.item() == pytest.approx(closed_form(x @ directions[:, column]), rel=1e-4)


def test_normal_rows_give_the_expectation():
    values = [epps_pulley(normal(64, 16, seed), random_directions(16, 64, 0, seed)).mean() for seed in range(40)]
    assert float(torch.stack(values).mean()) == pytest.approx(NULL, rel=0.05)
    assert pytest.approx(1.0594, abs=1e-4) == NULL


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 2 * x, lambda x: 0.3 * x, lambda x: x + 1, lambda x: x[:1].expand_as(x),
        lambda x: x[:, :1].expand_as(x),
    ],
    ids=["longer", "shorter", "shifted", "collapsed", "one channel"],
)  # fmt: skip
def test_other_distributions_raise_it(change):
    x, directions = normal(256, 16), random_directions(16, 128, 0, 0)
    assert epps_pulley(change(x), directions).mean() > 3 * epps_pulley(x, directions).mean()


def test_rotating_rows_and_directions_changes_nothing():
    x, directions = normal(16, 6), random_directions(6, 8, 0, 0).double()
    rotation = torch.linalg.qr(normal(6, 6, 1)).Q
    torch.testing.assert_close(epps_pulley(x @ rotation, rotation.mT @ directions), epps_pulley(x, directions))


def test_directions_are_unit_vectors_that_belong_to_the_step():
    directions = random_directions(8, 20, 3, 7)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(20, dtype=directions.dtype))
    assert torch.equal(directions, random_directions(8, 20, 3, 7))
    assert not torch.equal(directions, random_directions(8, 20, 3, 8))
    assert not torch.equal(directions, random_directions(8, 20, 4, 7))


def test_groups_are_judged_apart_and_half_precision_in_float32():
    x, directions = normal(10, 4).float(), random_directions(4, 3, 0, 0).float()
    groups = epps_pulley(x.reshape(2, 5, 4), directions)
    torch.testing.assert_close(groups, torch.stack([epps_pulley(x[:5], directions), epps_pulley(x[5:], directions)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = epps_pulley(x, directions)
    torch.testing.assert_close(value, epps_pulley(x, directions), rtol=0, atol=0)


def shared(counts):
    """Value and gradient of rows that processes share unequally."""
    x = normal(sum(counts), 4).requires_grad_()
    start = sum(counts[: rank()])
    own = x[start : start + counts[rank()]] if world_size() > 1 else x
    value = epps_pulley(own, random_directions(4, 6, 0, 0)).mean()
    value.backward()
    return value.item(), reduce_sum(x.grad) / world_size()


@pytest.mark.ddp
def test_two_processes_equal_one():
    value, gradient = shared((5, 2))
    for other, gradients in ddp.run_two(shared, (5, 2)):
        assert other == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(gradients, gradient)
