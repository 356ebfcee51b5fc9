"""Probes against other computations of the same, what must not matter to them, and what they must not see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medssl.metrics import scan_probe as probe
from medssl.metrics.classification import metrics
from medssl.metrics.scan_probe import Group
from medssl.types import UserError

NAMES = ("a", "b", "c")


def group(features, truth) -> Group:
    ids = tuple(f"s{number:03d}" for number in range(len(truth)))
    return Group(np.asarray(features, float), np.asarray(truth), ids, ids)


def scans(count=60, width=10, *, apart=1.0, classes=3, seed=0) -> Group:
    """Features with a mean per class, correlated and of unequal scale."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    mixing = np.random.default_rng(99).normal(size=(width, width)) * np.logspace(-1, 1, width)
    means = np.random.default_rng(98).normal(size=(classes, width))
    return group((rng.normal(size=(count, width)) + apart * means[truth]) @ mixing + 3, truth)


# --- nearest neighbors


@pytest.mark.parametrize("k", [1, 4, 60])
def test_neighbors_vote_as_in_a_loop(k):
    train, test = scans(), scans(20, seed=1)
    expected = np.zeros((20, 3))
    for row, x in enumerate(test.features):
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train.features]
        for place in sorted(range(60), key=lambda p: -cosines[p])[:k]:
            expected[row, train.truth[place]] += np.exp(cosines[place] / 0.07)
        expected[row] /= expected[row].sum()
    np.testing.assert_allclose(probe.knn(train, 3, k)(test.features), expected, rtol=1e-9, atol=1e-15)


def test_neighbors_of_many_scans_are_those_of_each(monkeypatch):
    train, test = scans(), scans(20, seed=1)
    whole = probe.knn(train, 3, 5)(test.features)
    monkeypatch.setattr(probe, "ROWS", 3)
    np.testing.assert_allclose(probe.knn(train, 3, 5)(test.features), whole, rtol=1e-12)


def test_a_scan_without_any_feature_still_has_votes():
    train = scans()
    votes = probe.knn(train, 3, 60)(np.zeros((1, 10)))
    np.testing.assert_allclose(votes, np.bincount(train.truth)[None] / 60)


# --- logistic regression


@pytest.mark.parametrize(("count", "width"), [(60, 10), (12, 40)])
def test_logistic_weights_are_where_the_gradient_is_zero(count, width):
    """Reference: torch's own cross-entropy and its gradient, with the features standardized anew."""
    train = scans(count, width)
    x = torch.from_numpy((train.features - train.features.mean(0)) / train.features.std(0))
    for penalty, linear in probe.fit_logistic(train.features, train.truth, 3, [1.0, 1e-2]):
        weight = torch.from_numpy(linear.weight).requires_grad_()
        bias = torch.from_numpy(linear.bias).requires_grad_()
        loss = F.cross_entropy(x @ weight + bias, torch.from_numpy(train.truth)) + penalty / 2 * weight.square().sum()
        loss.backward()
        assert weight.grad.abs().max() < 1e-6
        assert bias.grad.abs().max() < 1e-6
        with torch.no_grad():
            for change in torch.randn(5, *weight.shape, generator=torch.Generator().manual_seed(0)).double():
                more = weight + 0.1 * change
                moved = (
                    F.cross_entropy(x @ more + bias, torch.from_numpy(train.truth)) + penalty / 2 * more.square().sum()
                )
                assert moved > loss
        probabilities = probe.softmaxed(linear)(train.features)
        np.testing.assert_allclose(probabilities, (x @ weight + bias).softmax(1).detach().numpy(), atol=1e-12)


def test_two_points_by_hand():
    """Points -1 and 1: by symmetry weights -h and h without bias, and penalty h = 1 - sigmoid(2 h)."""
    ((_, linear),) = probe.fit_logistic(np.array([[-1.0], [1.0]]), np.array([0, 1]), 2, [0.5])
    half = linear.weight[0, 1]
    assert linear.weight[0, 0] == pytest.approx(-half)
    assert 0.5 * half == pytest.approx(1 - 1 / (1 + np.exp(-2 * half)), abs=1e-6)


