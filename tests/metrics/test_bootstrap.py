"""Intervals: against SciPy's bootstrap, against known coverage, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from medssl.metrics.bootstrap import (
    Interval,
    mean_interval,
    paired_difference,
    statistic_interval,
    subject_means,
)
from medssl.metrics.classification import auroc
from medssl.types import UserError


def names(count):
    return [f"s{number:03}" for number in range(count)]


def test_subjects_count_once_however_many_scans_they_have():
    values, subjects = [0.9, 0.9, 0.9, 0.3, None, 0.6], ["a", "a", "a", "b", "b", "c"]
    assert subject_means(values, subjects) == pytest.approx({"a": 0.9, "b": 0.3, "c": 0.6})
    interval = mean_interval(values, subjects)
    assert interval.value == pytest.approx(0.6)
    assert (interval.subjects, interval.left_out, interval.note) == (3, 0, "")
    assert interval.low == pytest.approx(0.3)  # one draw in 27 is three times b: more than 2.5 %
    assert interval.high == pytest.approx(0.9)


def test_the_value_is_that_of_the_data_and_seeds_repeat():
    values = np.random.default_rng(0).normal(size=50).tolist()
    interval = mean_interval(values, names(50))
    assert interval.value == pytest.approx(np.mean(values))
    assert interval == mean_interval(values, names(50))
    assert interval != mean_interval(values, names(50), seed=1)


def test_the_order_of_rows_does_not_matter():
    values, subjects = np.arange(12.0).tolist(), [f"s{number // 2}" for number in range(12)]
    order = np.random.default_rng(0).permutation(12)
    shuffled = mean_interval([values[i] for i in order], [subjects[i] for i in order])
    assert shuffled == mean_interval(values, subjects)


def test_scipy_finds_the_same_interval():
    from scipy.stats import bootstrap, norm, t

    values = np.random.default_rng(1).gamma(2, size=20)
    level = 1 - 2 * norm.sf(np.sqrt(20 / 19) * t.isf(0.025, 19))  # wider than 0.95: Student's t, variance over n - 1
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=0)
    ours = mean_interval(values.tolist(), names(20), resamples=20_000)
    assert 0.96 < level < 0.98
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)
    assert ours.high - ours.low > 0.5


@pytest.mark.parametrize(("subjects", "low", "high"), [(40, 0.93, 0.97), (10, 0.92, 0.97)])
def test_95_percent_intervals_cover_the_truth_about_95_times_in_100(subjects, low, high):
    rng, hits = np.random.default_rng(0), 0
    for seed in range(1500):
        interval = mean_interval(rng.normal(0.7, 0.1, subjects).tolist(), names(subjects), seed=seed, resamples=1000)
        hits += interval.low <= 0.7 <= interval.high
    assert low <= hits / 1500 <= high


def test_intervals_of_few_subjects_hold_the_truth_more_often_than_scipys_bca():
    from scipy.stats import bootstrap

    draws = np.random.default_rng(1).normal(size=(400, 10))
    ours = [mean_interval(row, list("abcdefghij"), seed=seed, resamples=999) for seed, row in enumerate(draws)]
    theirs = [
        bootstrap((row,), np.mean, method="BCa", n_resamples=999, rng=seed).confidence_interval
        for seed, row in enumerate(draws)
    ]
    shares = [np.mean([low_high.low <= 0 <= low_high.high for low_high in some]) for some in (ours, theirs)]
    assert shares[0] == pytest.approx(0.95, abs=0.025)
    assert shares[1] < shares[0] - 0.02


def test_a_statistic_of_indices_equals_the_mean_where_it_is_one():
    values = np.random.default_rng(2).normal(size=30)
    subjects = names(30)
    assert statistic_interval(lambda places: float(values[places].mean()), subjects) == mean_interval(
        values.tolist(), subjects
    )


def test_scans_of_a_subject_stay_together():
    subjects = ["b", "a", "c", "a", "b", "a"]
    seen = []

    def statistic(places):
        seen.append(np.bincount(places, minlength=6))
        return 0.0

    statistic_interval(statistic, subjects, resamples=50)
    counts = np.array(seen)
    assert (counts[0] == 1).all()
    for subject in "abc":
        own = counts[:, [place for place, name in enumerate(subjects) if name == subject]]
        assert (own == own[:, :1]).all()
    assert (counts[:, [0, 1, 2]].sum(1) == 3).all()  # one scan of each subject: three subjects are drawn
    assert counts.max() > 1


def test_resamples_without_an_answer_are_left_out_and_counted():
    scores, positive = np.array([0.1, 0.6, 0.4, 0.8, 0.3]), np.array([0, 0, 0, 1, 1], bool)
    interval = statistic_interval(lambda places: auroc(scores[places], positive[places]), names(5))
    assert interval.value == pytest.approx(4 / 6)
    expected = (3 / 5) ** 5 + (2 / 5) ** 5  # all of one class
    assert interval.left_out / 2000 == pytest.approx(expected, abs=0.02)
    assert interval.note == f"{interval.left_out} of 2,000 resamples left out: not defined"
    assert 0 <= interval.low < interval.value < interval.high <= 1


def test_without_most_resamples_there_is_no_interval():
    interval = statistic_interval(lambda places: 1.0 if len(set(places.tolist())) == 4 else None, names(4))
    assert (interval.value, interval.low, interval.high) == (1.0, None, None)
    assert interval.left_out / 2000 == pytest.approx(1 - 24 / 256, abs=0.03)
    assert "of 2,000 resamples left out: not defined" in interval.note


def test_few_subjects_have_no_interval_and_it_says_why():
    assert mean_interval([0.5, 0.7, 0.9], ["a", "b", "a"]) == Interval(
        pytest.approx(0.7), None, None, 2, note="no interval: it needs at least 3 subjects, there are 2"
    )
    alone = statistic_interval(lambda places: 1.0, ["a", "a"])
    assert alone == Interval(1.0, None, None, 1, note="no interval: it needs at least 3 subjects, there is 1")
    assert mean_interval([None, None], ["a", "b"]).note == "not defined: no subject has a value"
    assert statistic_interval(lambda places: None, names(5)) == Interval(None, None, None, 5, note="not defined")


# --- two evaluations of the same subjects


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.normal(0.6, 0.2, 30)  # subjects differ more than methods
    first = dict(zip(names(30), (hard + 0.05 + rng.normal(0, 0.02, 30)).tolist(), strict=True))
    second = dict(zip(reversed(names(30)), hard[::-1].tolist(), strict=True))
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(np.mean(list(first.values())) - np.mean(list(second.values())))
    assert 0 < difference.low < 0.05 < difference.high < 0.07
    back = paired_difference(second, first)
    assert (back.value, back.low, back.high) == pytest.approx((-difference.value, -difference.high, -difference.low))
    alone = [mean_interval(list(values.values()), list(values)) for values in (first, second)]
    assert alone[0].low < alone[1].high  # these overlap


def test_subjects_without_a_value_are_left_out_and_counted():
    first = {"a": 0.5, "b": None, "c": 0.9, "d": 0.7}
    second = {"a": 0.4, "b": 0.2, "c": 0.7, "d": 0.4}
    difference = paired_difference(first, second)
    assert (difference.value, difference.subjects) == (pytest.approx(0.2), 3)
    assert difference.note == "1 of 4 subjects left out: no value in one of the two"
    few = paired_difference(first | {"c": None}, second)
    assert few.note == (
        "2 of 4 subjects left out: no value in one of the two; no interval: it needs at least 3 subjects, there are 2"
    )


def test_other_subjects_are_refused():
    message = "3 subjects in the first evaluation, 4 in the second, 2 in both: only evaluations of the same subjects"
    with pytest.raises(UserError, match=message):
        paired_difference(dict.fromkeys("abc", 0.5), dict.fromkeys("bcde", 0.5))
    with pytest.raises(UserError, match="2 subjects in the first evaluation, 2 in the second, 1 in both"):
        paired_difference(dict.fromkeys("ab", 0.5), dict.fromkeys("bc", 0.5))
