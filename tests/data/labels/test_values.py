"""Findings and numbers of whole scans: cells, what is refused, few labels, balanced draws."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from data.stores import fill_store, numbered, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.labels.kinds.findings import findings_of, findings_schema
from medssl.data.labels.kinds.number import number_of, number_schema, quarters
from medssl.data.labels.selection import constant_labels, few, groups_of, labeled_scans, schema_of
from medssl.data.loading.batches import BatchReader
from medssl.data.loading.order import BalancedOrder
from medssl.types import LabelSchema, Sampling, UserError, ViewPlan

PAIR = LabelSchema("effusion,nodule", ((0, "effusion"), (1, "nodule")), kind="findings")
LIST = LabelSchema("report", ((0, "effusion"), (1, "nodule")), kind="findings")
AGE = LabelSchema("age", ((0, "age"),), kind="number")


@pytest.mark.parametrize(
    ("effusion", "nodule", "expected"),
    [
        ("1", "0", (1, 0)), ("Yes", "NO", (1, 0)), ("true", "false", (1, 0)), ("positive", "absent", (1, 0)),
        ("1.0", "0.0", (1, 0)), ("-1", "", (-1, -1)), ("-1.0", "NaN", (-1, -1)), ("unknown", "1", (-1, 1)),
    ],
)  # fmt: skip
def test_cells_of_findings(effusion, nodule, expected):
    assert findings_of({"effusion": effusion, "nodule": nodule}, PAIR) == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("effusion|nodule", (1, 1)), ("nodule", (0, 1)), ("nodule; effusion", (1, 1)), ("effusion,", (1, 0)),
     ("No Finding", (0, 0)), ("none", (0, 0)), ("", (-1, -1)), ("NA", (-1, -1))],
)  # fmt: skip
def test_a_column_that_lists_findings(cell, expected):
    assert findings_of({"report": cell}, LIST) == expected


def test_the_schema_says_which_findings_there_are():
    rows = [{"a": "1", "b": "0", "report": "x|y"}, {"a": "0", "b": "1", "report": "none"}, {"report": ""}]
    assert findings_schema(rows, "a, b", "it") == LabelSchema("a,b", ((0, "a"), (1, "b")), kind="findings")
    assert findings_schema(rows, "a", "it") == LabelSchema("a", ((0, "a"),), kind="findings")
    found = findings_schema(rows, "report", "it")
    assert found == LabelSchema("report", ((0, "x"), (1, "y")), kind="findings")
    assert [findings_of(row, found) for row in rows] == [(1, 1), (0, 0), (-1, -1)]


def test_numbers_and_their_quarters():
    assert number_of({"age": " 61.5 "}, AGE) == 61.5
    assert number_of({"age": "-1"}, AGE) == -1
    assert all(math.isnan(number_of({"age": cell}, AGE)) for cell in ("", "NaN", "unknown"))
    assert number_schema([{"age": "3"}, {"age": "4"}, {}], "age", "it") == AGE
    assert quarters(np.array([5.0, 1.0, 3.0, 2.0, 4.0, 8.0, 7.0, 6.0])).tolist() == [2, 0, 1, 0, 1, 3, 3, 2]
    assert quarters(np.array([1.0, 1.0, 1.0, 9.0])).tolist() == [0, 0, 0, 3]


BAD = [
    ("findings", "effusoin", [{"effusion": "1"}], r"no scan of it has a value 'effusoin'.*Did you mean 'effusion'\?"),
    (
        "findings",
        "a",
        [{"a": ""}, {"a": "", "b": "1"}],
        r"^data\.target: 'a' is empty for all 2 scans of it\. Fill it in, then index and cache again$",
    ),
    (
        "findings",
        "a,a",
        [{"a": "1"}],
        r"^data\.target: the target names 'a' twice \(got 'a,a'\)\. Name each",
    ),
    ("findings", "a,b", [{"a": "maybe", "b": "1"}], r"a has the value 'maybe' \(expected yes or no"),
    (
        "findings",
        "a",
        [{"a": "1"}, {"a": "yes"}, {}],
        r"^data\.target: the finding 'a' is yes in all 2 scans where",
    ),
    (
        "findings",
        "a",
        [{"a": "0"}, {"a": "no"}],
        r"^data\.target: the finding 'a' is no in all 2 scans where it is known\. Leave it out$",
    ),
    (
        "number",
        "aeg",
        [{"age": "1"}],
        r"^data\.target: no scan of it has a value 'aeg' \(expected one of age\)\. Did you mean 'age'\?$",
    ),
    (
        "number",
        "age",
        [{"age": "old"}],
        r"^age has the value 'old' \(expected a number such as 61\.5",
    ),
    ("number", "age", [{"age": "inf"}], r"^age has the value 'inf' \(expected a number"),
    (
        "number",
        "age",
        [{"age": "40"}, {"age": "40.0"}],
        r"'age' is 40 in all 2 scans where it is known: there is nothing",
    ),
    ("number", "age", [{"age": "nan"}], r"'age' is known of no scan: there is nothing to learn"),
]


@pytest.mark.parametrize(("kind", "target", "rows", "message"), BAD)
def test_wrong_targets_are_refused(kind, target, rows, message):
    with pytest.raises(UserError, match=message):
        (findings_schema if kind == "findings" else number_schema)(rows, target, "it")


def test_a_listed_finding_that_the_network_does_not_know():
    with pytest.raises(UserError, match="report lists 'cyst', which is not among the findings effusion, nodule"):
        findings_of({"report": "cyst|nodule"}, LIST)


# --- few labels


@pytest.fixture
def patients(tmp_path, monkeypatch):
    """24 scans of 12 subjects: effusion in four of them, nodule in two; the number is ten times that of the subject."""

    def values(name):
        who = int(name[4:]) // 2
        if who == 11:
            return (("age", ""), ("effusion", ""), ("nodule", "-1"))
        return (("age", str(10 * who)), ("effusion", str(int(who < 4))), ("nodule", str(int(who in (3, 4)))))

    volumes = {f"scan{n:02d}": volume(numbered((8, 8), seed=n)) for n in range(24)}
    return fill_store(
        tmp_path / "store", volumes, monkeypatch,
        subject=lambda name: f"subject{int(name[4:]) // 2:02d}", values=values,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_few_subjects_show_every_finding(patients, seed):
    schema = schema_of(patients, "effusion,nodule", "findings")
    scans = labeled_scans(patients, 2, "train", schema)
    assert len(scans) == 22  # nothing is known of the last subject
    chosen = [few(patients, scans, schema, subjects=count, seed=seed) for count in range(3, 12)]
    assert all(set(a) < set(b) for a, b in pairwise(chosen))
    found = [findings_of(patients.values(n), schema) for n in chosen[0]]
    assert Counter(found)[(0, 0)] == 2
    assert {k for row in found for k in (0, 1) if row[k]} == {0, 1}
    assert constant_labels(patients, chosen[0], schema) == []
    assert constant_labels(patients, chosen[0][:2], schema) != []


@pytest.mark.parametrize("seed", range(4))
def test_few_subjects_spread_over_the_number(patients, seed):
    schema = schema_of(patients, "age", "number")
    scans = labeled_scans(patients, 2, "train", schema)
    assert len(scans) == 22
    ages = [
        sorted({float(patients.values(n)["age"]) for n in few(patients, scans, schema, subjects=k, seed=seed)})
        for k in (2, 4)
    ]
    assert ages[0][0] <= 20 and ages[0][1] >= 80  # noqa: PT018
    assert [int(quarter) for quarter in np.digitize(ages[1], [30, 60, 90])] in ([0, 1, 2, 3], [0, 1, 2, 2])
    assert set(ages[0]) < set(ages[1])


def test_scans_that_are_alike_are_refused(patients):
    schema = schema_of(patients, "age", "number")
    scans = labeled_scans(patients, 2, "train", schema)
    with pytest.raises(UserError, match=r"age is .* in all 2 labeled scans: there is nothing to learn"):
        few(patients, scans, schema, subjects=1, seed=0)
    findings = schema_of(patients, "effusion,nodule", "findings")
    alike = tuple(n for n in scans if findings_of(patients.values(n), findings) == (0, 0))
    with pytest.raises(UserError, match=f"no finding differs among all {len(alike)} labeled scans. Take more labels"):
        few(patients, alike, findings, subjects=None, seed=0)


def test_a_scan_stands_for_its_rarest_finding(patients):
    schema = schema_of(patients, "effusion,nodule", "findings")
    scans = labeled_scans(patients, 2, "train", schema)
    expected = [0] * 6 + [1] * 4 + [-1] * 12
    assert groups_of(patients, scans, schema) == expected


# --- balanced draws


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), seed=st.integers(0, 99), root=st.booleans())
def test_classes_come_evenly_and_their_scans_equally_often(counts, seed, root):
    """A pass holds one draw of each class, or as many as the square root asks for; scans of one class differ by one."""
    groups = np.repeat(np.arange(len(counts)), counts)
    scans = np.arange(len(groups)) + 100
    order = BalancedOrder(seed, scans, groups, root=root)
    slots = [max(1, round(len(scans) * math.sqrt(n) / sum(map(math.sqrt, counts)))) if root else 1 for n in counts]
    length, passes = sum(slots), 20
    draws = [order(draw) for draw in range(length * passes)]
    for first in range(0, len(draws), length):
        assert np.bincount(groups[np.array(draws[first : first + length]) - 100]).tolist() == slots
    for group, count in enumerate(counts):
        often = [draws.count(scan) for scan in scans[groups == group]]
        assert sum(often) == slots[group] * passes
        whole = slots[group] * passes // count
        assert all(whole - slots[group] <= n <= whole + 1 + slots[group] for n in often)
    assert draws[7] == BalancedOrder(seed, scans, groups, root=root)(7)


def test_a_hundred_to_one_comes_half_and_half(patients):
    order = BalancedOrder(3, np.arange(101), np.array([0] * 100 + [1]), root=False)
    draws = [order(n) for n in range(200)]
    assert draws.count(100) == 100
    assert sorted(set(draws)) == list(range(101))  # each of the hundred once


def reader(store, sampling, rank=0, world=1, batch=4, **options):
    plan = ViewPlan((), sampling)
    return BatchReader(store, plan, (4, 4), batch, 5, "train", {"rank": rank, "world_size": world, **options})


def drawn(held, batches):
    images = np.empty(*held.image)
    return [sample for batch in range(batches) for sample in held.packet(batch, images, None).origin[0]]


def test_balanced_batches_do_not_depend_on_processes(patients):
    schema = schema_of(patients, "effusion", "findings")
    scans = labeled_scans(patients, 2, "train", schema)
    options = {"scans": scans, "groups": tuple(groups_of(patients, scans, schema))}
    sampling = Sampling(balance="equal", regions_per_scan=2)
    one = drawn(reader(patients, sampling, **options), 6)
    parts = [drawn(reader(patients, sampling, rank, 2, 2, **options), 6) for rank in (0, 1)]
    both = [scan for k in range(6) for part in parts for scan in part[2 * k : 2 * k + 2]]
    assert one == both
    numbers = [next(n for n in scans if patients.scan_id(n) == scan) for scan in one]
    positive = [findings_of(patients.values(n), schema)[0] for n in numbers]
    assert sum(positive) == len(positive) / 2  # a third of the scans


@pytest.mark.parametrize(
    ("sampling", "groups", "message"),
    [
        (
            Sampling(balance="root"),
            None,
            r"^data\.sampling\.balance: the scans have no classes here \(got 'root'\)\. Set it to none",
        ),
        (Sampling(balance="equal", distinct_subjects=True), (0, 1), "data.sampling.distinct_subjects is true"),
    ],
)
def test_balanced_sampling_without_classes_is_refused(patients, sampling, groups, message):
    with pytest.raises(UserError, match=message):
        reader(patients, sampling, scans=(0, 1), groups=groups)
