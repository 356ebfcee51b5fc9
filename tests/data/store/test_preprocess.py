"""Preprocess as a whole: order of its steps, the label's way, a user's own transforms."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from data.stores import PLAIN, numbered, volume

from medssl.data.store import coding
from medssl.data.store.preprocess import as_monai, check, make_transform, prepare
from medssl.data.store.store import preprocess_from
from medssl.types import Imported, IntensityRule, IntensityRules, Preprocess, UserError

LPS = np.array([[-2.0, 0, 0, 30], [0, -1.0, 0, 40], [0, 0, 5.0, -9], [0, 0, 0, 1]])


def values(prepared):
    return coding.decode(prepared.image, prepared.coding.intensity, normalize=False)


def test_preprocess_without_rules_changes_no_voxel():
    scan = volume(numbered((5, 6, 7)), LPS)
    prepared = prepare(scan, PLAIN, domain="mr")
    np.testing.assert_array_equal(prepared.image, scan.image)
    np.testing.assert_array_equal(prepared.affine, LPS)
    assert prepared.coding.error == 0
    assert prepared.label is None


def test_foreground_crop_keeps_label_voxels_and_a_correct_affine():
    image = np.full((1, 20, 20, 10), -1000, np.int16)
    image[0, 5:15, 6:14, 2:8] = 50
    label = np.zeros_like(image)
    label[0, 3, 10, 5] = 2  # outside of what the values call foreground
    prepared = prepare(volume(image, LPS, label), Preprocess(), domain="hu")
    assert prepared.image.shape == (1, 12, 8, 6)
    assert prepared.label.dtype == np.uint8
    assert prepared.undo.crop_start == (5, 6, 2)  # of the oriented grid: both first axes were turned round
    where = np.argwhere(prepared.label[0] == 2)[0]
    np.testing.assert_allclose(prepared.affine @ [*where, 1], LPS @ [3, 10, 5, 1])
    np.testing.assert_allclose(prepared.spacing_mm, (2, 1, 5))
    undo = prepared.undo
    np.testing.assert_allclose(np.array(undo.affine) @ [*undo.crop_start, 1], prepared.affine @ [0, 0, 0, 1])


@pytest.mark.parametrize("spacing", [None, (1.0, 1.5, 0.0)])
def test_prepared_equals_the_monai_transforms_of_the_same_rules(spacing):
    from monai.data import MetaTensor

    unclipped = IntensityRules(mr=IntensityRule("none"))
    rules = dataclasses.replace(PLAIN, orientation="RAS", spacing_mm=spacing, intensity=unclipped)
    image = numbered((9, 8, 7)).astype(np.float32)
    prepared = prepare(volume(image, LPS), rules, domain="mr")
    item = {"image": MetaTensor(torch.from_numpy(image), affine=torch.from_numpy(LPS))}
    theirs = as_monai(rules)(item)["image"]
    np.testing.assert_allclose(values(prepared), theirs.numpy(), atol=prepared.coding.error + 2e-3)
    np.testing.assert_allclose(prepared.affine, theirs.affine.numpy(), atol=1e-6)


def test_resampled_hounsfield_units_are_rounded_and_magnetic_resonance_is_not():
    image = numbered((9, 8, 7))
    rules = dataclasses.replace(PLAIN, spacing_mm=(0.7, 0.7, 0.7))
    assert prepare(volume(image), rules, domain="hu").coding.error == 0.5
    mr = prepare(volume(image), rules, domain="mr").coding
    assert 0 < mr.error < 3000 / 131_070 + 1e-3


def test_resampling_labels_creates_no_new_class():
    label = (numbered((9, 8, 7)) % 5).astype(np.int32)
    label[0, 0, 0, 0] = 300
    prepared = prepare(
        volume(numbered((9, 8, 7)), None, label), dataclasses.replace(PLAIN, spacing_mm=(0.7, 2, 1)), domain="mr"
    )
    assert prepared.label.shape == prepared.image.shape
    assert set(np.unique(prepared.label)) <= set(np.unique(label))
    assert prepared.label.dtype == np.uint16


def test_images_are_resized_in_their_own_type():
    image = numbered((40, 30), 3, np.uint8)
    label = (numbered((40, 30)) % 3).astype(np.uint8)
    prepared = prepare(volume(image, None, label), dataclasses.replace(PLAIN, image_size=(20, 24)), domain="rgb")
    assert prepared.image.shape == (3, 20, 24)
    assert prepared.image.dtype == np.uint8
    assert prepared.label.shape == (1, 20, 24)
    assert prepared.coding.error == 0.5
    np.testing.assert_allclose(prepared.spacing_mm, (2.0, 1.25))
    np.testing.assert_array_equal(prepared.coding.intensity[:, 2:], [[0, 255, 0, 255]] * 3)


def test_user_transforms_change_image_label_and_affine():
    step = Imported("monai.transforms.ResizeWithPadOrCropd", {"keys": ["image", "label"], "spatial_size": [4, 8, 8]})
    scan = volume(numbered((8, 8, 8)), LPS, numbered((8, 8, 8)))
    prepared = prepare(scan, dataclasses.replace(PLAIN, transforms=(step,)), domain="mr")
    np.testing.assert_array_equal(values(prepared), scan.image[:, 2:6])
    np.testing.assert_array_equal(prepared.label, scan.label[:, 2:6])
    np.testing.assert_allclose(prepared.affine[:3, 3], (LPS @ [2, 0, 0, 1])[:3])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"transforms": (Imported("monai.transforms.RandFlipd", {"keys": "image"}),)}, "RandFlipd is random"),
        ({"transforms": (Imported("monai.transforms.Nothing"),)}, "cannot make monai.transforms.Nothing"),
        ({"transforms": (Imported("monai.transforms.Flipd", {"key": 1}),)}, "cannot make monai.transforms.Flipd"),
        ({"spacing_mm": (1.0, 1.0)}, r"spacing_mm: must be three distances .* \(got \(1.0, 1.0\)\)"),
        ({"orientation": "RLS"}, "orientation: must name one of L/R"),
        ({"image_size": (0, 4)}, "image_size: must be height"),
        (
            {"intensity": IntensityRules(mr=IntensityRule("percentile", 1.0, 101.0))},
            r"intensity.mr: clips .* \(expected two percentiles from 0 to 100 in ascending order\)",
        ),
        (
            {"intensity": IntensityRules(hu=IntensityRule("range", 10.0, -10.0))},
            r"intensity.hu: clips from 10.0 to -10.0 \(expected two values in ascending order\)",
        ),
    ],
)
def test_invalid_preprocess_rules_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(PLAIN, **rules))


def test_a_failing_user_transform_is_named():
    step = (Imported("monai.transforms.Flipd", {"keys": "picture"}),)
    with pytest.raises(UserError, match=r"monai.transforms.Flipd failed: KeyError: .*picture"):
        prepare(volume(numbered((4, 4, 4))), dataclasses.replace(PLAIN, transforms=step), domain="mr")


def test_transforms_that_give_image_and_label_different_shapes_are_refused():
    pad = (Imported("monai.transforms.SpatialPadd", {"keys": "image", "spatial_size": (6, 6, 6)}),)
    scan = volume(numbered((4, 4, 4)), None, np.ones((1, 4, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"image of shape \(1, 6, 6, 6\) and a label of shape \(1, 4, 4, 4\)"):
        prepare(scan, dataclasses.replace(PLAIN, transforms=pad), domain="mr")


def test_a_label_beyond_32_bits_is_refused():
    with pytest.raises(UserError, match="values from 0 to 4294967296: a class is a number of at most 32 bits"):
        prepare(volume(numbered((2, 1)), None, np.array([[[0], [1 << 32]]])), PLAIN, domain="gray")


def test_half_precision_and_boolean_images_are_prepared():
    assert prepare(volume(np.ones((1, 4, 4), bool)), PLAIN, domain="gray").image.dtype == np.uint8
    assert prepare(volume(np.ones((1, 4, 4), np.float16)), PLAIN, domain="gray").image.dtype == np.int16


def test_a_label_of_real_numbers_is_refused():
    with pytest.raises(UserError, match="not whole numbers"):
        prepare(volume(numbered((4, 4)), None, np.full((1, 4, 4), 0.5)), PLAIN, domain="gray")


def test_preprocess_round_trips_through_json():
    rules = Preprocess(
        spacing_mm=(1.0, 1.0, 0.0),
        image_size=(3, 4),
        intensity=IntensityRules(mr=IntensityRule("range", 1.0, 2.0, "unit")),
        transforms=(Imported("a.b", {"c": [1, 2]}),),
    )
    again = preprocess_from(json.loads(json.dumps(dataclasses.asdict(rules))))
    assert again == rules
    assert again.digest() == rules.digest()


def test_make_transform_imports_and_calls_the_named_class():
    assert make_transform(Imported("fractions.Fraction", {"numerator": 3, "denominator": 4})) == 0.75


# --- excluded voxels


def blob(shape, seed=0):
    """A mask [1, *s] of a few boxes, one of them at a border."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((1, *shape), bool)
    mask[:, -3:] = True
    for _ in range(6):
        start = [int(generator.integers(0, n - 2)) for n in shape]
        mask[(0, *(slice(a, a + int(generator.integers(1, 4))) for a in start))] = True
    return mask