def test_correlated_features_do_not_slow_the_fit(monkeypatch):
    """Eight features and nine near copies of each: some axes vary a thousand times less than others."""
    monkeypatch.setattr(probe, "STEPS", 100)
    random = np.random.default_rng(0)
    few, truth = random.normal(size=(400, 8)), random.integers(0, 3, 400)
    few[:, 0] += truth
    copies = np.concatenate([few, *(few + 3e-2 * random.normal(size=few.shape) for _ in range(9))], 1)
    assert len(probe.fit_logistic(copies, truth, 3, probe.PENALTIES)) == len(probe.PENALTIES)


def test_fits_that_do_not_converge_are_left_out_with_a_note(monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 3)
    train, validation = scans(), scans(30, seed=2)
    fitted = probe.fit_logistic(train.features, train.truth, 3, probe.PENALTIES)
    assert len(fitted) < len(probe.PENALTIES)
    found = probe.fit_probes(train, validation, NAMES)[1]
    assert f"{len(probe.PENALTIES) - len(fitted)} penalties left out: the fit did not converge in 3 steps" in found.note


# --- least squares


@pytest.mark.parametrize(("count", "width"), [(60, 10), (12, 40)])
def test_ridge_is_least_squares_with_the_penalty_as_rows(count, width):
    train, test = scans(count, width), scans(9, width, seed=3)
    mean, deviation = train.features.mean(0), train.features.std(0)
    x, target = (train.features - mean) / deviation, np.eye(3)[train.truth]
    for penalty, linear in probe.fit_ridge(train.features, train.truth, 3, [10.0, 0.1, 1e-6]):
        rows = np.vstack(
            [
                np.hstack([x, np.ones((count, 1))]),
                np.hstack([np.sqrt(count * penalty) * np.eye(width), np.zeros((width, 1))]),
            ]
        )
        solved = np.linalg.lstsq(rows, np.vstack([target, np.zeros((width, 3))]), rcond=None)[0]
        expected = (test.features - mean) / deviation @ solved[:-1] + solved[-1]
        np.testing.assert_allclose(linear(test.features), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(linear(test.features).sum(1), 1, atol=1e-9)


# --- prototypes


def test_prototypes_by_hand():
    """With all scans of each class as shots the draw does not matter."""
    train, test = scans(12), scans(7, seed=4)
    (answer,) = probe.prototypes(train, 3, 4, draws=1, seed=0)
    center = train.features.mean(0)
    held = [(x - center) / np.linalg.norm(x - center) for x in train.features]
    means = [np.mean([h for h, y in zip(held, train.truth, strict=True) if y == k], 0) for k in range(3)]
    for x, row in zip(test.features, answer(test.features), strict=True):
        z = (x - center) / np.linalg.norm(x - center)
        odds = np.exp([-np.square(z - m).sum() for m in means])
        np.testing.assert_allclose(row, odds / odds.sum())


def test_shots_depend_on_seed_and_scans_but_not_on_the_encoder():
    """Features that tell which scan they are: the prototypes tell which were drawn."""
    train = group(np.eye(30), np.arange(30) % 3)

    def drawn(features, seed):
        answers = probe.prototypes(dataclasses.replace(train, features=features), 3, 2, draws=6, seed=seed)
        return [frozenset(np.argsort(answer(features)[:, k])[-2:]) for answer in answers for k in range(3)]

    first = drawn(train.features, 0)
    assert first == drawn(3 * train.features, 0)
    assert len(set(first)) > 6
    assert first != drawn(train.features, 1)
    assert all({place % 3 for place in own} == {number % 3} for number, own in enumerate(first))


def test_more_shots_than_scans_give_no_prototypes():
    assert probe.prototypes(scans(12), 3, 5, draws=2, seed=0) is None


# --- what must not matter


def fitted_scores(train, validation, test):
    found = probe.fit_probes(train, validation, NAMES)
    return {own.name: (own.chosen, own.predict(test.features)) for own in found}


def changed(change):
    groups = scans(60, apart=0.7), scans(30, apart=0.7, seed=2), scans(24, apart=0.7, seed=3)
    return fitted_scores(*groups), fitted_scores(*(dataclasses.replace(g, features=change(g.features)) for g in groups))


def same(before, after, names, tolerance=1e-5):
    for name in names:
        assert before[name][0] == after[name][0]
        np.testing.assert_allclose(before[name][1], after[name][1], atol=tolerance)


def test_the_scale_of_all_features_does_not_matter():
    same(*changed(lambda x: 1e3 * x), ["knn", "logistic", "ridge"])


def test_scale_and_shift_of_each_feature_do_not_matter_to_what_is_standardized():
    same(*changed(lambda x: x * np.logspace(-2, 3, 10) + np.arange(10)), ["logistic", "ridge"])


def test_a_rotation_does_not_matter():
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(10, 10)))[0]
    same(*changed(lambda x: x @ turn), ["knn"])
    train, test = scans(60, apart=0.7), scans(24, seed=3)
    # standardizing knows axes, so features are white before they are turned
    left = np.linalg.svd(train.features - train.features.mean(0), full_matrices=False)
    white = left[2].T / left[1]
    for fit in (probe.fit_ridge, probe.fit_logistic):
        answers = [fit(train.features @ white @ change, train.truth, 3, [0.1])[0][1] for change in (np.eye(10), turn)]
        scores = [own(test.features @ white @ change) for own, change in zip(answers, (np.eye(10), turn), strict=True)]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_features_that_do_not_vary_do_not_matter():
    same(*changed(lambda x: np.hstack([x, np.full((len(x), 3), 7.0)])), ["logistic", "ridge"])


