"""Probes of scans: the class of a scan from the features of a frozen encoder, without a training schedule.

N scans with features x [D] and classes y of K. Settings are chosen by the AUROC on the validation scans. Equal AUROCs
are compared by balanced accuracy (AUROC does not notice that shrunken weights never predict a rare class), and of equal
ones the strongest regularization is taken. Test scans are used for measuring only.

    knn         votes of the k nearest training scans by cosine, weighted by exp(cosine / 0.07) (Wu et al., CVPR 2018);
                k is chosen
    logistic    min_w,b  mean_i -log softmax(x_i w + b)[y_i] + penalty / 2 |w|^2; the penalty is chosen
    ridge       min_w,b  mean_i |x_i w + b - onehot(y_i)|^2 + penalty |w|^2, in closed form; the penalty is chosen
    prototypes  softmax of -|z - m_k|^2, m_k the mean of n training scans of class k, z features less the mean of all
                training scans, at length 1 (SimpleShot, Wang et al., 2019); nothing is chosen, several draws are made

Logistic and ridge see features standardized by the mean and deviation of the training scans. All numbers are float64.

Not scikit-learn, which would be one more dependency: its fits are faster and differ in the eighth digit of a
probability, so tables would change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.metrics.bootstrap import RESAMPLES, Interval, statistic_interval
from medssl.metrics.calibration import log_softmax
from medssl.metrics.classification import metrics
from medssl.ops.draws import keyed_generator
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int

    Features = Float[np.ndarray, "N D"]
    Scores = Float[np.ndarray, "N K"]
    Classifier = Callable[[Features], Scores]

TEMPERATURE = 0.07
NEIGHBORS = (200, 100, 50, 20, 10, 5, 3, 1)  # from the smoothest on
PENALTIES = tuple(float(10.0**exponent) for exponent in np.arange(2, -6.1, -0.5))  # from the strongest on
MEASURES = ("auroc", "balanced_accuracy", "accuracy")
ROWS = 1024  # scans whose neighbors are looked for at once
STEPS = 5000  # of a logistic fit at most
GRADIENT, CONVERGED = 1e-8, 1e-5  # largest entry of its gradient: where it ends, and where rounding may end it before


@dataclass(frozen=True)
class Group:
    """The scans of one split: features [N, D], class numbers [N], subjects and identifiers."""

    features: Features
    truth: Int[np.ndarray, "N"]
    subjects: tuple[str, ...]
    scan_ids: tuple[str, ...]


@dataclass(frozen=True)
class Linear:
    """Scores ``(x - mean) / deviation @ weight + bias`` with weight [D, K] and bias [K]."""

    mean: Float[np.ndarray, "D"]
    deviation: Float[np.ndarray, "D"]
    weight: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, "K"]

    def __call__(self, features: Features) -> Scores:
        """Scores [N, K]."""
        scores: Scores = (features - self.mean) / self.deviation @ self.weight + self.bias
        return scores


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        name: "knn", "logistic" or "ridge".
        setting: Name of what was chosen: "k" or "penalty".
        chosen: Its value.
        tried: Each value with AUROC and balanced accuracy on the validation scans.
        predict: Gives scores of the classes; higher is more likely.
        note: Remark for the reader; "" where there is none.
    """

    name: str
    setting: str
    chosen: float
    tried: tuple[tuple[float, float, float], ...]
    predict: Classifier
    note: str = ""


# --- fitting, and choosing on the validation scans


def fit_probes(train: Group, validation: Group, names: Sequence[str]) -> list[Probe]:
    """Fits the probes on the training scans and chooses on the validation scans.

    Raises:
        UserError: A class without a scan in one of the two, or features that are not finite.
    """
    for split, group in (("training", train), ("validation", validation)):
        refuse_lacking(split, group.truth, names)
        refuse_not_finite(group)
    classes = len(names)
    near = [(k, knn(train, classes, k)) for k in NEIGHBORS if k <= len(train.truth)]
    logistic = fit_logistic(train.features, train.truth, classes, PENALTIES)
    ridge = fit_ridge(train.features, train.truth, classes, PENALTIES)
    return [
        _choose("knn", "k", near, validation, names),
        _choose(
            "logistic", "penalty", [(penalty, softmaxed(linear)) for penalty, linear in logistic], validation, names
        ),
        _choose("ridge", "penalty", ridge, validation, names),
    ]


