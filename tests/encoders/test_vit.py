"""The vision transformer keeps the contract; hidden patches are left out as if by hand; its weights take any size."""

from __future__ import annotations

import copy

import pytest
import torch

from medssl.encoders.base import ContractError, check_encoder
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.encoders.weights import load
from medssl.nn.transformer import sincos_positions
from medssl.ops.patches import patchify
from medssl.training.optim import FineTuning, make_optimizer
from medssl.training.rates import layer_shares
from medssl.types import Features, UserError

SMALL = {"width": 32, "depth": 3}
KINDS = {
    "2d": {"patch": (4, 4)},
    "2d class token": {"patch": (4, 2), "pool": "class", "in_channels": 3},
    "3d": {"patch": (2, 4, 4), "registers": 2, "spacing_mm": (5.0, 1.0, 1.0)},
    "2d layer scale": {"patch": (4, 4), "pool": "mean_beside_class", "layer_scale": 0.1, "drop_path": 0.3},
    "3d thick": {"patch": (1, 4, 4), "drop_path": 0.3, "pool": "class", "registers": 1, "width": 128},
}
SIZES = {2: (16, 12), 3: (4, 8, 12)}


def vit(name: str, **changes) -> ViT:
    torch.manual_seed(0)
    return ViT(**(SMALL | KINDS[name] | changes))


def image_of(encoder: ViT, rows: int = 2) -> torch.Tensor:
    (ndim,) = encoder.ndims
    return torch.randn(rows, encoder.in_channels, *SIZES[ndim], generator=torch.Generator().manual_seed(1))


def random_mask(encoder: ViT, image: torch.Tensor, count: int, factor: int = 1) -> torch.Tensor:
    """``count`` hidden cells, other ones in each sample."""
    cells = [n // p // factor for n, p in zip(image.shape[2:], encoder.patch, strict=True)]
    noise = torch.rand(len(image), *cells, generator=torch.Generator().manual_seed(2)).flatten(1)
    return (noise.argsort(1).argsort(1) < count).reshape(len(image), *cells)


@pytest.mark.parametrize("name", KINDS)
def test_it_keeps_the_contract(name):
    check_encoder(vit(name))


def test_it_keeps_the_contract_when_it_recomputes():
    encoder = vit("3d")
    encoder.recompute = True
    check_encoder(encoder, (4, 8, 4))


@pytest.mark.parametrize("name", KINDS)
def test_dropping_is_embedding_all_selecting_and_running(name):
    """Sample by sample with the parts of the encoder, in float64; patches by a strided convolution."""
    encoder = vit(name).double().eval()
    image = image_of(encoder).double()
    hidden = random_mask(encoder, image, 5)
    found = encoder(image, hidden, "drop")
    assert found.maps == ()
    for row, (x, covered) in enumerate(zip(image, hidden, strict=True)):
        grid = encoder.patch_embed.proj(x[None])[0]
        cells = grid.shape[1:]
        all_tokens = grid.flatten(1).T + sincos_positions(cells, grid.shape[0], step=encoder.step, like=x)
        kept = [number for number, away in enumerate(covered.flatten().tolist()) if not away]
        extra = [t[0] for t in (encoder.cls_token, encoder.reg_token) if t is not None]
        tokens = torch.cat([*extra, all_tokens[kept]])[None]
        tokens = encoder.norm(encoder.blocks(tokens))[0]
        assert found.visible_cells[row].tolist() == kept
        torch.testing.assert_close(found.tokens[row], tokens[-len(kept) :])
        pooled = tokens[0] if encoder.pool == "class" else tokens[-len(kept) :].mean(0)
        torch.testing.assert_close(found.pooled[row], pooled)


def test_filling_puts_the_mask_token_in_the_place_of_hidden_patches():
    encoder = vit("2d").double().eval()
    image = image_of(encoder).double()
    hidden = random_mask(encoder, image, 7)
    found = encoder(image, hidden, "fill")
    embedded = encoder.patch_embed(patchify(image, encoder.patch))
    embedded[hidden.flatten(1)] = encoder.mask_token[0, 0]
    tokens = embedded + sincos_positions(hidden.shape[1:], 32, like=image)
    torch.testing.assert_close(found.tokens, encoder.norm(encoder.blocks(tokens)))
    assert found.visible_cells is None
    assert found.maps[-1].shape[2:] == hidden.shape[1:]


def test_a_mask_of_larger_cells_hides_all_patches_of_a_cell():
    encoder = vit("2d").eval()
    image = torch.randn(2, 1, 16, 16)
    coarse = random_mask(encoder, image, 2, factor=2)
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    a, b = encoder(image, coarse, "drop"), encoder(image, fine, "drop")
    assert a.tokens.shape[1] == 8
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.visible_cells, b.visible_cells)


def test_masks_that_it_cannot_take():
    encoder = vit("2d")
    image = image_of(encoder)
    hidden = random_mask(encoder, image, 5)
    with pytest.raises(UserError, match='ViT cannot hide cells in mode "sparse"; its modes are: drop, fill'):
        encoder(image, hidden)
    hidden[0] = False
    with pytest.raises(UserError, match="equally many visible cells in every sample"):
        encoder(image, hidden, "drop")


