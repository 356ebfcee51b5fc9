"""Differences over runs and subjects: closed forms, symmetries, agreement with the t-test, words of the verdict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medssl.metrics import comparison as compare
from medssl.metrics.comparison import Difference, corrected, difference, labels_needed, verdict
from medssl.types import UserError


def simulated(seed, *, runs=5, subjects=40, effect=0.0, of_run=0.02, of_subject=0.02, rest=0.03):
    generator = np.random.default_rng(seed)
    table = (
        effect + of_run * generator.standard_normal((runs, 1)) + of_subject * generator.standard_normal((1, subjects))
    )
    return table + rest * generator.standard_normal((runs, subjects))


def test_value_is_the_mean_and_the_interval_holds_it():
    first, second = simulated(0, effect=0.8), simulated(1, effect=0.75)
    found = difference(first, second)
    assert found.value == pytest.approx((first - second).mean())
    assert found.low < found.value < found.high
    assert (found.runs, found.subjects, found.left_out) == (5, 40, 0)


def test_the_standard_error_is_that_of_a_two_way_table():
    """Reference: mean squares written out with loops."""
    table = simulated(3, runs=4, subjects=6)
    runs, subjects = table.shape
    mean = table.mean()
    between_runs = subjects * sum((row.mean() - mean) ** 2 for row in table) / (runs - 1)
    between_subjects = runs * sum((column.mean() - mean) ** 2 for column in table.T) / (subjects - 1)
    rest = sum(
        (table[r, s] - table[r].mean() - table[:, s].mean() + mean) ** 2 for r in range(runs) for s in range(subjects)
    ) / ((runs - 1) * (subjects - 1))
    expected = (between_runs + between_subjects - rest) / (runs * subjects)
    assert expected > max(between_runs, between_subjects) / (runs * subjects)  # no floor in this example
    _, error, _ = compare.standard_error(table)
    assert float(error) == pytest.approx(expected**0.5)


@pytest.mark.parametrize(("runs", "subjects", "noise"), [(12, 40, "of_run"), (12, 15, "of_subject")])
def test_with_one_source_of_chance_it_is_a_test_of_one_sample(runs, subjects, noise):
    """With run effects alone the means of runs are the sample, with subject effects alone those of subjects.

    References: Student's interval, and every pattern of signs written out.
    """
    for seed in range(5):
        only = {"of_run": 0.0, "of_subject": 0.0, "rest": 1e-4} | {noise: 0.03}
        table = simulated(seed, runs=runs, subjects=subjects, effect=0.015, **only)
        sample = table.mean(1 if noise == "of_run" else 0)
        expected = stats.ttest_1samp(sample, 0.0)
        found = difference(table, np.zeros_like(table), seed=seed)
        assert found.p == pytest.approx(every_pattern(sample), abs=0.02)
        interval = expected.confidence_interval(0.95)
        width = interval.high - interval.low
        assert found.low == pytest.approx(interval.low, abs=0.12 * width)
        assert found.high == pytest.approx(interval.high, abs=0.12 * width)


def every_pattern(sample):
    """Share of sign patterns of the centered sample whose t is as far from 0 as the sample's."""
    count = len(sample)
    effects = (sample - sample.mean()) * np.sqrt(count / (count - 1))
    signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    flipped = signs * effects
    t = np.abs(flipped.mean(1)) / (flipped.std(1, ddof=1) / np.sqrt(count))
    return np.mean(t >= abs(sample.mean()) / (sample.std(ddof=1) / np.sqrt(count)) - 1e-12)


def test_one_lucky_run_proves_nothing():
    """A large mean that one of five runs makes: many subjects do not help."""
    table = np.zeros((5, 200)) + 0.001 * np.random.default_rng(0).standard_normal((5, 200))
    table[0] += 0.2
    found = difference(table, np.zeros_like(table))
    assert found.low < 0 < found.high
    assert found.p > 0.2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.1, 0.1))
def test_exchanging_the_two_turns_the_sign(seed, effect):
    first, second = simulated(seed, effect=effect), np.zeros((5, 40))
    one, other = difference(first, second), difference(second, first)
    assert other.value == pytest.approx(-one.value)
    assert other.p == pytest.approx(one.p, abs=1e-9)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=1e-9)


def test_subjects_without_a_score_are_left_out_of_every_run_and_counted():
    first, second = simulated(0), simulated(1)
    first[2, 7] = np.nan
    second[0, 9] = np.nan
    found = difference(first, second)
    keep = [s for s in range(40) if s not in (7, 9)]
    assert (found.subjects, found.left_out) == (38, 2)
    assert found.value == pytest.approx((first - second)[:, keep].mean())


