"""The watch on a running pretraining: it changes nothing, tells once, and remembers across stops."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import ddp
import numpy as np
import pytest
import torch
from commands import toys
from data.stores import fill_store, volume
from objectives.small import plain_batch
from torch import nn

from medssl import cli
from medssl.encoders.base import Encoder
from medssl.metrics.embedding_measures import describe
from medssl.metrics.health import NEWEST, OLDER
from medssl.objectives.base import Objective
from medssl.training import health_monitor as health
from medssl.training.health_monitor import Health, is_flat, settled_after
from medssl.types import Batch, Loss, Step, ViewPlan, ViewSpec

RECIPE = Path(__file__).parents[1] / "commands/toys.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toys.toy_store(tmp_path_factory.mktemp("health") / "store")


@pytest.fixture
def train(tmp_path, capsys):
    """Calls the verb; gives the run folder and what was said."""

    def run(store: Path, name: str, *words: str) -> tuple[Path, str]:
        mask = os.umask(0o077)
        try:
            assert (
                cli.main(["pretrain", f"--config={RECIPE}", f"--store={store}", f"--run={tmp_path / name}", *words])
                == 0
            )
        finally:
            os.umask(mask)
        return tmp_path / name, capsys.readouterr().out

    return run


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["objective"]


# --- in a run


def test_watching_changes_no_weight(train, store, monkeypatch):
    watched, said = train(store, "watched", "--training.output.health_every=1")
    monkeypatch.setattr(health.Health, "on_micro_batch", lambda *_: None)
    monkeypatch.setattr(health.Health, "on_step", lambda *_: None)
    alone, _ = train(store, "alone")
    assert "embedding_rank" in rows_of(watched)[0]
    assert "embedding_rank" not in rows_of(alone)[-1]
    for name, value in weights_of(alone).items():
        assert torch.equal(value, weights_of(watched)[name]), name
    assert said.splitlines()[-1].endswith("encoder.safetensors is written; health: well")


def test_measures_stand_in_rows_of_their_own_where_the_log_has_none(train, store):
    run, _ = train(store, "run", "--training.output.health_every=3", "--training.output.log_every=5")
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [3, 5, 6, 8]
    assert [row["step"] for row in rows if "embedding_rank" in row] == [3, 6, 8]
    last = rows[-1]
    assert last["alarms"] == last["input_flat"] == 0
    assert 1 <= last["embedding_rank"] <= 4
    assert 0 < last["embedding_spread"] < 1
    assert 0 <= last["embedding_dead"] <= 1


def test_constant_scans_raise_one_alarm_and_stop_nothing(train, tmp_path, monkeypatch):
    air = {f"scan{number}": volume(np.zeros((1, 20, 18, 12), np.int16)) for number in range(4)}
    made = fill_store(tmp_path / "air", air, monkeypatch)
    _, said = train(made.path, "run", "--training.output.health_every=2")
    lines = [line for line in said.splitlines() if line.startswith("health, ")]
    assert len(lines) == 1
    assert lines[0].startswith(
        "health, step 2: the input is constant: 100% of the views hold one value: look at pictures/"
    )
    assert said.splitlines()[-1].endswith("encoder.safetensors is written; health: not well: input (steps 2 to 8)")


def test_constant_scans_are_known_beneath_noise(train, tmp_path, monkeypatch):
    same = {f"scan{number}": volume(np.full((1, 20, 18, 12), 7, np.int16)) for number in range(4)}
    made = fill_store(tmp_path / "same", same, monkeypatch)
    _, said = train(made.path, "run", "--training.output.health_every=2", "--objective.view.intensity.noise=[1.0,0.3]")
    (line,) = [line for line in said.splitlines() if line.startswith("health, ")]
    assert line.startswith("health, step 2: the input is constant: 100% of the views hold one value: look at pictures/")


def test_a_checkpoint_from_before_health_was_measured_goes_on(train, store):
    run, said = train(store, "run", "--training.steps=4")
    assert said.splitlines()[-1].endswith(
        "health: not judged: 1 of the 3 measurements that this takes (a lower training.output.health_every gives more)"
    )
    path = run / "checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    del state["listeners"]
    torch.save(state, path)
    _, said = train(store, "run", "--training.steps=8", "--training.extend=true", "--training.output.health_every=1")
    assert said.splitlines()[-1].endswith("health: well")


class Overflowing(toys.ToyObjective):
    """Its loss is finite, and one row of every batch of its embeddings is not."""

    def forward(self, batch: Batch, step: Step) -> Loss:
        loss = super().forward(batch, step)
        loss.embedding[0, 0] = torch.inf
        return loss


def test_embeddings_that_are_not_finite_stop_nothing(train, store):
    words = ("--objective=training.test_health_monitor.Overflowing", "--objective.view.size=[8,8,6]")
    run, said = train(store, "run", *words, "--training.output.health_every=2")
    (line,) = [line for line in said.splitlines() if line.startswith("health, ")]
    assert line.startswith("health, step 2: 50.0% of the embeddings are not finite while the loss is")
    assert said.splitlines()[-1].endswith("health: not well: not finite (steps 2 to 8)")
    assert 1 <= rows_of(run)[-1]["embedding_rank"] <= 4  # of the other rows


class Taught(Objective):
    """A student learns what a teacher, which stays as it was drawn, says of a crop: one of 16 names."""

    def __init__(self, encoder: Encoder, *, view: ViewSpec, temperature: float) -> None:
        super().__init__()
        self.encoder, self.needs, self.temperature = encoder, ViewPlan((view,)), temperature
        self.student = nn.Linear(encoder.channels[-1], 16)
        self.teacher = nn.Linear(encoder.channels[-1], 16).requires_grad_(False)

    def forward(self, batch: Batch, step: Step) -> Loss:
        pooled = self.encoder(batch.views[0].image).pooled
        said = (self.teacher(pooled.detach()) / self.temperature).softmax(1)
        loss = -(said * self.student(pooled).log_softmax(1)).sum(1).mean()
        entropy = torch.special.entr(said).sum(1).mean()
        terms = {"loss": loss.detach(), "teacher_entropy": entropy, "chance": loss.new_tensor(math.log(16))}
        return Loss(loss, terms, pooled.detach())


@pytest.mark.parametrize(("temperature", "alarms"), [(10.0, 1), (0.05, 0)])
def test_a_random_teacher_that_says_nothing_is_told_once_the_run_has_settled(
    train, store, monkeypatch, temperature, alarms
):
    monkeypatch.setattr("medssl.metrics.health.SETTLING", 4)
    words = ("--objective=training.test_health_monitor.Taught", "--objective.view.size=[8,8,6]", "--optimizer.warmup=0")
    words += (f"--objective.temperature={temperature}", "--training.output.health_every=2")
    _, said = train(store, "run", *words)
    told = re.findall(r"^health, step (\d+): teacher output is uniform: .*; lower the teacher temperature$", said, re.M)
    assert told == ["4"] * alarms


# --- alone


def batch_of(samples: tuple[int, ...], width: int = 6) -> tuple:
    """A batch whose embeddings depend on the numbers of its samples alone."""
    rows = [np.random.default_rng(sample).normal(size=(width + 64)) for sample in samples]
    held = torch.tensor(np.stack(rows), dtype=torch.float32)
    batch = plain_batch(held[:, width:].reshape(-1, 1, 8, 8), samples)
    return batch, Loss(held.sum(), {}, held[:, :width])


def watched(batches: list[tuple], steps: int = 4) -> Health:
    """A watch that saw ``batches`` in so many steps, and measured at the last."""
    watch, each = Health(every=steps, settled=200), len(batches) // steps
    for step in range(steps):
        for batch in batches[step * each : (step + 1) * each]:
            watch.on_micro_batch(*batch)
        watch.follow({"step": step + 1, "loss": 1.0, "gradient_norm": 1.0}, due=step == steps - 1)
    return watch


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_window_holds_the_newest_samples_whatever_the_micro_batches(size, monkeypatch):
    monkeypatch.setattr(health, "WINDOW", 10)
    numbers = list(range(16))
    watch = watched([batch_of(tuple(numbers[at : at + size])) for at in range(0, 16, size)])
    samples, flat, rows = watch.window
    assert samples.tolist() == numbers[-10:]
    assert flat.tolist() == [0.0] * 10
    expected = batch_of(tuple(numbers[-10:]))[1].embedding
    assert torch.equal(rows, expected)
    measured = {name: watch.history[-1][name] for name in describe(rows.numpy())}
    assert measured == describe(expected.numpy())


def share(size: int) -> tuple[list[int], dict[str, float]]:
    """Each process sees its part of every step of 4 samples."""
    rank = torch.distributed.get_rank()
    own = [batch_of(tuple(range(at + rank * size, at + (rank + 1) * size))) for at in range(0, 16, 2 * size)]
    watch = watched(own)
    return watch.window[0].tolist(), watch.history[-1]


@pytest.mark.ddp
def test_two_processes_measure_what_one_does():
    alone = watched([batch_of(tuple(range(at, at + 4))) for at in range(0, 16, 4)])
    for samples, measured in ddp.run_two(share, 2):
        assert samples == alone.window[0].tolist()
        assert measured == alone.history[-1]


def test_what_is_kept_until_the_next_measurement_is_bounded(monkeypatch):
    monkeypatch.setattr(health, "WINDOW", 10)
    watch = Health(every=1000, settled=0)
    for at in range(0, 400, 4):
        watch.on_micro_batch(*batch_of(tuple(range(at, at + 4))))
    assert sum(len(part[0]) for part in watch.pending) == 12


def test_the_state_restores_everything_and_needs_no_pickle(tmp_path):
    watch = watched([batch_of(tuple(range(at, at + 4))) for at in range(0, 16, 4)])
    watch.on_micro_batch(*batch_of((16, 17)))
    watch.follow({"step": 5, "loss": 2.0, "gradient_norm": 1.0}, due=False)
    watch.is_new("stuck", 4)
    torch.save(watch.state_dict(), tmp_path / "state.pt")
    other = Health(every=4, settled=200)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (watch, other):
        each.on_micro_batch(*batch_of((18, 19)))
        each.follow({"step": 6, "loss": 3.0, "gradient_norm": 1.0}, due=True)
    assert watch.history == other.history
    assert watch.history[-1]["loss"] == 2.5
    assert watch.alarm_steps == other.alarm_steps == {"stuck": [4, 4]}


def test_a_long_run_that_was_stopped_knows_the_extremes_of_an_uninterrupted_one(tmp_path):
    """600 measurements: the lowest loss, of measurement 30, has left the newest ones long ago and is not forgotten."""
    embeddings = batch_of(tuple(range(32)))

    def follow(watch: Health, numbers: range) -> list[str]:
        kinds = []
        for number in numbers:
            watch.on_micro_batch(*embeddings)
            loss = 0.2 if number == 30 else 0.5 + 0.0005 * number
            row = {"step": number, "loss": loss, "chance": 1.0, "gradient_norm": 1.0, "uniformity": -1.0}
            kinds += [alarm.kind for alarm in watch.follow(row, due=True)[1]]
        return kinds

    whole, part, rest = (Health(every=1, settled=200) for _ in range(3))
    told = follow(whole, range(1, 601))
    assert told == ["rising"]
    told_before = follow(part, range(1, 301))
    torch.save(part.state_dict(), tmp_path / "state.pt")
    rest.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert told_before + follow(rest, range(301, 601)) == told
    assert rest.history == whole.history
    assert len(whole.history) == 1 + OLDER + NEWEST
    assert 30 in {row["step"] for row in whole.history}
    assert rest.alarm_steps == whole.alarm_steps == {"rising": [202, 600]}


def test_a_checkpoint_of_the_newest_hundred_measurements_alone_goes_on():
    """As an earlier version wrote them."""
    rows = [{"step": float(step), "loss": 1.0, "gradient_norm": 1.0} for step in (1, *range(400, 500))]
    watch = Health(every=1, settled=0)
    watch.load_state_dict({"window": [], "recent": [], "history": rows, "told": {}})
    watch.on_micro_batch(*batch_of((0, 1)))
    assert watch.follow({"step": 500, "loss": 1.0, "gradient_norm": 1.0}, due=True)[1] == []
    assert len(watch.history) == 102


def test_numbers_that_are_not_finite_are_left_out():
    """A step that the gradient scaler skipped has no gradient norm."""
    watch = Health(every=2, settled=0)
    watch.on_micro_batch(*batch_of((0, 1)))
    watch.follow({"step": 1, "loss": 1.0, "gradient_norm": float("inf")}, due=False)
    watch.follow({"step": 2, "loss": 3.0, "gradient_norm": 4.0}, due=True)
    assert (watch.history[-1]["loss"], watch.history[-1]["gradient_norm"]) == (2.0, 4.0)
    assert "gradient_norm" not in watch.history[0]


def test_an_alarm_is_told_once_until_it_was_absent_three_times():
    watch = Health(every=20, settled=0)
    assert [watch.is_new("stuck", step) for step in (20, 40, 60, 120, 200)] == [True, False, False, False, True]
    watch.is_new("collapse", 40)
    assert (
        watch.verdict(200) == "not well: stuck (steps 20 to 120), stuck (steps 200 to 200), collapse (steps 40 to 40)"
    )


def test_a_young_run_says_that_its_loss_is_not_judged_yet():
    watch = Health(every=20, settled=settled_after(1000, 0.05))
    watch.on_micro_batch(*batch_of((0, 1)))
    for step in (1, 2, 3):
        watch.follow({"step": step, "loss": 1.0, "gradient_norm": 1.0, "chance": 1.0}, due=True)
    assert watch.verdict(249) == "well so far (the loss is judged from step 250 on)"
    assert watch.verdict(250) == "well"


class Collapsed(toys.ToyObjective):
    """Its embeddings are one and the same."""

    def forward(self, batch: Batch, step: Step) -> Loss:
        loss = super().forward(batch, step)
        return replace(loss, embedding=torch.ones_like(loss.embedding))


@pytest.mark.parametrize(
    ("every", "verdict"),
    [
        (
            20,
            r"not judged: 1 of the 3 measurements that this takes \(a lower training\.output\.health_every gives .*\)",
        ),
        (2, r"not well: collapse \(steps 4 to 8\)"),
    ],
)
def test_a_run_with_few_measurements_is_not_called_well(train, store, every, verdict):
    words = ("--objective=training.test_health_monitor.Collapsed", "--objective.view.size=[8,8,6]")
    _, said = train(store, "run", *words, f"--training.output.health_every={every}")
    assert re.search(rf"is written; health: {verdict}$", said.splitlines()[-1])


def test_an_objective_without_embeddings_is_watched_by_its_loss():
    watch = Health(every=1, settled=0)
    batch, _ = batch_of((0, 1))
    watch.on_micro_batch(batch, Loss(torch.zeros(())))
    row = {"step": 1, "loss": 1.0, "gradient_norm": 1.0}
    assert watch.follow(row, due=True) == ({"input_flat": 0.0, "alarms": 0.0}, [])


def test_flat_samples_hold_one_value_in_every_channel_where_they_are_valid():
    image = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(5, 1, 4, 4, dtype=torch.bool)
    image[0] = 3.0
    image[1, 0] = 3.0
    image[2, :, :2], valid[2, :, 2:] = torch.tensor([1.0, 2.0])[:, None, None], False
    valid[3] = False
    assert is_flat(image, valid).tolist() == [True, False, True, True, False]


def test_the_share_of_flat_views_is_a_mean_over_views():
    batch, loss = batch_of((0, 1))
    flat = replace(batch.views[0], image=torch.zeros_like(batch.views[0].image))
    watch = Health(every=1, settled=0)
    watch.on_micro_batch(replace(batch, views=(*batch.views, flat)), loss)
    watch.collect()
    assert watch.window[1].tolist() == [0.5, 0.5]
