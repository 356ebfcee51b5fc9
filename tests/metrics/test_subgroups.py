"""Measures by group: each group is scored as if it were alone; the table shows them side by side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics.cases import ClassificationRow, SegmentationRow
from medssl.metrics.mask_measures import ClassScore
from medssl.metrics.subgroups import columns_of, subgroups, values_of
from medssl.metrics.tables import summarize_classification, summarize_segmentation, table
from medssl.types import LabelSchema, UserError

SCHEMA = LabelSchema("mask", ((0, "background"), (1, "liver")))
DICE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def segmented():
    scores = [ClassScore(dice, 1.0, 10, 10) for dice in DICE]
    return [SegmentationRow(f"s{n}", f"a{n}", "liver", score) for n, score in enumerate(scores)]


def opened(**columns):
    """Stands for an index with these columns and a scan for each of their values."""
    rows = [
        {"scan_id": f"s{n}"} | {name: values[n] for name, values in columns.items()}
        for n in range(len(next(iter(columns.values()))))
    ]
    asked = []
    return SimpleNamespace(
        columns=lambda: ["scan_id", *columns], rows=lambda where: (asked.append(where), rows)[1], asked=asked
    )


def test_each_group_is_summed_up_alone():
    rows = segmented()
    values = {"sex": dict(zip((row.scan_id for row in rows), "FFFFMM", strict=True))}
    groups = subgroups(rows, values, lambda own: summarize_segmentation(own, SCHEMA))["sex"]
    assert list(groups) == ["F", "M"]
    alone = summarize_segmentation(rows[:4], SCHEMA)["metrics"]
    assert groups["F"]["metrics"] == alone
    assert groups["F"]["metrics"]["dice"]["value"] == pytest.approx(0.75)
    assert groups["M"]["metrics"]["dice"] == {"value": 0.45, "low": None, "high": None, "subjects": 2}
    assert groups["M"]["notes"][0].endswith("no interval: it needs at least 3 subjects, there are 2")
    assert (groups["M"]["scans"], groups["M"]["subjects"]) == (2, 2)


def test_values_are_in_order_and_those_that_lack_come_last():
    columns = {"field_strength_t": (3.0, None, 1.5, 10.0), "sex": ("M", "", "F", None), "size_i": (64, 8, 9, 9)}
    index = opened(**columns)
    found = values_of(list(columns), index, "o'clock", ["s0", "s1", "s2", "s3"])
    assert list(dict.fromkeys(found["field_strength_t"].values())) == ["1.5", "3", "10", "not known"]
    assert found["sex"] == {"s2": "F", "s0": "M", "s1": "not known", "s3": "not known"}
    assert list(dict.fromkeys(found["size_i"].values())) == ["8", "9", "64"]
    assert index.asked == ["split = 'o''clock'"]
    assert values_of(["sex"], index, "test", ["s2"]) == {"sex": {"s2": "F"}}
    assert values_of([], index, "test", ["s2"]) == {}


def grouped(values):
    """The groups in their order, each with its values."""
    scans = [f"s{n}" for n in range(len(values))]
    found = values_of(["column"], opened(column=values), "test", scans)["column"]
    groups = {}
    for scan, group in found.items():
        groups.setdefault(group, []).append(values[int(scan[1:])])
    return groups


def test_many_numbers_are_cut_into_bands():
    ages = (94, 18, 20, 39, 40, 59, 60, 61, 62, 63, 80, 79)
    assert grouped(ages) == {
        "0 to 19": [18], "20 to 39": [20, 39], "40 to 59": [40, 59], "60 to 79": [60, 61, 62, 63, 79],
        "80 to 99": [80, 94],
    }  # fmt: skip
    text = grouped((*map(str, ages), ""))  # values of a table are text
    assert list(text) == ["0 to 19", "20 to 39", "40 to 59", "60 to 79", "80 to 99", "not known"]
    assert text["60 to 79"] == ["60", "61", "62", "63", "79"]
    tenths = grouped(tuple(n / 10 for n in range(11)))
    assert {band: len(values) for band, values in tenths.items()} == {
        "0 to below 0.5": 5, "0.5 to below 1": 5, "1 to below 1.5": 1
    }  # fmt: skip
    assert tenths["0.5 to below 1"] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert list(grouped(tuple(range(-12, 8)))) == ["-15 to -11", "-10 to -6", "-5 to -1", "0 to 4", "5 to 9"]
    assert next(iter(grouped(tuple(range(20010000, 20060000, 2500))))) == "20010000 to 20019999"


def test_few_numbers_and_words_are_groups_of_their_own():
    assert list(grouped(("10", "9", "100", None))) == ["9", "10", "100", "not known"]
    assert len(grouped(tuple(range(10)))) == 10
    assert len(grouped(tuple(range(11)))) == 3
    assert len(grouped((*map(str, range(20)), "many"))) == 21  # one word
    assert len(grouped((*map(str, range(20)), "nan"))) == 21


@given(st.lists(st.floats(-1e6, 1e6) | st.integers(-500, 500), min_size=11, max_size=40, unique=True))
def test_bands_are_few_and_hold_their_values(values):
    groups = grouped(values)
    if max(values) - min(values) < 1e-3 or len(set(values)) <= 10:
        return
    assert len(groups) <= 5
    whole = all(float(value).is_integer() for value in values)
    widths = set()
    for band, own in groups.items():
        first, behind = (float(border) for border in band.replace("below ", "").split(" to "))
        behind += whole
        widths.add(round(behind - first, 9))
        near = 1e-6 * (behind - first)
        assert all(first - near <= value < behind + near for value in own)
    assert len(widths) == 1


def test_groups_without_scores_are_left_out():
    values = {"sex": {"s0": "F", "s1": "F", "s9": "M"}}
    groups = subgroups(segmented()[:2], values, lambda own: summarize_segmentation(own, SCHEMA))
    assert list(groups["sex"]) == ["F"]


def test_columns_are_those_of_the_index():
    index = opened(sex=("F",), model=("X",))
    assert columns_of("sex, model,sex", index) == ["sex", "model"]
    assert columns_of("", index) == []
    with pytest.raises(
        UserError, match="by names 'gender', which is no column of the index; there are scan_id, sex, mo"
    ):
        columns_of("sex,gender", index)
    with pytest.raises(UserError, match="by names '', which is no column"):
        columns_of("sex,,model", index)


def test_the_table_shows_groups_side_by_side():
    rows = segmented()
    summary = summarize_segmentation(rows, SCHEMA)
    plain = table(summary).splitlines()
    values = {"sex": dict(zip((row.scan_id for row in rows), "FFFFMM", strict=True))}
    groups = subgroups(rows, values, lambda own: summarize_segmentation(own, SCHEMA))
    lines = table(summary | {"subgroups": groups}).splitlines()
    assert lines[: len(plain)] == plain
    women = groups["sex"]["F"]["metrics"]["dice"]
    assert lines[len(plain) : len(plain) + 4] == [
        "by sex:",
        "measure        sex   value     95 % interval  subjects",
        f"dice           F    0.7500  {women['low']:.4f} to {women['high']:.4f}         4",
        "dice           M    0.4500                 -         2",
    ]
    assert len(lines) == len(plain) + 2 + 2 * len(summary["metrics"])


def test_a_group_of_one_class_says_what_is_not_defined():
    rows = [ClassificationRow(f"s{n}", f"a{n}", "yn"[n % 2], "y", (0.6, 0.4)) for n in range(8)]
    values = {"sex": {row.scan_id: "M" if row.truth == "y" else "F" for row in rows}}
    groups = subgroups(rows, values, lambda own: summarize_classification(own, ["y", "n"]))["sex"]
    assert groups["M"]["metrics"]["accuracy"]["value"] == 1.0
    assert groups["M"]["metrics"]["auroc"]["value"] is None
    assert any(note.endswith("not defined: every scan is y") for note in groups["M"]["notes"])
