"""Each intensity change against numpy or scipy written out here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medssl.ops import fields
from medssl.ops.draws import Draws
from medssl.types import Intensity
from medssl.views import intensity

SHAPES = [(9, 8), (7, 9, 8)]


def image(shape, batch=3, channels=2):
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float32, torch.int32])
def test_decode_is_its_formula(dtype):
    raw = torch.randint(0, 255, (2, 3, 5, 6)).to(dtype)
    numbers = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    numbers[..., 1], numbers[..., 2], numbers[..., 3] = -70.0, -40.0, 90.0
    numbers[1, :, 2:4] = torch.tensor([-math.inf, math.inf])
    numbers[0, 0] = torch.tensor([1.0, 0.0, 0.0, 255.0, 0.0, 1.0])
    scale, offset, low, high, shift, divisor = numbers.double().numpy()[..., None, None].transpose(2, 0, 1, 3, 4)
    expected = (np.clip(raw.double().numpy() * scale + offset, low, high) - shift) / divisor
    before = raw.clone()
    ours = intensity.decode(raw, numbers)
    assert ours.dtype == torch.float32
    assert np.allclose(ours.double().numpy(), expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(raw, before)
    if dtype == torch.float32:
        ours.zero_()
        assert torch.equal(raw, before)


def test_lowest_value_is_the_bound_or_what_is_seen():
    numbers = torch.tensor([[[1.0, 0, -1000, 1000, 100, 50]], [[1.0, 0, -math.inf, math.inf, 100, 50]]])
    values = image((4, 5), batch=2, channels=1)
    lowest = intensity.lowest_value(numbers, values)
    assert float(lowest[0]) == -22.0
    assert float(lowest[1]) == float(values[1].min())


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_is_scipys(shape):
    values, sigma = image(shape), torch.tensor([0.3, 1.0, 2.2])
    ours = intensity.blur(values, sigma)
    for row, width in enumerate(sigma.tolist()):
        for channel in range(2):
            theirs = ndimage.gaussian_filter(
                values[row, channel].double().numpy(), width, mode="nearest", radius=max(1, math.ceil(3 * width))
            )
            assert np.allclose(ours[row, channel].numpy(), theirs, atol=1e-5)
        assert torch.equal(intensity.blur(values[row : row + 1], sigma[row : row + 1])[0], ours[row]) or torch.allclose(
            intensity.blur(values[row : row + 1], sigma[row : row + 1])[0], ours[row], atol=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padded", [False, True])
def test_contrast_and_gamma_by_their_formulas(shape, padded):
    values = image(shape)
    valid = torch.ones(3, 1, *shape, dtype=torch.bool)
    if padded:
        valid[:, :, :3] = False
        values[:, :, :3] = -50.0
    given = valid if padded else None
    factor, exponent = torch.tensor([0.5, 1.0, 1.7]), torch.tensor([0.6, 1.5, 2.0])
    stretched, bent = intensity.contrast(values, factor, given), intensity.gamma(values, exponent, given)
    for row in range(3):
        for channel in range(2):
            inside = valid[row, 0].numpy()
            one = values[row, channel].double().numpy()[inside]
            expected = (one - one.mean()) * float(factor[row]) + one.mean()
            assert np.allclose(stretched[row, channel].numpy()[inside], expected, atol=1e-5)
            share = (one - one.min()) / (one.max() - one.min())
            expected = share ** float(exponent[row]) * (one.max() - one.min()) + one.min()
            assert np.allclose(bent[row, channel].numpy()[inside], expected, atol=1e-5)


def test_brightness_shifts():
    values = image((5, 5))
    shifted = intensity.brightness(values, torch.tensor([0.5, 0.0, -1.0]))
    assert torch.allclose(shifted - values, torch.tensor([0.5, 0.0, -1.0]).reshape(3, 1, 1, 1), atol=1e-6)


def test_bias_field_multiplies_what_lies_above_the_lowest_value():
    values = image((8, 8, 8))
    amplitude = torch.tensor([0.0, 0.2, 0.7])
    control = fields.draw_control(Draws(0, range(3), "bias"), 3)
    ours = intensity.bias_field(values, amplitude, control)
    field = fields.smooth_field(control, (8, 8, 8))
    for row in range(3):
        for channel in range(2):
            one = values[row, channel]
            expected = (one - one.min()) * torch.exp(amplitude[row] * field[row, 0]) + one.min()
            assert torch.allclose(ours[row, channel], expected, atol=1e-5)
            assert float(ours[row, channel].min()) == pytest.approx(float(one.min()), abs=1e-6)


def test_a_constant_image_survives():
    flat = torch.full((2, 1, 6, 6), 3.0)
    for changed in (
        intensity.gamma(flat, torch.tensor([0.5, 2.0])),
        intensity.contrast(flat, torch.tensor([0.5, 2.0])),
        intensity.blur(flat, torch.tensor([1.0, 2.0])),
        intensity.bias_field(flat, torch.ones(2), torch.rand(2, 4, 4)),
    ):
        assert torch.allclose(changed, flat, atol=1e-5)


def test_nothing_valid_stays_finite():
    values, nowhere = image((6, 6)), torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    for changed in (
        intensity.gamma(values, torch.tensor([0.5, 1.0, 2.0]), nowhere),
        intensity.contrast(values, torch.tensor([0.5, 1.0, 2.0]), nowhere),
        intensity.bias_field(values, torch.ones(3), torch.rand(3, 4, 4), nowhere),
    ):
        assert bool(torch.isfinite(changed).all())


def test_probability_zero_draws_neutral_values():
    drawn = intensity.draw_intensity(Intensity(), Draws(0, range(50), "view0"), channels=1, n=2)
    values = image((6, 6), batch=50)
    assert torch.equal(intensity.apply_intensity(values, drawn, seed=0), values)


def test_draws_keep_to_their_limits_and_probabilities():
    spec = Intensity((0.5, 0.2), (0.5, 1.5), (0.5, 0.3), (0.5, 0.8, 1.3), (0.5, 0.7, 1.6), (0.5, 0.4))
    drawn = intensity.draw_intensity(spec, Draws(0, range(600), "view0"), channels=2, n=3)
    for values, neutral, low, high in (
        (drawn.noise, 0.0, 0.0, 0.2),
        (drawn.blur, 0.0, 0.0, 1.5),
        (drawn.brightness, 0.0, -0.3, 0.3),
        (drawn.contrast, 1.0, 0.8, 1.3),
        (drawn.gamma, 1.0, 0.7, 1.6),
        (drawn.bias, 0.0, 0.0, 0.4),
    ):
        on = values != neutral
        assert 0.4 < float(on.float().mean()) < 0.6
        assert float(values.min()) >= low - 1e-6
        assert float(values.max()) <= high + 1e-6
        assert float(values[on].min()) < low + 0.1 * (high - low)
        assert float(values[on].max()) > high - 0.1 * (high - low)
    assert drawn.offsets.shape == (600, 2, 2)
    assert drawn.control.shape == (600, 4, 4, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_applying_the_same_draw_gives_the_same_and_leaves_the_input(shape):
    spec = Intensity((0.6, 0.2), (0.6, 1.0), (0.6, 0.3), (0.6, 0.8, 1.3), (0.6, 0.7, 1.6), (0.6, 0.4))
    drawn = intensity.draw_intensity(spec, Draws(0, range(6), "view0"), channels=2, n=len(shape))
    values = image(shape, batch=6)
    before = values.clone()
    once, again = (intensity.apply_intensity(values, drawn, seed=0) for _ in range(2))
    assert torch.equal(values, before)
    assert torch.equal(once, again)
    few = intensity.apply_intensity(values[2:4], drawn.rows(slice(2, 4)), seed=0)
    assert torch.equal(few, once[2:4])
    assert not torch.equal(once, values)


# --- changes after 0.1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_inverted_gamma_by_its_formula(shape):
    values = image(shape)
    exponent = torch.tensor([0.6, 1.5, 2.0])
    changed = intensity.inverted_gamma(values, exponent)
    for row in range(3):
        for channel in range(2):
            one = values[row, channel].double().numpy()
            low, high = one.min(), one.max()
            expected = high - ((high - one) / (high - low)) ** float(exponent[row]) * (high - low)
            assert np.allclose(changed[row, channel].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_reduced_resolution_is_the_image_of_fewer_voxels(shape):
    values = image(shape)
    changed = intensity.reduced_resolution(values, torch.tensor([1.0, 0.5, 0.001]))
    assert torch.allclose(changed[0], values[0], atol=1e-6)
    single = changed[2].flatten(1)  # one voxel is left, of the middle
    assert torch.allclose(single, single[:, :1].expand_as(single))
    for channel in range(2):
        source = values[1, channel].double().numpy()
        for axis, extent in enumerate(shape):  # nearest by the middles of the larger voxels, then linear
            fewer = max(1, round(extent * 0.5))
            middles = (np.arange(fewer) + 0.5) * extent / fewer
            source = source.take(np.floor(middles).astype(int), axis)
            grid = np.arange(extent) + 0.5
            source = np.apply_along_axis(lambda line, x=middles, at=grid: np.interp(at, x, line), axis, source)
        assert np.allclose(changed[1, channel].numpy(), source, atol=1e-5)


def test_later_changes_keep_to_their_limits_and_leave_the_former_draws():
    former = Intensity((0.5, 0.2), (0.5, 1.5), (0.5, 0.3), (0.5, 0.8, 1.3), (0.5, 0.7, 1.6), (0.5, 0.4))
    more = replace(
        former,
        brightness_factor=(0.15, 0.75, 1.25),
        inverted_gamma=(0.1, 0.7, 1.5),
        reduced_resolution=(0.25, 0.5, 1.0),
    )
    drawn, before = (
        intensity.draw_intensity(spec, Draws(0, range(2000), "view0"), channels=2, n=2) for spec in (more, former)
    )
    for name in ("gamma", "contrast", "brightness", "bias", "blur", "noise", "control", "offsets"):
        assert torch.equal(getattr(drawn, name), getattr(before, name)), name
    for values, share, low, high in (
        (drawn.factor, 0.15, 0.75, 1.25),
        (drawn.inverted, 0.1, 0.7, 1.5),
        (drawn.resolution, 0.25, 0.5, 1.0),
    ):
        changed = values[values != 1]
        assert len(changed) / 2000 == pytest.approx(share, abs=0.03)
        assert low <= float(changed.min()) < low + 0.05
        assert high - 0.05 < float(changed.max()) <= high
    for values in (before.factor, before.inverted, before.resolution):
        assert bool((values == 1).all())


def test_factor_multiplies():
    values = image((5, 5))
    spec = Intensity(brightness_factor=(1.0, 0.5, 0.5))
    drawn = intensity.draw_intensity(spec, Draws(0, range(3), "view0"), channels=2, n=2)
    assert torch.allclose(intensity.apply_intensity(values, drawn, seed=0), values * 0.5)
