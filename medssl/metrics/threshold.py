"""A threshold of a probability, chosen on validation subjects and judged on test subjects.

The threshold has the largest sensitivity plus specificity (Youden, Index for rating diagnostic tests, 1950); of several
the middle one. It never looks at the subjects that it is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.metrics.bootstrap import statistic_interval
from medssl.metrics.tables import entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int

    Measure = Callable[[Bool[np.ndarray, "M"], Bool[np.ndarray, "M"]], float | None]


@dataclass(frozen=True)
class Threshold:
    """From which probability on a scan counts as positive.

    Attributes:
        value: The lowest probability that counts as positive.
        positive: Name of the class.
        split: Split that it was chosen on.
        scans: How many scans it was chosen on.
    """

    value: float
    positive: str
    split: str
    scans: int


def chosen_threshold(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float | None:
    """Threshold with the largest sum of sensitivity and specificity; None where either is not defined.

    >>> chosen_threshold(np.array([0.1, 0.4, 0.8, 0.9]), np.array([False, False, True, True]))
    0.6000000000000001
    """
    if positive.all() or not positive.any():
        return None
    values = np.unique(scores)
    between = (values[1:] + values[:-1]) / 2
    candidates = np.concatenate(([values[0]], between, [np.nextafter(values[-1], np.inf)]))
    sums = np.array([(scores[positive] >= t).mean() + (scores[~positive] < t).mean() for t in candidates])
    best = np.flatnonzero(sums == sums.max())
    return float(candidates[best[len(best) // 2]])


def sensitivity(called: Bool[np.ndarray, "M"], positive: Bool[np.ndarray, "M"]) -> float | None:
    """Share of the positive scans that are called positive."""
    return float(called[positive].mean()) if positive.any() else None


def specificity(called: Bool[np.ndarray, "M"], positive: Bool[np.ndarray, "M"]) -> float | None:
    """Share of the other scans that are not."""
    return float((~called[~positive]).mean()) if (~positive).any() else None


def balanced_accuracy(called: Bool[np.ndarray, "M"], positive: Bool[np.ndarray, "M"]) -> float | None:
    """Mean of both."""
    first, second = sensitivity(called, positive), specificity(called, positive)
    return None if first is None or second is None else (first + second) / 2


MEASURES: dict[str, Measure] = {
    "sensitivity": sensitivity,
    "specificity": specificity,
    "balanced_accuracy": balanced_accuracy,
}


def at_threshold(
    threshold: Threshold, scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"], subjects: Sequence[str]
) -> dict[str, Any]:
    """Measures at a threshold with their intervals, as ``summary.json`` holds them."""
    called = scores >= threshold.value

    def on(measure: Measure) -> Callable[[Int[np.ndarray, "M"]], float | None]:
        return lambda places: measure(called[places], positive[places])

    metrics = {name: entry(statistic_interval(on(measure), subjects)) for name, measure in MEASURES.items()}
    return {**vars(threshold), "metrics": metrics}
