"""The store for MONAI: a reader for LoadImaged and crops that MONAI's transforms take with a true affine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data.stores import PLAIN, fill_store, numbered, volume

from medssl.types import Imported, Sampling, UserError

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec")
AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def ramp(shape):
    """Each voxel's value tells where in the world it lies: 100 x + 10 y + z."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    world = AFFINE[:3, :3] @ index + AFFINE[:3, 3:]
    return (np.array([100, 10, 1]) @ world).reshape(1, *shape).astype(np.int32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return fill_store(
            tmp_path_factory.mktemp("monai") / "store",
            {
                "a": volume(ramp((70, 60, 40)), AFFINE, numbered((70, 60, 40), 1, np.uint8)),
                "b": volume(ramp((30, 44, 52)), AFFINE, numbered((30, 44, 52), 1, np.uint8, 1)),
            },
            patch,
            preprocess=PLAIN,
        )


def test_load_imaged_reads_a_stored_scan(store):
    from monai.transforms import LoadImaged

    from medssl.data.loading.monai import StoreReader

    load = LoadImaged(("image", "label"), reader=StoreReader(store.path), dtype=None)
    item = load({"image": "store:a", "label": "store:a#label"})
    np.testing.assert_array_equal(item["image"].numpy(), ramp((70, 60, 40)))
    np.testing.assert_array_equal(item["image"].affine.numpy(), AFFINE)
    np.testing.assert_array_equal(item["label"].numpy(), numbered((70, 60, 40), 1, np.uint8))
    with pytest.raises(RuntimeError, match="scan nobody is not in the store"):  # MONAI wraps what a reader says
        load({"image": "store:nobody", "label": "store:a"})
    with pytest.raises(UserError, match="expected store:SCAN_ID"):
        StoreReader(store).read("a.nii")
    assert StoreReader(store).verify_suffix("store:a")
    assert not StoreReader(store).verify_suffix("a.nii")


def world_values(item, store):
    """What the ramp has to be at every voxel of an item, by its affine."""
    image, affine = item["image"], item["image"].affine.numpy()
    index = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    expected = (np.array([100, 10, 1]) @ world).reshape(image.shape)
    _, _, low, high, shift, divisor = store.intensity(store.number(item["scan_id"]))[0]
    return (np.clip(expected, low, high) - shift) / divisor


def test_crops_have_a_true_affine(store):
    from medssl.data.loading.monai import StoreDataset

    dataset = StoreDataset(store, size=(16, 24, 20), length=12, sampling=Sampling(regions_per_scan=2))
    assert len(dataset) == 12
    for item in dataset:
        assert item["image"].shape == (1, 16, 24, 20)
        assert item["label"].shape == (1, 16, 24, 20)
        np.testing.assert_allclose(item["image"].numpy(), world_values(item, store), atol=1e-3)


def test_a_users_random_transforms_follow_the_crop_and_are_keyed_by_item(store):
    from medssl.data.loading.monai import StoreDataset

    affine = {"keys": ["image", "label"], "prob": 1.0, "rotate_range": [0.3, 0.2, 0.4], "mode": ["bilinear", "nearest"]}
    dataset = StoreDataset(
        store,
        size=(20, 20, 20),
        length=4,
        transforms=(Imported("monai.transforms.RandAffined", {**affine, "padding_mode": "border"}),),
    )
    items = list(dataset)
    for item, again in zip(items, dataset, strict=True):
        assert torch.equal(item["image"], again["image"])
        inside = (slice(None), *[slice(7, 13)] * 3)  # rotated in from the crop, not from its border
        expected = world_values(item, store)
        np.testing.assert_allclose(item["image"].numpy()[inside], expected[inside], atol=2e-2)
        assert set(np.unique(item["label"])) <= set(range(256))
    assert not torch.equal(items[0]["image"].affine[:3, :3], items[1]["image"].affine[:3, :3])

    field = (Imported("monai.transforms.RandBiasFieldd", {"keys": "image", "prob": 1.0}),)
    plain, biased = StoreDataset(store, size=(16, 16, 16)), StoreDataset(store, size=(16, 16, 16), transforms=field)
    assert not torch.equal(plain[1]["image"], biased[1]["image"])
    assert torch.equal(biased[1]["image"], biased[1]["image"])
    assert torch.equal(plain[1]["image"].affine, biased[1]["image"].affine)
    with pytest.raises(IndexError, match="item 2 of 2"):
        plain[2]


def test_workers_give_the_same_items(store):
    from monai.data import DataLoader

    from medssl.data.loading.monai import StoreDataset

    dataset = StoreDataset(store, size=(16, 16, 16), length=6)
    alone = list(DataLoader(dataset, batch_size=2, num_workers=0))
    for left, right in zip(alone, DataLoader(dataset, batch_size=2, num_workers=2), strict=True):
        assert torch.equal(left["image"], right["image"])
        assert left["scan_id"] == right["scan_id"]
