"""Mirrored inference is the mean over predictions that are mirrored by hand, of the axes that the rule allows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from data.stores import volume
from heads.made import image, network

from medssl.data.store.preprocess import prepare
from medssl.heads.classification import Linear
from medssl.heads.mirroring import MirroredNetwork
from medssl.heads.regression import Regression
from medssl.heads.segmentation import UNet
from medssl.inference.predictor import Fitted, Windows, classify, mirror_rule, segment, settings_of
from medssl.types import Card, Imported, LabelSchema, Preprocess, Tuned, UserError
from medssl.types.provenance import Provenance


def by_hand(predict, x: np.ndarray, axes: tuple[int, ...], *, per_voxel: bool) -> np.ndarray:
    """Mean over all combinations of mirrored axes (of [B, C, *s]), by NumPy."""
    found = []
    for chosen in product((False, True), repeat=len(axes)):
        turned = [axis + 2 for axis, take in zip(axes, chosen, strict=True) if take]
        answer = predict(torch.from_numpy(np.ascontiguousarray(np.flip(x, turned)))).detach().numpy()
        found.append(np.flip(answer, turned) if per_voxel else answer)
    return np.mean(found, 0)


@pytest.mark.parametrize(("ndim", "axes"), [(2, (0,)), (2, (0, 1)), (3, (1, 2)), (3, (0, 1, 2))])
def test_a_segmentation_is_the_mean_of_predictions_mirrored_back(ndim, axes):
    model = network(UNet, ndim).double().eval()
    x = image(ndim).double()
    expected = by_hand(lambda one: model(one).softmax(1), x.numpy(), axes, per_voxel=True)
    with torch.inference_mode():
        mirrored = MirroredNetwork(model, axes)
        found = mirrored.head.predictions(mirrored(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - model(x).softmax(1).detach().numpy()).max() > 1e-3  # the mean differs from one prediction
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_whole_scans_are_averaged_as_their_heads_predict():
    x = image(2)
    classes = network(Linear, 2).eval()
    expected = by_hand(lambda one: classes(one).softmax(1), x.numpy(), (0, 1), per_voxel=False)
    np.testing.assert_allclose(MirroredNetwork(classes, (0, 1))(x).detach().numpy(), expected, atol=1e-6)
    encoder = classes.encoder
    head = Regression(encoder, LabelSchema("age", ((0, "age"),), kind="number")).eval()
    classes.head = head
    expected = by_hand(lambda one: head.predictions(classes(one)), x.numpy(), (0,), per_voxel=False)
    np.testing.assert_allclose(MirroredNetwork(classes, (0,))(x).detach().numpy(), expected, atol=1e-5)


def fitted_network(ndim: int, flip: str | None, head=UNet) -> Fitted:
    model = network(head, ndim).eval()
    size = (32, 48) if ndim == 2 else (16, 24, 12)
    tuned = Tuned(Imported("x"), model.head.schema, size, 2, (), None, flip)
    card = Card(Imported("x"), Preprocess(), None, "", Provenance(), 1, {}, tuned)
    return Fitted(model, card, tuned, "digest", torch.device("cpu"))


@pytest.mark.parametrize("flip", ["none", "safe", "all", None])
def test_a_scan_is_mirrored_along_the_axes_of_its_training(flip):
    fitted = fitted_network(3, flip)
    turned = np.array([[0, 0, -1.0, 9], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])  # left-right is the last axis
    scan = volume(np.random.default_rng(0).normal(size=(1, 16, 24, 12)).astype(np.float32), turned)
    prepared = prepare(scan, fitted.card.preprocess, domain="mr")
    found = segment(fitted, scan, "mr", Windows(overlap=0.0))
    size = fitted.tuned.window
    axes = {"none": (), "all": (0, 1, 2), None: ()}.get(flip, (1, 2))  # stored scans lie as RAS
    assert prepared.image.shape[1:] == (12, 16, 24)
    plain = segment(fitted, scan, "mr", Windows(overlap=0.0, mirror="none"))
    assert (len(axes) > 0) == bool((found != plain).any())
    if not axes:
        return
    mirrored = MirroredNetwork(fitted.network, axes)
    again = Fitted(mirrored, fitted.card, fitted.tuned, "digest", fitted.device)
    np.testing.assert_array_equal(segment(again, scan, "mr", Windows(overlap=0.0, mirror="none")), found)
    assert size == (16, 24, 12)


def test_slices_are_mirrored_as_images_and_classes_too():
    fitted = fitted_network(2, "safe", Linear)
    scan = volume(np.random.default_rng(0).normal(size=(1, 32, 48, 2)).astype(np.float32))
    found = classify(fitted, scan, "mr", Windows())
    again = Fitted(MirroredNetwork(fitted.network, (0,)), fitted.card, fitted.tuned, "digest", fitted.device)
    np.testing.assert_allclose(classify(again, scan, "mr", Windows(mirror="none")), found, atol=1e-6)
    assert np.abs(found - classify(fitted, scan, "mr", Windows(mirror="none"))).max() > 1e-6


@pytest.mark.parametrize(
    ("flip", "mirror", "expected"),
    [
        ("safe", "all", r"geometry\.flip safe: all axes but the left.*\(got 'all'; expected trained, none, safe\)"),
        ("none", "safe", r"flip none: no axis was mirrored \(got 'safe'; expected trained, none\)"),
        ("none", "all", r"windows\.mirror: the network was trained with data\.view\.geometry\.flip none"),
        (None, "all", r"windows\.mirror: the card does not say .*Left and right differ in the body"),
    ],
)  # fmt: skip
def test_axes_that_training_did_not_mirror_are_refused(flip, mirror, expected):
    fitted = fitted_network(2, flip)
    with pytest.raises(UserError, match=expected):
        mirror_rule(fitted.tuned, Windows(mirror=mirror))


def test_results_say_which_mirroring_made_them_and_older_ones_do_not():
    assert settings_of(fitted_network(2, "all").tuned, Windows())["mirror"] == "all"
    assert settings_of(fitted_network(2, "all").tuned, Windows(mirror="safe"))["mirror"] == "safe"
    assert "mirror" not in settings_of(fitted_network(2, None).tuned, Windows())
    assert "mirror" not in settings_of(fitted_network(2, "all").tuned, Windows(mirror="none"))
