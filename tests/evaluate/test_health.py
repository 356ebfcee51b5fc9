"""Effective rank and spread of embeddings whose directions are known."""

from __future__ import annotations

import numpy as np
import pytest

from medssl.evaluate.health import effective_rank, spread


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_directions_count_as_many_as_they_are(rank):
    embeddings = np.kron(np.ones((5, 1)), np.eye(8)[:rank])
    assert effective_rank(embeddings) == pytest.approx(rank, rel=1e-4)


def test_two_directions_of_unequal_strength_by_hand():
    """Shares 0.9 and 0.1 of the singular values: exp of their entropy."""
    expected = np.exp(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)))
    assert effective_rank(np.diag([9.0, 1.0])) == pytest.approx(expected, rel=1e-5)


def test_rank_ignores_rotation_and_scale():
    rng = np.random.default_rng(0)
    x, turned = rng.normal(size=(40, 6)) * [9, 4, 3, 1, 1, 0.1], np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert effective_rank(7 * x @ turned) == pytest.approx(effective_rank(x))
    assert 1 < effective_rank(x) < 6


def test_spread_is_0_of_equal_embeddings_and_1_of_every_direction():
    assert spread(np.full((20, 4), 3.0)) == pytest.approx(0, abs=1e-12)
    assert spread(np.random.default_rng(0).normal(size=(20_000, 16))) == pytest.approx(1, abs=0.01)
    assert spread(np.zeros((3, 4))) == 0
    assert effective_rank(np.zeros((3, 4))) == pytest.approx(1, abs=1e-4)
