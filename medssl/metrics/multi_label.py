"""How good the probabilities of several findings are, each on the scans of which it is known.

N scans, K findings; p the probabilities [N, K], y [N, K] 1 where the finding is there, 0 where it is not, -1 where that
is not known. "NAME" stands for a finding, a measure without one is the mean over the findings that have it.

    auroc:NAME              chance that a scan with the finding has a higher p than one without, ties count half
    average_precision:NAME, sensitivity_at_specificity_0.9:NAME
                            as in ``evaluate.classification``
    brier:NAME              mean of (p - y)^2, from 0 to 1 (Brier 1950); less is better
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.metrics.bootstrap import statistic_interval
from medssl.metrics.cases import refuse_twice
from medssl.metrics.classification import SPECIFICITY, auroc, average_precision, sensitivity, sensitivity_name
from medssl.metrics.tables import entry, grouped, interval_notes, refuse_nothing
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jaxtyping import Bool, Float, Int

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.cases import FindingsRow

    Measure = Callable[[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]], float | None]

NOT_KNOWN = -1


def brier(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float | None:
    """Mean squared difference of probability and truth; None without scans."""
    return float(np.square(scores - positive).mean()) if len(scores) else None


def measures(specificity: float = SPECIFICITY) -> dict[str, Measure]:
    """Functions of (probabilities, truth) of a finding by name."""
    at = partial(sensitivity, specificity=specificity)
    return {"auroc": auroc, "average_precision": average_precision, sensitivity_name(specificity): at, "brier": brier}


def of_finding(
    measure: Measure, number: int, probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N K"]
) -> float | None:
    """A measure of one finding over the scans of which it is known."""
    known = truth[:, number] != NOT_KNOWN
    return measure(probabilities[known, number], truth[known, number] == 1)


def mean_of_findings(
    measure: Measure, probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N K"], *, every: int = 0
) -> float | None:
    """Mean over the findings that have the measure; None where none has, or fewer than ``every``."""
    values = [of_finding(measure, number, probabilities, truth) for number in range(truth.shape[1])]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined and len(defined) >= every else None


def summarize_multi_label(
    rows: Sequence[FindingsRow],
    names: Sequence[str],
    *,
    skipped: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (),
    by: Mapping[str, Any] | None = None,
    specificity: float = SPECIFICITY,
) -> dict[str, Any]:
    """Sums up the probabilities of findings, as ``summary.json`` holds them.

    Args:
        rows: A row for each scan.
        names: The findings in the order of the probabilities.
        skipped: Identifier and reason of each scan that was not scored.
        notes: What a reader must know.
        by: What was evaluated and on what.
        specificity: Share of the scans without a finding that the threshold of the sensitivity leaves below.

    Raises:
        UserError: No rows, a scan that stands twice, or scores that are no probabilities.
    """
    skipped = list(skipped)
    refuse_nothing(rows, skipped)
    refuse_twice(rows)
    _, truth = findings_arrays(rows, names)
    intervals = multi_label_means(rows, names, specificity)
    counts = {
        what: {name: int((truth[:, number] == value).sum()) for number, name in enumerate(names)}
        for what, value in (("yes", 1), ("no", 0), ("not known", NOT_KNOWN))
    }
    defined = {name: interval for name, interval in intervals.items() if interval.value is not None}
    reasons = {
        name: _why(truth[:, names.index(name.partition(":")[2])])
        for name, interval in intervals.items()
        if interval.value is None and ":" in name
    }
    return {
        "kind": "multi_label",
        "classes": list(names),
        "scans": len(rows),
        "subjects": len({row.subject_id for row in rows}),
        "metrics": {name: entry(interval) for name, interval in intervals.items()},
        "counts": counts,
        "skipped": [{"scan_id": scan_id, "reason": reason} for scan_id, reason in skipped],
        "notes": [*notes, *grouped(reasons), *interval_notes(defined)],
        "by": dict(by or {}),
    }


def multi_label_means(
    rows: Sequence[FindingsRow], names: Sequence[str], specificity: float = SPECIFICITY
) -> dict[str, Interval]:
    """Each measure with its interval, by the names that ``summarize_multi_label`` gives them."""
    probabilities, truth = findings_arrays(rows, names)
    subjects = [row.subject_id for row in rows]

    def interval(measure: Callable[..., float | None]) -> Interval:
        return statistic_interval(lambda places: measure(probabilities[places], truth[places]), subjects)

    intervals = {}
    for kind, measure in measures(specificity).items():
        each = {name: interval(partial(of_finding, measure, number)) for number, name in enumerate(names)}
        defined = sum(one.value is not None for one in each.values())
        intervals[kind] = interval(partial(mean_of_findings, measure, every=defined))  # fewer are another measure
        intervals |= {f"{kind}:{name}": one for name, one in each.items()}
    return intervals


def findings_arrays(
    rows: Sequence[FindingsRow], names: Sequence[str]
) -> tuple[Float[np.ndarray, "N K"], Int[np.ndarray, "N K"]]:
    """Probabilities and truth of rows.

    Raises:
        UserError: Rows of another number of findings, or scores that are no probabilities.
    """
    uneven = [row.scan_id for row in rows if {len(row.truth), len(row.probabilities)} != {len(names)}]
    if uneven:
        message = f"scan {uneven[0]} does not have a truth and a probability for each of {len(names)} findings"
        raise UserError(message)
    probabilities = np.array([row.probabilities for row in rows], float)
    wrong = ~((probabilities >= 0) & (probabilities <= 1)).all(1)
    if wrong.any():
        scan_id = rows[int(np.argmax(wrong))].scan_id
        message = f"{wrong.sum()} of {len(rows)} scans have scores that are no probabilities ({scan_id}, ...)"
        raise UserError(message)
    return probabilities, np.array([row.truth for row in rows], int)


def _why(truth: Int[np.ndarray, "N"]) -> str:
    known = truth[truth != NOT_KNOWN]
    if not len(known):
        return "not defined: it is known of no scan"
    return f"not defined: it is {'there' if known[0] else 'absent'} in every scan where it is known"
