"""Smooth fields against scipy's B-splines; noise by its statistics and its keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from medssl.ops import fields
from medssl.ops.draws import Draws


@pytest.mark.parametrize(("points", "extent"), [(4, 11), (6, 17), (5, 1)])
def test_a_line_is_scipys_spline(points, extent):
    control = torch.randn(1, points, 4, generator=torch.Generator().manual_seed(points))
    ours = fields.smooth_field(control, (extent, 3))[0, 0].double().numpy()
    position = (np.arange(extent) + 0.5) / extent * (points - 3)
    place = (np.arange(3) + 0.5) / 3
    first = np.stack([BSpline(np.arange(points + 4) - 3.0, row, 3)(position) for row in np.eye(points)], axis=1)
    second = np.stack([BSpline(np.arange(8) - 3.0, row, 3)(place) for row in np.eye(4)], axis=1)
    assert np.allclose(ours, first @ control[0].double().numpy() @ second.T, atol=1e-6)


def test_a_field_stays_in_the_range_of_its_control_points():
    control = fields.draw_control(Draws(0, range(5), "bias"), 3)
    field = fields.smooth_field(control, (12, 9, 10))
    assert field.shape == (5, 1, 12, 9, 10)
    assert bool((field.amax(dim=(1, 2, 3, 4)) <= control.amax(dim=(1, 2, 3))).all())
    assert bool((field.amin(dim=(1, 2, 3, 4)) >= control.amin(dim=(1, 2, 3))).all())
    assert torch.allclose(fields.smooth_field(torch.ones(1, 4, 4), (7, 8)), torch.ones(1, 1, 7, 8))


def test_too_few_control_points():
    with pytest.raises(ValueError, match="at least 4 control points"):
        fields.smooth_field(torch.zeros(1, 3, 4), (8, 8))


def noise(samples, size=(24, 24, 24), channels=1, seed=0, deviation=1.0):
    draws = Draws(seed, samples, "noise")
    image = torch.zeros(len(samples), channels, *size)
    width = torch.full((len(samples),), deviation)
    return fields.add_noise(image, width, fields.draw_offsets(draws, channels), seed=seed)


def test_noise_is_normal_and_white():
    values = noise(range(20))
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float((values**4).mean()) == pytest.approx(3, abs=0.1)
    assert float((values**3).mean()) == pytest.approx(0, abs=0.05)
    for axis in (2, 3, 4):
        shifted = values.roll(1, dims=axis)
        assert abs(float((values * shifted).mean())) < 0.01


def test_noise_of_samples_and_channels_is_not_shared():
    values = noise(range(4), channels=2).reshape(8, -1)
    correlation = torch.corrcoef(values) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.05


def test_noise_is_a_function_of_seed_and_sample():
    together = noise([3, 8, 5])
    assert torch.equal(noise([5, 3]), together[[2, 0]])
    assert not torch.equal(noise([3], seed=1), together[:1])


def test_noise_leaves_its_input_and_scales():
    image = torch.randn(2, 1, 8, 8)
    before = image.clone()
    offsets = fields.draw_offsets(Draws(0, [1, 2], "noise"), 1)
    once = fields.add_noise(image, torch.tensor([0.5, 0.0]), offsets, seed=0)
    twice = fields.add_noise(image, torch.tensor([1.0, 0.0]), offsets, seed=0)
    assert torch.equal(image, before)
    assert torch.equal(once[1], image[1])
    assert torch.allclose(twice[0] - image[0], 2 * (once[0] - image[0]), atol=1e-5)
