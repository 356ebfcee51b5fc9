"""Measures of findings and of numbers: by hand, by other libraries, files, what is not defined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from torch import tensor
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision
from torchmetrics.functional.regression import r2_score

from medssl.metrics import cases, multi_label, regression
from medssl.metrics.cases import FindingsRow, NumberRow
from medssl.metrics.multi_label import summarize_multi_label
from medssl.metrics.regression import summarize_regression
from medssl.metrics.tables import read_summary, table, write_summary
from medssl.types import UserError

NAMES = ["effusion", "nodule"]
ROWS = [
    FindingsRow("s1", "a", (1, -1), (0.9, 0.2)),
    FindingsRow("s2", "b", (0, 1), (0.4, 0.6)),
    FindingsRow("s3", "c", (1, 0), (0.3, 0.5)),
    FindingsRow("s4", "d", (0, 0), (0.1, 0.7)),
]


def many(scans=60, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((scans, 2)) < 0.4).astype(int)
    chance = 1 / (1 + np.exp(-rng.normal(1.5 * truth - 0.7)))
    return [FindingsRow(f"s{n}", f"p{n}", tuple(truth[n].tolist()), tuple(chance[n].tolist())) for n in range(scans)]


def test_findings_by_hand():
    """Effusion: 0.9 beats both, 0.3 one of two; nodule: 0.6 beats 0.5 alone, and is second of three."""
    summary = summarize_multi_label(ROWS, NAMES)
    values = {name: entry["value"] for name, entry in summary["metrics"].items()}
    assert values["auroc:effusion"] == 3 / 4
    assert values["auroc:nodule"] == 1 / 2
    assert values["auroc"] == 5 / 8
    assert values["average_precision:effusion"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["average_precision:nodule"] == 1 / 2
    assert values["brier:effusion"] == pytest.approx((0.01 + 0.16 + 0.49 + 0.01) / 4)
    assert values["brier:nodule"] == pytest.approx((0.16 + 0.25 + 0.49) / 3)
    assert values["brier"] == pytest.approx((values["brier:effusion"] + values["brier:nodule"]) / 2)
    for specificity, effusion, nodule in ((0.9, 1 / 2, 0.0), (0.5, 1.0, 1.0)):
        found = summarize_multi_label(ROWS, NAMES, specificity=specificity)["metrics"]
        name = f"sensitivity_at_specificity_{specificity:g}"  # thresholds 0.9 and 0.3, none and 0.6
        assert [found[f"{name}:{finding}"]["value"] for finding in NAMES] == [effusion, nodule]
        assert found[name]["value"] == (effusion + nodule) / 2
    assert summary["counts"] == {
        "yes": {"effusion": 2, "nodule": 1}, "no": {"effusion": 2, "nodule": 2},
        "not known": {"effusion": 0, "nodule": 1},
    }  # fmt: skip
    told = table(summary)
    assert "multi-label: 4 scans of 4 subjects" in told
    assert "not known: nodule 1" in told


def test_findings_as_torchmetrics_has_them():
    rows = many()
    summary = summarize_multi_label(rows, NAMES)
    chance, truth = tensor([row.probabilities for row in rows]), tensor([row.truth for row in rows])
    for name, theirs in (("auroc", multilabel_auroc), ("average_precision", multilabel_average_precision)):
        each = theirs(chance, truth, num_labels=2, average="none").tolist()
        assert [summary["metrics"][f"{name}:{finding}"]["value"] for finding in NAMES] == pytest.approx(each, abs=1e-6)
        entry = summary["metrics"][name]
        assert entry["value"] == pytest.approx(np.mean(each), abs=1e-6)
        assert entry["low"] < entry["value"] < entry["high"]


def test_a_finding_that_is_the_same_everywhere_is_said():
    rows = [FindingsRow(f"s{n}", f"p{n}", (n % 2, 0), (0.1 * n, 0.5)) for n in range(6)]
    summary = summarize_multi_label(rows, NAMES)
    assert summary["metrics"]["auroc:nodule"]["value"] is None
    assert summary["metrics"]["auroc"]["value"] == summary["metrics"]["auroc:effusion"]["value"]
    at = "sensitivity_at_specificity_0.9:nodule"
    why = f"auroc:nodule, average_precision:nodule, {at}: not defined: it is absent in every scan where it is known"
    assert why in summary["notes"]
    unknown = [FindingsRow(row.scan_id, row.subject_id, (row.truth[0], -1), row.probabilities) for row in rows]
    notes = summarize_multi_label(unknown, NAMES)["notes"]
    assert f"auroc:nodule, average_precision:nodule, {at}, brier:nodule: not defined: it is known of no scan" in notes


NUMBERS = [NumberRow("s1", "a", 40.0, 43.0), NumberRow("s2", "b", 50.0, 50.0), NumberRow("s3", "c", 60.0, 59.0),
           NumberRow("s4", "c", 70.0, 62.0)]  # fmt: skip


def test_numbers_by_hand():
    values = {name: entry["value"] for name, entry in summarize_regression(NUMBERS, "age")["metrics"].items()}
    assert values["mae"] == 3
    assert values["rmse"] == pytest.approx(np.sqrt(74 / 4))
    assert values["bias"] == -1.5
    assert values["r2"] == pytest.approx(1 - 74 / 500)
    assert values["spearman"] == pytest.approx(1.0)


def test_numbers_as_other_libraries_have_them():
    rng = np.random.default_rng(1)
    truth = np.round(rng.normal(60, 12, 50))  # with ties
    found = np.round(truth + rng.normal(0, 6, 50))
    rows = [NumberRow(f"s{n}", f"p{n // 2}", *pair) for n, pair in enumerate(zip(truth, found, strict=True))]
    summary = summarize_regression(rows, "age")
    values = {name: entry["value"] for name, entry in summary["metrics"].items()}
    assert values["pearson"] == pytest.approx(stats.pearsonr(truth, found).statistic)
    assert values["spearman"] == pytest.approx(stats.spearmanr(truth, found).statistic)
    assert values["r2"] == pytest.approx(float(r2_score(tensor(found), tensor(truth))))
    assert summary["subjects"] == 25
    for entry in summary["metrics"].values():
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["subjects"] == 25


def test_what_constants_do_not_define():
    rows = [NumberRow(f"s{n}", f"p{n}", 5.0, 4.0 + n) for n in range(4)]
    summary = summarize_regression(rows, "age")
    assert [name for name, entry in summary["metrics"].items() if entry["value"] is None] == [
        "r2", "pearson", "spearman",
    ]  # fmt: skip
    assert "r2, pearson, spearman: not defined: the true numbers are all the same" in summary["notes"]
    rows = [NumberRow(f"s{n}", f"p{n}", 4.0 + n, 5.0) for n in range(4)]
    assert (
        "pearson, spearman: not defined: the predicted numbers are all the same"
        in (summarize_regression(rows, "age")["notes"])
    )


# --- files


def test_tables_and_summaries_come_back(tmp_path):
    cases.write_multi_label(tmp_path / "f.csv", ROWS, NAMES)
    assert cases.read_multi_label(tmp_path / "f.csv") == (ROWS, NAMES)
    cases.write_regression(tmp_path / "n.csv", NUMBERS)
    assert cases.read_regression(tmp_path / "n.csv") == NUMBERS
    for summary in (summarize_multi_label(ROWS, NAMES), summarize_regression(NUMBERS, "age")):
        write_summary(tmp_path / "summary.json", summary)
        assert read_summary(tmp_path / "summary.json") == summary


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("f", "truth:nodule", "true:nodule", r"has no pairs of columns truth:NAME and probability:NAME"),
        ("f", "s2,b,0,1", "s2,b,0,2", r"line 3: truth:nodule is '2': expected 0, 1 or nothing"),
        ("f", "0.4,0.6", "1.4,0.6", r"line 3: probability:effusion is '1\.4': expected a number from 0 to 1"),
        ("f", "s2,", "s1,", r"scan s1 stands 2 times: expected one row a scan"),
        ("n", "s1,a,40.0", "s1,a,old", r"line 2: truth is 'old': expected a number"),
        ("n", "43.0", "nan", r"line 2: predicted is 'nan': expected a number"),
        ("n", "predicted", "found", r"has no column 'predicted'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, kind, old, new, message):
    cases.write_multi_label(tmp_path / "f.csv", ROWS, NAMES)
    cases.write_regression(tmp_path / "n.csv", NUMBERS)
    file = tmp_path / f"{kind}.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        (cases.read_multi_label if kind == "f" else cases.read_regression)(file)


def test_what_cannot_be_summed_up_is_refused():
    with pytest.raises(UserError, match=r"no scan was scored, 1 were skipped \(1 broken\)"):
        summarize_multi_label([], NAMES, skipped=[("s1", "broken")])
    with pytest.raises(UserError, match="no scan was scored"):
        summarize_regression([], "age")
    with pytest.raises(UserError, match="scan s1 stands 2 times"):
        summarize_regression([NUMBERS[0], NUMBERS[0]], "age")
    with pytest.raises(UserError, match="scan s1 does not have a truth and a probability for each of 3 findings"):
        summarize_multi_label(ROWS, [*NAMES, "cyst"])
    with pytest.raises(UserError, match=r"1 of 1 scans have scores that are no probabilities \(s1, \.\.\.\)"):
        multi_label.findings_arrays([FindingsRow("s1", "a", (1, 0), (0.5, float("nan")))], NAMES)
    with pytest.raises(UserError, match=r"1 of 1 scans have numbers that are not finite \(s1, \.\.\.\)"):
        regression.number_arrays([NumberRow("s1", "a", 1.0, float("inf"))])
