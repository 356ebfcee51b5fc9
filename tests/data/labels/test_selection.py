"""Which labeled scans are learned from: subjects whole, few among many, classes in turn, one line for bad input."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from data.stores import fill_store, numbered, volume

from medssl.data.labels.kinds.classes import class_number
from medssl.data.labels.selection import few, how_many, labeled_scans, schema_of
from medssl.types import LabelSchema, UserError

KINDS = ("benign", "benign", "benign", "benign", "benign", "malignant", "malignant", "normal")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """24 images of 12 subjects (two each) with a class, and two without."""
    volumes = {f"scan{n:02d}": volume(numbered((8, 8), seed=n)) for n in range(26)}
    return fill_store(
        tmp_path / "images", volumes, monkeypatch,
        subject=lambda name: f"subject{int(name[4:]) // 2:02d}",
        values=lambda name: () if int(name[4:]) >= 24 else (("kind", KINDS[int(name[4:]) // 2 % len(KINDS)]),),
    )  # fmt: skip


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Six volumes, four of them with a mask, and a class map."""
    label = np.zeros((1, 6, 6, 6), np.uint8)
    volumes = {f"scan{n}": volume(numbered((6, 6, 6), seed=n), label=label if n < 4 else None) for n in range(6)}
    store = fill_store(tmp_path / "masks", volumes, monkeypatch)
    store.schema = LabelSchema("mask", ((0, "background"), (3, "tumour")))
    return store


def test_classes_of_a_value_are_sorted_over_all_splits(images):
    schema = schema_of(images, "kind")
    assert schema == LabelSchema("kind", ((0, "benign"), (1, "malignant"), (2, "normal")))


def test_only_scans_with_the_label_count(images, masks):
    assert len(labeled_scans(images, 2, "train", schema_of(images, "kind"))) == 24
    found = labeled_scans(masks, 3, "train", schema_of(masks, "mask"))
    assert [masks.scan_id(number) for number in found] == ["scan0", "scan1", "scan2", "scan3"]


@pytest.mark.parametrize("seed", range(5))
def test_subjects_come_whole_and_fewer_are_among_more(images, seed):
    schema = schema_of(images, "kind")
    scans = labeled_scans(images, 2, "train", schema)
    chosen = [few(images, scans, schema, subjects=count, seed=seed) for count in range(2, 13)]
    for count, picked in enumerate(chosen, start=2):
        assert len(images.distinct_subjects(picked)) == count
        assert len(picked) == 2 * count  # both images of each
    assert all(set(a) < set(b) for a, b in pairwise(chosen))
    assert chosen[-1] == few(images, scans, schema, subjects=None, seed=seed) == scans


@pytest.mark.parametrize("seed", range(5))
def test_classes_take_turns(images, seed):
    schema = schema_of(images, "kind")
    scans = labeled_scans(images, 2, "train", schema)
    for count, expected in ((3, {0: 2, 1: 2, 2: 2}), (6, {0: 6, 1: 4, 2: 2})):  # one subject is normal, two malignant
        picked = few(images, scans, schema, subjects=count, seed=seed)
        assert Counter(class_number(images.values(number), schema) for number in picked) == expected


def test_another_seed_chooses_others(images):
    schema = schema_of(images, "kind")
    scans = labeled_scans(images, 2, "train", schema)
    assert len({few(images, scans, schema, subjects=4, seed=seed) for seed in range(8)}) > 1


@pytest.mark.parametrize(("asked", "number"), [(3, 3), (0.25, 3), (0.3, 4), (0.99, 12), (0.05, 1), (None, 12)])
def test_numbers_and_shares_of_subjects(asked, number):
    assert how_many(asked, 12) == number


@pytest.mark.parametrize("asked", [0, -1, 1.0, 1.5, 0.0, 0.04, float("nan")])
def test_no_number_of_subjects(asked):
    with pytest.raises(UserError, match=rf"^labels: .* \(got {asked}[;)]"):
        how_many(asked, 12)


def test_too_many_subjects(images):
    schema = schema_of(images, "kind")
    scans = labeled_scans(images, 2, "train", schema)
    with pytest.raises(UserError, match=r"labels: there are 12 labeled subjects to choose from \(got 13\)"):
        few(images, scans, schema, subjects=13, seed=0)


def test_one_class_in_the_choice(images):
    schema = schema_of(images, "kind")
    benign = tuple(n for n in range(24) if images.values(n)["kind"] == "benign")
    with pytest.raises(UserError, match=r"all 4 labeled scans are 'benign': there is nothing to distinguish"):
        few(images, benign, schema, subjects=2, seed=0)


def test_one_class_in_the_store(images, masks):
    with pytest.raises(UserError, match=r"no scan of .* has a value 'grade' \(expected one of kind\)"):
        schema_of(images, "grade")
    masks.schema = LabelSchema("mask", ((0, "background"),))
    with pytest.raises(UserError, match=r"'mask' has one class only \(background\)"):
        schema_of(masks, "mask")


def test_masks_need_names(images, masks):
    with pytest.raises(UserError, match=r"has no masks \(got 'mask'\)\. Index with label\.masks"):
        schema_of(images, "mask")
    masks.schema = None
    with pytest.raises(UserError, match=r"no class names \(got 'mask'\)\. Index with label\.class_names"):
        schema_of(masks, "mask")


def test_split_without_a_label(tmp_path, monkeypatch, masks):
    plain = {f"scan{n}": volume(numbered((6, 6, 6), seed=n)) for n in range(3)}
    store = fill_store(tmp_path / "plain", plain, monkeypatch)
    with pytest.raises(UserError, match=r"none of the 3 scans of split 'train' .* is labeled with 'mask'"):
        labeled_scans(store, 3, "train", schema_of(masks, "mask"))


def test_value_outside_the_classes(images):
    schema = dataclasses.replace(schema_of(images, "kind"), classes=((0, "benign"), (1, "normal")))
    with pytest.raises(UserError, match=r"kind has the value 'malignant' \(expected one of the classes benign, no"):
        class_number({"kind": "malignant"}, schema)
    assert class_number({}, schema) == -1
