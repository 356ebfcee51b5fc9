"""Self-training: pseudo-labels of a teacher are written, checked, and drawn in their share beside manual labels."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import fitted, labeled
from hypothesis import given
from hypothesis import strategies as st

from medssl import cli
from medssl.data.labels.selection import labeled_scans, schema_of
from medssl.data.loading.loader import make_loader
from medssl.data.store.store import Store
from medssl.encoders.resenc import ResEnc
from medssl.encoders.weights import load_card, save_encoder
from medssl.training import pseudo_labels
from medssl.training.pseudo_labels import PseudoLabels, with_pseudo_labels
from medssl.types import Card, Imported, Sampling, TrainedOn, UserError, ViewPlan, ViewSpec
from medssl.types.provenance import Provenance, TrainingSubjects

ENCODER = {"in_channels": 1, "ndim": 3, "channels": (4, 8), "strides": ((1, 1, 1), (2, 2, 2)), "blocks": (1, 1)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store of raw values with masks, an encoder, and a teacher whose answers are known."""
    folder = tmp_path_factory.mktemp("pseudolabel") / "place"
    labeled.volumes(folder / "scans")
    file = labeled.indexed(folder / "scans", folder / "index.sqlite", key=folder.parent / "key")
    labeled.stored(file, folder / "store", replace(fitted.RAW, orientation=None, foreground_crop=False))
    store = Store.open(folder / "store")
    described = Imported("medssl.encoders.resenc.ResEnc", ENCODER)
    card = Card(described, store.preprocess, None, "digest", Provenance(store.subjects_of_split("train")), 7, {})
    save_encoder(folder / "pretrained", ResEnc(**ENCODER), card)
    teacher(folder)
    return folder


def teacher(place, name="teacher", store=None, **changes):
    store = Store.open((store or place) / "store")
    given = {"schema": store.schema, "preprocess": store.preprocess, "subjects": store.subjects_of_split("val")}
    return fitted.save(place / name, **(given | changes))


@pytest.fixture
def call(capsys):
    def run(verb: str, *words: object):
        mask, threads = os.umask(0o077), torch.get_num_threads()
        try:
            code = cli.main([verb, *map(str, words)])
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def words(place, out, *more):
    return (place / "teacher", "--store", place / "store", "--out", out, *more)


def expected(image: np.ndarray, confidence: float) -> np.ndarray:
    """The teacher's labels by NumPy: see ``fitted.Bands``."""
    value = image.astype(np.float64)
    logits = np.stack([0 * value, value - 100, 2 * value - 600])
    chance = np.exp(logits - logits.max(0))
    chance /= chance.sum(0)
    return np.where(chance.max(0) >= confidence, np.array([0, 1, 4])[chance.argmax(0)], -1)


def read(store: Store, number: int) -> tuple[np.ndarray, np.ndarray]:
    shape = store.shape(number)
    return store.read(number, (0, 0, 0), shape)[0], store.read_label(number, (0, 0, 0), shape)[0]


@pytest.mark.parametrize("confidence", [0.0, 0.99])
def test_pseudo_labels_are_those_of_the_teacher_and_manual_labels_have_their_share(place, call, tmp_path, confidence):
    code, said = call("pseudolabel", *words(place, tmp_path / "labels", "--confidence", confidence))
    assert code == 0, said
    assert "6 scans labeled (6 new, 0 labeled before)" in said
    store = Store.open(place / "store")
    schema = schema_of(store, "mask")
    learned = labeled_scans(store, 3, "train", schema)[1:3]
    both, drawn = with_pseudo_labels(store, learned, "train", PseudoLabels(tmp_path / "labels", share=0.8), schema, 3)
    others = {*labeled_scans(store, 3, "train", schema)} - {*learned}
    assert Counter(drawn) == dict.fromkeys(learned, 8) | dict.fromkeys(others, 1)  # 16 of 20
    unsure = 0
    for number in range(len(store)):
        image, own = read(store, number)
        if number in others:
            unsure += int((expected(image, confidence) == -1).sum())
            assert np.array_equal(read(both, number)[1], expected(image, confidence))
        else:
            assert np.array_equal(read(both, number)[1], own)
    assert (unsure > 100) == (confidence > 0)
    sampling = Sampling(regions_per_scan=1, distinct_subjects=False)
    plan = ViewPlan((ViewSpec((8, 8, 8)),), sampling)
    crops = iter(make_loader(both, plan=plan, read_size=(20, 18, 14), batch_size=5, seed=3, split="train",
                             workers=0, with_labels=True, scans=drawn))  # fmt: skip
    seen: Counter[str] = Counter()
    for _, crop in zip(range(4), crops, strict=False):
        seen.update(crop.origin.scan_ids)
        for scan_id, label in zip(crop.origin.scan_ids, crop.labels, strict=True):
            assert np.array_equal(label[0], read(both, store.number(scan_id))[1])
    assert seen == Counter(store.scan_id(number) for number in drawn)  # one pass over the draws


