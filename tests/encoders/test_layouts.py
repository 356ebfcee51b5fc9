"""DINOv2 and DINOv3 of timm and transformers, with random weights: every key is reported, features are the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from medssl.encoders.vit import ViT
from medssl.encoders.weights import load
from medssl.nn.rotary import centered_tables
from medssl.nn.transformer import resampled, sincos_positions
from medssl.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs/encoders"
WIDTH, SIDE = 64, 3
TABLE = {"place": "learned", "grid": (SIDE, SIDE)}


def vit(**arguments) -> ViT:
    return ViT(
        3, **{"patch": (14, 14), "width": WIDTH, "depth": 2, "pool": "class", "layer_scale": 1.0} | TABLE | arguments
    ).eval()


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights, so that a part in a wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def from_timm(name: str, side: int, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 1, "img_size": side}
        return shaken(timm.create_model(name, **sizes | arguments))


def dinov2_of_transformers(registers: int = 0):
    import transformers

    name = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 14}
    sizes |= {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{name}Config")(**sizes, image_size=14 * SIDE)
    return shaken(getattr(transformers, f"{name}Model")(config))


def dinov3_of_transformers():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 16}
    return shaken(DINOv3ViTModel(DINOv3ViTConfig(**sizes, intermediate_size=4 * WIDTH, num_register_tokens=4)))


def reported(encoder: ViT, state: dict, folder: Path):
    """Loads a file; every key of the file and of the encoder is in the report."""
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "weights.safetensors")
    report = load(encoder, folder / "weights.safetensors")
    assert {*report.loaded, *report.adapted, *report.missing} == set(encoder.state_dict())
    return report


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_timm_has_the_same_features(tmp_path, registers):
    name = f"vit_small_patch14{'_reg4' if registers else ''}_dinov2"
    theirs = from_timm(name, 14 * SIDE)
    mine = vit(registers=registers)
    report = reported(mine, theirs.state_dict(), tmp_path)
    assert report.missing == ("mask_token",)
    assert report.unexpected == ()
    assert set(report.adapted) == (set() if registers else {"pos_embed", "cls_token"})
    image = torch.randn(2, 3, 14 * SIDE, 14 * SIDE)
    with torch.no_grad():
        want = theirs.forward_features(image)
        found = mine(image)
    torch.testing.assert_close(found.pooled, want[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.tokens, want[:, 1 + registers :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("former", [False, True], ids=["present names", "former names"])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_transformers_has_the_same_features(tmp_path, registers, former):
    theirs = dinov2_of_transformers(registers)
    state = theirs.state_dict()
    if former:  # as files had them before version 5
        names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
        names |= {"o_proj": "output.dense"}
        for new, old in names.items():
            state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    mine = vit(registers=registers)
    report = reported(mine, state, tmp_path)
    assert report.missing == report.unexpected == ()
    joined = {f"blocks.{block}.attn.qkv.{part}" for block in range(2) for part in ("weight", "bias")}
    assert set(report.adapted) == {*joined, "pos_embed", "cls_token"}
    image = torch.randn(2, 3, 14 * SIDE, 14 * SIDE)
    with torch.no_grad():
        want = theirs(image).last_hidden_state
        found = mine(image)
    torch.testing.assert_close(found.pooled, want[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.tokens, want[:, 1 + registers :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("maker", ["timm", "transformers"])
def test_dinov3_has_the_same_features_on_images_of_any_size(tmp_path, maker):
    theirs = from_timm("vit_small_patch16_dinov3", 48) if maker == "timm" else dinov3_of_transformers()
    mine = vit(patch=(16, 16), registers=4, place="rotary", grid=None)
    report = reported(mine, theirs.state_dict(), tmp_path)
    assert report.unexpected == ()
    biases = {f"blocks.{block}.attn.qkv.bias" for block in range(2)}  # timm's network has none: they stay 0
    assert set(report.missing) == ({"mask_token", *biases} if maker == "timm" else set())
    for shape in ((48, 48), (64, 32)):
        image = torch.randn(2, 3, *shape)
        with torch.no_grad():
            found = mine(image)
            want = theirs.forward_features(image) if maker == "timm" else theirs(image).last_hidden_state
        torch.testing.assert_close(found.pooled, want[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.tokens, want[:, 5:], rtol=1e-4, atol=1e-4)


def test_weights_of_another_image_size_and_one_channel_are_adapted(tmp_path):
    theirs = from_timm("vit_small_patch14_dinov2", 14 * 5)
    mine = ViT(1, patch=(14, 14), width=WIDTH, depth=2, pool="class", layer_scale=1.0, **TABLE)
    report = reported(mine, theirs.state_dict(), tmp_path)
    assert set(report.adapted) == {"pos_embed", "cls_token", "patch_embed.proj.weight"}
    assert report.assumed == {"pos_embed": "positions: assuming a square grid of patches"}
    table = theirs.pos_embed[:, 1:].mT.reshape(1, WIDTH, 5, 5)
    torch.testing.assert_close(mine.pos_embed, resampled(table, (SIDE, SIDE)).flatten(2).mT)


def test_a_table_needs_an_encoder_that_has_one(tmp_path):
    state = from_timm("vit_small_patch14_dinov2", 14 * SIDE).state_dict()
    with pytest.raises(UserError, match="the weights have a learned table of positions, ViT has not") as error:
        reported(vit(place="sincos", grid=None), state, tmp_path)
    assert error.value.key == "encoder.place"
    assert error.value.hint.startswith("Set it to learned, with encoder.grid")


# --- positions on other grids


@pytest.mark.parametrize("place", ["sincos", "learned"])
def test_positions_on_their_own_grid_are_not_changed(place):
    encoder = vit(place=place, grid=(4, 6))
    want = sincos_positions((4, 6), WIDTH) if place == "sincos" else encoder.pos_embed[0]
    assert torch.equal(encoder.positions((4, 6)), want)


@pytest.mark.parametrize("grid", [(4, 6), (2, 4, 6)])
def test_a_finer_grid_has_the_same_field_of_view(grid):
    """Means of the coordinates of two neighbors are those of the coarse cell: seen by the slowest sine."""
    encoder = ViT(1, patch=(8,) * len(grid), width=96, depth=1, grid=grid)
    coarse, fine = encoder.positions(grid), encoder.positions([2 * n for n in grid])
    fine = fine.mT.reshape(96, *(2 * n for n in grid))
    pool = torch.nn.functional.avg_pool2d if len(grid) == 2 else torch.nn.functional.avg_pool3d
    slow = [axis * (96 // len(grid)) + 96 // (2 * len(grid)) - 1 for axis in range(len(grid))]
    torch.testing.assert_close(pool(fine, 2).flatten(1).mT[:, slow], coarse[:, slow], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"grid": (2, 3), "place": "learned"}, {"place": "rotary"}, {"grid": (2, 3)}])
def test_masks_and_images_of_any_size_work(arguments):
    encoder = vit(**{"place": "sincos", "grid": None} | arguments)
    for cells in ((2, 3), (4, 2)):
        image = torch.randn(2, 3, 14 * cells[0], 14 * cells[1])
        hidden = torch.zeros(2, *cells, dtype=torch.bool)
        whole = encoder(image)
        torch.testing.assert_close(encoder(image, hidden, "drop").tokens, whole.tokens)
        hidden[:, 0] = True
        other = torch.where(hidden.repeat_interleave(14, 1).repeat_interleave(14, 2)[:, None], 1.0, image)
        for mode in ("drop", "fill"):
            torch.testing.assert_close(encoder(image, hidden, mode).pooled, encoder(other, hidden, mode).pooled)
        encoder(image).pooled.sum().backward()


def test_rotations_reach_from_minus_one_to_one_on_every_grid():
    for cells in ((4, 2), (8, 8), (2, 2, 4)):
        channels = 4 * len(cells)
        cosines, sines = centered_tables(cells, channels, like=torch.zeros(1, dtype=torch.float64))
        angles = torch.atan2(sines, cosines)
        first, last = angles[0], angles[-1]
        torch.testing.assert_close(first, -last)
        slow = [axis * 2 + 1 for axis in range(len(cells))]  # the second band: a tenth of the first frequency
        want = torch.tensor([2 * torch.pi * (1 / n - 1) / 10 for n in cells], dtype=torch.float64)
        torch.testing.assert_close(first[slow], want)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"place": "learned", "grid": None}, r"encoder\.grid: encoder\.place learned needs the cells of its table"),
        ({"place": "rotary"}, r"encoder\.grid: encoder\.place rotary has no table.*Leave it out"),
        ({"grid": (3, 3, 3)}, r"encoder\.grid: does not fit the patch .*expected 2 numbers, 1 or more each"),
        ({"grid": (0, 3)}, r"encoder\.grid: does not fit the patch"),
        ({"place": "table"}, r"encoder\.place: must be sincos, learned or rotary \(got 'table'\)"),
        ({"place": "rotary", "grid": None, "width": 66}, r"rotary positions on 2 axes need a multiple of 4"),
    ],
)
def test_positions_that_do_not_fit_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        vit(**arguments)


@pytest.mark.parametrize("name", ["dinov2_vit_small_2d", "dinov2_vit_base_2d", "dinov3_vit_small_2d"])
def test_presets_have_the_tensors_of_the_published_networks(name):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        import timm

        size, patch = name.split("_")[2], 14 if name.startswith("dinov2") else 16
        theirs = timm.create_model(f"vit_{size}_patch{patch}_{name.split('_')[0]}")
        mine = ViT(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["init_args"])
    renamed = {key.replace("gamma_", "ls"): value.shape for key, value in theirs.state_dict().items()}
    found = {
        key.replace(".gamma", "") if ".ls" in key else key: value.shape for key, value in mine.state_dict().items()
    }
    renamed = {key.replace(".gamma", ""): shape for key, shape in renamed.items()}
    assert set(renamed) <= set(found)
    differing = {key for key, shape in renamed.items() if shape != found[key]}
    assert differing <= {"pos_embed"}  # the published table has a row for the class token
    if differing:
        assert found["pos_embed"][1] == renamed["pos_embed"][1] - 1
