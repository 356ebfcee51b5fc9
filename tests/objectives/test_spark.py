"""SparK: what is hidden stays empty in 2D and 3D, tokens, statistics, shapes; input that does not fit.

What it shares with other masked modeling (mask, loss, pictures) is tested in ``test_reconstruction.py``.
"""

from __future__ import annotations

import copy

import pytest
import torch
from objectives.small import encoder, randomize, spark

from medssl.encoders.timm2d import Timm2d
from medssl.heads.segmentation import UNet
from medssl.objectives.base import check_objective
from medssl.objectives.contract import example_batch
from medssl.objectives.spark import SparK
from medssl.ops.draws import draws
from medssl.ops.masking import at_resolution, random_hidden
from medssl.types import LabelSchema, UserError, ViewSpec

DIMS = pytest.mark.parametrize("ndim", [2, 3])


def setting(ndim, **arguments):
    torch.manual_seed(0)
    objective = spark(ndim, **arguments).train()
    batch, step = example_batch(objective.needs, arguments.get("in_channels", 1))
    hidden = random_hidden(objective.cells, objective.mask_ratio, draws(step, "spark.mask"))
    return objective, batch, step, hidden


@DIMS
@pytest.mark.parametrize("training", [True, False])
def test_zeros_stay_zeros_at_every_stage(ndim, training):
    objective, batch, _, hidden = setting(ndim)
    randomize(objective.encoder)
    objective.train(training)
    for features in objective.encoder(batch.views[0].image, hidden, mode="sparse").maps:
        empty = at_resolution(hidden, features.shape[2:])[:, None].expand_as(features)
        assert (features[empty] == 0).all()
        assert (features[~empty] != 0).any()


@DIMS
def test_with_everything_visible_the_sparse_encoder_is_the_dense_one(ndim):
    objective, batch, _, hidden = setting(ndim)
    dense = copy.deepcopy(objective.encoder)
    sparse_maps = objective.encoder(batch.views[0].image, torch.zeros_like(hidden), mode="sparse").maps
    dense_maps = dense(batch.views[0].image).maps
    for a, b in zip(sparse_maps, dense_maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.encoder.state_dict(), dense.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_statistics_are_those_of_visible_positions(ndim):
    objective, batch, step, hidden = setting(ndim, norm="batch", encoder_norm="batch")
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
def test_the_exported_encoder_has_the_keys_of_the_dense_one(ndim):
    objective = setting(ndim)[0]
    plain = encoder(ndim)
    assert objective.exported()["encoder"].state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(objective.exported()["encoder"].state_dict(), strict=True)


@DIMS
def test_tokens_stand_at_hidden_positions_only(ndim):
    objective, batch, _, hidden = setting(ndim)
    densify = objective.densify
    maps = objective.encoder(batch.views[0].image, hidden, mode="sparse").maps
    normalized, projected = [], []
    for norm, project in zip(densify.norms, densify.projections, strict=True):
        norm.register_forward_hook(lambda module, inputs, output: normalized.append(output))
        project.register_forward_pre_hook(lambda module, inputs: projected.append(inputs[0]))
    densify(maps, hidden)
    assert len(projected) == len(densify.tokens) == (3 if ndim == 2 else 2)
    for before, after, token in zip(normalized, projected, densify.tokens, strict=True):
        empty = at_resolution(hidden, after.shape[2:])
        assert (after.movedim(1, -1)[empty] == token).all()
        assert torch.equal(after.movedim(1, -1)[~empty], before.movedim(1, -1)[~empty])


# --- what fits and what does not


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"view": ViewSpec(size=(36, 48))},
            r"view size \(36, 48\) is not a multiple of \(8, 8\).*\(32, 48\) or \(40, 48\)",
        ),
        (
            {"view": ViewSpec(size=(16, 16, 16))},
            r"view size \(16, 16, 16\) is 3D, the encoder takes 2D: take encoder and objective of one recipe",
        ),
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


@pytest.mark.parametrize(("model", "stem"), [("resnet18", 1), ("regnety_004", 1), ("convnext_atto", 0)])
def test_the_map_of_a_stem_does_not_enter_the_decoder(model, stem):
    """As the published code, which drops the first entry of a ResNet's ``feature_info`` and none of a ConvNeXt's."""
    import timm

    published = [entry["reduction"] for entry in timm.create_model(model, num_classes=0).feature_info][stem:]
    network = Timm2d(model, in_channels=1)
    objective = SparK(network, view=ViewSpec(size=(64, 64)), decoder_width=32)
    used = [number for number in objective.densify.numbers if number is not None]
    assert [network.strides[number][0] for number in used] == published[::-1] == [32, 16, 8, 4]
    assert objective.decoder.widths == (32, 16, 8, 4, 2)


# --- the decoder of a U-Net


@DIMS
def test_a_unet_decoder_gets_tokens_and_the_maps_of_the_encoder(ndim):
    """By hand: the encoder's maps, a token in each hidden position, the decoder, one convolution."""
    objective, batch, _, hidden = setting(ndim, decoder="unet", decoder_width=None)
    image = batch.views[0].image
    found, _ = copy.deepcopy(objective).reconstruct(image, hidden)
    maps = objective.encoder(image, hidden, mode="sparse").maps
    for x, token in zip(maps, objective.densify.tokens, strict=True):
        for row, column in at_resolution(hidden, x.shape[2:]).flatten(1).nonzero().tolist():
            x.flatten(2)[row, :, column] = token
    torch.testing.assert_close(found, objective.predict(objective.decoder(maps)[-1]))


@DIMS
def test_a_head_that_starts_from_the_decoder_computes_what_pretraining_did(ndim):
    """With nothing hidden, a U-Net head with the exported weights has the features that SparK predicts from."""
    objective, batch, _, hidden = setting(ndim, decoder="unet", decoder_width=None)
    randomize(objective)
    schema = LabelSchema("mask", "mask", ((0, "background"), (1, "organ")))
    head = UNet(objective.encoder, schema)
    head.decoder.load_state_dict(objective.exported()["decoder"].state_dict(), strict=True)
    image = batch.views[0].image
    with torch.no_grad():
        features = objective.eval().encoder(image)
        expected, _ = objective.reconstruct(image, torch.zeros_like(hidden))
        found = objective.predict(head.eval().decoder(features.maps)[-1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@DIMS
def test_a_unet_decoder_keeps_the_contract(ndim):
    check_objective(lambda: spark(ndim, decoder="unet", decoder_width=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "u"}, r"objective\.decoder: there is no such decoder \(got 'u'; expected light or unet\)"),
        (
            {"decoder": "unet", "decoder_width": 32},
            r"objective\.decoder_width: a U-Net decoder takes its channels from",
        ),
    ],
)
def test_decoders_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        spark(2, **arguments)
