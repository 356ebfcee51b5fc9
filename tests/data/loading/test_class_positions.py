"""Crops around labels: through a voxel of a class, classes evenly, whatever the workers; nothing without a class."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from data.stores import fill_store, numbered, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.loading import class_positions as places
from medssl.data.loading.class_positions import KEPT, PER_CLASS, Places
from medssl.data.loading.crops import region_at
from medssl.data.loading.loader import make_loader
from medssl.data.store.coding import foreground_cells
from medssl.types import LabelSchema, Sampling, UserError, ViewPlan, ViewSpec

SHAPES = {"a": (90, 70, 40), "b": (24, 90, 90), "c": (20, 20, 20), "d": (50, 40, 60), "e": (40, 40, 40)}
FEW = 7  # voxels of class 1 in scan "a"


def label_of(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Classes 1 (a few voxels, some in corners) and 2 (a block), 9 to ignore; "d" has neither, "e" no label."""
    label = np.zeros((1, *shape), np.uint8)
    label[0, :, : shape[1] // 2, 3] = 9
    if name == "d":
        return label
    label[0, 5:15, 5:15, 5:15] = 2
    generator = np.random.default_rng(ord(name))
    label[0, 0, 0, 0] = label[0, -1, -1, -1] = 1
    for place in generator.integers(16, shape, (FEW - 2, 3)):
        label[(0, *place)] = 1
    return None if name == "e" else label


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    held = {
        name: volume(numbered(shape, seed=k), np.diag([1, 1, 2, 1]), label_of(name, shape))
        for k, (name, shape) in enumerate(SHAPES.items())
    }
    with pytest.MonkeyPatch.context() as patch:
        made = fill_store(tmp_path_factory.mktemp("places") / "store", held, patch)
    made.schema = LabelSchema("mask", ((0, "background"), (1, "lesion"), (2, "organ"), (9, "unsure")), 9)
    return made


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    images = {}
    for name in "ab":
        label = np.zeros((1, 90, 70), np.uint8)
        label[0, 89, 69] = label[0, 0, 40] = label[0, 44, 3] = 4
        images[name] = volume(numbered((90, 70), seed=ord(name)), label=label)
    with pytest.MonkeyPatch.context() as patch:
        return fill_store(tmp_path_factory.mktemp("flat") / "store", images, patch)  # without a schema


def batches(store, count, size, *, labeled=1.0, seed=0, foreground=0.0, slice_axis=2, **options):
    plan = ViewPlan((ViewSpec(size),), Sampling(labeled=labeled, foreground=foreground, slice_axis=slice_axis))
    options = {"batch_size": 5, "workers": 0, "with_labels": True, "split": "train"} | options
    return list(itertools.islice(make_loader(store, plan=plan, read_size=size, seed=seed, **options), count))


def rows_with_a_class(crops):
    return [row for row, name in enumerate(crops.origin.scan_ids) if name not in "de"]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), first=st.integers(0, 10**6), n=st.sampled_from([2, 3]), axis=st.sampled_from([0, 1, 2]),
    size=st.lists(st.integers(17, 60), min_size=3, max_size=3),
)  # fmt: skip
def test_every_crop_holds_a_labeled_voxel_near_its_center(store, seed, first, n, axis, size):
    for crops in batches(store, 2, tuple(size[:n]), seed=seed, slice_axis=axis, first_batch=first):
        extent = torch.tensor(size[:n])
        for row in rows_with_a_class(crops):
            start, shape = crops.placement.start[row], crops.placement.source_shape[row]
            place = (crops.placement.shown[row] - start).long()
            assert crops.labels[row, 0][tuple(place)] in (1, 2)  # that slice, and inside
            off = place + 0.5 - extent / 2
            room = shape - extent
            assert bool((off[(room > 0) & (start > 0)] >= -8).all())  # half a block
            assert bool((off[(room > 0) & (start < room)] <= 8).all())


def test_images_too(flat):
    found = set()
    for crops in batches(flat, 8, (20, 30)):
        for row, shown in enumerate(crops.placement.shown.long().tolist()):
            place = torch.tensor(shown) - crops.placement.start[row]
            assert crops.labels[row, 0][tuple(place)] == 4
            found.add(tuple(shown))
    assert found == {(89, 69), (0, 40), (44, 3)}


def test_classes_come_evenly_and_then_their_voxels(store):
    held, number = Places(store), store.number("a")
    label = store.read_label(number, (0, 0, 0), SHAPES["a"])[0]
    drawn = [held.draw(0, sample, number, 1.0) for sample in range(1200)]
    lesion = [place for place in drawn if label[place] == 1]
    assert all(label[place] in (1, 2) for place in drawn)
    assert abs(len(lesion) - 600) < 5 * np.sqrt(300)
    assert set(lesion) == {tuple(place) for place in np.argwhere(label == 1).tolist()}
    assert len(set(drawn)) > PER_CLASS * 0.6  # of the 1,000 voxels of the block some 512 are known


