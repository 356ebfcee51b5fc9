"""Folders of bags: written bag by bag, checked, read, drawn from."""

from __future__ import annotations

import dataclasses
import stat

import numpy as np
import pytest
import torch
from data.bags.made import bag, facts, make_bags

from medssl.data.bags.batches import BagSampling, bag_batches, whole_batch
from medssl.data.bags.description import FOLDER, BagRecord, is_bags
from medssl.data.bags.files import Bag, read_bag
from medssl.data.bags.store import BagStore
from medssl.data.bags.writer import BagWriter, write_bag
from medssl.data.formats.base import FormatError
from medssl.data.labels.selection import few, labeled_scans, schema_of
from medssl.types import Sampling, UserError


@pytest.mark.parametrize("layout", ["safetensors", "hdf5"])
def test_a_bag_is_read_as_it_was_written_and_names_nobody(tmp_path, layout):
    made = bag()
    write_bag(tmp_path / "bags", facts(), BagRecord("s1", "p1", "train", {"tumor": "yes"}), made, layout=layout)
    store = BagStore.open(tmp_path / "bags")
    read = store.bag(0)
    assert np.array_equal(read.features, made.features)
    assert np.array_equal(read.coords, made.coords)
    assert read.coords.dtype == np.int64
    assert (store.scan_id(0), store.subject(0), store.values(0), store.tiles(0)) == ("s1", "p1", {"tumor": "yes"}, 5)
    assert store.facts == facts()
    for path in [tmp_path / "bags", *(tmp_path / "bags").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert path.is_dir() or b"tmp" not in path.read_bytes()
        assert mode == 0o700 or not path.is_dir()


def test_hdf5_files_are_those_of_trident(tmp_path):
    import h5py

    wide = dataclasses.replace(bag(), facts={"level0_size": [4000, 3000], "tile_level0": 192})
    write_bag(tmp_path / "bags", facts(), BagRecord("s1", "p1"), wide, layout="hdf5")
    with h5py.File(tmp_path / "bags" / FOLDER / "s1.h5") as file:
        assert file["features"].shape == (5, 8)
        assert file["features"].maxshape == (None, 8)
        assert file["coords"].dtype == np.int64
        attributes = dict(file["coords"].attrs)
    assert attributes["patch_size"] == 96
    assert attributes["patch_size_level0"] == 192
    assert attributes["level0_magnification"] == "None"
    assert (attributes["level0_width"], attributes["level0_height"], attributes["savetodir"]) == (4000, 3000, "")


def test_writing_continues_where_it_was_stopped(tmp_path):
    path = make_bags(tmp_path / "bags", 4)
    former = (path / FOLDER / "s001.safetensors").stat().st_mtime_ns
    with BagWriter(path, facts()) as writer:
        assert writer.has("s001")
        assert not writer.has("s777")
        (path / FOLDER / "s002.safetensors").unlink()
        assert not writer.has("s002")
        writer.describe(BagRecord("s001", "p000", "test", {"tumor": "no"}))
    assert BagStore(path).records[1].split == "test"
    assert (path / FOLDER / "s001.safetensors").stat().st_mtime_ns == former


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "other"}, r"holds features of another encoder \(toy\)"),
        ({"features": 16}, "made in another way: features 8 there, 16 here"),
        ({"tile_px": 224}, "tile_px 96 there, 224 here"),
        ({"unit": "um"}, "unit level0 there, um here"),
    ],
)
def test_bags_of_other_encoders_and_tiles_are_not_mixed(tmp_path, changes, message):
    path = make_bags(tmp_path / "bags", 2)
    with pytest.raises(UserError, match=message):
        BagWriter(path, facts(**changes))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Bag(np.zeros((0, 8), np.float32), np.zeros((0, 2))), "bag s1: an empty bag: the slide has no tiles"),
        (Bag(np.full((3, 8), np.nan, np.float32), np.zeros((3, 2))), "3 of 3 tiles have features that are not finite"),
        (Bag(np.zeros((3, 8), np.float32), np.zeros((2, 2))), r"3 rows of features, and coordinates of shape \(2, 2\)"),
        (Bag(np.zeros((3, 9), np.float32), np.zeros((3, 2))), "9 features a tile, the other bags have 8: another enc"),
        (Bag(np.zeros((3, 8), int), np.zeros((3, 2))), r"features of shape \(3, 8\) and type int64"),
        (Bag(np.zeros((3, 8), np.float32), np.full((3, 2), np.nan)), "some coordinates are not finite"),
        (
            Bag(np.zeros((1, 8), np.float32), np.array([[900, 5]]), facts={"level0_size": [800, 800]}),
            r"1 of 1 tiles lie outside the slide of 800 x 800 pixels \(first: x 900, y 5\): the coordinates are of ano",
        ),
        (Bag(np.zeros((1, 8), np.float32), np.zeros((1, 2)), "um"), "coordinates in um, the other bags have level0"),
    ],
)
def test_bags_that_cannot_be_used_are_refused(tmp_path, broken, message):
    with BagWriter(tmp_path / "bags", facts()) as writer, pytest.raises(FormatError, match=message):
        writer.write(BagRecord("s1", "p1"), broken)
    assert not list((tmp_path / "bags" / FOLDER).iterdir())


