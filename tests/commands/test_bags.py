"""Bags through the commands: made from files, learned from, scored, predicted; continued, and refused in one line."""

from __future__ import annotations

import csv
import json

import pytest
import safetensors.torch
import torch
from data.bags.made import bag, facts, make_bags, write_h5, write_table

from medssl import cli
from medssl.data.bags.description import BagRecord
from medssl.data.bags.store import BagStore
from medssl.data.bags.writer import BagWriter
from medssl.inference.bags import attention_of
from medssl.inference.predictor import load_fitted
from medssl.metrics.threshold import chosen_threshold
from medssl.training.loop import TrainingLoop

SHORT = ["--training.steps", "6", "--training.output.validate_every", "3", "--training.output.checkpoint_every", "2"]
SMALL = [*SHORT, "--head.width", "8", "--head.hidden", "4"]


def words(place, run, *more):
    return ["finetune", "--config", "bags_small", "--store", str(place), "--run", str(run), *SMALL, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_bags(tmp_path_factory.mktemp("bags") / "bags", 40, values=survival)


@pytest.fixture
def said(capsys, caplog):
    """What the last command said."""

    def read():
        text = capsys.readouterr().err + "\n".join(caplog.messages)
        caplog.clear()
        return text

    caplog.set_level("INFO")
    return read


def survival(number, positive):
    return {"months": str(5 + number - 3 * positive), "death": str(int(number % 4 > 0)), "grade": str(number // 2 % 3)}


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "abmil"
    steps = ["--training.steps", "40", "--optimizer.learning_rate", "0.01"]
    assert cli.main([*words(place, folder), *steps]) == 0
    return folder


def test_bags_are_made_from_files_of_other_programs(tmp_path, said):
    (tmp_path / "features").mkdir()
    rows = []
    for number in range(6):
        made = bag(1 if number == 5 else 4, seed=number)
        write_h5(tmp_path / "features" / f"MILLER{number}.h5", made.features, made.coords, {"encoder": "uni"})
        rows.append({"slide_id": f"MILLER{number}", "case_id": f"m{number // 2}", "tumor": "yn"[number % 2]})
    write_table(tmp_path / "labels.csv", rows)
    command = [
        *("bags", str(tmp_path / "features"), str(tmp_path / "out"), "--table.file", str(tmp_path / "labels.csv")),
        *("--table.values", "tumor", "--key", str(tmp_path / "key")),
    ]
    assert cli.main(command) == 0
    text = said()
    assert "6 bags (6 new, 0 already present), 0 skipped" in text
    assert "note: 1 bags have one tile" in text
    assert cli.main(command) == 0
    assert "6 bags (0 new, 6 already present)" in said()
    assert len(BagStore.open(tmp_path / "out")) == 6


def test_a_network_learns_from_bags_and_is_scored_by_subject(place, run, tmp_path, said):
    out = tmp_path / "scores"
    assert cli.main(["evaluate", str(run), "--index", str(place), "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["scans"], summary["subjects"], summary["kind"]) == (8, 4, "classification")
    assert summary["metrics"]["auroc"]["value"] == 1.0
    assert summary["of_subjects"]["subjects"] == 4
    assert summary["of_subjects"]["metrics"]["auroc"]["value"] == 1.0
    threshold = summary["threshold"]
    assert (threshold["split"], threshold["scans"], threshold["positive"]) == ("val", 8, "yes")
    rows = [json.loads(line) for line in (out / "threshold" / "finished.jsonl").read_text().splitlines()[1:]]
    store = BagStore.open(place)
    validated = {store.scan_id(n): store.values(n)["tumor"] for n in store.scans("val").tolist()}
    assert {row["scan_id"] for row in rows} == set(validated)  # no test bag chose it
    scores, truth = zip(*[(row["result"][1], validated[row["scan_id"]] == "yes") for row in rows], strict=True)
    assert threshold["value"] == chosen_threshold(torch.tensor(scores).double().numpy(), torch.tensor(truth).numpy())
    assert "chosen on 8 bags of split val: sensitivity" in said()
    assert cli.main(["evaluate", str(run), "--index", str(place), "--out", str(out)]) == 0
    assert "8 bags scored (0 new)" in said()


def test_all_bags_are_predicted_without_their_labels(place, run, tmp_path):
    assert cli.main(["predict", str(run), str(place), "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    store = BagStore.open(place)
    assert [row["scan_id"] for row in rows] == [store.scan_id(n) for n in range(len(store))]
    right = sum(row["predicted"] == store.values(n)["tumor"] for n, row in enumerate(rows))
    assert right >= 36
    attention = attention_of(load_fitted(run, torch.device("cpu")), store, 5)
    assert attention.shape == (1, store.tiles(5))
    assert float(attention.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("target", "answer", "measure"),
    [("months,death", "survival", "c_index"), ("grade", "ordinal", "auroc"), ("months", "number", "r2")],
)
def test_other_labels_are_learned_and_scored(place, tmp_path, target, answer, measure):
    more = ["--data.target", target, "--head.answer", answer]
    assert cli.main(words(place, tmp_path / "run", *more)) == 0
    scores = tmp_path / "scores"
    assert cli.main(["evaluate", str(tmp_path / "run"), "--index", str(place), "--out", str(scores)]) == 0
    assert measure in json.loads((scores / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize("head", ["mean_pool", "clam", "mhim", "ins", "transmil"])
def test_every_head_runs_and_is_loaded_again(place, tmp_path, head):
    command = ["finetune", "--config", "bags_small", "--store", str(place), "--run", str(tmp_path / "run")]
    smaller = ["--head.width", "16"] if head == "transmil" else []
    assert cli.main([*command, "--head", head, *smaller, "--training.steps", "3", "--labels", "4"]) == 0
    fitted = load_fitted(tmp_path / "run", torch.device("cpu"))
    assert fitted.card.tuned is not None
    assert len(fitted.card.tuned.subjects) == 4 + 4  # learned from, and validated with


class Stopped(Exception):
    """Ends a training as a kill does."""


@pytest.mark.parametrize("head", ["abmil", "mhim"])
def test_a_killed_run_continues_bit_by_bit(place, tmp_path, monkeypatch, head):
    changes = ["--head", head] if head != "abmil" else []

    def command(name):
        return [
            *("finetune", "--config", "bags_small", "--store", str(place), "--run", str(tmp_path / name)),
            *(*SHORT, *changes, "--data.view.size", "3", "--training.batch_size", "4"),
        ]

    assert cli.main(command("whole")) == 0
    step = TrainingLoop.step

    def stopping(self, crops):
        if self.progress.step == 5:
            raise Stopped
        return step(self, crops)

    monkeypatch.setattr(TrainingLoop, "step", stopping)
    with pytest.raises(Stopped, match=r"^$"):
        cli.main(command("killed"))
    monkeypatch.setattr(TrainingLoop, "step", step)
    assert cli.main(command("killed")) == 0
    heads = [safetensors.torch.load_file(tmp_path / name / "head.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_features_of_another_encoder_are_refused(place, run, tmp_path, said):
    other = make_bags(tmp_path / "other", 20, digest="another")
    assert cli.main(["evaluate", str(run), "--index", str(other), "--out", str(tmp_path / "s")]) == 2
    assert "the bags hold features of another encoder than those that the network was trained on" in said()
    wide = make_bags(tmp_path / "wide", 20, features=9)
    assert cli.main(["predict", str(run), str(wide), "--out", str(tmp_path / "p")]) == 2
    assert "got 'toy, 9 features'" in said()


def test_patients_of_the_training_are_not_scored(place, run, tmp_path, said):
    command = ["evaluate", str(run), "--index", str(place), "--out", str(tmp_path), "--split", "train"]
    assert cli.main(command) == 2
    assert "the network was trained or validated with labels on 12 of the 12 scored subjects" in said()
    assert cli.main([*command, "--allow", "seen"]) == 0


def test_test_patients_of_the_encoder_are_refused(tmp_path, said):
    from dataclasses import replace

    from medssl.types.provenance import Provenance

    made = facts()
    made = replace(made, encoder=replace(made.encoder, subjects=Provenance(("p1",))))
    with BagWriter(tmp_path / "bags", made) as writer:
        for number, split in enumerate(("train", "train", "val", "val", "test")):
            record = BagRecord(f"s{number}", f"p{5 - number}", split, {"tumor": "yn"[number % 2]})
            writer.write(record, bag(seed=number))
    assert cli.main(words(tmp_path / "bags", tmp_path / "run")) == 2
    text = said()
    assert "the encoder of the features was pretrained on 1 of the 1 subjects of split 'test'" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--head", "linear"], "head: Linear is a head for scans (expected a head of bags, such as abmil"),
        (["--data.view.size", "4,4"], "data.view.size: a bag has one axis"),
        (["--data.view.size", "0"], "data.view.size: a training sample needs a tile"),
        (["--data.view.intensity.noise", "0.2,0.1"], "data.view: features of bags are neither turned nor changed"),
        (["--pretrained", "somewhere"], "pretrained: the store is a folder of bags"),
        (["--optimizer.lora.rank", "4"], "optimizer.lora.rank: bags have no encoder to adapt"),
        (["--data.target", "nothing"], "no scan of"),
        (["--head.answer", "age"], "answer"),
        (["--labels", "40"], "there are 12 labeled subjects to choose from"),
    ],
)
def test_what_does_not_fit_bags_is_refused_in_one_line(place, tmp_path, said, more, message):
    base = words(place, tmp_path / "run") if "--head" not in more else words(place, tmp_path / "run")[:7]
    assert cli.main([*base, *more]) == 2
    lines = [line for line in said().splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert message in lines[0].replace("--", "")


def test_scans_are_refused_for_a_network_of_bags(run, tmp_path, said):
    assert (
        cli.main(["evaluate", str(run), "--index", str(tmp_path / "index.sqlite"), "--out", str(tmp_path / "s")]) == 2
    )
    assert "the network was trained on bags, and these are no bags" in said()


def test_two_slides_of_a_patient_in_two_splits_are_refused(tmp_path, said):
    with BagWriter(tmp_path / "bags", facts()) as writer:
        writer.write(BagRecord("s1", "p1", "train", {"tumor": "y"}), bag())
        writer.write(BagRecord("s2", "p1", "val", {"tumor": "n"}), bag(seed=1))
    assert cli.main(words(tmp_path / "bags", tmp_path / "run")) == 2
    assert "1 of 1 subjects have slides in two splits" in said()
