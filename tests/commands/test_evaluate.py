"""The verb evaluate: scores of networks whose answers are known; what is kept, what is refused and skipped."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import fitted
from commands.fitted import KINDS, RAW, bands
from data.make_scans import noise, truncate, write_nifti, write_picture

from medssl.cli import run_verb
from medssl.commands import evaluate as verb
from medssl.commands.evaluate import evaluate
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import Index, IndexOptions
from medssl.data.index.update import update
from medssl.inference import evaluation
from medssl.inference.predictor import Windows, segment
from medssl.metrics import cases, tables
from medssl.metrics.calibration import temperature
from medssl.types import LabelSchema, Preprocess, UserError
from medssl.types.provenance import Provenance

NAMES = "0=background,5=tissue,9=bone"
LEFT = np.diag([-0.8, -1.0, 2.5, 1.0])


@pytest.fixture(autouse=True)
def own_umask():
    mask = os.umask(0o077)
    yield
    os.umask(mask)


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Only tests of pictures draw them."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(evaluation, "overlay", lambda *arguments: b"")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def indexed(folder: Path, *, classes: str = NAMES, split: str = "test=1.0", **options) -> Path:
    """Index of a folder "scans" with images and labels; each file is a subject."""
    file = folder / "index" / "index.sqlite"
    labels = LabelOptions(masks="images=labels" if classes else "", class_names=classes, split=split, **options)
    with Index.open(file, create=True, root=folder) as index:
        update(index, [folder / "scans"], IndexOptions(r"(p\d+)", labels), key=b"k" * 32)
    return file


def labeled(folder: Path, wrong=(0, 0, 0), *, affine=LEFT, **options) -> Path:
    """Index of scans whose label is the answer of ``Bands``, but for some voxels of class 5 that were 0."""
    for number, count in enumerate(wrong):
        array = noise((8, 9, 6), seed=number)
        label = bands(array).astype(np.uint8)
        label.reshape(-1)[np.flatnonzero(label == 0)[:count]] = 5
        write_nifti(folder / "scans" / "images" / f"p{number}.nii.gz", array, affine)
        write_nifti(folder / "scans" / "labels" / f"p{number}.nii.gz", label, affine)
    return indexed(folder, **options)


def subjects(file: Path) -> list[str]:
    with Index.open(file) as index:
        return [scan.subject.subject_id for scan in index.scans()]


def test_scores_pictures_and_table_of_a_segmentation(tmp_path, out, capsys):
    file = labeled(tmp_path, (0, 5, 10, 20))
    assert evaluate(fitted.save(tmp_path / "run"), index=file, out=out).exit_code == 0
    rows = cases.read_segmentation(out / "cases.csv")
    assert len(rows) == 8
    for row in rows:
        hit = row.score.predicted_voxels
        assert row.score.dice == pytest.approx(2 * hit / (hit + row.score.true_voxels))
        assert row.class_name == "tissue" or row.score.dice == 1
    summary = tables.read_summary(out / "summary.json")
    mean = np.mean(list(cases.scan_scores(rows).values()))
    assert summary["metrics"]["dice"]["value"] == pytest.approx(mean)
    assert (summary["by"]["step"], summary["by"]["split"]) == (7, "test")
    ordered = sorted(cases.scan_scores(rows).items(), key=lambda pair: pair[1])
    assert {path.stem for path in (out / "pictures").iterdir()} == {ordered[k][0] for k in (0, 2, 3)}
    told = capsys.readouterr().out
    assert "dice:tissue" in told
    assert "4 scans scored (4 new, 0 already present), 0 skipped" in told
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.rglob("*"))


def test_distances_are_of_the_scans_own_grid(tmp_path, out):
    image = np.zeros((12, 10, 8), np.int16)
    image[3:6, 2:5, 2:6] = 300
    label = np.zeros(image.shape, np.uint8)
    label[3:6, 2:5, 3:7] = 5  # one slice of 5 mm further
    affine = np.diag([0.7, 0.7, 5.0, 1.0])
    write_nifti(tmp_path / "scans" / "images" / "p0.nii", image, affine)
    write_nifti(tmp_path / "scans" / "labels" / "p0.nii", label, affine)
    run = fitted.save(tmp_path / "run", preprocess=Preprocess("LPS", foreground_crop=False, intensity=RAW.intensity))
    assert evaluate(run, index=indexed(tmp_path), out=out).exit_code == 0
    score = cases.read_segmentation(out / "cases.csv")[0].score
    assert (score.dice, score.hd95_mm) == (0.75, 5.0)
    assert score.further is not None
    assert score.further["nsd"] == pytest.approx(25 / 34)  # of 34 voxels of surface the 9 of one face lie 5 mm off
    assert (score.further["volume_error_ml"], score.further["lesion_f1"]) == (0.0, 1.0)
    other = out.with_name("other")
    assert evaluate(run, index=indexed(tmp_path), out=other, nsd_tolerance_mm=5.0).exit_code == 0
    assert cases.read_segmentation(other / "cases.csv")[0].score.further["nsd"] == 1.0
    assert tables.read_summary(other / "summary.json")["by"]["nsd_tolerance_mm"] == 5.0
    with pytest.raises(UserError, match=r"other settings \(nsd_tolerance_mm 5.0 there, 2.0 here\): choose another"):
        evaluate(run, index=indexed(tmp_path), out=other, nsd_tolerance_mm=2.0)
    with pytest.raises(UserError, match=r"nsd_tolerance_mm: must be a distance in mm of at least 0"):
        evaluate(run, index=indexed(tmp_path), out=other, nsd_tolerance_mm=-1.0)


def test_pictures_without_a_spacing_are_told(tmp_path, out, capsys):
    image, label = np.zeros((12, 10), np.uint8), np.zeros((12, 10), np.uint8)
    image[3:6, 2:5], label[3:6, 2:7] = 200, 5  # two columns further
    for name in ("p0", "p1"):
        write_picture(tmp_path / "scans" / "images" / f"{name}.png", image)
        write_picture(tmp_path / "scans" / "labels" / f"{name}.png", label)
    for folder, array in (("images", image), ("labels", label)):
        write_nifti(tmp_path / "scans" / folder / "p2.nii.gz", array, np.diag([0.5, 0.5, 1.0, 1.0]))
    run = fitted.save(tmp_path / "run", window=(8, 8))
    assert evaluate(run, index=indexed(tmp_path), out=out).exit_code == 0
    note = "no spacing is known for 2 pictures: distances (hd95_mm, nsd) are in pixels"
    assert note in tables.read_summary(out / "summary.json")["notes"]
    assert f"note: {note}" in capsys.readouterr().out
    assert sorted(row.score.hd95_mm for row in cases.read_segmentation(out / "cases.csv")[::2]) == [1.0, 2.0, 2.0]


def test_scores_of_a_former_version_are_refused(tmp_path, out):
    file, run = labeled(tmp_path), fitted.save(tmp_path / "run")
    assert evaluate(run, index=file, out=out).exit_code == 0
    first, *lines = (out / "finished.jsonl").read_text().splitlines()
    former = json.loads(first)
    del former["nsd_tolerance_mm"]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["result"] = {name: list(score.values())[:5] for name, score in row["result"].items()}
    text = "".join(json.dumps(row) + "\n" for row in (former, *rows))
    (out / "finished.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"other settings \(nsd_tolerance_mm None there, 1.0 here\): choose another"):
        evaluate(run, index=file, out=out)
    assert (out / "finished.jsonl").read_text() == text


def test_the_label_is_kept_from_the_network(tmp_path, out):
    """A labeled voxel in the air would widen the foreground crop."""
    image = np.zeros((12, 10, 8), np.int16)
    image[3:6, 2:5, 2:6] = 300
    label = np.full(image.shape, 5, np.uint8)
    write_nifti(tmp_path / "scans" / "images" / "p0.nii", image)
    write_nifti(tmp_path / "scans" / "labels" / "p0.nii", label)
    run = fitted.save(tmp_path / "run", fitted.Sides, window=(16, 16, 16))
    assert evaluate(run, index=indexed(tmp_path), out=out).exit_code == 0
    score = cases.read_segmentation(out / "cases.csv")[0].score
    assert 0 < score.predicted_voxels <= 3 * 3 * 4  # the crop around what is bright


def test_a_classification(tmp_path, out):
    for number, (kind, value) in enumerate((k, v) for k in ("dark", "bright") for v in (40, 90, 300)):
        write_picture(tmp_path / "scans" / kind / f"p{number}.png", np.full((9, 8), min(value, 255), np.uint8))
    file = indexed(tmp_path, classes="", **{"split": "test=1.0"})
    with pytest.raises(UserError, match="none of the 6 scans of split 'test' is labeled with 'diagnosis'"):
        evaluate(fitted.save(tmp_path / "run", fitted.Mean, schema=KINDS, window=(8, 8)), index=file, out=out)
    kinds = LabelSchema("class", KINDS.classes)
    run = fitted.save(tmp_path / "run2", fitted.Mean, schema=kinds, window=(8, 8), seen=Provenance(complete=False))
    file.unlink()
    with Index.open(file, create=True, root=tmp_path) as index:
        labels = LabelOptions(classes="folder", split="test=1.0")
        update(index, [tmp_path / "scans"], IndexOptions(r"(p\d+)", labels), key=b"k" * 32)
    assert evaluate(run, index=file, out=out).exit_code == 0
    rows, names = cases.read_classification(out / "cases.csv")
    assert names == ["dark", "bright"]
    assert [(row.truth, row.predicted) for row in rows].count(("dark", "dark")) == 2
    summary = tables.read_summary(out / "summary.json")
    assert summary["metrics"]["accuracy"]["value"] == 0.5
    assert any("not all subjects that the network was pretrained on are known" in note for note in summary["notes"])
    other = fitted.save(
        tmp_path / "run3", fitted.Mean, schema=LabelSchema("class", ((0, "dark"), (1, "light"))), window=(8, 8)
    )
    with pytest.raises(UserError, match=r"class has the value 'bright' \(expected one of the classes dark, light"):
        evaluate(other, index=file, out=out)


def classed(folder: Path) -> Path:
    """Index of pictures in a folder for each class: six in the split test, six in val; each file is a subject."""
    for number, value in enumerate((40, 90, 250, 40, 90, 250, 30, 60, 160, 60, 220, 240)):
        kind = ("dark", "bright")[number // 3 % 2]
        write_picture(folder / "scans" / kind / f"p{number:02d}.png", np.full((9, 8), value, np.uint8))
    file = folder / "index" / "index.sqlite"
    with Index.open(file, create=True, root=folder) as index:
        options = LabelOptions(classes="folder", split="test=1.0")
        update(index, [folder / "scans"], IndexOptions(r"(p\d+)", options), key=b"k" * 32)
        named = [(scan.source.parts[0].path.split("/")[-1], scan.scan_id) for scan in index.scans()]
        for _, scan_id in sorted(named)[6:]:
            index.connection.execute("UPDATE scans SET split = 'val' WHERE scan_id = ?", (scan_id,))
    return file


def test_a_temperature_is_fitted_on_another_split(tmp_path, out, capsys, monkeypatch):
    file = classed(tmp_path)
    run = fitted.save(tmp_path / "run", fitted.Mean, schema=LabelSchema("class", KINDS.classes), window=(8, 8))
    assert evaluate(run, index=file, out=out).exit_code == 0
    plain = tables.read_summary(out / "summary.json")
    assert evaluate(run, index=file, out=out, specificity=0.6).exit_code == 0
    found = tables.read_summary(out / "summary.json")["metrics"]
    assert found["sensitivity_at_specificity_0.6"]["value"] is not None
    assert [name.replace("0.6", "0.9") for name in found] == [*plain["metrics"]]
    with pytest.raises(UserError, match="specificity: must be above 0, 1 at most"):
        evaluate(run, index=file, out=out, specificity=90)
    assert "<svg" in (out / "calibration.svg").read_text()
    assert "temperature" not in (out / "calibration.svg").read_text()
    assert evaluate(run, index=file, out=out, calibrate="val").exit_code == 0
    summary = tables.read_summary(out / "summary.json")
    with Index.open(file) as index:
        others = [scan for scan in index.scans() if scan.subject.split == "val"]
    kept = [json.loads(line) for line in (out / "calibration" / "finished.jsonl").read_text().splitlines()[1:]]
    answers = {row["scan_id"]: row["result"] for row in kept}
    assert answers.keys() == {scan.scan_id for scan in others}
    truth = [("dark", "bright").index(dict(scan.labels.values)["class"]) for scan in others]
    expected = temperature(np.array([answers[scan.scan_id] for scan in others]), np.array(truth))
    assert summary["scaling"] == {"temperature": pytest.approx(expected), "split": "val", "scans": 6, "subjects": 6}
    assert {name: summary["metrics"][name] for name in plain["metrics"]} == plain["metrics"]
    assert {"ece_scaled", "brier_scaled", "nll_scaled"} <= summary["metrics"].keys()
    told = capsys.readouterr().out
    assert "nll_scaled" in told
    assert "fitted on 6 scans of split val" in told
    assert "temperature" in (out / "calibration.svg").read_text()
    monkeypatch.setattr(evaluation, "classify", None)  # what is done is not done again
    assert evaluate(run, index=file, out=out, calibrate="val").exit_code == 0


def test_a_temperature_that_cannot_be_fitted_is_refused(tmp_path, out):
    file = classed(tmp_path)
    kinds = LabelSchema("class", KINDS.classes)
    with Index.open(file) as index:
        val = [scan.subject.subject_id for scan in index.scans() if scan.subject.split == "val"]
    run = fitted.save(tmp_path / "run", fitted.Mean, schema=kinds, window=(8, 8), subjects=tuple(val[:2]))
    with pytest.raises(UserError, match=r"^calibrate: is the split that is scored \(got .test.\)\. Choose another"):
        evaluate(run, index=file, out=out, calibrate="test")
    with pytest.raises(UserError, match="none of the 0 scans of split 'none' is labeled with 'class'"):
        evaluate(run, index=file, out=out, calibrate="none")
    assert evaluate(run, index=file, out=out, calibrate="val").exit_code == 0
    notes = tables.read_summary(out / "summary.json")["notes"]
    assert "temperature: 2 of the 6 subjects were trained or validated on with labels" in notes
    first, *others = (path for path in sorted((tmp_path / "scans").rglob("p*.png")) if int(path.stem[1:]) > 5)
    truncate(first)
    other = out.with_name("other")
    assert evaluate(run, index=file, out=other, calibrate="val").exit_code == 0
    summary = tables.read_summary(other / "summary.json")
    assert "temperature: 1 scans of split val skipped" in summary["notes"]
    assert (summary["scaling"]["scans"], summary["skipped"]) == (5, [])
    for path in others:
        truncate(path)
    with pytest.raises(UserError, match=r"not one scan of split 'val' could be classified \(.*\): no temperature was"):
        evaluate(run, index=file, out=out.with_name("third"), calibrate="val")
    with Index.open(file, create=True) as index:
        one_each = "SELECT min(scan_id) FROM scans GROUP BY split"
        index.connection.execute(f"UPDATE scans SET subject_id = 'same' WHERE scan_id IN ({one_each})")
    with pytest.raises(UserError, match=r"^calibrate: 1 subjects of this split are scored as well\. Choose a split"):
        evaluate(run, index=file, out=out, calibrate="val")


def test_a_temperature_of_a_segmentation_is_refused(tmp_path, out):
    with pytest.raises(
        UserError, match=r"^calibrate: a temperature is fitted to class probabilities, the network is a segmentation"
    ):
        evaluate(fitted.save(tmp_path / "run"), index=labeled(tmp_path), out=out, calibrate="val")


# --- groups


def test_measures_by_columns_of_the_index(tmp_path, out, capsys):
    file, run = labeled(tmp_path, (0, 5, 10, 20)), fitted.save(tmp_path / "run")
    with Index.open(file, create=True) as index:
        for number, scan in enumerate(list(index.scans())):
            new = (("GE", "GE", "GE", "")[number], (1.5, 3.0, None, 3.0)[number], scan.scan_id)
            index.connection.execute("UPDATE scans SET manufacturer = ?, field_strength_t = ? WHERE scan_id = ?", new)
    with pytest.raises(UserError, match=r"by names 'maker', which is no column of the index; .* manufacturer, model"):
        evaluate(run, index=file, out=out, by="maker")
    assert not out.exists()
    assert evaluate(run, index=file, out=out, by="manufacturer,field_strength_t").exit_code == 0
    summary = tables.read_summary(out / "summary.json")
    found = summary["subgroups"]
    assert {column: list(groups) for column, groups in found.items()} == {
        "manufacturer": ["GE", "not known"],
        "field_strength_t": ["1.5", "3", "not known"],
    }
    first = list(cases.scan_scores(cases.read_segmentation(out / "cases.csv")).values())[:3]
    assert found["manufacturer"]["GE"]["metrics"]["dice"]["value"] == pytest.approx(np.mean(first))
    assert found["manufacturer"]["GE"]["metrics"]["dice"]["low"] is not None
    assert found["field_strength_t"]["3"]["metrics"]["nsd:tissue"]["low"] is None
    assert found["field_strength_t"]["3"]["subjects"] == 2
    told = capsys.readouterr().out
    assert "by manufacturer:" in told
    assert "lesion_f1:bone" in told
    assert evaluate(run, index=file, out=out).exit_code == 0
    assert "subgroups" not in tables.read_summary(out / "summary.json")


def test_a_classification_by_group(tmp_path, out):
    file = classed(tmp_path)
    run = fitted.save(tmp_path / "run", fitted.Mean, schema=LabelSchema("class", KINDS.classes), window=(8, 8))
    assert evaluate(run, index=file, out=out, by="label_class", calibrate="val").exit_code == 0
    found = tables.read_summary(out / "summary.json")["subgroups"]["label_class"]
    rows, _ = cases.read_classification(out / "cases.csv")
    for name in ("dark", "bright"):
        right = [row.predicted == name for row in rows if row.truth == name]
        assert found[name]["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right))
        assert found[name]["metrics"]["auroc"]["value"] is None
        assert "ece_scaled" in found[name]["metrics"]


# --- subjects that the network knows


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            {"subjects": slice(0, 2)},
            r"the network was trained or validated with labels on 2 of the 3 scored subjects: their scores would be",
        ),
        (
            {"seen": slice(2, 3)},
            r"the network was pretrained on 1 of the 3 scored subjects: .* allow it \(allow: seen\)",
        ),
    ],
)
def test_scoring_subjects_of_the_training_is_refused_unless_allowed(tmp_path, out, known, message, capsys):
    file = labeled(tmp_path)
    training = {name: tuple(subjects(file)[part]) for name, part in known.items()}
    run = fitted.save(tmp_path / "run", **training)
    with pytest.raises(UserError, match=message):
        evaluate(run, index=file, out=out)
    assert not out.exists()
    assert evaluate(run, index=file, out=out, allow=("seen",)).exit_code == 0
    summary = tables.read_summary(out / "summary.json")
    assert any(
        "of the 3 scored subjects (allowed)" in note and "scores may be too good" in note for note in summary["notes"]
    )
    assert "note:" in capsys.readouterr().out


def test_scans_without_a_known_subject_are_noted(tmp_path, out):
    file = labeled(tmp_path)
    with Index.open(file, create=True) as index:
        index.connection.execute("UPDATE scans SET subject_known = 0")
    assert evaluate(fitted.save(tmp_path / "run"), index=file, out=out).exit_code == 0
    assert any("leaks are possible" in note for note in tables.read_summary(out / "summary.json")["notes"])


# --- going on


def test_scored_scans_are_not_scored_again(tmp_path, out, monkeypatch):
    file = labeled(tmp_path, (0, 5, 10, 20))
    run = fitted.save(tmp_path / "run")
    assert evaluate(run, index=file, out=out).exit_code == 0
    content = {name: (out / name).read_bytes() for name in ("cases.csv", "summary.json")}
    lines = (out / "finished.jsonl").read_bytes().split(b"\n")
    (out / "finished.jsonl").write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:20])  # killed while writing
    (out / "cases.csv").unlink()
    asked = []
    monkeypatch.setattr(evaluation, "segment", lambda *a: (asked.append(1), segment(*a))[1])
    monkeypatch.setattr(verb, "draw_cases", lambda *a, **more: None)
    assert evaluate(run, index=file, out=out).exit_code == 0
    assert len(asked) == 2
    assert {name: (out / name).read_bytes() for name in content} == content
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "segment", None)
    assert evaluate(run, index=file, out=out).exit_code == 0
    with pytest.raises(UserError, match=r"another network or other settings \(overlap 0.5 there, 0.0 here\)"):
        evaluate(run, index=file, out=out, windows=Windows(overlap=0.0))


def test_pictures_follow_the_scores(tmp_path, out):
    file = labeled(tmp_path, (0, 5, 10, 20))
    run = fitted.save(tmp_path / "run")
    assert evaluate(run, index=file, out=out, where="size_k = 6").exit_code == 0
    (out / "pictures" / "stale.png").write_bytes(b"")
    assert evaluate(run, index=file, out=out).exit_code == 0
    assert len(list((out / "pictures").iterdir())) == 3


# --- what is skipped and what is refused


def test_scans_that_cannot_be_scored_are_listed_without_their_names(tmp_path, out, capsys):
    file = labeled(tmp_path, (0, 0, 0, 0))
    images, labels = tmp_path / "scans" / "images", tmp_path / "scans" / "labels"
    truncate(images / "p0.nii.gz")
    write_nifti(labels / "p1.nii.gz", np.full((8, 9, 6), 7, np.uint8), LEFT)
    write_nifti(labels / "p2.nii.gz", np.zeros((8, 9, 7), np.uint8), LEFT)
    assert evaluate(fitted.save(tmp_path / "run"), index=file, out=out).exit_code == 0
    skipped = tables.read_summary(out / "summary.json")["skipped"]
    reasons = " ".join(entry["reason"] for entry in skipped)
    assert len(skipped) == 3
    assert "the file: truncated or damaged" in reasons
    assert "label holds 7 (432 voxels), which is not among the classes 0=background, 5=tissue, 9=bone" in reasons
    assert "label the file has shape 8x9x7, its image the file 8x9x6" in reasons
    assert "1 scans scored (1 new, 0 already present), 3 skipped" in capsys.readouterr().out
    for path in (out / "summary.json", out / "cases.csv", out / "finished.jsonl"):
        text = path.read_text()
        assert not [word for word in ("p0", "p1.nii", "images", "labels/", str(tmp_path)) if word in text]


def test_not_one_scan_that_can_be_scored(tmp_path, out):
    file = labeled(tmp_path, (0,))
    truncate(tmp_path / "scans" / "images" / "p0.nii.gz")
    with pytest.raises(UserError, match="no scan was scored, 1 were skipped"):
        evaluate(fitted.save(tmp_path / "run"), index=file, out=out)


def test_a_split_without_labels_is_refused(tmp_path, out):
    file = labeled(tmp_path)
    message = "none of the 0 scans of split 'val' is labeled with 'mask'; scans by split: 3 'test'; choose another"
    with pytest.raises(UserError, match=message):
        evaluate(fitted.save(tmp_path / "run"), index=file, out=out, split="val")


def test_names_of_classes_must_agree(tmp_path, out):
    file = labeled(tmp_path, classes="0=background,5=bone,9=tissue")
    with pytest.raises(UserError, match=r"value 5 is 'bone' in data set scans, the network learned it as 'tissue'"):
        evaluate(fitted.save(tmp_path / "run"), index=file, out=out)


def test_the_value_to_ignore_is_that_of_the_data(tmp_path, out):
    file = labeled(tmp_path, (0,), ignore=255)
    label = bands(noise((8, 9, 6), seed=0)).astype(np.uint8)
    label[:4] = 255
    write_nifti(tmp_path / "scans" / "labels" / "p0.nii.gz", label, LEFT)
    assert evaluate(fitted.save(tmp_path / "run"), index=file, out=out).exit_code == 0
    rows = cases.read_segmentation(out / "cases.csv")
    assert [row.score.dice for row in rows] == [1.0, 1.0]
    assert rows[0].score.true_voxels == np.count_nonzero(label == 5)


def test_the_command_line_reads_its_arguments(tmp_path, out):
    file = labeled(tmp_path, (0, 3))
    words = [
        str(fitted.save(tmp_path / "run")),
        f"--index={file}",
        f"--out={out}",
        "--windows.batch_size",
        "4",
        "--nsd_tolerance_mm=2",
        "--by=sex,model",
    ]
    assert run_verb(evaluate, "evaluate", words) == 0
    summary = tables.read_summary(out / "summary.json")
    assert (summary["by"]["nsd_tolerance_mm"], list(summary["subgroups"])) == (2.0, ["sex", "model"])
    assert len(list(csv.reader((out / "cases.csv").read_text().splitlines()))) == 5
    assert json.loads((out / "finished.jsonl").read_text().splitlines()[0])["split"] == "test"