def test_equal_tables_are_no_difference():
    found = difference(simulated(0), simulated(0))
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match=r"scores of 5 x 40 and of 4 x 40 \(runs x subjects\) cannot be compared"):
        difference(simulated(0), simulated(0, runs=4))
    with pytest.raises(UserError, match=r"none of the 40 test subjects has a score in every run"):
        difference(np.full((5, 40), np.nan), simulated(0))
    alone = difference(simulated(0, runs=1), simulated(1, runs=1))
    assert alone.low is alone.high is alone.p is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_correction_is_that_of_holm(values):
    """Reference: the step-down rule applied at every level."""
    found = corrected(values)
    for level in (0.01, 0.05, 0.2):
        rejected, order = set(), sorted(range(len(values)), key=lambda place: values[place])
        for rank, place in enumerate(order):
            if values[place] * (len(values) - rank) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(found) if p <= level + 1e-9} >= rejected
        assert {place for place, p in enumerate(found) if p <= level - 1e-9} <= rejected


def made(value, p, *, runs=5):
    return Difference(value, value - 0.02, value + 0.018, p, runs, 40)


@pytest.mark.parametrize(
    ("labels", "differences", "words"),
    [
        (
            (4, 16), (made(0.031, 0.01), made(0.002, 0.6)),
            "helps with up to 4 labeled subjects, +0.031 Dice [0.011, 0.049]; no difference seen at 16",
        ),
        (
            (2, 4, 16), (made(0.06, 0.001), made(0.031, 0.01), made(0.002, 0.6)),
            "helps with up to 4 labeled subjects, +0.060 Dice [0.040, 0.078] at 2; +0.031 Dice [0.011, 0.049] at 4; "
            "no difference seen at 16",
        ),
        ((2, 8), (made(0.0, 0.9), made(0.01, 0.4)), "no difference seen at 2 and 8 labeled subjects"),
        (
            (2, 8), (made(0.0, 0.9), made(-0.05, 0.01)),
            "hurts at 8, -0.050 Dice [-0.070, -0.032]; no difference seen at 2",
        ),
        ((2, 8), (made(0.05, 0.03), made(0.04, 0.04)), "no difference seen at 2 and 8 labeled subjects"),  # corrected
        ((2,), (made(0.05, 0.001, runs=4),), "too few runs for a verdict: 4 of each arm, it takes 5"),
        (
            (2, 4, 16), (made(0.031, 0.01), made(0.002, 0.6), made(0.9, 0.001, runs=4)),
            "helps with up to 2 labeled subjects, +0.031 Dice [0.011, 0.049]; no difference seen at 4; "
            "too few runs at 16: 4 of each arm, it takes 5",
        ),
        (  # what gives no verdict does not count among the comparisons
            (2, 4), (made(0.031, 0.03), made(0.002, 0.6, runs=4)),
            "helps with up to 2 labeled subjects, +0.031 Dice [0.011, 0.049]; too few runs at 4: 4 of each arm, it "
            "takes 5",
        ),
        (
            (2, 4), (made(0.031, 0.01), Difference(0.1, None, None, None, 5, 2)),
            "helps with up to 2 labeled subjects, +0.031 Dice [0.011, 0.049]; too few test subjects at 4: it takes 3",
        ),
        ((2,), (Difference(0.1, None, None, None, 5, 2),), "too few test subjects for a verdict: it takes 3"),
    ],
)  # fmt: skip
def test_the_verdict_in_words(labels, differences, words):
    assert verdict(labels, differences) == words


def test_labels_needed_lies_between_measured_numbers():
    assert labels_needed((2, 8), (0.6, 0.8), 0.7) == pytest.approx(4.0)
    assert labels_needed((2, 4, 8), (0.6, 0.55, 0.8), 0.8) == pytest.approx(8.0)
    assert labels_needed((2, 8), (0.6, 0.8), 0.9) is None
    assert labels_needed((2, 8), (0.6, 0.8), 0.5) == labels_needed((2, 8), (0.6, 0.8), 0.6) == 2.0


@pytest.mark.slow
def test_false_verdicts_stay_rare_and_true_ones_are_found():
    """400 studies of three numbers of labels with five runs; studies/false_verdicts.py does a thousand, and power."""
    false, held = 0, []
    for study in range(400):
        found = [difference(simulated((study, n)), np.zeros((5, 40)), seed=study) for n in range(3)]
        false += min(corrected([one.p for one in found])) <= compare.LEVEL
        held += [one.low <= 0 <= one.high for one in found]
    assert false / 400 <= 0.06
    assert 0.93 <= np.mean(held) <= 0.985
