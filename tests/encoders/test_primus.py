"""Primus keeps the contract, turns queries and keys as by hand, computes what its library's network computes."""

from __future__ import annotations

import importlib
import math
import re

import pytest
import torch
from heads.made import schema
from safetensors.torch import save_file
from torch.nn import functional as F

from medssl.encoders.base import check_encoder
from medssl.encoders.primus import Primus
from medssl.encoders.weights import load, load_encoder, save_encoder
from medssl.heads.patch_decoder import PatchDecoder
from medssl.nn.rotary import RotaryAttention, rotary_tables
from medssl.objectives.mae import MAE
from medssl.objectives.simmim import SimMIM
from medssl.training.initial_weights import InitialWeights, with_drop_path
from medssl.types import Card, Imported, Preprocess, UserError, ViewSpec
from medssl.types.provenance import Provenance

KINDS = {
    "3d as published": {"patch": (4, 4, 4), "size": (8, 8, 4), "layer_scale": 0.1, "attention_norm": True},
    "3d registers": {"patch": (2, 4, 4), "registers": 2, "size": (4, 8, 4), "spacing_mm": (5.0, 1.0, 1.0)},
    "3d rotary alone": {"patch": (4, 4, 2), "drop_path": 0.5, "attention_dropout": 0.5},
    "2d": {"patch": (4, 4), "in_channels": 3, "drop_path": 0.5, "registers": 1, "layer_scale": 0.1},
}
SIZES = {2: (16, 12), 3: (8, 12, 8)}


def primus(name: str = "3d as published", **changes) -> Primus:
    torch.manual_seed(0)
    return Primus(**({"width": 24, "heads": 2, "depth": 3} | KINDS[name] | changes))


def image_of(encoder: Primus, rows: int = 2) -> torch.Tensor:
    (ndim,) = encoder.ndims
    return torch.randn(rows, encoder.in_channels, *SIZES[ndim], generator=torch.Generator().manual_seed(1))


