"""The probes of scans are those of scikit-learn, which is not a dependency of the package."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from medssl.metrics.classification import auroc, average_precision
from medssl.metrics.scan_probe import TEMPERATURE, Group, fit_logistic, fit_ridge, knn, softmaxed

CLASSES = 3


def scans(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = np.arange(count) % CLASSES
    return generator.normal(size=(count, 12)) + np.eye(CLASSES, 12)[truth], truth


def test_logistic_regression():
    (features, truth), (others, _) = scans(90, 0), scans(40, 1)
    scaler = StandardScaler().fit(features)
    for penalty, linear in fit_logistic(features, truth, CLASSES, [1.0, 0.1, 0.01]):
        theirs = LogisticRegression(C=1 / (penalty * len(truth)), tol=1e-9, max_iter=10_000)
        theirs.fit(scaler.transform(features), truth)
        expected = theirs.predict_proba(scaler.transform(others))
        np.testing.assert_allclose(softmaxed(linear)(others), expected, atol=1e-6)


def test_ridge_regression():
    (features, truth), (others, _) = scans(90, 2), scans(40, 3)
    scaler = StandardScaler().fit(features)
    for penalty, linear in fit_ridge(features, truth, CLASSES, [1.0, 0.01]):
        theirs = Ridge(alpha=penalty * len(truth)).fit(scaler.transform(features), np.eye(CLASSES)[truth])
        np.testing.assert_allclose(linear(others), theirs.predict(scaler.transform(others)), atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_nearest_neighbors(k):
    (features, truth), (others, _) = scans(90, 4), scans(40, 5)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))
    expected = theirs.fit(features, truth).predict_proba(others)
    names = tuple(map(str, range(len(truth))))
    group = Group(features, truth, names, names)
    np.testing.assert_allclose(knn(group, CLASSES, k)(others), expected, atol=1e-6)


@pytest.mark.parametrize("digits", [None, 1])
def test_rankings(digits):
    generator = np.random.default_rng(6)
    scores, positive = generator.random(200), generator.random(200) < 0.3
    scores = scores if digits is None else scores.round(digits)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
