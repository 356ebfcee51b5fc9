"""What tests of objectives on two views share: small ones in float64, batches whose views differ, training."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from objectives.contrast import batch_of
from objectives.small import SIZES, encoder

from medssl.objectives.base import Objective
from medssl.types import Batch, Step, ViewSpec


def made(kind: type[Objective], ndim: int = 2, **arguments) -> Objective:
    torch.manual_seed(0)
    return kind(encoder(ndim), view=ViewSpec(SIZES[ndim]), **arguments).double().train()


def batch_in_double(objective: Objective, scans: int = 4) -> tuple[Batch, Step]:
    batch, step = batch_of(objective, scans=scans)
    return replace(batch, views=tuple(replace(view, image=view.image.double()) for view in batch.views)), step


def embedded(objective: Objective, batch: Batch) -> torch.Tensor:
    """Projected rows of both views in training mode; the objective is left as it was."""
    network = copy.deepcopy(objective)
    with torch.no_grad():
        return network.projection(network.encoder(torch.cat([view.image for view in batch.views])).pooled)


def unrelated(rows: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean squared distance of unit vectors, with numbers of Python."""
    total = 0.0
    for row, target in zip(rows.tolist(), targets.tolist(), strict=True):
        lengths = [sum(x * x for x in part) ** 0.5 for part in (row, target)]
        total += sum((x / lengths[0] - y / lengths[1]) ** 2 for x, y in zip(row, target, strict=True))
    return total / len(rows)


def trained(objective: Objective, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Losses of steps with batches of their own."""
    losses = []
    for index in steps:
        batch, step = batch_in_double(objective)
        samples = tuple(4 * index + number for number in range(4))
        views = tuple(replace(view, image=view.image * (1 + 0.1 * index)) for view in batch.views)
        origin = replace(batch.origin, samples=samples)
        step = replace(step, index=index, samples=samples)
        loss = objective(replace(batch, views=views, origin=origin), step)
        optimizer.zero_grad()
        loss.total.backward()
        objective.before_step(step)
        optimizer.step()
        objective.after_step(step)
        losses.append(float(loss.total.detach()))
    return losses


def optimizer_of(objective: Objective) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
