"""The mapping back to the scan's own grid: exact where only axes and borders change, the plain reference elsewhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from data.stores import PLAIN, numbered, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.store.preprocess import prepare
from medssl.data.store.restore import mapping_to_source, restore, restore_labels
from medssl.types import Imported, Preprocess, UserError

CODES = ("RAS", "LPS", "ASL", "PIR", "SRA")


def affine_of(codes, spacing, *, tilt=0.0):
    """Affine of a volume whose axes grow towards ``codes``, turned by ``tilt`` radians about the first world axis."""
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff

    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    own = inv_ornt_aff(axcodes2ornt(codes), (10, 10, 10))
    return turn @ own @ np.diag([*spacing, 1.0])


def organs(shape, spacing):
    """Ellipsoids of the size of a liver, a kidney and a small node, in mm, tilted against the axes."""
    extent = np.array(shape) * spacing
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    for number, (center, radii) in enumerate(
        [((0.35, 0.45, 0.5), (52, 43, 38)), ((0.75, 0.6, 0.45), (17, 21, 30)), ((0.7, 0.2, 0.55), (12, 12, 12))], 1
    ):
        away = (grid - np.array(center) * extent) @ np.linalg.qr(np.array([[1, 0.3, 0.2], [0, 1, 0.3], [0, 0, 1]]).T)[0]
        label[(np.square(away / np.array(radii, float))).sum(-1) <= 1] = number
    return label


def dice(first, second):
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def there_and_back(label, affine, rules, *, axis=0, image=None):
    image = np.where(label > 0, 400, 100).astype(np.int16)[None] if image is None else image
    prepared = prepare(volume(image, affine, label[None]), rules, domain="mr")
    return restore_labels(prepared.label[0], mapping_to_source(prepared, affine), axis=axis)


@pytest.mark.parametrize(
    ("source", "target", "smallest"),
    [
        ((0.7, 0.7, 5.0), (1.0, 1.0, 3.0), 0.98),
        ((0.5, 0.5, 2.0), (1.0, 1.0, 2.0), 0.97),
        ((0.7, 0.7, 1.0), (1.5, 1.5, 1.5), 0.96),
    ],
)
def test_a_label_survives_anisotropic_resampling(source, target, smallest):
    shape = tuple(int(n) for n in np.array((200, 180, 130)) / source)
    label = organs(shape, source)
    back = there_and_back(label, affine_of("LPS", source, tilt=0.1), Preprocess(spacing_mm=target))
    liver, kidney, node = (dice(label == number, back == number) for number in (1, 2, 3))
    assert min(liver, kidney) > 0.98
    assert node > smallest  # 24 mm across: here it counts that the stored grid is coarser


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    codes=st.sampled_from(CODES),
    target=st.sampled_from((None, *CODES)),
    axis=st.integers(0, 2),
    tilt=st.sampled_from([0.0, 0.2]),
    data=st.data(),
)
def test_orientation_and_crop_are_undone_exactly(shape, codes, target, axis, tilt, data):
    label = np.zeros(shape, np.int16)
    low = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    high = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    label[box] = np.random.default_rng(0).integers(0, 4, label[box].shape) * 100
    image = np.where(label > 0, 50, -1000).astype(np.int16)[None]
    affine = affine_of(codes, (0.8, 1.1, 3.0), tilt=tilt)
    rules = Preprocess(orientation=target, background=-500.0)
    np.testing.assert_array_equal(there_and_back(label, affine, rules, axis=axis, image=image), label)


def reference(probabilities, prepared, affine, shape):
    """Every voxel of the scan by itself: world -> stored voxel, linear interpolation, highest class."""
    from scipy.ndimage import map_coordinates

    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    inverse = np.linalg.inv(prepared.affine)
    place = inverse[:3, :3] @ world + inverse[:3, 3:]
    undo = prepared.undo
    oriented = np.linalg.inv(np.array(undo.affine))
    there = np.rint(oriented[:3, :3] @ world + oriented[:3, 3:]) - np.array(undo.crop_start)[:, None]
    inside = ((there >= 0) & (there < np.array(undo.crop_size)[:, None])).all(0)
    size = np.array(prepared.image.shape[1:])
    crop = np.array(undo.crop_size)
    step = np.array(prepared.spacing_mm) / np.linalg.norm(np.array(undo.affine)[:3, :3], axis=0)
    for axis, n in enumerate(size):  # the last stored voxel was read at min(its place, the last voxel of the crop)
        if n > 1:
            knots = np.minimum(np.arange(n) * step[axis], crop[axis] - 1)
            place[axis] = np.interp(there[axis], knots, np.arange(n))
    mixed = np.stack([map_coordinates(p, place, order=1, mode="nearest") for p in probabilities])
    best = np.sort(mixed, axis=0)
    clear = (best[-1] - best[-2] > 1e-4).reshape(shape)
    return (mixed.argmax(0) * inside).reshape(shape), clear | ~inside.reshape(shape)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    codes=st.sampled_from(CODES),
    spacing=st.tuples(*[st.sampled_from([0.0, 0.6, 1.0, 2.7])] * 3),
    axis=st.integers(0, 2),
    planes=st.integers(1, 3),
)
def test_planes_in_a_stream_equal_the_whole_scan(shape, codes, spacing, axis, planes):
    affine = affine_of(codes, (0.8, 1.1, 3.0), tilt=0.1)
    image = numbered(shape)
    image[:, 0] = 0  # something that the foreground crop takes away
    prepared = prepare(volume(image, affine), Preprocess(spacing_mm=spacing, background=0.0), domain="mr")
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), prepared.image.shape[1:]).astype(np.float32)
    probabilities = np.moveaxis(probabilities, -1, 0)
    ordered = torch.from_numpy(np.moveaxis(probabilities, axis + 1, 1).copy())
    blocks = ((first, ordered[:, first : first + planes]) for first in range(0, ordered.shape[1], planes))
    found = restore(blocks, mapping_to_source(prepared, affine), axis=axis, classes=3)
    expected, clear = reference(probabilities, prepared, affine, shape)
    assert found.shape == shape
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], expected[clear])


@pytest.mark.parametrize("size", [(20, 24), (57, 45), (80, 90)])
def test_images_come_back_to_their_own_size(size):
    rows, columns = np.meshgrid(np.arange(40), np.arange(30), indexing="ij")
    label = ((rows - 20) ** 2 + (columns - 14) ** 2 < 120).astype(np.uint8)
    image = np.where(label, 200, 40).astype(np.uint8)[None]
    image[:, :3] = 0
    rules = Preprocess(image_size=size)
    prepared = prepare(volume(image, None, label[None]), rules, domain="gray")
    assert prepared.undo.crop_start == (3, 0)
    back = restore_labels(prepared.label[0], mapping_to_source(prepared, np.eye(3)))
    assert back.shape == label.shape
    assert dice(label > 0, back > 0) > 0.95
    center = [np.argwhere(x).mean(0) for x in (label, back)]
    np.testing.assert_allclose(*center, atol=0.3)  # no shift by half a pixel
    same = prepare(volume(image, None, label[None]), Preprocess(), domain="gray")
    np.testing.assert_array_equal(restore_labels(same.label[0], mapping_to_source(same, np.eye(3))), label)


def test_a_users_crop_flip_and_padding_are_undone_by_the_affine():
    steps = (
        Imported("monai.transforms.Flipd", {"keys": ["image", "label"], "spatial_axis": 1}),
        Imported("monai.transforms.ResizeWithPadOrCropd", {"keys": ["image", "label"], "spatial_size": [4, 12, 8]}),
    )
    affine = affine_of("LPS", (0.8, 1.1, 3.0))
    label = (numbered((8, 8, 8))[0] % 3).astype(np.uint8)
    prepared = prepare(
        volume(numbered((8, 8, 8)), affine, label[None]), dataclasses.replace(PLAIN, transforms=steps), domain="mr"
    )
    expected = np.zeros_like(label)
    expected[2:6] = label[2:6]
    np.testing.assert_array_equal(
        restore_labels(prepared.label[0], mapping_to_source(prepared, affine), axis=2), expected
    )


def test_a_users_rotation_is_refused():
    turn = Imported("monai.transforms.Rotated", {"keys": ["image"], "angle": [0.3, 0.0, 0.0], "padding_mode": "zeros"})
    prepared = prepare(volume(numbered((8, 8, 8))), dataclasses.replace(PLAIN, transforms=(turn,)), domain="mr")
    with pytest.raises(UserError, match=r"transforms: they rotate the scan \(up to .* voxels off its axes\)"):
        mapping_to_source(prepared, np.eye(4))


def test_many_classes_take_two_bytes_and_ties_give_the_first_class():
    scan = volume(numbered((1, 2, 3)))
    mapping = mapping_to_source(prepare(scan, PLAIN, domain="mr"), scan.affine)
    probabilities = torch.zeros(300, 1, 2, 3)
    probabilities[299] = 1
    found = restore([(0, probabilities)], mapping, axis=0, classes=300)
    assert found.dtype == np.uint16
    assert (found == 299).all()
    even = restore([(0, torch.full((3, 1, 2, 3), 1 / 3))], mapping, axis=0, classes=3)
    assert even.dtype == np.uint8
    assert not even.any()


def test_missing_planes_are_refused():
    scan = volume(numbered((4, 2, 3)))
    mapping = mapping_to_source(prepare(scan, PLAIN, domain="mr"), scan.affine)
    with pytest.raises(ValueError, match="the planes end too early: 2 planes of the scan are left"):
        restore([(0, torch.zeros(2, 2, 2, 3))], mapping, axis=0, classes=2)
