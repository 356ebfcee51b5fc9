"""Shares of the headroom and runs of several pretrainings: closed forms, references with loops, coverage."""

from __future__ import annotations

import numpy as np
import pytest

from medssl.metrics.comparison import LEVEL, averaged_runs, difference, pretraining_deviations, standard_error, verdict
from medssl.metrics.headroom import headroom
from medssl.metrics.label_efficiency import Trained, compared, levels, pretraining_notes

RUNS, SUBJECTS = 5, 30


def tables(seed, *, share=0.4, room=0.1, noise=0.02, runs=RUNS):
    """Scores of an arm, of scratch and of an oracle: subjects and runs differ alike in all, and each by itself."""
    generator = np.random.default_rng(seed)
    alike = 0.5 + 0.05 * generator.standard_normal((1, SUBJECTS)) + 0.02 * generator.standard_normal((runs, 1))

    def table(mean):
        effects = noise * generator.standard_normal((runs, 1)) + noise * generator.standard_normal((1, SUBJECTS))
        return alike + mean + effects + noise * generator.standard_normal((runs, SUBJECTS))

    return table(share * room), table(0.0), table(room)


def test_without_noise_the_share_is_that_of_the_means():
    found = headroom(4, *tables(0, noise=0.0))
    assert (found.share, found.low, found.high) == pytest.approx((0.4, 0.4, 0.4))
    assert found.sentence("Dice") == (
        "takes 40% [40%, 40%] of the headroom at 4 labeled subjects (+0.100 Dice [+0.100, +0.100])"
    )


def test_the_share_is_the_ratio_of_means_and_its_interval_holds_it():
    arm, scratch, oracle = tables(1)
    found = headroom(4, arm, scratch, oracle)
    assert found.share == pytest.approx((arm - scratch).mean() / (oracle - scratch).mean())
    assert found.low < found.share < found.high
    assert found.oracle == difference(oracle, scratch)
    turned = headroom(4, 2 * scratch - arm, scratch, oracle)  # as much worse as the arm is better
    assert turned.share == pytest.approx(-found.share)


@pytest.mark.parametrize("room", [0.0, 0.005, -0.1])
def test_without_headroom_there_is_no_share(room):
    found = headroom(8, *tables(2, room=room))
    assert found.share is found.low is found.high is None
    assert found.sentence("Dice").startswith("no headroom at 8 labeled subjects (")
    assert found.sentence("Dice").endswith("): nothing can be shown here")


def test_one_run_gives_no_share():
    assert headroom(8, *tables(3, runs=1)).sentence("Dice").endswith("Dice): nothing can be shown here")


def test_subjects_without_a_score_in_any_arm_are_left_out():
    arm, scratch, oracle = tables(4)
    arm[2, 7], oracle[0, 3] = np.nan, np.nan
    rest = [n for n in range(SUBJECTS) if n not in (3, 7)]
    found = headroom(4, arm, scratch, oracle)
    assert found.share == pytest.approx((arm - scratch)[:, rest].mean() / (oracle - scratch)[:, rest].mean())


def test_intervals_of_shares_hold_the_truth_as_often_as_they_say():
    held = []
    for seed in range(80):
        found = headroom(4, *tables(seed + 100))
        held.append(found.low <= 0.4 <= found.high)
    assert 0.88 <= np.mean(held) <= 1.0  # 0.95 with the deviation of 80 draws


# --- several pretrainings


def nested(seed, *, pretrainings=3, each=2, between=0.03, within=0.02, rest=0.03, subjects=SUBJECTS):
    """Differences of runs that take pretrainings in turn."""
    generator = np.random.default_rng(seed)
    numbers = np.arange(pretrainings * each) % pretrainings
    of_pretraining = between * generator.standard_normal(pretrainings)[numbers]
    of_run = within * generator.standard_normal(len(numbers))
    of_subject = 0.02 * generator.standard_normal(subjects)
    noise = rest * generator.standard_normal((len(numbers), subjects))
    return (of_pretraining + of_run)[:, None] + of_subject + noise, numbers.tolist()


