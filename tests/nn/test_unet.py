"""U-Net decoder: which map is joined where, widths, shapes for any strides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.nn.unet import UNetDecoder
from medssl.types import UserError


def maps_of(channels, strides, total):
    sizes = [tuple(t // s for t, s in zip(total, stride, strict=True)) for stride in strides]
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]


CASES = {
    # strides, channels -> map joined at each step, widths
    "plain": ([(1, 1), (2, 2), (4, 4)], (4, 6, 8), (1, 0), (6, 4)),
    "thick slices": ([(1, 1, 1), (2, 2, 1), (4, 4, 2)], (4, 6, 8), (1, 0), (6, 4)),
    "several maps at one resolution": ([(1, 1), (1, 1), (2, 2), (2, 2)], (4, 5, 6, 8), (1,), (5,)),
    "first map at stride 4": ([(4, 4), (8, 8)], (40, 64), (0, None, None), (40, 20, 10)),
    "one coarse map": ([(8, 8, 4)], (64,), (None, None, None), (32, 16, 8)),
    "odd factors": ([(1, 1), (3, 1), (6, 5)], (4, 6, 8), (1, 0), (6, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_step_joins_the_map_of_its_resolution(name):
    strides, channels, joined, widths = CASES[name]
    decoder = UNetDecoder(channels, strides)
    assert decoder.joined == joined
    assert decoder.widths == widths
    total = tuple(2 * s for s in strides[-1])
    maps = [x.requires_grad_() for x in maps_of(channels, strides, total)]
    features = decoder(maps)
    assert [x.shape[1] for x in features] == list(widths)
    assert tuple(features[-1].shape[2:]) == total
    features[-1].square().sum().backward()
    used = {number for number in joined if number is not None} | {len(maps) - 1}
    assert {number for number, x in enumerate(maps) if x.grad is not None} == used
    assert all(p.grad is not None for p in decoder.parameters())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([1, 2, 3])] * 3), min_size=1, max_size=3), st.integers(1, 2))
def test_any_strides_lead_back_to_the_image(ratios, convolutions):
    strides = [(1, 1, 1)]
    for ratio in [*ratios, (2, 1, 1)]:
        strides.append(tuple(a * b for a, b in zip(strides[-1], ratio, strict=True)))
    channels = [3] * len(strides)
    decoder = UNetDecoder(channels, strides, convolutions=convolutions, norm="layer")
    features = decoder(maps_of(channels, strides, strides[-1]))
    assert tuple(features[-1].shape) == (2, 3, *strides[-1])
    assert all(len(step.convolutions) == convolutions for step in decoder.steps)


def test_widths_can_be_told():
    decoder = UNetDecoder((4, 8, 16), [(1, 1), (2, 2), (4, 4)], widths=(7, 5), norm="batch")
    assert [x.shape[1] for x in decoder(maps_of((4, 8, 16), [(1, 1), (2, 2), (4, 4)], (8, 12)))] == [7, 5]


@pytest.mark.parametrize("arguments", [{"widths": (8,)}, {"widths": (8, 0)}, {"convolutions": 0}])
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(UserError, match=r"expected 2 numbers, one for each step .* and at least one convolution"):
        UNetDecoder((4, 8, 16), [(1, 1), (2, 2), (4, 4)], **arguments)


def test_an_encoder_without_a_coarser_map_is_refused():
    with pytest.raises(UserError, match="no map is coarser than the image"):
        UNetDecoder((4,), [(1, 1)])
