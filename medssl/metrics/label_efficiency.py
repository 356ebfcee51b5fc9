"""Label efficiency: mean score of each arm over its runs, and each arm against its from-scratch baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.metrics.comparison import (
    LEVEL,
    Difference,
    corrected,
    difference,
    labels_needed,
    pretraining_deviations,
    verdict,
)
from medssl.metrics.headroom import Headroom, headroom
from medssl.types import Note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

BOUNDED = ("dice", "auroc", "c_index")  # from 0 to 1
NAMES = {"dice": "Dice", "auroc": "AUROC", "negative_mae": "negative MAE", "c_index": "C-index"}  # more is better


@dataclass(frozen=True)
class Trained:
    """One run with its score on each test subject.

    Attributes:
        arm: Arm of the run.
        labels: Number of labeled training subjects.
        run: Number of the run; runs of one number share subjects and seed.
        measure: "dice", "auroc", "negative_mae" or "c_index".
        value: The measure over all test subjects.
        scores: By test subject; their mean is the value, None where a subject has none.
        notes: How it is measured, and which subjects may have been used in pretraining.
        pretraining: Number of the pretraining that it starts from, of an arm of several.
    """

    arm: str
    labels: int
    run: int
    measure: str
    value: float
    scores: Mapping[str, float | None]
    notes: tuple[Note, ...] = ()
    pretraining: int = 0


@dataclass(frozen=True)
class Level:
    """Mean of an arm's runs at one number of labeled subjects, with its 95 % interval over runs and subjects."""

    labels: int
    value: float
    low: float | None
    high: float | None
    runs: int


@dataclass(frozen=True)
class Compared:
    """An arm against its from-scratch baseline.

    Attributes:
        arm: Name of the arm.
        baseline: Name of its baseline.
        labels: Numbers of labeled subjects at which both have a run in common, rising.
        differences: Arm less baseline at each.
        p_values: Corrected for the number of comparisons of all arms that give a verdict; None without a verdict.
        verdict: One sentence.
        saved: Labels saved, a sentence for each number at which the arm helps and saves some.
        headroom: Share of the headroom at each number with an oracle.
    """

    arm: str
    baseline: str
    labels: tuple[int, ...]
    differences: tuple[Difference, ...]
    p_values: tuple[float | None, ...]
    verdict: str
    saved: tuple[str, ...]
    headroom: tuple[Headroom, ...] = ()


def levels(trained: Sequence[Trained], arm: str) -> list[Level]:
    """The label-efficiency curve of an arm; numbers of labels without a run are left out."""
    curve = []
    for labels in sorted({one.labels for one in trained if one.arm == arm}):
        runs = sorted((one for one in trained if (one.arm, one.labels) == (arm, labels)), key=lambda one: one.run)
        scores = _table(runs, _subjects(runs))
        seeds = [one.pretraining for one in runs]
        defined = np.isfinite(scores).all(axis=0).any()
        spread = difference(scores, np.zeros_like(scores), pretrainings=seeds) if defined else None
        low, high = (spread.low, spread.high) if spread else (None, None)
        if low is not None and high is not None and runs[0].measure in BOUNDED:
            low, high = max(0.0, low), min(1.0, high)
        curve.append(Level(labels, sum(one.value for one in runs) / len(runs), low, high, len(runs)))
    return curve


def compared(
    trained: Sequence[Trained],
    baselines: Mapping[str, str],
    planned: Mapping[str, Sequence[int]] | None = None,
    oracles: Mapping[str, str] | None = None,
) -> list[Compared]:
    """Compares arms with their from-scratch baselines.

    Args:
        trained: All runs that are done, of one measure.
        baselines: Baseline of each arm.
        planned: Numbers of labeled subjects of each arm; those without runs that can be compared are named. None takes
            those of the runs.
        oracles: Arm of the oracle of each arm, if there is one.

    Returns:
        One for each arm that has a run in common with its baseline.
    """
    pairs = {arm: _differences(trained, arm, baseline) for arm, baseline in baselines.items()}
    places = [(arm, labels) for arm, by_labels in pairs.items() for labels, one in by_labels.items() if one.conclusive]
    corrections = dict(zip(places, corrected([pairs[arm][labels].p or 0.0 for arm, labels in places]), strict=True))
    comparisons = []
    for arm, differences in pairs.items():
        if not differences:
            continue
        labels, known = tuple(differences), tuple(corrections.get((arm, n)) for n in differences)
        measure = NAMES[trained[0].measure]
        words = verdict(labels, tuple(differences.values()), what=measure, p_values=known)
        expected = (
            {one.labels for one in trained if one.arm in {arm, baselines[arm]}} if planned is None else {*planned[arm]}
        )
        if without := sorted(expected - differences.keys()):
            words += f"; nothing to compare at {' and '.join(map(str, without))}"
        helped = [
            n for n, p in zip(labels, known, strict=True)
            if p is not None and p <= LEVEL and differences[n].value > 0
        ]  # fmt: skip
        saved = _saved(levels(trained, arm), levels(trained, baselines[arm]), helped)
        shares = _headroom(trained, (arm, baselines[arm], oracles[arm])) if oracles and arm in oracles else ()
        words = "; ".join([words, *(share.sentence(measure) for share in shares)])
        gains = tuple(differences.values())
        comparisons.append(Compared(arm, baselines[arm], labels, gains, known, words, saved, shares))
    return comparisons


