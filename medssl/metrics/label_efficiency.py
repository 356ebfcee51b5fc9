"""How good networks become with few labels: means over runs of each arm, and each arm against its twin from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.metrics.comparison import LEVEL, Difference, corrected, difference, labels_needed, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

BOUNDED = ("dice", "auroc")  # from 0 to 1
NAMES = {"dice": "Dice", "auroc": "AUROC", "negative_mae": "negative MAE"}  # of each more is better


@dataclass(frozen=True)
class Trained:
    """One run and what it scores on each test subject.

    Attributes:
        arm: Which start it had.
        labels: Labeled subjects it learned from.
        run: Number of the run; runs of one number share subjects and seed.
        measure: "dice", "auroc" or "negative_mae".
        value: The measure over all test subjects.
        scores: By test subject; their mean is the value, None where a subject has none.
        notes: What a reader must know of how it is measured, and of whom the network may have seen.
    """

    arm: str
    labels: int
    run: int
    measure: str
    value: float
    scores: Mapping[str, float | None]
    notes: tuple[str, ...] = ()


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
    """An arm against its twin.

    Attributes:
        arm: Name of the arm.
        twin: Name of its twin.
        labels: Numbers of labeled subjects at which both have a run in common, rising.
        differences: Arm less twin at each.
        p_values: Corrected for the number of comparisons of all arms that give a verdict; None of any other.
        verdict: One sentence.
        saved: What the arm saves in labels, a sentence for each number at which it helps and saves some.
    """

    arm: str
    twin: str
    labels: tuple[int, ...]
    differences: tuple[Difference, ...]
    p_values: tuple[float | None, ...]
    verdict: str
    saved: tuple[str, ...]


def levels(trained: Sequence[Trained], arm: str) -> list[Level]:
    """The label-efficiency curve of an arm; numbers of labels without a run are left out."""
    curve = []
    for labels in sorted({one.labels for one in trained if one.arm == arm}):
        runs = sorted((one for one in trained if (one.arm, one.labels) == (arm, labels)), key=lambda one: one.run)
        scores = _table(runs, _subjects(runs))
        spread = difference(scores, np.zeros_like(scores)) if np.isfinite(scores).all(axis=0).any() else None
        low, high = (spread.low, spread.high) if spread else (None, None)
        if low is not None and high is not None and runs[0].measure in BOUNDED:
            low, high = max(0.0, low), min(1.0, high)
        curve.append(Level(labels, sum(one.value for one in runs) / len(runs), low, high, len(runs)))
    return curve


def compared(
    trained: Sequence[Trained], twins: Mapping[str, str], planned: Mapping[str, Sequence[int]] | None = None
) -> list[Compared]:
    """Compares arms with their twins.

    Args:
        trained: All runs that are done, of one measure.
        twins: Twin of each arm.
        planned: Numbers of labeled subjects that each arm was to be trained with; those without runs that can be
            compared are named. None takes those of the runs.

    Returns:
        One for each arm that has a run in common with its twin.
    """
    pairs = {arm: _differences(trained, arm, twin) for arm, twin in twins.items()}
    places = [(arm, labels) for arm, by_labels in pairs.items() for labels, one in by_labels.items() if one.conclusive]
    corrections = dict(zip(places, corrected([pairs[arm][labels].p or 0.0 for arm, labels in places]), strict=True))
    comparisons = []
    for arm, differences in pairs.items():
        if not differences:
            continue
        labels, known = tuple(differences), tuple(corrections.get((arm, n)) for n in differences)
        words = verdict(labels, tuple(differences.values()), what=NAMES[trained[0].measure], p_values=known)
        wanted = {one.labels for one in trained if one.arm in {arm, twins[arm]}} if planned is None else {*planned[arm]}
        if without := sorted(wanted - differences.keys()):
            words += f"; nothing to compare at {' and '.join(map(str, without))}"
        helped = [
            n for n, p in zip(labels, known, strict=True)
            if p is not None and p <= LEVEL and differences[n].value > 0
        ]  # fmt: skip
        saved = _saved(levels(trained, arm), levels(trained, twins[arm]), helped)
        comparisons.append(Compared(arm, twins[arm], labels, tuple(differences.values()), known, words, saved))
    return comparisons


def _differences(trained: Sequence[Trained], arm: str, twin: str) -> dict[int, Difference]:
    """Arm less twin over the runs that both have, by number of labels; subjects without a score are left out."""
    differences = {}
    for labels in sorted({one.labels for one in trained}):
        both = {
            name: {one.run: one for one in trained if (one.arm, one.labels) == (name, labels)} for name in (arm, twin)
        }
        common = sorted(both[arm].keys() & both[twin].keys())
        if not common:
            continue
        runs = {name: [both[name][number] for number in common] for name in (arm, twin)}
        subjects = _subjects([*runs[arm], *runs[twin]])
        first, second = (_table(runs[name], subjects) for name in (arm, twin))
        if np.isfinite(first - second).all(axis=0).any():
            differences[labels] = difference(first, second)
    return differences


def _saved(arm: Sequence[Level], twin: Sequence[Level], helped: Sequence[int]) -> tuple[str, ...]:
    """What an arm saves: "4 labeled subjects reach what scratch needs 9 for", wherever it helps and saves some.

    A twin that is better with fewer labels than with these (its curve falls) leaves nothing to say.
    """
    known = [level for level in twin if math.isfinite(level.value)]
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
