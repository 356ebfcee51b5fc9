"""What all masked modeling shares, in 2D and 3D: what is hidden stays hidden, the loss is that of a plain loop."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from objectives.small import SIZES, encoder, mae, simmim, spark, unet_mae, vit

from medssl.objectives.base import select_rows
from medssl.objectives.contract import example_batch
from medssl.objectives.mae import MAE, UNetMAE
from medssl.objectives.simmim import SimMIM
from medssl.objectives.spark import SparK
from medssl.ops.draws import draws
from medssl.ops.masking import at_resolution, random_hidden
from medssl.ops.patches import patchify, unpatchify
from medssl.ops.reconstruction import pixel_target
from medssl.types import Features, UserError, ViewSpec

MAKE = {"spark": spark, "mae": mae, "unetmae": unet_mae, "simmim": simmim}
KINDS = pytest.mark.parametrize("kind", MAKE)
DIMS = pytest.mark.parametrize("ndim", [2, 3])


def setting(kind, ndim, **arguments):
    """A small objective, a batch with its step, and the hidden cells and voxels that follow from the step."""
    torch.manual_seed(0)
    objective = MAKE[kind](ndim, **arguments).train()
    batch, step = example_batch(objective.needs, arguments.get("in_channels", 1))
    hidden = random_hidden(objective.cells, objective.mask_ratio, draws(step, f"{kind}.mask"))
    return objective, batch, step, hidden, at_resolution(hidden, SIZES[ndim])[:, None]


def with_view(batch, **changes):
    return replace(batch, views=(replace(batch.views[0], **changes),))


def given(objective, prediction):
    """The objective with a prediction (one row per cell) in the place of its networks."""
    objective = copy.deepcopy(objective)
    size = objective.needs.views[0].size
    features = Features(maps=(), pooled=torch.zeros(len(prediction), 3))
    objective.reconstruct = lambda image, hidden: (unpatchify(prediction, objective.cell, size=size), features)
    return objective


def random_prediction(objective, channels: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, math.prod(objective.cells), channels * math.prod(objective.cell))


# --- what is hidden stays hidden


@KINDS
@DIMS
@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_hidden_voxels_change_no_prediction(kind, ndim, value):
    objective, batch, _, hidden, voxels = setting(kind, ndim)
    image = batch.views[0].image
    prediction, features = objective.reconstruct(image, hidden)
    changed, changed_features = objective.reconstruct(torch.where(voxels, value, image), hidden)
    assert torch.equal(prediction, changed)
    assert torch.equal(features.pooled, changed_features.pooled)
    assert all(torch.equal(a, b) for a, b in zip(features.maps, changed_features.maps, strict=True))
    other, _ = objective.reconstruct(torch.where(voxels, image, image + 1), hidden)
    assert not torch.equal(prediction, other)


@KINDS
@DIMS
def test_no_gradient_reaches_hidden_voxels(kind, ndim):
    objective, batch, _, hidden, voxels = setting(kind, ndim)
    image = batch.views[0].image.clone().requires_grad_()
    prediction, _ = objective.reconstruct(image, hidden)
    (gradient,) = torch.autograd.grad(prediction.square().sum(), image)
    assert (gradient[voxels] == 0).all()
    assert (gradient[~voxels] != 0).double().mean() > 0.5


@KINDS
@DIMS
def test_the_mask_keeps_the_count_and_follows_the_sample(kind, ndim):
    objective, batch, step, hidden, _ = setting(kind, ndim)
    view = batch.views[0]
    ratio = 0.6 if kind == "simmim" or (kind, ndim) == ("spark", 2) else 0.75
    assert (~hidden).flatten(1).sum(1).tolist() == [round(math.prod(objective.cells) * (1 - ratio))] * 4
    assert torch.equal(objective.hidden(view, step), hidden)
    part, part_step = select_rows(batch, step, [3, 1])
    assert torch.equal(objective.hidden(part.views[0], part_step), hidden[[3, 1]])
    assert torch.equal(objective.hidden(view, replace(step, index=7)), hidden)


# --- the loss


@KINDS
@DIMS
@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_that_of_a_plain_loop(kind, ndim, normalize):
    """Another road to the same number: cell by cell in NumPy, with padding, areas not scored, a missing channel."""
    objective, batch, step, hidden, _ = setting(kind, ndim, in_channels=2, normalize_target=normalize)
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    batch = with_view(batch, present=present)
    view = batch.views[0]
    prediction = random_prediction(objective, 2)
    loss = given(objective, prediction)(batch, step)

    image, counted = view.image.double().numpy(), (view.valid & view.scored).numpy()
    predicted = unpatchify(prediction, objective.cell, size=SIZES[ndim]).double().numpy()
    total, number = 0.0, 0
    for sample in range(4):
        kept = counted[sample] & present[sample].numpy().reshape(2, *(1,) * ndim)
        floor = 0.01 * np.std(image[sample][kept], ddof=1)
        for cell in np.argwhere(hidden[sample].numpy()):
            low = [c * side for c, side in zip(cell, objective.cell, strict=True)]
            box = (slice(None), *(slice(a, a + side) for a, side in zip(low, objective.cell, strict=True)))
            inside = kept[box]
            if not inside.any():
                continue
            target = image[sample][box][inside]
            if normalize:
                variance = max(np.var(target, ddof=1), floor**2) if inside.sum() > 1 else floor**2
                target = (target - target.mean()) / np.sqrt(variance + 1e-6)
            difference = np.abs(predicted[sample][box][inside] - target)
            total += (difference if kind == "simmim" else difference**2).sum()
            number += inside.sum()
    assert loss.total.item() == pytest.approx(total / number, rel=1e-5)
    assert loss.terms["loss"].item() == loss.total.item()


@KINDS
@DIMS
def test_the_algebra_of_the_loss(kind, ndim):
    """The target itself costs nothing; a zero prediction (n - 1) / n; what is predicted for visible cells, nothing."""
    objective, batch, step, hidden, _ = setting(kind, ndim, normalize_target=True)
    view = replace(batch.views[0], image=torch.randn(4, 1, *SIZES[ndim]))
    whole = torch.ones_like(view.valid)
    batch = replace(batch, views=(replace(view, valid=whole, scored=whole),))
    target = pixel_target(batch.views[0], objective.cell)
    assert given(objective, target.values)(batch, step).total.item() == 0
    n = math.prod(objective.cell)
    zero = torch.zeros_like(target.values).requires_grad_()
    loss = given(objective, zero)(batch, step).total
    if kind != "simmim":
        assert loss.item() == pytest.approx((n - 1) / n, abs=2e-5)
    (gradient,) = torch.autograd.grad(loss, zero)
    rows = hidden.flatten(1)
    assert (gradient[~rows] == 0).all()
    assert (gradient[rows] != 0).all()
    other = torch.where(rows[..., None], target.values * 0.5, torch.randn_like(target.values))
    same = torch.where(rows[..., None], target.values * 0.5, 0.0)
    assert given(objective, other)(batch, step).total.item() == given(objective, same)(batch, step).total.item()


@KINDS
@pytest.mark.parametrize("key", ["valid", "scored"])
def test_hidden_voxels_outside_the_loss_do_not_matter(kind, key):
    objective, batch, step, _, voxels = setting(kind, 2)
    out = torch.rand(4, 1, *SIZES[2]) < 0.5
    batch = with_view(batch, **{key: ~out})
    plain = copy.deepcopy(objective)(batch, step).total
    for value in (1e4, float("nan")):
        other = with_view(batch, image=torch.where(out & voxels, value, batch.views[0].image))
        loss = copy.deepcopy(objective)(other, step).total
        assert loss.item() == plain.item()
    gradients = torch.autograd.grad(objective(other, step).total, list(objective.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@KINDS
@pytest.mark.parametrize("key", ["valid", "scored", "present"])
def test_with_nothing_to_score_the_loss_and_its_gradient_are_zero(kind, key):
    objective, batch, step, _, _ = setting(kind, 3)
    loss = objective(with_view(batch, **{key: torch.zeros_like(getattr(batch.views[0], key))}), step)
    assert loss.total.item() == 0
    gradients = torch.autograd.grad(loss.total, list(objective.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)
    assert all(term.isfinite() for term in loss.terms.values())


@KINDS
def test_constant_images_have_a_finite_loss(kind):
    objective, batch, step, _, _ = setting(kind, 2, normalize_target=True)
    loss = objective(with_view(batch, image=torch.full_like(batch.views[0].image, 3.0)), step)
    gradients = torch.autograd.grad(loss.total, list(objective.parameters()))
    assert loss.total.item() < 10
    assert all(gradient.isfinite().all() for gradient in gradients)


# --- pictures


@KINDS
@DIMS
def test_pictures_show_input_mask_and_reconstruction_in_the_values_of_the_input(kind, ndim):
    objective, batch, step, hidden, voxels = setting(kind, ndim, normalize_target=True)
    image = batch.views[0].image
    perfect = pixel_target(batch.views[0], objective.cell).values
    pictures = given(objective, perfect).pictures(batch, step)
    assert list(pictures) == ["input", "masked", "reconstruction"]
    assert torch.equal(pictures["input"], image)
    assert torch.equal(pictures["masked"][~voxels], image[~voxels])
    assert not torch.equal(pictures["masked"][voxels], image[voxels])
    counted = batch.views[0].valid & batch.views[0].scored
    torch.testing.assert_close(pictures["reconstruction"][counted], image[counted], rtol=1e-4, atol=1e-4)
    real = objective.pictures(batch, step)["reconstruction"]
    assert torch.equal(real[~voxels], image[~voxels])
    assert not torch.equal(real[voxels & counted], image[voxels & counted])
    cells = patchify(real, objective.cell)[1:3][hidden[1:3].flatten(1)].mean(-1)
    means = patchify(image, objective.cell)[1:3][hidden[1:3].flatten(1)].mean(-1)
    assert torch.corrcoef(torch.stack((cells, means)))[0, 1] > 0.9  # un-normalized with the true mean


# --- what does not fit


@pytest.mark.parametrize(
    ("kind", "small", "match"),
    [
        (
            SparK,
            vit,
            'ViT has mask modes: drop, fill; SparK needs an encoder with "sparse": choose another encoder or ob',
        ),
        (
            MAE,
            encoder,
            'ResEnc has mask modes: sparse; MAE needs an encoder with "drop": choose another encoder or obje',
        ),
        (SimMIM, encoder, 'ResEnc has mask modes: sparse; SimMIM needs an encoder with "fill": choose another encoder'),
    ],
)
def test_an_encoder_without_the_mask_mode_is_refused(kind, small, match):
    with pytest.raises(UserError, match=match):
        kind(small(2), view=ViewSpec(size=(32, 48)))


@pytest.mark.parametrize("kind", [SparK, UNetMAE])
def test_a_view_of_other_axes_is_refused(kind):
    with pytest.raises(
        UserError,
        match=r"view size \(16, 16, 16\) is 3D, the encoder takes 2D: take encoder and objective of one recipe",
    ):
        kind(encoder(2), view=ViewSpec(size=(16, 16, 16)))
