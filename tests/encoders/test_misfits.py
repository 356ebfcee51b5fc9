"""Tensors that change what a network computes load into a matching network, or are refused with what to set."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from medssl.encoders.resenc import ResEnc
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.encoders.weights import load
from medssl.nn.transformer import sincos_positions
from medssl.types import UserError

CELLS, WIDTH = (3, 3), 64


def vit(**changes) -> ViT:
    torch.manual_seed(0)
    return ViT(**({"patch": (4, 4), "width": WIDTH, "depth": 4} | changes))


def timms(**changes):
    """A vision transformer of timm with weights away from their first values, and sines and cosines for positions."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(1)
    arguments = {"img_size": 12, "patch_size": 4, "in_chans": 1, "num_classes": 0, "embed_dim": WIDTH, "depth": 4}
    network = VisionTransformer(**(arguments | {"num_heads": 1, "global_pool": "token"} | changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        extra = network.pos_embed.shape[1] - 9
        network.pos_embed.copy_(torch.cat((torch.zeros(extra, WIDTH), sincos_positions(CELLS, WIDTH)))[None])
    return network


def saved(tmp_path, state):
    save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


# --- what a matching network takes


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"init_values": 1e-5}, {"pool": "class", "layer_scale": 1e-5}),
        ({"class_token": True}, {"pool": "class"}),
        ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean_beside_class"}),
        ({"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1}, {"pool": "class", "registers": 4,
         "layer_scale": 1.0}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("official", [True, False])
def test_weights_of_a_matching_network_compute_what_they_computed(tmp_path, theirs, ours, official):
    """Register tokens by timm's name, and by that of DINOv2."""
    network, encoder = timms(**theirs), vit(**ours).eval()
    state = network.state_dict()
    if official:
        state = {key.replace("reg_token", "register_tokens"): value for key, value in state.items()}
    report = load(encoder, saved(tmp_path, state))
    assert report.missing == ("mask_token",)
    assert report.unexpected == ("pos_embed",)
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(encoder(x).pooled, network(x), rtol=1e-4, atol=1e-5)
    extra = network.num_prefix_tokens
    torch.testing.assert_close(encoder(x).tokens, network.forward_features(x)[:, extra:], rtol=1e-4, atol=1e-5)


# --- what a network without such tensors refuses

BLOCKS = [f"blocks.{number}." for number in range(4)]
SCALES = {f"{block}ls{n}.gamma": torch.full((WIDTH,), 1e-3) for block in BLOCKS for n in (1, 2)}
TABLE = torch.cat((torch.zeros(1, WIDTH), sincos_positions(CELLS, WIDTH)))[None]
CANNOT = "ViT cannot have it: take a class of encoder that has, such as medssl.encoders.timm2d.Timm2d"
EXTRA = {
    "layer scale": (SCALES, "LayerScale", "encoder.layer_scale", "Set it to 1e-5"),
    "layer scale, other names": (
        {f"{block}gamma_1": torch.ones(WIDTH) for block in BLOCKS}, "LayerScale", "encoder.layer_scale", "Set it to"
    ),
    "class token": (
        {"cls_token": torch.zeros(1, 1, WIDTH)}, "a class token", "encoder.pool", "Set it to class or mean_beside_class"
    ),
    "registers": ({"register_tokens": torch.zeros(1, 3, WIDTH)}, "register tokens", "encoder.registers", "Set it to 3"),
    "storage": ({"storage_tokens": torch.zeros(1, 4, WIDTH)}, "register tokens", "encoder.registers", "Set it to 4"),
    "distilled": ({"dist_token": torch.zeros(1, 1, WIDTH)}, "a distillation token", "", CANNOT),
    "learned table": (
        {"pos_embed": TABLE + 0.1 * torch.randn_like(TABLE)}, "a learned table of positions", "encoder.place",
        "Set it to learned, with encoder.grid",
    ),
    "class position": (
        {"pos_embed": TABLE + (torch.arange(10) == 0)[:, None]}, "a learned table of pos", "encoder.place",
        "Set it to learned, with encoder.grid",
    ),
    "rope": ({"rope_embed.periods": torch.ones(16)}, "rotary positions", "", CANNOT),
    "relative": ({"rel_pos_bias.relative_position_bias_table": torch.ones(25, 1)}, "relative positions", "", CANNOT),
    "query norm": (
        {f"{block}attn.{name}_norm.weight": torch.ones(WIDTH) for block in BLOCKS for name in "qk"},
        "norms of queries and keys", "", CANNOT,
    ),
    "gated": (
        {f"{block}mlp.{name}.weight": torch.ones(2 * WIDTH, WIDTH) for block in BLOCKS for name in ("w12", "w3")},
        "a gated MLP (SwiGLU)", "", CANNOT,
    ),
    "norm before": ({"norm_pre.weight": torch.ones(WIDTH)}, "a norm before the first block", "", CANNOT),
    "unknown token": ({"prompt": torch.ones(1, 5, WIDTH)}, "a learned token or table of its own", "", CANNOT),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "student.backbone."])
