"""The verb ``probe``: on scans and voxels, stopped and gone on with, the twin, and one line for bad input."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import labeled
from data.stores import fill_store, volume

from medssl import cli
from medssl.commands import probe as verb
from medssl.data.labels.selection import schema_of
from medssl.data.store.store import Store
from medssl.encoders.weights import save_encoder
from medssl.heads.classification import Linear
from medssl.heads.weights import load_network
from medssl.inference.predictor import Windows
from medssl.metrics import scan_probe as probes
from medssl.probing import feature_cache, scan_probe, voxel_probe
from medssl.probing import feature_extractor as frozen
from medssl.probing.feature_extractor import FrozenEncoder
from medssl.training.initial_weights import read_initial_weights
from medssl.types import Card, Imported, LabelSchema, Preprocess, Tuned, UserError
from medssl.types.provenance import Provenance

TESTS = Path(__file__).parent.parent
ENCODER = {"in_channels": 1, "ndim": 3, "channels": (4, 8), "strides": ((1, 1, 1), (2, 2, 2)), "blocks": (1, 1)}
RULES = Preprocess(foreground_crop=False, orientation=None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labeled volumes and pictures with their stores."""
    folder = tmp_path_factory.mktemp("probe")
    for name, write in (("volumes", labeled.volumes), ("pictures", labeled.pictures)):
        below = folder / name
        write(below / "scans")
        file = labeled.indexed(below / "scans", below / "index.sqlite", key=folder / "key")
        labeled.stored(file, below / "store", RULES)
    return folder


def encoder_of(folder: Path, name: str = "fitted.Plain", *, ndim=3, seen=(), preprocess=RULES, **more) -> Path:
    """A run folder as pretraining leaves it."""
    arguments = more.pop("arguments", {"ndim": ndim, "in_channels": more.pop("channels", 1)})
    path = name if name.startswith("medssl.") else f"commands.{name}"
    described = Imported(path, arguments)
    module, _, kind = path.rpartition(".")
    torch.manual_seed(5)
    made = getattr(sys.modules[module] if module in sys.modules else __import__(module, fromlist=[kind]), kind)
    whom = Provenance(seen)
    card = Card(described, preprocess, more.pop("objective", None), "digest", whom, 7, {}, more.pop("tuned", None))
    save_encoder(folder, made(**arguments), card)
    return folder


@pytest.fixture
def call(place, tmp_path, capsys, monkeypatch):
    """Calls the verb, with few resamples; gives the exit code and everything it said."""
    monkeypatch.setattr(probes, "measure", functools.partial(probes.measure, resamples=20))

    def run(*words: object, data: str = "volumes", out: str = "out"):
        mask, threads = os.umask(0o077), torch.get_num_threads()
        size = "[16,16,8]" if data == "volumes" else "[32,32]"
        given = {"--store": place / data / "store", "--out": tmp_path / out, "--window": size, "--voxels": 2000}
        if data == "pictures":
            given |= {"--target": "class", "--shots": "[1,3]", "--draws": 3}
        named = {str(word).partition("=")[0] for word in words}
        rest = [f"{key}={value}" for key, value in given.items() if key not in named]
        try:
            code = cli.main(["probe", *map(str, words), *rest])
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out + re.sub(r"^.*it/s.*$|\r.*\n?", "", shown.err)

    return run


def result(folder: Path):
    return json.loads((folder / "probe.json").read_text())


def measured(folder: Path):
    return {own["probe"]: own["metrics"] for own in result(folder)["probes"]}


# --- whole scans


