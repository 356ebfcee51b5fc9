"""Temperature scaling: what is calibrated stays, what was sharpened comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.metrics.calibration import COLDEST, WARMEST, Scaling, scaled, temperature
from medssl.types import UserError


def drawn(scans=400, classes=3, seed=0):
    """Probabilities, and classes that were drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), scans)
    return probabilities, (probabilities.cumsum(1) < rng.random((scans, 1))).sum(1)


def test_what_is_right_as_often_as_it_is_sure_has_temperature_one():
    probabilities = np.tile([0.7, 0.2, 0.1], (10, 1))
    truth = np.repeat([0, 1, 2], [7, 2, 1])
    assert temperature(probabilities, truth) == pytest.approx(1.0, abs=1e-4)
    assert temperature(*drawn(20_000)) == pytest.approx(1.0, abs=0.03)


def test_two_classes_by_hand():
    """Sure by 9 to 1, right 3 to 1: log 9 / T = log 3."""
    probabilities, truth = np.tile([0.9, 0.1], (4, 1)), np.array([0, 0, 0, 1])
    found = temperature(probabilities, truth)
    assert found == pytest.approx(math.log(9) / math.log(3), abs=1e-4)
    np.testing.assert_allclose(scaled(probabilities, found), np.tile([0.75, 0.25], (4, 1)), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), sharpness=st.floats(0.4, 2.5))
def test_what_was_sharpened_comes_back(seed, sharpness):
    probabilities, truth = drawn(seed=seed)
    probabilities = (probabilities + 0.05) / 1.15  # so that no power is below the smallest that counts
    powered = probabilities**sharpness
    sharpened = powered / powered.sum(1, keepdims=True)
    np.testing.assert_allclose(scaled(sharpened, sharpness), probabilities)
    assert temperature(sharpened, truth) == pytest.approx(sharpness * temperature(probabilities, truth), rel=1e-4)


def test_no_temperature_nearby_is_better():
    probabilities, truth = drawn(60, seed=3)
    found = temperature(probabilities, truth)
    losses = [
        -np.log(scaled(probabilities, found * factor)[np.arange(60), truth]).mean() for factor in (0.98, 1.0, 1.02)
    ]
    assert losses[1] == min(losses)


def test_the_predicted_class_stays():
    probabilities, _ = drawn()
    for degree in (0.2, 1.0, 7.0):
        after = scaled(probabilities, degree)
        assert (after.argmax(1) == probabilities.argmax(1)).all()
        np.testing.assert_allclose(after.sum(1), 1.0)
    np.testing.assert_allclose(scaled(probabilities, 1.0), probabilities, atol=1e-6)


def test_all_right_and_all_wrong_end_at_the_bounds_and_say_so():
    sure = np.tile([0.8, 0.2], (5, 1))
    right, wrong = temperature(sure, np.zeros(5, int)), temperature(sure, np.ones(5, int))
    assert (right, wrong) == pytest.approx((COLDEST, WARMEST))
    assert "temperature 0.05 is the end of the range 0.05 to 20: 5 scans of split" in Scaling(right, "val", 5, 5).note
    assert "temperature 20 is the end of the range" in Scaling(wrong, "val", 5, 5).note
    assert Scaling(1.3, "val", 5, 5).note == ""


def test_certain_probabilities_are_finite():
    found = temperature(np.array([[1.0, 0.0], [1.0, 0.0]], np.float32), np.array([0, 1]))
    assert found == pytest.approx(WARMEST)
    assert np.isfinite(scaled(np.array([[1.0, 0.0]], np.float32), found)).all()


def test_what_is_no_classification_is_refused():
    with pytest.raises(UserError, match="0 true classes, 2 class names: expected a row for each of at least one scan"):
        temperature(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(UserError, match="1 of 1 scans have probabilities that do not add up to 1"):
        temperature(np.full((1, 2), 0.7), np.zeros(1, int))
