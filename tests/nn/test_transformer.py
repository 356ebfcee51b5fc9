"""Positions against NumPy, blocks against torch's own layer, which tokens are kept, paths that are dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medssl.nn.transformer import (
    Block,
    DropPath,
    gather_tokens,
    sincos_positions,
    transformer_blocks,
    visible_numbers,
)
from medssl.types import UserError


def reference(cells: tuple[int, ...], width: int, step: tuple[float, ...]) -> np.ndarray:
    """One cell after the other, one channel after the other."""
    half = width // (2 * len(cells))
    rows = []
    for place in np.ndindex(*cells):
        row = []
        for axis in range(len(cells) - 1, -1, -1):
            coordinate = place[axis] * step[axis]
            row += [np.sin(coordinate / 10000 ** (i / half)) for i in range(half)]
            row += [np.cos(coordinate / 10000 ** (i / half)) for i in range(half)]
        rows.append(row + [0.0] * (width - len(row)))
    return np.array(rows)


@pytest.mark.parametrize(
    ("cells", "width", "step"),
    [((3, 5), 16, (1.0, 1.0)), ((2, 3, 4), 26, (5.0, 0.5, 1.25)), ((1, 1), 4, (2.0, 3.0)), ((4, 2, 1), 12, (1, 1, 1))],
)
def test_positions_are_those_of_numpy(cells, width, step):
    like = torch.zeros((), dtype=torch.float64)
    found = sincos_positions(cells, width, step=step, like=like)
    np.testing.assert_allclose(found.numpy(), reference(cells, width, step), atol=1e-12)


def test_positions_in_two_axes_are_those_of_published_masked_autoencoders():
    """Columns first, then rows; sines then cosines: a few values worked out by hand."""
    table = sincos_positions((2, 3), 8, like=torch.zeros((), dtype=torch.float64)).reshape(2, 3, 8)
    row, column = 1, 2
    want = [np.sin(column), np.sin(column / 100), np.cos(column), np.cos(column / 100)]
    want += [np.sin(row), np.sin(row / 100), np.cos(row), np.cos(row / 100)]
    np.testing.assert_allclose(table[row, column].numpy(), want, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=3),
    st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3),
    st.integers(6, 40),
)
def test_positions_tell_offsets(cells, step, width):
    """Every row has one length, and two rows' product depends on how far apart they are alone."""
    like = torch.zeros((), dtype=torch.float64)
    table = sincos_positions(cells, width, step=step[: len(cells)], like=like)
    half = width // (2 * len(cells))
    torch.testing.assert_close(table.square().sum(1), torch.full((len(table),), float(half * len(cells))).double())
    places = list(np.ndindex(*cells))
    products: dict[tuple[int, ...], float] = {}
    for a, place in enumerate(places):
        for b, other in enumerate(places):
            offset = tuple(abs(i - j) for i, j in zip(place, other, strict=True))
            product = float(table[a] @ table[b])
            assert products.setdefault(offset, product) == pytest.approx(product, abs=1e-9)


def test_a_slice_of_a_volume_has_the_positions_of_an_image():
    volume = sincos_positions((3, 4, 5), 24).reshape(3, 4, 5, 24)
    image = sincos_positions((4, 5), 16).reshape(4, 5, 16)
    assert torch.equal(volume[0, ..., :16], image)
    assert torch.equal(volume[2, ..., :16], image)
    larger = sincos_positions((7, 9), 16).reshape(7, 9, 16)
    assert torch.equal(larger[:4, :5], image)


def test_too_few_channels_for_positions():
    with pytest.raises(UserError, match="positions on 3 axes need at least 6 channels, got 5"):
        sincos_positions((2, 2, 2), 5)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_block_is_torchs_layer(heads):
    torch.manual_seed(0)
    ours = Block(32, heads, mlp_ratio=2.0).double()
    theirs = nn.TransformerEncoderLayer(
        32, heads, 64, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    names = {
        "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    state = ours.state_dict()
    theirs.load_state_dict({a + kind: state[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_layer_scale_of_nothing_leaves_tokens_as_they_are():
    block = Block(16, 2, layer_scale=0.0)
    x = torch.randn(2, 5, 16)
    assert torch.equal(block(x), x)
    assert set(dict(block.named_parameters())) >= {"ls1.gamma", "ls2.gamma"}


def test_blocks_start_as_they_say():
    torch.manual_seed(0)
    blocks = transformer_blocks(64, 3, 4, drop_path=0.2)
    assert [block.drop_path.chance for block in blocks] == pytest.approx([0.0, 0.1, 0.2])
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
            bound = (6 / sum(module.weight.shape)) ** 0.5
            assert 0.98 * bound < float(module.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((30, 2, 4), "transformer: heads 4 must divide width 30"),
        ((32, 0, 4), r"transformer: depth: must be at least 1 \(got 0\)"),
    ],
)
def test_blocks_that_cannot_be(arguments, words):
    with pytest.raises(UserError, match=words):
        transformer_blocks(*arguments)
    with pytest.raises(UserError, match=r"transformer: drop_path: must be from 0 to below 1 \(got 1\.0\)"):
        transformer_blocks(32, 2, 4, drop_path=1.0)


def test_paths_are_dropped_by_sample_and_the_mean_stays():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = drop(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert all(len(row.unique()) == 1 for row in y[:50])
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


def test_visible_numbers_and_their_tokens():
    hidden = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    kept = visible_numbers(hidden)
    assert kept.tolist() == [[1, 2], [0, 3]]
    tokens = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    assert torch.equal(gather_tokens(tokens, kept), torch.stack([tokens[0][[1, 2]], tokens[1][[0, 3]]]))
    hidden[0, 0, 0] = False
    with pytest.raises(UserError, match=r'mode "drop" needs equally many visible cells .* got 2 to 3; draw masks'):
        visible_numbers(hidden)
    with pytest.raises(UserError, match="at least one: got 0 to 0"):
        visible_numbers(torch.ones_like(hidden))
