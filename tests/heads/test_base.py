"""Stored label values as class numbers."""

from __future__ import annotations

import pytest
import torch

from medssl.heads.base import UNLABELED, class_numbers
from medssl.types import LabelSchema, UserError

SCHEMA = LabelSchema("mask", ((0, "background"), (7, "liver"), (300, "tumour")), ignore=255)


def test_values_become_places_in_the_schema():
    labels = torch.tensor([[0, 7, 300], [255, -1, 7]], dtype=torch.int16)
    numbers = class_numbers(labels, SCHEMA)
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [[0, 1, 2], [UNLABELED, UNLABELED, 1]]


def test_minus_one_is_padding_where_nothing_is_ignored():
    assert class_numbers(torch.tensor([-1, 1]), LabelSchema("mask", ((0, "a"), (1, "b")))).tolist() == [-1, 1]


def test_values_that_are_no_class_are_refused():
    match = (
        r"label values \[3, 9\] are not among the classes 0=background, 7=liver, 300=tumour: "
        r"name them with label\.class_names"
    )
    with pytest.raises(UserError, match=match):
        class_numbers(torch.tensor([0, 9, 3, 9, 255]), SCHEMA)
