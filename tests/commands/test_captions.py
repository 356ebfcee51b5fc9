"""Pictures of classifications tell the label and the prediction of each scan."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from medssl.data.labels.kinds.base import kind_of
from medssl.training.pictures import draw
from medssl.types import LabelSchema

CLASSES = LabelSchema("grade", ((0, "benign"), (1, "malignant")))
FINDINGS = LabelSchema("a,b", ((0, "a"), (1, "b")), kind="findings")
NUMBER = LabelSchema("age", ((0, "age"),), kind="number")


def in_words(values, prediction, schema):
    return kind_of(schema).in_words(values, prediction, schema)


def test_label_and_prediction_in_words():
    assert (
        kind_of(CLASSES).in_words({"grade": "benign"}, [0.27, 0.73], CLASSES)
        == "label benign, prediction malignant 0.73"
    )
    assert in_words({}, [0.9, 0.1], CLASSES) == "label unknown, prediction benign 0.90"
    assert in_words({"a": "1", "b": "0"}, [0.8, 0.1], FINDINGS) == "label a, prediction a 0.80, b 0.10"
    assert in_words({"age": "50"}, [47.25], NUMBER) == "label 50, prediction 47.25"


def test_captions_stand_below_each_row(tmp_path):
    tensors = {"input": torch.rand(2, 1, 16, 16)}
    draw(tmp_path / "bare.png", tensors)
    draw(tmp_path / "told.png", tensors, captions=["label benign, prediction malignant 0.73", "label x"])
    bare, told = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("bare", "told"))
    assert told.shape[0] == bare.shape[0] + 2 * 14
    assert told.shape[1] >= 39 * 6
    first = told[14 + 128 : 14 + 128 + 14]
    assert (first > 200).sum() > 50, "the words are drawn"
    assert np.array_equal(told[14 : 14 + 128, :128], bare[14 : 14 + 128, :128])
