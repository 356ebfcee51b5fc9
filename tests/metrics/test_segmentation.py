"""Dice and HD95 against hand-made cases, MONAI's own function and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.heads.base import UNLABELED
from medssl.metrics.mask_measures import MEASURES, ClassScore, count_lesions
from medssl.metrics.segmentation import dice_scores, score_case, surface_distances
from medssl.types import LabelSchema, UserError

SPACING = (0.5, 1.0, 3.0)
ONE = LabelSchema("mask", ((0, "background"), (1, "organ")))
TWO = LabelSchema("mask", ((0, "background"), (3, "organ"), (7, "lesion")))
IGNORING = LabelSchema("mask", ((0, "background"), (1, "organ")), ignore=255)


def box(shape, start, size, value=1):
    """An array of zeros with a box of ``value``."""
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    return array


def blob(seed, shape=(26, 24, 18), margin=2):
    """A random smooth region, at least ``margin`` voxels away from the border (SimpleITK's contours need one)."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return np.pad(noise > 0.02, margin)


# --- hand-made cases


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 2])
def test_a_shifted_cube_is_as_far_as_it_was_shifted(axis, voxels):
    label = box((20, 20, 20), (5, 5, 5), (8, 8, 8))
    prediction = np.roll(label, voxels, axis)
    score = score_case(prediction, label, ONE, SPACING)["organ"]
    assert score.dice == pytest.approx((8 - voxels) / 8)
    assert score.hd95_mm == pytest.approx(voxels * SPACING[axis])  # a face of 64 of 296 surface voxels moved this far
    assert (score.true_voxels, score.predicted_voxels, score.note) == (512, 512, "")


def test_single_voxels_are_as_far_as_their_centers():
    label, prediction = box((9, 9, 9), (1, 1, 1), (1, 1, 1)), box((9, 9, 9), (5, 4, 2), (1, 1, 1))
    score = score_case(prediction, label, ONE, SPACING)["organ"]
    assert score == ClassScore(0.0, pytest.approx((2.0**2 + 3.0**2 + 3.0**2) ** 0.5), 1, 1)


def test_what_touches_the_border_scores_as_if_there_were_room():
    label, prediction = box((6, 7, 8), (0, 0, 0), (3, 7, 4)), box((6, 7, 8), (1, 0, 2), (5, 6, 6))
    alone = score_case(prediction, label, ONE, SPACING)
    assert alone == score_case(np.pad(prediction, 4), np.pad(label, 4), ONE, SPACING)
    assert alone["organ"].hd95_mm > 0


