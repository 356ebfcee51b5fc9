"""Pictures of a prediction over its label: right slice, right side, right color, true proportions."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medssl.reporting.overlay import FILL, GAP, LINE, PALETTE, SHORTEST, color_of, overlay
from medssl.types import LabelSchema, UserError

SCHEMA = LabelSchema("mask", ((0, "background"), (5, "liver"), (9, "spleen")), ignore=255)
ORANGE, BLUE = PALETTE[:2]


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def has(picture: np.ndarray, color) -> np.ndarray:
    return (picture == np.asarray(color, np.uint8)).all(axis=-1)


def filled(gray: int, color) -> list[int]:
    return [round((1 - FILL) * gray + FILL * c) for c in color]


def legend_rows(picture: np.ndarray, height: int) -> int:
    return (len(picture) - height) // LINE


def test_a_picture_keeps_its_proportions_and_grows_to_a_readable_size():
    label = np.zeros((20, 30), np.uint8)
    picture = pixels(overlay(np.zeros((20, 30)), label, None, SCHEMA, (2.0, 1.0)))
    # 40 mm high, 30 mm wide: the longer side is as long as the least
    assert picture.shape[1] == SHORTEST * 30 // 40
    assert legend_rows(picture, SHORTEST) >= 1


def test_the_label_is_filled_and_the_prediction_outlined():
    image = np.zeros((60, 60))
    label, prediction = np.zeros((2, 60, 60), np.uint8)
    label[10:30, 10:30] = 5
    prediction[30:50, 30:50] = 9
    picture = pixels(overlay(image, label, prediction, SCHEMA, (1.0, 1.0)))[:SHORTEST]
    times = SHORTEST // 60
    assert np.array_equal(has(picture, filled(0, ORANGE)), np.kron(label == 5, np.ones((times, times))).astype(bool))
    outline = np.zeros((60 * times, 60 * times), bool)
    outline[30 * times : 50 * times, 30 * times : 50 * times] = True
    outline[30 * times + 2 : 50 * times - 2, 30 * times + 2 : 50 * times - 2] = False
    assert np.array_equal(has(picture, BLUE), outline)


def test_the_slices_with_most_label_are_shown_in_radiological_order():
    image = np.zeros((24, 24, 24))
    label = np.zeros((24, 24, 24), np.uint8)
    label[20:23, 18:22, 15:17] = 5  # right, front, head
    label[2, 2, 2] = 9
    picture = pixels(overlay(image, label, None, SCHEMA, (1.0, 1.0, 1.0)))
    side = SHORTEST
    axial, coronal, sagittal = (picture[:side, i * (side + GAP) :][:, :side] for i in range(3))
    for tile, rows, columns in (
        (axial, (2, 6), (1, 4)),  # the front is up, the patient's right on the left
        (coronal, (7, 9), (1, 4)),  # the head is up
        (sagittal, (7, 9), (2, 6)),  # the front on the left
    ):
        expected = np.zeros((24, 24), bool)
        expected[slice(*rows), slice(*columns)] = True
        shown = has(tile, filled(0, ORANGE))
        assert np.array_equal(shown, np.kron(expected, np.ones((10, 10))).astype(bool))
        assert not has(tile, filled(0, BLUE)).any()


def test_without_label_the_prediction_says_which_slices():
    prediction = np.zeros((12, 12, 12), np.uint8)
    prediction[1:5, 1:5, 1] = 9
    for label in (None, np.zeros((12, 12, 12), np.uint8)):
        picture = pixels(overlay(np.zeros((12, 12, 12)), label, prediction, SCHEMA, (1.0, 1.0, 1.0)))
        assert has(picture[:SHORTEST, :SHORTEST], BLUE).sum() > 200


def test_without_any_of_both_the_middle_is_shown():
    image = np.zeros((12, 12, 12))
    image[:, :, 6] = 100
    image[0, 0, :] = 200  # not all is of one brightness
    picture = pixels(overlay(image, None, None, SCHEMA, (1.0, 1.0, 1.0)))
    assert np.median(picture[:SHORTEST, :SHORTEST, 0]) > 100


def test_thick_slices_are_as_thick_as_they_are():
    image = np.zeros((40, 20, 4))
    picture = pixels(overlay(image, None, None, SCHEMA, (1.0, 2.0, 10.0)))
    # 40 mm each way: every tile is a square
    assert picture.shape[1] == 3 * SHORTEST + 2 * GAP


def test_large_pictures_are_made_smaller():
    label = np.zeros((1000, 800), np.uint8)
    label[500:, :] = 5
    picture = pixels(overlay(np.zeros((1000, 800)), label, None, SCHEMA, (0.5, 0.5)))
    assert picture.shape[1] == 307
    assert has(picture[:384], filled(0, ORANGE)).sum() == 192 * 307


def test_what_is_ignored_is_gray():
    label = np.full((40, 40), 255, np.uint8)
    picture = pixels(overlay(np.zeros((40, 40)), label, None, SCHEMA, (1.0, 1.0)))
    assert has(picture[:SHORTEST], [51, 51, 51]).all()


def test_colors_and_channels_of_the_image():
    color = np.zeros((3, 30, 30), np.uint8)
    color[0] = np.arange(30)[None] * 8
    red = pixels(overlay(color, None, None, SCHEMA, (1.0, 1.0)))[:SHORTEST]
    assert red[..., 0].max() == 255
    assert red[..., 1].max() == 0
    two = np.stack([np.zeros((30, 30)), np.full((30, 30), np.nan)])
    two[0, :15] = 7
    gray = pixels(overlay(two, None, None, SCHEMA, (1.0, 1.0)))
    assert gray[20, 20].tolist() == [255] * 3
    assert gray[220, 20].tolist() == [0] * 3


def test_an_image_without_one_finite_value_is_black():
    assert pixels(overlay(np.full((30, 30), np.nan), None, None, SCHEMA, (1.0, 1.0))).max() == 0


def test_a_class_keeps_its_color_and_the_legend_names_it():
    assert [color_of(SCHEMA, value) for value in (5, 9)] == [ORANGE, BLUE]
    many = LabelSchema("mask", tuple((n, f"class {n}") for n in range(10)))
    assert color_of(many, 8) == ORANGE
    label = np.zeros((40, 40), np.uint8)
    label[:20] = 9
    with_class = pixels(overlay(np.zeros((40, 40)), label, None, SCHEMA, (1.0, 1.0)))
    swatches = has(with_class[SHORTEST:], BLUE)
    assert swatches.sum() > 100
    assert not has(with_class[SHORTEST:], ORANGE).any(), "a class that the picture does not show"


def test_many_classes_fit_into_the_picture():
    schema = LabelSchema("mask", tuple((n, f"a rather long name {n}") for n in range(14)))
    label = np.repeat(np.arange(14, dtype=np.uint8)[:, None], 14, axis=1)
    picture = pixels(overlay(np.zeros((14, 14)), label, None, schema, (1.0, 1.0)))
    assert picture.shape[1] == SHORTEST
    assert legend_rows(picture, SHORTEST) >= 13


@pytest.mark.parametrize(
    ("image", "label", "spacing_mm"),
    [
        ((8, 8), (8, 9), (1.0, 1.0)),
        ((8, 8), (8, 8), (1.0, 1.0, 1.0)),
        ((2, 1, 8, 8), None, (1.0, 1.0)),
        ((0, 8), None, (1.0, 1.0)),
    ],
)
def test_what_does_not_fit_together_is_refused(image, label, spacing_mm):
    shown = None if label is None else np.zeros(label, np.uint8)
    with pytest.raises(UserError, match="cannot be drawn: give one spacing for each of two or three axes"):
        overlay(np.zeros(image), shown, None, SCHEMA, spacing_mm)
