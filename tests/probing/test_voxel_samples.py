"""Voxel probes draw the voxels of a scan by its content: neither the folder nor the time of its file changes them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from data.stores import fill_store, numbered, volume

from medssl.probing import voxel_probe
from medssl.types import LabelSchema

SCHEMA = LabelSchema("mask", ((0, "background"), (1, "organ")))


def scans(first):
    label = np.zeros((1, 9, 8, 7), np.uint8)
    label[0, 2:7, 2:6, 1:6] = 1
    return {f"{first}{n}": volume(numbered((9, 8, 7), seed=n), None, label) for n in range(3)}


@pytest.fixture
def samples(monkeypatch, tmp_path):
    """Places of the voxels that are drawn in a store, in the order of its scans."""
    monkeypatch.setattr(voxel_probe, "features_of_voxels", lambda frozen, voxels, scan, places: places.astype(float))

    def draw(store, seed=0):
        voxels = voxel_probe.Voxels(store, SCHEMA, (0,), 36, seed)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        return voxel_probe.sample(SimpleNamespace(made_by={}), voxels, range(len(store)), out)

    return draw


def test_equal_scans_of_other_files_give_the_same_voxels(samples, monkeypatch, tmp_path):
    one = fill_store(tmp_path / "one", scans("a"), monkeypatch, source="time 1")
    other = fill_store(tmp_path / "other", scans("b"), monkeypatch, source="time 2")
    assert {one.key(n) for n in range(3)}.isdisjoint(other.key(n) for n in range(3))
    assert [one.content(n) for n in range(3)] == [other.content(n) for n in range(3)]
    for drawn, again in zip(samples(one), samples(other), strict=True):
        np.testing.assert_array_equal(drawn, again)


def test_voxels_differ_between_seeds_and_between_scans_of_other_content(samples, monkeypatch, tmp_path):
    store = fill_store(tmp_path / "store", scans("a"), monkeypatch)
    places = samples(store)[0]
    assert places.shape == (36, 3)
    assert not np.array_equal(places, samples(store, seed=1)[0])
    assert not np.array_equal(places[:12], places[12:24])