def test_a_bag_of_one_tile_is_a_bag(tmp_path):
    write_bag(tmp_path / "bags", facts(), BagRecord("s1", "p1"), bag(1))
    store = BagStore.open(tmp_path / "bags")
    batch = whole_batch(store, 0)
    assert batch.mask.tolist() == [[True]]
    assert batch.features.shape == (1, 1, 8)


@pytest.mark.parametrize("layout", ["safetensors", "hdf5"])
def test_damaged_files_are_named_on_one_line(tmp_path, layout):
    with BagWriter(tmp_path / "bags", facts(), layout=layout) as writer:
        writer.write(BagRecord("s1", "p1"), bag(200))
    file = next((tmp_path / "bags" / FOLDER).iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"^bag s1: .*damaged or no") as error:
        BagStore.open(tmp_path / "bags").bag(0)
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(FormatError, match=r"bag s1: there is no such file"):
        BagStore.open(tmp_path / "bags").bag(0)


def test_bytes_of_another_bag_are_noticed(tmp_path):
    path = make_bags(tmp_path / "bags", 4)
    other = path / FOLDER / "s001.safetensors"
    other.write_bytes((path / FOLDER / "s000.safetensors").read_bytes())
    with pytest.raises(FormatError, match=r"bag s001: its bytes are not those that were written"):
        BagStore.open(path).bag(1)


def test_folders_that_are_no_bags_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no folder of bags: it has no bags.json"):
        BagStore.open(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"a folder with other files: give an empty or a new one"):
        BagWriter(tmp_path, facts())
    assert not is_bags(tmp_path)
    empty = tmp_path / "empty"
    BagWriter(empty, facts()).connection.close()
    with pytest.raises(UserError, match=r"holds no bag: making them was stopped"):
        BagStore.open(empty)
    (empty / "bags.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no folder of bags"):
        BagStore.open(empty)


def test_two_slides_of_a_patient_in_two_splits_are_refused(tmp_path):
    with BagWriter(tmp_path / "bags", facts()) as writer:
        writer.write(BagRecord("s1", "p1", "train"), bag())
        writer.write(BagRecord("s2", "p1", "test"), bag(seed=1))
    with pytest.raises(UserError, match=r"1 of 1 subjects have slides in two splits \(first: test and train\)"):
        BagStore.open(tmp_path / "bags")


def test_a_table_cannot_name_files_elsewhere(tmp_path):
    path = make_bags(tmp_path / "bags", 2)
    with BagWriter(path, facts()) as writer:
        writer.connection.execute("UPDATE bags SET file = '../s000.safetensors'")
        writer.connection.commit()
    with pytest.raises(UserError, match=r"names a file '\.\./s000.safetensors', which medssl does not write"):
        BagStore.open(path)


def test_subjects_and_labels_are_chosen_as_of_scans(tmp_path):
    store = BagStore.open(make_bags(tmp_path / "bags"))
    schema = schema_of(store, "tumor")
    assert schema.classes == ((0, "no"), (1, "yes"))
    pool = labeled_scans(store, 1, "train", schema)
    chosen = few(store, pool, schema, subjects=2, seed=0)
    assert len(chosen) == 4  # both slides of each subject
    assert len(store.distinct_subjects(chosen)) == 2
    assert {store.values(number)["tumor"] for number in chosen} == {"no", "yes"}
    assert set(chosen) <= set(few(store, pool, schema, subjects=3, seed=0))
    with pytest.raises(UserError, match=r"has 2 axes, and a bag has one"):
        store.scans("train", axes=2)
    with pytest.raises(UserError, match=r"no bag in split 'other' .*; bags by split: 4 'test', 12 'train', 4 'val'"):
        store.scans("other")


def test_batches_are_functions_of_seed_and_sample(tmp_path):
    store = BagStore.open(make_bags(tmp_path / "bags"))
    how = BagSampling(tuple(range(12)), None, 4, 3, 3, Sampling())
    batches = bag_batches(store, how, 0)
    first = [next(batches) for _ in range(3)]
    later = next(bag_batches(store, how, 2))
    assert later.origin.scan_ids == first[2].origin.scan_ids
    assert torch.equal(later.features, first[2].features)
    assert first[0].mask.sum(1).max() == 3  # tiles are drawn
    halves = [next(bag_batches(store, dataclasses.replace(how, batch_size=2), 0, rank, 2)) for rank in (0, 1)]
    ids = [name for half in halves for name in half.origin.scan_ids]
    assert ids == list(first[0].origin.scan_ids)
    assert torch.equal(torch.cat([half.features[:, :3] for half in halves]), first[0].features)
    seen = {name for batch in first for name in batch.origin.scan_ids}
    assert len(seen) == 12  # every bag once in a pass


def test_few_bags_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("medssl.data.bags.store.HELD_BYTES", 600)
    store = BagStore.open(make_bags(tmp_path / "bags"))
    for number in range(20):
        store.bag(number)
    assert sum(held.features.nbytes for held in store._held.values()) <= 600
    assert len(store._held) >= 1


def test_half_precision_stays(tmp_path):
    half = Bag(np.ones((3, 8), np.float16), np.zeros((3, 2), np.int32))
    write_bag(tmp_path / "bags", facts(), BagRecord("s1", "p1"), half)
    store = BagStore.open(tmp_path / "bags")
    assert store.bag(0).features.dtype == np.float16
    assert read_bag(tmp_path / "bags" / FOLDER / "s1.safetensors").coords.dtype == np.int64
