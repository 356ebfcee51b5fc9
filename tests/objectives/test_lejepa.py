"""LeJEPA: both terms by loops, no teacher, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objectives.small import LOCAL, SIZES, encoder, vit

from medssl.objectives.contract import example_batch
from medssl.objectives.lejepa import LeJEPA
from medssl.ops.normality import epps_pulley, random_directions
from medssl.types import UserError, ViewSpec


def make(ndim=2, network=None, **arguments):
    torch.manual_seed(0)
    arguments = {"projection": (16, 8), "slices": 12} | arguments
    network = network or vit(ndim)
    return LeJEPA(network, view=ViewSpec(SIZES[ndim]), local_view=ViewSpec(LOCAL[ndim]), local_views=2, **arguments)


@pytest.mark.parametrize("ndim", [2, 3])
def test_both_terms_are_those_of_loops(ndim):
    objective = make(ndim, weight=0.2).train()
    batch, step = example_batch(objective.needs, 1)
    step = replace(step, index=3)
    with torch.no_grad():
        pooled = torch.cat([objective.encoder(view.image).pooled for view in batch.views])
        z = objective.projection(pooled).split(4)  # one batch norm for the rows of all views
        squares, values = [], []
        directions = random_directions(8, 12, step.seed, 3)
        for part in z:
            values.append(float(epps_pulley(part, directions).mean()))
            for sample in range(4):
                mean = [(float(a) + float(b)) / 2 for a, b in zip(z[0][sample], z[1][sample], strict=True)]
                squares += [(float(a) - m) ** 2 for a, m in zip(part[sample], mean, strict=True)]
    loss = objective(batch, step)
    prediction, sigreg = sum(squares) / len(squares), sum(values) / len(values)
    assert loss.terms["prediction"].item() == pytest.approx(prediction, rel=1e-4)
    assert loss.terms["sigreg"].item() == pytest.approx(sigreg, rel=1e-4)
    assert loss.total.item() == pytest.approx(0.8 * prediction + 0.2 * sigreg, rel=1e-4)


def test_equal_views_leave_the_distribution_alone():
    objective = LeJEPA(vit(2), view=ViewSpec(SIZES[2]), projection=(16, 8), slices=12)
    batch, step = example_batch(objective.needs, 1)
    loss = objective(replace(batch, views=(batch.views[0],) * 2), step)
    assert loss.terms["prediction"].item() == pytest.approx(0, abs=1e-10)
    assert loss.total.item() == pytest.approx(0.05 * loss.terms["sigreg"].item())


def test_there_is_no_teacher_and_every_view_gets_a_gradient():
    objective = make(network=encoder(2))
    batch, step = example_batch(objective.needs, 1)
    views = tuple(replace(view, image=view.image.clone().requires_grad_()) for view in batch.views)
    objective(replace(batch, views=views), step).total.backward()
    assert all(view.image.grad.any() for view in views)
    assert all(parameter.requires_grad for parameter in objective.parameters())


def test_training_brings_embeddings_near_a_normal_distribution():
    objective = make(projection=(32, 4), slices=64, weight=0.9).train()  # example views have nothing in common
    batch, step = example_batch(objective.needs, 1, scans=16)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    values = []
    for index in range(40):
        loss = objective(batch, replace(step, index=index))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        values.append(loss.terms["sigreg"].item())
    assert sum(values[-5:]) / 5 < 0.7 * sum(values[:5]) / 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"slices": 0}, r"slices: must be at least 1 \(got 0\)"),
        ({"weight": 1.0}, r"weight: must be above 0 and below 1 \(got 1\.0\)"),
        ({"weight": 0.0}, r"weight: must be above 0 and below 1 \(got 0\.0\)"),
        ({"projection": ()}, r"projection \[32\]: expected two or more numbers of channels"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        make(**arguments)
