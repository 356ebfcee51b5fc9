"""Slices of volumes as bags, against slices that are encoded one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commands import labeled

from medssl.data.bags.store import BagStore
from medssl.data.store.store import Store
from medssl.encoders.resenc import ResEnc
from medssl.inference.predictor import Windows
from medssl.probing.feature_extractor import FrozenEncoder
from medssl.probing.slice_bags import bag_of_slices, bags_of_slices
from medssl.types import Preprocess, UserError
from medssl.types.provenance import Provenance


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    labeled.volumes(folder / "a" / "scans")
    file = labeled.indexed(folder / "a" / "scans", folder / "a" / "index.sqlite", key=folder / "key")
    labeled.stored(file, folder / "store", Preprocess(foreground_crop=False, orientation=None))
    return Store.open(folder / "store")


def frozen(window):
    torch.manual_seed(0)
    encoder = ResEnc(in_channels=1, ndim=2, channels=(4, 8), strides=((1, 1), (2, 2)), blocks=(1, 1)).eval()
    return FrozenEncoder(encoder, window, 2, Windows(), {"weights": "abc"})


def test_a_slice_of_a_volume_is_a_tile_of_its_bag(store, tmp_path):
    rows, columns, slices = store.shape(0)
    plane = frozen((8, 8)).scan(store, 0).plane
    made = frozen(tuple(store.shape(0)[axis] for axis in plane))
    bag = bag_of_slices(made, store, 0)
    assert bag.coords.tolist() == [[number, 0] for number in range(slices)]
    scan = made.scan(store, 0)
    for number in (0, slices - 1):
        image = scan.read((0, 0, number), (rows, columns, 1))[..., 0]
        image = image if scan.plane[0] < scan.plane[1] else image.mT
        with torch.no_grad():
            expected = made.encoder(image[None]).pooled[0]
        torch.testing.assert_close(torch.from_numpy(bag.features[number]), expected, atol=1e-5, rtol=1e-4)
    known = Provenance(("p1",))
    assert bags_of_slices(made, store, [0, 1], tmp_path / "bags", subjects=known) == 2
    assert bags_of_slices(made, store, [0, 1, 2], tmp_path / "bags", subjects=known) == 1
    written = BagStore(tmp_path / "bags")
    assert written.facts.unit == "slice"
    assert written.facts.encoder.subjects == known
    assert [written.scan_id(n) for n in range(3)] == [store.scan_id(n) for n in range(3)]
    assert np.array_equal(written.bag(0).features, bag.features)


def test_bags_of_slices_need_a_2d_encoder(store, tmp_path):
    from dataclasses import replace

    made = replace(frozen((8, 8)), window=(8, 8, 8))
    with pytest.raises(UserError, match="window: slices of volumes need a 2D encoder"):
        bags_of_slices(made, store, [0], tmp_path / "bags", subjects=Provenance())