def _choose(
    name: str, setting: str, tried: Sequence[tuple[float, Classifier]], validation: Group, names: Sequence[str]
) -> Probe:
    measures = metrics(names)
    scored = []
    for value, predict in tried:
        scores = predict(validation.features)
        auroc, accuracy = (measures[measure](scores, validation.truth) for measure in MEASURES[:2])
        assert auroc is not None and accuracy is not None  # noqa: PT018 (every class has scans)
        scored.append((value, round(auroc, 12), round(accuracy, 12)))
    place = max(range(len(scored)), key=lambda number: (*scored[number][1:], -number))
    notes = []
    if setting == "penalty" and place in (0, len(scored) - 1):
        notes.append(f"the penalty {scored[place][0]:g} is the end of the range that was tried")
    if setting == "penalty" and len(scored) < len(PENALTIES):
        notes.append(f"{len(PENALTIES) - len(scored)} penalties left out: the fit did not converge in {STEPS:,} steps")
    return Probe(name, setting, scored[place][0], tuple(scored), tried[place][1], "; ".join(notes))


# --- the probes


def knn(train: Group, classes: int, k: int) -> Classifier:
    """Shares of the votes [N, K] of the ``k`` nearest training scans."""
    directions, votes = _unit(train.features), np.eye(classes)[train.truth]

    def predict(features: Features) -> Scores:
        parts = []
        for first in range(0, len(features), ROWS):
            cosine = _unit(features[first : first + ROWS]) @ directions.T
            nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
            weight = np.exp(np.take_along_axis(cosine, nearest, 1) / TEMPERATURE)
            weighted = (weight[:, :, None] * votes[nearest]).sum(1)
            parts.append(weighted / weighted.sum(1, keepdims=True))
        return np.concatenate(parts)

    return predict


def fit_logistic(
    features: Features, truth: Int[np.ndarray, "N"], classes: int, penalties: Sequence[float]
) -> list[tuple[float, Linear]]:
    """Multinomial logistic regressions, one for each penalty; each starts where the one before ended.

    Penalties at which the fit does not converge in ``STEPS`` steps are left out.
    """
    from scipy.optimize import minimize

    mean, deviation, x = _standardized(features)
    axes = _principal_axes(x)
    x = x @ axes
    spread, target = (x**2).mean(0), np.eye(classes)[truth]
    weight, bias, fits = np.zeros((x.shape[1], classes)), np.zeros((1, classes)), []
    for penalty in penalties:
        # the same problem in units in which its curvature is about equal along every axis: far fewer steps
        unit = np.append(1 / np.sqrt(spread / 4 + penalty), 2.0)[:, None]

        def loss(
            flat: Float[np.ndarray, "P"], penalty: float = penalty, unit: Float[np.ndarray, "D1 1"] = unit
        ) -> tuple[float, Float[np.ndarray, "P"]]:
            at = flat.reshape(len(unit), -1) * unit
            logarithms = log_softmax(x @ at[:-1] + at[-1])
            rest = (np.exp(logarithms) - target) / len(x)
            value = -(logarithms * target).sum() / len(x) + penalty / 2 * (at[:-1] ** 2).sum()
            return value, (np.vstack([x.T @ rest + penalty * at[:-1], rest.sum(0)]) * unit).ravel()

        options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "gtol": GRADIENT, "ftol": 0.0, "maxcor": 20}
        start = (np.vstack([weight, bias]) / unit).ravel()
        end = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
        weight, bias = np.split(end.reshape(len(unit), -1) * unit, [-1])
        if np.abs(loss(end)[1].reshape(len(unit), -1) / unit).max() <= CONVERGED:
            fits.append((penalty, Linear(mean, deviation, axes @ weight, bias[0])))
    return fits


def softmaxed(linear: Linear) -> Classifier:
    """Probabilities by a logistic regression."""
    return lambda features: np.exp(log_softmax(linear(features)))


def fit_ridge(
    features: Features, truth: Int[np.ndarray, "N"], classes: int, penalties: Sequence[float]
) -> list[tuple[float, Linear]]:
    """Least squares on the classes, one for each penalty; scores add up to 1 and may lie beyond 0 and 1."""
    mean, deviation, x = _standardized(features)
    target = np.eye(classes)[truth]
    bias = target.mean(0)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    known = left.T @ (target - bias)
    weights = [right.T @ (known * (values / (values**2 + len(x) * penalty))[:, None]) for penalty in penalties]
    return [
        (penalty, Linear(mean, deviation, weight, bias)) for penalty, weight in zip(penalties, weights, strict=True)
    ]


