"""Masks: exact counts, keyed per sample, visible as soon as one child is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.ops.draws import Draws
from medssl.ops.masking import at_resolution, block_hidden, hidden_count, mask_cells, random_hidden
from medssl.types import UserError

CELLS = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
RATIOS = st.floats(0.0, 1.0)
KINDS = pytest.mark.parametrize("mask", [random_hidden, block_hidden])


@KINDS
def test_every_sample_hides_exactly_the_count(mask):
    @settings(max_examples=30, deadline=None)
    @given(cells=CELLS, ratio=RATIOS)
    def check(cells, ratio):
        hidden = mask(cells, ratio, Draws(1, (4, 9), "mask"))
        assert hidden.shape == (2, *cells)
        assert hidden.dtype == torch.bool
        visible = round(math.prod(cells) * (1 - ratio))
        assert (~hidden).flatten(1).sum(1).tolist() == [visible, visible]

    check()


def test_the_paper_shows_20_of_49_cells():
    assert hidden_count((7, 7), 0.6) == 29


@KINDS
def test_a_mask_depends_on_its_own_sample_only(mask):
    together = mask((6, 5, 4), 0.6, Draws(3, (10, 11, 12), "mask"))
    other = mask((6, 5, 4), 0.6, Draws(3, (12, 10), "mask"))
    assert torch.equal(together[[2, 0]], other)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, mask((6, 5, 4), 0.6, Draws(4, (10, 11, 12), "mask")))


def test_all_cells_are_hidden_equally_often():
    hidden = random_hidden((3, 4), 0.75, Draws(0, range(4000), "mask"))
    share = hidden.double().mean(0)
    # five standard errors
    assert (share - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 4000)


def test_blocks_lie_together():
    """Hidden cells of a block mask have more hidden neighbors than those of a random mask."""

    def neighbors(hidden):
        pairs = [(hidden[:, 1:] & hidden[:, :-1]), (hidden[:, :, 1:] & hidden[:, :, :-1])]
        return sum(int(pair.sum()) for pair in pairs)

    samples = Draws(0, range(50), "mask"), Draws(0, range(50), "other")
    assert neighbors(block_hidden((12, 12), 0.4, samples[0])) > 1.5 * neighbors(
        random_hidden((12, 12), 0.4, samples[1])
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_at_resolution_repeats_or_asks_all_children(data):
    axes = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans()), min_size=1, max_size=3))
    cells = tuple(base * (factor if coarser else 1) for base, factor, coarser in axes)
    shape = tuple(base * (1 if coarser else factor) for base, factor, coarser in axes)
    hidden = torch.from_numpy(np.random.default_rng(data.draw(st.integers(0, 99))).random((2, *cells)) < 0.7)
    result = at_resolution(hidden, shape)
    assert result.shape == (2, *shape)
    for sample, *position in itertools.product(range(2), *map(range, shape)):
        children = [  # cells that share field of view with the position, by fractions of the axis
            [c for c in range(n) if c * s < (p + 1) * n and p * n < (c + 1) * s]
            for p, n, s in zip(position, cells, shape, strict=True)
        ]
        seen = [bool(hidden[(sample, *child)]) for child in itertools.product(*children)]
        assert bool(result[(sample, *position)]) == all(seen)


def test_there_and_back_is_the_same_mask():
    hidden = random_hidden((4, 3, 2), 0.5, Draws(0, (1, 2), "mask"))
    assert torch.equal(at_resolution(at_resolution(hidden, (16, 9, 2)), (4, 3, 2)), hidden)


@pytest.mark.parametrize("shape", [(6, 8), (8, 9), (4,)])
def test_resolutions_that_do_not_nest_are_refused(shape):
    with pytest.raises(UserError, match=r"mask of \(4, 4\) cells does not nest with"):
        at_resolution(torch.zeros(1, 4, 4, dtype=torch.bool), shape)


@KINDS
@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratios_out_of_range_are_refused(mask, ratio):
    with pytest.raises(UserError, match="must lie between 0"):
        mask((4, 4), ratio, Draws(0, (0,), "mask"))


@pytest.mark.parametrize(
    ("share", "aspect"), [((0.0, 0.4), 3.0), ((0.5, 0.4), 3.0), ((0.1, 1.2), 3.0), ((0.1, 0.4), 0.5)]
)
def test_boxes_out_of_range_are_refused(share, aspect):
    with pytest.raises(UserError, match="boxes need"):
        block_hidden((4, 4), 0.5, Draws(0, (0,), "mask"), share=share, aspect=aspect)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_mask_fits_its_view_or_says_why_not(data):
    """Cells and strides that nest on every axis, and any size: taken where both divide it, else refused."""
    axes = data.draw(st.integers(1, 3))
    numbers = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=axes, max_size=axes)
    cell, stride = data.draw(numbers), data.draw(numbers)
    size = data.draw(st.lists(st.integers(8, 40), min_size=axes, max_size=axes))
    if all(n % max(a, b) == 0 for n, a, b in zip(size, cell, stride, strict=True)):
        cells = tuple(n // side for n, side in zip(size, cell, strict=True))
        if 0 < hidden_count(cells, 0.5) < math.prod(cells):
            assert mask_cells(size, cell, [stride], 0.5) == cells
            return
        with pytest.raises(UserError, match="some must be hidden, some visible; take a larger view"):
            mask_cells(size, cell, [stride], 0.5)
        return
    with pytest.raises(UserError, match=r"view size .* is not a multiple of .* nearest sizes that work are"):
        mask_cells(size, cell, [stride], 0.5)


def test_a_mask_that_does_not_nest_with_a_map_is_refused():
    assert mask_cells((24, 24), (4, 12), [(1, 1), (2, 2), (2, 6)], 0.5) == (6, 2)
    with pytest.raises(UserError, match=r"mask cell \(4, 12\) does not nest with the encoder's stride \(2, 8\)"):
        mask_cells((24, 24), (4, 12), [(1, 1), (2, 8), (4, 24)], 0.5)