def pretraining_notes(trained: Sequence[Trained], baselines: Mapping[str, str]) -> list[Note]:
    """Variation between the pretrainings of each arm that has several, at each number of labeled subjects."""
    notes = []
    for arm, baseline in baselines.items():
        for labels, runs in _common_runs(trained, (arm, baseline)).items():
            seeds = [one.pretraining for one in runs[arm]]
            if len({*seeds}) < 2:
                continue
            subjects = _subjects([*runs[arm], *runs[baseline]])
            table = _table(runs[arm], subjects) - _table(runs[baseline], subjects)
            spread = pretraining_deviations(table, seeds)
            about = f"{arm} at {labels} labeled subjects"
            if spread is None:
                text = f"{about}: each run has another pretraining, whose variation is part of that of the runs."
            else:
                measure = NAMES[runs[arm][0].measure]
                text = (
                    f"{about}: standard deviation of the gain {spread[0]:.3f} {measure} between {len({*seeds})} "
                    f"pretrainings, {spread[1]:.3f} between runs of one."
                )
            notes.append(Note("other", text))
    return notes


def _common_runs(trained: Sequence[Trained], arms: Sequence[str]) -> dict[int, dict[str, list[Trained]]]:
    """Runs of each arm by number of labels, of the run numbers that all the arms have."""
    common = {}
    for labels in sorted({one.labels for one in trained}):
        every = {name: {one.run: one for one in trained if (one.arm, one.labels) == (name, labels)} for name in arms}
        numbers = sorted(set.intersection(*(set(runs) for runs in every.values())))
        if numbers:
            common[labels] = {name: [every[name][number] for number in numbers] for name in arms}
    return common


def _differences(trained: Sequence[Trained], arm: str, baseline: str) -> dict[int, Difference]:
    """Arm less baseline over the runs that both have, by number of labels; subjects without a score are left out."""
    differences = {}
    for labels, runs in _common_runs(trained, (arm, baseline)).items():
        subjects = _subjects([*runs[arm], *runs[baseline]])
        first, second = (_table(runs[name], subjects) for name in (arm, baseline))
        if np.isfinite(first - second).all(axis=0).any():
            seeds = [one.pretraining for one in runs[arm]]
            differences[labels] = difference(first, second, pretrainings=seeds)
    return differences


def _headroom(trained: Sequence[Trained], arms: tuple[str, str, str]) -> tuple[Headroom, ...]:
    """Share of the headroom that an arm (with its baseline and oracle) takes, at each number of labels."""
    shares = []
    for labels, runs in _common_runs(trained, arms).items():
        subjects = _subjects([one for name in arms for one in runs[name]])
        tables = [_table(runs[name], subjects) for name in arms]
        if np.isfinite(sum(tables)).all(axis=0).any():
            seeds = [one.pretraining for one in runs[arms[0]]]
            shares.append(headroom(labels, *tables, pretrainings=seeds))
    return tuple(shares)


def _saved(arm: Sequence[Level], baseline: Sequence[Level], helped: Sequence[int]) -> tuple[str, ...]:
    """Labels saved: "4 labeled subjects reach what scratch needs 9 for", wherever the arm helps and saves some.

    A baseline that is better with fewer labels than with these (its curve falls) gives no sentence.
    """
    known = [level for level in baseline if math.isfinite(level.value)]
    numbers, values = [level.labels for level in known], [level.value for level in known]
    sentences = []
    for level in arm:
        if level.labels not in helped:
            continue
        needed = labels_needed(numbers, values, level.value)
        count = numbers[-1] if needed is None else math.ceil(needed - 1e-9)
        if needed is None or count > level.labels:
            more = "more than " if needed is None else ""
            sentences.append(f"{level.labels} labeled subjects reach what scratch needs {more}{count} for")
    return tuple(sentences)


def _subjects(runs: Sequence[Trained]) -> list[str]:
    return sorted({subject for one in runs for subject in one.scores})


def _table(runs: Sequence[Trained], subjects: Sequence[str]) -> Float[np.ndarray, "R S"]:
    rows = [[one.scores.get(subject) for subject in subjects] for one in runs]
    return np.array([[math.nan if value is None else value for value in row] for row in rows], float)
