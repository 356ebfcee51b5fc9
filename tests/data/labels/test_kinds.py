"""Kinds of labels are told apart by classes: what a kind does stands in its own files, and nowhere is a list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medssl.data.labels.kinds.base import kind_named, kind_of, kind_of_task, kinds
from medssl.heads.multi_label import MultiLabel
from medssl.metrics.scoring import scoring_of, scoring_of_task, tasks
from medssl.types import LabelSchema, UserError

ROOT = Path(__file__).parents[3] / "medssl"
NAMES = {
    "mask": "segmentation",
    "classes": "classification",
    "findings": "multi_label",
    "number": "regression",
    "survival": "survival",
}
WORDS = "|".join({*NAMES, *NAMES.values()} - {"mask"})  # "mask" is also a role of files
BRANCH = re.compile(rf'schema\.kind\b|[!=]= "({WORDS})"|[!=]= MASK\b|\bin \("({WORDS})"')
ELSEWHERE = {  # a target without a kind is a mask by its name alone; the online probe takes none
    "data/labels/selection.py": 1,
    "probing/online_probe.py": 1,
}


def test_no_branch_on_a_kind_outside_the_kinds():
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith(
            ("data/labels/kinds/", "metrics/kinds/", "data/formats/")
        ):  # formats have kinds of files
            count = len(BRANCH.findall(file.read_text()))
            found |= {name: count} if count else {}
    assert found == ELSEWHERE


def test_every_kind_is_scored_and_has_one_name():
    assert {kind.name: kind.task for kind in kinds()} == NAMES
    assert sorted(tasks()) == sorted(NAMES.values())
    for name, task in NAMES.items():
        schema = LabelSchema(name, ((0, "a"), (1, "b")), kind=name)
        assert kind_of(schema) is kind_named(name) is kind_of_task(task)
        assert scoring_of(schema) is scoring_of_task(task)
    assert kind_of(LabelSchema("mask", ((0, "a"), (1, "b")))).per_voxel  # as cards and stores write it
    assert kind_of_task(MultiLabel.kind).name == "findings"


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda: kind_named("boxes"), "labels of kind 'boxes': expected one of classes, findings, mask, number"),
        (lambda: kind_of_task("detection"), "the head is for 'detection': expected one of classification, multi_label"),
        (lambda: scoring_of_task("detection"), "'detection' cannot be scored: expected one of classification"),
    ],
)
def test_an_unknown_kind_is_refused(find, message):
    with pytest.raises(UserError, match=message):
        find()
