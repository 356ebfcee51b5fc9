"""Phantoms: the same anatomy whatever the sampling, the same voxels whenever asked, no answer by threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medssl.data.synthetic.phantoms import CLASSES, PATIENT_MM, phantom
from medssl.types import UserError

SHAPE = (48, 40, 40)


def dice(a, b):
    return 2 * np.logical_and(a, b).sum() / max(1, a.sum() + b.sum())


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_same_arguments_same_voxels(modality):
    first, second = (phantom(3, SHAPE, number=5, modality=modality) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.label, second.label)
    assert first.spacing_mm == second.spacing_mm


def test_seed_and_number_change_the_patient():
    base = phantom(0, SHAPE)
    for other in (phantom(1, SHAPE), phantom(0, SHAPE, number=1)):
        assert not np.array_equal(base.label, other.label)
        assert dice(base.label > 0, other.label > 0) > 0.3  # the plan of the abdomen is shared


def test_a_mask_of_another_patient_is_a_bad_answer():
    """What guessing gives: an average of organs at their usual places."""
    labels = [phantom(0, SHAPE, number=number).label for number in range(8)]
    pairs = list(itertools.combinations(labels, 2))
    chance = {value: np.mean([dice(a == value, b == value) for a, b in pairs]) for value, _ in CLASSES[1:]}
    assert np.mean(list(chance.values())) < 0.4
    assert max(chance.values()) < 0.6


def test_both_scanners_see_one_anatomy():
    assert np.array_equal(phantom(0, SHAPE, modality="MR").label, phantom(0, SHAPE, modality="CT").label)


def test_types_ranges_and_spacing():
    mr, ct = (phantom(0, SHAPE, modality=modality) for modality in ("MR", "CT"))
    assert mr.image.dtype == ct.image.dtype == np.int16
    assert mr.label.dtype == np.uint8
    assert mr.image.shape == mr.label.shape == SHAPE
    assert mr.image.min() >= 0
    assert ct.image.min() >= -1024
    assert ct.image[0, 0].mean() < -900  # air beside the patient
    assert set(np.unique(mr.label)) == {value for value, _ in CLASSES}
    for step, count, width in zip(mr.spacing_mm, SHAPE, PATIENT_MM, strict=True):
        assert 0.85 * width < step * count < 1.15 * width


def test_liver_lies_right_and_spleen_left():
    x = np.arange(SHAPE[0])
    for number in range(6):
        label = phantom(0, SHAPE, number=number).label
        profile = {value: (label == value).sum((1, 2)) for value in (1, 2)}
        liver, spleen = (np.average(x, weights=profile[value]) for value in (1, 2))
        assert liver > (SHAPE[0] - 1) / 2 > spleen


def test_sampling_does_not_change_the_anatomy():
    coarse = phantom(2, SHAPE)
    fine = phantom(2, tuple(2 * n for n in SHAPE))
    assert np.allclose(np.multiply(fine.spacing_mm, 2), coarse.spacing_mm)
    blocks = fine.label.reshape(SHAPE[0], 2, SHAPE[1], 2, SHAPE[2], 2).transpose(0, 2, 4, 1, 3, 5).reshape(*SHAPE, 8)
    for value in (1, 2, 3):
        majority = (blocks == value).sum(-1) >= 4
        assert dice(majority, coarse.label == value) > 0.9


def test_thick_slices_cut_the_same_patient():
    whole = phantom(2, (48, 40, 41))
    step = whole.spacing_mm
    thick = phantom(2, (48, 40, 9), spacing_mm=(*step[:2], 4 * step[2]))
    assert thick.spacing_mm == (*step[:2], 4 * step[2])
    middles = whole.label[:, :, 4:37:4]  # 20 is the middle: 20 - 4 * 4, ..., 20 + 4 * 4
    assert dice(thick.label > 0, middles > 0) > 0.98


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_no_interval_of_intensity_finds_an_organ(modality):
    for value in (1, 2, 3):
        best = []
        for number in range(4):
            scan = phantom(0, SHAPE, number=number, modality=modality)
            organ = scan.label == value
            inside = scan.image[organ]
            intervals = [np.percentile(inside, (edge, 100 - edge)) for edge in (1, 5, 10, 20, 30)]
            best.append(max(dice((scan.image >= low) & (scan.image <= high), organ) for low, high in intervals))
        assert np.mean(best) < 0.5


def test_contrast_differs_between_patients():
    means = []
    for number in range(8):
        scan = phantom(0, SHAPE, number=number)
        means.append([scan.image[scan.label == value].mean() for value in (1, 2, 3)])
    order = {tuple(np.argsort(row)) for row in means}
    assert len(order) > 1  # no organ is always the brightest


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_pictures_are_axial_cuts(modality):
    picture = phantom(0, (64, 80), modality=modality)
    assert picture.image.dtype == np.uint16
    assert picture.image.shape == picture.label.shape == (64, 80)
    assert len(picture.spacing_mm) == 2
    level = 300 if modality == "MR" else 900
    assert picture.image[0, 0] < level < picture.image[32, 40]
    livers = [phantom(0, (64, 80), number=number).label == 1 for number in range(8)]
    columns = np.concatenate([np.nonzero(liver)[1] for liver in livers])
    assert columns.mean() < 39.5  # the patient's right is on the left of the picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4, 32, 32)}, r"shape is \[4, 32, 32\]: give two or three axes of at least 8"),
        ({"shape": (32,)}, r"shape is \[32\]"),
        ({"shape": (32, 32, 32), "spacing_mm": (1.0, 1.0)}, r"spacing_mm \[1.0, 1.0\] does not fit to shape"),
        ({"shape": (32, 32, 32), "spacing_mm": (1.0, 0.0, 1.0)}, "one positive number per axis"),
    ],
)
def test_impossible_phantoms_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        phantom(0, **arguments)
