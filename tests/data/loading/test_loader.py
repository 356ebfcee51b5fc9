"""Loader: the same samples whatever the processes, the workers and where a run resumed."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from data.stores import fill_store, numbered, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.loading.loader import make_loader, small_scans
from medssl.data.store.coding import decode
from medssl.data.store.store import Store
from medssl.ops.coordinates import part_along
from medssl.types import Geometry, Sampling, UserError, ViewPlan, ViewSpec
from medssl.views.plan import make_batch, read_size

AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    shapes = {"a": (90, 70, 40), "b": (24, 90, 90), "c": (40, 41, 42), "d": (20, 20, 20), "e": (33, 65, 17)}
    with pytest.MonkeyPatch.context() as patch:
        return fill_store(
            tmp_path_factory.mktemp("loader") / "store",
            {
                name: volume(numbered(shape, seed=k), AFFINE, numbered(shape, 1, np.uint8, k) if name < "d" else None)
                for k, (name, shape) in enumerate(shapes.items())
            },
            patch,
            subject=lambda i: "ab" if i in "ab" else i,
            split=lambda i: "val" if i == "e" else "train",
            values=lambda i: (("age", "40"),) if i == "a" else (),
        )


def batches(store, count, *, size=(32, 32, 16), sampling=None, **options):
    plan = ViewPlan((ViewSpec(size),), sampling or Sampling())
    options = {"batch_size": 3, "seed": 5, "workers": 0, **options}
    return list(itertools.islice(make_loader(store, plan=plan, read_size=size, **options), count))


def same(left, right):
    assert left.origin.samples == right.origin.samples
    assert left.origin.scan_ids == right.origin.scan_ids
    for a, b in (
        (left.image, right.image),
        (left.intensity, right.intensity),
        (left.placement.start, right.placement.start),
        (left.placement.world_affine, right.placement.world_affine),
        (left.origin.positions, right.origin.positions),
        (left.origin.along, right.origin.along),
        (left.labels, right.labels),
    ):
        assert (a is None and b is None) or torch.equal(a, b)


def test_crops_are_what_the_store_holds(store):
    for crops in batches(store, 6, with_labels=True):
        assert crops.image.dtype == torch.int16
        assert crops.labels.dtype == torch.int16
        assert crops.image.shape == (3, 1, 32, 32, 16)
        for row, scan_id in enumerate(crops.origin.scan_ids):
            number = store.number(scan_id)
            start = tuple(crops.placement.start[row].tolist())
            np.testing.assert_array_equal(crops.image[row], store.read(number, start, (32, 32, 16)))
            np.testing.assert_array_equal(crops.labels[row], store.read_label(number, start, (32, 32, 16)))
            assert tuple(crops.placement.source_shape[row].tolist()) == store.shape(number)
            np.testing.assert_array_equal(crops.intensity[row], store.intensity(number))
            np.testing.assert_allclose(crops.placement.world_affine[row], AFFINE)
            np.testing.assert_allclose(crops.placement.spacing_mm[row], (3, 2, 4))
            center = (np.array(start) + np.array([16, 16, 8])) / store.shape(number)
            np.testing.assert_allclose(crops.origin.positions[row], center.clip(0, 1), rtol=1e-6)
            assert crops.origin.along[row] == 0.5
            assert crops.origin.subject_ids[row] == ("ab" if scan_id in "ab" else scan_id)
            assert crops.values[row] == ({"age": "40"} if scan_id == "a" else {})


@settings(max_examples=10, deadline=None)
@given(
    first=st.integers(0, 10**6), world=st.sampled_from([2, 3]), seed=st.integers(0, 99), regions=st.sampled_from([1, 2])
)
def test_processes_share_one_sequence_and_a_run_resumes_anywhere(store, first, world, seed, regions):
    sampling = Sampling(regions_per_scan=regions, foreground=0.5)
    alone = batches(store, 2, sampling=sampling, batch_size=2 * world, seed=seed, first_batch=first)
    resumed = batches(store, 1, sampling=sampling, batch_size=2 * world, seed=seed, first_batch=first + 1)
    same(alone[1], resumed[0])
    for rank in range(world):
        part = batches(
            store, 2, sampling=sampling, batch_size=2, seed=seed, first_batch=first, rank=rank, world_size=world
        )
        for mine, whole in zip(part, alone, strict=True):
            rows = slice(2 * rank, 2 * rank + 2)
            assert torch.equal(mine.image, whole.image[rows])
            assert mine.origin.samples == whole.origin.samples[rows]
            assert torch.equal(mine.placement.start, whole.placement.start[rows])


def test_workers_change_nothing_and_slots_are_never_reused_too_early(store):
    reference = batches(store, 12, with_labels=True, first_batch=7)
    for workers in (1, 2):
        for left, right in zip(
            reference, batches(store, 12, with_labels=True, first_batch=7, workers=workers), strict=True
        ):
            same(left, right)


def test_several_crops_come_from_one_scan(store):
    crops = batches(store, 4, sampling=Sampling(regions_per_scan=3), split="train")
    for one in crops:
        assert len(set(one.origin.scan_ids)) == 1
    assert {one.origin.scan_ids[0] for one in crops} == set("abcd")


def test_distinct_subjects(store):
    for crops in batches(store, 20, sampling=Sampling(distinct_subjects=True)):
        assert len(set(crops.origin.subject_ids)) == 3
    with pytest.raises(UserError, match="takes 5 scans of different subjects, but there are only 4 subjects"):
        batches(store, 1, sampling=Sampling(distinct_subjects=True), batch_size=5)
    with pytest.raises(UserError, match="is not a multiple of 2 regions of a scan"):
        batches(store, 1, sampling=Sampling(distinct_subjects=True, regions_per_scan=2))


def test_regions_know_where_they_lie_along_the_axis_that_they_are_spread_along(store):
    sampling = Sampling(regions_per_scan=4, stratified_axis=2)
    for crops in batches(store, 4, size=(16, 24), sampling=sampling, batch_size=4):
        depth = store.shape(store.number(crops.origin.scan_ids[0]))[2]
        slices = crops.origin.along * depth - 0.5
        assert torch.allclose(slices, slices.round(), atol=1e-4)
        assert sorted(part_along(crops.origin.along, 4).tolist()) == [0, 1, 2, 3]
    spec = ViewSpec((12, 12, 3), scale=(0.9, 1.1), geometry=Geometry("none", (10.0,)))
    plan = ViewPlan((spec, spec), sampling)
    for crops in batches(store, 4, size=read_size(plan), sampling=sampling, batch_size=4):
        parts = part_along(crops.origin.along, 4)
        assert sorted(parts.tolist()) == [0, 1, 2, 3]
        for view in make_batch(crops, plan, seed=3, device="cpu").views:
            middle = torch.tensor([5.5, 5.5, 1.0, 1.0])
            center = (view.affine @ middle)[:, 2]  # in the scan's own voxels
            assert torch.equal(part_along((center + 0.5) / view.source_shape[:, 2], 4), parts)


def test_slices_of_volumes_lie_like_pictures(store):
    for axis in (0, 1, 2):
        for crops in batches(store, 3, size=(16, 24), sampling=Sampling(slice_axis=axis), with_labels=True):
            assert crops.image.shape == (3, 1, 16, 24)
            assert crops.placement.world_affine.shape == (3, 3, 3)
            for row, scan_id in enumerate(crops.origin.scan_ids):
                whole = store.read(number := store.number(scan_id), (0, 0, 0), store.shape(number))[0]
                # AFFINE: axis 1 runs left-right, so it is the column wherever it is in the plane
                kept = {0: (2, 1), 1: (0, 2), 2: (0, 1)}[axis]
                planes = np.moveaxis(whole, (axis, *kept), (0, 1, 2))
                start = crops.placement.start[row].numpy()
                low = np.maximum(start, 0)
                high = np.minimum(start + np.array([16, 24]), planes.shape[1:])
                box = crops.image[row, 0].numpy()[
                    tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
                ]
                cut = planes[:, low[0] : high[0], low[1] : high[1]]
                (found,) = np.flatnonzero((cut == box).all((1, 2)))
                assert crops.origin.along[row] == pytest.approx((found + 0.5) / len(planes))


def test_splits_and_what_cannot_be_read(store):
    assert {i for crops in batches(store, 2, split="val") for i in crops.origin.scan_ids} == {"e"}
    with pytest.raises(UserError, match=r"no scan with 3 axes in split 'test' .*; scans by split: 4 'train', 1 'val'"):
        batches(store, 1, split="test")


def test_scans_smaller_than_a_crop_are_counted(store):
    assert small_scans(store, (32, 32, 16)) == 2  # b and d
    assert small_scans(store, (32, 32, 16), split="train") == 2
    assert small_scans(store, (20, 20, 17)) == 0
    assert small_scans(store, (21, 16), slice_axis=2) == 1  # rows are axis 0, columns axis 1


def test_channels_that_differ_are_refused(tmp_path, monkeypatch):
    volumes = {"a": volume(numbered((8, 8, 8), 1)), "b": volume(numbered((8, 8, 8), 3))}
    mixed = fill_store(tmp_path / "store", volumes, monkeypatch)
    with pytest.raises(UserError, match="1 and 3 channels and cannot share a batch"):
        batches(mixed, 1, size=(8, 8, 8))


def test_eight_bit_scans_stay_eight_bit_until_a_wider_one_is_among_them(tmp_path, monkeypatch):
    volumes = {"a": volume(numbered((8, 8), 3, np.uint8)), "b": volume(numbered((9, 9), 3, np.uint8))}
    narrow = fill_store(tmp_path / "narrow", volumes, monkeypatch)
    assert batches(narrow, 1, size=(8, 8))[0].image.dtype == torch.uint8
    volumes["c"] = volume(numbered((9, 9), 3, np.uint16))
    wide = fill_store(tmp_path / "wide", volumes, monkeypatch)
    for crops in batches(wide, 3, size=(8, 8)):
        assert crops.image.dtype == torch.int16
        for row, scan_id in enumerate(crops.origin.scan_ids):
            values = decode(crops.image[row].numpy(), crops.intensity[row].numpy(), normalize=False)
            start = crops.placement.start[row].tolist()
            held = volumes[scan_id].image[:, start[0] : start[0] + 8, start[1] : start[1] + 8]
            np.testing.assert_array_equal(values, held)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_scan_stops_with_its_name_and_is_not_replaced(tmp_path, monkeypatch, workers):
    broken = fill_store(tmp_path / "store", {"a": volume(numbered((64, 64, 40)))}, monkeypatch)
    file = broken.file(0)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"^scan a: its stored voxels are damaged [^\n]*$"):
        batches(broken, 1, workers=workers)


def test_a_store_and_its_loader_can_be_sent_to_another_process(store):
    loader = make_loader(store, plan=ViewPlan(()), read_size=(8, 8, 8), batch_size=1, seed=0, workers=0)
    again = pickle.loads(pickle.dumps(loader.dataset.reader.store))
    assert isinstance(again, Store)
    np.testing.assert_array_equal(again.read(0, (0, 0, 0), (4, 4, 4)), store.read(0, (0, 0, 0), (4, 4, 4)))
