"""Optimal transport: marginals, exact assignments, permutations, rotations, gradients, and bags by themselves."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from medssl.ops.similarity import cosine
from medssl.ops.transport import cosine_costs, gromov_wasserstein, ipot, wasserstein


def bags(count=3, tokens=20, width=8, seed=0):
    return torch.randn(count, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = bags(seed=0), bags(seed=1)
COST = 1 - cosine(X, Y)


def test_plans_have_uniform_marginals():
    plan = ipot(COST, iterations=50)
    assert (plan.sum(-2) - 1 / 20).abs().max() < 1e-15
    assert (plan.sum(-1) - 1 / 20).abs().max() < 5e-4
    assert torch.allclose(plan.sum((-2, -1)), torch.ones(3, dtype=torch.float64), atol=1e-14)
    uneven = ipot(1 - cosine(X, Y[:, :7]), iterations=200)
    assert (uneven.sum(-2) - 1 / 7).abs().max() < 1e-15
    assert (uneven.sum(-1) - 1 / 20).abs().max() < 1e-4


def test_more_steps_lead_to_the_exact_assignment():
    exact = [float(cost[linear_sum_assignment(cost)].mean()) for cost in COST.numpy()]
    errors = [(wasserstein(COST, iterations=steps) - torch.tensor(exact)).abs().max() for steps in (30, 500, 2000)]
    assert errors[0] < 0.01
    assert errors[1] < 2e-4
    assert errors[2] < 1e-5


def test_a_bag_in_another_order_costs_nothing_and_the_plan_is_the_order():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    cost = 1 - cosine(X, X[:, order])
    assert wasserstein(cost, iterations=200).abs().max() < 1e-10
    assert torch.equal(ipot(cost).argmax(-1), torch.argsort(order).expand(3, -1))


def test_gromov_wasserstein_does_not_know_rotation_or_order():
    turn = torch.linalg.qr(bags(1, 8, 8, seed=3)[0])[0]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    within = [1 - cosine(bag, bag) for bag in (X, X @ turn, X[:, order], Y)]
    same, turned, moved, other = (gromov_wasserstein(within[0], each) for each in within)
    assert same.abs().max() <= 4e-7
    assert torch.allclose(turned, same, atol=1e-12)
    assert torch.allclose(moved, same, atol=1e-12)
    assert (other > 1e-2).all()


def test_the_linearization_is_the_quadratic_form():
    """Against four nested sums, at the plan that was found."""
    a, b = 1 - cosine(X[:1, :5], X[:1, :5]), 1 - cosine(Y[:1, :4], Y[:1, :4])
    plan = torch.full((5, 4), 1 / 20, dtype=torch.float64)
    differences = (a[0][:, None, :, None] - b[0][None, :, None, :]).square()
    by_hand = torch.einsum("ij,kl,ijkl->", plan, plan, differences)
    assert torch.allclose(gromov_wasserstein(a, b, rounds=0), by_hand)


def test_the_gradient_is_that_of_the_costs_under_the_plan():
    cost = COST.clone().requires_grad_()
    wasserstein(cost).sum().backward()
    assert torch.equal(cost.grad, ipot(COST))
    x = X.clone().requires_grad_()
    (wasserstein(cosine_costs(x, Y)) + gromov_wasserstein(1 - cosine(x, x), 1 - cosine(Y, Y))).sum().backward()
    assert bool(x.grad.isfinite().all())
    assert x.grad.abs().max() > 0


def test_a_bag_does_not_depend_on_the_others_and_autocast_changes_nothing():
    whole = wasserstein(cosine_costs(X, Y)) + gromov_wasserstein(1 - cosine(X, X), 1 - cosine(Y, Y))
    large = torch.cat((X[:1], 50 * X[1:]))
    alone = wasserstein(cosine_costs(large, Y)) + gromov_wasserstein(1 - cosine(large, large), 1 - cosine(Y, Y))
    assert torch.allclose(whole[0], alone[0], atol=1e-14)
    one = wasserstein(cosine_costs(X[:1], Y[:1])) + gromov_wasserstein(1 - cosine(X, X)[:1], 1 - cosine(Y, Y)[:1])
    assert torch.allclose(whole[:1], one, atol=1e-14)
    single = X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = wasserstein(cosine_costs(single, Y.float()))
    assert torch.equal(inside, wasserstein(cosine_costs(single, Y.float())))


def test_costs_below_a_share_of_the_range_are_free():
    cost = cosine_costs(X, Y, share=0.1)
    plain = 1 - cosine(X, Y)
    low, high = plain.amin((-2, -1), keepdim=True), plain.amax((-2, -1), keepdim=True)
    assert torch.allclose(cost, (plain - low - 0.1 * (high - low)).clamp(min=0))
    assert bool((cost == 0).any())


@pytest.mark.parametrize("tokens", [1, 2])
def test_small_and_equal_bags_stay_finite(tokens):
    x = torch.ones(2, tokens, 4, dtype=torch.float64)
    assert torch.allclose(wasserstein(cosine_costs(x, x)), torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(gromov_wasserstein(1 - cosine(x, x), 1 - cosine(x, x)), torch.zeros(2, dtype=torch.float64))
