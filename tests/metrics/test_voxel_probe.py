"""The probe of voxels: the same as the head by another road, and classes that are told apart where they can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from heads.made import image
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.small import encoder
from torch.nn import functional as F

from medssl.heads.segmentation import VoxelLinear
from medssl.metrics import voxel_probe
from medssl.metrics.scan_probe import Linear
from medssl.metrics.segmentation import dice_scores
from medssl.metrics.voxel_probe import Candidates, fit_candidates, sample_voxels
from medssl.types import Features, LabelSchema, UserError

TWO = LabelSchema("mask", ((0, "background"), (4, "organ")))
THREE = LabelSchema("mask", ((0, "background"), (2, "unclear"), (4, "organ")), ignore=2)


def linear(width, classes, seed=0) -> Linear:
    rng = np.random.default_rng(seed)
    return Linear(
        np.random.default_rng(9).normal(size=width), np.random.default_rng(8).uniform(0.5, 2, width),
        rng.normal(size=(width, classes)), rng.normal(size=classes),
    )  # fmt: skip


def maps_of(ndim):
    torch.manual_seed(0)
    small = encoder(ndim).eval()
    picture = image(ndim, rows=1)
    with torch.no_grad():
        return small, small(picture), tuple(picture.shape[2:])


@pytest.mark.parametrize("ndim", [2, 3])
def test_features_of_voxels_are_the_interpolated_maps(ndim):
    _, features, size = maps_of(ndim)
    places = torch.tensor(list(np.ndindex(*size)))
    found = voxel_probe.features_at(features, size, places)
    mode = "bilinear" if ndim == 2 else "trilinear"
    whole = torch.cat([F.interpolate(x, size, mode=mode)[0].flatten(1) for x in features.maps]).T
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("levels", [None, (0,), (1,)])
def test_the_head_predicts_what_the_regression_predicts(ndim, levels):
    small, features, size = maps_of(ndim)
    levels = tuple(range(len(small.channels))) if levels is None else levels
    own = linear(sum(small.channels[level] for level in levels), 2)
    head = VoxelLinear(small, TWO).eval()
    voxel_probe.set_weights(head, [own], levels)
    with torch.no_grad():
        logits = head(features, size)[0].flatten(1).T.numpy()
    chosen = Features(tuple(features.maps[level] for level in levels), features.pooled)
    x = voxel_probe.features_at(chosen, size, torch.tensor(list(np.ndindex(*size)))).numpy()
    np.testing.assert_allclose(logits, own(x), rtol=1e-3, atol=1e-3)


def test_candidates_predict_together_what_each_predicts_alone():
    small, features, size = maps_of(3)
    levels, width = tuple(range(len(small.channels))), sum(small.channels)
    several = [linear(width, 2, seed) for seed in range(3)]
    together = Candidates(small, TWO, several, levels).eval()
    with torch.no_grad():
        shares = together(features, size).softmax(1).reshape(3, 2, *size)
        for own, share in zip(several, shares, strict=True):
            alone = VoxelLinear(small, TWO).eval()
            voxel_probe.set_weights(alone, [own], levels)
            torch.testing.assert_close(3 * share, alone(features, size).softmax(1)[0], rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9))
def test_sampled_voxels_are_as_many_of_each_class(seed, per_class):
    rng = np.random.default_rng(seed)
    numbers = rng.choice([-1, 0, 1, 2], (4, 3, 5), p=[0.1, 0.6, 0.25, 0.05])
    places = sample_voxels(numbers, 3, per_class, np.random.default_rng(seed))
    assert len({tuple(place) for place in places}) == len(places)
    found = numbers[tuple(places.T)]
    assert found.tolist().count(-1) == 0
    for number in range(3):
        assert (found == number).sum() == min(per_class, (numbers == number).sum())
    np.testing.assert_array_equal(places, sample_voxels(numbers, 3, per_class, np.random.default_rng(seed)))


def test_dice_block_by_block_is_the_dice_of_the_scan():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2 * 3, 7, 5, 4, generator=generator)
    numbers = torch.randint(-1, 3, (7, 5, 4), generator=generator)
    numbers[numbers == 2] = 1  # class 2 is only predicted
    blocks = [(0, probabilities[:, :3]), (3, probabilities[:, 3:4]), (4, probabilities[:, 4:])]
    found = voxel_probe.dice_of_candidates(iter(blocks), numbers, 2)
    expected = [dice_scores(own.argmax(0), numbers, 3) for own in probabilities.reshape(2, 3, 7, 5, 4)]
    assert found == expected
    sure = torch.zeros(2 * 3, 7, 5, 4)
    sure[0], sure[3] = 1, 1
    assert voxel_probe.dice_of_candidates([(0, sure)], torch.zeros_like(numbers), 2) == [[None, None]] * 2


def test_the_prior_gives_the_odds_of_the_scans_back():
    """Two normal distributions at -1 and 1: log odds 2 x + log(share of the second / share of the first)."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(-1, 1, 20_000), rng.normal(1, 1, 20_000)])[:, None].astype(np.float32)
    truth = np.repeat([0, 1], 20_000)
    found = {(own.penalty, own.prior): own.linear for own in fit_candidates(features, truth, [950, 50], TWO)}
    x = np.array([[-1.0], [0.0], [2.0]])
    for prior in (0.0, 0.5, 1.0):
        scores = found[1e-5, prior](x)
        expected = 2 * x[:, 0] + prior * np.log(50 / 950)
        np.testing.assert_allclose(scores[:, 1] - scores[:, 0], expected, atol=0.1)


