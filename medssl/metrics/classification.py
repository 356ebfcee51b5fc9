"""How good the probabilities of a classification are.

N scans, K classes; p the probabilities [N, K], y the true class numbers [N]. The predicted class is the one with the
highest probability, the first of equals.

    accuracy            share of scans whose predicted class is the true one
    balanced_accuracy   mean over the classes that occur in y of the share of their scans that are found
    auroc               chance that a scan of the class has a higher p than a scan of another class, ties count half
                        (Hanley & McNeil 1982); two classes: of the second; more: mean of one against the rest over the
                        classes for which y has both, and each alone as "auroc:NAME"
    average_precision   mean over the scans of the class of the share of its scans among those that score as high or
                        higher, ties at once, without interpolation: sum of (R_n - R_n-1) P_n over thresholds; classes
                        as for auroc
    sensitivity_at_specificity_0.9
                        largest share of the scans of the class that is found by a threshold of p which at least 90 %
                        (or another share) of the other scans stay below; classes as for auroc
    ece                 expected calibration error (Guo et al. 2017): scans sorted by their highest p fall into 15 bins
                        of equal number (Nixon et al. 2019); mean over scans of |accuracy - mean highest p| of their
                        bin. Of few scans it is too high (bins of 4 scans are rarely 90 % right), and for the same
                        reason resamples, which hold fewer different scans, give an interval that lies too high
    brier               mean of the sum over classes of (p - 1[y = k])^2, from 0 to 2 (Brier 1950)
    nll                 mean of -log p of the true class in nats; a p below 1e-7 (float32) counts as 1e-7

Not torchmetrics: it computes in float32, takes 0.1 ms a call where 2,000 resamples need 0.01, and 2.4 s to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int

    Metric = Callable[[Float[np.ndarray, "N K"], Int[np.ndarray, "N"]], float | None]
    Ranking = Callable[[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]], float | None]

BINS = 15
SUM_TOLERANCE = 1e-3
LOWEST = 1e-7  # probability
SPECIFICITY = 0.9
SENSITIVITY = f"sensitivity_at_specificity_{SPECIFICITY}"


@dataclass(frozen=True)
class Bin:
    """Scans of about the same highest probability: its mean, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    scans: int


