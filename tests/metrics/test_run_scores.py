"""What runs score on each subject: lesion-free subjects, and classes that hang on one subject."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics.cases import (
    ClassificationRow,
    FindingsRow,
    SegmentationRow,
    write_classification,
    write_multi_label,
)
from medssl.metrics.classification import auroc
from medssl.metrics.label_efficiency import compared, levels
from medssl.metrics.mask_measures import ClassScore
from medssl.metrics.run_scores import by_dice, judged, read_trained
from medssl.metrics.tables import KEYS, write_summary

WHAT = ("spark", 8, 0)


def row(subject, dice, truth, name="lesion", scan=""):
    note = "" if dice else "absent" if dice is None else "missed" if truth else "invented"
    predicted = 0 if dice is None or (dice == 0 and truth) else 5
    return SegmentationRow(scan or f"scan-{subject}", subject, name, ClassScore(dice, None, truth, predicted, note))


def test_nothing_there_and_nothing_found_is_right():
    found = by_dice(WHAT, [row("a", 0.8, 5), row("b", None, 0), row("c", 0.0, 0), row("d", 0.0, 5)])
    assert found.scores == {"a": 0.8, "b": 1.0, "c": 0.0, "d": 0.0}
    assert found.value == pytest.approx(0.45)
    assert tuple(map(str, found.notes)) == (
        "2 of 4 test subjects lack a class: it scores 1 if it is not predicted either, else 0.",
    )
    assert by_dice(WHAT, [row("a", 0.8, 5), row("b", 0.0, 5)]).notes == ()


def test_classes_are_averaged_before_scans_and_scans_before_subjects():
    rows = [
        row("a", 0.4, 5, "x", "1"),
        row("a", None, 0, "y", "1"),
        row("a", 0.2, 5, "x", "2"),
        row("a", 0.0, 5, "y", "2"),
    ]
    found = by_dice(WHAT, [*rows, row("b", 0.5, 5, "x"), row("b", 0.5, 5, "y")])
    assert found.scores == {"a": pytest.approx((0.7 + 0.1) / 2), "b": 0.5}


def test_curve_and_difference_are_of_the_same_subjects():
    """Half of the subjects have no lesion: one arm invents one in each, the other never."""
    trained = [
        by_dice((arm, 8, run), [row(f"l{n}", 0.6 + 0.01 * (n + run), 5) for n in range(10)]
                + [row(f"h{n}", 0.0 if arm == "scratch" else None, 0) for n in range(10)])
        for arm in ("spark", "scratch") for run in range(5)
    ]  # fmt: skip
    gain = compared(trained, {"spark": "scratch"})[0].differences[0]
    assert (gain.subjects, gain.left_out) == (20, 0)
    assert gain.value == pytest.approx(levels(trained, "spark")[0].value - levels(trained, "scratch")[0].value)
    assert gain.value == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_a_class_is_judged_where_any_subject_can_be_left_out(scans):
    """Reference: the AUROC without each subject in turn."""
    subjects = [str(subject) for subject, _, _ in scans]
    positive, known = (np.array([scan[place] for scan in scans]) for place in (1, 2))
    defined = []
    for left_out in {*subjects}:
        chosen = known & (np.array(subjects) != left_out)
        defined.append(auroc(np.arange(len(scans))[chosen].astype(float), positive[chosen]) is not None)
    assert judged(positive, subjects, known) == all(defined)


def summarized(folder, kind, **more):
    write_summary(folder / "summary.json", dict.fromkeys(KEYS, ()) | {"kind": kind, "metrics": {}} | more)


def classified(folder, truth, seed=0):
    generator, names = np.random.default_rng(seed), ["low", "middle", "high"][: max(truth) + 1]
    raw = generator.random((len(truth), len(names)))
    raw[np.arange(len(truth)), truth] += 0.5
    rows = [
        ClassificationRow(f"scan{n:02d}", f"s{n:02d}", names[truth[n]], names[int(p.argmax())], tuple(p / p.sum()))
        for n, p in enumerate(raw)
    ]
    folder.mkdir()
    write_classification(folder / "cases.csv", rows, names)
    summarized(folder, "classification")
    return rows


def test_a_class_of_one_subject_does_not_enter_the_mean(tmp_path):
    truth = [0] * 20 + [1] * 19 + [2]
    rows = classified(tmp_path / "test", truth)
    found = read_trained(WHAT, tmp_path / "test")
    assert tuple(map(str, found.notes)) == (
        "The AUROC leaves high out: fewer than 2 test subjects have it or lack it.",
    )
    scores, truth = np.array([one.probabilities for one in rows]), np.array(truth)
    expected = np.mean([auroc(scores[:, k], truth == k) for k in (0, 1)])
    assert found.value == pytest.approx(expected)
    values = np.array(list(found.scores.values()))
    assert len(values) == 40
    # the mean of pseudo-values is the number itself but for its small bias
    assert values.mean() == pytest.approx(expected, abs=0.01)
    classified(tmp_path / "two", [0] * 9 + [1])
    nothing = read_trained(WHAT, tmp_path / "two")
    assert np.isnan(nothing.value)
    assert set(nothing.scores.values()) == {None}


def test_a_finding_of_one_subject_does_not_enter_the_mean(tmp_path):
    generator = np.random.default_rng(1)
    rows = [
        FindingsRow(f"scan{n}", f"s{n}", (int(n < 5), int(n == 3), -1 if n > 2 else 1), tuple(generator.random(3)))
        for n in range(12)
    ]
    write_multi_label(tmp_path / "cases.csv", rows, ["often", "once", "always"])
    summarized(tmp_path, "multi_label")
    found = read_trained(WHAT, tmp_path)
    assert tuple(map(str, found.notes)) == (
        "The AUROC leaves once, always out: fewer than 2 test subjects have it or lack it.",
    )
    expected = auroc(np.array([row.probabilities[0] for row in rows]), np.arange(12) < 5)
    assert found.value == pytest.approx(expected)
    assert None not in found.scores.values()


def test_what_an_evaluation_says_of_leaks_and_of_skipped_scans_is_carried_on(tmp_path):
    classified(tmp_path / "test", [0] * 5 + [1] * 5)
    leak = "3 of the 10 subjects were pretrained on: scores may be too good"
    reasons = ("the file cannot be read", "the file is gone", "the file cannot be read", "an affine of zeros", "empty")
    skipped = [{"scan_id": f"scan{n}", "reason": reason} for n, reason in enumerate(reasons)]
    summarized(tmp_path / "test", "classification", notes=["ece: not defined", leak], leaks=[leak], skipped=skipped)
    assert tuple(map(str, read_trained(WHAT, tmp_path / "test").notes)) == (
        f"{leak}.",
        "5 test scans could not be scored and are left out (2: the file cannot be read; 1: the file is gone; 1: an "
        "affine of zeros; and 1 more reasons).",
    )
    summarized(tmp_path / "test", "classification", skipped=skipped[:1])
    assert tuple(map(str, read_trained(WHAT, tmp_path / "test").notes)) == (
        "1 test scans could not be scored and are left out (1: the file cannot be read).",
    )


def test_an_evaluation_that_does_not_list_leaks_has_all_of_its_notes_carried_on(tmp_path):
    """As written by 0.1.0 before leaks had a list of their own."""
    classified(tmp_path / "test", [0] * 5 + [1] * 5)
    summarized(tmp_path / "test", "classification", notes=["one", "two"])
    assert tuple(map(str, read_trained(WHAT, tmp_path / "test").notes)) == ("one.", "two.")