@pytest.mark.parametrize(("tensors", "what", "key", "hint"), EXTRA.values(), ids=EXTRA)
def test_what_changes_the_features_is_refused_by_name_with_what_to_set(tmp_path, tensors, what, key, hint, prefix):
    encoder = vit()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = {prefix + name: value for name, value in (vit(depth=4).state_dict() | tensors).items()}
    with pytest.raises(UserError, match=re.escape(f"the weights have {what}")) as error:
        load(encoder, saved(tmp_path, state))
    assert error.value.key == key
    assert error.value.hint.startswith(hint)
    assert f"{len(tensors)} of their tensors would be left out ({min(tensors)}" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert set(load(encoder, saved(tmp_path, state), minimum=0.8).unexpected) == {prefix + name for name in tensors}


def test_parts_beside_the_blocks_are_refused_too(tmp_path):
    state = vit().state_dict() | {"patch_embed.norm.weight": torch.ones(WIDTH)}
    words = r"1 of their keys belong to parts that ViT has without them \(patch_embed\.norm\.weight\)"
    with pytest.raises(UserError, match=words):
        load(vit(), saved(tmp_path, state))


def test_a_norm_after_pooling_is_none_before(tmp_path):
    """Fine-tuned masked autoencoders have fc_norm and no norm; beside a norm it belongs to the head."""
    state = vit().state_dict()
    after = {key: value for key, value in state.items() if not key.startswith("norm.")}
    extra = {"fc_norm.weight": torch.ones(WIDTH), "fc_norm.bias": torch.zeros(WIDTH)}
    with pytest.raises(UserError, match="the weights have a norm after pooling in place of one before, ViT has not"):
        load(vit(), saved(tmp_path, after | extra))
    assert set(load(vit(), saved(tmp_path, state | extra)).unexpected) == set(extra)


@pytest.mark.parametrize(
    ("arguments", "what", "key"),
    [
        ({"layer_scale": 0.1}, "LayerScale", "encoder.layer_scale"),
        ({"pool": "class"}, "a class token", "encoder.pool"),
        ({"registers": 2}, "register tokens", "encoder.registers"),
    ],
)
def test_what_the_file_lacks_does_not_stay_random(tmp_path, arguments, what, key):
    with pytest.raises(UserError, match=f"ViT has {what}, the weights have not") as error:
        load(vit(**arguments), saved(tmp_path, vit().state_dict()))
    assert (error.value.key, error.value.hint) == (key, "Leave it out of the encoder, or choose another file.")
    assert load(vit(**arguments), saved(tmp_path, vit().state_dict()), minimum=0.5).missing


def test_heads_and_decoders_of_the_file_are_left_out(tmp_path):
    extra = {"head.weight": torch.ones(3, WIDTH), "decoder_pos_embed": torch.zeros(1, 9, 16), "fc.bias": torch.ones(3)}
    extra |= {"decoder_blocks.0.attn.qkv.weight": torch.zeros(48, 16), "pos_embed": TABLE.half()}
    assert set(load(vit(), saved(tmp_path, vit().state_dict() | extra)).unexpected) == set(extra)


def test_a_table_of_slices_is_none_of_a_volume(tmp_path):
    """Weights of slices are a rough start of a volume's; the table is in the report."""
    flat, deep = vit(), vit(patch=(4, 4, 4))
    report = load(deep, saved(tmp_path, flat.state_dict() | {"pos_embed": TABLE}))
    assert report.unexpected == ("pos_embed",)
    assert report.adapted == ("patch_embed.proj.weight",)


def test_tables_in_other_units_are_others(tmp_path):
    """Patches of 4 x 8 voxels: their positions are not those of square patches."""
    oblong = vit(patch=(4, 8))
    state = oblong.state_dict() | {"pos_embed": TABLE}
    with pytest.raises(UserError, match="the weights have a learned table of positions, ViT has not"):
        load(oblong, saved(tmp_path, state))


# --- other encoders


def test_models_of_timm_refuse_the_same(tmp_path):
    """DINOv2's file for a plain vision transformer."""
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, init_values=1e-5, img_size=32)
    ours = Timm2d("vit_tiny_patch16_224", in_channels=1)
    with pytest.raises(UserError, match="the weights have LayerScale, Timm2d has not") as error:
        load(ours, saved(tmp_path, theirs.state_dict()))
    assert "take a class of encoder that has, such as medssl.encoders.timm2d.Timm2d with the model" in error.value.hint


ARGUMENTS = {"channels": [4, 8, 8], "blocks": [1, 3, 2], "ndim": 2, "in_channels": 1}


@pytest.mark.parametrize(
    ("file", "module", "words"),
    [
        ({"blocks": [1, 4, 2]}, {}, r"those of a deeper network: \d+ of their keys go on where ResEnc ends"),
        ({}, {"channels": [4, 8, 8, 8], "blocks": [1, 3, 2, 1]}, "too few weights fit ResEnc"),
        (
            {"channels": [4] * 14, "blocks": [1] * 14},
            {"channels": [4] * 15, "blocks": [1] * 15},
            r"those of a shallower network: 1 blocks of ResEnc would stay random \(encoder\.stages\.14\.\)",
        ),
        ({"norm": "batch"}, {"norm": "instance"}, "belong to parts that ResEnc has without them .*running_mean"),
    ],
)
def test_residual_encoders_of_another_depth_or_norm_are_refused(tmp_path, file, module, words):
    with pytest.raises(UserError, match=words):
        load(ResEnc(**(ARGUMENTS | module)), saved(tmp_path, ResEnc(**(ARGUMENTS | file)).state_dict()))
