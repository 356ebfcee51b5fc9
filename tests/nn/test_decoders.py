"""Light decoder: the way up for any strides, shapes, the tokens between encoder and decoder."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medssl.nn.decoders import Densify, LightDecoder, norm_layers, upsampling_path
from medssl.types import UserError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_path_leads_from_the_coarsest_map_to_the_voxels(ratios):
    strides, current = [], (1, 1, 1)
    for ratio in ratios:
        current = tuple(a * b for a, b in zip(current, ratio, strict=True))
        strides.append(current)
    if max(current) == 1:
        with pytest.raises(UserError, match="no map is coarser than the image"):
            upsampling_path(strides)
        return
    path = upsampling_path(strides)
    here, entered = strides[-1], []
    for factor, number in path:
        if number is not None:
            assert strides[number] == here
            entered.append(here)
        assert all(f in (1, 2, 3) for f in factor)
        assert max(factor) > 1
        here = tuple(a // f for a, f in zip(here, factor, strict=True))
    assert here == (1, 1, 1)
    # every resolution below the image's enters once, with its deepest map
    assert sorted(entered) == sorted({s for s in strides if max(s) > 1})
    numbers = [number for _, number in path if number is not None]
    assert all(strides.index(strides[n]) <= n and strides[n] not in strides[n + 1 :] for n in numbers)


def test_the_path_of_thick_slices():
    path = upsampling_path([(1, 1, 1), (2, 2, 1), (4, 4, 1), (8, 8, 2)])
    assert path == (((2, 2, 2), 3), ((2, 2, 1), 2), ((2, 2, 1), 1))


def test_strides_that_do_not_nest_are_refused():
    with pytest.raises(
        UserError, match=r"strides \(2, 2\) of a map do not divide those of the next coarser one, \(3, 4\)"
    ):
        upsampling_path([(2, 2), (3, 4)])


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("factors", [[(2, 2), (2, 2)], [(2, 2, 2), (2, 2, 1)], [(3, 1, 2), (1, 5, 2)]])
def test_the_decoder_multiplies_every_axis_by_its_factors(factors, norm):
    decoder = LightDecoder(16, factors, out_channels=3, norm=norm)
    start = (3, 4, 5)[: len(factors[0])]
    maps = [torch.randn(2, 16, *start), torch.randn(2, 8, *(a * b for a, b in zip(start, factors[0], strict=True)))]
    size = tuple(a * math.prod(f) for a, f in zip(start, zip(*factors, strict=True), strict=True))
    assert decoder(maps).shape == (2, 3, *size)
    # a finer map is added, not ignored
    assert not torch.equal(decoder(maps), decoder([maps[0], None]))


def test_the_published_block():
    decoder = LightDecoder(16, [(2, 2)], out_channels=1)
    up = decoder.steps[0].up
    assert (up.kernel_size, up.stride, up.padding) == ((4, 4), (2, 2), (1, 1))
    assert [tuple(c.weight.shape) for c in decoder.steps[0].convolutions] == [(16, 16, 3, 3), (8, 16, 3, 3)]
    assert all(c.bias is None for c in decoder.steps[0].convolutions)


def test_predictions_start_near_zero():
    torch.manual_seed(0)
    decoder = LightDecoder(64, [(2, 2), (2, 2)], out_channels=1)
    assert decoder([torch.randn(4, 64, 8, 8), None]).square().mean() < 0.1


@pytest.mark.parametrize("maps", [[None, torch.zeros(1, 8, 4, 4)], [torch.zeros(1, 16, 2, 2)]])
def test_maps_that_do_not_match_the_steps_are_refused(maps):
    with pytest.raises(ValueError, match="expected 2 maps"):
        LightDecoder(16, [(2, 2), (2, 2)], out_channels=1)(maps)


def test_a_width_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="decoder width 12 is halved 3 times: expected a multiple of 8"):
        LightDecoder(12, [(2, 2)] * 3, out_channels=1)


@pytest.mark.parametrize("norm", ["batch", "instance", "layer"])
def test_normalizations_look_at_visible_positions_only(norm):
    """Densify a map with visible cells at another scale: only the coarser maps' own visible values count."""
    torch.manual_seed(0)
    densify = Densify((6, 8), [(1, 8), (0, 4)], norm=norm, ndim=2)
    hidden = torch.rand(3, 4, 4) < 0.5
    maps = [torch.randn(3, 6, 8, 8), torch.randn(3, 8, 4, 4)]
    fine = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)
    other = [torch.where(h[:, None], 1e6, m) for h, m in zip((fine, hidden), maps, strict=True)]
    for a, b in zip(densify(maps, hidden), densify(other, hidden), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


def test_equal_widths_need_no_projection_at_the_coarsest_map():
    densify = Densify((8,), [(0, 8)], norm="batch", ndim=3)
    assert isinstance(densify.projections[0], nn.Identity)


def test_unknown_normalizations_are_refused():
    with pytest.raises(UserError, match='norm "weight" is unknown: expected one of batch, instance, layer'):
        norm_layers("weight", [4], ndim=2)