def test_pictures_that_differ_by_side_are_told_apart(call, place, tmp_path):
    code, said = call(encoder_of(tmp_path / "run", "asked.Halves", ndim=2), data="pictures")
    assert code == 0, said
    assert "labeled subjects (scans): 18 (18) to learn from, 6 (6) to choose by, 9 (9) to measure on" in said
    found = measured(tmp_path / "out")
    assert list(found) == ["knn", "logistic", "ridge", "prototypes, 1 shot", "prototypes, 3 shots"]
    for name, own in found.items():  # the class in the middle masks others in least squares
        assert own["auroc"]["value"] == 1 if name == "logistic" else own["auroc"]["value"] > 0.8, name
    assert found["logistic"]["accuracy"] | {"note": ""} == {
        "value": 1.0, "low": 1.0, "high": 1.0, "subjects": 9, "deviation_over_draws": None, "note": "",
    }  # fmt: skip
    assert found["prototypes, 1 shot"]["auroc"]["deviation_over_draws"] is not None
    summary = result(tmp_path / "out")
    assert summary["scans"] == {"train": 18, "val": 6, "test": 9}
    assert summary["classes"] == ["left", "none", "right"]
    assert re.search(r"embedding of 33 scans: effective rank 1\.\d of at most 2, spread \d\.\d\d", said)
    with (tmp_path / "out/probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 3
    assert {(row["probe"], row["measure"]): float(row["value"]) for row in rows} == {
        (name, measure): values["value"] for name, own in found.items() for measure, values in own.items()
    }
    text = "".join((tmp_path / f"out/{name}").read_text() for name in ("probe.json", "probe.csv"))
    assert str(tmp_path) not in text
    assert str(place) not in text
    assert (tmp_path / "out/features.safetensors").stat().st_mode & 0o777 == 0o600


def test_features_are_means_over_the_windows_of_a_scan(call, place, tmp_path):
    run = encoder_of(tmp_path / "run", "asked.Halves", ndim=2)
    code, said = call(run, "--window=[16,16]", data="pictures")
    assert code == 0, said
    store = Store.open(place / "pictures/store")
    held = safetensors.torch.load_file(tmp_path / "out/features.safetensors")
    assert len(held) == 33
    for number in range(0, 33, 8):
        scale, offset, low, high, shift, divisor = store.intensity(number)[0]
        raw = store.read(number, (0, 0), (32, 32))[0] * scale + offset
        image = (raw.clip(low, high) - shift) / divisor
        expected = [image[:, [*range(a, a + 8), *range(a + 16, a + 24)]].mean() for a in (0, 8)]
        own = held[f"{store.key(number)}/pooled"]
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_second_probe_embeds_nothing(call, tmp_path, monkeypatch):
    run = encoder_of(tmp_path / "run", "asked.Halves", ndim=2)
    assert call(run, data="pictures")[0] == 0
    before = result(tmp_path / "out")
    monkeypatch.setattr(FrozenEncoder, "embedding", None)
    code, said = call(run, data="pictures")
    assert code == 0, said
    assert "replaced" not in said
    assert result(tmp_path / "out") == before
    code, said = call(run, "--labels=6", data="pictures")
    assert code == 0, said
    assert "the measures of target 'class', labels None there are replaced" in said
    assert "6 (6) to learn from" in said
    assert "skipped: prototypes, 3 shots: the rarest class has 2 training scans" in said
    assert result(tmp_path / "out")["skipped"] == [
        {"probe": "prototypes, 3 shots", "reason": "the rarest class has 2 training scans"}
    ]


def test_killed_and_resumed_equals_uninterrupted(call, place, tmp_path):
    run = encoder_of(tmp_path / "run", "asked.Halves", ndim=2)
    words = {"--store": place / "pictures/store", "--target": "class", "--window": "[32,32]", "--shots": "[1,3]"}
    words |= {"--draws": 3, "--out": tmp_path / "killed"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("probe_child.py"), "20", run]
        + [f"{key}={value}" for key, value in words.items()],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == -9, done.stderr
    assert len(safetensors.torch.load_file(tmp_path / "killed/features.safetensors")) == 20
    assert not (tmp_path / "killed/probe.json").exists()
    for out in ("killed", "straight"):
        code, said = call(run, data="pictures", out=out)
        assert code == 0, said
    assert result(tmp_path / "killed") == result(tmp_path / "straight")
    held = [safetensors.torch.load_file(tmp_path / out / "features.safetensors") for out in ("killed", "straight")]
    assert all(torch.equal(held[0][key], held[1][key]) for key in held[1])


def test_features_computed_before_an_error_stay_in_the_cache(tmp_path):
    """Of a folder that another encoder filled nothing is taken, of other settings neither."""
    file = tmp_path / "kept.safetensors"

    def stopped() -> None:
        with feature_cache.FeatureCache(file, {"weights": "a"}, {"n": 1}) as held:
            held.add("one", x=np.arange(3), y=np.float32([2.5]))
            raise KeyboardInterrupt("stopped")

    with pytest.raises(KeyboardInterrupt, match="stopped"):
        stopped()
    again = feature_cache.FeatureCache(file, {"weights": "a"}, {"n": 1}).get("one")
    assert (again["x"].tolist(), again["y"].tolist()) == ([0, 1, 2], [2.5])
    assert feature_cache.FeatureCache(file, {"weights": "a"}, {"n": 2}).get("one") is None
    with pytest.raises(
        UserError, match=r"holds features of another encoder or store \(other weights\)\. Choose another"
    ):
        feature_cache.FeatureCache(file, {"weights": "b"}, {"n": 1})
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"kept.safetensors is damaged .*\. Delete it, and the same command"):
        feature_cache.FeatureCache(file, {"weights": "a"}, {"n": 1})


