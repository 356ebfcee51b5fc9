"""A prolonged run of constant rate equals one that was long from the start, from every phase of its schedule."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import toys

from medssl import cli
from medssl.encoders.weights import load_card

RECIPE = Path(__file__).with_name("toys.yaml")
SCHEDULE = (
    "--optimizer.schedule=constant_then_decay",
    "--optimizer.rate_decay.share=0.25",
    "--optimizer.warmup=0.375",  # 3 of the 8 steps of the first run, 3 constant ones, 2 that fall
    "--optimizer.weight_decay=0.04,0.2",
    "--optimizer.learning_rate=0.01",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toys.toy_store(tmp_path_factory.mktemp("prolonging") / "store")


def pretrain(store: Path, run: Path, *words: str) -> tuple[int, str]:
    mask, threads, text = os.umask(0o077), torch.get_num_threads(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = cli.main(["pretrain", f"--config={RECIPE}", f"--store={store}", f"--run={run}", *SCHEDULE, *words])
    finally:
        os.umask(mask)
        torch.set_num_threads(threads)
    return code, text.getvalue()


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path) -> None:
    """Weights, statistics, moments, listeners' states and logged numbers are equal bit for bit."""
    first, second = state(one), state(other)
    assert first["progress"] == second["progress"]
    for name, value in first["objective"].items():
        assert torch.equal(value, second["objective"][name]), name
    moments = [held["optimizer"]["state"] for held in (first, second)]
    for number, values in moments[0].items():
        assert all(torch.equal(value, moments[1][number][name]) for name, value in values.items()), number
    timed = {"seconds", "waiting", "samples_per_second"}
    logs = [[{key: row[key] for key in row.keys() - timed} for row in rows(run)] for run in (one, other)]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def straight(store, tmp_path_factory):
    """16 steps from the start, with the warm-up of a run of 8 steps."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert pretrain(store, run, "--training.steps=16", "--optimizer.rate_decay.horizon=8")[0] == 0
    return run


@pytest.fixture(scope="module")
def short(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("short") / "run"
    code, said = pretrain(store, run, "--training.steps=8")
    assert code == 0, said
    return run


def test_rates_follow_the_closed_form(short, straight):
    peak = 0.01
    rising = [peak * (0.005 + 0.995 * step / 3) for step in range(3)]
    falling = [peak, peak * (1 + 1e-3) / 2]
    found = [row["learning_rate"] for row in rows(short)]
    assert found == pytest.approx([*rising, peak, peak, peak, *falling], rel=1e-12)
    lines = [peak * (left * (1 - 1e-3) + 1e-3) for left in (1.0, 0.75, 0.5, 0.25)]
    assert [row["learning_rate"] for row in rows(straight)] == pytest.approx([*rising, *[peak] * 9, *lines], rel=1e-12)
    assert [row["weight_decay"] for row in rows(straight)[8:]] == pytest.approx([0.2] * 8)


def test_a_finished_run_goes_back_to_before_its_rate_fell(store, short, straight, tmp_path):
    run = shutil.copytree(short, tmp_path / "run")
    assert torch.load(run / "checkpoints/before_decay.pt", weights_only=True)["progress"]["step"] == 6
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["rate_decay"]["horizon"] == 8
    code, said = pretrain(store, run, "--training.steps=16", "--training.extend=true")
    assert code == 0, said
    assert "going on after step 6" in said
    assert (
        "16 steps instead of 8: going back to step 6, before the learning rate fell: "
        "the weights and the log of later steps are replaced" in said
    )
    assert_same(run, straight)
    assert torch.load(run / "checkpoints/before_decay.pt", weights_only=True)["progress"]["step"] == 12


@pytest.mark.parametrize("stop", [2, 3, 5, 6, 7, 8])
def test_it_can_be_prolonged_from_every_phase(store, straight, tmp_path, stop, monkeypatch):
    """In the warm-up, at its end, in the constant part, at its end, and in the fall."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(toys.ToyObjective, "after_step", stopping(stop))
        code, said = pretrain(store, run, "--training.steps=8")
    assert code == (143 if stop < 8 else 0), said
    assert state(run)["progress"]["step"] == stop
    code, said = pretrain(store, run, "--training.steps=16", "--training.extend=true")
    assert code == 0, said
    assert ("going back to step 6" in said) == (stop > 6)
    assert ("the learning rate falls from step 12 on" in said) == (stop <= 6)
    assert_same(run, straight)