def test_the_order_of_training_scans_does_not_matter():
    train, validation, test = scans(60, apart=0.7), scans(30, apart=0.7, seed=2), scans(24, apart=0.7, seed=3)
    order = np.random.default_rng(0).permutation(60)
    turned = dataclasses.replace(train, features=train.features[order], truth=train.truth[order])
    same(fitted_scores(train, validation, test), fitted_scores(turned, validation, test), ["knn", "logistic", "ridge"])


# --- how settings are chosen


def test_settings_are_those_with_the_best_validation_auroc_then_accuracy_then_the_strongest():
    for apart in (0.6, 3.0):
        train, validation = scans(60, apart=apart), scans(30, apart=apart, seed=2)
        for own in probe.fit_probes(train, validation, NAMES):
            best = max((auroc, accuracy) for _, auroc, accuracy in own.tried)
            assert own.chosen == next(value for value, *found in own.tried if tuple(found) == best)
            assert [row[0] for row in own.tried] == sorted((row[0] for row in own.tried), reverse=True)
            scores = own.predict(validation.features)
            for name, value in zip(("auroc", "balanced_accuracy"), best, strict=True):
                assert metrics(NAMES)[name](scores, validation.truth) == pytest.approx(value)
    assert [k for k, *_ in probe.fit_probes(train, validation, NAMES)[0].tried] == [50, 20, 10, 5, 3, 1]


def test_a_rare_class_is_predicted_although_auroc_needs_no_weights_for_it():
    """Ten to one: under the strongest penalties AUROC is 1 and every answer the common class."""
    truth = np.repeat([0, 1], [50, 5])
    train = group(np.random.default_rng(0).normal(size=(55, 2)) * 0.1 + truth[:, None], truth)
    logistic = probe.fit_probes(train, train, ("a", "b"))[1]
    assert logistic.tried[0][1:] == (1, 0.5)
    assert (logistic.predict(train.features).argmax(1) == truth).all()