def moved(module: torch.nn.Module, seed: int = 2) -> torch.nn.Module:
    """Parameters away from their first values, which nearly switch branches and attention off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return module


@pytest.mark.parametrize("name", KINDS)
def test_it_keeps_the_contract(name):
    check_encoder(primus(name))


@pytest.mark.parametrize("kind", [MAE, SimMIM])
def test_masked_objectives_train_it(kind):
    encoder = primus()
    arguments = {"decoder_width": 32, "decoder_depth": 1} if kind is MAE else {}
    objective = kind(encoder, view=ViewSpec(size=(8, 8, 8)), **arguments)
    assert objective.cells == (2, 2, 2)
    with pytest.raises(UserError, match=r"view size \(8, 10, 8\) .* nearest"):
        kind(encoder, view=ViewSpec(size=(8, 10, 8)), **arguments)


# --- rotary positions


def turned(x: torch.Tensor, cells: tuple[int, ...]) -> torch.Tensor:
    """Channels [N, D] as complex numbers, turned axis by axis: an independent road, one number at a time."""
    pairs, bands = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous()), x.shape[1] // (2 * len(cells))
    rows = []
    for number, row in enumerate(pairs):
        place, rest = [], number
        for count in reversed(cells):
            place.insert(0, rest % count)
            rest //= count
        angles = [place[axis] / 10_000 ** (band / bands) for axis in range(len(cells)) for band in range(bands)]
        rows.append(row * torch.polar(torch.ones(len(angles)).double(), torch.tensor(angles).double()))
    return torch.view_as_real(torch.stack(rows)).reshape(x.shape)


@pytest.mark.parametrize("cells", [(2, 3), (2, 3, 2)])
def test_attention_is_that_of_queries_and_keys_turned_by_hand(cells):
    torch.manual_seed(0)
    layer, count = moved(RotaryAttention(24, 2).double()), math.prod(cells)
    x = torch.randn(1, 1 + count, 24, dtype=torch.float64)  # the first token has no place
    heads = []
    for head in range(2):
        columns = slice(12 * head, 12 * head + 12)
        q, k, v = (project(x)[0][:, columns] for project in (layer.q_proj, layer.k_proj, layer.v_proj))
        q, k = (torch.cat((y[:1], turned(y[1:], cells))) for y in (q, k))
        weights = torch.stack([torch.stack([(a * b).sum() for b in k]) for a in q]) / 12**0.5
        heads.append(weights.exp() / weights.exp().sum(1, keepdim=True) @ v)
    expected = layer.proj(torch.cat(heads, 1))[None]
    tables = [table[None, None] for table in rotary_tables(cells, 12, like=x)]
    torch.testing.assert_close(layer(x, *tables), expected)


def test_products_depend_on_distances_alone_and_on_each_axis():
    cosines, sines = rotary_tables((4, 4, 4), 12, like=torch.zeros(0).double())
    x, y = torch.randn(2, 12, dtype=torch.float64)

    def product(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        turns = []
        for vector, (i, j, k) in ((x, a), (y, b)):
            row = 16 * i + 4 * j + k
            turns.append(vector * cosines[row] + torch.stack((-vector[1::2], vector[::2]), -1).flatten() * sines[row])
        return float(turns[0] @ turns[1])

    assert product((0, 1, 2), (1, 1, 0)) == pytest.approx(product((2, 2, 3), (3, 2, 1)), rel=1e-12)
    distances = [product((0, 0, 0), place) for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0))]
    assert len({round(value, 9) for value in distances}) == 5


def test_a_larger_window_keeps_the_angles_of_a_smaller_one():
    """Cells keep the distances that they had in training, in voxels or in mm."""
    for step in (None, (0.5, 1.0, 1.0)):
        small, large = (rotary_tables(cells, 12, step=step)[1] for cells in ((2, 2, 3), (4, 3, 5)))
        torch.testing.assert_close(large.reshape(4, 3, 5, 12)[:2, :2, :3], small.reshape(2, 2, 3, 12))
    assert primus("3d registers").step == (1.0, 0.4, 0.4)


def test_the_table_of_a_window_of_another_size_is_interpolated():
    encoder = primus(size=(16, 16, 8), patch=(4, 4, 4)).eval()
    ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 2).reshape(-1, 1).expand(-1, 24)
    with torch.no_grad():
        encoder.eva.pos_embed.copy_(ramp[None])
    assert torch.equal(encoder.positions((4, 4, 2)), ramp)
    fine = encoder.positions((8, 4, 2)).reshape(8, 4, 2, 24)
    torch.testing.assert_close(fine[:, 0, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert torch.equal(fine[:, :1].expand(8, 4, 2, 24), fine)
    assert encoder(torch.randn(1, 1, 8, 24, 12)).maps[-1].shape == (1, 24, 2, 6, 3)


# --- masks


@pytest.mark.parametrize("name", ["3d as published", "3d registers", "2d"])
@torch.no_grad()
def test_dropping_is_attention_that_cannot_see_hidden_tokens(name):
    """The dense network, with minus infinity where a key is hidden."""
    encoder = moved(primus(name)).double().eval()
    image = image_of(encoder, rows=1).double()
    cells = tuple(n // p for n, p in zip(image.shape[2:], encoder.patch, strict=True))
    order = torch.rand(math.prod(cells), generator=torch.Generator().manual_seed(0)).argsort()
    hidden = (order < 5).reshape(1, *cells)
    found = encoder(image, hidden, "drop")
    x = encoder.down_projection.proj(image).flatten(2).mT + encoder.positions(cells)
    extra = sum(token.shape[1] for token in encoder.placeless)
    x = torch.cat((*encoder.placeless, x), 1)
    covered = torch.cat((torch.zeros(extra, dtype=torch.bool), hidden.flatten()))
    cosines, sines = rotary_tables(cells, 12, step=encoder.step, like=x)
    for block in encoder.eva.blocks:
        attention, y = block.attn, block.norm1(x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (project(y)[0].unflatten(1, (2, 12)).transpose(0, 1) for project in projections)
        for z in (q, k):
            placed = z[:, extra:].clone()
            z[:, extra:, 0::2] = placed[..., 0::2] * cosines[:, 0::2] - placed[..., 1::2] * sines[:, 0::2]
            z[:, extra:, 1::2] = placed[..., 1::2] * cosines[:, 1::2] + placed[..., 0::2] * sines[:, 1::2]
        scores = (q @ k.mT / 12**0.5).masked_fill(covered, -torch.inf)
        attended = attention.proj(attention.norm((scores.softmax(-1) @ v).transpose(0, 1).flatten(1)))
        x = x + attended * (1 if block.gamma_1 is None else block.gamma_1)
        y = block.norm2(x)
        y = block.mlp.fc2(block.mlp.norm(F.silu(block.mlp.fc1_g(y)) * block.mlp.fc1_x(y)))
        x = x + y * (1 if block.gamma_2 is None else block.gamma_2)
    expected = encoder.eva.norm(x)[0][~covered][extra:]
    torch.testing.assert_close(found.tokens[0], expected)
    torch.testing.assert_close(found.pooled[0], expected.mean(0))


def test_dropout_of_attention_is_for_training_alone():
    encoder = moved(primus("3d rotary alone", drop_path=0.0))
    image = image_of(encoder)
    assert not torch.equal(encoder.train()(image).pooled, encoder(image).pooled)
    assert torch.equal(encoder.eval()(image).pooled, encoder(image).pooled)


# --- weights of others


def library(**changes):
    """The network of dynamic-network-architectures, with weights away from their first values."""
    try:
        module = importlib.import_module("dynamic_network_architectures.architectures.primus")
    except ImportError as error:
        pytest.skip(f"the installed dynamic-network-architectures has no Primus: {error}")
    torch.manual_seed(0)
    arguments = {"eva_depth": 3, "eva_numheads": 2, "input_shape": (8, 8, 4), "num_classes": 3}
    network = module.Primus(1, 24, (4, 4, 4), **(arguments | changes))
    return moved(network).eval()


def saved(tmp_path, state):
    save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"layer_scale": None, "attention_norm": False}),
        ({"init_values": 0.1, "scale_attn_inner": True}, {}),
        ({"num_register_tokens": 2, "init_values": 0.1, "scale_attn_inner": True}, {"registers": 2}),
        ({"use_abs_pos_embed": False, "init_values": 0.1, "scale_attn_inner": True}, {"size": None}),
    ],
)
def test_it_computes_what_its_librarys_network_computes(tmp_path, theirs, ours):
    """Encoder and decoder, from one file; the encoder's report lists the decoder's keys alone."""
    network, encoder = library(**theirs), primus(**ours).eval()
    state = network.state_dict()
    report = load(encoder, saved(tmp_path, state))
    assert report.missing == ()
    assert all(key.startswith("up_projection.") for key in report.unexpected)
    head = PatchDecoder(encoder, schema(3)).eval()
    head.load_state_dict({k.removeprefix("up_projection."): v for k, v in state.items() if k.startswith("up_")})
    x = torch.randn(2, 1, 8, 8, 4)
    torch.testing.assert_close(head(encoder(x), (8, 8, 4)), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "module", "words", "key", "hint"),
    [
        ({}, {"layer_scale": None}, "have LayerScale, Primus has not", "encoder.layer_scale", "Set it to 0.1"),
        ({"registers": 3, "size": None}, {"size": None}, "have register tokens", "encoder.registers", "Set it to 3"),
        ({}, {"size": None}, "have a learned table of positions", "encoder.size", "Set it to the view of pretraining"),
        ({}, {"attention_norm": False}, "have a norm inside the attention", "encoder.attention_norm", "Set it to true"),
        ({"layer_scale": None}, {}, "Primus has LayerScale, the weights have not", "encoder.layer_scale", "Leave it"),
        ({"size": None}, {}, "Primus has a learned table of positions", "encoder.size", "Leave it out"),
        ({"depth": 4}, {}, "those of a deeper network", "", ""),
    ],
)
def test_weights_of_another_primus_are_refused_with_what_to_set(tmp_path, file, module, words, key, hint):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load(primus(**module), saved(tmp_path, primus(**file).state_dict()))
    assert error.value.key == key
    assert error.value.hint.startswith(hint)


def test_the_table_of_another_view_is_interpolated_when_loaded(tmp_path):
    file, encoder = primus(size=(8, 8, 8)), primus(size=(16, 16, 16))
    report = load(encoder, saved(tmp_path, file.state_dict()))
    assert report.adapted == ("eva.pos_embed",)
    assert "assuming a cubic grid" in str(report)


def test_a_run_folder_gives_it_back(tmp_path):
    """Lists of numbers, as JSON holds them, and every tensor; drop-path of fine-tuning replaces that of the card."""
    arguments = KINDS["3d registers"] | {"width": 24, "heads": 2, "depth": 3, "attention_dropout": 0.1}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    described = Imported("medssl.encoders.primus.Primus", plain)
    encoder = moved(primus("3d registers"))
    card = Card(described, Preprocess(), None, "0" * 16, Provenance(), 1, {})
    save_encoder(tmp_path / "run", encoder, card)
    other, stored = load_encoder(tmp_path / "run")
    assert stored.encoder == described
    image = image_of(encoder)
    assert torch.equal(other.eval()(image).pooled, encoder.eval()(image).pooled)
    changed = with_drop_path(InitialWeights(described), 0.3).encoder.init_args
    assert changed == plain | {"drop_path": 0.3}


def test_layers_for_layer_wise_decay():
    layers = primus("3d registers").layers()
    first = ("down_projection.proj.weight", "eva.pos_embed", "register_tokens", "mask_token")
    assert {layers[name] for name in first} == {0}
    assert (layers["eva.blocks.0.attn.q_proj.weight"], layers["eva.blocks.2.mlp.fc2.bias"]) == (1, 3)
    assert "eva.norm.weight" not in layers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"heads": 5}, r"encoder\.heads: must divide width 24 \(got 5\)"),
        ({"heads": 0}, r"encoder\.heads: must divide width 24 \(got 0\)"),
        (
            {"width": 32},
            r"encoder\.width: width 32 and heads 2 give each head 16 channels; rotary positions on 3 axes need a "
            r"multiple of 6\. With 2 heads take 24 or 36 channels\.",
        ),
        ({"width": 30, "heads": 10}, r"give each head 3 channels; .* With 10 heads take 60 channels"),
        ({"size": (8, 8, 6)}, r"encoder size \(8, 8, 6\) .*\(4, 4, 4\)"),
        ({"size": (8, 8)}, r"encoder size \(8, 8\) has 2 axes but cells \(4, 4, 4\) have 3"),
        ({"layer_scale": -1.0}, r"layer_scale: must be above 0, or null for none \(got -1\.0\)"),
        ({"drop_path": 1.0}, r"drop_path: must be from 0 to below 1 \(got 1\.0\)"),
        ({"attention_dropout": 1.0}, r"attention_dropout: must be from 0 to below 1 \(got 1\.0\)"),
        ({"depth": 0}, r"depth: must be at least 1 \(got 0\)"),
        ({"registers": -1}, "registers -1: expected 0 or more"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(UserError, match=words):
        primus(**arguments)
