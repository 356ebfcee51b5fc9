"""What a comparison says, from hand-made evaluations: failures, what is not defined, edits, damage, what is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from medssl.comparison import plan, runs
from medssl.comparison.arms import Arm, Run, Study
from medssl.comparison.jobs import Failure
from medssl.comparison.phases import Work, run_shared
from medssl.comparison.summary import summarize
from medssl.comparison.tables import clear_states, note_edits, set_aside, write_tables
from medssl.inference.evaluation import check_leaks
from medssl.metrics.cases import ClassificationRow, SegmentationRow, write_classification, write_segmentation
from medssl.metrics.mask_measures import ClassScore
from medssl.metrics.tables import KEYS, write_summary
from medssl.training.lora import LoRA
from medssl.training.optim import FineTuning
from medssl.training.settings import Examples
from medssl.types import Labels, LabelSchema, Note, UserError, ViewSpec
from medssl.types.provenance import Provenance

ARMS = (Arm("scratch", (Path("a"),), kind="scratch"), Arm("spark", (Path("a"),), "scratch", 3.0))


def summarized(folder, kind, **more):
    write_summary(folder / "summary.json", dict.fromkeys(KEYS, ()) | {"kind": kind, "metrics": {}} | more)


def made(out, arms=ARMS, labels=(2, 4), runs=2, **more):
    """A study whose runs are all done, and which logged their training."""
    (out / "compare.yaml").write_text("arms: {}\ntraining: {batch_size: 1, accumulate: 1}\n")
    plan = tuple(Run(arm, n, number) for arm in arms for n in labels for number in range(runs))
    for run in plan:
        folder = run.folder(out) / "test"
        folder.mkdir(parents=True)
        gain = 0.1 if run.arm.baseline else 0.0
        rows = [
            SegmentationRow(f"scan{n}", f"s{n}", "lesion", ClassScore(0.5 + gain + 0.01 * (n + run.number), 1.0, 5, 5))
            for n in range(4)
        ]
        write_segmentation(folder / "cases.csv", rows)
        summarized(folder, "segmentation")
        lines = ['{"step": 3, "seconds": 60.0, "validation_dice": 0.4}', '{"step": 6, "seconds": 60.0}']
        (run.folder(out) / "metrics.jsonl").write_text("\n".join(lines))
        (run.folder(out) / "checkpoints").mkdir()
        (run.folder(out) / "checkpoints/last.pt").touch()
    return Study(out, arms, plan, **more)


def test_tables_of_everything_that_is_done(tmp_path, capsys):
    study = made(tmp_path, notes=(Note("guess", "A note."),))
    assert summarize(study, {})["compared"]
    text = (tmp_path / "summary.md").read_text()
    assert "| spark | 0.620 [" in text
    assert "| 3 + 24 |" in text
    assert {"kind": "guess", "text": "A note."} in json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert "\nA note.\n" in text
    assert (tmp_path / "runs.csv").read_text().splitlines()[1] == "scratch,2,0,,dice,0.515,0.4,3,6,6.0"
    assert f"{tmp_path}: 8 of 8 runs" in capsys.readouterr().out


def test_unknown_minutes_are_unknown(tmp_path):
    study = made(tmp_path, arms=(ARMS[0], Arm("spark", (Path("a"),), "scratch", None)))
    for run in study.requested:
        (run.folder(tmp_path) / "metrics.jsonl").unlink()
    assert summarize(study, {})["compared"]
    assert "| unknown + 0 |" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["minutes"]["spark"]["pretraining"] is None
    assert (tmp_path / "runs.csv").read_text().splitlines()[1] == "scratch,2,0,,dice,0.515,,,,"


def test_failures_are_written_without_names_of_files(tmp_path, capsys):
    study = made(tmp_path)
    for run in study.requested:
        if run.labels == 4:
            (run.folder(tmp_path) / "test/summary.json").unlink()
    assert summarize(study, {str(study.requested[2]): Failure("/data/Miller is gone", "the file is gone")})["compared"]
    said = capsys.readouterr().out
    assert "failed: scratch, 4 labeled subjects, run 0: /data/Miller is gone" in said
    assert "1 of 8 runs failed; the same command tries them again" in said
    for name in ("summary.md", "summary.json"):
        assert "Miller" not in (tmp_path / name).read_text()
    text = (tmp_path / "summary.md").read_text()
    assert "Failed: scratch, 4 labeled subjects, run 0: the file is gone" in text
    assert "; nothing to compare at 4." in text


def test_what_earlier_commands_left_undone_is_said(tmp_path):
    study = made(tmp_path)
    other = Arm("other", (), "scratch", None)
    study = Study(tmp_path, (*ARMS, other), study.requested[:4], (*study.requested[4:], Run(other, 2, 0)))
    assert summarize(study, {})["compared"]
    text = (tmp_path / "summary.md").read_text()
    assert "| spark less scratch |" in text  # its runs are of an earlier command
    assert "other has no run in common with its from-scratch baseline." in text
    assert "Left out: 1 unfinished runs of earlier commands (other, 2 labeled subjects, run 0)." in text


def test_a_measure_that_is_defined_nowhere(tmp_path, capsys):
    study = made(tmp_path)
    assert summarize(study, {})["compared"]
    assert (tmp_path / "efficiency.svg").exists()
    for run in study.requested:
        folder = run.folder(tmp_path) / "test"
        rows = [ClassificationRow(f"scan{n}", f"s{n}", "low", "low", (0.6, 0.4)) for n in range(4)]
        write_classification(folder / "cases.csv", rows, ["low", "high"])
        summarized(folder, "classification")
    assert not summarize(study, {})["compared"]
    assert "error: nothing can be compared: AUROC is not defined on these test subjects" in capsys.readouterr().out
    summary = (tmp_path / "summary.json").read_text()
    assert "NaN" not in summary
    assert json.loads(summary)["curves"]["spark"][0]["value"] is None
    assert "| spark | - | - |" in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "efficiency.svg").exists()


@pytest.mark.parametrize(
    ("edit", "edits"),
    [
        (lambda lines: [line.replace("0.4,", "0.9,") if line.startswith("spark,2,0") else line for line in lines],
         "1 changed"),
        (lambda lines: [*lines, "spark,2,7,,dice,0.9,0.9,3,6,6.0"], "1 added"),
        (lambda lines: [*lines, lines[-1]], "1 added"),
        (lambda lines: lines[:-2], "2 missing"),
        (lambda lines: [*lines[:-1], "spa"], "1 added, 1 missing"),
        (lambda lines: [*lines[:-1], lines[-1][:-2]], "1 changed"),
    ],
)  # fmt: skip
def test_every_edit_of_a_table_is_reported(tmp_path, capsys, edit, edits):
    study = made(tmp_path, labels=(2,))
    write_tables(study)
    note_edits(study)
    assert capsys.readouterr().out == ""
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(edit(file.read_text().splitlines())) + "\n")
    note_edits(study)
    expected = f"note: runs.csv differs from the runs (lines: {edits}): it is written again from them\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_table_that_a_spreadsheet_saved_stops_nothing(tmp_path, capsys, encoding):
    study = made(tmp_path, labels=(2,))
    write_tables(study)
    file = tmp_path / "runs.csv"
    text = file.read_text()
    file.write_bytes((text if encoding == "utf-8-sig" else text.replace("spark,2,0", "Übung,2,0")).encode(encoding))
    note_edits(study)
    said = capsys.readouterr().out
    edits = {"utf-8-sig": "", "utf-16": r"\d+ added, 5 missing", "cp1252": "1 added, 1 missing"}[encoding]
    assert bool(re.search(rf"runs.csv differs from the runs \(lines: {edits}\)", said)) == bool(edits), said
    assert bool(said) == bool(edits)


def test_a_run_that_ended_after_the_table_was_written_is_no_edit(tmp_path, capsys):
    study = made(tmp_path, labels=(2,))
    write_tables(Study(tmp_path, study.arms, study.requested[:3]))
    later = (tmp_path / "runs.csv").stat().st_mtime + 10
    os.utime(study.requested[3].folder(tmp_path) / "test/summary.json", (later, later))
    note_edits(study)
    assert capsys.readouterr().out == ""


def test_damaged_scores_count_as_none(tmp_path, capsys):
    study = made(tmp_path, labels=(2,))
    study = Study(tmp_path, study.arms, study.requested[:3], study.requested[3:])
    write_tables(study)
    for run in (study.requested[0], study.earlier[0]):
        (run.folder(tmp_path) / "test/cases.csv").write_text("")
    damaged = set_aside(study)
    assert damaged == [study.requested[0], study.earlier[0]]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("note: scratch, 2 labeled subjects, run 0: ")
    assert said[0].endswith("; the run is scored again")
    assert said[1].endswith("; the run is left out until its encoder is named again")
    assert [run.done(tmp_path) for run in (*study.requested, *study.earlier)] == [False, True, True, False]
    note_edits(study, damaged)
    assert capsys.readouterr().out == ""
    assert not summarize(study, {})["compared"]  # no pair of runs is left


def test_states_of_runs_that_are_done_go_and_a_run_is_then_scored_without_training(tmp_path):
    study = made(tmp_path, labels=(2,))
    first, second = study.requested[:2]
    (second.folder(tmp_path) / "test/summary.json").unlink()
    clear_states(study)
    assert not (first.folder(tmp_path) / "checkpoints").exists()
    assert (second.folder(tmp_path) / "checkpoints/last.pt").exists()
    third = study.requested[2]
    (first.folder(tmp_path) / "card.json").touch()
    (third.folder(tmp_path) / "card.json").touch()
    shutil.rmtree(third.folder(tmp_path) / "test")  # a run in the midst of training, whose states someone removed
    commands = [[words[0] for words in runs.job_of(run, tmp_path, ((), ()), 0).commands] for run in study.requested[:3]]
    assert commands == [["evaluate"], ["finetune", "evaluate"], ["finetune", "evaluate"]]


def test_notes_on_the_recipe():
    view = ViewSpec(size=(16, 16, 8))
    assert plan.first_notes(Examples(view), FineTuning()) == ()
    seed, frozen = plan.first_notes(Examples(view, label_seed=3), FineTuning(head_first=1.0))
    assert str(seed).startswith("data.label_seed is 3: all runs train on the same labeled subjects")
    frozen_baseline = "The encoder is frozen (optimizer.head_first 1): that of the from-scratch baseline keeps random"
    assert str(frozen).startswith(frozen_baseline)
    (adapted,) = plan.first_notes(Examples(view), FineTuning(lora=LoRA(rank=4)))
    assert "that of the from-scratch baseline keeps random weights below" in str(adapted)


def test_leaks_and_skipped_scans_are_reported_once(tmp_path):
    study = made(tmp_path, labels=(2,))
    leak = (
        "not all subjects that the network was pretrained on are known: some of the scored subjects may be among them"
    )
    skipped = [{"scan_id": "scan9", "reason": "the file cannot be read"}]
    for run in study.requested:
        notes = [leak] if run.arm.baseline else []
        summarized(run.folder(tmp_path) / "test", "segmentation", notes=notes, skipped=skipped)
    assert summarize(study, {})["compared"]
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert lines[-2:] == [
        "1 test scans could not be scored and are left out (1: the file cannot be read).",
        f"spark: {leak}.",
    ]
    kinds = {note["kind"] for note in json.loads((tmp_path / "summary.json").read_text())["notes"]}
    assert {"leak", "skipped"} <= kinds


@pytest.mark.parametrize(
    "pretrained", [Provenance(("s1",)), Provenance(("s1",), complete=False), Provenance(complete=False)]
)
def test_every_note_of_an_evaluation_on_leaks_is_known_as_one(pretrained):
    fitted = SimpleNamespace(tuned=SimpleNamespace(subjects=("s0",)), card=SimpleNamespace(subjects=pretrained))
    test_scans = scans({}, {})
    for scan in test_scans:
        scan.subject.known = False
    notes = check_leaks(fitted, test_scans, allow_seen=True)
    assert len(notes) == 2 + bool(pretrained.known) + (not pretrained.complete)
    assert {note.kind for note in notes} == {"leak"}


def test_earlier_looks_are_counted_from_the_first_verdict_on(tmp_path):
    every = made(tmp_path, labels=(2,), runs=7)

    def looked(runs):
        assert summarize(Study(tmp_path, every.arms, tuple(run for run in every.requested if run.number < runs)), {})[
            "compared"
        ]
        return [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("Looked")]

    assert [looked(4), looked(5), looked(5)] == [[], [], []]
    assert "p-values are corrected for 1 comparison; " in (tmp_path / "summary.md").read_text()
    assert looked(6) == ["Looked at after 5 runs: p-values are not corrected for earlier looks."]
    assert looked(7) == ["Looked at after 5 and 6 runs: p-values are not corrected for earlier looks."]
    assert yaml.safe_load((tmp_path / "compare.yaml").read_text())["looks"] == {"spark": {2: [5, 6, 7]}}


def test_without_a_verdict_no_p_value_is_shown(tmp_path):
    assert summarize(made(tmp_path, runs=4), {})["compared"]
    text = (tmp_path / "summary.md").read_text()
    assert "spark: too few runs for a verdict: 4 of each arm, it takes 5." in text
    assert "Intervals of 95 % are over runs and test subjects; minutes are" in text
    assert ", p " not in text


def started(study, **starts):
    """Writes the configuration of each run, with what it started from."""
    for run in study.requested:
        start = starts.get(run.arm.name, "random")
        (run.folder(study.out) / "config.yaml").write_text(f"start: {start}\n")


def test_a_run_that_ended_from_other_weights_has_failed(tmp_path, monkeypatch):
    study = made(tmp_path, arms=(ARMS[0], replace(ARMS[1], digests=("held",))), labels=(2,))
    started(study, spark="held")
    (study.requested[3].folder(tmp_path) / "config.yaml").write_text("start: other\n")

    for run in study.requested:
        (run.folder(tmp_path) / "test/summary.json").rename(run.folder(tmp_path) / "test/scores.json")

    def ended_well(jobs, done, **_):
        for run, job in zip(study.requested, jobs, strict=True):
            (run.folder(tmp_path) / "test/scores.json").rename(run.folder(tmp_path) / "test/summary.json")
            done(job, None)
        return 0

    monkeypatch.setattr(runs, "run_jobs", ended_well)
    work = Work(tmp_path, ((), ()), 0, 1, None, keep=True)
    failed = run_shared(work, study, None)
    assert list(failed) == ["spark, 2 labeled subjects, run 1"]
    assert failed["spark, 2 labeled subjects, run 1"].written == (
        "it started from other weights than those that this comparison holds (does pretraining still write them?), so "
        "it is not used, and lies in 2-1.aside"
    )
    assert [run.done(tmp_path) for run in study.requested] == [True, True, True, False]
    assert (tmp_path / "runs/spark/2-1.aside/test/summary.json").exists()
    assert summarize(study, failed)["compared"]
    assert "spark,2,1" not in (tmp_path / "runs.csv").read_text()
    assert "Failed: spark, 2 labeled subjects, run 1: it started from" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("config", ["start: other\n", "start: [\n", "start", "\xff"])
def test_runs_from_other_weights_are_set_aside_before_anything_is_trained(tmp_path, capsys, config):
    study = made(tmp_path, arms=(ARMS[0], replace(ARMS[1], digests=("held",))), labels=(2,))
    started(study, spark="held")
    study = Study(tmp_path, study.arms, study.requested[:3], study.requested[3:])
    write_tables(study)
    for run in (study.requested[2], study.earlier[0]):
        (run.folder(tmp_path) / "config.yaml").write_bytes(config.encode("latin-1"))
        former = run.folder(tmp_path).with_name(f"2-{run.number}.aside") / "test"
        former.mkdir(parents=True)
    damaged = set_aside(study)
    assert damaged == [study.requested[2], study.earlier[0]]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("note: spark, 2 labeled subjects, run 0: it started from other weights than those that ")
    assert said[0].endswith("so it is not used, and lies in 2-0.aside; it is trained again")
    assert said[1].endswith("and lies in 2-1.aside; it is left out until its encoder is named again")
    assert [run.done(tmp_path) for run in (*study.requested, *study.earlier)] == [True, True, False, False]
    note_edits(study, damaged)
    assert capsys.readouterr().out == ""


def scans(*values):
    return [
        SimpleNamespace(labels=Labels(values=tuple(held.items())), subject=SimpleNamespace(subject_id=f"s{n}"))
        for n, held in enumerate(values)
    ]


def test_a_measure_that_no_test_subject_defines_is_refused_before_training():
    grade = LabelSchema("grade", ((0, "low"), (1, "high")))
    low, high = {"grade": "low"}, {"grade": "high"}
    plan.refuse_unscored(scans(low, low, high, high), grade, "test")
    message = (
        r"an AUROC takes a class of grade that at least 2 of the 3 subjects have and 2 lack \(got 'test'\)\. Choose"
    )
    for given in ((low, low, low), (low, low, high)):
        with pytest.raises(UserError, match=f"split: nothing can be compared: {message}"):
            plan.refuse_unscored(scans(*given), grade, "test")
    findings = LabelSchema("a,b", ((0, "a"), (1, "b")), kind="findings")
    there, absent = {"a": "1", "b": "1"}, {"a": "0", "b": ""}
    plan.refuse_unscored(scans(there, there, absent, absent), findings, "test")
    with pytest.raises(UserError, match=r"split: nothing can be compared"):
        plan.refuse_unscored(scans(there, there, absent), findings, "test")
    plan.refuse_unscored(scans({"age": "3"}), LabelSchema("age", ((0, "age"),), kind="number"), "test")
