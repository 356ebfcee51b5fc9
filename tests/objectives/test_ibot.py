"""iBOT and what DINOv2 shares with it: positions by loops, masks, shared and separate heads."""

from __future__ import annotations

import pytest
import torch
from objectives.distilled import MASKED, K, entropy, make, run

from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import PATCH, POOLED
from medssl.objectives.base import join_views
from medssl.objectives.contract import example_batch
from medssl.objectives.dinov2 import DINOv2, Regularization
from medssl.ops.draws import draws
from medssl.ops.masking import Masks


@MASKED
def test_positions_count_by_images_and_views_are_masked(kind):
    objective = make(kind, **({"regularization": Regularization(weight=0.0)} if kind is DINOv2 else {}))
    batch, step = example_batch(objective.needs, 1)
    whole = join_views(batch.views[:2])
    hidden = objective.masks.draw(objective.cells, draws(step, f"{kind.__name__.lower()}.mask"), 2)
    assert 0 < int(hidden.flatten(1).any(1).sum()) < 8  # some views are whole
    with torch.no_grad():
        features = objective.encoder(whole.image, hidden, mode="fill")
        teacher = objective.teacher["encoder"](whole.image)
        patch, grid = [], features.maps[-1].shape[2:]
        counted = (whole.valid & whole.scored).float()
        for image in range(8):
            values = []
            for place in hidden[image].nonzero().tolist():
                window = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, objective.encoder.patch, strict=True))
                if counted[(image, 0, *window)].mean() < 0.5:
                    continue
                at = (image, slice(None), *place)
                goal = objective.teacher[PATCH if PATCH in objective.heads else POOLED](teacher.maps[-1][at][None])[0]
                values.append(entropy(goal, objective.scores(PATCH, features.maps[-1][at][None])[0]))
            patch.append(sum(values) / len(values) if values else 0.0)
        local = [objective.encoder(view.image).pooled for view in batch.views[2:]]
        rows = [*features.pooled.split(4), *local]
        student = [objective.scores(POOLED, part) for part in rows]
        goals = objective.teacher[POOLED](teacher.pooled).split(4)
        pairs = [(u, v) for u in range(2) for v in range(4) if u != v]
        pooled = [entropy(goals[u][row], student[v][row]) for u, v in pairs for row in range(4)]
    loss = objective(batch, step)
    assert tuple(grid) == objective.cells
    assert loss.terms[PATCH].item() == pytest.approx(sum(patch) / 8, rel=1e-4)
    assert loss.terms[POOLED].item() == pytest.approx(sum(pooled) / len(pooled), rel=1e-4)
    assert loss.total.item() == pytest.approx(sum(patch) / 8 + sum(pooled) / len(pooled), rel=1e-4)


@MASKED
def test_positions_that_are_not_hidden_get_no_gradient_of_the_patch_loss(kind):
    objective = make(kind)
    batch, step = example_batch(objective.needs, 1)
    whole = join_views(batch.views[:2])
    hidden = objective.masks.draw(objective.cells, draws(step, "any"), 2)
    captured = []
    handle = objective.encoder.register_forward_hook(lambda module, given, out: captured.append(out.maps[-1]))
    compared = objective.compare_masked(whole, batch.views[2:], hidden, step)
    handle.remove()
    (gradient,) = torch.autograd.grad(compared.losses[PATCH], captured[0])
    at = gradient.abs().sum(1).bool()
    assert at.any()
    assert not (at & ~hidden).any()


@MASKED
def test_without_masks_the_patch_loss_is_zero_and_finite(kind):
    loss = run(make(kind, masks=Masks((0.1, 0.5), 1.0)))
    loss.total.backward()
    assert loss.terms[PATCH].item() == 0
    assert loss.total.isfinite()


@MASKED
@pytest.mark.parametrize("separate", [False, True])
def test_heads_are_shared_by_option_and_targets_never(kind, separate):
    objective = make(kind, prototypes=Prototypes(K, 8, 16, separate=separate))
    assert len(objective.heads) == 1 + separate
    assert set(objective.targets) == {POOLED, PATCH}
    run(objective)
    objective.after_step(example_batch(objective.needs, 1)[1])
    assert not torch.equal(objective.targets[POOLED].center, objective.targets[PATCH].center)
