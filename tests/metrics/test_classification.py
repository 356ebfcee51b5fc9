"""Measures of classification against hand-made cases and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.metrics.classification import (
    SENSITIVITY,
    Bin,
    auroc,
    average_precision,
    calibration_curve,
    calibration_error,
    refuse_specificity,
    score_cases,
    sensitivity,
    undefined,
)
from medssl.types import UserError

NAMES = ("normal", "benign", "malignant")


def made(scans=120, classes=3, seed=0, digits=None):
    """Probabilities that know something about the truth; with few ``digits`` many are equal."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, scans)
    logits = rng.normal(size=(scans, classes)) + 1.2 * np.eye(classes)[truth]
    if digits is not None:
        logits = logits.round(digits)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), truth


# --- hand-made cases


def test_two_classes_by_hand():
    second = np.array([0.1, 0.4, 0.4, 0.8])
    scores = score_cases(np.stack([1 - second, second], 1), np.array([0, 0, 1, 1]), ("healthy", "ill"))
    ranked = ["auroc", "average_precision", SENSITIVITY]
    assert list(scores) == ["accuracy", "balanced_accuracy", *ranked, "ece", "brier", "nll"]
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == 0.75
    assert scores["auroc"] == 3.5 / 4  # of four pairs three are in order and one is equal
    assert scores["brier"] == pytest.approx(2 * (0.01 + 0.16 + 0.36 + 0.04) / 4)
    assert scores["nll"] == pytest.approx(-np.log([0.9, 0.6, 0.4, 0.8]).mean())
    # highest 0.6 twice (one of the two right), 0.8 and 0.9 (right): |0.5 - 0.6| twice, 0.2 and 0.1
    assert scores["ece"] == pytest.approx((0.1 + 0.1 + 0.2 + 0.1) / 4)


def test_balanced_accuracy_counts_classes_not_scans():
    truth = np.array([0] * 8 + [1] * 2)
    scores = score_cases(np.tile([0.9, 0.1], (10, 1)), truth, ("common", "rare"))
    assert scores["accuracy"] == 0.8
    assert scores["balanced_accuracy"] == 0.5
    assert scores["auroc"] == 0.5  # all equal
    assert scores["ece"] == pytest.approx(0.1)


def test_certain_and_wrong_is_finite():
    scores = score_cases(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([1, 1]), ("a", "b"))
    assert scores["nll"] == pytest.approx(-np.log(1e-7) / 2)
    assert scores["brier"] == pytest.approx(1.0)


def test_bins_hold_equal_numbers():
    confidence = np.array([0.2, 0.3, 0.5, 0.9, 0.4, 0.8])
    correct = np.array([True, False, True, True, False, True])
    # sorted: 0.2 right, 0.3 wrong, 0.4 wrong | 0.5, 0.8, 0.9 right
    assert calibration_error(confidence, correct, 2) == pytest.approx((abs(1 - 0.9) + abs(3 - 2.2)) / 6)
    assert calibration_error(confidence, correct, 1) == pytest.approx(abs(4 - 3.1) / 6)


def test_the_calibration_curve_by_hand():
    confidence = np.array([0.2, 0.3, 0.5, 0.9, 0.4, 0.8])
    correct = np.array([True, False, True, True, False, True])
    low, high = calibration_curve(confidence, correct, 2)
    assert low == Bin(pytest.approx(0.3), pytest.approx(1 / 3), 3)
    assert high == Bin(pytest.approx(2.2 / 3), 1.0, 3)
    alone = calibration_curve(np.array([0.6, 0.9]), np.array([True, False]))  # fewer scans than bins
    assert alone == [Bin(0.6, 1.0, 1), Bin(0.9, 0.0, 1)]
    equal = calibration_curve(np.full(8, 0.75), np.arange(8) < 6, 4)
    assert equal == [Bin(0.75, 0.75, 2)] * 4


def test_average_precision_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, positive) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(np.full(4, 0.5), positive) == 0.5  # all at once: the share of the positive
    assert average_precision(scores, scores > 0) is None
    assert average_precision(scores, scores > 1) is None