def test_one_set_of_weights_takes_any_size():
    encoder = vit("3d").eval()
    for size in ((2, 8, 4), (6, 4, 16)):
        features = encoder(torch.randn(1, 1, *size))
        cells = tuple(n // p for n, p in zip(size, encoder.patch, strict=True))
        assert [x.shape[2:] for x in features.maps] == [cells] * 3
        assert features.tokens.shape[1] == torch.Size(cells).numel()
        torch.testing.assert_close(features.maps[-1].flatten(2).mT, features.tokens)


def test_positions_in_mm_know_the_spacing():
    assert vit("2d").step == (1.0, 1.0)
    assert ViT(patch=(2, 16, 16), width=64, depth=1).step == (0.125, 1.0, 1.0)
    assert ViT(patch=(2, 16, 16), width=64, depth=1, spacing_mm=(4.0, 0.5, 0.5)).step == (1.0, 1.0, 1.0)
    a, b = vit("3d").eval(), vit("3d", spacing_mm=None).eval()
    b.load_state_dict(a.state_dict())
    x = image_of(a)
    assert not torch.allclose(a(x).pooled, b(x).pooled)


def test_tables_of_positions_are_no_state():
    encoder = vit("3d")
    assert not list(encoder.buffers())
    learned = {"mask_token", "reg_token"}
    others = ("patch_embed.", "blocks.", "norm.")
    assert all(name in learned or name.startswith(others) for name in encoder.state_dict())


@pytest.mark.parametrize(("depth", "depths"), [(12, (3, 6, 9, 12)), (6, (2, 3, 5, 6)), (4, (1, 2, 3, 4)), (1, (1,))])
def test_maps_come_from_equally_spaced_depths(depth, depths):
    encoder = vit("2d", depth=depth).eval()
    assert encoder.depths == depths
    maps = encoder(image_of(encoder)).maps
    assert len(maps) == len(encoder.strides) == len(depths)
    assert float(maps[-1].mean(1).detach().abs().max()) < 1e-5  # normalized over channels, with affine 1 and 0


def test_layers_for_layer_wise_decay():
    encoder = vit("3d thick")
    layers = encoder.layers()
    assert layers["patch_embed.proj.weight"] == layers["cls_token"] == layers["reg_token"] == layers["mask_token"] == 0
    assert layers["blocks.0.attn.qkv.weight"] == 1
    assert layers["blocks.2.mlp.fc2.bias"] == 3
    module = torch.nn.Module()
    module.encoder = encoder
    shares = layer_shares(module, FineTuning(layer_decay=0.5))
    assert shares["encoder.patch_embed.proj.weight"] == 0.5**4
    assert shares["encoder.blocks.2.mlp.fc1.weight"] == 0.5
    rates = {
        id(parameter): group["share"]
        for group in make_optimizer(module, FineTuning(layer_decay=0.5)).param_groups
        for parameter in group["params"]
    }
    assert rates[id(encoder.norm.weight)] == rates[id(encoder.norm.bias)] == 1.0  # He et al.: as the head
    assert rates[id(encoder.blocks[2].norm1.weight)] == 0.5
    assert layer_shares(module, FineTuning()) == {}


def test_it_is_timms_vision_transformer():
    """Key by key and in what it computes, once timm's table of positions holds ours."""
    import timm

    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 48), num_classes=0, global_pool="avg", class_token=False, fc_norm=False,
        embed_dim=64, num_heads=1, depth=3, in_chans=1,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        theirs.pos_embed.copy_(sincos_positions((2, 3), 64, like=theirs.pos_embed))
    ours = ViT(patch=(16, 16), width=64, depth=3).double().eval()
    state = {key: value for key, value in theirs.state_dict().items() if key != "pos_embed"}
    missing = ours.load_state_dict(state, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["mask_token"], [])
    x = torch.randn(2, 1, 32, 48, dtype=torch.float64)
    features = ours(x)
    torch.testing.assert_close(features.tokens, theirs.forward_features(x))
    torch.testing.assert_close(features.pooled, theirs(x))


def test_published_weights_of_masked_autoencoders_load(tmp_path):
    """Their names, made by hand: a decoder beside the encoder, a class token, three channels."""
    ours = ViT(patch=(4, 4), width=32, depth=3, pool="class")
    torch.manual_seed(3)
    state = {key: torch.randn_like(x) for key, x in ours.state_dict().items() if key != "mask_token"}
    state["patch_embed.proj.weight"] = torch.randn(32, 3, 4, 4)
    table = torch.cat((torch.zeros(1, 32), sincos_positions((3, 3), 32)))[None]
    state |= {"pos_embed": table, "mask_token": torch.zeros(1, 1, 16)}
    state |= {"decoder_blocks.0.attn.qkv.weight": torch.zeros(48, 16), "decoder_embed.weight": torch.zeros(16, 32)}
    torch.save({"model": state}, tmp_path / "mae.pth")
    report = load(ours, tmp_path / "mae.pth")
    assert report.missing == ("mask_token",)
    assert report.adapted == ("patch_embed.proj.weight",)
    assert torch.equal(ours.cls_token, state["cls_token"])
    assert torch.equal(ours.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])