SHARES = [
    (60, 20, 0.5),
    (80, 20, 0.2),
    (20, 60, 0.5),
    (2, 4, 0.8),
    (7, 7, 0.5),
    (3, 100, 0.01),
    (100, 3, 0.99),
    (5, 11, 0.37),
]


@pytest.mark.parametrize(("labeled_ones", "other_ones", "share"), SHARES)
def test_the_share_is_met_to_within_a_scan(labeled_ones, other_ones, share):
    learned, others = tuple(range(labeled_ones)), tuple(range(1000, 1000 + other_ones))
    drawn = pseudo_labels.in_share(learned, others, share, 5)
    assert drawn == pseudo_labels.in_share(learned, others, share, 5)
    counts = Counter(drawn)
    assert {*counts} == {*learned, *others}
    assert abs(sum(counts[number] for number in learned) - share * len(drawn)) <= 1
    for side in (learned, others):
        often = {counts[number] for number in side}
        assert max(often) - min(often) <= 1
    assert 1 in {counts[number] for number in learned} | {counts[number] for number in others}


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.01, 0.99), st.integers(0, 9))
def test_random_shares_are_met_to_within_a_scan(labeled_ones, other_ones, share, seed):
    learned, others = tuple(range(labeled_ones)), tuple(range(1000, 1000 + other_ones))
    drawn = pseudo_labels.in_share(learned, others, share, seed)
    assert {*drawn} == {*learned, *others}
    assert abs(sum(number < 1000 for number in drawn) - share * len(drawn)) <= 1


def test_another_seed_draws_others_once_more():
    found = {pseudo_labels.in_share(tuple(range(8)), tuple(range(10, 22)), 0.5, seed) for seed in range(9)}
    assert len(found) > 1


def test_classes_that_the_teacher_was_not_trained_on_are_noted(place, call, tmp_path):
    network = teacher(tmp_path, store=place, trained_on=TrainedOn(("MR",), ("mr",), missing_classes=("right",)))
    code, said = call("pseudolabel", network, "--store", place / "store", "--out", tmp_path / "out")
    assert code == 0, said
    assert "note: no training scan has right: the network will hardly ever predict that" in said


def test_an_interrupted_command_labels_the_missing_scans_only(place, call, tmp_path):
    assert call("pseudolabel", *words(place, tmp_path / "labels"))[0] == 0
    files = sorted((tmp_path / "labels").glob("*.b2nd"))
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    code, said = call("pseudolabel", *words(place, tmp_path / "labels"))
    assert code == 0
    assert "6 scans labeled (1 new, 5 labeled before)" in said
    assert [file.read_bytes() for file in files] == before
    code, said = call("pseudolabel", *words(place, tmp_path / "labels", "--confidence", 0.5))
    assert code == 2
    assert re.search(
        r"labels holds labels of another command \(confidence differ\)\. Choose another folder for results", said
    )


