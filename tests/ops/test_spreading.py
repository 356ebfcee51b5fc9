"""KoLeo and KDE: values by hand and by loops, scale, order, duplicates, two processes."""

from __future__ import annotations

import math

import ddp
import pytest
import torch

from medssl.ops.collectives import rank, reduce_sum, world_size
from medssl.ops.spreading import kde, koleo

BOTH = pytest.mark.parametrize("loss", [koleo, kde])


def rows(count=6, width=5, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_are_those_of_plain_loops():
    x = rows()
    z = [[float(v) / math.sqrt(sum(float(w) ** 2 for w in row)) for v in row] for row in x]
    near, density = [], []
    for i, a in enumerate(z):
        others = [b for j, b in enumerate(z) if j != i]
        near.append(math.log(min(math.dist(a, b) for b in others)))
        cosines = [sum(p * q for p, q in zip(a, b, strict=True)) for b in others]
        density.append(math.log(sum(math.exp(5 * (c - 1)) for c in cosines) / len(cosines)))
    assert koleo(x).item() == pytest.approx(-sum(near) / 6, rel=1e-12)
    assert kde(x).item() == pytest.approx(sum(density) / 6, rel=1e-12)


def test_two_opposite_rows_by_hand():
    x = torch.tensor([[3.0, 0.0], [-0.5, 0.0]])
    assert koleo(x).item() == pytest.approx(-math.log(2))
    assert kde(x, 2.0).item() == pytest.approx(-4.0)


@BOTH
def test_lengths_and_order_do_not_count(loss):
    x = rows()
    scaled = x * torch.arange(1.0, 7.0)[:, None]
    torch.testing.assert_close(loss(scaled), loss(x))
    torch.testing.assert_close(loss(x[torch.tensor([3, 1, 5, 0, 2, 4])]), loss(x))


@BOTH
def test_it_falls_as_two_rows_separate(loss):
    def at(angle):
        return torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)

    values = [loss(at(angle)).item() for angle in (0.1, 0.5, 1.0, 2.0, 3.0)]
    assert values == sorted(values, reverse=True)


@BOTH
def test_equal_rows_give_finite_values_and_gradients(loss):
    x = torch.ones(4, 8, requires_grad=True)
    value = loss(x)
    value.backward()
    assert value.item() == pytest.approx(-math.log(1e-8) if loss is koleo else 0.0, abs=1e-4)
    assert x.grad.isfinite().all()


@BOTH
def test_half_precision_is_computed_in_float32(loss):
    x = rows().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(x))


@BOTH
def test_one_row_has_no_neighbor(loss):
    x = rows(1).requires_grad_()
    loss(x).backward()
    assert loss(x).item() == 0
    assert not x.grad.any()


def spread(loss, counts):
    """Value and gradient of rows that processes share unequally."""
    x = rows(sum(counts)).requires_grad_()
    start = sum(counts[: rank()]) if world_size() > 1 else 0
    value = loss(x[start : start + counts[rank()]] if world_size() > 1 else x)
    value.backward()
    return value.item(), reduce_sum(x.grad) / world_size()


@pytest.mark.ddp
@BOTH
def test_two_processes_equal_one(loss):
    value, gradient = spread(loss, (5, 2))
    for other, gradients in ddp.run_two(spread, loss, (5, 2)):
        assert other == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(gradients, gradient)