def test_the_twin_has_the_weights_of_a_fine_tuning_from_scratch(place, tmp_path):
    from medssl.commands.finetune import build

    run = encoder_of(tmp_path / "run", "medssl.encoders.resenc.ResEnc", arguments=ENCODER)
    initial, store = read_initial_weights(run, None, from_scratch=True), Store.open(place / "volumes/store")
    twins = [
        frozen.freeze(initial, store, Windows(), window=(8, 8, 8), slice_axis=None, seed=seed)[0] for seed in (3, 3, 4)
    ]
    tuned = build(initial, Linear, LabelSchema("class", ((0, "no"), (1, "yes"))), 3)[0].encoder.state_dict()
    states = [twin.encoder.state_dict() for twin in twins]
    assert all(torch.equal(states[0][key], tuned[key]) and torch.equal(states[1][key], tuned[key]) for key in tuned)
    assert any(not torch.equal(states[2][key], tuned[key]) for key in tuned)
    assert not any(parameter.requires_grad for parameter in twins[0].encoder.parameters())
    assert not twins[0].encoder.training


def test_a_folder_holds_the_features_of_one_encoder(call, tmp_path):
    run = encoder_of(tmp_path / "run", "asked.Shade", ndim=2)
    assert call(run, data="pictures")[0] == 0
    for words in (["--from-scratch"], ["--from-scratch", "--seed=4"], ["--window=[16,16]"]):
        code, said = call(run, *words, data="pictures")
        assert code == 2
        what = "window" if "--window" in words[0] else "weights"
        assert (
            f"out holds features of another encoder or store (other {what}). Choose another folder for results" in said
        )
    code, said = call(run, "--from-scratch", data="pictures", out="twin")
    assert code == 0, said
    assert said.startswith("random weights; labeled")
    assert result(tmp_path / "twin")["by"]["weights"] == "random, seed 0"
    one, two = (safetensors.torch.load_file(tmp_path / out / "features.safetensors") for out in ("out", "twin"))
    assert not any(torch.equal(one[key], two[key]) for key in one)


def test_a_card_a_file_of_weights_and_a_fine_tuned_run_are_taken(call, place, tmp_path):
    run = encoder_of(tmp_path / "run", "asked.Halves", ndim=2)
    for name in ("card.json", "encoder.safetensors"):  # beside each other they are the run
        code, said = call(run / name, data="pictures")
        assert (code, "are known" in said) == (0, False), said
    shutil.copy(run / "encoder.safetensors", tmp_path / "foreign.safetensors")
    described = json.dumps({"class_path": "commands.asked.Halves", "init_args": {"ndim": 2}})
    code, said = call(tmp_path / "foreign.safetensors", f"--encoder={described}", data="pictures", out="file")
    assert code == 0, said
    assert "note: not all subjects that the encoder was pretrained on are known" in said
    assert measured(tmp_path / "file") == measured(tmp_path / "out")
    tuned = Tuned(
        Imported("medssl.heads.classification.Linear"), LabelSchema("c", ((0, "a"), (1, "b"))), (16, 16), 1, ()
    )
    encoder_of(tmp_path / "tuned", "asked.Halves", ndim=2, tuned=tuned)
    assert call(tmp_path / "tuned", "--window=null", data="pictures", out="tuned")[0] == 0
    by = result(tmp_path / "tuned")["by"]
    assert (by["window"], by["slice_axis"]) == ([16, 16], 1)


def test_the_window_is_the_view_of_pretraining(call, tmp_path):
    objective = Imported("some.Objective", {"view": {"size": [16, 32]}})
    encoder_of(tmp_path / "run", "asked.Halves", ndim=2, objective=objective)
    assert call(tmp_path / "run", "--window=null", data="pictures")[0] == 0
    assert result(tmp_path / "out")["by"]["window"] == [16, 32]


