"""Centering and Sinkhorn-Knopp: loops in float64, sums of rows and columns, two processes, autocast."""

from __future__ import annotations

import math

import ddp
import pytest
import torch

from medssl.ops.assignment import centered_targets, cross_entropy, entropies, moved_center, sinkhorn
from medssl.ops.collectives import rank

SCORES = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(0.4)
SPLIT = {0: slice(0, 7), 1: slice(7, 24)}  # unequal on purpose


def by_loops(scores, temperature, counted, iterations):
    """Python floats only: each row to 1 first, then columns and rows in turn."""
    rows = [[math.exp(x / temperature) for x in row] for row in scores.tolist()]
    q = [[x / sum(row) if use else 0.0 for x in row] for row, use in zip(rows, counted, strict=True)]
    for _ in range(iterations):
        columns = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[x / column for x, column in zip(row, columns, strict=True)] for row in q]
        q = [[x / sum(row) if use else 0.0 for x in row] for row, use in zip(q, counted, strict=True)]
    return torch.tensor(q, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_sinkhorn_is_that_of_plain_loops(iterations):
    counted = torch.arange(24) % 5 != 2
    found = sinkhorn(SCORES, 0.1, counted=counted, iterations=iterations)
    torch.testing.assert_close(found, by_loops(SCORES, 0.1, counted.tolist(), iterations), rtol=1e-10, atol=1e-14)


def test_rows_sum_to_1_and_columns_come_to_equal_shares():
    for iterations in (1, 3, 200):
        found = sinkhorn(SCORES, 0.07, iterations=iterations)
        torch.testing.assert_close(found.sum(1), torch.ones(24, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((6,), 4.0, dtype=torch.float64), rtol=1e-6, atol=0)
    spread = [sinkhorn(SCORES, 0.07, iterations=n).sum(0).std() for n in (0, 1, 3, 10)]
    assert spread == sorted(spread, reverse=True)


def test_rows_that_are_left_out_change_nothing():
    counted = torch.arange(24) < 20
    found = sinkhorn(SCORES, 0.1, counted=counted)
    assert (found[20:] == 0).all()
    torch.testing.assert_close(found[:20], sinkhorn(SCORES[:20], 0.1))
    assert (sinkhorn(SCORES, 0.1, counted=torch.zeros(24, dtype=torch.bool)) == 0).all()
    assert sinkhorn(SCORES[:0], 0.1).shape == (0, 6)


def test_the_order_of_rows_and_prototypes_and_a_constant_are_irrelevant():
    rows, columns = torch.randperm(24), torch.randperm(6)
    found = sinkhorn(SCORES, 0.1)
    torch.testing.assert_close(sinkhorn(SCORES[rows], 0.1), found[rows])
    torch.testing.assert_close(sinkhorn(SCORES[:, columns], 0.1), found[:, columns])
    torch.testing.assert_close(sinkhorn(SCORES + torch.arange(24.0)[:, None], 0.1), found)


def test_scores_far_apart_stay_finite():
    far = torch.zeros(4, 3)
    far[:, 0] = 1e4  # all rows name the first prototype; the others underflow
    found = sinkhorn(far, 0.04)
    assert torch.equal(found, torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3))
    alike = sinkhorn(torch.zeros(4, 3), 0.04)
    torch.testing.assert_close(alike, torch.full((4, 3), 1 / 3))


def test_centering_is_a_softmax_above_the_mean_of_what_was_named():
    center = torch.zeros(6, dtype=torch.float64)
    for _ in range(3):
        center = moved_center(center, SCORES.sum(0), torch.tensor(24.0), 0.9)
    torch.testing.assert_close(center, SCORES.mean(0) * (1 - 0.9**3))
    found = centered_targets(SCORES, center, 0.07)
    above = ((SCORES - center) / 0.07).exp()
    torch.testing.assert_close(found, above / above.sum(1, keepdim=True))
    assert torch.equal(moved_center(center, torch.zeros(6), torch.tensor(0.0), 0.9), center)
    assert torch.equal(moved_center(center, SCORES.sum(0), torch.tensor(24.0), 1.0), center)


def test_the_cross_entropy_and_what_it_is_at_least():
    targets = sinkhorn(SCORES, 0.1)
    found = cross_entropy(SCORES, targets, 0.2)
    want = [
        -sum(q * (s / 0.2 - math.log(sum(math.exp(x / 0.2) for x in row))) for q, s in zip(goal, row, strict=True))
        for goal, row in zip(targets.tolist(), SCORES.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))
    assert cross_entropy(torch.zeros(2, 6), targets[:2].float(), 0.1).tolist() == pytest.approx([math.log(6)] * 2)
    own = centered_targets(SCORES, torch.zeros(6), 0.1)  # teacher = student: the entropy, and no gradient
    scores = SCORES.clone().requires_grad_()
    loss = cross_entropy(scores, own, 0.1).mean()
    assert loss.item() == pytest.approx(entropies(own)[0].item())
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.abs().max() < 1e-12


def test_entropies_tell_sharp_from_blurred_and_one_prototype_from_many():
    each, same, blurred = torch.eye(6), torch.eye(6)[:1].expand(6, 6), torch.full((6, 6), 1 / 6)
    log = pytest.approx(math.log(6))
    assert [x.item() for x in entropies(each)] == [0, log]
    assert [x.item() for x in entropies(same)] == [0, 0]
    assert [x.item() for x in entropies(blurred)] == [log, log]
    assert [x.item() for x in entropies(each[:0])] == [0, 0]


def test_autocast_does_not_coarsen_and_targets_have_no_gradient():
    scores = SCORES.float().requires_grad_()
    center = torch.full((6,), 0.1)
    want = sinkhorn(scores, 0.04), centered_targets(scores, center, 0.04), cross_entropy(scores, scores, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn(scores, 0.04), centered_targets(scores, center, 0.04), cross_entropy(scores, scores, 0.1)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, want, strict=True))
    assert not found[0].requires_grad
    assert not found[1].requires_grad


def two():
    own = SCORES[SPLIT[rank()]]
    counted = torch.arange(24)[SPLIT[rank()]] % 5 != 2
    targets = sinkhorn(own, 0.1, counted=counted)
    center = moved_center(SCORES[0], own.sum(0), torch.tensor(float(len(own))), 0.9)
    return targets, center, *entropies(targets)


@pytest.mark.ddp
def test_two_processes_equal_one():
    results = ddp.run_two(two)
    targets = sinkhorn(SCORES, 0.1, counted=torch.arange(24) % 5 != 2)
    torch.testing.assert_close(torch.cat([part for part, *_ in results]), targets, rtol=1e-12, atol=0)
    want = moved_center(SCORES[0], SCORES.sum(0), torch.tensor(24.0), 0.9), *entropies(targets)
    for _, *found in results:
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