def score_cases(
    probabilities: Float[np.ndarray, "N K"],
    truth: Int[np.ndarray, "N"],
    names: Sequence[str],
    scan_ids: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Every measure of the module's list by name; None where it is not defined (``undefined`` says why).

    Args:
        probabilities: [N, K], one row a scan, adding up to 1.
        truth: [N], class numbers 0 to K - 1.
        names: K class names.
        scan_ids: Names the scans in messages.

    Raises:
        UserError: No scans, shapes that do not fit, scores that are NaN or no probabilities, a truth that is no class.
    """
    refuse_unfit(probabilities, truth, names, scan_ids)
    return {name: metric(probabilities, truth) for name, metric in metrics(names).items()}


def metrics(names: Sequence[str], specificity: float = SPECIFICITY) -> dict[str, Metric]:
    """Functions of (probabilities, truth) by the names under which ``score_cases`` gives their values."""
    measures: dict[str, Metric] = {"accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy}
    rankings: dict[str, Ranking] = {"auroc": auroc, "average_precision": average_precision}
    rankings |= {sensitivity_name(specificity): partial(sensitivity, specificity=specificity)}
    for kind, ranking in rankings.items():
        measures[kind] = partial(_mean_of_classes, ranking)
        if len(names) > 2:
            measures |= {f"{kind}:{name}": partial(_of_class, ranking, number) for number, name in enumerate(names)}
    return measures | {"ece": _ece, "brier": _brier, "nll": _nll}


def sensitivity_name(specificity: float) -> str:
    """The name of the sensitivity at a specificity."""
    return f"sensitivity_at_specificity_{specificity:g}"


def means_of_classes(specificity: float = SPECIFICITY) -> tuple[str, ...]:
    """Names of the measures that are means over the classes that occur."""
    return ("balanced_accuracy", "auroc", "average_precision", sensitivity_name(specificity))


def refuse_specificity(specificity: float) -> None:
    """Refuses what is no share.

    Raises:
        UserError: Not above 0, or above 1.
    """
    if not 0 < specificity <= 1:
        message = "must be above 0, 1 at most"
        raise UserError(message, key="specificity", got=specificity)


def undefined(truth: Int[np.ndarray, "N"], names: Sequence[str], specificity: float = SPECIFICITY) -> dict[str, str]:
    """Why measures are None or leave classes out, by the name of the measure."""
    counts = np.bincount(truth, minlength=len(names))
    present = [name for name, count in zip(names, counts, strict=True) if count]
    lacking = [name for name, count in zip(names, counts, strict=True) if not count]
    if not lacking:
        return {}
    means = means_of_classes(specificity)
    if len(present) == 1:
        reason = f"not defined: every scan is {present[0]}"
        return {name: reason for name in metrics(names, specificity) if name.split(":")[0] in means}
    reason = f"mean over {len(present)} of {len(names)} classes: no scan is {', '.join(lacking)}"
    alone = {f"{kind}:{name}": f"not defined: no scan is {name}" for kind in means[1:] for name in lacking}
    return dict.fromkeys(means, reason) | alone


def auroc(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float | None:
    """Area under the receiver operating characteristic, ties count half; None where all or none are positive."""
    low, high = np.sort(scores[~positive]), scores[positive]
    if not len(low) or not len(high):
        return None
    below, up_to = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    return float((below + up_to).sum() / (2 * len(low) * len(high)))


def average_precision(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float | None:
    """Mean precision at the positive scores, ties at once; None where all or none are positive."""
    if positive.all() or not positive.any():
        return None
    values, same = np.unique(-scores, return_inverse=True)  # the highest first
    positives = np.bincount(same, weights=positive, minlength=len(values))
    precision = np.cumsum(positives) / np.cumsum(np.bincount(same, minlength=len(values)))
    return float((positives * precision).sum() / positive.sum())


def sensitivity(
    scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"], specificity: float = SPECIFICITY
) -> float | None:
    """Share of the positive that a threshold finds; None where all or none are positive.

    The threshold is the lowest of the scores that at least a share ``specificity`` of the others stays below; where
    none does, nothing is found.
    """
    others, positives = np.sort(scores[~positive]), scores[positive]
    if not len(others) or not len(positives):
        return None
    thresholds = np.unique(scores)
    below = np.searchsorted(others, thresholds, "left")
    allowed = thresholds[below >= specificity * len(others) - 1e-9]
    return float((positives >= allowed[0]).mean()) if len(allowed) else 0.0


def calibration_error(confidence: Float[np.ndarray, "N"], correct: Bool[np.ndarray, "N"], bins: int = BINS) -> float:
    """Expected calibration error with bins of equal number (they differ by one scan at most)."""
    curve = calibration_curve(confidence, correct, bins)
    return sum(part.scans * abs(part.accuracy - part.confidence) for part in curve) / len(confidence)


def calibration_curve(
    confidence: Float[np.ndarray, "N"], correct: Bool[np.ndarray, "N"], bins: int = BINS
) -> list[Bin]:
    """Bins of equal number (they differ by one scan at most) from the lowest to the highest probability.

    Scans of equal confidence share their accuracy, so that it does not matter in which order they come to a bin's edge.
    Of fewer scans than bins, each is one.
    """
    _, same, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    accuracy = (np.bincount(same, weights=correct) / counts)[same]
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return [Bin(float(confidence[part].mean()), float(accuracy[part].mean()), len(part)) for part in parts if len(part)]


def refuse_unfit(
    probabilities: Float[np.ndarray, "N K"],
    truth: Int[np.ndarray, "N"],
    names: Sequence[str],
    scan_ids: Sequence[str] | None = None,
) -> None:
    """Refuses what cannot be scored.

    Raises:
        UserError: No scans, shapes that do not fit, scores that are NaN or no probabilities, a truth that is no class.
    """
    if probabilities.ndim != 2 or probabilities.shape != (len(truth), len(names)) or len(names) < 2 or not len(truth):
        message = (
            f"probabilities of shape {probabilities.shape}, {len(truth)} true classes, {len(names)} class names: "
            "expected a row for each of at least one scan and a column for each of at least two classes"
        )
        raise UserError(message)
    low, high = probabilities.min(axis=1), probabilities.max(axis=1)
    _refuse_rows(~(np.isfinite(low) & np.isfinite(high)), "have scores that are NaN or infinite", scan_ids)
    _refuse_rows((low < 0) | (high > 1), "have scores outside 0 to 1: expected probabilities", scan_ids)
    off = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE
    _refuse_rows(off, "have probabilities that do not add up to 1", scan_ids)
    unknown = (truth < 0) | (truth >= len(names))
    _refuse_rows(unknown, f"have a true class that is none of 0 to {len(names) - 1}: leave them out", scan_ids)


def _refuse_rows(wrong: Bool[np.ndarray, "N"], what: str, scan_ids: Sequence[str] | None) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        shown = ", ".join(scan_ids[row] if scan_ids else f"row {row}" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        message = f"{len(rows)} of {len(wrong)} scans {what} ({shown}{more})"
        raise UserError(message)


def _accuracy(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> float:
    return float((probabilities.argmax(1) == truth).mean())


def _balanced_accuracy(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> float | None:
    scans = np.bincount(truth)
    correct = np.bincount(truth, weights=probabilities.argmax(1) == truth)
    present = scans > 0
    return float((correct[present] / scans[present]).mean()) if present.sum() > 1 else None


def _mean_of_classes(
    ranking: Ranking, probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]
) -> float | None:
    classes = range(probabilities.shape[1])
    values = [_of_class(ranking, number, probabilities, truth) for number in (classes if len(classes) > 2 else [1])]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _of_class(
    ranking: Ranking, number: int, probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]
) -> float | None:
    return ranking(probabilities[:, number], truth == number)


def _ece(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> float:
    return calibration_error(probabilities.max(1), probabilities.argmax(1) == truth)


def _brier(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> float:
    return float(((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1).mean())


def _nll(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> float:
    of_true_class = np.take_along_axis(probabilities, truth[:, None], 1)[:, 0]
    return float(-np.log(np.maximum(of_true_class, LOWEST)).mean())
