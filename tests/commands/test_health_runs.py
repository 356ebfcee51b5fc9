"""Runs that are broken on purpose raise an alarm in time, and runs that learn raise none."""

from __future__ import annotations

from itertools import accumulate

import pytest
from commands.small_runs import FAULTS, run, slices

from medssl.training.health_monitor import Health

STEPS = 300  # of a run; its learning rate warms up over 15 of them, so that its loss is judged from step 215 on
EXPECTED = {  # what is told first, and by which step
    "temperature 100": ({"flatness"}, 100),
    "temperature 0.0005": ({"sharpness"}, 20),
    "transformer, rate x 100": ({"stuck", "narrowing", "collapse"}, 220),
    "rate x 10000": ({"divergence"}, 20),
    "constant input": ({"input"}, 20),
    "shuffled views": ({"stuck"}, 220),
    "nothing pushes apart": ({"collapse", "narrowing"}, 220),
    "local, temperature 100": ({"stuck"}, 220),  # the loss moves by 0.5 %: too much for "flatness"
    "one crop": ({"trivial"}, 200),  # padding says where a region lies, and that tells regions apart
    "one crop, shuffled views": ({"trivial"}, 200),  # and that is all that the views have in common
    "one crop, temperature 0.0005": ({"trivial", "sharpness"}, 200),
}
EVERYWHERE = [fault for fault in EXPECTED if not fault.startswith(("local", "one crop"))]
HEALTHY = [
    *[(name, "healthy") for name in ("spark", "unet_mae", "graph_match", "local")],
    *[(name, "healthy transformer") for name in ("mae", "simmim")],
    *[(name, fault) for name in ("simclr", "global") for fault in ("healthy", "healthy transformer")],
]
BROKEN = [
    *[("spark", fault) for fault in ("rate x 10000", "constant input")],
    *[("simclr", fault) for fault in EVERYWHERE if fault != "rate x 10000"],
    *[("global", fault) for fault in EVERYWHERE if fault not in {"rate x 10000", "nothing pushes apart"}],
    ("graph_match", "shuffled views"),
    *[("local", fault) for fault in ("temperature 100", "constant input")],
    *[("local", fault) for fault in EXPECTED if fault.startswith("one crop")],
]
SURVIVORS = [(name, fault) for name in ("simclr", "global") for fault in ("rate x 100", "rate x 10000")]
SECONDS = [("spark", "constant input"), ("simclr", "temperature 0.0005"), ("global", "constant input")]


@pytest.fixture(scope="module")
def images():
    return slices(200, seed=0)


def check(images, name: str, fault: str, seed: int) -> None:
    health = run(name, FAULTS[fault], images, seed=seed, steps=STEPS, patient=False)
    kinds, within = EXPECTED.get(f"{name}, {fault}", EXPECTED[fault])
    assert health.alarm_steps, health.history
    (first,) = health.alarm_steps
    print(f"{name}, {fault}, seed {seed}: {first} at step {health.alarm_steps[first][0]}")
    assert first in kinds
    assert health.alarm_steps[first][0] <= within


@pytest.mark.parametrize(("name", "fault"), SECONDS)
def test_what_is_broken_from_the_start_is_told_at_the_first_measurement(images, name, fault):
    check(images, name, fault, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "fault"), BROKEN)
def test_broken_runs_raise_the_alarm_in_time(images, name, fault, seed):
    check(images, name, fault, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "fault"), SURVIVORS)
def test_a_network_of_convolutions_at_high_rates_learns_or_is_told(images, name, fault, seed):
    """Batch norm, clipping and the falling rate forgive much: no alarm is due where the loss comes down after all."""
    health = run(name, FAULTS[fault], images, seed=seed, steps=STEPS)
    last = health.history[-1]
    print(f"{name}, {fault}, seed {seed}: loss {last['loss']:.3f} of {last['chance']:.3f}, {health.summary(STEPS)}")
    assert health.alarm_steps or last["loss"] < 0.8 * last["chance"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "fault"), HEALTHY)
def test_runs_that_learn_raise_no_alarm(images, name, fault, seed):
    health = run(name, FAULTS[fault], images, seed=seed, steps=STEPS)
    last = health.history[-1]
    share, step = narrowest(health)
    print(f"{name}, {fault}, seed {seed}: loss {last['loss']:.3f} of {last['chance']:.3f}, {health.summary(STEPS)}")
    print(f"    narrowest: {share:.0%} of the highest rank before, at step {step:.0f}")
    assert health.summary(STEPS) == "well"
    assert last["loss"] < 0.9 * last["chance"]


def narrowest(health: Health) -> tuple[float, float]:
    """Lowest rank of the embeddings as a share of the highest before, and its step."""
    ranks = [(row["step"], row["embedding_rank"]) for row in health.history[1:]]
    highest = accumulate((rank for _, rank in ranks), max)
    return min((rank / high, step) for (step, rank), high in zip(ranks, highest, strict=True))
