"""Grids: every step against MONAI's, and against a scan that holds its own coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.store import grid

OBLIQUE = np.array([[0.9, 0.3, 0.0, -20.0], [-0.3, 0.9, 0.2, 7.0], [0.1, -0.2, 2.9, 3.0], [0, 0, 0, 1.0]])


def world_image(shape, affine):
    """An image whose channels are the world coordinates of each voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(len(shape), -1)
    return (affine[:-1, :-1] @ index + affine[:-1, -1:]).reshape(len(shape), *shape)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL", "PIR", "SRA"])
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -2.0, 3.0, 1.0]), OBLIQUE, OBLIQUE[[2, 0, 1, 3]]])
def test_orient_equals_monai(codes, affine):
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    image = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 5)).astype(np.int16)
    ours, moved = grid.orient(image, affine, codes)
    theirs = Orientation(codes, labels=None)(MetaTensor(torch.from_numpy(image), affine=torch.from_numpy(affine)))
    np.testing.assert_array_equal(ours, theirs.numpy())
    np.testing.assert_allclose(moved, theirs.affine.numpy(), atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.0), (0.7, 0.7, 5.0), (0.0, 0.0, 1.3)])
@pytest.mark.parametrize("nearest", [False, True])
def test_resample_equals_monai(spacing, nearest):
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    affine = np.diag([1.2, 0.9, 2.5, 1.0])
    image = np.random.default_rng(0).integers(0, 9, (1, 13, 17, 9)).astype(np.int16)
    ours, moved = grid.resample(image, affine, spacing, nearest=nearest)
    target = [mm or old for mm, old in zip(spacing, (1.2, 0.9, 2.5), strict=True)]
    transform = Spacing(target, mode="nearest" if nearest else "bilinear", dtype=np.float64)
    theirs = transform(MetaTensor(torch.from_numpy(image.astype(np.float64)), affine=torch.from_numpy(affine)))
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(moved, theirs.affine.numpy(), atol=1e-6)
    difference = np.abs(ours - theirs.numpy())
    if nearest:  # halfway between two voxels either of them is nearest
        assert ours.dtype == np.int16
        for axis, (new, old) in enumerate(zip(target, (1.2, 0.9, 2.5), strict=True)):
            position = np.arange(ours.shape[axis + 1]) * new / old
            difference = difference.compress(np.abs(position % 1 - 0.5) > 1e-6, axis + 1)
        assert difference.size > 100
        assert not difference.any()
    else:
        assert difference.max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.0, 0.6, 1.0, 1.7])] * 3),
    codes=st.sampled_from(["RAS", "LPI", "SAR"]),
    data=st.data(),
)
def test_affine_stays_true_through_any_chain(shape, spacing, codes, data):
    image, affine = grid.orient(world_image(shape, OBLIQUE), OBLIQUE, codes)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in image.shape[1:])
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, image.shape[1:], strict=True))
    image, affine = grid.crop(image, affine, start, stop)
    shape_before = image.shape[1:]
    steps = [mm / old if mm else 1.0 for mm, old in zip(spacing, grid.spacing_of(affine), strict=True)]
    image, affine = grid.resample(image, affine, spacing)
    inside = tuple(  # past the last voxel the border is repeated
        slice(0, max(1, int((n - 1) / step + 1e-6) + 1)) for n, step in zip(shape_before, steps, strict=True)
    )
    expected = world_image(image.shape[1:], affine)
    np.testing.assert_allclose(image[(slice(None), *inside)], expected[(slice(None), *inside)], atol=1e-3)


def test_resample_leaves_its_input_alone_and_returns_it_when_nothing_changes():
    image = np.arange(27, dtype=np.int16).reshape(1, 3, 3, 3)
    same, affine = grid.resample(image, np.eye(4), (1.0, 0.0, 1.0))
    assert same is image
    np.testing.assert_array_equal(affine, np.eye(4))
    before = image.copy()
    grid.resample(image, np.eye(4), (0.5, 0.5, 0.5))
    np.testing.assert_array_equal(image, before)


def test_resize_keeps_the_affine_true_and_antialiases():
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(48.0), indexing="ij")
    image, affine = grid.resize_image(np.stack([rows, columns]), np.eye(3), (16, 12))
    expected = world_image((16, 12), affine)
    np.testing.assert_allclose(image[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4)
    stripes = np.tile([0.0, 100.0], 24)[None, None].repeat(32, 1)
    smooth, _ = grid.resize_image(stripes, np.eye(3), (32, 12))
    assert np.abs(smooth[:, :, 1:-1] - 50).max() < 5  # without antialiasing they would be 0 or 100


def test_resize_nearest_takes_centers():
    label = np.arange(6, dtype=np.uint8).reshape(1, 1, 6).repeat(4, 1)
    small, _ = grid.resize_image(label, np.eye(3), (2, 2), nearest=True)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, [[[1, 4], [1, 4]]])