def test_runs_of_one_pretraining_are_averaged():
    table, numbers = nested(0, each=3)
    expected = np.array([np.mean([row for row, n in zip(table, numbers, strict=True) if n == k], 0) for k in range(3)])
    assert averaged_runs(table, numbers) == pytest.approx(expected)
    found = difference(table, np.zeros_like(table), pretrainings=numbers)
    alone = difference(expected, np.zeros_like(expected))
    assert (found.value, found.low, found.high, found.p) == pytest.approx((alone.value, alone.low, alone.high, alone.p))
    assert (found.runs, found.pretrainings) == (9, 3)
    single = difference(table, np.zeros_like(table), pretrainings=[4] * 9)
    assert single == difference(table, np.zeros_like(table))


def test_the_standard_error_knows_the_variation_between_pretrainings():
    """Against the spread of the mean over 600 simulated tables; runs taken as independent are too sure."""
    means, right, wrong = [], [], []
    for seed in range(600):
        table, numbers = nested(seed)
        means.append(table.mean())
        right.append(float(standard_error(averaged_runs(table, numbers))[1]) ** 2)
        wrong.append(float(standard_error(table)[1]) ** 2)
    assert np.mean(right) == pytest.approx(np.var(means), rel=0.2)
    assert np.mean(wrong) < 0.75 * np.var(means)


def test_deviations_between_and_within_pretrainings_are_found_again():
    table, numbers = nested(0, pretrainings=400, each=4, rest=0.0)
    between, within = pretraining_deviations(table, numbers)
    assert (between, within) == pytest.approx((0.03, 0.02), rel=0.1)
    assert pretraining_deviations(*nested(0, each=1)) is None
    assert pretraining_deviations(table[:4], [0, 0, 0, 0]) is None
    table[:, 2] = np.nan
    assert pretraining_deviations(table, numbers)[0] == pytest.approx(between, abs=1e-3)


def test_a_verdict_over_pretrainings_takes_three():
    table, numbers = nested(0, pretrainings=2, each=3)
    two = difference(table + 0.5, np.zeros_like(table), pretrainings=numbers)
    assert not two.conclusive
    assert verdict([4], [two]) == "too few pretrainings for a verdict: 2, it takes 3 or a single one"
    table, numbers = nested(0)
    assert difference(table, np.zeros_like(table), pretrainings=numbers).conclusive


def trained(arm, table, numbers, labels=4):
    return [
        Trained(arm, labels, run, "dice", float(row.mean()), {f"s{n}": float(value) for n, value in enumerate(row)},
                pretraining=number)
        for run, (row, number) in enumerate(zip(table, numbers, strict=True))
    ]  # fmt: skip


def test_curves_verdicts_and_notes_are_over_pretrainings():
    gain, numbers = nested(5)
    scratch = np.full(gain.shape, 0.5)
    every = trained("spark", scratch + gain, numbers) + trained("scratch", scratch, [0] * len(gain))
    (one,) = compared(every, {"spark": "scratch"})
    expected = difference(scratch + gain, scratch, pretrainings=numbers)
    assert (one.differences[0].low, one.differences[0].pretrainings) == (pytest.approx(expected.low), 3)
    (level,) = levels(every, "spark")
    assert level.low == pytest.approx(difference(scratch + gain, 0 * gain, pretrainings=numbers).low)
    (note,) = pretraining_notes(every, {"spark": "scratch"})
    between, within = pretraining_deviations(gain, numbers)
    assert str(note) == (
        f"spark at 4 labeled subjects: standard deviation of the gain {between:.3f} Dice between 3 pretrainings, "
        f"{within:.3f} between runs of one."
    )
    one_each = trained("spark", (scratch + gain)[:3], [0, 1, 2]) + trained("scratch", scratch[:3], [0, 0, 0])
    (note,) = pretraining_notes(one_each, {"spark": "scratch"})
    assert str(note).endswith("each run has another pretraining, whose variation is part of that of the runs.")
    assert (
        pretraining_notes(trained("spark", gain, [0] * 6) + trained("scratch", gain, [0] * 6), {"spark": "scratch"})
        == []
    )


@pytest.mark.slow
def test_false_verdicts_stay_rare_with_several_pretrainings():
    """Runs taken as independent give three times as many."""
    false, naive, held = 0, 0, 0
    for seed in range(400):
        table, numbers = nested(seed, subjects=40)
        found = difference(table, np.zeros_like(table), pretrainings=numbers, seed=seed)
        false += found.p <= LEVEL
        held += found.low <= 0 <= found.high
        naive += difference(table, np.zeros_like(table), seed=seed).p <= LEVEL
    assert false / 400 <= 0.09
    assert held / 400 >= 0.91
    assert naive / 400 > 0.12
