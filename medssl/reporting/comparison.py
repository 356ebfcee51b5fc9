"""Compares two evaluations of the same scans, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from medssl.metrics.bootstrap import Interval, paired_difference, statistic_interval, subject_means
from medssl.metrics.cases import FindingsRow, NumberRow, scan_scores
from medssl.metrics.classification import SENSITIVITY, SPECIFICITY, metrics
from medssl.metrics.comparison import FEWEST_RUNS
from medssl.metrics.multi_label import mean_of_findings
from medssl.metrics.multi_label import measures as measures_of_findings
from medssl.metrics.regression import r2
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Int

    from medssl.reporting.parts import Evaluation

MEASURES = ("auroc", "balanced_accuracy")  # of classifications; more is better
OF_FINDINGS = ("auroc", "average_precision")
TITLES = {
    "dice": "mean Dice",
    "hd95_mm": "mean HD95 (mm, less is better)",
    "nsd": "mean surface Dice (NSD)",
    "lesion_f1": "mean lesion-wise F1",
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    SENSITIVITY: f"sensitivity at {SPECIFICITY:.0%} specificity",
    "mae": "mean absolute error (less is better)",
    "rmse": "root mean squared error (less is better)",
    "bias": "mean error (0 is best)",
    "r2": "explained variance (R2)",
    "pearson": "linear correlation (Pearson)",
    "spearman": "rank correlation (Spearman)",
    "ece": "calibration error (less is better)",
    "brier": "Brier score (less is better)",
    "nll": "negative log likelihood (less is better)",
    "ece_scaled": "calibration error with temperature (less is better)",
    "brier_scaled": "Brier score with temperature (less is better)",
    "nll_scaled": "negative log likelihood with temperature (less is better)",
}
OF_CLASS = {
    "dice": "Dice",
    "hd95_mm": "HD95 (mm)",
    "nsd": "surface Dice (NSD)",
    "volume_error_ml": "volume error (ml, 0 is best)",
    "volume_error": "relative volume error (0 is best)",
    "lesion_f1": "lesion-wise F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier score (less is better)",
    SENSITIVITY: f"sensitivity at {SPECIFICITY:.0%} specificity",
}


@dataclass(frozen=True)
class Difference:
    """Values of one measure for both evaluations, and the difference (first minus second) over their subjects."""

    measure: str
    first: float | None
    second: float | None
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """Comparison of two evaluations; the first of ``differences`` is the measure of ``verdict``."""

    first: str
    second: str
    verdict: str
    differences: tuple[Difference, ...]
    refused: str = ""


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compares two evaluations in the measures for which higher is better; both must have the same scans."""
    try:
        differences = _differences(first, second)
    except UserError as error:
        reason = f"{first.name} and {second.name} cannot be compared: {error}"
        return Comparison(first.name, second.name, reason, (), refused=reason)
    return Comparison(first.name, second.name, verdict(first.name, second.name, differences[0]), differences)


def verdict(first: str, second: str, difference_of_measure: Difference) -> str:
    """Describes a difference in one sentence. One run of each is too few for a verdict, and the sentence says so.

    The words are those of ``medssl compare``, which trains as many runs as a verdict takes.
    """
    name, difference = title(difference_of_measure.measure), difference_of_measure.difference
    if difference.value is None or difference_of_measure.first is None or difference_of_measure.second is None:
        return f"{first} and {second} cannot be compared by {name}: {difference.note or 'it is not defined'}."
    values = f"{name} {difference_of_measure.first:.3f} against {difference_of_measure.second:.3f}"
    numbers = f"difference {difference.value:+.3f}"
    if difference.low is None or difference.high is None:
        numbers += f", {difference.note}"
    else:
        numbers += f", 95 % interval over {difference.subjects} test subjects "
        numbers += f"{difference.low:+.3f} to {difference.high:+.3f}"
        numbers += ", which holds 0: no difference seen" if difference.low <= 0 <= difference.high else ""
    return (
        f"{first} and {second}: too few runs for a verdict, 1 of each, it takes {FEWEST_RUNS}. "
        f"{values[:1].upper()}{values[1:]} ({numbers})."
    )


def title(measure: str) -> str:
    """Title of a measure: "dice:liver" becomes "Dice of liver"."""
    kind, _, name = measure.partition(":")
    if not name:
        return TITLES.get(kind, kind)
    return f"{OF_CLASS.get(kind, kind)} of {name}"


