"""Comparisons: the same tables whatever happens on the way, an arm that fails, and one line for bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from commands import labeled

from medssl import cli
from medssl.commands import compare as verb
from medssl.comparison import jobs as processes
from medssl.comparison import plan, sources
from medssl.data.index.scan_index import Index
from medssl.data.store.store import Store
from medssl.encoders.resenc import ResEnc
from medssl.encoders.weights import save_encoder
from medssl.training.optim import FineTuning
from medssl.types import Card, Imported, Preprocess
from medssl.types.provenance import Provenance

TESTS = Path(__file__).parent.parent
RESENC = "medssl.encoders.resenc.ResEnc"
ENCODER = {"in_channels": 1, "ndim": 3, "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "blocks": [1, 1]}


def scenario(name: str, folder: Path) -> tuple[dict[str, object], str]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compare_child.py"), folder, name],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_killed_three_times_it_ends_with_the_same_tables(tmp_path):
    result, said = scenario("kills", tmp_path)
    assert result["codes"] == [0, -9, -9, -9, 143, 0], said
    assert result["done"] == 3
    assert f"stopped by a signal: {result['done']} of 4 runs are done; run the same command to continue" in said
    straight, broken = tmp_path / "data/straight", tmp_path / "data/broken"
    first, second = ([row | {"minutes": ""} for row in table(out / "runs.csv")] for out in (straight, broken))
    assert first == second
    expected = [(arm, "2", run) for arm in ("scratch", "first") for run in "01"]
    assert [(row["arm"], row["labels"], row["run"]) for row in first] == expected
    assert (straight / "cases.csv").read_bytes() == (broken / "cases.csv").read_bytes()
    assert len(table(straight / "cases.csv")) == 4 * 3  # test subjects
    texts = [(out / "summary.json").read_text() for out in (straight, broken)]
    assert json.loads(texts[0])["compared"] == json.loads(texts[1])["compared"]
    assert (straight / "efficiency.svg").read_bytes() == (broken / "efficiency.svg").read_bytes()
    assert "first: too few runs for a verdict: 2 of each arm, it takes 5." in said
    assert "| first less scratch | " in (broken / "summary.md").read_text()


def test_an_arm_that_fails_does_not_stop_the_others(tmp_path):
    result, said = scenario("failures", tmp_path)
    assert result["codes"] == [0, 1, 0, 2], said
    assert "failed: broken, 2 labeled subjects, run 0: " in said
    assert "1 of 3 runs failed; the same command tries them again" in said
    assert "| spark less scratch | " in said
    cards = [json.loads((tmp_path / f"data/out/runs/{arm}/2-0/card.json").read_text()) for arm in ("scratch", "spark")]
    assert cards[0]["tuned"]["subjects"] == cards[1]["tuned"]["subjects"]
    assert cards[0]["subjects"] == {"known": [], "complete": True}
    assert cards[1]["subjects"]["known"]
    # every arm fails
    assert "data.view.size [15, 16, 8]: 15 is not a multiple of the encoder's stride 2" in said
    assert "2 of 2 runs failed" in said
    assert "error: nothing can be compared: no encoder has a run in common with its from-scratch baseline" in said
    # a table that was edited by hand does not count, another recipe is refused
    assert "note: runs.csv differs from the runs (lines: 1 changed): it is written again from them" in said
    assert "labels 0.3, 2 are 2 of 6 labeled subjects" in said
    assert result["same"]
    assert "out/ holds another comparison: training.steps: 6 there, 7 here. Choose another folder for results." in said


@pytest.mark.slow
def test_pretrainings_an_oracle_own_rates_and_foreign_weights_killed_on_the_way(tmp_path):
    result, said = scenario("fair", tmp_path)
    assert result["codes"] == [-9, -9, 143, 0, 0, 2], said
    out = tmp_path / "data/fair"
    assert "options.tune.learning_rates: [0.01, 0.003] there, [0.01, 0.001] here. Choose another folder" in said
    rows = table(out / "runs.csv")
    assert {row["arm"] for row in rows if not row["setting"]} == {"scratch", "spark", "oracle", "other"}
    before = [line for line in result["before"].splitlines()[1:]]
    after = (out / "runs.csv").read_text().splitlines()
    assert set(before) <= set(after)  # runs of earlier arms stay as they are
    assert len(table(out / "tuning.csv")) == 4 * 2
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["settings"]) == {"scratch", "spark", "oracle", "other"}
    assert {note["kind"] for note in summary["notes"]} >= {"guess", "precision", "other", "leak"}
    oracle = json.loads((out / "oracles/oracle/card.json").read_text())
    assert len(oracle["tuned"]["subjects"]) == 6 + 2  # all of the training split, and those that validate
    starts = [(out / f"runs/spark/2-{number}/config.yaml").read_text() for number in (0, 1)]
    assert starts[0] != starts[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    below = folder / "data"
    labeled.volumes(below / "scans")
    file = labeled.indexed(below / "scans", below / "index.sqlite", key=folder / "key")
    labeled.stored(file, below / "store", Preprocess(foreground_crop=False, orientation=None))
    store = Store.open(below / "store")
    for name, preprocess, split in (
        ("good", store.preprocess, "train"),
        ("again/good", store.preprocess, "train"),
        ("other", Preprocess(foreground_crop=False, spacing_mm=(2.0, 2.0, 2.0)), "train"),
        ("seen", store.preprocess, None),
        ("validated", store.preprocess, "val"),
        ("second", store.preprocess, "train"),
    ):
        card = Card(
            Imported(RESENC, ENCODER), preprocess, None, "digest",
            Provenance(store.subjects_of_split(split)), 7, {},
        )  # fmt: skip
        torch.manual_seed(name == "second")
        save_encoder(below / name, ResEnc(**ENCODER), card)
    wide, color = ENCODER | {"channels": [4, 12]}, ENCODER | {"in_channels": 3}
    card = Card(Imported(RESENC, wide), store.preprocess, None, "digest", Provenance(), 7, {})
    save_encoder(below / "wide", ResEnc(**wide), card)
    tensors = {key: value.clone() for key, value in ResEnc(**color).state_dict().items()}
    safetensors.torch.save_file(tensors, below / "color.safetensors")
    shutil.copy(below / "good/encoder.safetensors", below / "plain.safetensors")  # without the card beside it
    weights, encoder = "plain.safetensors", {"class_path": RESENC, "init_args": ENCODER}
    for name, more in (
        ("plain", {}),
        ("wide", {"spacing_mm": [2.0, 2.0, 2.0]}),
        ("color", {"weights": "color.safetensors", "spacing_mm": [1.0, 1.0, 1.5]}),
        ("odd", {"spacing": [1.0]}),
        ("own", {"encoder": {"class_path": RESENC, "init_args": {**ENCODER, "pretrained": True}}}),
    ):
        (below / f"{name}.yaml").write_text(yaml.safe_dump({"weights": weights, "encoder": encoder} | more))
    return below


@pytest.mark.parametrize(
    ("encoders", "words", "message"),
    [
        (["oracle=good"], ["--oracle"], "encoders: the name is reserved for oracles (got 'oracle')"),
        (["good"], ["--oracle", "--labels=[6]"],
         "--oracle: the oracle trains on all 6 labeled subjects of split 'train', and every arm has as many. Give"),
        (["good"], ["--oracle", "--data.train=none"], "in split 'none' of"),
        (["good"], ["--oracle", "--oracle_steps=0"], "--oracle_steps: at least 1 is needed"),
        (["good"], ["--tune.runs=2"], "--tune.learning_rates: the grid holds no learning rate. Give"),
        (["good"], ["--tune.learning_rates=[]"], "--tune.learning_rates: the grid holds no learning rate. Give"),
        (["good"], ["--tune.learning_rates=1e-4", "--data.validation=none"],
         "tune: no validation subject can choose a learning rate: no scan with 3 axes in split 'none'"),
        (["s=good,wide"], [], "encoders: s: run 2 has another encoder than run 1: pretrainings of one arm"),
        (["s=good,again/good"], [], "encoders: s: runs 1 and 2 hold the same weights. Pretrain with another seed"),
        (["s=good,second"], ["--runs=1"], "runs: s has 2 pretrainings, which 1 runs cannot all start from (got 1; exp"),
        (["s=good,gone"], [], "there is no such folder or file"),
    ],
)  # fmt: skip
def test_bad_arms_are_one_line_before_anything_is_trained(place, tmp_path, capsys, encoders, words, message):
    given = [word if "=" in word else f"={word}" for word in encoders]
    given = [word.replace("=", f"={place}/").replace(",", f",{place}/") for word in given]
    given = [word.removeprefix("=") for word in given]
    refused(place, tmp_path, capsys, given, words, message)


@pytest.mark.parametrize(
    ("against", "words", "message"),
    [
        ("plain.safetensors", [], "--against: the encoder of the weights is missing (got " ),
        ("gone.safetensors@resenc_small_3d", [], "against: other: there is no such file (got "),
        ("good@resenc_small_3d", [], "against: other: is a folder: name runs of medssl as encoders (got "),
        ("plain.safetensors@resenc_smal", [], "no configuration 'resenc_smal' in encoders"),
        ("plain.safetensors@resenc_small_3d", [], "against: other: "),
        ("color.yaml@resenc_small_3d", [], "is text, no file of weights"),
        ("gone.yaml", [], "against: the description cannot be read"),
        ("wide.yaml", [], "against: other: the weights were trained at 2x2x2 mm, the store has 1x1x1.5 mm. Cache"),
        ("color.yaml", [], "against: other: the weights take 3 channel(s), the scans of the store have 1. Choose"),
        ("odd.yaml", [], "against: odd.yaml: unknown key spacing; a Foreign has weights, encoder, spacing"),
        ("own.yaml", [], "against: the encoder has pretrained true and would bring weights of its own"),
    ],
)  # fmt: skip
def test_weights_of_others_that_do_not_fit_are_one_line(place, tmp_path, capsys, against, words, message):
    refused(place, tmp_path, capsys, [str(place / "good")], [f"--against=other={place / against}", *words], message)


def test_what_was_assumed_of_weights_of_others_is_noted(place, capsys):
    """Allowed channels and spacing, and what nobody says, are notes of the kind "guess"."""
    store = Store.open(place / "store")
    notes = {}
    for name in ("wide", "color", "plain"):
        ((arm, facts),) = sources.foreign_arms([f"other={place / name}.yaml"], ["good"])
        initial = plan.initial_weights_of("other", arm.paths[0], store, (FineTuning(), arm.encoder), ("channels",))
        assert initial.digest != "random"
        assert not initial.provenance.complete
        notes[name] = sources.check_foreign(arm, facts, initial, store, ("channels", "preprocess"))
    assert {note.kind for each in notes.values() for note in each} == {"guess"}
    texts = {name: " ".join(map(str, each)) for name, each in notes.items()}
    assert "the weights were trained at 2x2x2 mm, the store has 1x1x1.5 mm (allowed)." in texts["wide"]
    assert "other: weights for 3 channel(s) are spread over 1 (allowed)." in texts["color"]
    assert "spacing and intensity rule of its pretraining are unknown: assumed those of the store" in texts["plain"]
    assert "100% of the keys filled" in texts["plain"]
    assert "not all subjects that the encoder was pretrained on are known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoders", "words", "message"),
    [
        (["good", "again/good"], [], "encoders: 2 encoders have the same name (got 'good'). Give each encoder a name"),
        (["scratch=good"], [], "encoders: the name is reserved for from-scratch baselines (got 'scratch'). Give each"),
        (["scratch-good=good"], [], "encoders: the name is reserved for from-scratch baselines (got 'scratch-good')"),
        (["a/b=good"], [], "encoders: the name cannot be that of a folder (got 'a/b'; expected letters, digits"),
        (["other"], [], "was made by another Preprocess"),
        (["seen"], [], "seen: the encoder was pretrained on 3 of the 3 subjects of split 'test'"),
        (["gone"], [], "there is no such folder or file"),
        (["good"], ["--labels=[2,9]"], "there are 6 labeled subjects to choose from (got 9)"),
        (["good"], ["--labels=[0.01]"], "there are 6 labeled subjects to choose from; 0.01 of them is less than one"),
        (["good"], ["--labels=[0]"], "labels: no number of subjects (got 0; expected a number of subjects"),
        (["good"], ["--labels=[]"], "--labels: at least 1 is needed"),
        (["good"], ["--runs=0"], "--runs: at least 1 is needed"),
        (["good"], ["--split=val"],
         "--split: scores would be too good: of the 2 subjects, 2 are in split 'val', the validation split (got"),
        (["good"], ["--split=train"],
         "of the 6 subjects, 6 are in split 'train', the training split; 6 are used in the pretraining of good (got "
         "'train'). Choose another split, or allow it (allow: seen)"),
        (["validated"], ["--split=val", "--data.validation=other"],
         "of the 2 subjects, 2 are used in the pretraining of validated (got 'val')"),
        (["good"], ["--split=none"], "none of the 0 scans of split 'none' is labeled with 'mask'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_is_trained(place, tmp_path, capsys, encoders, words, message):
    given = [word if "=" not in word else word.replace("=", f"={place}/") for word in encoders]
    refused(place, tmp_path, capsys, [word if "=" in word else str(place / word) for word in given], words, message)


def refused(place, tmp_path, capsys, given, words, message):
    """The verb refuses its words with one line that holds a message."""
    said = [
        "--config=segment_3d_small", f"--store={place / 'store'}", f"--index={place / 'index.sqlite'}",
        f"--out={tmp_path / 'out'}", "--labels=[2]", "--data.view.size=[16,16,8]",
    ]  # fmt: skip
    mask = os.umask(0o077)
    try:
        code = cli.main(["compare", *given, *said, *words])
    finally:
        os.umask(mask)
    shown = capsys.readouterr()
    assert code == 2
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (tmp_path / "out" / "runs").exists()


def test_what_is_unknown_of_pretraining_is_reported_before_anything_is_trained(place, tmp_path, capsys):
    store = Store.open(place / "store")
    card = Card(
        Imported(RESENC, ENCODER), store.preprocess, None, "digest",
        Provenance(complete=False), 7, {},
    )  # fmt: skip
    save_encoder(tmp_path / "unknown", ResEnc(**ENCODER), card)
    plan.initial_weights_of("spark", tmp_path / "unknown", store, (FineTuning(), None), ())
    plan.initial_weights_of("seen", place / "seen", store, (FineTuning(), None), ("seen",))
    plan.initial_weights_of("good", place / "good", store, (FineTuning(), None), ())
    assert capsys.readouterr().out.splitlines() == [
        "note: spark: not all subjects that the encoder was pretrained on are known: some of the subjects of split "
        "'test' may be among them",
        "note: seen: the encoder was pretrained on 3 of the 3 subjects of split 'test' (allowed): scores may be too "
        "good",
    ]


def test_classes_that_no_training_scan_has_are_reported_for_each_number_of_labels(place, tmp_path, capsys, monkeypatch):
    """Before anything is trained, and in the notes of the results."""
    classes = "0=background,1=left,4=right,7=tail"
    (tmp_path / "key").mkdir(mode=0o700)
    (tmp_path / "i").mkdir()
    file = labeled.indexed(place / "scans", tmp_path / "i/i.sqlite", classes=classes, key=tmp_path / "key/key")
    labeled.stored(file, tmp_path / "store", Preprocess(foreground_crop=False, orientation=None))
    studies = []
    monkeypatch.setattr(verb, "conduct", lambda work, plan: (plan.recorded_study(work.out), {}))
    monkeypatch.setattr(verb, "summarize", lambda study, _: studies.append(study) or {"compared": [1]})
    mask = os.umask(0o077)
    try:
        code = cli.main([
            "compare", str(place / "good"), "--config=segment_3d_small", f"--store={tmp_path / 'store'}",
            f"--index={file}", f"--out={tmp_path / 'out'}", "--labels=[2,null]", "--runs=3",
            "--data.view.size=[16,16,8]",
        ])  # fmt: skip
    finally:
        os.umask(mask)
    assert code == 0
    notes = [
        f"With {count} labeled subjects no training scan has tail (3 of 3 runs): networks will rarely predict it."
        for count in (2, 6)
    ]
    assert [str(note) for note in studies[0].notes] == notes
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: With")] == [
        f"note: {x}" for x in notes
    ]


def test_what_is_scored_is_known_by_its_content_and_not_by_the_state_of_its_files(place, tmp_path):
    with Index.open(place / "index.sqlite") as known:
        scans, root = list(known.scans(split="test")), known.root
    shutil.copytree(root, tmp_path / "copy")
    first = plan.digest_of_scored(scans, root)
    assert first == plan.digest_of_scored(list(reversed(scans)), tmp_path / "copy")
    value = replace(scans[0], labels=replace(scans[0].labels, values=(("grade", "2"),)))
    assert plan.digest_of_scored([value, *scans[1:]], root) != first
    assert plan.digest_of_scored(scans[1:], root) != first
    mask = tmp_path / "copy" / scans[0].labels.mask[0].path
    mask.write_bytes(mask.read_bytes() + b"0")
    changed = plan.digest_of_scored(scans, tmp_path / "copy")
    mask.unlink()
    assert len({first, changed, plan.digest_of_scored(scans, tmp_path / "copy")}) == 3


def test_a_real_process_runs_its_commands_with_its_log_and_device(tmp_path):
    jobs = [
        processes.Job("good", (("--version",), ("--version",)), tmp_path / "logs/good.log"),
        processes.Job("bad", (("index", "--nonsense"), ("--version",)), tmp_path / "logs/bad.log"),
    ]
    ended = {}
    with processes.alone(tmp_path / ".lock", "here") as lock:
        code = processes.run_jobs(jobs, lambda job, why: ended.update({job.name: why}), at_once=2, lock=lock)
    assert code == 0
    assert ended["good"] is None
    assert "nonsense" in ended["bad"].reason
    assert (tmp_path / "logs/good.log").read_text().count("medssl ") == 2
    assert "medssl 0" not in (tmp_path / "logs/bad.log").read_text()


def test_gpus_take_turns(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [processes.devices(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [processes.devices(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["5", "GPU-7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes.devices(0) == {}
