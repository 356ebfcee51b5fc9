"""Tables of scores: written, read back, summed up; what is no table of scores is refused."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import numpy as np
import pytest

from medssl.metrics.bootstrap import mean_interval
from medssl.metrics.calibration import Scaling, scaled
from medssl.metrics.classification import BINS, SENSITIVITY, score_cases
from medssl.metrics.mask_measures import MEASURES, ClassScore
from medssl.metrics.tables import (
    ClassificationRow,
    SegmentationRow,
    read_classification,
    read_segmentation,
    read_summary,
    scan_scores,
    summarize_classification,
    summarize_segmentation,
    table,
    write_classification,
    write_segmentation,
    write_summary,
)
from medssl.types import LabelSchema, UserError

SCHEMA = LabelSchema("mask", ((0, "background"), (1, "liver"), (2, "tumour, solid")))
ABSENT = ClassScore(None, None, 0, 0, "absent")
NAMES = ["healthy", "ill"]


def segmented():
    """Four scans of three subjects; classes lack in every way."""
    scores = {
        ("scan1", "a"): [ClassScore(0.9, 2.0, 100, 90), ClassScore(1 / 3, 7.0, 10, 20)],
        ("scan2", "a"): [ClassScore(0.7, 4.0, 80, 90), ABSENT],
        ("scan3", "b"): [ClassScore(0.8, 3.0, 90, 90), ClassScore(0.0, None, 5, 0, "missed")],
        ("scan4", "c"): [ClassScore(0.6, 5.0, 90, 99), ClassScore(0.0, None, 0, 4, "invented")],
    }
    return [
        SegmentationRow(scan, subject, name, score)
        for (scan, subject), both in scores.items()
        for (_, name), score in zip(SCHEMA.classes[1:], both, strict=True)
    ]


def classified(scans=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(scans):
        truth = int(rng.random() < 0.4)
        ill = 1 / (1 + np.exp(-rng.normal(1.5 * truth - 0.7)))
        subject = f"subject{number // 2}"
        rows.append(ClassificationRow(f"scan{number}", subject, NAMES[truth], NAMES[int(ill > 0.5)], (1 - ill, ill)))
    return rows


def measured():
    """The same with surface Dice, volumes and lesions."""
    more = [
        (0.95, -0.5, -0.1, 1, 0, 0, 1.0),
        (0.5, 0.25, 1.0, 2, 1, 1, 2 / 3),
        (0.75, 1.0, 0.125, 1, 0, 0, 1.0),
        (None, None, None, 0, 0, 0, None),
        (0.85, 0.0, 0.0, 1, 0, 0, 1.0),
        (0.0, -0.2, -1.0, 0, 2, 0, 0.0),
        (0.65, 0.9, 0.1, 1, 0, 1, 2 / 3),
        (0.0, 0.1, None, 0, 0, 1, 0.0),
    ]
    rows = zip(segmented(), more, strict=True)
    return [
        replace(row, score=replace(row.score, further=dict(zip(MEASURES, values, strict=True)))) for row, values in rows
    ]


# --- cases.csv


def test_scores_of_a_segmentation_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "cases.csv"
    write_segmentation(path, segmented())
    assert read_segmentation(path) == segmented()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "scan_id,subject_id,class,dice,hd95_mm,true_voxels,predicted_voxels,note"
    assert lines[2] == 'scan1,a,"tumour, solid",0.3333333333333333,7.0,10,20,'
    assert lines[4] == 'scan2,a,"tumour, solid",,,0,0,absent'
    assert [file.name for file in path.parent.iterdir()] == ["cases.csv"]


def test_further_measures_come_back_too(tmp_path):
    path = tmp_path / "cases.csv"
    write_segmentation(path, measured())
    assert read_segmentation(path) == measured()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(
        "note,nsd,volume_error_ml,volume_error,lesions_found,lesions_missed,lesions_invented,lesion_f1"
    )
    assert lines[2].endswith("7.0,10,20,,0.5,0.25,1.0,2,1,1,0.6666666666666666")
    assert lines[4].endswith("absent,,,,0,0,0,")
    with pytest.raises(ValueError, match="7 of 8 rows have further measures: expected all or none"):
        write_segmentation(path, [*measured()[:7], segmented()[7]])


def test_probabilities_come_back_as_they_were(tmp_path):
    path = tmp_path / "cases.csv"
    write_classification(path, classified(), NAMES)
    assert read_classification(path) == (classified(), NAMES)
    header = path.read_text(encoding="utf-8").splitlines()[0]
    assert header == "scan_id,subject_id,truth,predicted,probability:healthy,probability:ill"


SEGMENTATION = """scan_id,subject_id,class,dice,hd95_mm,true_voxels,predicted_voxels,note
s1,a,liver,0.5,1.5,10,10,
s1,a,lesion,,,0,0,absent
s2,b,liver,0.25,3,10,12,
s2,b,lesion,0,,3,0,missed
"""
CLASSIFICATION = """scan_id,subject_id,truth,predicted,probability:healthy,probability:ill
s1,a,ill,ill,0.25,0.75
s2,b,healthy,ill,0.5,0.5
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",dice",
            "",
            r"cases.csv has no column 'dice'; its columns are scan_id, subject_id, class, hd95_mm, true_voxels",
        ),
        (SEGMENTATION, "", "cases.csv has no column 'scan_id'; its columns are none"),
        (SEGMENTATION.partition("\n")[2], "\n", "cases.csv has no rows: nothing was scored"),
        ("0.25,3,", "nan,3,", r"cases.csv line 4: dice is 'nan': expected a number from 0 to 1"),
        ("0.25,3,", "good,3,", r"line 4: dice is 'good': expected a number from 0 to 1"),
        ("0.25,3,", "1.25,3,", r"line 4: dice is '1.25': expected a number from 0 to 1"),
        ("0.25,3,", "0.25,-3,", r"line 4: hd95_mm is '-3': expected a number from 0"),
        ("0.25,3,", "0.25,inf,", r"line 4: hd95_mm is 'inf': expected a number from 0"),
        ("0.25,3,10,", "0.25,3,1.5,", r"line 4: true_voxels is '1.5': expected a whole number from 0"),
        ("0.25,3,", ",3,", r"line 4: dice is '': expected nothing where the note is absent, a number from 0 to 1 else"),
        ("0.25,3,", "0.25,,", r"line 4: hd95_mm is '': expected nothing where there is a note, a number from 0 else"),
        ("missed", "lost", r"line 5: note is 'lost': expected nothing, absent, missed or invented"),
        ("s2,b,lesion", "s2,b,liver", "cases.csv: class liver of scan s2 stands twice"),
        ("s2,b,lesion,0,,3,0,missed\n", "", "cases.csv: scan s2 has the classes liver: expected liver, lesion"),
        ("s2,b,lesion", "s2,c,lesion", "cases.csv: scan s2 belongs to subjects b and c"),
        ("10,12,\n", "10,12\n", r"cases.csv line 4: 7 cells under 8 columns"),
    ],
)
def test_what_is_no_table_of_a_segmentation_is_refused(tmp_path, old, new, message):
    path = tmp_path / "cases.csv"
    path.write_text(SEGMENTATION, encoding="utf-8")
    assert len(read_segmentation(path)) == 4
    assert SEGMENTATION.count(old) == 1
    path.write_text(SEGMENTATION.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_segmentation(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",lesion_f1", ",f1", "has no column 'lesion_f1'; its columns are scan_id, .*, lesions_invented, f1"),
        ("0.95,-0.5,", "1.95,-0.5,", "line 2: nsd is '1.95': expected a number from 0 to 1"),
        ("0.95,-0.5,", ",-0.5,", "line 2: nsd is '': expected nothing where the note is absent, a number from 0 to 1"),
        ("0.95,-0.5,", "0.95,less,", "line 2: volume_error_ml is 'less': expected a number$"),
        ("-0.2,-1.0,", "-0.2,-1.1,", "line 7: volume_error is '-1.1': expected a number from -1"),
        ("-0.2,-1.0,", "-0.2,,", "line 7: volume_error is '': expected nothing where the note is absent or invented"),
        ("absent,,,,", "absent,,1.0,,", "line 5: volume_error_ml is '1.0': expected nothing where the note is absent"),
        ("2,1,1,0.66", "2,1,-1,0.66", "line 3: lesions_invented is '-1': expected a whole number from 0"),
        ("2,1,1,0.66", "2,1,1,0.67", "line 3: lesion_f1 is '0.67.*': expected 0.666667 by the other measures"),
        (
            "absent,,,,0,0,0,",
            "absent,,,,0,0,0,1.0",
            "line 5: lesion_f1 is '1.0': expected nothing where the note is absent",
        ),
        (
            "absent,,,,0,0,0,",
            "absent,,,,0,0,1,0.0",
            "line 5: lesion_f1 is '0.0': expected nothing where the note is absent",
        ),
    ],
)
def test_further_measures_that_are_none_are_refused(tmp_path, old, new, message):
    path = tmp_path / "cases.csv"
    write_segmentation(path, measured())
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_segmentation(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("truth", "label", "has no column 'truth'; its columns are scan_id, subject_id, label, predicted"),
        (
            "probability:ill",
            "ill",
            r"has 1 columns probability:CLASS; its columns are scan_id, .*, probability:healthy, ill",
        ),
        ("0.25,0.75", "nan,0.75", r"line 2: probability:healthy is 'nan': expected a number from 0 to 1"),
        ("0.25,0.75", "0.25,", r"line 2: probability:ill is '': expected a number from 0 to 1"),
        ("0.25,0.75", "0.25,0.7", r"line 2: probabilities add up to 0.95: expected 1"),
        ("a,ill,", "a,sick,", r"line 2: truth is 'sick': expected one of healthy, ill"),
        ("healthy,ill,0.5", "healthy,sick,0.5", r"line 3: predicted is 'sick': expected one of healthy, ill"),
        ("s2,b", "s1,b", r"cases.csv: scan s1 stands 2 times: expected one row a scan"),
    ],
)
def test_what_is_no_table_of_a_classification_is_refused(tmp_path, old, new, message):
    path = tmp_path / "cases.csv"
    assert CLASSIFICATION.count(old) == 1
    path.write_text(CLASSIFICATION.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_classification(path)


def test_what_cannot_be_read_or_written_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cases.csv cannot be read: No such file"):
        read_segmentation(tmp_path / "cases.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.csv cannot be read: 'utf-8' codec"):
        read_classification(tmp_path / "binary.csv")
    path = tmp_path / "cases.csv"
    write_segmentation(path, segmented()[:2])
    for number, room, advice in ((errno.ENOSPC, r"; \d+ MiB free", "make room"), (errno.EIO, "", "check the folder")):

        def fail(descriptor, number=number):
            raise OSError(number, "broken")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(
            UserError,
            match=rf"cases.csv could not be written \(broken{room}\): .* is intact; {advice} and run the same",
        ):
            write_segmentation(path, segmented())
    assert read_segmentation(path) == segmented()[:2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["binary.csv", "cases.csv"]


# --- summary.json


def test_a_segmentation_in_sum():
    assert scan_scores(segmented()) == pytest.approx(
        {"scan1": (0.9 + 1 / 3) / 2, "scan2": 0.7, "scan3": 0.4, "scan4": 0.3}
    )
    skipped = [("scan9", "no label")]
    summary = summarize_segmentation(segmented(), SCHEMA, skipped=skipped, notes=["few"], by={"step": 7})
    assert (summary["kind"], summary["scans"], summary["subjects"]) == ("segmentation", 4, 3)
    assert summary["classes"] == ["liver", "tumour, solid"]
    metrics = summary["metrics"]
    both = ["liver", "tumour, solid"]
    assert list(metrics) == [m + n for m in ("dice", "hd95_mm") for n in ("", *(f":{name}" for name in both))]
    first = ((0.9 + 1 / 3) / 2 + 0.7) / 2  # of the subject with two scans
    assert metrics["dice"]["value"] == pytest.approx((first + 0.4 + 0.3) / 3)
    assert metrics["dice"]["subjects"] == 3
    assert metrics["dice"]["low"] < metrics["dice"]["value"] < metrics["dice"]["high"]
    assert metrics["dice:liver"]["value"] == pytest.approx((0.8 + 0.8 + 0.6) / 3)
    assert metrics["dice:tumour, solid"]["value"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert metrics["hd95_mm"]["value"] == pytest.approx(((4.5 + 4.0) / 2 + 3.0 + 5.0) / 3)
    assert metrics["hd95_mm:tumour, solid"] == {"value": 7.0, "low": None, "high": None, "subjects": 1}
    assert summary["counts"] == {
        "absent": {"liver": 0, "tumour, solid": 1},
        "missed": {"liver": 0, "tumour, solid": 1},
        "invented": {"liver": 0, "tumour, solid": 1},
    }
    assert summary["skipped"] == [{"scan_id": "scan9", "reason": "no label"}]
    assert summary["by"] == {"step": 7}
    assert summary["notes"] == [
        "few",
        "hd95_mm leaves out 2 scores without a distance: the class was missed or invented",
        "hd95_mm:tumour, solid: no interval: it needs at least 3 subjects, there is 1",
    ]


def test_further_measures_in_sum():
    summary = summarize_segmentation(measured(), SCHEMA)
    plain = summarize_segmentation(segmented(), SCHEMA)
    metrics, names = summary["metrics"], ("liver", "tumour, solid")
    assert {name: metrics[name] for name in plain["metrics"]} == plain["metrics"]
    added = [f"nsd{n}" for n in ("", *(f":{name}" for name in names))]
    added += [f"{m}:{name}" for m in ("volume_error_ml", "volume_error") for name in names]
    added += [f"lesion_f1{n}" for n in ("", *(f":{name}" for name in names))]
    assert list(metrics)[len(plain["metrics"]) :] == added
    assert metrics["nsd"]["value"] == pytest.approx(((0.725 + 0.75) / 2 + 0.425 + 0.325) / 3)
    assert metrics["volume_error_ml:liver"]["value"] == pytest.approx((0.25 + 0.0 + 0.9) / 3)
    assert metrics["volume_error:tumour, solid"]["value"] == pytest.approx(0.0)  # 1 and -1; the invented has none
    assert metrics["volume_error:tumour, solid"]["subjects"] == 2
    assert metrics["lesion_f1:liver"]["value"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert summary["counts"] == plain["counts"]
    assert summary["lesions"] == {
        "lesions_found": {"liver": 4, "tumour, solid": 2},
        "lesions_missed": {"liver": 0, "tumour, solid": 3},
        "lesions_invented": {"liver": 1, "tumour, solid": 2},
    }
    assert "lesions" not in plain
    assert "volume_error leaves out 1 scores of a true volume of 0: the class was invented" in summary["notes"]
    assert "lesions_missed: tumour, solid 3" in table(summary).splitlines()


def test_a_class_that_is_never_there_is_not_defined_and_said():
    rows = [SegmentationRow(f"s{n}", f"a{n}", "liver", ClassScore(0.5, 1.0, 2, 2)) for n in range(3)]
    rows += [SegmentationRow(f"s{n}", f"a{n}", "tumour, solid", ABSENT) for n in range(3)]
    summary = summarize_segmentation(rows, SCHEMA)
    assert summary["metrics"]["dice"]["value"] == 0.5
    assert summary["metrics"]["dice:tumour, solid"]["value"] is None
    assert summary["notes"] == ["dice:tumour, solid, hd95_mm:tumour, solid: not defined: no subject has a value"]


def test_a_classification_in_sum():
    rows = classified()
    summary = summarize_classification(rows, NAMES, by={"split": "test"})
    assert (summary["kind"], summary["scans"], summary["subjects"]) == ("classification", 40, 20)
    ranked = ["auroc", "average_precision", SENSITIVITY]
    assert list(summary["metrics"]) == ["accuracy", "balanced_accuracy", *ranked, "ece", "brier", "nll"]
    right = [float(row.truth == row.predicted) for row in rows]
    expected = mean_interval(right, [row.subject_id for row in rows])  # every subject has two scans
    accuracy = summary["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    for entry in summary["metrics"].values():
        assert entry["low"] < entry["high"]
    assert 0.6 < summary["metrics"]["auroc"]["low"]
    ill = sum(row.truth == "ill" for row in rows)
    assert summary["counts"]["truth"] == {"healthy": 40 - ill, "ill": ill}
    assert sum(summary["counts"]["predicted"].values()) == 40
    assert (summary["notes"], summary["skipped"], summary["by"]) == ([], [], {"split": "test"})


def test_the_specificity_can_be_set():
    """Ten healthy scans at 0.0, 0.1, ... 0.9; ill ones at 0.85, 0.9, 0.95 and 0.2 (as for ``sensitivity`` by hand)."""
    chances = [*(n / 10 for n in range(10)), 0.85, 0.9, 0.95, 0.2]
    rows = [
        ClassificationRow(f"s{n}", f"p{n}", "ill" if n >= 10 else "healthy", "healthy", (1 - chance, chance))
        for n, chance in enumerate(chances)
    ]
    for specificity, expected in ((0.9, 0.75), (1.0, 0.25), (0.95, 0.25), (0.2, 1.0)):
        found = summarize_classification(rows, ["healthy", "ill"], specificity=specificity)["metrics"]
        (name,) = (name for name in found if name.startswith("sensitivity"))
        assert name == f"sensitivity_at_specificity_{specificity:g}"
        assert found[name]["value"] == expected
    notes = summarize_classification(rows[:10], ["healthy", "ill"], specificity=0.95)["notes"]
    lacking = "balanced_accuracy, auroc, average_precision, sensitivity_at_specificity_0.95: not defined: every scan is"
    assert any(note.startswith(lacking) for note in notes)


def test_a_temperature_gives_measures_before_and_after():
    rows, scaling = classified(), Scaling(2.0, "val", 30, 12)
    plain, summary = summarize_classification(rows, NAMES), summarize_classification(rows, NAMES, scaling=scaling)
    assert {name: summary["metrics"][name] for name in plain["metrics"]} == plain["metrics"]
    assert list(summary["metrics"])[len(plain["metrics"]) :] == ["ece_scaled", "brier_scaled", "nll_scaled"]
    probabilities = np.array([row.probabilities for row in rows])
    truth = np.array([NAMES.index(row.truth) for row in rows])
    after = score_cases(scaled(probabilities, 2.0), truth, NAMES)
    for name in ("ece", "brier", "nll"):
        entry = summary["metrics"][f"{name}_scaled"]
        assert entry["value"] == pytest.approx(after[name])
        assert entry["low"] < entry["high"]
    assert summary["scaling"] == {"temperature": 2.0, "split": "val", "scans": 30, "subjects": 12}
    assert "scaling" not in plain
    for curve, ece in (("calibration", "ece"), ("calibration_scaled", "ece_scaled")):
        assert len(summary[curve]) == BINS
        gaps = [part["scans"] * abs(part["accuracy"] - part["confidence"]) for part in summary[curve]]
        assert sum(gaps) / len(rows) == pytest.approx(summary["metrics"][ece]["value"])
    assert "temperature 2, fitted on 30 scans of split val" in table(summary).splitlines()
    ended = summarize_classification(rows, NAMES, scaling=Scaling(0.05, "val", 3, 3))
    assert any("3 scans of split 'val' do not determine it" in note for note in ended["notes"])


def test_a_classification_of_one_class_says_what_is_not_defined():
    rows = [ClassificationRow(f"s{n}", f"a{n}", "ill", "ill", (0.2, 0.8)) for n in range(5)]
    summary = summarize_classification(rows, NAMES)
    assert summary["metrics"]["auroc"] == {"value": None, "low": None, "high": None, "subjects": 5}
    assert summary["metrics"]["accuracy"]["value"] == 1.0
    lacking = f"balanced_accuracy, auroc, average_precision, {SENSITIVITY}"
    assert summary["notes"] == [f"{lacking}: not defined: every scan is ill"]


def test_resamples_that_lack_a_class_are_left_out():
    names = ["x", "y", "z"]
    rows = [ClassificationRow(f"s{n}", f"a{n}", names[min(n, 12) % 3], "x", (0.4, 0.3, 0.3)) for n in range(12)]
    rows = [row for row in rows if row.truth != "z"] + [row for row in rows if row.truth == "z"][:1]
    (note,) = (n for n in summarize_classification(rows, names)["notes"] if n.startswith("balanced_accuracy, auroc"))
    left_out = int(note.split(": ")[1].split()[0].replace(",", ""))
    # nine subjects, the one of class z is not drawn (8/9)^9, or four others none (5/9)^9 each
    assert left_out / 2000 == pytest.approx((8 / 9) ** 9 + 2 * (5 / 9) ** 9, abs=0.04)


def test_a_summary_comes_back_as_it_was(tmp_path):
    path = tmp_path / "summary.json"
    for summary in (
        summarize_segmentation(segmented(), SCHEMA, skipped=[("scan9", "no label")], by={"split": "test"}),
        summarize_classification(classified(), NAMES),
    ):
        write_summary(path, summary)
        assert read_summary(path) == summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"kind": "detection"}, r"is no summary of an evaluation \(its kind is 'detection'\): expected"),
        (lambda s: {k: v for k, v in s.items() if k not in ("by", "metrics")}, r"\(it lacks metrics, by\)"),
        (lambda s: [s], r"\(it lacks kind, classes, .*\)"),
        (
            lambda s: s | {"scans": float("nan")},
            r"summary.json cannot be read \(holds NaN\): evaluate again",
        ),
        (
            lambda s: s | {"metrics": {"dice": {"value": 1}}},
            "summary.json: dice holds value: expected value, low, high, su",
        ),
    ],
)
def test_what_is_no_summary_is_refused(tmp_path, change, message):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(change(summarize_segmentation(segmented(), SCHEMA))), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_summary(path)


def test_a_summary_that_is_not_there_or_broken_is_said(tmp_path):
    with pytest.raises(UserError, match=r"summary.json cannot be read \(No such file or directory\)"):
        read_summary(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text('{"kind": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"summary.json cannot be read \(Expecting value: line 1 column 10"):
        read_summary(tmp_path / "summary.json")


def test_nothing_to_sum_up_is_refused():
    skipped = [("s1", "no label"), ("s2", "no label"), ("s3", "not readable")]
    with pytest.raises(UserError, match=r"no scan was scored, 3 were skipped \(2 no label; 1 not readable\)"):
        summarize_segmentation([], SCHEMA, skipped=skipped)
    with pytest.raises(UserError, match=r"no scan was scored, 0 were skipped \(there were none\)"):
        summarize_classification([], NAMES)
    with pytest.raises(UserError, match="scan scan2 has the classes liver: expected liver, tumour, solid"):
        summarize_segmentation(segmented()[:3], SCHEMA)
    with pytest.raises(UserError, match=r"^scan scan0 stands 2 times: expected one row a scan"):
        summarize_classification([*classified(), classified()[0]], NAMES)
    unknown = ClassificationRow("odd", "a", "sick", "ill", (0.5, 0.5))
    with pytest.raises(
        UserError, match=r"1 of 41 scans have a true class that is none of 0 to 1: leave them out \(odd\)"
    ):
        summarize_classification([*classified(), unknown], NAMES)
    spoilt = ClassificationRow("odd", "a", "ill", "ill", (float("nan"), 0.5))
    with pytest.raises(UserError, match=r"1 of 41 scans have scores that are NaN or infinite \(odd\)"):
        summarize_classification([*classified(), spoilt], NAMES)


def test_the_table_is_aligned_and_says_what_is_lacking():
    rows = [row for row in segmented() if row.class_name == "liver"]
    schema = LabelSchema("mask", SCHEMA.classes[:2])
    rows[0] = SegmentationRow("scan1", "a", "liver", ClassScore(0.0, None, 9, 0, "missed"))
    summary = summarize_segmentation(rows, schema, skipped=[("scan9", "no label")])
    low, high = (f"{summary['metrics']['dice'][bound]:.4f}" for bound in ("low", "high"))
    lines = table(summary).splitlines()
    assert lines[:3] == [
        "segmentation: 4 scans of 3 subjects",
        "measure         value     95 % interval  subjects",
        f"dice           0.5833  {low} to {high}         3",
    ]
    assert len({len(line) for line in lines[1:6]}) == 1
    assert lines[6:] == [
        "missed: liver 1",
        "skipped: 1 scans",
        "  scan9: no label",
        "note: hd95_mm leaves out 1 scores without a distance: the class was missed or invented",
    ]
    alone = table(summarize_segmentation(rows[:1], schema)).splitlines()
    assert alone[2] == "dice           0.0000              -         1"
    assert alone[4] == "hd95_mm             -              -         0"