def test_a_vision_transformer_of_timm_keeps_the_contract():
    torch.manual_seed(0)
    encoder = Timm2d("vit_tiny_patch16_224", in_channels=1, drop_path=0.1)
    check_encoder(encoder, (32, 48))
    assert encoder.strides[-1] == (16, 16)
    layers = encoder.layers()
    assert layers["model.patch_embed.proj.weight"] == layers["model.pos_embed"] == 0
    assert layers["model.blocks.0.attn.qkv.weight"] == 1
    assert layers["model.blocks.11.mlp.fc2.bias"] == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch": (4,)}, r"patch \[4\]: expected two or three numbers, 1 or more"),
        ({"patch": (0, 4)}, r"patch \[0, 4\]: expected"),
        ({"width": 100}, None),
        ({"width": 200}, "width 200: each attention head has 64 channels, so expected a multiple of 64"),
        ({"registers": -1}, "registers -1: expected 0 or more"),
        ({"pool": "max"}, 'pool must be "mean", "class" or "mean_beside_class", got "max"'),
        ({"spacing_mm": (1.0,)}, r"spacing_mm \[1\.0\]: expected 2 numbers above 0"),
        ({"layer_scale": 0.0}, r"layer_scale: must be above 0, or null for none \(got 0\.0\)"),
        ({"depth": 0}, r"depth: must be at least 1 \(got 0\)"),
        ({"drop_path": 1.5}, r"drop_path: must be from 0 to below 1 \(got 1\.5\)"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    if words is None:
        ViT(**({"patch": (4, 4)} | SMALL | arguments))
        return
    with pytest.raises(UserError, match=words):
        ViT(**({"patch": (4, 4)} | SMALL | arguments))


# --- the suite finds what is broken


class Broken(ViT):
    """Breaks one clause on hidden cells, by name."""

    def __init__(self, clause):
        super().__init__(patch=(4, 4), **SMALL)
        self.clause = clause

    def forward(self, image, hidden=None, mode=None):
        clause = self.clause
        if hidden is None or not clause.startswith(mode):
            return super().forward(image, hidden, mode)
        if clause.endswith("leaks"):
            image = image + image.mean().nan_to_num()
        if clause == "drop maps":
            features = super().forward(image, hidden, mode)
            return Features((features.pooled,), features.pooled, features.tokens, features.visible_cells)
        features = super().forward(image, hidden, mode)
        tokens, kept, pooled, maps = features.tokens, features.visible_cells, features.pooled, list(features.maps)
        if clause == "drop visible_cells":
            kept = kept.flip(1)
        if clause == "drop places":
            tokens = tokens * 0 + pooled[:, None]
        if clause == "drop pooled":
            pooled = pooled + tokens[:, 0]
        if clause == "drop batch":
            tokens = tokens + tokens[:1].max() * bool(hidden.any())
        if clause == "fill dense":
            maps = [2 * x for x in maps]
        return Features(tuple(maps), pooled, tokens, kept)


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        ("drop leaks", "drop: .* in hidden voxels changes the features"),
        ("drop maps", "drop: there are maps"),
        ("drop visible_cells", "drop: visible_cells is wrong"),
        ("drop places", "drop: with nothing hidden the tokens differ"),
        ("drop pooled", "drop: with nothing hidden the tokens differ"),
        ("drop batch", "drop: features depend on which cells other samples hide"),
        ("fill leaks", "fill: .* in hidden voxels changes the features"),
        ("fill dense", "fill: with nothing hidden the features differ"),
    ],
)
def test_the_suite_finds_what_is_broken(clause, words):
    with pytest.raises(ContractError, match=words):
        check_encoder(Broken(clause))


def test_the_suite_finds_an_encoder_that_forgets_places(monkeypatch):
    encoder = vit("2d")
    nowhere = lambda cells, width, *, step, like, grid: like.new_zeros(torch.Size(cells).numel(), width)  # noqa: E731
    monkeypatch.setattr("medssl.encoders.vit.sincos_positions", nowhere)
    with pytest.raises(ContractError, match="drop: tokens do not depend on the places of their cells"):
        check_encoder(encoder)


def test_the_suite_finds_an_encoder_that_takes_unequal_counts(monkeypatch):
    encoder = vit("2d")
    monkeypatch.setattr("medssl.encoders.token_encoder.visible_numbers", lambda hidden: torch.stack([
        (row.argsort(stable=True)[: int((~hidden[-1]).sum())]).sort().values for row in hidden.flatten(1)
    ]))  # fmt: skip
    with pytest.raises(ContractError, match="drop: samples with different numbers of visible cells are not refused"):
        check_encoder(encoder)


def test_copies_share_nothing():
    encoder = vit("3d").eval()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        encoder.mask_token.add_(1)
    assert not torch.equal(encoder.mask_token, other.mask_token)