def test_nested_cubes_have_the_larger_direction():
    label, prediction = box((30, 30, 30), (4, 4, 4), (21, 21, 21)), box((30, 30, 30), (14, 14, 14), (1, 1, 1))
    score = score_case(prediction, label, ONE, (1.0, 1.0, 1.0))["organ"]
    assert score.dice == pytest.approx(2 / (21**3 + 1))
    outward, inward = surface_distances(prediction == 1, label == 1, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(outward, [10.0])  # the center is 10 voxels from the nearest face
    assert len(inward) == 21**3 - 19**3
    assert score.hd95_mm == pytest.approx(np.percentile(inward, 95), abs=1e-5)
    assert 10 < score.hd95_mm < 10 * 3**0.5


def test_two_axes_and_the_percentile_between_two_distances():
    label, prediction = box((30, 5), (0, 2), (1, 1)), box((30, 5), (0, 2), (21, 1))
    score = score_case(prediction, label, ONE, (2.0, 1.0))["organ"]
    assert score.hd95_mm == pytest.approx(0.95 * 20 * 2.0)  # distances 0, 2, ... 40 mm
    assert score_case(prediction[:16], label[:16], ONE, (2.0, 1.0))["organ"].hd95_mm == pytest.approx(28.5)


def test_a_perfect_prediction():
    label = blob(1).astype(np.int16)
    assert score_case(label, label, ONE, SPACING)["organ"] == ClassScore(1.0, 0.0, int(label.sum()), int(label.sum()))


def test_lacking_classes_say_where_they_lack():
    nothing, organ = np.zeros((5, 5, 5), np.uint8), box((5, 5, 5), (1, 1, 1), (2, 2, 2), 3)
    assert score_case(nothing, nothing, TWO, SPACING)["organ"] == ClassScore(None, None, 0, 0, "absent")
    missed = score_case(nothing, organ, TWO, SPACING)
    assert missed["organ"] == ClassScore(0.0, None, 8, 0, "missed")
    assert missed["lesion"] == ClassScore(None, None, 0, 0, "absent")
    assert score_case(organ, nothing, TWO, SPACING)["organ"] == ClassScore(0.0, None, 0, 8, "invented")


def test_classes_are_scored_by_their_stored_values_and_the_background_is_not():
    label = box((12, 12, 12), (1, 1, 1), (4, 4, 4), 3) + box((12, 12, 12), (7, 7, 7), (2, 2, 2), 7)
    prediction = label.astype(np.int64)
    prediction[prediction == 7] = 3
    scores = score_case(prediction, label, TWO, SPACING)
    assert list(scores) == ["organ", "lesion"]
    assert scores["organ"].dice == pytest.approx(2 * 64 / (64 + 72))
    assert scores["lesion"].note == "missed"


def test_ignored_voxels_count_for_nothing():
    label, prediction = box((12, 12, 12), (2, 2, 2), (5, 5, 5)), box((12, 12, 12), (2, 2, 2), (5, 5, 8))
    label[:, :, 7:] = 255  # all that the prediction has too much
    prediction[:, :, 11] = 255
    assert score_case(prediction, label, IGNORING, SPACING)["organ"] == ClassScore(1.0, 0.0, 125, 125)
    everything = np.full_like(label, 255)
    assert score_case(prediction, everything, IGNORING, SPACING)["organ"].note == "absent"
    padded = label.astype(np.int16)
    padded[padded == 255] = UNLABELED
    prediction[prediction == 255] = 0
    assert score_case(prediction, padded, ONE, SPACING)["organ"] == ClassScore(1.0, 0.0, 125, 125)


def test_an_ignored_value_with_a_name_is_no_class():
    schema = LabelSchema("mask", ((0, "background"), (1, "organ"), (2, "unclear")), ignore=2)
    label = box((6, 6, 6), (0, 0, 0), (3, 3, 3)) + box((6, 6, 6), (3, 3, 3), (3, 3, 3), 2)
    assert score_case(label, label, schema, SPACING) == {"organ": ClassScore(1.0, 0.0, 27, 27)}


# --- surface Dice, volume and lesions


def further(prediction, label, tolerance=1.0, spacing=SPACING, schema=ONE):
    found = score_case(prediction, label, schema, spacing, nsd_tolerance_mm=tolerance)["organ"].further
    assert found is not None
    return found


@pytest.mark.parametrize(("tolerance", "near"), [(0.0, 36), (2.9, 36), (3.0, 56)])
def test_surface_dice_by_hand(tolerance, near):
    """A cube of 4 voxels a side, 56 of them surface, a slice of 3 mm further: 12 around in each of 3 common slices."""
    label = box((12, 12, 12), (4, 4, 4), (4, 4, 4))
    assert further(np.roll(label, 1, 2), label, tolerance, (5.0, 5.0, 3.0))["nsd"] == pytest.approx(near / 56)


def test_one_voxel_off_lies_within_its_spacing_although_that_was_rounded():
    label = box((9, 9, 9), (2, 2, 2), (1, 4, 4))
    rounded = (float(np.float32(1) + np.finfo(np.float32).eps), 1.0, 1.0)
    assert further(np.roll(label, 1, 0), label, 1.0, rounded)["nsd"] == 1.0
    assert further(np.roll(label, 1, 0), label, 0.99, rounded)["nsd"] == 0.0


def test_volume_errors_have_a_sign_and_a_unit():
    label = box((9, 9, 9), (1, 1, 1), (4, 4, 4))
    more, less = box((9, 9, 9), (1, 1, 1), (4, 4, 6)), box((9, 9, 9), (1, 1, 1), (4, 4, 1))
    assert further(more, label)["volume_error_ml"] == pytest.approx(32 * 1.5e-3)
    assert further(more, label)["volume_error"] == 0.5
    assert further(less, label)["volume_error_ml"] == pytest.approx(-48 * 1.5e-3)
    assert further(less, label)["volume_error"] == -0.75
    image = further(more[1], label[1], spacing=(1.0, 3.0))
    assert (image["volume_error_ml"], image["volume_error"]) == (None, 0.5)  # an area is no volume


def test_lesions_are_found_missed_and_invented():
    label, prediction = np.zeros((2, 20, 20, 20), np.uint8)
    label[1:3, 1:3, 1:3] = label[3, 3, 3] = 1  # one lesion: they meet at a corner
    label[8, 8, 8] = label[8, 8, 12] = 1  # two
    label[15, 15, 15] = 1  # missed
    prediction[3:5, 3, 3] = 1  # one voxel in common is enough
    prediction[8, 8, 7:14] = 1  # one component finds two lesions
    prediction[17, 17, 17] = prediction[1, 18, 1] = 1
    assert count_lesions(label > 0, prediction > 0) == (3, 1, 2)
    own = further(prediction, label)
    assert (own["lesions_found"], own["lesions_missed"], own["lesions_invented"]) == (3, 1, 2)
    assert own["lesion_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert count_lesions(np.eye(3) > 0, np.eye(3) > 1) == (0, 1, 0)  # images: eight neighbors


def test_lacking_classes_have_the_further_measures_that_dice_has():
    nothing, organ = np.zeros((5, 5, 5), np.uint8), box((5, 5, 5), (1, 1, 1), (2, 2, 2))
    absent, missed, invented = further(nothing, nothing), further(nothing, organ), further(organ, nothing)
    assert list(absent) == list(MEASURES)
    assert list(absent.values()) == [None, None, None, 0, 0, 0, None]
    assert list(missed.values()) == [0.0, pytest.approx(-0.012), -1.0, 0, 1, 0, 0.0]
    assert list(invented.values()) == [0.0, pytest.approx(0.012), None, 0, 0, 1, 0.0]
    assert list(further(organ, organ).values()) == [1.0, 0.0, 0.0, 1, 0, 0, 1.0]
    assert score_case(organ, organ, ONE, SPACING)["organ"].further is None


def test_ignored_voxels_are_no_lesions_either():
    label, prediction = box((12, 12, 12), (2, 2, 2), (5, 5, 5)), box((12, 12, 12), (2, 2, 2), (5, 5, 8))
    label[:, :, 7:] = 255
    assert list(further(prediction, label, schema=IGNORING).values()) == [1.0, 0.0, 0.0, 1, 0, 0, 1.0]


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(UserError, match=r"nsd_tolerance_mm: must be a distance in mm .* \(got (-1.0|nan|inf)\)"):
        further(np.ones((3, 3, 3), np.uint8), np.ones((3, 3, 3), np.uint8), tolerance)


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((4, 4, 5), np.uint8)}, "prediction of shape 4x4x5, label of shape 4x4x4: both must"),
        ({"label": np.full((4, 4, 4), 9)}, r"label holds 9 \(64 voxels\), which is not among the classes 0=background"),
        ({"prediction": np.full((4, 4, 4), 2)}, r"prediction holds 2 \(64 voxels\), which is not among the classes"),
        ({"prediction": np.full((4, 4, 4), -1)}, r"prediction holds -1 \(64 voxels\)"),
        ({"label": np.zeros((4, 4, 4))}, "label holds float64 numbers: expected whole numbers"),
        ({"spacing_mm": (1.0, 1.0)}, r"spacing \(1.0, 1.0\) mm for 3 axes: expected a positive number for each axis"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "expected a positive number for each axis"),
        ({"schema": LabelSchema("mask", ((0, "background"),))}, "label mask has no class beside the background"),
        (
            {"schema": LabelSchema("mask", ((0, "a"), (1, "b"), (2, "b")))},
            r"has classes of equal name \(a, b, b\): give",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    zeros = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(UserError, match=message):
        score_case(**({"prediction": zeros, "label": zeros, "schema": ONE, "spacing_mm": SPACING} | change))


# --- other programs


def sitk_image(mask, spacing):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.T.astype(np.uint8)))
    image.SetSpacing(spacing)
    return image


