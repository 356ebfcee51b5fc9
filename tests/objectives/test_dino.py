"""DINO: the mean over pairs of views by loops, and ConvNets."""

from __future__ import annotations

import pytest
import torch
from objectives.distilled import entropy, make, run
from objectives.small import encoder

from medssl.nn.self_distillation import POOLED
from medssl.objectives.contract import example_batch
from medssl.objectives.dino import DINO


@pytest.mark.parametrize("ndim", [2, 3])
def test_dino_is_the_mean_over_pairs_of_views(ndim):
    objective = make(DINO, ndim)
    batch, step = example_batch(objective.needs, 1)
    with torch.no_grad():
        student = [objective.heads[POOLED](objective.encoder(view.image).pooled) for view in batch.views]
        teacher = [
            objective.teacher[POOLED](objective.teacher["encoder"](view.image).pooled) for view in batch.views[:2]
        ]
    pairs = [(u, v) for u in range(2) for v in range(4) if u != v]
    values = [entropy(teacher[u][row], student[v][row]) for u, v in pairs for row in range(4)]
    assert objective(batch, step).total.item() == pytest.approx(sum(values) / len(values), rel=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dino_takes_convnets_whose_running_statistics_the_teacher_copies(norm):
    objective = make(DINO, encoder=encoder(2, norm=norm))
    run(objective).total.backward()
    objective.after_step(example_batch(objective.needs, 1)[1])
    for mine, its in zip(objective.encoder.buffers(), objective.teacher["encoder"].buffers(), strict=True):
        assert torch.equal(mine, its)