def test_sensitivity_at_fixed_specificity_by_hand():
    others = np.arange(10) / 10  # 0 to 0.9: nine of ten stay below 0.9
    own = np.array([0.85, 0.9, 0.95, 0.2])
    scores, positive = np.concatenate([others, own]), np.arange(14) >= 10
    assert sensitivity(scores, positive) == 0.75  # 0.85, above nine of them, finds three
    assert sensitivity(scores, positive, 1.0) == 0.25
    assert sensitivity(scores, positive, 0.5) == 0.75
    assert sensitivity(scores, positive, 0.2) == 1.0
    assert sensitivity(np.full(4, 0.5), np.arange(4) > 1) == 0.0  # no threshold tells them apart
    assert sensitivity(own, own > 0) is None


def test_a_specificity_is_a_share():
    for good in (0.01, 0.9, 1.0):
        refuse_specificity(good)
    for bad in (0.0, -0.1, 1.01, 95, float("nan")):
        with pytest.raises(UserError, match="specificity: must be above 0, 1 at most"):
            refuse_specificity(bad)


def by_loops(scores, positive):
    """Average precision and sensitivity at 90 % specificity, threshold by threshold, in whole numbers."""
    precision, found, best, before = 0.0, 0, 0.0, 0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = [(p, s) for p, s in zip(positive.tolist(), scores.tolist(), strict=True) if s >= threshold]
        found = sum(p for p, _ in called)
        precision += (found - before) * found / len(called)
        before = found
        if 10 * (len(called) - found) <= int((~positive).sum()):
            best = found / positive.sum()
    return precision / positive.sum(), best


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), scans=st.integers(2, 60), digits=st.sampled_from([None, 1, 0]))
def test_rankings_equal_loops_over_thresholds_and_torchmetrics(seed, scans, digits):
    from torchmetrics.functional.classification import binary_average_precision

    probabilities, truth = made(scans, 2, seed, digits)
    truth[:2] = 0, 1
    scores, positive = probabilities[:, 1], truth == 1
    expected = by_loops(scores, positive)
    assert average_precision(scores, positive) == pytest.approx(expected[0])
    assert sensitivity(scores, positive) == pytest.approx(expected[1])
    theirs = binary_average_precision(torch.from_numpy(scores), torch.from_numpy(truth)).item()
    assert average_precision(scores, positive) == pytest.approx(theirs, abs=1e-5)
    assert score_cases(probabilities, truth, ("a", "b"))["average_precision"] == pytest.approx(expected[0])


def test_rankings_of_three_classes_are_means_of_each_against_the_rest():
    probabilities, truth = made(90)
    scores = score_cases(probabilities, truth, NAMES)
    for place, kind in enumerate(("average_precision", SENSITIVITY)):
        alone = [by_loops(probabilities[:, number], truth == number)[place] for number in range(3)]
        assert [scores[f"{kind}:{name}"] for name in NAMES] == pytest.approx(alone)
        assert scores[kind] == pytest.approx(np.mean(alone))


@given(seed=st.integers(0, 99))
def test_the_order_of_scans_does_not_matter(seed):
    probabilities, truth = made(50, digits=0)
    order = np.random.default_rng(seed).permutation(50)
    one, other = score_cases(probabilities, truth, NAMES), score_cases(probabilities[order], truth[order], NAMES)
    assert one == pytest.approx(other)


# --- another program


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(2, 4), digits=st.sampled_from([None, 1, 0]))
def test_torchmetrics_says_the_same(seed, classes, digits):
    from torchmetrics.functional import classification as other

    probabilities, truth = made(120, classes, seed, digits)
    scores = score_cases(probabilities, truth, [str(number) for number in range(classes)])
    p, y = torch.from_numpy(probabilities), torch.from_numpy(truth)
    found = torch.from_numpy(probabilities.argmax(1))
    assert scores["accuracy"] == pytest.approx(other.multiclass_accuracy(found, y, classes, average="micro").item())
    balanced = other.multiclass_accuracy(found, y, classes, average="macro").item()
    assert scores["balanced_accuracy"] == pytest.approx(balanced, abs=1e-6)
    if classes == 2:
        assert scores["auroc"] == pytest.approx(other.binary_auroc(p[:, 1], y).item(), abs=1e-6)
    else:
        assert scores["auroc"] == pytest.approx(other.multiclass_auroc(p, y, classes).item(), abs=1e-6)
        alone = other.multiclass_auroc(p, y, classes, average=None).tolist()
        assert [scores[f"auroc:{number}"] for number in range(classes)] == pytest.approx(alone, abs=1e-6)
    assert scores["nll"] == pytest.approx(torch.nn.functional.nll_loss(p.log(), y).item())


