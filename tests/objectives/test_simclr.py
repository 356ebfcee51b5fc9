"""SimCLR against the formula by loops, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives.contrast import batch_of, by_loops
from objectives.small import SIZES, encoder

from medssl.nn.heads import Projection
from medssl.objectives.base import select_rows
from medssl.objectives.simclr import SimCLR
from medssl.types import UserError, ViewSpec


def simclr(ndim: int = 2, **arguments) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(encoder(ndim), view=ViewSpec(SIZES[ndim]), projection=(16, 8), **arguments)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_the_formula(ndim, temperature):
    objective = simclr(ndim, temperature=temperature).double()
    batch, step = batch_of(objective, scans=4)
    batch = replace(batch, views=tuple(replace(view, image=view.image.double()) for view in batch.views))
    loss = objective(batch, step).total
    with torch.no_grad():
        z = objective.projection(objective.encoder(torch.cat([view.image for view in batch.views])).pooled)
    rows = [(sample, view) for view in range(2) for sample in range(4)]
    found = by_loops(z, rows, lambda a, b: a[0] == b[0] and a != b, lambda a, b: a != b, temperature)
    assert float(loss.detach()) == pytest.approx(found, rel=1e-10)


def test_equal_embeddings_cost_the_logarithm_of_the_candidates():
    objective = simclr()
    for layer in objective.projection.layers:
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.ones_(objective.projection.layers[-1].bias)
    batch, step = batch_of(objective, scans=4)
    loss = objective(batch, step)
    assert float(loss.total.detach()) == pytest.approx(math.log(7))
    assert float(loss.terms["chance"]) == pytest.approx(math.log(7))
    assert float(loss.terms["alignment"]) == pytest.approx(0, abs=1e-6)
    assert float(loss.terms["uniformity"]) == pytest.approx(0, abs=1e-6)


def test_terms_are_of_the_projected_views():
    objective = simclr()
    batch, step = batch_of(objective, scans=4)
    terms = objective(batch, step).terms
    with torch.no_grad():
        z = objective.projection(objective.encoder(torch.cat([view.image for view in batch.views])).pooled)
    z = (z / z.norm(dim=1, keepdim=True)).double()
    assert float(terms["alignment"]) == pytest.approx(float((z[:4] - z[4:]).square().sum(1).mean()), rel=1e-5)
    apart = [float((z[a] - z[b]).square().sum()) for a in range(8) for b in range(8) if a != b]
    expected = math.log(sum(math.exp(-2 * d) for d in apart) / len(apart))
    assert float(terms["uniformity"]) == pytest.approx(expected, rel=1e-4)


def test_what_views_do_not_share_costs():
    """The same image twice is easier than two images of one scan."""
    objective = simclr().eval()
    same, step = batch_of(objective, scans=4, views="same")
    apart, _ = batch_of(objective, scans=4)
    assert float(objective(same, step).total.detach()) < float(objective(apart, step).total.detach())


def test_one_crop_has_none_to_be_told_from():
    objective = simclr()
    batch, step = batch_of(objective, scans=2)
    objective(batch, step)
    message = "SimCLR tells crops from each other, and the batch has one: take a larger training.batch_size"
    with pytest.raises(UserError, match=f"^{message}$"):
        objective(*select_rows(batch, step, [0]))


def test_no_subject_is_told_from_itself():
    assert simclr().needs.sampling.distinct_subjects


def test_a_projection_needs_two_widths():
    with pytest.raises(UserError, match=r"projection \[12\]: expected two or more numbers of channels"):
        Projection((12,))


@pytest.mark.parametrize("ndim", [0, 2, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_a_projection_maps_each_position_alike(ndim, norm):
    torch.manual_seed(0)
    projection = Projection((5, 7, 3), norm=norm, ndim=ndim).eval()
    x = torch.randn(2, 5, *(4,) * ndim)
    out = projection(x)
    assert out.shape == (2, 3, *(4,) * ndim)
    place = (slice(None), slice(None), *(2,) * ndim)
    weights = [layer.weight.flatten(1) for layer in projection.layers]
    hidden = x[place] @ weights[0].T
    if norm:
        hidden = hidden / math.sqrt(1 + 1e-5)
    else:
        hidden = hidden + projection.layers[0].bias
    torch.testing.assert_close(out[place], hidden.relu() @ weights[1].T + projection.layers[1].bias)