def prototypes(train: Group, classes: int, shots: int, *, draws: int, seed: int) -> list[Classifier] | None:
    """Probabilities by the nearest class mean of ``shots`` scans of each class, once for each draw.

    Draws depend on the seed and on the order of the training scans alone, so that encoders see the same shots. None
    where a class has fewer scans.
    """
    if np.bincount(train.truth, minlength=classes).min() < shots:
        return None
    center = train.features.mean(0)
    directions = _unit(train.features - center)
    places = [np.flatnonzero(train.truth == number) for number in range(classes)]

    def drawn(draw: int) -> Classifier:
        generator = keyed_generator(seed, draw, f"{shots} shots")
        means = np.stack([directions[generator.choice(of_class, shots, replace=False)].mean(0) for of_class in places])
        return lambda features: np.exp(log_softmax(-_distances(_unit(features - center), means)))

    return [drawn(draw) for draw in range(draws)]


# --- measuring on the test scans


def measure(
    scores: Sequence[Scores], test: Group, names: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """AUROC, balanced accuracy and accuracy (``metrics.classification``), each the mean over draws.

    Intervals come from resampling test subjects; the draws of a probe are not resampled.

    Args:
        scores: Of the test scans; several where a probe was drawn several times.
        test: The test scans.
        names: The classes.
        resamples: How often subjects are drawn.
    """
    measures, classes = metrics(names), len(np.unique(test.truth))

    def interval(name: str) -> Interval:
        def statistic(places: Int[np.ndarray, "M"]) -> float | None:
            truth = test.truth[places]
            if name != "accuracy" and len(np.unique(truth)) < classes:  # a mean over fewer classes is another measure
                return None
            values = [measures[name](of_draw[places], truth) for of_draw in scores]
            known = [value for value in values if value is not None]
            return float(np.mean(known)) if known else None

        return statistic_interval(statistic, test.subjects, resamples=resamples)

    return {name: interval(name) for name in MEASURES}


def deviation_over_draws(scores: Sequence[Scores], test: Group, names: Sequence[str]) -> dict[str, float | None]:
    """Standard deviation of each measure over the draws of a probe; None where it is not defined."""
    deviations: dict[str, float | None] = {}
    for name in MEASURES:
        values = [metrics(names)[name](of_draw, test.truth) for of_draw in scores]
        known = [value for value in values if value is not None]
        deviations[name] = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return deviations


# --- refusals and arithmetic


def refuse_lacking(split: str, truth: Int[np.ndarray, "N"], names: Sequence[str]) -> None:
    """Refuses scans among which a class is lacking.

    Raises:
        UserError: Names the classes.
    """
    counts = np.bincount(truth, minlength=len(names))
    lacking = [name for name, count in zip(names, counts, strict=True) if not count]
    if lacking:
        shown = " or ".join(lacking[:5]) + (" or ..." if len(lacking) > 5 else "")
        message = (
            f"none of the {len(truth)} {split} scans is {shown}: a probe needs scans of every class for fitting and "
            "for choosing its settings"
        )
        raise UserError(message, hint="Take more labeled subjects, or split anew.")


def refuse_not_finite(group: Group) -> None:
    """Refuses features that are NaN or infinite.

    Raises:
        UserError: Counts the scans and names some.
    """
    rows = np.flatnonzero(~np.isfinite(group.features).all(1))
    if len(rows):
        shown = ", ".join(group.scan_ids[row] for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        message = (
            f"{len(rows)} of {len(group.features)} scans have features that are NaN or infinite ({shown}): the "
            "training of the encoder diverged, or the scans hold such values"
        )
        raise UserError(message, hint="Check both")


def _unit(features: Features) -> Features:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    result: Features = features / np.maximum(lengths, np.finfo(np.float64).tiny)
    return result


def _standardized(features: Features) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D"], Features]:
    """Mean, deviation (1 where a feature does not vary), and the features less the one by the other."""
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0)
    return mean, deviation, (features - mean) / deviation


def _principal_axes(x: Features) -> Float[np.ndarray, "D R"]:
    """Orthonormal axes of the space that N vectors lie in, along which they are uncorrelated: R = min(N, D)."""
    if x.shape[1] > len(x):
        spanning: Float[np.ndarray, "D R"] = np.linalg.svd(x, full_matrices=False)[2].T
        return spanning
    every: Float[np.ndarray, "D R"] = np.linalg.eigh(x.T @ x)[1]
    return every


def _distances(features: Features, means: Float[np.ndarray, "K D"]) -> Scores:
    """Squared Euclidean distances [N, K]."""
    distances: Scores = ((features**2).sum(1)[:, None] - 2 * features @ means.T) + (means**2).sum(1)
    return distances
