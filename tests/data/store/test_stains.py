"""Stain normalization: recovered stains, fixed points, glass, blank tiles, records of scans, refusals, old stores."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from data.histology import STAINS, tile
from data.stores import PLAIN, fill_store, volume

from medssl.data.store import stains
from medssl.data.store.preprocess import check, prepare
from medssl.data.store.store import preprocess_from
from medssl.types import Preprocess, StainRule, UserError

MACENKO, REINHARD = StainRule("macenko"), StainRule("reinhard")
OTHER = np.array([[0.66, 0.68, 0.32], [0.25, 0.88, 0.41]])  # stains of another scanner
OTHER /= np.linalg.norm(OTHER, axis=1, keepdims=True)
RULES = pytest.mark.parametrize("rule", [MACENKO, REINHARD], ids=lambda rule: rule.method)


def basis(fitted):
    return np.array(fitted.numbers[:6]).reshape(2, 3)


@pytest.mark.parametrize("seed", range(3))
def test_macenko_recovers_the_stains_of_a_mixture_with_noise(seed):
    fitted = stains.fit(tile(seed, 128), MACENKO)
    found = basis(fitted)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    assert found[0, 0] > found[1, 0]  # hematoxylin first: it takes more of red
    assert (np.einsum("sc,sc->s", found, STAINS) >= 0.95).all()


def test_the_order_of_pixels_and_the_strength_do_not_change_the_stains():
    image = tile(1, 128, noise=0)
    mixed = image.reshape(3, -1)[:, np.random.default_rng(0).permutation(128 * 128)]
    assert np.allclose(stains.fit(image, MACENKO).numbers, stains.fit(mixed, MACENKO).numbers)
    strong = stains.fit(tile(1, 128, noise=0, strength=1.5), MACENKO)
    assert (np.einsum("sc,sc->s", basis(strong), basis(stains.fit(image, MACENKO))) > 0.999).all()
    assert strong.numbers[6] == pytest.approx(1.5 * stains.fit(image, MACENKO).numbers[6], rel=0.03)


@RULES
@pytest.mark.parametrize("glass", [0, 30])
def test_normalizing_to_its_own_fit_changes_an_image_by_less_than_two_gray_values(rule, glass):
    image = tile(2, glass=glass)
    fitted = stains.fit(image, rule)
    same = stains.normalize(image, fitted, replace(rule, reference=fitted.numbers))
    assert np.abs(same.astype(float) - image).max() < 2


@RULES
def test_normalized_images_have_the_numbers_of_the_reference(rule):
    reference = stains.fit(tile(4, 128, noise=1.0, stains=OTHER, strength=0.8), rule).numbers
    rule = replace(rule, reference=reference)
    image = tile(3, 128, noise=1.0)
    before = np.array(stains.fit(image, rule).numbers)
    after = np.array(stains.fit(stains.normalize(image, stains.fit(image, rule), rule), rule).numbers)
    assert np.abs(after - reference).max() < 0.3 * np.abs(before - reference).max()


def test_macenko_without_a_reference_takes_the_published_one():
    image = tile(3, 128, noise=1.0, strength=0.7)
    changed = stains.normalize(image, stains.fit(image, MACENKO), MACENKO)
    assert np.allclose(stains.fit(changed, MACENKO).numbers, stains.REFERENCES["macenko"], atol=0.05)


def test_two_scanners_become_alike():
    pair = [tile(4, 128, noise=1.0), tile(4, 128, noise=1.0, stains=OTHER)]
    distance = np.abs(pair[0].astype(float) - pair[1]).mean()
    for rule in (MACENKO, REINHARD):
        one, two = (stains.normalize(image, stains.fit(image, rule), rule) for image in pair)
        assert np.abs(one.astype(float) - two).mean() < 0.5 * distance


@RULES
def test_glass_stays_nearly_white_and_what_is_no_tissue_is_left_as_it_is(rule):
    image = tile(5, glass=40, noise=0)
    changed = stains.normalize(image, stains.fit(image, rule), rule)
    assert changed[:, :40].min() >= 235
    for blank in (np.full((3, 32, 32), 255, np.uint8), np.full((3, 32, 32), 241, np.uint8)):
        assert stains.fit(blank, rule) is None
        assert stains.normalize(blank, None, rule) is blank
    assert stains.fit(np.zeros((3, 32, 32), np.uint8), rule) is None  # black everywhere
    assert stains.fit(image[:, 40:44, :10], rule) is None  # too few pixels


def test_a_third_color_is_kept():
    image = tile(5, noise=0)
    image[:, :3, :3] = np.array([20, 40, 220], np.uint8)[:, None, None]  # blue pen
    rule = replace(MACENKO, reference=stains.fit(image, MACENKO).numbers)
    same = stains.normalize(image, stains.fit(image, MACENKO), rule)
    assert np.abs(same[:, :3, :3].astype(int) - image[:, :3, :3]).max() < 2


def test_one_stain_alone_is_not_taken_apart():
    amounts = np.linspace(0.2, 1.5, 4096)
    colors = 240 * np.exp(-STAINS[0][:, None] * amounts)
    assert stains.fit(np.rint(colors).astype(np.uint8).reshape(3, 64, 64), MACENKO) is None


# --- in a store


@RULES
def test_a_store_holds_normalized_scans_and_their_fits(tmp_path, monkeypatch, rule):
    pictures = {"a": tile(6), "b": tile(7), "blank": np.full((3, 96, 96), 255, np.uint8)}
    rules = replace(PLAIN, stain=rule)
    volumes = {name: volume(image) for name, image in pictures.items()}
    store = fill_store(tmp_path / "store", volumes, monkeypatch, preprocess=rules, domain="rgb")
    assert store.preprocess == rules
    with closing(sqlite3.connect(tmp_path / "store/records.sqlite")) as connection:
        details = dict(connection.execute("SELECT scan_id, details FROM scans"))
    for number in range(len(store)):
        name = store.scan_id(number)
        fitted, recorded = stains.fit(pictures[name], rule), json.loads(details[name]).get("stain")
        expected = stains.normalize(pictures[name], fitted, rule)
        assert np.array_equal(store.read(number, (0, 0), (96, 96)), expected)
        if fitted is None:
            assert name == "blank"
            assert recorded is None
        else:
            assert recorded == {"method": rule.method, "numbers": pytest.approx(fitted.numbers)}


def test_digests_of_stores_without_normalization_stay():
    assert Preprocess().digest() == Preprocess(stain=StainRule("none", (1.0,))).digest()
    digests = {Preprocess(stain=rule).digest() for rule in (StainRule(), MACENKO, REINHARD)}
    assert len(digests) == 3
    data = json.loads(json.dumps(dataclasses.asdict(Preprocess(stain=StainRule("reinhard", (1.0,) * 6)))))
    assert preprocess_from(data).stain == StainRule("reinhard", (1.0,) * 6)
    del data["stain"]
    assert preprocess_from(data) == Preprocess()


@pytest.mark.parametrize(
    ("image", "domain"),
    [
        (np.zeros((1, 8, 8), np.uint8), "gray"),
        (np.zeros((3, 8, 8), np.uint8), "gray"),
        (np.zeros((3, 8, 8), np.int16), "rgb"),
        (np.zeros((1, 8, 8, 8), np.int16), "hu"),
    ],
)
def test_scans_without_colors_are_refused(image, domain):
    message = r"preprocess\.stain\.method: normalizes color images of 8 bits, and the scan is none \(got 'macenko'\)"
    with pytest.raises(UserError, match=message):
        prepare(volume(image), replace(PLAIN, stain=MACENKO), domain=domain)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (StainRule("macenko", (0.5, 0.5)), r"got \[0\.5, 0\.5\]; expected 8 finite numbers, the last 2 above 0"),
        (StainRule("macenko", (0.5,) * 7 + (0.0,)), "expected 8 finite numbers, the last 2 above 0"),
        (StainRule("reinhard", (float("nan"),) * 6), "expected 6 finite numbers, the last 3 above 0"),
    ],
)
def test_references_that_cannot_be_are_refused(rule, words):
    with pytest.raises(UserError, match=rf"^preprocess\.stain\.reference: is no reference of colors \(.*{words}"):
        check(replace(PLAIN, stain=rule))


def test_whatever_the_colors_the_result_is_finite_and_a_picture():
    generator = np.random.default_rng(0)
    for side in (1, 3, 40):
        image = generator.integers(0, 256, (3, side, side)).astype(np.uint8)
        for rule in (MACENKO, REINHARD):
            changed = stains.normalize(image, stains.fit(image, rule), rule)
            assert changed.dtype == np.uint8
            assert changed.shape == image.shape
