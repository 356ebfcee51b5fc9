"""The start of LP-FT: a linear head is fitted to the features of the frozen encoder before the first step."""

from __future__ import annotations

import logging
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
    from medssl.training.settings import Examples

    Features = Float[np.ndarray, "N D"]
    Fits = list[tuple[float, Linear]]

log = logging.getLogger(__name__)

FOLDS = 5  # of the cross-validation, at most
USUAL = 1.0  # penalty where too few subjects are left for a cross-validation


def linear_layer(head: Head) -> nn.Linear:
    """The only layer of a head that is linear in the pooled features.

    Raises:
        UserError: The head is another one.
    """
    if isinstance(head, MultiLabel | Regression) or (isinstance(head, classification.Linear) and not head.norms):
        return head.linear
    message = f"{type(head).__name__} is no linear layer on pooled features"
    expected = "the head linear (without batch_norm), multi_label or regression"
    hint = "Set it to false; optimizer.head_first trains any head on the frozen encoder."
    raise UserError(message, key="optimizer.probe.start", got=True, expected=expected, hint=hint)


class LinearStart(Listener):
    """Fits the head before the first step of a run. Stands before the validation, which may measure the result."""

    def __init__(self, store: Store, scans: Sequence[int], data: Examples) -> None:
        self.store, self.scans, self.data = store, tuple(scans), data

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
        fitted, penalties = fit(objective.head, features.astype(np.float64), target, subjects)
        layer = linear_layer(objective.head)
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


def fit(head: Head, features: Features, target: np.ndarray, subjects: Sequence[str]) -> tuple[Linear, str]:
    """The linear map of a head, and the penalties that cross-validation chose."""
    if isinstance(head, Regression):
        known = ~np.isnan(target)
        standardized = (target - float(head.mean)) / float(head.deviation)
        return chosen(features[known], standardized[known], _of(subjects, known), 0)
    if not isinstance(head, MultiLabel):
        known = target != UNLABELED
        return chosen(features[known], target[known], _of(subjects, known), len(head.schema.classes))
    maps, penalties = [], []
    for column in target.T:
        known = column != UNLABELED
        if len(set(column[known])) < 2:  # always or never present: half
            maps.append(Linear(np.zeros(features.shape[1]), np.ones(features.shape[1]), *_nothing(features.shape[1])))
            continue
        pair, penalty = chosen(features[known], column[known], _of(subjects, known), 2)
        maps.append(pair)
        penalties.append(penalty)
    weight = np.stack(
        [(m.weight / m.deviation[:, None])[:, 1] - (m.weight / m.deviation[:, None])[:, 0] for m in maps], 1
    )
    bias = np.array([m.bias[1] - m.bias[0] - m.mean @ weight[:, k] for k, m in enumerate(maps)])
    none = np.zeros(features.shape[1])
    return Linear(none, none + 1, weight, bias), ", ".join(penalties)


def chosen(features: Features, target: np.ndarray, subjects: Sequence[str], classes: int) -> tuple[Linear, str]:
    """The fit with the penalty of the lowest error in a cross-validation over subjects.

    Args:
        features: Features of the scans.
        target: Class numbers, or standardized numbers where ``classes`` is 0.
        subjects: Subject of each scan; those of one subject are in one fold.
        classes: Number of classes.
    """
    fits = dict(fits_of(features, target, classes))
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
    penalty = (
        min(errors, key=lambda p: (errors[p], -p))
        if len(folds) and errors
        else min(fits, key=lambda p: abs(np.log(p / USUAL)))
    )
    return fits[penalty], f"{penalty:.3g}"


def fits_of(features: Features, target: np.ndarray, classes: int) -> Fits:
    """Fits for each penalty: logistic regressions, or ridge regressions where ``classes`` is 0."""
    if classes:
        return fit_logistic(features, target.astype(int), classes, PENALTIES)
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    x, level = (features - mean) / deviation, target.mean()
    left, values, right = np.linalg.svd(x, full_matrices=False)
    known = left.T @ (target - level)
    return [
        (
            p,
            Linear(
                mean, deviation, (right.T @ (known * values / (values**2 + len(x) * p)))[:, None], np.array([level])
            ),
        )
        for p in PENALTIES
    ]


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


def _nothing(width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((width, 2)), np.zeros(2)
