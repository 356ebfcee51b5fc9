"""Probes during pretraining: correct numbers, no influence on training, and one line for settings that are wrong."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import labeled
from commands.asked import Halves
from data.stores import fill_store, volume

from medssl import cli
from medssl.data.labels.kinds.classes import class_number
from medssl.data.labels.selection import schema_of
from medssl.data.store.store import Store
from medssl.encoders.weights import load_encoder
from medssl.metrics import scan_probe as probes
from medssl.probing.online_probe import OnlineProbeListener
from medssl.training.loop import TrainingLoop
from medssl.training.settings import OnlineProbe
from medssl.types import Preprocess, UserError, ViewPlan, ViewSpec

STEPS = 6
ENCODER = {"in_channels": 1, "ndim": 2, "channels": [4, 8], "strides": [[2, 2], [2, 2]], "blocks": [1, 1]}
RECIPE = {
    "encoder": {"class_path": "medssl.encoders.resenc.ResEnc", "init_args": ENCODER},
    "objective": {
        "class_path": "medssl.objectives.simclr.SimCLR",
        "init_args": {"view": {"size": [32, 32]}, "projection": [8, 8]},
    },
    "training": {"steps": STEPS, "batch_size": 4, "output": {"checkpoint_every": 2, "log_every": 100}},
    "data": {"split": "train", "workers": 0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    below = folder / "pictures"
    labeled.pictures(below / "scans")
    file = labeled.indexed(below / "scans", below / "index.sqlite", key=folder / "key")
    rules = Preprocess(foreground_crop=False, orientation=None)
    return Store.open(labeled.stored(file, folder / "store", rules))


@pytest.fixture
def train(store, tmp_path, capsys):
    """Calls the verb; gives the exit code, the run folder and what was said."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))

    def run(name: str, *words: str) -> tuple[int, Path, str]:
        mask = os.umask(0o077)
        try:
            given = ["pretrain", f"--config={recipe}", f"--store={store.path}", f"--run={tmp_path / name}"]
            code = cli.main([*given, *words])
        finally:
            os.umask(mask)
        shown = capsys.readouterr()
        return code, tmp_path / name, shown.out + shown.err

    return run