def test_labels_of_test_scans_change_nothing_that_is_fitted_or_chosen(call, tmp_path, monkeypatch):
    run = encoder_of(tmp_path / "run", "asked.Halves", ndim=2)
    assert call(run, data="pictures")[0] == 0
    before, own = result(tmp_path / "out")["probes"], scan_probe.group_of

    def turned(store, schema, scans, features):
        group = own(store, schema, scans, features)
        if len(scans) == 9:
            group.truth[:] = np.roll(group.truth, 1)
        return group

    monkeypatch.setattr(scan_probe, "group_of", turned)
    assert call(run, data="pictures")[0] == 0
    after = result(tmp_path / "out")["probes"]
    for key in ("probe", "chosen", "validation", "tried"):
        assert [entry[key] for entry in before] == [entry[key] for entry in after], key
    assert before[1]["metrics"]["auroc"]["value"] == 1
    assert after[1]["metrics"]["auroc"]["value"] < 1


# --- voxels


def test_voxels_that_differ_by_brightness_are_told_apart_and_evaluate_agrees(call, place, tmp_path, capsys):
    code, said = call(encoder_of(tmp_path / "run"))
    assert code == 0, said
    found = measured(tmp_path / "out")["voxel_logistic"]
    assert list(found) == ["dice", "dice:left", "dice:right"]
    assert all(values["value"] > 0.99 for values in found.values())
    assert "note: Dice is on the grid of the store; for the scans' own grids, evaluate the folder network/" in said
    summary = result(tmp_path / "out")
    (entry,) = summary["probes"]
    assert entry["validation"] == max(row[2] for row in entry["tried"])
    assert len(entry["tried"]) == 18
    card = load_network(tmp_path / "out/network")[1]
    store = Store.open(place / "volumes/store")
    assert set(card.tuned.subjects) == {*store.subjects_of_split("train"), *store.subjects_of_split("val")}
    mask = os.umask(0o077)
    index = place / "volumes/index.sqlite"
    assert (
        cli.main(["evaluate", str(tmp_path / "out/network"), f"--index={index}", f"--out={tmp_path / 'scores'}"]) == 0
    )
    os.umask(mask)
    scores = json.loads((tmp_path / "scores/summary.json").read_text())["metrics"]
    for name, values in found.items():
        assert scores[name]["value"] == pytest.approx(values["value"], abs=1e-9)
        assert scores[name]["low"] == pytest.approx(values["low"], abs=1e-9)


def test_slices_of_volumes_are_probed_by_a_2d_encoder(call, tmp_path):
    code, said = call(encoder_of(tmp_path / "run", ndim=2), "--window=[16,16]", "--slice_axis=1", "--labels=2")
    assert code == 0, said
    assert measured(tmp_path / "out")["voxel_logistic"]["dice"]["value"] > 0.98
    assert "2 (2) to learn from" in said


def test_a_real_encoder_on_chosen_levels_and_a_small_memory(call, tmp_path, monkeypatch):
    run = encoder_of(tmp_path / "run", "medssl.encoders.resenc.ResEnc", arguments=ENCODER)
    words = ("--voxels=300", "--labels=2", "--validation_labels=1", "--windows.overlap=0")
    dice = {}
    for out, held, levels in (("all", 1 << 30, "null"), ("small", 1, "null"), ("fine", 1 << 30, "[0]")):
        monkeypatch.setattr(voxel_probe, "PROBABILITY_BYTES", held)
        code, said = call(run, *words, f"--levels={levels}", out=out)
        assert code == 0, said
        dice[out] = result(tmp_path / out)["probes"]
    assert dice["small"] == dice["all"]
    assert dice["fine"] != dice["all"]
    assert dice["all"][0]["metrics"]["dice"]["value"] > 0.5
    tables = safetensors.torch.load_file(tmp_path / "all/voxels_train.safetensors")
    widths = {tuple(value.shape) for name, value in tables.items() if name.endswith("features")}
    assert widths == {(3 * 50, 12)}  # of two scans and three classes 50 voxels each; 4 + 8 channels