@pytest.mark.parametrize("rules", [{"orientation": "RAS"}, {"orientation": "PIR", "spacing_mm": (1.31, 2.83, 0.77)}])
def test_the_exclusion_mask_is_resampled_by_nearest_neighbor(rules):
    shape = (17, 13, 11)
    mask, rules = blob(shape), dataclasses.replace(PLAIN, **rules)
    prepared = prepare(volume(numbered(shape), LPS, mask.astype(np.uint8), mask), rules, domain="mr")
    found = prepared.image[0] == coding.EXCLUDED
    places = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), -1).reshape(-1, 3)
    back = np.linalg.inv(LPS) @ prepared.affine
    source = np.rint(places @ back[:3, :3].T + back[:3, 3]).astype(int).clip(0, np.array(shape) - 1)
    np.testing.assert_array_equal(found.ravel(), mask[0][tuple(source.T)])
    np.testing.assert_array_equal(found, prepared.label[0] == 1)
    assert prepared.coding.excluded == found.sum() > 0


CASES = {
    "mr": ("mr", np.int16, (18, 16, 14), Preprocess(spacing_mm=(1.3, 0.8, 3.0))),
    "hu": ("hu", np.int16, (18, 16, 14), Preprocess(spacing_mm=(1.3, 0.8, 3.0))),
    "real": ("gray", np.float32, (18, 16, 14), Preprocess()),
    "8 bits": ("gray", np.uint8, (18, 16, 14), Preprocess()),
    "8 bits resized": ("rgb", np.uint8, (40, 36), dataclasses.replace(PLAIN, image_size=(31, 29))),
    "smoothed": (
        "mr", np.float32, (18, 16, 14),
        Preprocess(transforms=(Imported("monai.transforms.GaussianSmoothd", {"keys": ["image"], "sigma": 0.7}),)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_of_excluded_voxels_do_not_change_the_result(case):
    domain, dtype, shape, rules = case
    mask = blob(shape)
    image = numbered(shape, 3 if domain == "rgb" else 1, dtype)
    image = np.where(mask, 0, image).astype(dtype)
    affine = LPS if len(shape) == 3 else None
    one = prepare(volume(image, affine, None, mask), rules, domain=domain)
    loud = np.where(mask, 250 if dtype == np.uint8 else 30_000, image).astype(dtype)
    other = prepare(volume(loud, affine, None, mask), rules, domain=domain)
    assert one.image.dtype == np.int16
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.coding.intensity, other.coding.intensity)
    np.testing.assert_array_equal(one.coding.fill, other.coding.fill)
    np.testing.assert_array_equal(one.cells, other.cells)
    assert (one.coding.error, one.coding.clipped, one.undo) == (other.coding.error, other.coding.clipped, other.undo)
    assert (prepare(volume(loud, affine), rules, domain=domain).coding.intensity != one.coding.intensity).any()


def test_excluded_voxels_are_not_foreground():
    image = np.zeros((1, 40, 40, 40), np.int16)
    image[0, 18:24, 10:20, 12:30] = 900
    image[0, 30:34, 30:36, 34:38] = 900
    mask = np.zeros_like(image, bool)
    mask[0, 28:36, 28:38, 32:40] = True
    label = mask.astype(np.uint8)
    prepared = prepare(volume(image, None, label, mask), Preprocess(orientation=None), domain="mr")
    assert (prepared.undo.crop_start, prepared.undo.crop_size) == ((18, 10, 12), (6, 10, 18))
    assert prepared.coding.excluded == 0  # none is left in the box: a scan like any other
    assert not (prepared.label > 0).any()
    whole = prepare(volume(image, None, None, mask), PLAIN, domain="mr")
    np.testing.assert_array_equal(whole.cells, coding.foreground_cells((image[0] > 0) & ~mask[0]))
    np.testing.assert_allclose(whole.coding.intensity[0, 4:], [900, 1])


def test_excluded_voxels_are_not_foreground_when_all_others_are():
    image = numbered((40, 32, 32)) + 50  # all above the -500 HU of air
    mask = np.zeros_like(image, bool)
    mask[0, :18] = True
    prepared = prepare(volume(image, None, None, mask), PLAIN, domain="hu")
    np.testing.assert_array_equal(prepared.cells, coding.foreground_cells(~mask[0]))
    inside = image[~mask].clip(-1000, 1000)
    np.testing.assert_allclose(prepared.coding.intensity[0, 4:], [inside.mean(), inside.std()], rtol=1e-5)
    cropped = prepare(volume(image, None, None, mask), Preprocess(orientation=None), domain="hu")
    assert (cropped.undo.crop_start, cropped.undo.crop_size) == ((18, 0, 0), (22, 32, 32))


def test_an_exclusion_mask_without_voxels_equals_no_mask():
    image = numbered((9, 8, 7), dtype=np.uint8)
    bare = prepare(volume(image), PLAIN, domain="gray")
    masked = prepare(volume(image, None, None, np.zeros(image.shape, bool)), PLAIN, domain="gray")
    assert masked.image.dtype == np.uint8
    np.testing.assert_array_equal(masked.image, bare.image)
    np.testing.assert_array_equal(masked.coding.intensity, bare.coding.intensity)


def test_a_scan_with_only_excluded_voxels_is_refused():
    message = "^all voxels of the scan are excluded. Leave the scan out, or repair its mask of excluded voxels$"
    scan = volume(numbered((4, 4, 4)), None, None, np.ones((1, 4, 4, 4), bool))
    with pytest.raises(UserError, match=message):
        prepare(scan, PLAIN, domain="mr")
    mask = np.ones((1, 9, 4, 4), bool)
    mask[0, 1] = False  # nearest neighbors two voxels apart pass it by
    with pytest.raises(UserError, match=message):
        prepare(
            volume(numbered((9, 4, 4)), None, None, mask), dataclasses.replace(PLAIN, spacing_mm=(2, 0, 0)), domain="mr"
        )


@pytest.mark.parametrize(
    "step",
    [
        Imported("monai.transforms.Flipd", {"keys": ["image"], "spatial_axis": 0}),
        Imported("monai.transforms.SpatialPadd", {"keys": ["image"], "spatial_size": [6, 6, 6]}),
    ],
)
def test_transforms_that_move_excluded_voxels_are_refused(step):
    mask = np.zeros((1, 5, 5, 5), bool)
    mask[0, 1, 1, 1] = True
    message = (
        "^preprocess.transforms: they move the voxels of a scan of which some are excluded. Change the grid with "
        "preprocess.orientation, preprocess.spacing_mm or preprocess.image_size: these move the "
        "mask of excluded voxels too$"
    )
    with pytest.raises(UserError, match=message):
        prepare(
            volume(numbered((5, 5, 5)), None, None, mask), dataclasses.replace(PLAIN, transforms=(step,)), domain="mr"
        )
