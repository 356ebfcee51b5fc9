"""Masks with a share of hidden cells per sample: ranges, whole samples, exact counts, keys."""

from __future__ import annotations

import math

import pytest
import torch

from medssl.ops.draws import Draws
from medssl.ops.masking import varied_hidden
from medssl.types import UserError

GRIDS = pytest.mark.parametrize("cells", [(8, 6), (6, 5, 4)])
BLOCKS = pytest.mark.parametrize("blocks", [True, False])


def masks(cells, ratios=(0.2, 0.6), samples=range(400), **arguments):
    return varied_hidden(cells, ratios, Draws(3, samples, "mask"), **arguments)


@GRIDS
@BLOCKS
def test_shares_fill_the_range_evenly(cells, blocks):
    hidden = masks(cells, blocks=blocks)
    assert hidden.shape == (400, *cells)
    assert hidden.dtype == torch.bool
    share = hidden.flatten(1).double().mean(1)
    cell = 1 / math.prod(cells)
    assert share.min() >= 0.2 - cell
    assert share.max() <= 0.6 + cell
    assert share.mean() == pytest.approx(0.4, abs=0.03)
    assert share.quantile(0.25) == pytest.approx(0.3, abs=0.04)


@GRIDS
@BLOCKS
def test_equal_ratios_hide_equally_many(cells, blocks):
    counts = masks(cells, (0.75, 0.75), range(30), blocks=blocks).flatten(1).sum(1)
    assert set(counts.tolist()) == {math.prod(cells) - round(math.prod(cells) * 0.25)}


@GRIDS
def test_a_share_of_the_samples_stays_whole(cells):
    whole = ~masks(cells, unmasked=0.5).flatten(1).any(1)
    assert whole.double().mean() == pytest.approx(0.5, abs=0.1)  # four standard errors
    assert masks(cells, unmasked=0.0).flatten(1).any(1).all()
    assert not masks(cells, unmasked=1.0).any()


@BLOCKS
def test_a_mask_depends_on_its_own_sample_only(blocks):
    together = masks((8, 6), samples=(10, 11, 12), unmasked=0.3, blocks=blocks)
    other = masks((8, 6), samples=(12, 10), unmasked=0.3, blocks=blocks)
    assert torch.equal(together[[2, 0]], other)


def test_a_second_call_goes_on_in_each_stream():
    draws = Draws(3, (5, 6), "mask")
    first, second = (varied_hidden((8, 6), (0.5, 0.5), draws) for _ in range(2))
    assert not torch.equal(first, second)
    again = Draws(3, (6,), "mask")
    assert torch.equal(varied_hidden((8, 6), (0.5, 0.5), again), first[1:])
    assert torch.equal(varied_hidden((8, 6), (0.5, 0.5), again), second[1:])


def test_boxes_lie_together():
    def neighbors(hidden):
        return float((hidden[:, 1:] & hidden[:, :-1]).sum() / hidden.sum())

    assert neighbors(masks((12, 12), (0.3, 0.3))) > 1.5 * neighbors(masks((12, 12), (0.3, 0.3), blocks=False))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ratios": (0.6, 0.2)}, r"mask ratios 0\.6 to 0\.2 and share of unmasked samples 0\.0: expected 0 <= lowest"),
        ({"ratios": (0.5, 1.2)}, r"mask ratios 0\.5 to 1\.2"),
        ({"unmasked": 1.5}, r"share of unmasked samples 1\.5"),
        ({"share": (0.0, 0.4)}, r"boxes need 0 < share\[0\].*got share \(0\.0, 0\.4\)"),
        ({"aspect": 0.5}, r"aspect >= 1, got share .* and aspect 0\.5"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        masks((8, 6), **{"ratios": (0.2, 0.6), "samples": (1,)} | arguments)