def test_penalties_at_the_end_of_the_range_are_noted():
    knn, logistic, ridge = probe.fit_probes(scans(apart=9), scans(30, apart=9, seed=2), NAMES)
    assert logistic.chosen == ridge.chosen == 100
    assert "the penalty 100 is the end of the range that was tried" in logistic.note
    assert knn.note == ""


# --- what probes find


def test_separable_classes_are_distinguished_and_noise_is_not():
    for apart, low, high in ((8.0, 1.0, 1.0), (0.0, 0.38, 0.62)):
        train, validation = scans(90, apart=apart), scans(60, apart=apart, seed=2)
        test = scans(300, apart=apart, seed=3)
        answers = {own.name: own.predict for own in probe.fit_probes(train, validation, NAMES)}
        answers["prototypes"] = probe.prototypes(train, 3, 20, draws=1, seed=0)[0]
        for name, answer in answers.items():
            auroc = metrics(NAMES)["auroc"](answer(test.features), test.truth)
            assert low <= auroc <= high, (name, auroc)


# --- measures


def test_measures_are_means_over_draws_with_intervals_over_subjects():
    test = scans(24, apart=0.5)
    draws = [np.random.default_rng(seed).dirichlet(np.ones(3), 24) for seed in range(4)]
    found = probe.measure(draws, test, NAMES, resamples=200)
    deviations = probe.deviation_over_draws(draws, test, NAMES)
    for name in probe.MEASURES:
        values = [metrics(NAMES)[name](own, test.truth) for own in draws]
        assert found[name].value == pytest.approx(np.mean(values))
        assert deviations[name] == pytest.approx(np.std(values, ddof=1))
        assert found[name].low < found[name].value < found[name].high
        assert found[name].subjects == 24
    assert probe.deviation_over_draws(draws[:1], test, NAMES)["auroc"] is None


def test_resamples_without_a_class_are_left_out_where_they_would_be_another_measure():
    test = group(np.zeros((5, 1)), [0, 0, 0, 0, 1])
    found = probe.measure([np.tile([0.4, 0.6], (5, 1))], test, ("a", "b"), resamples=300)
    assert found["auroc"].left_out > 50
    assert found["accuracy"].left_out == 0
    three = probe.measure(
        [np.eye(3)[[0, 0, 0, 0, 1, 2]]], group(np.zeros((6, 1)), [0, 0, 0, 0, 1, 2]), NAMES, resamples=300
    )
    assert three["balanced_accuracy"].left_out > 0.4 * 300  # one class lacks in 58 of 100, two in 9
    alone = probe.measure([np.tile([0.4, 0.6], (5, 1))], group(np.zeros((5, 1)), [0] * 5), ("a", "b"), resamples=9)
    assert alone["auroc"].value is None


# --- refusals


def test_a_class_that_is_lacking_is_named():
    good = scans()
    lacks = group(good.features[good.truth < 2], good.truth[good.truth < 2])
    with pytest.raises(
        UserError, match=r"none of the 40 training scans is c: .*\. Take more labeled subjects, or split anew"
    ):
        probe.fit_probes(lacks, good, NAMES)
    with pytest.raises(UserError, match=r"none of the 40 validation scans is c: .* choosing its settings"):
        probe.fit_probes(good, lacks, NAMES)
    with pytest.raises(UserError, match=r"none of the 1 training scans is 1 or 2 or 3 or 4 or 5 or \.\.\.:"):
        probe.refuse_lacking("training", np.array([0]), [str(number) for number in range(9)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(value):
    good = scans()
    bad = dataclasses.replace(good, features=good.features.copy())
    bad.features[[3, 7], 2] = value
    with pytest.raises(
        UserError, match=r"2 of 60 scans have features that are NaN or infinite \(s003, s007\): the training of"
    ):
        probe.fit_probes(good, bad, NAMES)
