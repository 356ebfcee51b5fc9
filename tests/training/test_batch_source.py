"""Views of a store, from its chunks to a batch: shares of scans of many sizes, pairs, the rule of the data."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from data.stores import PLAIN, fill_store, numbered, volume

from medssl.training.batch_source import batches_of_store, crop_size, repeated_subjects
from medssl.training.settings import Training
from medssl.types import Geometry, Intensity, Sampling, UserError, ViewPlan, ViewSpec

SHAPES = {"a": (40, 30, 9), "b": (70, 64, 12), "c": (33, 90, 7), "d": (24, 24, 24)}
TRAINING = Training(batch_size=4)


def made(tmp_path, monkeypatch, **rules):
    """A store of four volumes of other shapes; each voxel tells its scan."""
    volumes = {name: volume(numbered(shape, seed=k)) for k, (name, shape) in enumerate(SHAPES.items())}
    return fill_store(tmp_path / "store", volumes, monkeypatch, preprocess=replace(PLAIN, **rules))


@pytest.mark.parametrize("size", [(20, 20), (16, 16, 8)], ids=["slices", "volumes"])
def test_views_of_a_share_see_it_in_scans_of_every_size(tmp_path, monkeypatch, size):
    store, n = made(tmp_path, monkeypatch), len(size)
    spec = ViewSpec(size, area=(0.3, 0.9), geometry=Geometry("none"), min_overlap=0.5)
    plan = ViewPlan((spec, spec))
    largest = np.array([sorted(shape[:2]) if n == 2 else shape for shape in SHAPES.values()]).max(axis=0)
    read = crop_size(store, plan)
    assert max(read) <= max(map(max, SHAPES.values()))
    assert np.prod(read) <= np.prod(np.maximum(largest, 90 if n == 2 else 0))
    source, shares = batches_of_store(store, plan, TRAINING, workers=0, split=None), {}
    for crops in islice(source.crops(0, 0, 1), 12):
        batch = source.batch(crops, torch.device("cpu"))
        for view in batch.views:
            steps = view.affine[:, :n, :n].diagonal(dim1=1, dim2=2).abs()
            seen = torch.minimum(steps * torch.tensor(size), view.source_shape.float()) / view.source_shape
            for name, share in zip(batch.origin.scan_ids, seen.prod(dim=1).tolist(), strict=True):
                shares.setdefault(name, []).append(share)
            assert bool(view.valid.flatten(1).any(dim=1).all())
    assert shares.keys() == SHAPES.keys()
    for values in shares.values():
        assert 0.2999 < min(values) < 0.5
        assert 0.6 < max(values) < 0.9001


def test_a_share_of_the_selected_scans_is_read(tmp_path, monkeypatch):
    store = made(tmp_path, monkeypatch)
    plan = ViewPlan((ViewSpec((16, 16, 8), area=(0.9, 1.0)),))
    small = tuple(n for n in range(len(store)) if store.scan_id(n) in ("a", "d"))
    assert crop_size(store, plan, scans=small) == (40, 30, 24)
    assert crop_size(store, plan) == (70, 90, 24)


def test_views_mirror_by_the_rule_of_the_store(tmp_path, monkeypatch):
    plan = ViewPlan((ViewSpec((8, 8, 4), geometry=Geometry("data")),))
    for rule, mirrored in (("safe", [False, True, True]), ("all", [True] * 3), ("none", [False] * 3)):
        store = made(tmp_path / rule, monkeypatch, mirror=rule)
        source = batches_of_store(store, plan, TRAINING, workers=0, split=None)
        views = [source.batch(crops, torch.device("cpu")).views[0] for crops in islice(source.crops(0, 0, 1), 6)]
        steps = torch.cat([view.affine[:, :3, :3].diagonal(dim1=1, dim2=2) for view in views])
        assert (steps < 0).any(dim=0).tolist() == mirrored


def test_pretraining_says_how_many_subjects_repeat(tmp_path, monkeypatch):
    store = made(tmp_path, monkeypatch)
    plan = ViewPlan((ViewSpec((8, 8, 4)),), Sampling(distinct_subjects="where_possible"))
    assert repeated_subjects(store, plan, TRAINING, None) == []
    (note,) = repeated_subjects(store, plan, Training(batch_size=6), None)
    assert note.startswith("a batch takes 6 scans, and there are 4 subjects: 2 of 4 subjects repeat in every batch")
    source = batches_of_store(store, plan, Training(batch_size=6), workers=0, split=None)
    alone = [crops.origin.scan_ids for crops in islice(source.crops(0, 0, 1), 4)]
    halves = batches_of_store(store, plan, Training(batch_size=3), workers=0, split=None)
    ranks = [[crops.origin.scan_ids for crops in islice(halves.crops(0, rank, 2), 4)] for rank in (0, 1)]
    assert alone == [first + second for first, second in zip(*ranks, strict=True)]
    assert all(len(set(ids)) == 4 for ids in alone)


def test_stains_of_other_scans_than_color_images_are_refused(tmp_path, monkeypatch):
    store = made(tmp_path, monkeypatch)
    plan = ViewPlan((ViewSpec((8, 8), intensity=Intensity(hed_jitter=(0.5, 0.1, 0.0))),))
    with pytest.raises(
        UserError, match=r"intensity\.hed_jitter: view 0: stain jitter refuses a value domain that is not"
    ):
        batches_of_store(store, plan, TRAINING, workers=0, split=None)