@pytest.mark.parametrize("share", [0.0, 0.33, 1.0])
def test_the_share_is_met(store, share):
    held = Places(store)
    hits = [held.draw(3, sample, store.number("a"), share) is not None for sample in range(900)]
    assert abs(sum(hits) - 900 * share) <= 1
    assert all(abs(sum(hits[first : first + 6]) - 6 * share) <= 1 for first in range(0, 900, 6))  # in each batch


def test_one_of_two_crops_of_every_batch_lies_around_a_label(store):
    for crops in batches(store, 8, (16, 16, 16), labeled=0.5, batch_size=2, split="train"):
        around = ~crops.placement.shown.isnan().all(1) if crops.placement.shown is not None else torch.zeros(2).bool()
        assert around.tolist() in ([False, True], [False, False])
        assert around[1] or crops.origin.scan_ids[1] in "de"  # scans without a class


def test_a_scan_without_such_a_class_gives_ordinary_crops(store):
    held = Places(store)
    assert held.of(store.number("d")) == held.of(store.number("e")) == ()
    for labeled, plain in zip(
        batches(store, 6, (16, 16, 16)), batches(store, 6, (16, 16, 16), labeled=0.0), strict=True
    ):
        assert plain.placement.shown is None
        for row, name in enumerate(labeled.origin.scan_ids):
            if name in "de":
                assert bool(labeled.placement.shown[row].isnan().all())
                assert torch.equal(labeled.image[row], plain.image[row])
    assert {name for crops in batches(store, 6, (16, 16, 16)) for name in crops.origin.scan_ids} == set(SHAPES)


def test_the_rest_is_shared_with_the_foreground():
    mask = np.zeros((256, 256, 256), bool)
    mask[250:, 250:, 250:] = True
    cells = foreground_cells(mask)
    sampling, shape, size = Sampling(labeled=0.5, foreground=0.25), (256, 256, 256), (16, 16, 16)
    starts = [region_at(0, sample, shape, size, sampling, cells=cells) for sample in range(800)]
    hits = sum(min(start) >= 224 for start in starts)  # half of those that no label claims
    assert abs(hits - 400) < 5 * np.sqrt(200)
    assert region_at(0, 1, shape, size, sampling, cells=cells, around=(5, 100, 255)) == (0, 96, 240)


def test_workers_and_processes_change_nothing(store):
    whole = batches(store, 4, (24, 24, 24), labeled=0.5, batch_size=4, first_batch=3)
    for other in (
        batches(store, 4, (24, 24, 24), labeled=0.5, batch_size=4, first_batch=3, workers=2),
        [
            *batches(store, 3, (24, 24, 24), labeled=0.5, batch_size=4, first_batch=3),
            *batches(store, 1, (24, 24, 24), labeled=0.5, batch_size=4, first_batch=6),
        ],
    ):
        for a, b in zip(whole, other, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.placement.shown.nan_to_num(-1), b.placement.shown.nan_to_num(-1))
    half = batches(store, 1, (24, 24, 24), labeled=0.5, batch_size=2, first_batch=3, rank=1, world_size=2)[0]
    assert torch.equal(half.image, whole[0].image[2:])


def test_what_is_kept_is_bounded_and_the_same_when_read_again(store, monkeypatch):
    few, all_of_it = Places(store, byte_limit=500), Places(store, KEPT)
    looks = []
    monkeypatch.setattr(Places, "_look", lambda self, n, look=Places._look: looks.append(n) or look(self, n))
    numbers = [store.number(name) for name in "abcab"]
    for sample, number in enumerate(numbers):
        assert few.draw(1, sample, number, 1.0) == all_of_it.draw(1, sample, number, 1.0)
        assert few.bytes == sum(own.nbytes for own in few.of(number))
    assert sorted(looks) == sorted(numbers + numbers[:3])  # the one reads again, the other does not
    assert max(len(own) for number in numbers for own in all_of_it.of(number)) == PER_CLASS
    assert pickle.loads(pickle.dumps(few)).draw(1, 0, numbers[0], 1.0) == few.draw(1, 0, numbers[0], 1.0)


def test_many_places_are_thinned_out_evenly():
    chosen = places._spread(np.arange(100, 100 + 64 * PER_CLASS), np.random.default_rng(0))
    assert np.array_equal((chosen - 100) // 64, np.arange(PER_CLASS))
    assert len(set((chosen % 64).tolist())) > 50  # not always the same column of a row


def test_where_there_are_no_masks_it_is_refused(store):
    message = r"data.sampling.labeled is 0.5, but no masks are read here \(pretraining, values .*: set it to 0"
    with pytest.raises(UserError, match=message):
        batches(store, 1, (16, 16, 16), labeled=0.5, with_labels=False)