def test_bins_of_equal_number_and_width_coincide_on_a_lattice():
    from torchmetrics.functional.classification import binary_calibration_error

    confidence = (np.arange(300) + 0.5) / 300  # twenty in each fifteenth
    correct = np.random.default_rng(0).random(300) < confidence**2
    theirs = binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct).long(), n_bins=15)
    assert calibration_error(confidence, correct) == pytest.approx(theirs.item(), abs=1e-6)
    assert theirs > 0.1


# --- what is not defined


def test_one_class_only_leaves_ranking_undefined_and_says_so():
    probabilities, truth = made(10)[0], np.ones(10, int)
    scores, notes = score_cases(probabilities, truth, NAMES), undefined(truth, NAMES)
    ranked = ("auroc", "average_precision", SENSITIVITY)
    lacking = {"balanced_accuracy", *ranked, *(f"{kind}:{name}" for kind in ranked for name in NAMES)}
    assert {name for name, value in scores.items() if value is None} == lacking == set(notes)
    assert notes["auroc"] == "not defined: every scan is benign"


def test_a_class_without_scans_is_left_out_and_said():
    probabilities, truth = made(60)
    probabilities, truth = probabilities[truth > 0], truth[truth > 0]
    scores, notes = score_cases(probabilities, truth, NAMES), undefined(truth, NAMES)
    assert scores["auroc:normal"] is None
    alone = [auroc(probabilities[:, number], truth == number) for number in (1, 2)]
    assert scores["auroc"] == pytest.approx(np.mean(alone))
    found = probabilities.argmax(1) == truth
    assert scores["balanced_accuracy"] == pytest.approx((found[truth == 1].mean() + found[truth == 2].mean()) / 2)
    assert notes["auroc"] == notes["balanced_accuracy"] == "mean over 2 of 3 classes: no scan is normal"
    assert notes["auroc:normal"] == notes["average_precision:normal"] == "not defined: no scan is normal"
    assert undefined(np.array([0, 1, 2]), NAMES) == {}


# --- bad input


def spoilt(row, values):
    probabilities, truth = made(8)
    probabilities[row] = values
    return probabilities, truth, NAMES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spoilt([2, 5], np.nan), r"2 of 8 scans have scores that are NaN or infinite \(scan2, scan5\)"),
        (spoilt(slice(1, 8), np.inf), r"7 of 8 scans .* \(scan1, scan2, scan3, scan4, scan5 and 2 more\)"),
        (spoilt(3, [-0.5, 1.0, 0.5]), r"1 of 8 scans have scores outside 0 to 1: expected probabilities \(scan3\)"),
        (spoilt(3, [0.3, 0.3, 0.3]), r"1 of 8 scans have probabilities that do not add up to 1 \(scan3\)"),
        ((made(8)[0], np.arange(8) - 1, NAMES), r"5 of 8 scans have a true class that is none of 0 to 2: leave them"),
        ((made(8)[0], made(8)[1], NAMES[:2]), r"probabilities of shape \(8, 3\), 8 true classes, 2 class names"),
        ((made(8)[0], made(7)[1], NAMES), "7 true classes, 3 class names: expected a row for each"),
        ((np.zeros((0, 3)), np.zeros(0, int), NAMES), "0 true classes, 3 class names: expected a row for each of at"),
        ((np.ones((4, 1)), np.zeros(4, int), ("one",)), "1 class names: .* a column for each of at least two classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        score_cases(*given, scan_ids=[f"scan{number}" for number in range(8)])


def test_without_identifiers_rows_are_named():
    with pytest.raises(UserError, match=r"\(row 2\)"):
        score_cases(*spoilt(2, np.nan))
