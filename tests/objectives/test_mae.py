"""Masked autoencoders: tokens return to their places, which the decoder measures as the encoder does; the U-Net."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.small import PATCHES, SIZES, encoder, mae, plain_batch, unet_mae, vit
from torch import nn

from medssl.encoders.vit import ViT
from medssl.heads.segmentation import UNet
from medssl.nn.transformer import gather_tokens, sincos_positions, visible_numbers
from medssl.nn.twins import MaskedBatchNorm, MaskedInstanceNorm
from medssl.objectives.base import check_objective
from medssl.objectives.contract import example_batch
from medssl.objectives.mae import MAE, TokenDecoder, UNetMAE
from medssl.ops.masking import at_resolution
from medssl.ops.patches import patchify
from medssl.types import Features, LabelSchema, Step, UserError, ViewSpec

DIMS = pytest.mark.parametrize("ndim", [2, 3])


def setting(ndim, make=mae, **arguments):
    torch.manual_seed(0)
    objective = make(ndim, **arguments)
    batch, step = example_batch(objective.needs, 1)
    return objective, batch.views[0], objective.hidden(batch.views[0], step)


def hands_on(width: int) -> TokenDecoder:
    """A decoder that changes nothing and knows no places: what enters comes out."""
    decoder = TokenDecoder(width, width, width=width, depth=1)
    decoder.embed = decoder.blocks = decoder.norm = decoder.predict = nn.Identity()
    return decoder


@pytest.fixture
def without_places(monkeypatch):
    def nowhere(cells, width, **arguments):
        return torch.zeros(math.prod(cells), width)

    monkeypatch.setattr("medssl.objectives.mae.sincos_positions", nowhere)


# --- tokens


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 49), (0.9, 20), (0.6, 78)])
def test_the_encoder_sees_the_visible_patches_only(ratio, visible):
    """196 patches of 16 in 224 x 224, as published."""
    torch.manual_seed(0)
    small = ViT(patch=(16, 16), width=32, depth=1)
    objective = MAE(small, view=ViewSpec(size=(224, 224)), mask_ratio=ratio, decoder_width=32, decoder_depth=1)
    counts = []
    small.blocks[0].register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[1]))
    loss = objective(plain_batch(torch.randn(2, 1, 224, 224), (0, 1)), Step(0, 1, 0, (0, 1)))
    assert counts == [visible]
    assert loss.terms["hidden"].item() == pytest.approx(1 - visible / 196)


@pytest.mark.usefixtures("without_places")
@DIMS
def test_visible_patches_come_back_to_their_own_places(ndim):
    """With an encoder and a decoder that hand on what they get, the image comes back where it was visible."""
    objective, view, hidden = setting(ndim)
    width = math.prod(PATCHES[ndim])

    def hand_on(image, hidden, mode):
        assert mode == "drop"
        kept = visible_numbers(hidden)
        return Features(
            maps=(), pooled=image.mean(), tokens=gather_tokens(patchify(image, PATCHES[ndim]), kept), visible_cells=kept
        )

    objective.encoder.forward = hand_on
    objective.decoder = hands_on(width)
    found, _ = objective.reconstruct(view.image, hidden)
    covered = at_resolution(hidden, SIZES[ndim])[:, None]
    assert torch.equal(found[~covered], view.image[~covered])
    rows = patchify(found, PATCHES[ndim])[hidden.flatten(1)]
    assert torch.equal(rows, objective.decoder.mask_token[0].expand_as(rows))
    assert (~covered).flatten(1).sum(1).unique().tolist() == [(~hidden)[0].sum() * width]


def test_the_decoder_is_that_of_a_plain_loop():
    """Token by token into a list, in float64; the order in which tokens come does not matter."""
    torch.manual_seed(0)
    decoder = TokenDecoder(5, 7, width=12, depth=2).double()
    tokens, cells, step = torch.randn(2, 4, 5).double(), (2, 3, 2), (0.5, 1.0, 0.25)
    kept = torch.tensor([[0, 3, 4, 11], [1, 2, 9, 10]])
    found = decoder(tokens, kept, cells, step=step)
    places = sincos_positions(cells, 12, step=step, like=tokens)
    for sample in range(2):
        row = []
        for place in range(12):
            there = (kept[sample] == place).nonzero()
            row.append(decoder.embed(tokens[sample, there[0, 0]]) if len(there) else decoder.mask_token[0, 0])
            row[-1] = row[-1] + places[place]
        want = decoder.predict(decoder.norm(decoder.blocks(torch.stack(row)[None])))[0]
        torch.testing.assert_close(found[sample], want)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(decoder(tokens[:, order], kept[:, order], cells, step=step), found)


@DIMS
def test_the_decoder_measures_places_as_the_encoder_does(ndim):
    """In 3D voxels are of 1 x 2 x 3 mm and patches of 8 x 6 x 2 of them: 8, 12 and 6 mm, and 12 is the unit."""
    objective, view, hidden = setting(ndim)
    entering = []
    objective.decoder.blocks.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        objective.reconstruct(view.image, hidden)
    step = (1.0, 0.75) if ndim == 2 else (8 / 12, 1.0, 0.5)
    places = sincos_positions(objective.cells, 32, step=step)
    at_hidden = (entering[0] - places - objective.decoder.mask_token)[hidden.flatten(1)]
    torch.testing.assert_close(at_hidden, torch.zeros_like(at_hidden), rtol=0, atol=1e-6)


def test_a_decoder_without_positions_of_the_encoder_counts_patches():
    objective, view, hidden = setting(2)
    objective.encoder.step = None
    entering = []
    objective.decoder.blocks.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        objective.reconstruct(view.image, hidden)
    at_hidden = (entering[0] - sincos_positions(objective.cells, 32) - objective.decoder.mask_token)[hidden.flatten(1)]
    torch.testing.assert_close(at_hidden, torch.zeros_like(at_hidden), rtol=0, atol=1e-6)


def test_the_published_decoder():
    with torch.device("meta"):
        objective = MAE(ViT(3, patch=(16, 16), width=768, depth=12), view=ViewSpec(size=(224, 224)))
    decoder = objective.decoder
    assert (decoder.embed.in_features, decoder.embed.out_features, decoder.predict.out_features) == (768, 512, 768)
    assert len(decoder.blocks) == 8
    assert {block.attn.heads for block in decoder.blocks} == {16}
    assert objective.mask_ratio == 0.75
    assert objective.cells == (14, 14)


def test_predictions_start_near_the_mean_of_the_target():
    objective = setting(2)[0]
    batch, step = example_batch(objective.needs, 1)
    terms = objective(batch, step).terms
    assert terms["loss"].item() == pytest.approx(terms["chance"].item(), abs=0.05)


def test_a_class_token_and_registers_keep_the_contract():
    def make():
        small = vit(2, pool="class", registers=2)
        return MAE(small, view=ViewSpec(size=SIZES[2]), decoder_width=48, decoder_depth=2)

    check_objective(make, steps=12)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"decoder_width": 100}, "transformer: heads 3 must divide width 100"),
        ({"decoder_width": 0}, r"decoder_width: must be a multiple of 32 \(got 0\)"),
        ({"decoder_depth": 0}, r"transformer: depth: must be at least 1 \(got 0\)"),
        ({"mask_ratio": 1.0}, r"mask ratio 1.0 hides 32 of 32 cells \(4, 8\): some must be hidden, some visible"),
        (
            {"view": ViewSpec(size=(32, 45))},
            r"view size \(32, 45\) is not a multiple of \(8, 6\).*\(32, 42\) or \(32, 48\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        mae(2, **arguments)


# --- the convolutional form


@DIMS
def test_the_unet_sees_zeros_in_hidden_cells(ndim):
    objective, view, hidden = setting(ndim, unet_mae)
    seen = []
    objective.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    found, features = objective.reconstruct(view.image, hidden)
    covered = at_resolution(hidden, SIZES[ndim])[:, None]
    ((image,),) = seen  # the image alone: the encoder runs densely
    assert torch.equal(image, torch.where(covered, 0.0, view.image))
    assert found.shape == view.image.shape
    dense = objective.encoder(image)
    assert all(torch.equal(a, b) for a, b in zip(features.maps, dense.maps, strict=True))


@DIMS
def test_the_unet_is_that_of_the_segmentation_head(ndim):
    """Its decoder is exported, and the head takes every key of it."""
    objective = unet_mae(ndim)
    exported = objective.exported()
    assert exported["encoder"] is objective.encoder
    head = UNet(encoder(ndim), LabelSchema("mask", ((0, "background"), (1, "organ"))))
    head.decoder.load_state_dict(exported["decoder"].state_dict(), strict=True)


@pytest.mark.parametrize("cell", [(4, 4), (16, 8), (16, 16)])
def test_cells_of_the_unet_may_be_finer_or_coarser_than_the_stride(cell):
    objective = unet_mae(2, cell=cell)
    assert objective.cells == (32 // cell[0], 48 // cell[1])
    batch, step = example_batch(objective.needs, 1)
    assert objective(batch, step).total.isfinite()


@pytest.mark.parametrize(("norm", "kind"), [("instance", MaskedInstanceNorm), ("batch", MaskedBatchNorm)])
def test_the_decoder_takes_the_norm_of_the_head_that_goes_on_with_it(norm, kind):
    both = (MaskedInstanceNorm, MaskedBatchNorm)
    norms = [layer for layer in unet_mae(2, norm=norm).decoder.modules() if isinstance(layer, both)]
    assert norms
    assert all(isinstance(layer, kind) for layer in norms)


def test_the_unet_takes_a_transformer_too():
    torch.manual_seed(0)
    objective = UNetMAE(vit(2), view=ViewSpec(size=SIZES[2]), normalize_target=True)
    batch, step = example_batch(objective.needs, 1)
    loss = objective(batch, step).total
    gradients = torch.autograd.grad(loss, list(objective.encoder.blocks.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients)