def sitk_scores(prediction, label, spacing):
    """Dice, largest distance and HD95 of two boolean arrays with a margin, by SimpleITK."""
    import SimpleITK as sitk

    images = [sitk_image(mask, spacing) for mask in (prediction, label)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    contours = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    largest = sitk.HausdorffDistanceImageFilter()
    largest.Execute(*contours)
    directed = []
    for one, other in (contours, contours[::-1]):
        field = sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True)
        directed.append(np.percentile(sitk.GetArrayFromImage(field)[sitk.GetArrayFromImage(one) > 0], 95))
    return overlap.GetDiceCoefficient(), largest.GetHausdorffDistance(), max(directed)


def sitk_nsd(prediction, label, spacing, tolerance):
    """Share of contour voxels that lie within the tolerance of the other contour, by SimpleITK."""
    import SimpleITK as sitk

    contours = [sitk.LabelContour(sitk_image(mask, spacing), fullyConnected=False) for mask in (prediction, label)]
    near = []
    for one, other in (contours, contours[::-1]):
        field = sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True)
        near += (sitk.GetArrayFromImage(field)[sitk.GetArrayFromImage(one) > 0] < tolerance).tolist()
    return np.mean(near)


def sitk_lesions(true, predicted):
    """Lesions found, missed and invented, component by component, by SimpleITK."""
    import SimpleITK as sitk

    parts = []
    for mask in (true, predicted):
        labeled = sitk.ConnectedComponent(sitk_image(mask, (1.0,) * mask.ndim), True)
        array = sitk.GetArrayFromImage(labeled).T
        parts.append([array == number for number in range(1, array.max() + 1)])
    found = sum(bool((part & predicted).any()) for part in parts[0])
    invented = sum(not (part & true).any() for part in parts[1])
    return found, len(parts[0]) - found, invented


