"""Findings and numbers from the index to the report; imbalance; scribbles: the verbs, a few steps each."""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from commands import labeled
from data.make_scans import write_nifti, write_picture

from medssl import cli
from medssl.comparison.report import markdown
from medssl.comparison.tables import trained_of
from medssl.data.formats.reading import read
from medssl.data.index.scan_index import Index
from medssl.encoders.weights import load_card
from medssl.inference.predictor import classify, device_of, load_fitted, segment
from medssl.metrics import cases, tables
from medssl.metrics.label_efficiency import NAMES, Level
from medssl.reporting.page import make_page
from medssl.reporting.parts import read_part
from medssl.types import LabelSchema

ENCODER = "{class_path: medssl.encoders.resenc.ResEnc, init_args: {in_channels: 1, ndim: %d, channels: [4, 8], "
ENCODER += "strides: %s, blocks: [1, 1]}}"
FLAT = ENCODER % (2, "[[1, 1], [2, 2]]")
SOLID = ENCODER % (3, "[[1, 1, 1], [2, 2, 2]]")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """40 pictures with a bright ball on the left, a dark one on the right, both or neither; a table of findings."""
    folder = tmp_path_factory.mktemp("whole_scans") / "data"
    generator = np.random.default_rng(0)
    rows = [("name", "split", "left", "right", "balls", "height", "word", "same")]
    for number in range(40):
        image = generator.normal(60, 10, (32, 32))
        left, right, height = number % 2, number // 2 % 2, int(generator.integers(8, 24))
        for there, column, shade in ((left, 8, 120), (right, 24, -50)):
            if there:
                image[labeled.ball((32, 32), np.array([height, column]), 5)] += shade
        write_picture(folder / "scans" / f"p{number:02d}.png", image.clip(0, 255).astype(np.uint8))
        listed = "|".join(name for name, there in (("left", left), ("right", right)) if there) or "none"
        known = number % 7 != 3
        split = ("train", "train", "train", "val", "test")[number // 4 % 5]
        age = f"{1000 + 10 * height}" if known else ""
        rows.append((f"p{number:02d}.png", split, left, right if known else "", listed, age, "tall", "5"))
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    key = folder.parent / "key"
    key.write_text("0" * 64)
    key.chmod(0o600)
    words = {
        "--index": folder / "index.sqlite", "--subject": r"(p\d+)", "--label.values": folder / "table.csv",
        "--label.key": "name", "--label.columns": "left,right,balls,height,word,same",
        "--label.split": "column:split", "--files.modality": "XR", "--files.key": key,
    }  # fmt: skip
    assert cli.main(["index", str(folder / "scans"), *(f"{key}={value}" for key, value in words.items())]) == 0
    labeled.stored(folder / "index.sqlite", folder / "store", None)
    return folder


@pytest.fixture
def call(place, tmp_path, capsys):
    """Calls a verb; gives the exit code and everything it said."""

    def run(verb: str, *words: object):
        mask, threads = os.umask(0o077), torch.get_num_threads()
        given = {}
        if verb == "finetune":
            given = {
                "--config": "classify_2d_small", "--store": place / "store", "--run": tmp_path / "run",
                "--encoder": FLAT, "--data.view.size": "[32,32]", "--training.steps": 2, "--training.batch_size": 8,
                "--data.workers": 0, "--training.output.validate_every": 2, "--training.output.log_every": 1,
            }  # fmt: skip
        rest = list(map(str, words))
        named = {word.partition("=")[0] for word in rest}
        given = {key: value for key, value in given.items() if key not in named}
        try:
            code = cli.main([verb, *(f"{key}={value}" for key, value in given.items()), *rest])
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def predictions(folder):
    return list(csv.DictReader((folder / "out/predictions.csv").read_text().splitlines()))


def answers_of(run, place):
    """What the network says of each test scan, asked here."""
    fitted = load_fitted(run, device_of("cpu"))
    with Index.open(place / "index.sqlite") as opened:
        return {
            scan.scan_id: (
                classify(fitted, read(scan, opened.root), scan.source.value_domain),
                dict(scan.labels.values),
            )
            for scan in opened.scans(split="test")
        }


@pytest.mark.parametrize("target", ["left,right", "balls"])
def test_findings_from_training_to_report(call, place, tmp_path, target):
    run = tmp_path / "run"
    code, said = call(
        "finetune", "--head=multi_label", "--head.positive_weights=balanced", f"--data.target={target}", "--labels=20",
        "--training.steps=30", "--training.output.validate_every=30", "--optimizer.learning_rate=0.02",
        "--data.sampling.balance=equal", "--mixing.mixup=0.2", "--mixing.cutmix=1.0", "--mixing.share=0.2",
    )  # fmt: skip
    assert code == 0, said
    assert logged(run)[-1]["validation_auroc"] > 0.8
    schema = load_card(run).tuned.schema
    assert schema == LabelSchema(target, ((0, "left"), (1, "right")), kind="findings")
    assert (
        call("evaluate", run, f"--index={place / 'index.sqlite'}", f"--out={tmp_path / 'test'}", "--by=label_word")[0]
        == 0
    )
    rows, names = cases.read_multi_label(tmp_path / "test/cases.csv")
    asked = answers_of(run, place)
    assert names == ["left", "right"]
    assert len(rows) == len(asked) == 8
    for row in rows:
        chances, values = asked[row.scan_id]
        assert row.probabilities == pytest.approx(chances.tolist(), abs=1e-6)
        right = values["right"] if target != "balls" else str(int("right" in values["balls"]))
        assert row.truth == (int(values["left"]), int(right) if right else -1)
    summary = tables.read_summary(tmp_path / "test/summary.json")
    assert summary["counts"]["not known"] == {"left": 0, "right": 0 if target == "balls" else 2}
    assert list(summary["subgroups"]["label_word"]) == ["tall"]
    assert not (tmp_path / "test/calibration.svg").exists()
    code, said = call("predict", run, f"--index={place / 'index.sqlite'}", f"--out={tmp_path / 'out'}")
    assert code == 0, said
    lines = predictions(tmp_path)
    assert list(lines[0]) == ["scan_id", "probability:left", "probability:right"]
    assert len(lines) == 40
    # what compare takes from a run, and the page
    one = trained_of(SimpleNamespace(arm=SimpleNamespace(name="a"), labels=4, number=0, pretraining=0), tmp_path)
    assert one.measure == "auroc"
    assert one.value == pytest.approx(summary["metrics"]["auroc"]["value"])
    assert len(one.scores) == 8
    parts = [
        read_part(name, folder) for name, folder in (("x", tmp_path / "test"), ("y", tmp_path / "test"), ("r", run))
    ]
    page = make_page(parts)
    assert "Multi-label of left, right" in page
    assert "x and y: too few runs for a verdict, 1 of each, it takes 5. AUROC" in page
    code, said = call(
        "evaluate", run, f"--index={place / 'index.sqlite'}", f"--out={tmp_path / 'c'}", "--calibrate=val"
    )
    assert code == 2
    assert "a temperature is fitted to class probabilities, the network is a multi_label" in said


def test_a_number_from_training_to_report(call, place, tmp_path):
    run = tmp_path / "run"
    words = ("--head=regression", "--data.target=height", "--head.error=squared", "--optimizer.learning_rate=0.01")
    code, said = call(
        "finetune",
        *words,
        "--training.steps=20",
        "--training.output.validate_every=10",
        "--optimizer.probe.floor=false",
    )
    assert code == 0, said
    r2 = [row["validation_r2"] for row in logged(run) if "validation_r2" in row]
    assert len(r2) == 2
    assert f"validation r2 {r2[-1]:.4f} at step 20; its averaged weights are written" in said
    assert load_card(run).tuned.schema == LabelSchema("height", ((0, "height"),), kind="number")
    code, said = call(
        "evaluate", run, f"--index={place / 'index.sqlite'}", f"--out={tmp_path / 'test'}", "--by=label_word"
    )
    assert code == 0, said
    assert "regression: 6 scans of 6 subjects" in said
    assert "by label_word:" in said
    rows = cases.read_regression(tmp_path / "test/cases.csv")
    asked = answers_of(run, place)
    assert {row.truth for row in rows} <= {float(1000 + 10 * n) for n in range(8, 24)}  # in the unit of the table
    for row in rows:
        assert row.predicted == pytest.approx(float(asked[row.scan_id][0][0]), rel=1e-6)
        assert 900 < row.predicted < 1400
    code, said = call("predict", run, f"--index={place / 'index.sqlite'}", f"--out={tmp_path / 'out'}")
    assert code == 0, said
    lines = {row["scan_id"]: row for row in predictions(tmp_path)}
    assert float(lines[rows[0].scan_id]["predicted:height"]) == pytest.approx(rows[0].predicted)
    one = trained_of(SimpleNamespace(arm=SimpleNamespace(name="a"), labels=4, number=0, pretraining=0), tmp_path)
    assert (one.measure, NAMES[one.measure]) == ("negative_mae", "negative MAE")
    assert one.value == pytest.approx(-np.mean([abs(row.predicted - row.truth) for row in rows]))
    text = markdown(
        {"a": [Level(4, one.value, None, None, 1)]}, [], {"a": {"pretraining": 0, "finetuning": 1}}, "negative MAE"
    )
    assert "Negative MAE is minus the mean absolute error, in the unit of the label." in text
    page = make_page([read_part("x", tmp_path / "test"), read_part("y", tmp_path / "test")])
    assert "Regression of height" in page
    assert "x and y: too few runs for a verdict, 1 of each, it takes 5. Explained variance (R2)" in page
    assert "mean absolute error (less is better)" in page
    code, said = call(
        "evaluate", run, f"--index={place / 'index.sqlite'}", f"--out={tmp_path / 'c'}", "--calibrate=val"
    )
    assert code == 2
    assert "the network is a regression (got 'val'). Leave it out" in said


def test_balanced_classes_train_and_findings_that_are_alike_are_told(call):
    words = ("--head=linear", "--head.class_weights=balanced", "--data.target=balls", "--data.sampling.balance=root")
    code, said = call("finetune", *words)
    assert code == 0, said
    code, said = call("finetune", "--head=multi_label", "--data.target=left,right", "--labels=1", "--run=other")
    assert code == 2
    assert "no finding differs among all 1 labeled scans. Take more labels" in said


BAD = [
    ("mask", "multi_label", "mask", [], r"--data\.target: the head is for multi_label \(got 'mask'\)"),
    ("several for one", "linear", "left,right", [], r"the head is for classification of one value \(got 'left,r"),
    ("several numbers", "regression", "left,right", [], r"the head is for regression of one value \(got"),
    ("unknown finding", "multi_label", "left,rihgt", [], r"has a value 'rihgt'.*\. Did you mean 'right'\?"),
    ("unknown number", "regression", "heigth", [], r"'heigth'.*\. Did you mean 'height'\?"),
    ("unknown class", "linear", "bals", [], r"no scan of .* has a value 'bals'.*\. Did you mean 'balls'\?"),
    ("no number", "regression", "word", [], r"word has the value 'tall' \(expected a number"),
    ("constant", "regression", "same", [], r"'same' is 5 in all 40 scans where it is known"),
    ("one class", "multi_label", "word", [], r"finding 'tall' is yes in all 40 scans"),
    ("numbers as findings", "multi_label", "left,height", [], r"height has the value '\d+' \(expected yes or no"),
    ("segmentation", "unet", "left", [], r"the head is for segmentation, the target is 'left'"),
    ("balanced", "regression", "height", ["--data.sampling.balance=equal"], r"balance equal draws scans by their cl"),
    ("constant choice", "regression", "height", ["--labels=1"], r"height is \d+ in all 1 labeled scans"),
]  # fmt: skip


@pytest.mark.parametrize(("head", "target", "words", "message"), [r[1:] for r in BAD], ids=[r[0] for r in BAD])
def test_bad_input_is_one_line(call, head, target, words, message):
    code, said = call("finetune", f"--head={head}", f"--data.target={target}", *words)
    assert code == 2
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert said.startswith("error: ")


# --- scribbles


def test_scribbles_train_validate_and_score(place, tmp_path, call):
    """Most voxels have the value to ignore: Dice is over the scribbles alone; what is elsewhere does not matter."""
    scans = labeled.volumes(tmp_path / "scans")
    generator = np.random.default_rng(3)
    for file in sorted((scans / "labels").iterdir()):
        whole = np.asarray(nibabel.load(file).dataobj).astype(np.uint8)
        drawn = np.full(whole.shape, 255, np.uint8)
        for value, count in ((0, 60), (1, 25), (4, 25)):
            chosen = generator.choice(np.flatnonzero(whole.reshape(-1) == value), count, replace=False)
            drawn.reshape(-1)[chosen] = value
        write_nifti(file, drawn, np.diag([1, 1, 1.5, 1]))
    words = {
        "--index": tmp_path / "index.sqlite", "--subject": r"(p\d+)", "--label.masks": "images=labels",
        "--label.class_names": "0=background,1=left,4=right", "--label.ignore": 255,
        "--label.values": tmp_path / "splits.csv", "--label.key": "name", "--label.split": "column:split",
        "--files.modality": "MR", "--files.key": place.parent / "key",
    }  # fmt: skip
    assert call("index", scans, *(f"{key}={value}" for key, value in words.items()))[0] == 0
    store = labeled.stored(tmp_path / "index.sqlite", tmp_path / "store", None)
    run = tmp_path / "run"
    code, said = call(
        "finetune", "--config=segment_3d_small", f"--store={store}", f"--encoder={SOLID}", "--data.view.size=[16,16,8]",
        "--training.batch_size=4", "--training.steps=50", "--training.output.validate_every=25",
        "--optimizer.learning_rate=0.01",
    )  # fmt: skip
    assert code == 0, said
    assert max(row["validation_dice"] for row in logged(run) if "validation_dice" in row) > 0.6
    code, said = call("evaluate", run, f"--index={tmp_path / 'index.sqlite'}", f"--out={tmp_path / 'test'}")
    assert code == 0, said
    rows = cases.read_segmentation(tmp_path / "test/cases.csv")
    assert {row.class_name for row in rows} == {"left", "right"}
    fitted = load_fitted(run, device_of("cpu"))
    with Index.open(tmp_path / "index.sqlite") as opened:
        for scan in opened.scans(split="test"):
            volume = read(scan, opened.root)
            found = segment(fitted, replace(volume, label=None), scan.source.value_domain)
            known = volume.label[0] != 255
            assert known.sum() == 110
            for row in (row for row in rows if row.scan_id == scan.scan_id):
                value = {"left": 1, "right": 4}[row.class_name]
                true, own = volume.label[0][known] == value, found[known] == value
                assert (row.score.true_voxels, row.score.predicted_voxels) == (true.sum(), own.sum())
                assert row.score.dice == pytest.approx(2 * (true & own).sum() / (true.sum() + own.sum()))
