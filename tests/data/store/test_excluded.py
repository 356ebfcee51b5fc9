"""Excluded voxels in a store: marked by one code, known by the table, False in what batches may be scored on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
from data.stores import PLAIN, fill_store, numbered, scan_of, volume

from medssl.data.loading.class_positions import Places
from medssl.data.loading.loader import make_loader
from medssl.data.store import coding
from medssl.data.store.naming import scan_key
from medssl.data.store.records import COLUMNS, MARKED
from medssl.types import Geometry, LabelSchema, Part, Sampling, ViewPlan, ViewSpec
from medssl.views.plan import make_batch

AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
SHAPES = {"a": (70, 50, 30), "b": (24, 60, 40), "plain": (40, 41, 42)}


def mask_of(name: str) -> np.ndarray:
    generator = np.random.default_rng(ord(name[0]))
    mask = generator.random((1, *SHAPES[name])) > 0.9
    mask[0, :9, :, 5:20] = True
    return mask


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two scans with excluded voxels, whose labels are 1 there, and one that holds their code as a value."""
    held = {
        name: volume(numbered(SHAPES[name]), AFFINE, mask_of(name).astype(np.uint8), mask_of(name)) for name in "ab"
    }
    plain = numbered(SHAPES["plain"]) - 4
    plain[0, :20] = coding.EXCLUDED
    held["plain"] = volume(plain, AFFINE)
    with pytest.MonkeyPatch.context() as patch:
        return fill_store(tmp_path_factory.mktemp("excluded") / "store", held, patch)


def batches(store, count, size, *, workers=0, sampling=None):
    plan = ViewPlan((ViewSpec(size),), sampling or Sampling())
    options = {"batch_size": 3, "seed": 5, "workers": workers, "with_labels": True}
    return list(itertools.islice(make_loader(store, plan=plan, read_size=size, **options), count))


def test_the_table_says_which_scans_have_excluded_voxels(store):
    assert [bool(x) for x in store.records.facts["excluded"]] == [True, True, False]
    assert [bool(x) for x in store.records.facts["wide"]] == [True] * 3
    with closing(sqlite3.connect(store.path / "records.sqlite")) as connection:
        kinds = dict(connection.execute("SELECT scan_id, dtype FROM scans"))
        names = [row[1] for row in connection.execute("PRAGMA table_info(scans)")]
    assert kinds == {"a": MARKED, "b": MARKED, "plain": "int16"}
    assert MARKED == "int16 excluded"
    # the columns of stores that were made before: they are read as they are
    assert tuple(names) == COLUMNS == (
        "scan_id", "key", "subject_id", "study_id", "dataset", "modality", "domain", "split", "scores", "shape",
        "affine", "dtype", "label_dtype", "intensity", "fill", "cells", "pack", "first", "nbytes", "label_first",
        "label_nbytes", "pixels", "details",
    )  # fmt: skip


def test_stored_voxels_are_exact_and_marked_where_they_are_excluded(store):
    for name in "ab":
        number = store.number(name)
        codes = store.read(number, (-2, 0, 3), (30, 40, 20))
        inside, mask = codes[:, 2:], mask_of(name)[:, :28, :40, 3:23]
        inside = inside[:, : mask.shape[1]]
        np.testing.assert_array_equal(inside == coding.EXCLUDED, mask)
        values = coding.decode(inside, store.intensity(number), normalize=False)
        truth = numbered(SHAPES[name])[:, :28, :40, 3:23]
        np.testing.assert_array_equal(values[~mask], truth[~mask])
        assert set(np.unique(codes[:, :2])) == {store.records.fill(number)[0]}
        np.testing.assert_array_equal(store.scored(number, inside), ~mask)
    number = store.number("plain")
    codes = store.read(number, (0, 0, 0), SHAPES["plain"])
    assert (codes == coding.EXCLUDED).any()
    assert store.scored(number, codes).all()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("size", "axis"), [((32, 32, 16), 2), ((16, 24), 0), ((16, 24), 1), ((16, 24), 2)])
def test_batches_are_scored_where_voxels_are_not_excluded(store, workers, size, axis):
    """The labels of the excluded voxels come by a road of their own."""
    seen = set()
    for crops in batches(store, 4, size, workers=workers, sampling=Sampling(slice_axis=axis)):
        assert crops.scored.dtype == torch.bool
        assert crops.scored.shape == crops.labels.shape == (3, 1, *size)
        for row, name in enumerate(crops.origin.scan_ids):
            expected = crops.labels[row] != 1 if name != "plain" else torch.ones_like(crops.scored[row])
            assert torch.equal(crops.scored[row], expected), name
            seen.add((name, bool(expected.all())))
    assert {("a", False), ("plain", True)} <= seen