def test_finetune_trains_on_manual_and_pseudo_labels(place, call, tmp_path):
    assert call("pseudolabel", *words(place, tmp_path / "labels"))[0] == 0
    given = (
        "--config=segment_3d_small", f"--store={place / 'store'}", f"--pretrained={place / 'pretrained'}",
        "--data.view.size=[16,16,8]", "--training.steps=4", "--data.workers=0", "--labels=2",
        "--training.output.validate_every=2", "--training.output.log_every=1",
    )  # fmt: skip
    losses = []
    for name, more in (("plain", ()), ("both", (f"--pseudo.labels={tmp_path / 'labels'}",))):
        code, said = call("finetune", *given, f"--run={tmp_path / name}", *more)
        assert code == 0, said
        assert ("4 scans with pseudo-labels" in said) == bool(more)
        assert "2 labeled subjects (2 scans) to learn from; 2 (2) to validate with" in said
        losses.append([json.loads(row)["loss"] for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] != losses[1]
    cards = [load_card(tmp_path / name) for name in ("plain", "both")]
    assert [len(card.tuned.subjects) for card in cards] == [4, 8]  # whoever was looked at may not judge
    text = (tmp_path / "both/config.yaml").read_text()
    assert "share: 0.5" in text
    assert str(tmp_path) not in text
    code, said = call("finetune", *given, f"--run={tmp_path / 'both'}")
    assert code == 2
    assert "both/ is a run of another configuration: pseudo" in said


def finetuned(place, run, labels, *more):
    return (
        "--config=segment_3d_small", f"--store={place / 'store'}", f"--pretrained={place / 'pretrained'}",
        "--data.view.size=[16,16,8]", "--training.steps=1", "--data.workers=0", "--labels=2", f"--run={run}",
        "--training.output.validate_every=1", f"--pseudo.labels={labels}", *more,
    )  # fmt: skip


def test_subjects_of_the_teacher_count_as_subjects_of_the_student(place, call, tmp_path):
    store = Store.open(place / "store")
    train, val, test = (store.subjects_of_split(split) for split in ("train", "val", "test"))
    run, labels = teacher(place, "saw", subjects=(*val, test[0]), seen=Provenance(test[1:])), tmp_path / "labels"
    made = ("pseudolabel", run, "--store", place / "store", "--out", labels)
    code, said = call(*made, "--allow", "seen")
    assert code == 0, said
    assert (
        "the teacher of the pseudo-labels was pretrained on 2 of the 3 subjects of split 'test' (allowed): scores"
        in said
    )
    facts = json.loads((labels / pseudo_labels.FACTS).read_text())
    assert (facts["labelled"], facts["pretrained"]["known"]) == (sorted((*val, test[0])), sorted(test[1:]))
    code, said = call("finetune", *finetuned(place, tmp_path / "student", labels))
    assert code == 2
    assert re.search(
        r"teacher of the pseudo-labels was trained or validated with labels on 1 of the 3 subjects of split 'test'; "
        r"the teacher of the pseudo-labels was pretrained on 2 of the 3 subjects of split 'test': .*allow: seen", said
    )  # fmt: skip
    code, said = call("finetune", *finetuned(place, tmp_path / "student", labels, "--allow=seen"))
    assert code == 0, said
    assert "was pretrained on 2 of the 3 subjects of split 'test' (allowed)" in said
    card = load_card(tmp_path / "student")
    assert {*card.subjects.known} == {*train, *test[1:]}
    assert test[0] in card.tuned.subjects
    judged = ("evaluate", tmp_path / "student", "--index", place / "index.sqlite", "--out", tmp_path / "scores")
    code, said = call(*judged)
    assert code == 2
    assert (
        "the network was trained or validated with labels on 1 of the 3 scored subjects; the network was pretrained on "
        "2 of the 3 scored subjects: their scores would be too good" in said
    )
    code, said = call(*judged, "--allow", "seen")
    assert code == 0, said
    assert "note: the network was pretrained on 2 of the 3 scored subjects (allowed): scores may be too good" in said


def test_unknown_subjects_of_the_teacher_stay_unknown_in_the_student(place, call, tmp_path):
    run, labels = teacher(place, "silent", seen=Provenance(complete=False)), tmp_path / "labels"
    unknown = "not all subjects that the teacher of the pseudo-labels was pretrained on are known"
    code, said = call("pseudolabel", run, "--store", place / "store", "--out", labels)
    assert (code, f"note: {unknown}" in said) == (0, True)
    assert json.loads((labels / pseudo_labels.FACTS).read_text())["pretrained"] == {"known": [], "complete": False}
    code, said = call("finetune", *finetuned(place, tmp_path / "student", labels))
    assert (code, unknown in said) == (0, True)
    card = load_card(tmp_path / "student")
    assert not card.subjects.complete
    assert {*Store.open(place / "store").subjects_of_split("val")} <= {*card.tuned.subjects}
    facts = json.loads((labels / pseudo_labels.FACTS).read_text())
    del facts["pretrained"], facts["labelled"]
    (labels / pseudo_labels.FACTS).write_text(json.dumps(facts))
    assert pseudo_labels.teacher_subjects(PseudoLabels(labels)) == TrainingSubjects((), Provenance(complete=False))


def bad_facts(folder, **changes):
    file = folder / pseudo_labels.FACTS
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_pseudo_labels_that_do_not_fit_are_refused(place, call, tmp_path):
    store = Store.open(place / "store")
    schema, learned = schema_of(store, "mask"), labeled_scans(store, 3, "train", schema_of(store, "mask"))[:2]
    labels = tmp_path / "labels"
    arguments = store, learned, "train", PseudoLabels(labels), schema, 0
    with pytest.raises(UserError, match=r"^pseudo\.labels: .* has no readable pseudolabels\.json\. Label the scans"):
        with_pseudo_labels(*arguments)
    assert call("pseudolabel", *words(place, labels))[0] == 0
    facts = (labels / pseudo_labels.FACTS).read_text()
    bad_facts(labels, classes=[[0, "nothing"], [1, "something"]])
    with pytest.raises(UserError, match=r"have the classes \[\[0, 'nothing'\].*the target 'mask' has others"):
        with_pseudo_labels(*arguments)
    (labels / pseudo_labels.FACTS).write_text(facts)
    bad_facts(labels, store="other")
    with pytest.raises(UserError, match=r"made for another store, or this store has changed\. Make them again"):
        with_pseudo_labels(*arguments)
    (labels / pseudo_labels.FACTS).write_text(facts)
    other = labeled_scans(store, 3, "train", schema)[-1]
    pseudo_labels.label_file(labels, store, other).unlink()
    with pytest.raises(UserError, match=r"1 of the 4 other scans of split 'train' have no pseudo-label\. Label all"):
        with_pseudo_labels(*arguments)
    every = labeled_scans(store, 3, "train", schema)
    with pytest.raises(
        UserError, match=r"all 6 scans of split 'train' are of subjects with manual labels .* fewer labeled"
    ):
        with_pseudo_labels(store, every, *arguments[2:])
    with pytest.raises(UserError, match=r"pseudo\.share: must be above 0 and below 1"):
        PseudoLabels(labels, share=1.0)


BAD = [
    ("a classification", {"head": fitted.Mean, "schema": fitted.KINDS}, (), r"'diagnosis' of whole scans"),
    ("other channels", {"channels": 2}, (), r"takes 2 channel\(s\), the scans of the store have 1"),
    ("other rules", {"preprocess": fitted.RAW}, (), r"was made by another Preprocess.*foreground_crop"),
    ("a test subject", {"seen": "test"}, (), r"was pretrained on 3 of the 3 subjects of split 'test'.*allow: seen"),
    ("no probability", {}, ("--confidence", 1.5), r"--confidence: must be from 0 to below 1 \(got 1\.5\)"),
    ("no such split", {}, ("--split", "nowhere"), r"no scan with 3 axes in split 'nowhere'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "more", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_teachers_that_do_not_fit_are_refused_in_one_line(place, call, tmp_path, changes, more, message):
    if changes.get("seen") == "test":
        changes = {"seen": Provenance(Store.open(place / "store").subjects_of_split("test"))}
    run = teacher(place, f"bad{abs(hash(message))}", **changes)
    code, said = call("pseudolabel", run, "--store", place / "store", "--out", tmp_path / "labels", *more)
    assert code == 2
    assert re.search(message, said), said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_folder_with_other_files_is_refused(place, call, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/letter.txt").write_text("mine")
    code, said = call("pseudolabel", *words(place, tmp_path / "labels"))
    assert code == 2
    assert "is a folder with other files. Give an empty or a new folder for the labels" in said
