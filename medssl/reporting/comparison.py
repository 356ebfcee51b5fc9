"""Compares two evaluations of the same scans, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssl.metrics.bootstrap import Interval
from medssl.metrics.classification import SENSITIVITY, SPECIFICITY
from medssl.metrics.comparison import FEWEST_RUNS
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.reporting.parts import Evaluation

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
    "c_index": "concordance of risks and times (C-index)",
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
    """Describes a difference in one sentence, which states that one run of each is too few for a verdict.

    The words are those of a comparison of arms, which trains as many runs as a verdict takes.
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
        numbers += ", which includes 0: no difference seen" if difference.low <= 0 <= difference.high else ""
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
        raise UserError(message, expected="two evaluations of one task with the same classes")
    scans = [evaluation.scans.keys() for evaluation in (first, second)]
    if scans[0] != scans[1]:
        message = f"{len(scans[0])} scans in one, {len(scans[1])} in the other, {len(scans[0] & scans[1])} in both"
        raise UserError(message, hint="Evaluate both on the same split.")
    differences = []
    for measure, interval in first.scoring.differences(first.rows, second.rows, first.summary):
        first_value, second_value = (evaluation.summary["metrics"][measure]["value"] for evaluation in (first, second))
        differences.append(Difference(measure, first_value, second_value, interval))
    return tuple(differences)
