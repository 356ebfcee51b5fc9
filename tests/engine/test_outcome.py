"""What a comparison says, from hand-made evaluations: failures, what is not defined, edits, damage, what is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medssl.engine import compare
from medssl.engine.arms import Arm, Run, Study
from medssl.engine.children import Failure
from medssl.engine.lora import LoRA
from medssl.engine.optim import FineTuning
from medssl.engine.outcome import clear_states, note_edits, set_aside_damaged, tell, write_tables
from medssl.engine.settings import Examples
from medssl.evaluate.cases import ClassificationRow, SegmentationRow, write_classification, write_segmentation
from medssl.evaluate.segmentation import ClassScore
from medssl.evaluate.tables import KEYS, write_summary
from medssl.types import Labels, LabelSchema, UserError, ViewSpec

ARMS = (Arm("scratch", Path("a")), Arm("spark", Path("a"), "scratch", 3.0))


def summarised(folder, kind):
    write_summary(folder / "summary.json", dict.fromkeys(KEYS, ()) | {"kind": kind, "metrics": {}})


def made(out, arms=ARMS, labels=(2, 4), runs=2, **more):
    """A study whose runs are all done, and which logged their training."""
    plan = tuple(Run(arm, n, number) for arm in arms for n in labels for number in range(runs))
    for run in plan:
        folder = run.folder(out) / "test"
        folder.mkdir(parents=True)
        gain = 0.1 if run.arm.twin else 0.0
        rows = [
            SegmentationRow(f"scan{n}", f"s{n}", "lesion", ClassScore(0.5 + gain + 0.01 * (n + run.number), 1.0, 5, 5))
            for n in range(4)
        ]
        write_segmentation(folder / "cases.csv", rows)
        summarised(folder, "segmentation")
        lines = ['{"step": 3, "seconds": 60.0, "validation_dice": 0.4}', '{"step": 6, "seconds": 60.0}']
        (run.folder(out) / "metrics.jsonl").write_text("\n".join(lines))
        (run.folder(out) / "checkpoints").mkdir()
        (run.folder(out) / "checkpoints/last.pt").touch()
    return Study(out, arms, plan, **more)


def test_tables_of_everything_that_is_done(tmp_path, capsys):
    study = made(tmp_path, notes=("A note.",))
    assert tell(study, {}) == 0
    text = (tmp_path / "summary.md").read_text()
    assert "| spark | 0.620 [" in text
    assert "| 3 + 24 |" in text
    assert "\nA note.\n" in text
    assert (tmp_path / "runs.csv").read_text().splitlines()[1] == "scratch,2,0,dice,0.515,0.4,3,6,6.0"
    assert f"{tmp_path}: 8 of 8 runs" in capsys.readouterr().out


def test_unknown_minutes_are_unknown(tmp_path):
    study = made(tmp_path, arms=(ARMS[0], Arm("spark", Path("a"), "scratch", None)))
    for run in study.asked:
        (run.folder(tmp_path) / "metrics.jsonl").unlink()
    assert tell(study, {}) == 0
    assert "| unknown + 0 |" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["minutes"]["spark"]["pretraining"] is None
    assert (tmp_path / "runs.csv").read_text().splitlines()[1] == "scratch,2,0,dice,0.515,,,,"


def test_failures_are_written_without_names_of_files(tmp_path, capsys):
    study = made(tmp_path)
    for run in study.asked:
        if run.labels == 4:
            (run.folder(tmp_path) / "test/summary.json").unlink()
    assert tell(study, {str(study.asked[2]): Failure("/data/Miller is gone", "the file is gone")}) == 0
    said = capsys.readouterr().out
    assert "failed: scratch, 4 labelled subjects, run 0: /data/Miller is gone" in said
    assert "1 of 8 runs failed; the same command tries them again" in said
    for name in ("summary.md", "summary.json"):
        assert "Miller" not in (tmp_path / name).read_text()
    text = (tmp_path / "summary.md").read_text()
    assert "Failed: scratch, 4 labelled subjects, run 0: the file is gone" in text
    assert "; nothing to compare at 4." in text


def test_what_earlier_commands_left_undone_is_said(tmp_path):
    study = made(tmp_path)
    other = Arm("other", None, "scratch", None)
    study = Study(tmp_path, (*ARMS, other), study.asked[:4], (*study.asked[4:], Run(other, 2, 0)))
    assert tell(study, {}) == 0
    text = (tmp_path / "summary.md").read_text()
    assert "| spark less scratch |" in text  # its runs are of an earlier command
    assert "other has no run in common with its twin." in text
    assert (
        "Left out: 1 runs that earlier commands asked for and did not finish (other, 2 labelled subjects, run 0)."
        in text
    )


def test_a_measure_that_is_defined_nowhere(tmp_path, capsys):
    study = made(tmp_path)
    assert tell(study, {}) == 0
    assert (tmp_path / "efficiency.svg").exists()
    for run in study.asked:
        folder = run.folder(tmp_path) / "test"
        rows = [ClassificationRow(f"scan{n}", f"s{n}", "low", "low", (0.6, 0.4)) for n in range(4)]
        write_classification(folder / "cases.csv", rows, ["low", "high"])
        summarised(folder, "classification")
    assert tell(study, {}) == 1
    assert "error: AUROC is not defined on these test subjects: nothing can be compared" in capsys.readouterr().out
    summary = (tmp_path / "summary.json").read_text()
    assert "NaN" not in summary
    assert json.loads(summary)["curves"]["spark"][0]["value"] is None
    assert "| spark | - | - |" in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "efficiency.svg").exists()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda lines: [line.replace("0.4,", "0.9,") if line.startswith("spark,2,0") else line for line in lines],
         "1 changed"),
        (lambda lines: [*lines, "spark,2,7,dice,0.9,0.9,3,6,6.0"], "1 added"),
        (lambda lines: [*lines, lines[-1]], "1 added"),
        (lambda lines: lines[:-2], "2 missing"),
        (lambda lines: [*lines[:-1], "spa"], "1 added, 1 missing"),
        (lambda lines: [*lines[:-1], lines[-1][:-2]], "1 changed"),
    ],
)  # fmt: skip
def test_every_edit_of_a_table_is_told(tmp_path, capsys, edit, told):
    study = made(tmp_path, labels=(2,))
    write_tables(study)
    note_edits(study)
    assert capsys.readouterr().out == ""
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(edit(file.read_text().splitlines())) + "\n")
    note_edits(study)
    expected = f"note: runs.csv is not what the runs say (lines: {told}): it is written anew from them\n"
    assert capsys.readouterr().out == expected


def test_a_run_that_ended_after_the_table_was_written_is_no_edit(tmp_path, capsys):
    study = made(tmp_path, labels=(2,))
    write_tables(Study(tmp_path, study.arms, study.asked[:3]))
    later = (tmp_path / "runs.csv").stat().st_mtime + 10
    os.utime(study.asked[3].folder(tmp_path) / "test/summary.json", (later, later))
    note_edits(study)
    assert capsys.readouterr().out == ""


def test_damaged_scores_count_as_none(tmp_path, capsys):
    study = made(tmp_path, labels=(2,))
    study = Study(tmp_path, study.arms, study.asked[:3], study.asked[3:])
    write_tables(study)
    for run in (study.asked[0], study.earlier[0]):
        (run.folder(tmp_path) / "test/cases.csv").write_text("")
    damaged = set_aside_damaged(study)
    assert damaged == [study.asked[0], study.earlier[0]]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("note: scratch, 2 labelled subjects, run 0: ")
    assert said[0].endswith("; the run is scored again")
    assert said[1].endswith("; the run is left out until its encoder is named again")
    assert [run.done(tmp_path) for run in (*study.asked, *study.earlier)] == [False, True, True, False]
    note_edits(study, damaged)
    assert capsys.readouterr().out == ""
    assert tell(study, {}) == 1  # no pair of runs is left


def test_states_of_runs_that_are_done_go_and_a_run_is_then_scored_without_training(tmp_path):
    study = made(tmp_path, labels=(2,))
    first, second = study.asked[:2]
    (second.folder(tmp_path) / "test/summary.json").unlink()
    clear_states(study)
    assert not (first.folder(tmp_path) / "checkpoints").exists()
    assert (second.folder(tmp_path) / "checkpoints/last.pt").exists()
    third = study.asked[2]
    (first.folder(tmp_path) / "card.json").touch()
    (third.folder(tmp_path) / "card.json").touch()
    shutil.rmtree(third.folder(tmp_path) / "test")  # a run in the midst of training, whose states someone removed
    commands = [[words[0] for words in compare.job_of(run, tmp_path, ((), ()), 0).commands] for run in study.asked[:3]]
    assert commands == [["evaluate"], ["finetune", "evaluate"], ["finetune", "evaluate"]]


def test_notes_on_the_recipe():
    view = ViewSpec(size=(16, 16, 8))
    assert compare.first_notes(Examples(view), FineTuning()) == ()
    seed, frozen = compare.first_notes(Examples(view, label_seed=3), FineTuning(head_first=1.0))
    assert seed.startswith("data.label_seed is 3: all runs learn from the same labelled subjects")
    assert frozen == "The encoder is frozen (optimizer.head_first 1): the twin's encoder stays random."
    (adapted,) = compare.first_notes(Examples(view), FineTuning(lora=LoRA(rank=4)))
    assert "that of the twin stays random beneath what is adapted" in adapted


def scans(*values):
    return [
        SimpleNamespace(labels=Labels(values=tuple(held.items())), subject=SimpleNamespace(subject_id=f"s{n}"))
        for n, held in enumerate(values)
    ]


def test_a_measure_that_no_test_subject_defines_is_refused_before_training():
    grade = LabelSchema("grade", ((0, "low"), (1, "high")))
    low, high = {"grade": "low"}, {"grade": "high"}
    compare.refuse_unscored(scans(low, low, high, high), grade, "test")
    message = (
        "an AUROC takes a class of grade that at least 2 of its 3 subjects have and 2 lack; choose another --split"
    )
    for given in ((low, low, low), (low, low, high)):
        with pytest.raises(UserError, match=f"nothing can be compared on split 'test': {message}"):
            compare.refuse_unscored(scans(*given), grade, "test")
    findings = LabelSchema("a,b", ((0, "a"), (1, "b")), kind="findings")
    there, absent = {"a": "1", "b": "1"}, {"a": "0", "b": ""}
    compare.refuse_unscored(scans(there, there, absent, absent), findings, "test")
    with pytest.raises(UserError, match=r"nothing can be compared on split 'test'"):
        compare.refuse_unscored(scans(there, there, absent), findings, "test")
    compare.refuse_unscored(scans({"age": "3"}), LabelSchema("age", ((0, "age"),), kind="number"), "test")