def assert_equals_sitk(prediction, label, spacing):
    dice, largest, hd95 = sitk_scores(prediction, label, spacing)
    score = score_case(prediction.astype(np.uint8), label.astype(np.uint8), ONE, spacing)["organ"]
    assert score.dice == pytest.approx(dice, abs=1e-3)
    assert score.hd95_mm == pytest.approx(hd95, abs=1e-3)
    assert max(float(d.max()) for d in surface_distances(prediction, label, spacing)) == pytest.approx(
        largest, abs=1e-3
    )
    assert hd95 > 0
    own = further(prediction.astype(np.uint8), label.astype(np.uint8), 1.25, spacing)
    assert own["nsd"] == pytest.approx(sitk_nsd(prediction, label, spacing, 1.25))
    assert 0 < own["nsd"] < 1
    assert (own["lesions_found"], own["lesions_missed"], own["lesions_invented"]) == sitk_lesions(label, prediction)


@pytest.mark.parametrize("seeds", [(1, 2), (3, 4), (5, 6)])
def test_volumes_score_as_with_simpleitk(seeds):
    assert_equals_sitk(*(blob(seed) for seed in seeds), SPACING)


def test_images_score_as_with_simpleitk():
    assert_equals_sitk(blob(1, (60, 50)), blob(2, (60, 50)), (0.4, 0.7))