def test_a_probe_of_voxels_goes_on_where_it_was_stopped(call, tmp_path, monkeypatch):
    run = encoder_of(tmp_path / "run")
    assert call(run, out="straight")[0] == 0
    counts, stops = {"features_of_voxels": 0, "dice_of": 0}, {("features_of_voxels", 3), ("dice_of", 2), ("dice_of", 4)}
    for name in counts:
        original = getattr(voxel_probe, name)

        def counted(*given, name=name, original=original):
            counts[name] += 1
            if (name, counts[name]) in stops:
                raise KeyboardInterrupt
            return original(*given)

        monkeypatch.setattr(voxel_probe, name, counted)
    codes = [call(run)[0] for _ in range(4)]
    assert codes == [130, 130, 130, 0]
    assert result(tmp_path / "out") == result(tmp_path / "straight")
    assert counts == {"features_of_voxels": 6 + 1, "dice_of": 2 + 3 + 2}  # every scan once, and those that were stopped
    monkeypatch.setattr(voxel_probe, "features_of_voxels", None)
    monkeypatch.setattr(voxel_probe, "dice_of", None)
    assert call(run)[0] == 0


# --- bad input

BAD = [
    ("no such target", ["--target=grade"], r"^error: --target: no scan of .* has a value 'grade'$"),
    ("more subjects than there are", ["--labels=9"], r"--labels: there are 6 labeled subjects .* \(got 9\)"),
    ("more to choose by", ["--validation_labels=9"], r"--validation_labels: split 'val', .*: there are 2 .* \(got 9\)"),
    ("no such map", ["--levels=[1]"], r"--levels: the encoder has the maps 0 \(fine\) to 0 \(coarse\) \(got \[1\]\)"),
    ("no map", ["--levels=[]"], r"--levels: the encoder has the maps .* \(got \[\]\)"),
    ("another dimension", ["--window=[8,8]"], r"--window: the encoder is 3D, the window has 2 axes \(got \[8, 8\]\)"),
    ("no window", ["--window=null"], r"--window: the card does not state the window of the encoder \(expected voxels"),
    ("no size", ["--window=[8,8,0]"], r"--window: 0 is not a multiple of the encoder's stride 1 \(got \[8, 8, 0\]\)"),
    ("no shots", ["--shots=[0,2]"], r"shots: must be at least 1 \(got 0\)"),
    ("no draws", ["--draws=0"], r"draws: must be at least 1 \(got 0\)"),
    ("a seed below zero", ["--seed=-1"], r"seed: must be at least 0 \(got -1\)"),
    ("no voxels", ["--voxels=0"], r"voxels: must be at least 1 \(got 0\)"),
    ("no store", ["--store=nowhere"], r"nowhere is no store"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_line(call, tmp_path, words, message):
    code, said = call(encoder_of(tmp_path / "run"), *words)
    assert code == 2
    assert re.search(message, said), said
    assert said.count("\n") == 1


def test_no_such_run_and_a_file_without_an_encoder(call, tmp_path):
    code, said = call(tmp_path / "nowhere")
    assert code == 2
    assert re.search(r"^error: --run: there is no such folder or file \(got '.*nowhere'\)$", said.strip())
    assert "--pretrained" not in said
    (encoder_of(tmp_path / "run") / "card.json").unlink()
    code, said = call(tmp_path / "run/encoder.safetensors")
    assert code == 2
    assert "encoder.safetensors is a file of weights. Give the encoder that they fit." in said


def test_another_preprocess_and_other_channels_are_refused(call, tmp_path):
    other = encoder_of(tmp_path / "other", preprocess=Preprocess(foreground_crop=False))
    code, said = call(other)
    assert code == 2
    assert re.search(r"was made by another Preprocess .*: orientation None -> RAS; take another folder", said)
    assert call(other, "--allow=preprocess")[0] == 0
    two = encoder_of(tmp_path / "two", channels=2)
    code, said = call(two)
    assert code == 2
    assert "the encoder takes 2 channel(s), the scans of the store have 1: choose other scans" in said


def test_test_subjects_that_pretraining_saw_are_refused(call, place, tmp_path):
    seen = Store.open(place / "volumes/store").subjects_of_split("test")[:2]
    run = encoder_of(tmp_path / "run", seen=seen)
    code, said = call(run)
    assert code == 2
    assert re.search(r"the encoder was pretrained on 2 of the 3 subjects of split 'test'.*allow: seen", said)
    code, said = call(run, "--allow=seen")
    assert code == 0, said
    assert "note: the encoder was pretrained on 2 of the 3 subjects of split 'test' (allowed)" in said
    assert call(run, "--from-scratch", out="twin")[0] == 0


def test_features_that_are_not_finite_are_counted(call, tmp_path):
    run = encoder_of(tmp_path / "run", "asked.Broken", ndim=2)
    code, said = call(run, data="pictures")
    assert code == 2
    assert re.search(r"\d+ of 9 scans have features that are NaN or infinite \([0-9a-f]+, .*Check both", said)


def by(train: str, validation: str, test: str):
    """Split and class of scan n: classes of each split in turn, "-" for none."""
    parts = {"train": train, "val": validation, "test": test}

    def split(number: int) -> str:
        return list(parts)[number % 3]

    def value(number: int) -> str:
        own = list(parts.values())[number % 3]
        return own[number // 3 % len(own)].strip("-")

    return split, value


SCANS = {
    "no val": ("no scan with 2 axes in split 'val'", (lambda n: "test" if n % 3 else "train", lambda n: "ab"[n % 2])),
    "class in train": ("the 6 training scans is c: a probe needs scans of every class", by("ab", "abc", "abc")),
    "class in val": ("the 6 validation scans is c: a probe needs scans of every class", by("abc", "ab", "abc")),
    "one class in val": ("'val', which validates: all 6 labeled scans are 'a'", by("ab", "a", "ab")),
    "no label in test": ("scans of split 'test' of .* is labeled with 'kind'", by("ab", "ab", "-")),
}


@pytest.mark.parametrize("name", SCANS)
def test_splits_that_lack_what_a_probe_needs(name, call, tmp_path, monkeypatch):
    message, (split, value) = SCANS[name]
    images = {
        f"{n:02d}": volume(np.random.default_rng(n).integers(0, 255, (1, 8, 8)).astype(np.uint8)) for n in range(18)
    }
    store = fill_store(
        tmp_path / "store", images, monkeypatch, preprocess=RULES, split=lambda i: split(int(i)), domain="gray",
        values=lambda i: (("kind", value(int(i))),),
    )  # fmt: skip
    run = encoder_of(tmp_path / "run", "asked.Halves", ndim=2)
    code, said = call(run, f"--store={store.path}", "--window=[8,8]", "--target=kind", data="pictures")
    assert code == 2, said
    assert re.search(message, said), said


def test_a_subject_in_two_splits_is_refused(call, tmp_path, monkeypatch):
    images = {
        f"{n:02d}": volume(np.random.default_rng(n).integers(0, 255, (1, 8, 8)).astype(np.uint8)) for n in range(9)
    }
    store = fill_store(
        tmp_path / "store", images, monkeypatch, preprocess=RULES, split=lambda i: ("train", "val", "test")[int(i) % 3],
        subject=lambda i: "twice" if i in ("04", "05") else f"s{i}", domain="gray",
        values=lambda i: (("kind", "ab"[int(i) % 2]),),
    )  # fmt: skip
    schema = schema_of(store, "kind")
    with pytest.raises(UserError, match=r"1 of the 3 subjects of split 'val' are in split 'test' too\. Give each"):
        frozen.split_scans(store, schema, 2, labels=None, validation_labels=None, seed=0)


def test_masks_in_which_a_class_is_lacking_are_refused(call, tmp_path, monkeypatch):
    def masked(n):
        label = np.zeros((1, 8, 8), np.uint8)
        label[0, 2:4, 2:4] = 1 if n != 1 else 0
        return volume(np.random.default_rng(n).integers(0, 255, (1, 8, 8)).astype(np.uint8), label=label)

    images = {f"{n:02d}": masked(n) for n in range(3)}
    store = fill_store(
        tmp_path / "store", images, monkeypatch, preprocess=RULES, domain="gray",
        split=lambda i: ("train", "val", "test")[int(i)],
    )  # fmt: skip
    description = json.loads((store.path / "store.json").read_text())
    description["schema"] = {"name": "mask", "classes": [[0, "background"], [1, "organ"]], "ignore": None}
    (store.path / "store.json").write_text(json.dumps(description))
    run = encoder_of(tmp_path / "run", ndim=2)
    code, said = call(run, f"--store={store.path}", "--window=[8,8]")
    assert code == 2, said
    assert "no voxel of the validation scans is organ: a probe needs voxels of every class" in said


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(UserError, match=r"^target: labels of the kind 'number', probes are for classes"):
        verb.refuse_kind(LabelSchema("age", ((0, "age"),), kind="number"))