@pytest.mark.parametrize("stop", [2, 3, 6, 7])
def test_it_resumes_at_every_phase(store, short, tmp_path, stop, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(toys.ToyObjective, "after_step", stopping(stop))
        assert pretrain(store, run, "--training.steps=8")[0] == 143
    code, said = pretrain(store, run, "--training.steps=8")
    assert code == 0, said
    assert_same(run, short)


def stopping(step: int):
    """An ``after_step`` that gets a signal in time for the loop to stop after ``step``."""
    import signal

    def after_step(self, now):
        self.steps_seen += 1
        if now.index == step - 2 or step == now.index + 1 == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return after_step


def test_twice_and_after_a_kill_before_the_first_new_checkpoint(store, short, tmp_path):
    run, other = shutil.copytree(short, tmp_path / "run"), tmp_path / "other"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"] |= {"steps": 12, "extend": True}
    (run / "config.yaml").write_text(yaml.safe_dump(config))  # as a process leaves it that was killed at its start
    for steps in (12, 16):
        code, said = pretrain(store, run, f"--training.steps={steps}", "--training.extend=true")
        assert code == 0, said
    assert "16 steps instead of 12: going back to step 9" in said
    assert pretrain(store, other, "--training.steps=16", "--optimizer.rate_decay.horizon=8")[0] == 0
    assert_same(run, other)


def test_a_missing_checkpoint_is_named(store, short, tmp_path):
    run = shutil.copytree(short, tmp_path / "run")
    (run / "checkpoints/before_decay.pt").unlink()
    code, said = pretrain(store, run, "--training.steps=16", "--training.extend=true")
    assert code == 2
    assert re.search(
        r"the learning rate of run/ has fallen since step 6, and checkpoints/before_decay\.pt of that step is missing: "
        r"the run cannot be prolonged\. Start a new run from its weights",
        said,
    ), said


def test_another_horizon_is_another_run(store, short, tmp_path):
    run = shutil.copytree(short, tmp_path / "run")
    code, said = pretrain(
        store, run, "--training.steps=16", "--training.extend=true", "--optimizer.rate_decay.horizon=16"
    )
    assert code == 2
    assert "optimizer.rate_decay.horizon: 8 there, 16 here" in said


def test_another_batch_would_be_another_rate(store, tmp_path):
    """The message says why: nobody gave another rate."""
    words = ("--optimizer.learning_rate=null", "--optimizer.learning_rate_per=0.01,16")
    code, said = pretrain(store, tmp_path / "run", *words, "--training.steps=2")
    assert code == 0, said
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optimizer"]
    assert (config["learning_rate"], config["learning_rate_per"]) == (pytest.approx(0.005), [0.01, 16])
    assert load_card(tmp_path / "run").objective.learning_rate == pytest.approx(0.005)
    assert "adamw with betas 0.9, 0.95, learning rate 0.005 (0.01 for 16 samples, times the square root of 4" in said
    assert rows(tmp_path / "run")[0]["learning_rate"] == pytest.approx(0.005 * 0.005)  # the first of the warm-up
    code, said = pretrain(store, tmp_path / "run", *words, "--training.steps=2", "--training.batch_size=8")
    assert code == 2
    assert "optimizer.learning_rate: 0.005 there, 0.01 here" in said
    assert "follows the samples of a step: keep batch_size x accumulate x processes as it was" in said
    again = ("--config", str(tmp_path / "run/config.yaml"), f"--store={store}", f"--run={tmp_path / 'again'}")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        assert cli.main(["pretrain", *again]) == 0, text.getvalue()
    assert_same(tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_other_optimizers_resume_bit_for_bit(store, tmp_path, name, monkeypatch):
    words = (f"--optimizer.name={name}", "--optimizer.weight_decay=1e-4,1e-4", "--optimizer.clip_per=parameter",
             "--training.steps=6", '--optimizer.rates={"encoder.first.*": 0.5}')  # fmt: skip
    assert pretrain(store, tmp_path / "one", *words)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(toys.ToyObjective, "after_step", stopping(3))
        assert pretrain(store, tmp_path / "two", *words)[0] == 143
    code, said = pretrain(store, tmp_path / "two", *words)
    assert code == 0, said
    assert_same(tmp_path / "one", tmp_path / "two")
    stored = yaml.safe_load((tmp_path / "two/config.yaml").read_text())["optimizer"]["rates"]
    assert stored == {"encoder.first.*": 0.5}


def test_an_objective_sees_the_horizon_and_not_the_length(store, short, tmp_path, monkeypatch):
    """Its schedules (a teacher's momentum, say) go on where they were, and stay at their end."""
    seen = {}
    run = shutil.copytree(short, tmp_path / "run")
    monkeypatch.setattr(toys.ToyObjective, "after_step", lambda self, step: seen.update({step.index: step.progress}))
    assert pretrain(store, run, "--training.steps=16", "--training.extend=true")[0] == 0
    assert seen == {index: min(1.0, index / 8) for index in range(6, 16)}
    seen.clear()
    words = ("--optimizer.schedule=cosine", "--optimizer.rate_decay.share=null", "--training.steps=4")
    assert pretrain(store, tmp_path / "cosine", *words)[0] == 0
    assert seen == {index: index / 4 for index in range(4)}


def test_the_checkpoint_before_the_fall_is_kept_after_a_kill(store, short, tmp_path):
    """A kill between writing the checkpoint and giving it its second name costs nothing."""
    run = shutil.copytree(short, tmp_path / "run")
    kept = run / "checkpoints/before_decay.pt"
    kept.replace(run / "checkpoints/last.pt")
    assert pretrain(store, run, "--training.steps=8")[0] == 0
    assert torch.load(kept, weights_only=True)["progress"]["step"] == 6
    assert_same(run, short)
