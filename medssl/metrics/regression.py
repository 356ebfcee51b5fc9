"""How near predicted numbers are to the true ones, in the unit of the label.

N scans, f the predicted and y the true numbers, errors e = f - y.

    mae       mean |e|; less is better
    rmse      square root of the mean e^2; less is better
    bias      mean e: above 0 the predictions are too high
    r2        1 - sum e^2 / sum (y - mean y)^2: 1 is perfect, 0 what the mean of y gives, below 0 worse than that
    pearson   linear correlation of f and y
    spearman  the same of their ranks, ties sharing the mean of theirs (Spearman 1904)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.metrics.bootstrap import statistic_interval
from medssl.metrics.cases import refuse_twice
from medssl.metrics.tables import entry, grouped, interval_notes, refuse_nothing
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jaxtyping import Float

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.cases import NumberRow

    Numbers = Float[np.ndarray, "N"]


def mae(predicted: Numbers, truth: Numbers) -> float | None:
    """Mean absolute error."""
    return float(np.abs(predicted - truth).mean())


def rmse(predicted: Numbers, truth: Numbers) -> float | None:
    """Root of the mean squared error."""
    return float(np.sqrt(np.square(predicted - truth).mean()))


def bias(predicted: Numbers, truth: Numbers) -> float | None:
    """Mean error."""
    return float((predicted - truth).mean())


def r2(predicted: Numbers, truth: Numbers) -> float | None:
    """Share of the variance that is explained; None where the true numbers are all the same."""
    spread = float(np.square(truth - truth.mean()).sum())
    return None if spread == 0 else 1 - float(np.square(predicted - truth).sum()) / spread


def pearson(predicted: Numbers, truth: Numbers) -> float | None:
    """Linear correlation; None where either is constant."""
    first, second = predicted - predicted.mean(), truth - truth.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return None if (predicted == predicted[0]).all() or (truth == truth[0]).all() else float(first @ second) / scale


def spearman(predicted: Numbers, truth: Numbers) -> float | None:
    """Correlation of ranks; None where either is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(predicted), rankdata(truth))


MEASURES: dict[str, Callable[[Numbers, Numbers], float | None]] = {
    "mae": mae,
    "rmse": rmse,
    "bias": bias,
    "r2": r2,
    "pearson": pearson,
    "spearman": spearman,
}


def summarize_regression(
    rows: Sequence[NumberRow],
    name: str,
    *,
    skipped: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (),
    by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sums up predicted numbers, as ``summary.json`` holds them.

    Args:
        rows: A row for each scan.
        name: What the number is called.
        skipped: Identifier and reason of each scan that was not scored.
        notes: What a reader must know.
        by: What was evaluated and on what.

    Raises:
        UserError: No rows, a scan that stands twice, or a number that is not finite.
    """
    skipped = list(skipped)
    refuse_nothing(rows, skipped)
    refuse_twice(rows)
    predicted, truth = number_arrays(rows)
    subjects = [row.subject_id for row in rows]
    intervals = {measure: _interval(value, predicted, truth, subjects) for measure, value in MEASURES.items()}
    constant = [name for name, values in (("true", truth), ("predicted", predicted)) if (values == values[0]).all()]
    reason = f"not defined: the {' and the '.join(constant)} numbers are all the same"
    reasons = {measure: reason for measure, interval in intervals.items() if interval.value is None}
    defined = {measure: interval for measure, interval in intervals.items() if interval.value is not None}
    return {
        "kind": "regression",
        "classes": [name],
        "scans": len(rows),
        "subjects": len(set(subjects)),
        "metrics": {measure: entry(interval) for measure, interval in intervals.items()},
        "counts": {},
        "skipped": [{"scan_id": scan_id, "reason": why} for scan_id, why in skipped],
        "notes": [*notes, *grouped(reasons), *interval_notes(defined)],
        "by": dict(by or {}),
    }


def number_arrays(rows: Sequence[NumberRow]) -> tuple[Numbers, Numbers]:
    """Predicted and true numbers of rows.

    Raises:
        UserError: A number that is not finite.
    """
    predicted, truth = (np.array([getattr(row, what) for row in rows], float) for what in ("predicted", "truth"))
    wrong = ~(np.isfinite(predicted) & np.isfinite(truth))
    if wrong.any():
        message = f"{wrong.sum()} of {len(rows)} scans have numbers that are not finite"
        message += f" ({rows[int(np.argmax(wrong))].scan_id}, ...)"
        raise UserError(message)
    return predicted, truth


def _interval(
    measure: Callable[[Numbers, Numbers], float | None], predicted: Numbers, truth: Numbers, subjects: Sequence[str]
) -> Interval:
    return statistic_interval(lambda places: measure(predicted[places], truth[places]), subjects)
