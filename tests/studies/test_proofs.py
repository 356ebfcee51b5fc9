"""The programs of the proofs: every command is accepted, nothing is done twice, the predicted time adds up."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from medssl import cli
from medssl.cli.verbs import VERBS
from medssl.cli.words import check_keys, read_command

STUDIES = Path(__file__).parents[2] / "studies"
PROGRAMS = ("proof_acdc", "proof_tiles", "single_changes")


@pytest.fixture(scope="module")
def modules():
    """The programs by name; they import each other as scripts do."""
    sys.path.insert(0, str(STUDIES))
    yield {name: importlib.import_module(name) for name in ("proof", "datasets", *PROGRAMS)}
    sys.path.remove(str(STUDIES))
    for name in ("proof", "datasets", *PROGRAMS):
        sys.modules.pop(name)


class Commands:
    """Stands for the command line: keeps the words and writes what each verb leaves."""

    def __init__(self, seconds=2.0):
        self.words, self.seconds = [], seconds

    def __call__(self, *words, threads=None, log=None):
        self.words.append(words)
        given = dict(pairwise(words))
        if words[0] in {"pretrain", "finetune"}:
            run, steps = Path(given["--run"]), int(given["--training.steps"])
            run.mkdir(parents=True, exist_ok=True)
            rows = [{"step": n, "loss": 1.0, "seconds": self.seconds} for n in (1, steps)]
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        elif words[0] == "probe":
            out = Path(given["--out"])
            out.mkdir(parents=True, exist_ok=True)
            probes = [{"probe": name, "metrics": {"auroc": {"value": 0.8, "low": 0.7, "high": None}}} for name in "ab"]
            (out / "probe.json").write_text(json.dumps({"probes": probes}))
        elif words[0] == "compare":
            out = Path(given["--out"])
            out.mkdir(parents=True, exist_ok=True)
            columns = "arm,labels,run,setting,measure,test,validation,best_step,steps,minutes"
            (out / "runs.csv").write_text(f"{columns}\nscratch,2,0,,dice,0.5,0.4,3,6,6.0\nscratch,2,1,,dice,0.6,,,,\n")
            (out / "summary.md").write_text("a verdict")

    def verbs(self):
        return [words[0] for words in self.words]


def proof_of(proof):
    pretrained = {"one": proof.Pretraining(("--config", "a"), 40), "two": proof.Pretraining((), 10)}
    grid = ("--tune.learning_rates", "1e-4,1e-3")
    comparisons = {
        "all": proof.Comparison(
            ("one", "two"), ("--config", "b", "--windows.mirror", "none"), (2, 4), 50, oracle_steps=30
        ),
        "own": proof.Comparison(("two",), (), (2,), 50, runs=3, tune=grid, settings=2),
    }
    return proof.Proof("acdc", pretrained, comparisons, {"probes": proof.Probing(("one",), (), (8, None), seeds=2)})


@pytest.fixture
def place(modules, tmp_path, monkeypatch):
    proof = modules["proof"]
    commands = Commands()
    monkeypatch.setattr(proof, "medssl", commands)
    monkeypatch.setattr(proof, "prepare", lambda *_: None)
    return proof.Place(tmp_path / "work", tmp_path / "out"), commands


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_of_a_proof_is_accepted(modules, name, tmp_path):
    proof, program = modules["proof"], modules[name].PROOF
    place = proof.Place(tmp_path, tmp_path)
    commands = [
        ["pretrain", *one.words, *place.device, "--store=s", "--run=r"] for one in program.pretrainings.values()
    ]
    commands += [proof.compare_words(place, part, one) for part, one in program.comparisons.items()]
    commands += [
        ["finetune", *proof.trained_words(one.words), "--store=s", "--run=r"] for one in program.comparisons.values()
    ]
    commands += [["probe", "r", *one.words, "--store=s", "--out=o"] for one in program.probings.values()]
    for words in commands:
        command = read_command(VERBS[words[0]].place, words[1:], words[0])
        check_keys(command)
        assert not [key for key in command.keys.required if key not in {name.split(".")[0] for name in command.given()}]
    assert program.data in modules["datasets"].DATA_SETS
    for one in program.comparisons.values():
        assert set(one.arms) <= program.pretrainings.keys()
        assert one.runs == 5
        assert bool(one.tune) == bool(one.settings)


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_proof_leaves_a_row_for_each_run_and_goes_on(modules, place):
    proof, (where, commands) = modules["proof"], place
    whole = proof_of(proof)
    proof.conduct(whole, where)
    assert commands.verbs() == ["pretrain"] * 2 + ["probe"] * 8 + ["compare"] * 2
    assert [row["part"] for row in rows(where.out / "pretrainings.csv")] == ["one", "two"]
    assert len(rows(where.out / "probes.csv")) == 8 * 2
    assert rows(where.out / "probes.csv")[0]["high"] == ""
    runs = rows(where.out / "runs.csv")
    assert [(row["part"], row["run"], row["test"]) for row in runs] == [
        ("all", "0", "0.5"), ("all", "1", "0.6"), ("own", "0", "0.5"), ("own", "1", "0.6"),
    ]  # fmt: skip
    assert (where.out / "all_summary.md").read_text() == "a verdict"
    tables = {name: (where.out / name).read_bytes() for name in ("pretrainings.csv", "probes.csv", "runs.csv")}
    commands.words.clear()
    proof.conduct(whole, where)
    assert commands.verbs() == ["pretrain"] * 2 + ["compare"] * 2  # which medssl itself continues; probes are there
    assert {name: (where.out / name).read_bytes() for name in tables} == tables
    assert not list(where.out.glob("*.part"))


def test_the_predicted_time_adds_up(modules, place, capsys):
    proof, (where, commands) = modules["proof"], place
    whole = proof_of(proof)
    assert whole.comparisons["all"].trainings() == 4 * 2 * 5  # two arms, scratch, oracle
    assert whole.comparisons["own"].trainings() == 2 * (3 + 2 + 2)  # two further settings, then two runs at the best
    hours = proof.measure(whole, where)
    assert commands.verbs() == ["pretrain", "pretrain", "finetune", "finetune"]
    assert "--windows.mirror" not in commands.words[2]  # of scoring
    assert hours == pytest.approx(2.0 * (40 + 10 + 40 * 50 + 30 + 14 * 50) / 3600, rel=0.01)
    assert f"about {hours:.1f} hours" in capsys.readouterr().out
    assert not where.out.exists()  # nothing else is started
    more = proof.measure(whole.scaled(10), where)
    assert more == pytest.approx(10 * hours, rel=0.01)
    two = proof.measure(whole, proof.Place(where.work, where.out, jobs=2))
    assert two == pytest.approx(hours / 2, rel=0.01)


def test_a_comparison_may_go_on_in_the_folder_of_another(modules, place):
    proof, (where, commands) = modules["proof"], place
    grid = ("--tune.learning_rates", "1e-4")
    first = proof.Comparison(("one",), (), (2,), 50)
    more = proof.Comparison(("one",), (), (2,), 50, tune=grid, settings=1, into="all")
    proof.conduct(proof.Proof("acdc", {}, {"all": first, "own": more}), where)
    outs = [words[words.index("--out") + 1] for words in commands.words]
    assert outs == [str(where.work / "compare/all")] * 2
    assert {row["part"] for row in rows(where.out / "runs.csv")} == {"all"}
    assert more.trainings() == 2 * (1 + 4)  # those by the recipe are there


def test_a_part_brings_the_pretrainings_that_it_needs(modules, place, tmp_path):
    proof, (_, commands) = modules["proof"], place
    whole = proof_of(proof)
    assert list(whole.only(["own"]).pretrainings) == ["two"]
    assert list(whole.only(["probes"]).pretrainings) == ["one"]
    assert whole.only(["one"]).comparisons == {}
    with pytest.raises(SystemExit, match=r"no part 'thre'; there are one, two, all, own, probes"):
        whole.only(["thre"])
    words = [f"--{key}={tmp_path / key}" for key in ("data", "work", "out")]
    proof.main(whole, "", [*words, "--only", "own", "--fold", "1", "--gpu"], folds=4)
    assert commands.verbs() == ["pretrain", "compare"]
    assert commands.words[0][commands.words[0].index("--training.steps") + 1] == "100"
    assert (tmp_path / "out/fold1/runs.csv").exists()
    with pytest.raises(SystemExit):
        proof.main(whole, "", [*words, "--fold", "4"], folds=4)


def test_folds_test_different_patients(modules, tmp_path):
    datasets = modules["datasets"]
    (tmp_path / "acdc/images").mkdir(parents=True)
    for number in range(25):
        (tmp_path / f"acdc/images/patient{number:03d}_ED.nii.gz").touch()
    tested = []
    for fold in range(4):
        file = tmp_path / f"split{fold}.csv"
        datasets.write_split(datasets.DATA_SETS["acdc_folds"], tmp_path, file, fold)
        splits = [row["split"] for row in rows(file)]
        assert [splits.count(name) for name in ("train", "val", "test")] == [15, 4, 6]
        tested += [row["name"] for row in rows(file) if row["split"] == "test"]
    assert len(tested) == len({*tested}) == 24


def few_files(data, target, name):
    """A copy of a few scans of a data set: tiles of every class and split, or the volumes of twelve patients."""
    if name == "tiles":
        for folder in ("train", "valid", "test"):
            for kind in ("normal", "tumour"):
                (target / name / folder / kind).mkdir(parents=True)
                for file in sorted((data / name / folder / kind).iterdir())[:4]:
                    shutil.copy(file, target / name / folder / kind)
        return
    patients = sorted({file.name.split("_")[0] for file in (data / "acdc/images").iterdir()})[:12]
    for folder in ("images", "labels"):
        (target / "acdc" / folder).mkdir(parents=True)
        for file in (data / "acdc" / folder).iterdir():
            if file.name.split("_")[0] in patients:
                shutil.copy(file, target / "acdc" / folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_training_of_a_proof_runs_on_a_few_files(modules, name, tmp_path, monkeypatch, real_data):
    """One step of each pretraining, and of the fine-tuning of each comparison from its first arm."""
    proof, datasets, program = modules["proof"], modules["datasets"], modules[name].PROOF

    def medssl(*words, threads=None, log=None):
        assert cli.main(list(words)) == 0

    for module in (proof, datasets):
        monkeypatch.setattr(module, "medssl", medssl)
    few_files(real_data, tmp_path / "data", "tiles" if program.data == "tiles" else "acdc")
    place = proof.Place(tmp_path / "work", tmp_path / "out", device=("--training.precision", "fp32"))
    mask = os.umask(0o077)
    try:
        datasets.prepare(program.data, tmp_path / "data", place.work)
        small = ("--data.workers", "0", "--training.batch_size", "4")
        for part, one in program.pretrainings.items():
            row = proof.pretrain(place, part, proof.Pretraining((*one.words, *small), 1))
            assert (row["part"], row["steps"]) == (part, 1)
        for part, one in program.comparisons.items():
            medssl(
                "finetune", *proof.trained_words(one.words), "--store", str(place.store), "--run",
                str(place.work / "tuned" / part), "--pretrained", str(place.pretrained(one.arms[0])), "--labels", "2",
                "--training.steps", "1", "--training.batch_size", "2", "--data.validation_labels", "2",
            )  # fmt: skip
    finally:
        os.umask(mask)
