"""Targets of masked modeling, errors of a prediction, and pictures of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medssl.ops.patches import patchify
from medssl.ops.reconstruction import compare, pixel_target, reconstruction
from medssl.types import View


def view_of(image: torch.Tensor, **changes: torch.Tensor) -> View:
    rows, channels, *size = image.shape
    ndim = len(size)
    identity = torch.eye(ndim + 1).expand(rows, -1, -1)
    whole = torch.ones(rows, 1, *size, dtype=torch.bool)
    values = {
        "image": image, "affine": identity, "world_affine": identity, "spacing_mm": torch.ones(rows, ndim),
        "source_shape": torch.tensor(size).expand(rows, ndim), "valid": whole, "scored": whole,
        "present": torch.ones(rows, channels, dtype=torch.bool),
    }  # fmt: skip
    return View(**values | changes)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("channels", "side", "value"), [(3, 32, 3071 / 3072), (3, 16, 0.998698), (1, 16, 0.996094)], ids=str
)
def test_the_published_values_of_a_zero_prediction(channels, side, value):
    """(n - 1) / n for n values of a cell, from the unbiased variance."""
    view = view_of(noise(2, channels, 64, 64))
    squares = pixel_target(view, (side, side)).values.square().mean(-1)
    torch.testing.assert_close(squares, torch.full_like(squares, value), rtol=0, atol=2e-6)


def test_cells_without_variance_do_not_blow_up():
    """A cell of air with a trace of noise: its target stays small instead of becoming unit noise."""
    image = noise(4, 1, 32, 48).float()
    image[:, :, :8, :8] = -3 + 1e-4 * noise(4, 1, 8, 8, seed=1).float()
    values = pixel_target(view_of(image), (8, 8)).values
    assert values[:, 0].abs().max() < 0.1
    assert values[:, 1].std() == pytest.approx(1, abs=0.1)
    constant = pixel_target(view_of(torch.full_like(image, 7.0)), (8, 8))
    assert (constant.values == 0).all()
    assert constant.deviation.isfinite().all()


def test_shift_and_scale_of_the_image_do_not_matter():
    image = 100 * noise(2, 1, 8, 12, 4)
    values = [pixel_target(view_of(x), (4, 3, 2)).values for x in (image, 0.03 * image + 70)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", ["valid", "scored", "present"])
def test_what_is_not_counted_changes_neither_mean_nor_deviation(key):
    image = noise(2, 2, 16, 12)
    out = torch.rand(2, 2, 16, 12) < 0.3
    if key == "present":
        keep = torch.tensor([[True, False], [True, True]])
        out = ~keep[..., None, None].expand_as(image)
    else:
        out[:, 1] = out[:, 0]
        keep = ~out[:, :1]
    found = pixel_target(view_of(image, **{key: keep}), (8, 4))
    other = pixel_target(view_of(torch.where(out, float("nan"), image), **{key: keep}), (8, 4))
    for a, b in zip(found, other, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(found.counted, ~patchify(out, (8, 4)))
    assert (found.values[~found.counted] == 0).all()


def test_losses_are_in_single_precision_at_least():
    assert pixel_target(view_of(noise(1, 1, 8, 8).bfloat16()), (4, 4)).values.dtype == torch.float32
    assert pixel_target(view_of(noise(1, 1, 8, 8)), (4, 4), normalize=False).values.dtype == torch.float64


@pytest.mark.parametrize("distance", ["square", "absolute"])
def test_terms_are_those_of_numpy(distance):
    view = view_of(noise(2, 1, 16, 12), scored=torch.rand(2, 1, 16, 12) < 0.7)
    target = pixel_target(view, (4, 4), normalize=False)
    hidden = torch.rand(2, 4, 3) < 0.6
    prediction = (0.4 * target.values + 0.3 * noise(*target.values.shape, seed=2)).requires_grad_()
    loss, terms = compare(prediction, target, hidden, distance)

    scored = target.counted.numpy() & hidden.flatten(1).numpy()[..., None]
    truth, guess = target.values.numpy()[scored], prediction.detach().numpy()[scored]
    of = np.square if distance == "square" else np.abs
    assert loss.requires_grad
    assert terms["loss"].item() == loss.item() == pytest.approx(of(guess - truth).mean())
    best = truth.mean() if distance == "square" else np.median(truth)
    assert terms["chance"].item() == pytest.approx(of(truth - best).mean())
    assert terms["hidden"].item() == pytest.approx(scored.sum() / target.counted.sum().item())
    assert terms["correlation"].item() == pytest.approx(np.corrcoef(truth, guess)[0, 1])
    assert not any(term.requires_grad for term in terms.values())


def test_no_constant_beats_chance_where_most_of_the_image_is_air():
    """Thirteen of 16 voxels are air: absolute differences are least at its value, far from the mean of 3."""
    image = torch.zeros(1, 1, 4, 4)
    image[..., :3, 0] = 16.0
    target = pixel_target(view_of(image), (2, 2), normalize=False)
    hidden = torch.ones(1, 2, 2, dtype=torch.bool)
    constants = {value: torch.full_like(target.values, value) for value in (-1.0, 0.0, 3.0, 8.0, 16.0)}
    losses = {value: compare(guess, target, hidden, "absolute") for value, guess in constants.items()}
    assert all(terms["chance"].item() == 3.0 for _, terms in losses.values())
    assert losses[0.0][0].item() == 3.0
    assert losses[3.0][0].item() == pytest.approx((13 * 3 + 3 * 13) / 16)
    assert min(loss.item() for loss, _ in losses.values()) == 3.0


def test_chance_is_0_where_nothing_is_scored():
    target = pixel_target(view_of(noise(1, 1, 8, 8)), (4, 4), normalize=False)
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert compare(target.values + 1, target, nothing, "absolute")[1]["chance"].item() == 0


def test_a_constant_prediction_correlates_with_nothing():
    target = pixel_target(view_of(noise(1, 1, 8, 8)), (4, 4))
    hidden = torch.ones(1, 2, 2, dtype=torch.bool)
    assert compare(torch.zeros_like(target.values), target, hidden)[1]["correlation"].item() == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_is_drawn_as_the_image(normalize):
    image = noise(2, 1, 8, 6)
    view = view_of(image)
    target = pixel_target(view, (4, 2), normalize=normalize)
    hidden = torch.tensor([[[True, False, True], [False, True, False]]]).expand(2, -1, -1)
    pictures = reconstruction(view, target.values, target, hidden, (4, 2))
    torch.testing.assert_close(pictures["reconstruction"], image)
    middle = (image.amax((1, 2, 3)) + image.amin((1, 2, 3))) / 2
    torch.testing.assert_close(pictures["masked"][:, 0, :4, :2], middle[:, None, None].expand(-1, 4, 2))
    assert torch.equal(pictures["masked"][:, 0, :4, 2:4], image[:, 0, :4, 2:4])