def probed(run: Path) -> dict[int, tuple[float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("probe_knn_auroc", "probe_logistic_auroc")
    return {row["step"]: tuple(row[key] for key in keys) for row in rows if keys[0] in row}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["objective"]


def test_probes_are_those_of_the_encoder_as_it_is_and_change_nothing(train, store):
    code, run, said = train("probed", "--probe.target=class", "--probe.every=4")
    assert code == 0, said
    found = probed(run)
    assert list(found) == [4, STEPS]
    lines = [line for line in said.splitlines() if line.startswith("probe of class, ")]
    number = r"\d\.\d{3}"
    what = f"validation AUROC nearest neighbors {number}, linear probe {number}"
    assert re.fullmatch(f"probe of class, step 0: {what}; 18 scans to fit on, 6 to measure on", lines[0])
    before = rf" \(before training {number} and {number}\)"
    assert [bool(re.fullmatch(f"probe of class, step {step}: {what}{before}", line)) for step, line in
            zip((4, 6), lines[1:], strict=True)] == [True, True]  # fmt: skip

    schema, encoder = schema_of(store, "class"), load_encoder(run)[0].eval()
    groups = []
    for split in ("train", "val"):
        held = store.records
        scans = [n for n in range(len(store)) if held.tables["split"][held.facts["split"][n]] == split]
        features = []
        for scan in scans:
            scale, offset, low, high, shift, divisor = held.intensity(scan)[0]
            image = ((store.read(scan, (0, 0), (32, 32)) * scale + offset).clip(low, high) - shift) / divisor
            with torch.no_grad():
                features.append(encoder(torch.from_numpy(image.astype(np.float32))[None]).pooled[0].double().numpy())
        truth = np.array([class_number(held.values(scan), schema) for scan in scans])
        names = tuple(map(str, scans))
        groups.append(probes.Group(np.stack(features), truth, names, names))
    fitted = {own.name: own for own in probes.fit_probes(*groups, [name for _, name in schema.classes])}
    expected = [max(auroc for _, auroc, _ in fitted[name].tried) for name in ("knn", "logistic")]
    assert found[STEPS] == pytest.approx(expected, abs=1e-6)

    _, alone, said = train("alone")
    assert "probe of" not in said
    for name, value in weights_of(alone).items():
        assert torch.equal(value, weights_of(run)[name]), name


def test_a_stopped_run_goes_on_with_the_same_numbers(train, monkeypatch):
    words = ["--probe.target=class", "--probe.every=2"]
    _, straight, _ = train("straight", *words)
    step = TrainingLoop.step

    def stopped(self, crops):
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, crops)

    monkeypatch.setattr(TrainingLoop, "step", stopped)
    code, broken, said = train("broken", *words)
    assert code == 128 + signal.SIGTERM, said
    monkeypatch.undo()
    code, _, said = train("broken", *words)
    assert code == 0
    assert probed(broken) == probed(straight)
    assert "step 0" not in said
    assert "(before training " in said


def test_what_another_probe_said_before_training_is_not_told(train):
    words = ("--probe.target=class", "--probe.every=3")
    code, _, said = train("run", *words, "--training.steps=3")
    assert (code, said.count("(before training ")) == (0, 1), said
    for more, told in (("--probe.every=2", 1), ("--probe.seed=1", 0)):
        steps = "4" if told else "5"
        code, _, said = train("run", *words, more, f"--training.steps={steps}", "--training.extend=true")
        assert (code, said.count("(before training ")) == (0, told), said


def test_training_continues_after_features_that_are_not_finite(train, monkeypatch):
    measure = OnlineProbeListener.measure

    calls = []

    def broken(self, objective):
        calls.append(objective)
        if len(calls) > 1:
            raise UserError("18 of 18 scans have features that are NaN or infinite")
        return measure(self, objective)

    monkeypatch.setattr(OnlineProbeListener, "measure", broken)
    code, run, said = train("run", "--probe.target=class", "--probe.every=4")
    assert code == 0
    assert "probe of class, step 4: skipped, 18 of 18 scans have features that are NaN or infinite" in said
    assert probed(run) == {}


def test_few_subjects_are_always_the_same_and_of_all_classes(store):
    plan = ViewPlan((ViewSpec((32, 32)),))
    few, again, other = (
        OnlineProbeListener(store, plan, OnlineProbe("class", subjects=6, seed=seed), half=False) for seed in (0, 0, 1)
    )
    assert few.training_scans == again.training_scans != other.training_scans
    assert len(few.training_scans) == len(few.validation_scans) == 6
    assert few.window == (32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--probe.target=mask"], "only whole scans are probed during training"),
        (["--probe.target=color"], "color"),
        (["--probe.target=class", "--probe.every=0"], "probe.every: must be at least 1 (got 0)"),
        (["--probe.target=class", "--probe.subjects=0"], "probe.subjects: must be at least 1 (got 0)"),
        (["--probe.target=class", "--probe.seed=-1"], "probe.seed: must be at least 0 (got -1)"),
        (
            ["--probe.target=class", "--probe.subjects=2"],
            "error: --probe.target: target class in split 'train', of at most 2 subjects: none of the 2 labeled scans "
            "is right: a probe needs scans of every class for fitting and for choosing its settings. Raise "
            "probe.subjects, or split anew.\n",
        ),
        (
            ["--probe.target=class", "--probe.subjects=1"],
            "error: --probe.target: target class in split 'train', of at most 1 subjects: all 1 labeled scans are "
            "'left': there is nothing to distinguish. Raise probe.subjects, or split anew.\n",
        ),
    ],
)
def test_wrong_settings_are_refused_before_training(train, words, message):
    code, run, said = train("run", *words)
    assert code == 2
    assert message in said
    assert not (run / "metrics.jsonl").exists()


def test_a_subject_in_both_splits_is_refused(tmp_path, monkeypatch):
    pictures = {f"scan{n}": volume(np.full((1, 8, 8), n, np.int16)) for n in range(8)}
    held = fill_store(
        tmp_path / "store", pictures, monkeypatch,
        split=lambda name: "val" if int(name[-1]) > 3 else "train",
        subject=lambda name: "twice" if name in {"scan0", "scan4"} else name,
        values=lambda name: [("kind", "even" if int(name[-1]) % 2 else "odd")],
    )  # fmt: skip
    with pytest.raises(
        UserError,
        match=r"^probe\.target: 1 subjects are in both splits, 'train' and 'val'\.",
    ):
        OnlineProbeListener(held, ViewPlan((ViewSpec((8, 8)),)), OnlineProbe("kind"), half=False)


def test_the_encoder_is_in_evaluation_mode_only_while_it_is_probed(store):
    """Its mode and that of every part come back."""
    encoder = Halves(2)
    probe = OnlineProbeListener(store, ViewPlan((ViewSpec((32, 32)),)), OnlineProbe("class"), half=False)
    seen = []
    encoder.register_forward_hook(lambda module, *_: seen.append(module.training))

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.frozen = torch.nn.BatchNorm1d(2).eval()

        def exported(self):
            return {"encoder": self.encoder}

    objective = Around().train()
    objective.frozen.eval()
    found = probe.measure(objective)
    assert not any(seen)
    assert [module.training for module in (objective, encoder, objective.frozen)] == [True, True, False]
    assert found["probe_logistic_auroc"] == 1
