"""Barlow Twins against NumPy, mixed samples, and two processes with mixing."""

from __future__ import annotations

import copy
from functools import partial

import ddp
import numpy as np
import pytest
import torch
from objectives.pairs import batch_in_double, embedded, made

from medssl.objectives.barlow_twins import BarlowTwins, partners
from medssl.objectives.base import select_rows
from medssl.objectives.contract import loss_and_gradients
from medssl.ops.similarity import cross_correlation
from medssl.types import UserError

SMALL = {"projection": (16, 6)}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_that_of_the_correlation_coefficients(ndim):
    objective = made(BarlowTwins, ndim, off_diagonal=0.1, **SMALL)
    batch, step = batch_in_double(objective)
    z = 1000 * embedded(objective, batch)  # so large that what is added to variances does not matter
    both = np.corrcoef(z[:4].numpy(), z[4:].numpy(), rowvar=False)[:6, 6:]
    with torch.no_grad():
        for p in objective.projection.layers[-1].parameters():
            p.mul_(1000)
    on, off = ((1 - both.diagonal()) ** 2).sum(), (both**2).sum() - (both.diagonal() ** 2).sum()
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(on + 0.1 * off, rel=1e-6)
    assert float(loss.terms["chance"]) == 6


def test_equal_views_and_constant_channels():
    x = torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(
        cross_correlation(x, 5 * x - 2).diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0
    )
    x[:, 1] = 7
    assert not cross_correlation(x, x)[1].any()


def test_mixed_images_of_a_linear_network_cost_nothing():
    """Correlations of channels without a deviation of 1 are not linear; with share 1 the mixture is the first view."""
    objective = made(BarlowTwins, mixed=0.1, **SMALL)
    batch, step = batch_in_double(objective)
    images = torch.cat([view.image for view in batch.views])
    network = copy.deepcopy(objective).eval()
    with torch.no_grad():
        z = network.projection(network.encoder(images).pooled)
        error = network.mixture_error(images, z[:4], z[4:], step)
        partner, share = partners(torch.arange(4), step.seed)
        mixed = share * images[:4] + (1 - share) * images[4:][partner]
        m = network.projection(network.encoder(mixed).pooled)
        expected = 0.0
        for view in (z[:4], z[4:]):
            linear = share * cross_correlation(z[:4], view) + (1 - share) * cross_correlation(z[4:][partner], view)
            expected += float(((cross_correlation(m, view) - linear) ** 2).sum())
    assert float(error) == pytest.approx(expected, rel=1e-9)
    assert 0 < share < 1


def test_partners_do_not_depend_on_the_order():
    samples = torch.tensor([8, 3, 5, 6])
    partner, share = partners(samples, 0)
    again, same = partners(samples.flip(0), 0)
    assert share == same
    named = [
        dict(zip(x.tolist(), x[p].tolist(), strict=True)) for x, p in ((samples, partner), (samples.flip(0), again))
    ]
    assert named[0] == named[1]
    assert sorted(partner.tolist()) == [0, 1, 2, 3]


@pytest.mark.ddp
def test_two_processes_equal_one_with_mixed_images():
    make = partial(made, BarlowTwins, mixed=0.1, **SMALL)
    loss, gradients = loss_and_gradients(make)
    for other, found in ddp.run_two(loss_and_gradients, make):
        assert other == pytest.approx(loss, rel=1e-9)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-7, atol=1e-9, msg=name)


def test_one_crop_has_no_correlation():
    objective = made(BarlowTwins, **SMALL)
    message = "Barlow Twins correlates over crops, and the batch has one: take a larger training.batch_size"
    with pytest.raises(UserError, match=f"^{message}$"):
        objective(*select_rows(*batch_in_double(objective), [0]))
