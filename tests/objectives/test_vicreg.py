"""VICReg against loops over rows and channels, and its invariants."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.pairs import batch_in_double, embedded, made

from medssl.objectives.base import select_rows
from medssl.objectives.vicreg import VICReg
from medssl.types import UserError

SMALL = {"projection": (16, 6)}


def by_loops(first: list[list[float]], second: list[list[float]]) -> tuple[float, float, float]:
    n, width = len(first), len(first[0])
    near = sum((a - b) ** 2 for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))
    variance = covariance = 0.0
    for rows in (first, second):
        means = [sum(row[d] for row in rows) / n for d in range(width)]

        def covary(d, e, rows=rows, means=means):
            return sum((row[d] - means[d]) * (row[e] - means[e]) for row in rows) / (n - 1)

        variance += sum(max(0, 1 - math.sqrt(covary(d, d) + 1e-4)) for d in range(width)) / width / 2
        covariance += sum(covary(d, e) ** 2 for d in range(width) for e in range(width) if d != e) / width
    return near / n / width, variance, covariance


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_three_terms_are_those_of_loops(ndim):
    objective = made(VICReg, ndim, weights=(3.0, 5.0, 7.0), **SMALL)
    batch, step = batch_in_double(objective)
    z = embedded(objective, batch).tolist()
    terms = by_loops(z[:4], z[4:])
    loss = objective(batch, step)
    for name, term in zip(("invariance", "variance", "covariance"), terms, strict=True):
        assert float(loss.terms[name]) == pytest.approx(term, rel=1e-9)
    assert float(loss.total.detach()) == pytest.approx(3 * terms[0] + 5 * terms[1] + 7 * terms[2], rel=1e-9)


def test_equal_embeddings_cost_chance():
    objective = made(VICReg, **SMALL)
    torch.nn.init.zeros_(objective.projection.layers[-1].weight)
    loss = objective(*batch_in_double(objective))
    assert float(loss.total.detach()) == pytest.approx(25 * 0.99)
    assert float(loss.terms["chance"]) == pytest.approx(25 * 0.99)
    assert float(loss.terms["uniformity"]) == pytest.approx(0, abs=1e-9)


def test_one_crop_has_no_variance():
    objective = made(VICReg, **SMALL)
    message = "VICReg takes the variance over crops, and the batch has one: take a larger training.batch_size"
    with pytest.raises(UserError, match=f"^{message}$"):
        objective(*select_rows(*batch_in_double(objective), [0]))


def test_samples_are_compared_with_each_other():
    """So that accumulation is reported: statistics are those of a micro-batch."""
    assert VICReg.compares_samples


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match=r"weights: must be 0 or more each"):
        made(VICReg, weights=(25.0, -1.0, 1.0), **SMALL)
