"""Label-efficiency curves and verdicts from runs: pairs, what is left out, corrections over all arms, labels saved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics.classification import auroc
from medssl.metrics.comparison import corrected, difference, pseudo_values
from medssl.metrics.label_efficiency import Trained, compared, levels

SUBJECTS = 30


def made(arm, labels, run, mean, *, missing=(), spread=0.01):
    """A run whose subjects differ alike in every arm."""
    generator = np.random.default_rng((labels, run))
    nature = 0.05 * np.random.default_rng(9).standard_normal(SUBJECTS)
    own = np.random.default_rng((labels, run, len(arm))).standard_normal(SUBJECTS)
    scores = mean + 0.01 * generator.standard_normal() + nature + spread * own
    found = {f"s{n:02d}": None if n in missing else float(score) for n, score in enumerate(scores)}
    known = [score for score in found.values() if score is not None]
    return Trained(arm, labels, run, "dice", sum(known) / len(known), found)


def study(gains, *, arm="spark", runs=5):
    """Scratch rises from 0.6 to 0.8; the arm gains something at each number."""
    base = {2: 0.6, 8: 0.7, 32: 0.8}
    return [
        made(name, labels, run, base[labels] + (gain if name == arm else 0.0))
        for labels, gain in zip(base, gains, strict=True)
        for run in range(runs)
        for name in ("scratch", arm)
    ]


def test_the_curve_is_the_mean_over_runs_with_an_interval_over_runs_and_subjects():
    trained = study((0.05, 0.0, 0.0))
    curve = levels(trained, "spark")
    assert [level.labels for level in curve] == [2, 8, 32]
    runs = [one for one in trained if (one.arm, one.labels) == ("spark", 2)]
    assert curve[0].value == pytest.approx(np.mean([list(one.scores.values()) for one in runs]))
    table = np.array([list(one.scores.values()) for one in runs])
    expected = difference(table, np.zeros_like(table))
    assert (curve[0].low, curve[0].high, curve[0].runs) == (expected.low, expected.high, 5)
    assert levels(trained, "nobody") == []


def test_what_helps_is_said_with_the_labels_that_it_saves():
    found = compared(study((0.05, 0.002, 0.0)), {"spark": "scratch"})[0]
    assert found.labels == (2, 8, 32)
    assert found.verdict.startswith("helps with up to 2 labeled subjects, +0.0")
    assert found.verdict.endswith("; no difference seen at 8 and 32")
    # 0.65 lies half way between 0.6 at 2 and 0.7 at 8 on a logarithmic axis: 4, rounded up
    assert found.saved in {(f"2 labeled subjects reach what scratch needs {n} for",) for n in (4, 5)}


def test_more_than_was_measured_is_said_so():
    found = compared(study((0.0, 0.0, 0.05)), {"spark": "scratch"})[0]
    assert found.saved == ("32 labeled subjects reach what scratch needs more than 32 for",)


def test_nothing_is_saved_where_scratch_does_as_well_with_fewer():
    trained = study((0.05, 0.0, 0.0))
    better = [one for one in trained if one.arm == "spark"]
    better += [made("scratch", n, run, mean) for n, mean in ((2, 0.58), (8, 0.6), (32, 0.7)) for run in range(5)]
    found = compared([one for one in better if one.labels != 2] + [
        made(name, 2, run, mean) for name, mean in (("scratch", 0.75), ("spark", 0.8)) for run in range(5)
    ], {"spark": "scratch"})[0]  # fmt: skip
    assert found.saved == (
        "2 labeled subjects reach what scratch needs more than 32 for",
        "32 labeled subjects reach what scratch needs more than 32 for",
    )


def test_a_falling_curve_of_scratch_does_not_contradict_the_verdict():
    means = {"scratch": {2: 0.80, 4: 0.70, 8: 0.82}, "spark": {2: 0.80, 4: 0.78, 8: 0.82}}
    trained = [made(arm, n, run, mean) for arm, own in means.items() for n, mean in own.items() for run in range(5)]
    found = compared(trained, {"spark": "scratch"})[0]
    assert found.verdict.startswith("helps at 4, +0.0")
    assert found.saved == ()


def test_bounds_of_the_curve_stay_where_a_score_can_be():
    trained = [made("spark", 2, run, 0.99, spread=0.2) for run in range(2)]
    low, high = levels(trained, "spark")[0].low, levels(trained, "spark")[0].high
    assert 0.0 <= low < high == 1.0


def test_a_score_that_is_not_defined_is_no_difference():
    nothing = {f"s{n}": None for n in range(4)}
    trained = [Trained(arm, 2, run, "auroc", float("nan"), nothing) for arm in ("spark", "scratch") for run in range(5)]
    assert levels(trained, "spark")[0].low is None
    assert compared(trained, {"spark": "scratch"}) == []


def test_p_values_are_corrected_over_all_arms():
    trained = study((0.006, 0.0, 0.0)) + [one for one in study((0.0, 0.0, 0.0), arm="other") if one.arm == "other"]
    both = compared(trained, {"spark": "scratch", "other": "scratch"})
    raw = [gain.p for one in both for gain in one.differences]
    assert [p for one in both for p in one.p_values] == corrected(raw)
    # an arm of too few runs has no verdict, and does not count
    few = [one for one in trained if one.arm != "other" or one.run < 4]
    spark, other = compared(few, {"spark": "scratch", "other": "scratch"})
    assert spark.p_values == compared(few, {"spark": "scratch"})[0].p_values
    assert other.p_values == (None, None, None)
    assert None not in [gain.p for gain in other.differences]
    assert other.verdict == "too few runs for a verdict: 4 of each arm, it takes 5"
    alone = compared(trained, {"spark": "scratch"})[0]
    assert max(np.array(both[0].p_values) - np.array(alone.p_values)) > 0


def test_only_runs_that_both_have_are_compared():
    trained = [one for one in study((0.05, 0.0, 0.0)) if not (one.arm == "spark" and one.labels == 2 and one.run == 3)]
    trained = [one for one in trained if not (one.arm == "scratch" and one.labels == 32)]
    found = compared(trained, {"spark": "scratch"})[0]
    assert found.labels == (2, 8)
    assert [gain.runs for gain in found.differences] == [4, 5]
    assert found.verdict == (
        "no difference seen at 8; too few runs at 2: 4 of each arm, it takes 5; nothing to compare at 32"
    )
    assert found.saved == ()
    # nothing at all was trained at 64
    found = compared(trained, {"spark": "scratch"}, {"spark": (2, 8, 32, 64)})[0]
    assert found.verdict.endswith("; nothing to compare at 32 and 64")
    assert compared(trained, {"nobody": "scratch"}) == []


def test_a_subject_without_a_score_is_left_out_and_counted():
    trained = study((0.05, 0.0, 0.0))
    place = next(n for n, one in enumerate(trained) if one.arm == "spark" and one.labels == 2)
    trained[place] = made("spark", 2, trained[place].run, 0.65, missing=(3, 4))
    found = compared(trained, {"spark": "scratch"})[0]
    assert [gain.left_out for gain in found.differences] == [2, 0, 0]
    assert [gain.subjects for gain in found.differences] == [28, 30, 30]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=12))
def test_pseudo_values_of_a_mean_are_the_values(values):
    scores = np.array(values)
    found = pseudo_values(lambda places: float(scores[places].mean()), [f"s{n:02d}" for n in range(len(scores))])
    assert list(found.values()) == pytest.approx(values, abs=1e-9)


def test_pseudo_values_of_an_auroc_have_its_mean_and_its_standard_error():
    generator = np.random.default_rng(0)
    positive = np.arange(120) % 3 == 0
    scores = generator.normal(positive * 1.0)
    found = np.array(
        list(pseudo_values(lambda n: auroc(scores[n], positive[n]), [f"{n:03d}" for n in range(120)]).values())
    )
    assert found.mean() == pytest.approx(auroc(scores, positive), abs=1e-9)
    # reference: DeLong's standard error from placements
    above = scores[positive][:, None] > scores[~positive][None]
    variance = above.mean(1).var(ddof=1) / positive.sum() + above.mean(0).var(ddof=1) / (~positive).sum()
    assert found.std(ddof=1) / np.sqrt(120) == pytest.approx(np.sqrt(variance), rel=0.03)


def test_a_number_that_hangs_on_one_subject_has_no_pseudo_value_there():
    positive = np.array([True, False, False, False])
    found = pseudo_values(lambda n: auroc(np.arange(4.0)[n], positive[n]), list("abcd"))
    assert np.isnan(found["a"])
    assert not np.isnan([found[name] for name in "bcd"]).any()
