"""What a store says of its scans without their voxels, by hand from the scans that went in."""

from __future__ import annotations

import numpy as np
import pytest

from medssl.types import UserError
from tests.data.stores import fill_store, numbered, volume

SPLITS = {"a": "train", "b": "train", "c": "val", "d": "train", "e": "test"}
SUBJECTS = {"a": "zoe", "b": "ann", "c": "bob", "d": "zoe", "e": "eve"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four volumes (one with a mask, one with excluded voxels) and an image, of four subjects."""
    shape = (20, 21, 22)
    out = np.zeros((1, *shape), bool)
    out[0, :3] = True
    volumes = {
        "a": volume(numbered(shape), np.diag([1, 2, 3, 1.0]), numbered(shape, 1, np.uint8)),
        "b": volume(numbered(shape, seed=1), np.diag([1, 2, 5, 1.0])),
        "c": volume(numbered(shape, seed=2), np.diag([2, 2, 4, 1.0]), None, out),
        "d": volume(numbered((30, 31), seed=3)),
        "e": volume(numbered((12, 13, 14), seed=4), np.diag([9, 2, 4, 1.0])),
    }
    with pytest.MonkeyPatch.context() as patch:
        values = lambda scan_id: (("grade", "2"),) if scan_id == "d" else ()  # noqa: E731
        path = tmp_path_factory.mktemp("contents") / "store"
        return fill_store(path, volumes, patch, split=SPLITS.get, subject=SUBJECTS.get, values=values)


def test_scans_of_a_split_by_their_axes(store):
    ids = [store.scan_id(number) for number in range(5)]
    for axes in (2, 3):
        for split in ("train", "val", "test", None):
            wanted = [i for i in ids if (split is None or SPLITS[i] == split) and (axes == 2 or i != "d")]
            assert [store.scan_id(number) for number in store.scans(split, axes=axes).tolist()] == wanted
    assert store.splits == {"test": 1, "train": 3, "val": 1}
    assert store.axes == {2, 3}
    with pytest.raises(UserError, match=r"no scan with 3 axes in split 'dev' of .*: 1 'test', 3 'train', 1 'val'$"):
        store.scans("dev", axes=3)


def test_subjects_of_scans_and_of_splits(store):
    scans = [store.number(scan_id) for scan_id in ("d", "c", "a")]
    assert store.subject(scans[1]) == "bob"
    assert store.subjects(scans) == ("zoe", "bob", "zoe")
    assert store.distinct_subjects(scans) == ("bob", "zoe")
    first, second, third = store.subject_numbers(scans).tolist()
    assert first == third != second
    assert store.subjects_of_split("train") == ("ann", "zoe")
    assert store.subjects_of_split(None) == ("ann", "bob", "eve", "zoe")
    assert store.subjects_of_split("dev") == ()


def test_labels_and_excluded_voxels(store):
    numbers = {scan_id: store.number(scan_id) for scan_id in SPLITS}
    assert [scan_id for scan_id, number in numbers.items() if store.has_mask(number)] == ["a"]
    assert [scan_id for scan_id, number in numbers.items() if store.excluded(number)] == ["c"]
    assert store.has_masks
    assert store.has_excluded
    assert store.scans_with_values == (numbers["d"],)
    assert store.values(numbers["d"]) == {"grade": "2"}
    assert store.values(numbers["a"]) == {}


def test_spacing_is_the_median_of_the_volumes(store):
    assert store.spacing(3) == (1.5, 2.0, 4.0)
    assert store.spacing(2) is None


def test_digest_follows_voxels_and_splits(tmp_path, monkeypatch):
    def digest(name, seed=0, split="train", source="v1"):
        held = {"one": volume(numbered((8, 9, 10), seed=seed))}
        return fill_store(tmp_path / name, held, monkeypatch, split=split, source=source).digest

    first = digest("first")
    assert digest("again", source="v2") == first  # the file was touched, its voxels are the same
    assert len({first, digest("voxels", seed=1), digest("split", split="val")}) == 3