@pytest.mark.data
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_real_labels_score_as_with_simpleitk(real_data, spacing):
    import nibabel

    files = sorted((real_data / "hippocampus" / "labelsTr").glob("hippocampus_*.nii.gz"))[:2]
    arrays = [np.asarray(nibabel.load(file).dataobj).astype(np.uint8) for file in files]
    shape = np.max([array.shape for array in arrays], axis=0) + 2
    first, second = (np.pad(a, [(1, n - 1 - m) for n, m in zip(shape, a.shape, strict=True)]) for a in arrays)
    for value in (1, 2):
        assert_equals_sitk(first == value, second == value, spacing)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    share=st.sampled_from([0.02, 0.3, 0.9]),
    seed=st.integers(0, 999),
)
def test_any_masks_score_as_with_monai(shape, share, seed):
    from monai.metrics import DiceMetric, compute_hausdorff_distance

    rng = np.random.default_rng(seed)
    prediction, label = (rng.random(shape) < share for _ in range(2))
    prediction.flat[0] = label.flat[-1] = True
    spacing = SPACING[: len(shape)]
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, label)]
    hd95 = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing).item()
    dice = DiceMetric(include_background=True)(*tensors).item()
    score = score_case(prediction.astype(np.int32), label.astype(np.int32), ONE, spacing)["organ"]
    assert score.hd95_mm == pytest.approx(hd95, abs=1e-4)
    assert score.dice == pytest.approx(dice, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    share=st.sampled_from([0.05, 0.3, 0.9]),
    tolerance=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    seed=st.integers(0, 999),
)
def test_any_masks_have_the_surface_dice_of_monai_and_the_lesions_of_simpleitk(shape, share, tolerance, seed):
    from monai.metrics import compute_surface_dice

    rng = np.random.default_rng(seed)
    prediction, label = (rng.random(shape) < share for _ in range(2))
    prediction.flat[0] = label.flat[-1] = True
    spacing = SPACING[: len(shape)]
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, label)]
    expected = compute_surface_dice(*tensors, [tolerance], include_background=True, spacing=spacing).item()
    own = further(prediction.astype(np.uint8), label.astype(np.uint8), tolerance, spacing)
    assert own["nsd"] == pytest.approx(expected, abs=1e-5)
    assert (own["lesions_found"], own["lesions_missed"], own["lesions_invented"]) == sitk_lesions(label, prediction)


# --- during training


def test_quick_dice_equals_the_score_of_the_case():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 2, (2, 9, 8, 7))
    target = torch.from_numpy(label)
    target[:3] = UNLABELED
    label = np.where(target.numpy() == UNLABELED, 255, label)
    quick = dice_scores(torch.from_numpy(prediction), target, 2)
    assert quick == [score_case(prediction, label, IGNORING, SPACING)["organ"].dice]


def test_quick_dice_by_hand():
    target = torch.tensor([[0, 1, 1, 2], [UNLABELED, UNLABELED, 2, 0]])
    prediction = torch.tensor([[0, 1, 2, 2], [1, 2, 2, 1]])
    assert dice_scores(prediction, target, 4) == [0.5, 0.8, None]
    nowhere = torch.full((3,), UNLABELED)
    assert dice_scores(torch.zeros(3, dtype=torch.uint8), nowhere, 2) == [None]


def test_quick_dice_refuses_what_is_no_class():
    with pytest.raises(ValueError, match="class numbers beyond 0 to 1"):
        dice_scores(torch.tensor([0, 2]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="class numbers beyond 0 to 1"):
        dice_scores(torch.tensor([0, UNLABELED]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match=r"prediction \(2,\) and target \(3,\) differ in shape"):
        dice_scores(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long), 2)