def _differences(first: Evaluation, second: Evaluation) -> tuple[Difference, ...]:
    kinds = [evaluation.summary["kind"] for evaluation in (first, second)]
    classes = [list(evaluation.summary["classes"]) for evaluation in (first, second)]
    if kinds[0] != kinds[1] or classes[0] != classes[1]:
        shown = [f"{kind} of {', '.join(names)}" for kind, names in zip(kinds, classes, strict=True)]
        message = f"one is a {shown[0]}, the other a {shown[1]}"
        raise UserError(message)
    scans = [evaluation.scans.keys() for evaluation in (first, second)]
    if scans[0] != scans[1]:
        message = (
            f"{len(scans[0])} scans in one, {len(scans[1])} in the other, {len(scans[0] & scans[1])} in both: evaluate "
            "both on the same split"
        )
        raise UserError(message)
    functions = {"segmentation": _of_segmentations, "classification": _of_classifications}
    return tuple(functions.get(kinds[0], _of_others)(first, second))


def _of_segmentations(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Mean Dice, then the Dice of each class."""
    differences = []
    for name in (None, *first.summary["classes"]):
        means = []
        for evaluation in (first, second):
            rows = [row for row in evaluation.segmentations if name in (None, row.class_name)]
            subject_of = {row.scan_id: row.subject_id for row in rows}
            scores = scan_scores(rows)
            means.append(subject_means([scores[scan] for scan in subject_of], list(subject_of.values())))
        measure = "dice" if name is None else f"dice:{name}"
        first_value, second_value = (evaluation.summary["metrics"][measure]["value"] for evaluation in (first, second))
        differences.append(Difference(measure, first_value, second_value, paired_difference(*means)))
    return differences


def _of_classifications(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Measures over all scans at once; bootstrap samples use the same subjects for both evaluations."""
    names = first.summary["classes"]
    rows = [sorted(evaluation.classifications, key=lambda row: row.scan_id) for evaluation in (first, second)]
    class_number = {name: position for position, name in enumerate(names)}
    truth = np.array([class_number[row.truth] for row in rows[0]])
    if [row.truth for row in rows[0]] != [row.truth for row in rows[1]]:
        message = "the same scans have other labels in one than in the other"
        raise UserError(message)
    scores = [np.array([row.probabilities for row in run_rows]) for run_rows in rows]
    subjects = [row.subject_id for row in rows[0]]
    class_count = len(np.unique(truth))
    differences = []
    for measure in MEASURES:
        metric = metrics(names)[measure]

        def gain(selected: Int[np.ndarray, "M"], metric: Callable[..., float | None] = metric) -> float | None:
            if len(np.unique(truth[selected])) < class_count:  # a mean over fewer classes is another measure
                return None
            first_score, second_score = (metric(run_rows[selected], truth[selected]) for run_rows in scores)
            return None if first_score is None or second_score is None else first_score - second_score

        first_value, second_value = (evaluation.summary["metrics"][measure]["value"] for evaluation in (first, second))
        differences.append(Difference(measure, first_value, second_value, statistic_interval(gain, subjects)))
    return differences


def _of_others(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Findings by mean AUROC and average precision, numbers by explained variance."""
    rows = [sorted(evaluation.others, key=lambda row: row.scan_id) for evaluation in (first, second)]
    if [row.truth for row in rows[0]] != [row.truth for row in rows[1]]:
        message = "the same scans have other labels in one than in the other"
        raise UserError(message)
    truth = np.array([row.truth for row in rows[0]])
    subjects = [row.subject_id for row in rows[0]]
    if first.summary["kind"] == "regression":
        predictions = [np.array([row.predicted for row in run_rows if isinstance(row, NumberRow)]) for run_rows in rows]
        measures: dict[str, Callable[..., float | None]] = {"r2": r2}
    else:
        predictions = [
            np.array([row.probabilities for row in run_rows if isinstance(row, FindingsRow)]) for run_rows in rows
        ]
        defined_count = sum(
            first.summary["metrics"][f"auroc:{name}"]["value"] is not None for name in first.summary["classes"]
        )
        measure_of = measures_of_findings()
        measures = {name: partial(mean_of_findings, measure_of[name], every=defined_count) for name in OF_FINDINGS}
    differences = []
    for name, measure in measures.items():

        def gain(selected: Int[np.ndarray, "M"], measure: Callable[..., float | None] = measure) -> float | None:
            first_score, second_score = (measure(run_rows[selected], truth[selected]) for run_rows in predictions)
            return None if first_score is None or second_score is None else first_score - second_score

        first_value, second_value = (evaluation.summary["metrics"][name]["value"] for evaluation in (first, second))
        differences.append(Difference(name, first_value, second_value, statistic_interval(gain, subjects)))
    return differences
