"""The start of LP-FT: the fit of each head against scikit-learn, and the penalty against a plain cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from heads.made import network
from objectives.small import encoder
from sklearn.linear_model import LogisticRegression, Ridge

from medssl.heads.base import UNLABELED
from medssl.heads.classification import AttentivePool, Linear, Ordinal
from medssl.heads.multi_label import MultiLabel
from medssl.heads.regression import Regression
from medssl.training.linear_start import STRENGTHS, chosen, fit, folds_of, linear_layer
from medssl.types import LabelSchema

SUBJECTS = [f"s{number // 2}" for number in range(40)]  # two scans of each
FEATURES = np.random.default_rng(0).normal(size=(40, 6)) * (1, 2, 3, 4, 5, 6) + 3
SCORE = (FEATURES - 3) @ np.array([1.0, -0.5, 0.2, 0.0, 0.1, 0.0]) + np.random.default_rng(1).normal(size=40)
CLASSES = np.repeat((SCORE.reshape(20, 2).mean(1) > 0).astype(int), 2)


def standardized(features):
    return (features - FEATURES.mean(0)) / FEATURES.std(0)


def test_a_logistic_fit_and_its_penalty():
    found, penalty = chosen(FEATURES, CLASSES, SUBJECTS, 2)
    folds = folds_of(CLASSES, SUBJECTS)
    assert len(set(zip(folds, SUBJECTS, strict=True))) == 20  # a subject is in one fold
    errors = {}
    for one in STRENGTHS[::2]:
        total = 0.0
        for fold in range(folds.max() + 1):
            rest, held = folds != fold, folds == fold
            mean, spread = FEATURES[rest].mean(0), FEATURES[rest].std(0)
            model = LogisticRegression(C=2 / (one * rest.sum()), max_iter=100_000, tol=1e-10)  # two rows of weights
            model.fit((FEATURES[rest] - mean) / spread, CLASSES[rest])
            p = model.predict_proba((FEATURES[held] - mean) / spread)
            total -= np.log(p[np.arange(held.sum()), CLASSES[held]]).sum()
        errors[one] = total
    best = min(errors, key=errors.get)
    assert abs(np.log10(float(penalty) / best)) <= 0.51  # of twice as many penalties, that or a neighbor
    reference = LogisticRegression(C=2 / (float(penalty) * 40), max_iter=100_000, tol=1e-12)
    reference.fit(standardized(FEATURES), CLASSES)
    scores = found(FEATURES)
    odds = reference.decision_function(standardized(FEATURES))
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], odds, atol=2e-2 * np.abs(odds).max())


def head_of(kind, schema, **arguments):
    torch.manual_seed(0)
    small = encoder(2)
    small.channels = (*small.channels[:-1], 6)
    return kind(small, schema, **arguments)


def test_findings_are_fitted_one_by_one_and_unknown_ones_are_left_out():
    schema = LabelSchema("a,b,c", ((0, "a"), (1, "b"), (2, "c")), kind="findings")
    target = np.stack([CLASSES, np.where(np.arange(40) < 30, 1 - CLASSES, UNLABELED), np.ones(40, int)], 1)
    found, _ = fit(head_of(MultiLabel, schema), FEATURES, target, SUBJECTS)
    logits = found(FEATURES)
    alone, _ = chosen(FEATURES, CLASSES, SUBJECTS, 2)
    np.testing.assert_allclose(logits[:, 0], np.diff(alone(FEATURES))[:, 0], atol=1e-8)
    known, _ = chosen(FEATURES[:30], 1 - CLASSES[:30], SUBJECTS[:30], 2)
    np.testing.assert_allclose(logits[:, 1], np.diff(known(FEATURES))[:, 0], atol=1e-8)
    assert (logits[:, 2] == 0).all()  # always present


def test_numbers_are_fitted_by_ridge_regression():
    head = head_of(Regression, LabelSchema("age", ((0, "age"),), kind="number"))
    target = 60 + 10 * SCORE
    target[3] = np.nan
    head.prepare(torch.from_numpy(target))
    found, penalty = fit(head, FEATURES, target, SUBJECTS)
    known = ~np.isnan(target)
    mean, spread = FEATURES[known].mean(0), FEATURES[known].std(0)
    reference = Ridge(alpha=float(penalty) * known.sum()).fit((FEATURES[known] - mean) / spread, target[known])
    predicted = head.predictions(torch.from_numpy(found(FEATURES))).numpy()[:, 0]
    np.testing.assert_allclose(predicted, reference.predict((FEATURES - mean) / spread), rtol=2e-2)


def test_too_few_subjects_for_folds_take_the_usual_penalty():
    assert len(folds_of(np.array([0, 0, 1]), ["a", "b", "c"])) == 0
    _, penalty = chosen(FEATURES[:3], np.array([0, 0, 1]), ["a", "b", "c"], 2)
    assert penalty == "1"


@pytest.mark.parametrize(
    ("head", "arguments", "linear"),
    [(Linear, {}, True), (Linear, {"batch_norm": True}, False), (AttentivePool, {}, False), (Ordinal, {}, False)],
)
def test_which_heads_are_one_linear_layer(head, arguments, linear):
    assert (linear_layer(network(head, 2, **arguments).head) is not None) == linear
