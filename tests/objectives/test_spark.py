"""SparK: the invariants of the method in 2D and 3D, the loss against a plain loop, input that does not fit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from objectives.small import SIZES, encoder, randomise, spark

from medssl.objectives.base import example_batch, take
from medssl.objectives.spark import SparK, pixel_target
from medssl.ops.draws import draws
from medssl.ops.masking import at_resolution, random_hidden
from medssl.ops.patches import patchify, unpatchify
from medssl.types import UserError, ViewSpec

DIMS = pytest.mark.parametrize("ndim", [2, 3])


def with_view(batch, **changes):
    return replace(batch, views=(replace(batch.views[0], **changes),))


def setting(ndim, **arguments):
    torch.manual_seed(0)
    objective = spark(ndim, **arguments).train()
    batch, step = example_batch(objective.needs, arguments.get("in_channels", 1))
    hidden = random_hidden(objective.cells, objective.mask_ratio, draws(step, "spark.mask"))
    voxels = at_resolution(hidden, SIZES[ndim])[:, None]
    return objective, batch, step, hidden, voxels


def given(objective, prediction):
    """The objective with a prediction (one row per cell) instead of that of its networks."""
    objective = copy.deepcopy(objective)
    networks = objective._reconstruct
    objective._reconstruct = lambda view, hidden: (prediction, networks(view, hidden)[1])
    return objective


# --- what is hidden stays hidden


@DIMS
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_hidden_voxels_change_no_prediction(ndim, value):
    objective, batch, _, hidden, voxels = setting(ndim)
    view = batch.views[0]
    prediction, features = objective._reconstruct(view, hidden)
    other = replace(view, image=torch.where(voxels, value, view.image))
    changed, changed_features = objective._reconstruct(other, hidden)
    assert torch.equal(prediction, changed)
    assert torch.equal(features.pooled, changed_features.pooled)
    assert all(torch.equal(a, b) for a, b in zip(features.maps, changed_features.maps, strict=True))


@DIMS
def test_no_gradient_reaches_hidden_voxels(ndim):
    objective, batch, _, hidden, voxels = setting(ndim)
    image = batch.views[0].image.clone().requires_grad_()
    prediction, _ = objective._reconstruct(replace(batch.views[0], image=image), hidden)
    (gradient,) = torch.autograd.grad(prediction.square().sum(), image)
    assert (gradient[voxels] == 0).all()
    assert (gradient[~voxels] != 0).double().mean() > 0.5


@DIMS
@pytest.mark.parametrize("training", [True, False])
def test_zeros_stay_zeros_at_every_stage(ndim, training):
    objective, batch, _, hidden, _ = setting(ndim)
    randomise(objective.encoder)
    objective.train(training)
    for features in objective.encoder(batch.views[0].image, hidden, mode="sparse").maps:
        empty = at_resolution(hidden, features.shape[2:])[:, None].expand_as(features)
        assert (features[empty] == 0).all()
        assert (features[~empty] != 0).any()


@DIMS
def test_with_everything_visible_the_sparse_encoder_is_the_dense_one(ndim):
    objective, batch, _, hidden, _ = setting(ndim)
    dense = copy.deepcopy(objective.encoder)
    sparse_maps = objective.encoder(batch.views[0].image, torch.zeros_like(hidden), mode="sparse").maps
    dense_maps = dense(batch.views[0].image).maps
    for a, b in zip(sparse_maps, dense_maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.encoder.state_dict(), dense.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_statistics_are_those_of_visible_positions(ndim):
    objective, batch, step, hidden, _ = setting(ndim, norm="batch", encoder_norm="batch")
    for norm in objective.densify.norms:
        norm.momentum = 1.0
    maps = copy.deepcopy(objective.encoder)(batch.views[0].image, hidden, mode="sparse").maps
    objective(batch, step)
    used = [number for number in objective.densify.numbers if number is not None]
    for number, norm in zip(used, objective.densify.norms, strict=True):
        visible = ~at_resolution(hidden, maps[number].shape[2:])
        vectors = maps[number].movedim(1, -1)[visible]
        torch.testing.assert_close(norm.running_mean, vectors.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, vectors.var(0), rtol=1e-5, atol=1e-6)


@DIMS
def test_the_mask_keeps_the_count_and_follows_the_sample(ndim):
    objective, batch, step, _, _ = setting(ndim)
    hidden = objective._hidden(batch.views[0], step)
    total, ratio = math.prod(objective.cells), 0.6 if ndim == 2 else 0.75
    assert (~hidden).flatten(1).sum(1).tolist() == [round(total * (1 - ratio))] * 4
    part, part_step = take(batch, step, [3, 1])
    assert torch.equal(objective._hidden(part.views[0], part_step), hidden[[3, 1]])
    assert torch.equal(objective._hidden(batch.views[0], replace(step, index=7)), hidden)


@DIMS
def test_the_exported_encoder_has_the_keys_of_the_dense_one(ndim):
    objective = setting(ndim)[0]
    plain = encoder(ndim)
    assert objective.exported()["encoder"].state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(objective.exported()["encoder"].state_dict(), strict=True)


@DIMS
def test_tokens_stand_at_hidden_positions_only(ndim):
    objective, batch, _, hidden, _ = setting(ndim)
    densify = objective.densify
    maps = objective.encoder(batch.views[0].image, hidden, mode="sparse").maps
    normalised, projected = [], []
    for norm, project in zip(densify.norms, densify.projections, strict=True):
        norm.register_forward_hook(lambda module, inputs, output: normalised.append(output))
        project.register_forward_pre_hook(lambda module, inputs: projected.append(inputs[0]))
    densify(maps, hidden)
    assert len(projected) == len(densify.tokens) == (3 if ndim == 2 else 2)
    for before, after, token in zip(normalised, projected, densify.tokens, strict=True):
        empty = at_resolution(hidden, after.shape[2:])
        assert (after.movedim(1, -1)[empty] == token).all()
        assert torch.equal(after.movedim(1, -1)[~empty], before.movedim(1, -1)[~empty])


# --- the loss


@DIMS
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_a_plain_loop(ndim, normalise):
    """Another road to the same number: voxel by voxel in NumPy, with padding, areas not scored, a missing channel."""
    objective, batch, step, hidden, _ = setting(ndim, in_channels=2, normalise_target=normalise)
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    batch = with_view(batch, present=present)
    view = batch.views[0]
    torch.manual_seed(1)
    prediction = torch.randn(4, math.prod(objective.cells), 2 * math.prod(objective.cell))
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
            if normalise:
                variance = max(np.var(target, ddof=1), floor**2) if inside.sum() > 1 else floor**2
                target = (target - target.mean()) / np.sqrt(variance + 1e-6)
            total += ((predicted[sample][box][inside] - target) ** 2).sum()
            number += inside.sum()
    assert loss.total.item() == pytest.approx(total / number, rel=1e-5)
    assert loss.terms["loss"].item() == loss.total.item()


@DIMS
def test_the_algebra_of_the_loss(ndim):
    objective, batch, step, hidden, _ = setting(ndim)
    view = replace(batch.views[0], image=torch.randn(4, 1, *SIZES[ndim]))
    whole = torch.ones_like(view.valid)
    batch = replace(batch, views=(replace(view, valid=whole, scored=whole),))
    target = pixel_target(batch.views[0], objective.cell)
    assert given(objective, target.values)(batch, step).total.item() == 0
    n = math.prod(objective.cell)
    zero = torch.zeros_like(target.values).requires_grad_()
    loss = given(objective, zero)(batch, step).total
    assert loss.item() == pytest.approx((n - 1) / n, abs=2e-5)
    (gradient,) = torch.autograd.grad(loss, zero)
    rows = hidden.flatten(1)
    assert (gradient[~rows] == 0).all()
    assert (gradient[rows] != 0).all()
    other = torch.where(rows[..., None], target.values * 0.5, torch.randn_like(target.values))
    same = torch.where(rows[..., None], target.values * 0.5, 0.0)
    assert given(objective, other)(batch, step).total.item() == given(objective, same)(batch, step).total.item()


def test_the_published_value_of_a_zero_prediction():
    """(n - 1) / n with n = 3 x 32 x 32 = 3072, from the unbiased variance."""
    view = example_batch(spark(2, in_channels=3).needs, 3)[0].views[0]
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    whole = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    view = replace(view, image=image, valid=whole, scored=whole, present=torch.ones(2, 3, dtype=torch.bool))
    squares = pixel_target(view, (32, 32)).values.square().mean(-1)
    torch.testing.assert_close(squares, torch.full_like(squares, 3071 / 3072), rtol=0, atol=2e-6)


def test_cells_without_variance_do_not_blow_up():
    """A cell of air with a trace of noise: its target stays small instead of becoming unit noise."""
    view = example_batch(spark(2).needs, 1)[0].views[0]
    image = torch.randn(4, 1, *SIZES[2])
    image[:, :, :8, :8] = -3 + 1e-4 * torch.randn(4, 1, 8, 8)
    values = pixel_target(replace(view, image=image), (8, 8)).values
    assert values[1:3, 0].abs().max() < 0.1
    assert values[1:3, 1].std() == pytest.approx(1, abs=0.1)
    constant = pixel_target(replace(view, image=torch.full_like(image, 7.0)), (8, 8)).values
    assert (constant == 0).all()


@pytest.mark.parametrize("key", ["valid", "scored"])
@pytest.mark.parametrize("value", [1e4, float("nan")])
def test_hidden_voxels_outside_the_loss_do_not_matter(key, value):
    objective, batch, step, _, voxels = setting(2)
    torch.manual_seed(3)
    out = torch.rand(4, 1, *SIZES[2]) < 0.5
    batch = with_view(batch, **{key: ~out})
    other = with_view(batch, image=torch.where(out & voxels, value, batch.views[0].image))
    losses = [copy.deepcopy(objective)(each, step).total for each in (batch, other)]
    assert losses[0].item() == losses[1].item()
    other_loss = objective(other, step).total
    gradients = torch.autograd.grad(other_loss, list(objective.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@DIMS
@pytest.mark.parametrize("key", ["valid", "scored", "present"])
def test_with_nothing_to_score_the_loss_and_its_gradient_are_zero(ndim, key):
    objective, batch, step, _, _ = setting(ndim)
    loss = objective(with_view(batch, **{key: torch.zeros_like(getattr(batch.views[0], key))}), step)
    assert loss.total.item() == 0
    gradients = torch.autograd.grad(loss.total, list(objective.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)
    assert all(term.isfinite() for term in loss.terms.values())


@DIMS
def test_shift_and_scale_of_the_target_do_not_matter(ndim):
    objective, batch, step, _, _ = setting(ndim)
    prediction = torch.randn(4, math.prod(objective.cells), math.prod(objective.cell))
    batch = with_view(batch, image=100 * batch.views[0].image)
    other = with_view(batch, image=3 * batch.views[0].image + 70)
    losses = [given(objective, prediction)(each, step).total.item() for each in (batch, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_terms_say_how_much_was_hidden_and_how_well_it_was_met():
    objective, batch, step, _, _ = setting(2)
    target = pixel_target(batch.views[0], objective.cell).values
    terms = given(objective, 0.3 * target)(batch, step).terms
    assert terms["correlation"].item() == pytest.approx(1, abs=1e-3)
    assert terms["hidden"].item() == pytest.approx(0.6, abs=0.06)


# --- pictures


@DIMS
def test_pictures_show_input_mask_and_reconstruction_in_the_values_of_the_input(ndim):
    objective, batch, step, hidden, voxels = setting(ndim)
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
    assert torch.corrcoef(torch.stack((cells, means)))[0, 1] > 0.9  # un-normalised with the true mean


# --- what fits and what does not


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"view": ViewSpec(size=(36, 48))},
            r"view size \(36, 48\) is not a multiple of \(8, 8\).*\(32, 48\) or \(40, 48\)",
        ),
        ({"view": ViewSpec(size=(16, 16, 16))}, r"view size \(16, 16, 16\) is 3D, the encoder takes 2D: change"),
        (
            {"cell": (16, 16), "view": ViewSpec(size=(40, 48))},
            r"mask cell \(16, 16\), view size \(40, 48\) is not a multiple",
        ),
        ({"cell": (12, 8)}, r"mask cell \(12, 8\) does not nest with the encoder's stride \(8, 8\)"),
        ({"cell": (8,)}, r"cell \(8,\) needs one number, 1 or more, for each of the 2 axes"),
        ({"cell": (8, 0)}, r"cell \(8, 0\) needs one number, 1 or more"),
        ({"mask_ratio": 1.0}, r"mask ratio 1.0 hides 24 of 24 cells .* take a larger view or another mask_ratio"),
        ({"mask_ratio": 0.001}, r"mask ratio 0.001 hides 0 of 24 cells"),
        ({"mask_ratio": 1.5}, r"mask ratio 1.5 must lie between 0"),
        ({"norm": "group"}, r'norm "group" is unknown: expected one of batch, instance, layer'),
        ({"decoder_width": 20}, r"decoder width 20 is halved 3 times: expected a multiple of 8"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        spark(2, **arguments)


def test_an_encoder_that_cannot_be_masked_sparsely_is_refused():
    dense = encoder(2)
    dense.mask_modes = frozenset({"fill"})
    with pytest.raises(UserError, match='ResEnc has mask modes: fill; SparK needs an encoder with "sparse"'):
        SparK(dense, view=ViewSpec(size=(32, 32)))


@pytest.mark.parametrize(
    ("ndim", "cell", "size"),
    [(2, (4, 4), (32, 48)), (2, (16, 8), (32, 48)), (3, (8, 4, 2), (16, 24, 12)), (3, (2, 2, 4), (16, 24, 12))],
)
def test_cells_of_ones_own_may_be_finer_or_coarser_than_the_stride(ndim, cell, size):
    torch.manual_seed(0)
    objective = spark(ndim, cell=cell)
    batch, step = example_batch(objective.needs, 1)
    assert objective.cells == tuple(n // side for n, side in zip(size, cell, strict=True))
    loss = objective(batch, step).total
    assert loss.item() == pytest.approx(1, abs=0.4)
    gradients = torch.autograd.grad(loss, list(objective.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_published_shapes():
    """ResNet-like strides 4 to 32: five steps of 768, 384, 192, 96, 48 channels, four maps."""
    published = encoder(2)
    published.strides, published.channels = ((4, 4), (8, 8), (16, 16), (32, 32)), (256, 512, 1024, 2048)
    published.mask_cell = (32, 32)
    objective = SparK(published, view=ViewSpec(size=(224, 224)))
    assert objective.decoder.widths == (768, 384, 192, 96, 48)
    assert objective.densify.numbers == (3, 2, 1, 0, None)
    assert objective.cells == (7, 7)
    assert [tuple(p.weight.shape[1::-1]) for p in objective.densify.projections] == [
        (2048, 768),
        (1024, 384),
        (512, 192),
        (256, 96),
    ]
    assert [p.weight.shape[-1] for p in objective.densify.projections] == [1, 3, 3, 3]