def test_the_prior_makes_up_for_samples_of_unequal_number():
    """A class with fewer voxels than were asked for: prior 1 is that of the scans all the same."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(-1, 1, 20_000), rng.normal(1, 1, 2_000)])[:, None].astype(np.float32)
    found = fit_candidates(features, np.repeat([0, 1], [20_000, 2_000]), [20_000, 2_000], TWO)
    own = [candidate.linear for candidate in found if candidate.penalty == 1e-3]
    for weights in own[1:]:
        np.testing.assert_allclose(weights.bias, own[0].bias, atol=1e-12)


def test_the_value_to_ignore_is_never_predicted():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 2], 50)
    features = (rng.normal(size=(100, 3)) + truth[:, None]).astype(np.float32)
    for candidate in fit_candidates(features, truth, [900, 0, 100], THREE):
        assert set(candidate.linear(features).argmax(1)) <= {0, 2}
        assert np.isfinite(candidate.linear.bias).all()


def test_strongest_and_most_even_come_first():
    features = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    found = fit_candidates(features, np.arange(40) % 2, [5, 5], TWO)
    pairs = [(-own.penalty, own.prior) for own in found]
    assert pairs == sorted(pairs)
    assert len(pairs) == len(voxel_probe.PENALTIES) * len(voxel_probe.PRIORS)


def test_the_best_mean_over_subjects_is_chosen_and_of_equals_the_first():
    """Subject p has two scans that count together as much as the one of q; classes that are nowhere do not count."""
    scores = [[[0.2, 0.4], [0.9, None]], [[0.4, None], [0.9, None]], [[0.9, 0.9], [0.3, 0.5]]]
    place, dice = voxel_probe.choose(scores, ["p", "p", "q"])
    assert dice == pytest.approx([(0.35 + 0.9) / 2, (0.9 + 0.4) / 2])
    assert place == 1
    assert voxel_probe.choose([[[0.5], [0.5]]], ["p"])[0] == 0
    with pytest.raises(UserError, match=r"no validation scan has a class to score\. Choose another split"):
        voxel_probe.choose([[[None], [None]]], ["p"])


def test_constant_features_of_each_class_are_distinguished():
    """Maps that hold the class itself: Dice 1 for every candidate with prior 0."""
    numbers = torch.zeros(8, 8, 8, dtype=torch.int64)
    numbers[2:5, 3:6, 1:7] = 1
    maps = torch.stack([numbers.float(), 3 - numbers.float()])[None]
    places = sample_voxels(numbers.numpy(), 2, 30, np.random.default_rng(0))
    features = voxel_probe.features_at(Features((maps,), maps.mean((2, 3, 4))), (8, 8, 8), torch.from_numpy(places))
    found = fit_candidates(features.numpy(), numbers.numpy()[tuple(places.T)], [458, 54], TWO)
    even = [own.linear for own in found if own.prior == 0]
    scores = [torch.from_numpy(own(maps[0].flatten(1).T.numpy())).T.reshape(2, 8, 8, 8) for own in even]
    assert voxel_probe.dice_of_candidates([(0, torch.cat(scores))], numbers, len(even)) == [[1.0]] * len(even)


def test_classes_without_a_voxel_and_features_that_are_not_finite_are_refused():
    features = np.zeros((6, 2), np.float32)
    with pytest.raises(
        UserError, match=r"no voxel of the training scans is organ: a probe needs voxels of every class"
    ):
        fit_candidates(features, np.zeros(6, int), [9, 0], TWO)
    with pytest.raises(UserError, match=r"no voxel of the validation scans is background:"):
        voxel_probe.refuse_absent("validation", [0, 3], TWO)
    voxel_probe.refuse_absent("validation", [4, 0, 3], THREE)
    bad = features.copy()
    bad[1, 0] = np.nan
    with pytest.raises(
        UserError, match=r"1 of 6 voxels have features that are NaN or infinite: the training of the encoder"
    ):
        fit_candidates(bad, np.arange(6) % 2, [9, 1], TWO)


def test_fits_that_never_converge_are_refused(monkeypatch):
    monkeypatch.setattr(voxel_probe, "fit_logistic", lambda *_: [])
    with pytest.raises(UserError, match="the regression on voxels converges with no penalty"):
        fit_candidates(np.zeros((6, 2), np.float32), np.arange(6) % 2, [9, 1], TWO)
