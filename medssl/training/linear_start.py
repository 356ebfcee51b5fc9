"""The start of LP-FT: a linear head is fitted to the features of the frozen encoder before the first step."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from medssl.heads import classification
from medssl.heads.base import UNLABELED
from medssl.heads.multi_label import MultiLabel
from medssl.heads.regression import Regression
from medssl.heads.sliding import encode
from medssl.metrics.calibration import log_softmax
from medssl.metrics.scan_probe import PENALTIES, Linear, fit_logistic
from medssl.objectives.base import evaluation_mode
from medssl.ops.collectives import broadcast
from medssl.training.events import Listener
from medssl.training.label_targets import targets_of
from medssl.training.supervised import StoredScan, Supervised
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import nn

    from medssl.data.store.store import Store
    from medssl.heads.base import Head
    from medssl.training.loop import TrainingLoop
    from medssl.training.optim import FineTuning
    from medssl.training.settings import Examples

    Features = Float[np.ndarray, "N D"]
    Fits = list[tuple[float, Linear]]

log = logging.getLogger(__name__)

STRENGTHS = tuple(penalty for penalty in PENALTIES if penalty > 9e-4)  # with weaker ones the gradient vanishes
MOST = 2000  # scans that the head is fitted to, evenly taken from more
FOLDS = 5  # of the cross-validation, at most
USUAL = 1.0  # penalty where too few subjects are left for a cross-validation


def linear_layer(head: Head) -> nn.Linear | None:
    """The only layer of a head that is linear in the pooled features; None for other heads."""
    if isinstance(head, MultiLabel | Regression) or (isinstance(head, classification.Linear) and not head.norms):
        return head.linear
    return None


def with_possible_start(optimizer: FineTuning, head: Head) -> FineTuning:
    """The settings with ``probe`` as it is possible for a head.

    Raises:
        UserError: A start is asked for, and the head is no linear layer.
    """
    probe = optimizer.probe
    if not probe.start or linear_layer(head) is not None:
        return replace(optimizer, probe=replace(probe, start=bool(probe.start)))
    if probe.start == "where_possible":
        return replace(optimizer, probe=replace(probe, start=False, floor=probe.floor and optimizer.head_first > 0))
    message = f"{type(head).__name__} is no linear layer on pooled features"
    expected = "the head linear (without batch_norm), multi_label or regression"
    hint = "Set it to where_possible or false; optimizer.head_first trains any head on the frozen encoder."
    raise UserError(message, key="optimizer.probe.start", got=True, expected=expected, hint=hint)


class LinearStart(Listener):
    """Fits the head before the first step of a run. Stands before the validation, which may measure the result."""

    def __init__(self, store: Store, scans: Sequence[int], data: Examples) -> None:
        self.store, self.data = store, data
        self.scans = tuple(scans[:: -(-len(scans) // MOST)])

    def on_start(self, loop: TrainingLoop) -> None:
        """Fits, unless a former process did."""
        if loop.progress.step:
            return
        objective = loop.objective
        assert isinstance(objective, Supervised)
        with evaluation_mode(objective), loop.autocast():
            features = np.stack([self.embed(objective, number) for number in self.scans])
        values = [self.store.values(number) for number in self.scans]
        target = targets_of(values, objective.head.schema).numpy()
        subjects = self.store.subjects(self.scans)
        layer, found = linear_layer(objective.head), None
        if np.isfinite(features).all():
            found = fit(objective.head, features.astype(np.float64), target, subjects)
        if found is None or layer is None:
            log.info("no fit of the head to the frozen encoder converged: the head starts from random weights")
            return
        fitted, penalties = found
        weight = (fitted.weight / fitted.deviation[:, None]).T
        bias = fitted.bias - weight @ fitted.mean
        with torch.no_grad():
            for parameter, value in ((layer.weight, weight), (layer.bias, bias)):
                parameter.copy_(broadcast(torch.from_numpy(value).to(parameter)))
        objective.restart_average()
        if loop.rank == 0:
            log.info(f"head fitted to the frozen encoder on {len(self.scans)} scans; penalty {penalties}")

    def embed(self, objective: Supervised, number: int) -> Float[np.ndarray, "D"]:
        """Mean of the pooled features of the fewest windows that cover a scan."""
        window = tuple(self.data.view.size)
        scan = StoredScan(self.store, number, window, self.data.sampling.slice_axis)
        windows = encode(objective.encoder, scan.read, scan.shape, window=window, axis=scan.axis, plane=scan.plane)
        mean: Float[np.ndarray, "D"] = np.mean([x.pooled[0].float().cpu().numpy() for _, _, x in windows], 0)
        return mean


def fit(head: Head, features: Features, target: np.ndarray, subjects: Sequence[str]) -> tuple[Linear, str] | None:
    """The linear map of a head, and the penalties that cross-validation chose; None where no fit converged."""
    if isinstance(head, Regression):
        known = ~np.isnan(target)
        standardized = (target - float(head.mean)) / float(head.deviation)
        return chosen(features[known], standardized[known], _of(subjects, known), 0)
    if not isinstance(head, MultiLabel):
        known = target != UNLABELED
        return chosen(features[known], target[known], _of(subjects, known), len(head.schema.classes))
    weights: list[Float[np.ndarray, "D"]] = []
    biases: list[float] = []
    penalties: list[str] = []
    for column in target.T:
        known = column != UNLABELED
        both = len(set(column[known])) == 2  # a finding that is always or never present has a probability of a half
        found = chosen(features[known], column[known], _of(subjects, known), 2) if both else None
        if found is None:
            weights, biases = [*weights, np.zeros(features.shape[1])], [*biases, 0.0]
            continue
        per_class = found[0].weight / found[0].deviation[:, None]
        weights.append(per_class[:, 1] - per_class[:, 0])
        biases.append(float(np.diff(found[0].bias)[0]) - float(found[0].mean @ weights[-1]))
        penalties.append(found[1])
    none = np.zeros(features.shape[1])
    return Linear(none, none + 1, np.stack(weights, 1), np.array(biases)), ", ".join(penalties)


def chosen(features: Features, target: np.ndarray, subjects: Sequence[str], classes: int) -> tuple[Linear, str] | None:
    """The fit with the penalty of the lowest error in a cross-validation over subjects.

    Args:
        features: Features of the scans.
        target: Class numbers, or standardized numbers where ``classes`` is 0.
        subjects: Subject of each scan; those of one subject are in one fold.
        classes: Number of classes.

    Returns:
        The fit and its penalty; None where none converged.
    """
    fits = dict(fits_of(features, target, classes))
    if not fits:
        return None
    folds = folds_of(target if classes else np.zeros(len(target), int), subjects)
    errors: dict[float, float] = {penalty: 0.0 for penalty in fits}
    for fold in range(max(folds, default=-1) + 1):
        held = folds == fold
        of_rest = dict(fits_of(features[~held], target[~held], classes))
        errors = {
            p: e + error_of(of_rest[p], features[held], target[held], classes)
            for p, e in errors.items()
            if p in of_rest
        }
    penalty = min(fits, key=lambda p: abs(np.log(p / USUAL)))
    if len(folds) and errors:
        penalty = min(errors, key=lambda p: (errors[p], -p))
    return fits[penalty], f"{penalty:.3g}"


def fits_of(features: Features, target: np.ndarray, classes: int) -> Fits:
    """Fits for each penalty: logistic regressions, or ridge regressions where ``classes`` is 0."""
    if classes:
        return fit_logistic(features, target.astype(int), classes, STRENGTHS)
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    x, level = (features - mean) / deviation, target.mean()
    left, values, right = np.linalg.svd(x, full_matrices=False)
    known = left.T @ (target - level)
    maps = {p: right.T @ (known * values / (values**2 + len(x) * p)) for p in STRENGTHS}
    return [(p, Linear(mean, deviation, weight[:, None], np.array([level]))) for p, weight in maps.items()]


def error_of(fitted: Linear, features: Features, target: np.ndarray, classes: int) -> float:
    """Sum of the cross-entropies, or of the squared errors where ``classes`` is 0."""
    scores = fitted(features)
    if not classes:
        return float(((scores[:, 0] - target) ** 2).sum())
    return -float(log_softmax(scores)[np.arange(len(scores)), target.astype(int)].sum())


def folds_of(groups: Int[np.ndarray, "N"], subjects: Sequence[str]) -> Int[np.ndarray, "N"]:
    """Number of the fold of each scan, each fold with subjects of every class; empty where too few are left for two."""
    of_subject = {subject: int(group) for subject, group in zip(subjects, groups, strict=True)}
    by_class = [
        [s for s in dict.fromkeys(subjects) if of_subject[s] == group] for group in sorted(set(of_subject.values()))
    ]
    count = min(FOLDS, *(len(members) for members in by_class)) if by_class else 0
    if count < 2:
        return np.zeros(0, int)
    places = {subject: number % count for members in by_class for number, subject in enumerate(members)}
    return np.array([places[subject] for subject in subjects])


def _of(subjects: Sequence[str], known: np.ndarray) -> list[str]:
    return [subject for subject, is_known in zip(subjects, known, strict=True) if is_known]