def test_workers_give_equal_loss_masks(store):
    for one, other in zip(batches(store, 6, (16, 24)), batches(store, 6, (16, 24), workers=1), strict=True):
        assert torch.equal(one.scored, other.scored)
        assert torch.equal(one.image, other.image)


def test_a_store_without_excluded_voxels_sends_none(tmp_path, monkeypatch):
    store = fill_store(tmp_path / "store", {"a": volume(numbered((20, 20, 20)))}, monkeypatch)
    assert batches(store, 1, (8, 8, 8))[0].scored is None
    images = {"a": volume(numbered((20, 20), 1, np.uint8)), "b": volume(numbered((20, 20), 1, np.uint8))}
    images["b"] = dataclasses.replace(images["b"], excluded=numbered((20, 20)) > 2500)
    store = fill_store(tmp_path / "images", images, monkeypatch, split=lambda i: "val" if i == "b" else "train")
    plan = ViewPlan((ViewSpec((8, 8)),))
    options = {"batch_size": 2, "seed": 0, "workers": 0}
    (crops,) = itertools.islice(make_loader(store, plan=plan, read_size=(8, 8), split="train", **options), 1)
    assert crops.image.dtype == torch.uint8
    assert crops.scored.all()  # no such voxel in this split, but the batches of a store are alike


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_views_take_the_marks_along_and_labels_are_unknown_there(store, degrees):
    geometry = Geometry("all", (degrees,))
    plan = ViewPlan((ViewSpec((20, 18, 12), scale=(0.8, 1.2) if degrees else (1.0, 1.0), geometry=geometry),))
    loader = make_loader(store, plan=plan, read_size=(40, 40, 30), batch_size=4, seed=1, workers=0, with_labels=True)
    crops = next(iter(loader))
    batch = make_batch(crops, plan, seed=1, device="cpu")
    marks = dataclasses.replace(crops, labels=crops.scored.to(torch.int16), scored=None)
    carried = make_batch(marks, plan, seed=1, device="cpu").targets[0]  # what the nearest voxel of the crop says
    view = batch.views[0]
    assert torch.equal(view.scored, carried == 1)
    assert bool((view.valid & ~view.scored).any())
    assert bool((batch.targets[0][~view.scored] == -1).all())
    assert not bool((batch.targets[0] == 1).any())  # all labels of class 1 are excluded


def test_crops_are_not_drawn_around_excluded_labels(tmp_path, monkeypatch):
    label, mask = np.zeros((1, 30, 28, 26), np.uint8), np.zeros((1, 30, 28, 26), bool)
    label[0, 2:6, 3:7, 4:8] = 1
    label[0, 20:24, 3:7, 4:8] = 1
    label[0, 9, 9, 9] = 2
    mask[0, :12] = True
    store = fill_store(tmp_path / "store", {"a": volume(numbered((30, 28, 26)), None, label, mask)}, monkeypatch)
    store.schema = LabelSchema("mask", ((0, "background"), (1, "organ"), (2, "lesion")))
    (organ,) = Places(store).of(0)
    np.testing.assert_array_equal(organ, np.flatnonzero((label == 1) & ~mask))


def test_keys_and_content_know_the_mask(tmp_path, monkeypatch):
    def content(name, held):
        return int(fill_store(tmp_path / name, {"one": held}, monkeypatch).records.facts["content"][0])

    image, mask = numbered((12, 11, 10)) - 2000, numbered((12, 11, 10)) > 2800
    image[0, 0, 0, 0] = -32_767
    lowest = np.where(mask, -32_768, image).astype(np.int16)  # the same codes and numbers, with another meaning
    contents = [
        content("plain", volume(lowest)),
        content("masked", volume(image, None, None, mask)),
        content("more", volume(image, None, None, mask | (image < -1900))),
    ]
    assert len(set(contents)) == 3
    np.testing.assert_array_equal(
        *[fill_store(tmp_path / n, {}, monkeypatch).read(0, (0, 0, 0), (12, 11, 10)) for n in ("plain", "masked")]
    )
    scan = scan_of("one", volume(image))
    labels = dataclasses.replace(scan.labels, excluded=(Part("faces/one.nii"),))
    keys = {scan_key(scan, PLAIN, "chunked"), scan_key(dataclasses.replace(scan, labels=labels), PLAIN, "chunked")}
    labels = dataclasses.replace(scan.labels, mask=(Part("faces/one.nii"),))
    keys.add(scan_key(dataclasses.replace(scan, labels=labels), PLAIN, "chunked"))
    assert len(keys) == 3


def test_the_key_of_a_scan_without_exclusion_mask_is_unchanged():
    scan = scan_of("one", volume(np.zeros((1, 4, 4, 4), np.int16), None, np.zeros((1, 4, 4, 4), np.uint8)))
    parts = ["one", "v1", PLAIN.digest(), "chunked", 1, "one.label.nii#None"]
    assert scan_key(scan, PLAIN, "chunked") == hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
