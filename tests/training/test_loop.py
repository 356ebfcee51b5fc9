"""The loop without the command line: precision, events, what stops it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import toys
from torch import nn

from medssl.data.store.store import Store
from medssl.objectives.base import Objective
from medssl.training.batch_source import batches_of_store
from medssl.training.events import Listener, Measures
from medssl.training.health_monitor import Health
from medssl.training.loop import NotFinite, TrainingLoop
from medssl.training.metrics_log import MetricsLog
from medssl.training.optim import Optimization
from medssl.training.resume import first_progress
from medssl.training.settings import Training
from medssl.types import Batch, Loss, Step, ViewPlan, ViewSpec

TRAINING = Training(steps=4, batch_size=2, accumulate=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store.open(toys.toy_store(tmp_path_factory.mktemp("loop") / "store"))


def fabric_of(precision: str):
    from lightning.fabric import Fabric

    from medssl.training.fabric import precision_plugin

    return Fabric(accelerator="cpu", devices=1, plugins=[precision_plugin(precision, "cpu")])


def loop_of(store: Store, objective: Objective | None = None) -> TrainingLoop:
    torch.manual_seed(0)
    objective = objective or toys.ToyObjective(toys.ToyEncoder(), view=ViewSpec((8, 8, 6)))
    source = batches_of_store(store, objective.needs, TRAINING, workers=0, split=None)
    return TrainingLoop(objective, source, Optimization(), steps=4, progress=first_progress(TRAINING, "store"))


class Recorder(Listener):
    """Remembers what it is called with, and measures the number of its calls."""

    name = "recorder"

    def __init__(self, stop_at: int = 0) -> None:
        self.calls, self.records, self.restored, self.stop_at = [], [], {}, stop_at

    def on_start(self, loop):
        self.calls.append("start")

    def on_micro_batch(self, batch, loss, crops):
        assert batch.origin.samples == crops.origin.samples
        self.calls.append("micro-batch")

    def on_step(self, loop, record):
        self.calls.append("step")
        self.records.append(record)
        if record.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return Measures({f"calls_of_{self.name}": float(len(self.records))})

    def state_dict(self):
        return {"steps": len(self.records)}

    def load_state_dict(self, state_dict):
        self.restored = state_dict

    def close(self):
        self.calls.append("close")


class Second(Recorder):
    name = "second"


def test_listeners_are_called_in_their_order_with_what_others_measured(store):
    first, second = Recorder(), Second()
    loop = loop_of(store)
    loop.run(fabric_of("fp32"), [first, second])
    assert first.calls == ["start", *["micro-batch", "micro-batch", "step"] * 4, "close"] == second.calls
    assert [record.step for record in first.records] == [1, 2, 3, 4]
    assert [record.measures.values for record in first.records] == [{}] * 4
    assert second.records[2].measures.values == {"calls_of_recorder": 3.0}
    assert loop.is_over
    assert loop.stopped_by == 0
    assert loop.state()["listeners"] == {"recorder": {"steps": 4}, "second": {"steps": 4}}


def test_a_signal_is_heeded_when_the_next_step_is_done(store):
    recorder, before = Recorder(stop_at=2), signal.getsignal(signal.SIGUSR1)
    loop = loop_of(store)
    loop.run(fabric_of("fp32"), [recorder])
    assert loop.stopped_by == signal.SIGUSR1
    assert loop.progress.step == len(recorder.records) == 3
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_goes_on_to_the_same_bits(store, precision):
    straight = loop_of(store)
    straight.run(fabric_of(precision), [])
    first, recorder = loop_of(store), Recorder()
    first.run(fabric_of(precision), [Recorder(stop_at=1)])
    state, second = first.state(), loop_of(store)
    second.objective.load_state_dict(state["objective"])
    second.progress = replace(first.progress)
    second.run(fabric_of(precision), [recorder], state)
    assert recorder.restored == {"steps": 2}
    assert [record.step for record in recorder.records] == [3, 4]
    expected, got = straight.state(), second.state()
    assert expected["scaler"] == got["scaler"]
    assert bool(expected["scaler"]) == (precision == "fp16")
    for name, value in expected["objective"].items():
        assert torch.equal(value, got["objective"][name]), name


class Steep(Objective):
    """Its second step has a finite loss with an infinite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.needs = toys.ToyEncoder(), ViewPlan((ViewSpec((8, 8, 6)),))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch, step: Step) -> Loss:
        zero = sum(parameter.sum() for parameter in self.encoder.parameters()) * 0
        total = self.weight * 1e-3 + zero
        if step.index == 1:
            total = total + (self.weight - self.weight.detach()).sqrt()
        return Loss(total, {"loss": total.detach()})


def test_an_infinite_gradient_stops_a_run_in_single_precision_and_names_the_samples(store):
    loop, recorder = loop_of(store, Steep()), Recorder()
    with pytest.raises(NotFinite, match=r"the gradient is not finite at step 2: samples 4, 5, 6, 7 of scans scan"):
        loop.run(fabric_of("fp32"), [recorder])
    assert recorder.calls[-1] == "close"
    assert loop.progress.step == 1


def test_the_gradient_scaler_skips_a_step_with_an_infinite_gradient(store):
    loop, recorder = loop_of(store, Steep()), Recorder()
    scales = []

    class Scale(Listener):
        def on_step(self, loop, record):
            scales.append((loop.state()["scaler"]["scale"], float(loop.objective.weight.detach())))

    loop.run(fabric_of("fp16"), [recorder, Scale()])
    assert [scale for scale, _ in scales] == [65536.0, 32768.0, 32768.0, 32768.0]
    weights = [weight for _, weight in scales]
    assert weights[0] == weights[1] != weights[2]
    assert not torch.isfinite(torch.tensor(recorder.records[1].gradient_norm))


class Held(Objective):
    """Holds a weight in the first two steps; notes what the hook finds and for which step it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.needs = toys.ToyEncoder(), ViewPlan((ViewSpec((8, 8, 6)),))
        self.weight, self.held = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.calls: list[tuple[int, float]] = []

    def forward(self, batch: Batch, step: Step) -> Loss:
        zero = sum(parameter.sum() for parameter in self.encoder.parameters()) * 0
        total = 3 * self.weight + 4 * self.held + zero
        return Loss(total, {"loss": total.detach()})

    def before_step(self, step: Step) -> None:
        self.calls.append((step.index, float(self.held.grad)))
        if step.progress < 0.5:
            self.held.grad.zero_()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_hook_before_a_step_finds_whole_gradients_and_clipping_what_it_leaves(store, precision):
    """Both micro-batches are in, the gradient scaler's factor is not; the norm is that of what the hook leaves."""
    loop, recorder = loop_of(store, Held()), Recorder()
    held = []

    class Watch(Listener):
        def on_step(self, loop, record):
            held.append(float(loop.objective.held.detach()))

    loop.run(fabric_of(precision), [recorder, Watch()])
    assert loop.objective.calls == [(0, 4.0), (1, 4.0), (2, 4.0), (3, 4.0)]
    assert [record.gradient_norm for record in recorder.records] == pytest.approx([3.0, 3.0, 5.0, 5.0])
    assert held[0] == held[1] == 1
    assert 1 > held[2] > held[3]


def test_half_precision_casts_neither_inputs_nor_gradients_of_shared_weights():
    """A weight that is used twice: its gradient is a sum of two, in single precision."""
    from medssl.training.fabric import precision_plugin

    plugin = precision_plugin("bf16", "cpu")
    affine = torch.eye(4, dtype=torch.float64)
    assert plugin.convert_input({"affine": affine})["affine"] is affine
    assert plugin.convert_output(affine) is affine
    torch.manual_seed(0)
    weight, inputs = nn.Parameter(torch.randn(8, 8)), torch.randn(2, 5, 8)

    def gradient(*used: int) -> torch.Tensor:
        weight.grad = None
        with plugin.forward_context():
            outputs = [inputs[number] @ weight for number in used]
        sum(output.float().pow(2).sum() for output in outputs).backward()
        return weight.grad.clone()

    assert torch.equal(gradient(0, 1), gradient(0) + gradient(1))


class Reader(Listener):
    """Reads the terms of the second step."""

    def reads_terms(self, loop, step):
        return step == 2


def test_a_step_says_whether_its_terms_are_read(store, monkeypatch):
    seen, inner = [], toys.ToyObjective.forward

    def forward(self, batch, step):
        seen.append(step.logged)
        return inner(self, batch, step)

    monkeypatch.setattr(toys.ToyObjective, "forward", forward)
    loop_of(store).run(fabric_of("fp32"), [Recorder(), Reader()])
    assert seen == [False, False, True, True, False, False, False, False]  # two micro-batches a step


@pytest.mark.parametrize(
    ("listener", "steps"), [(MetricsLog(Path(), every=3), [1, 3, 6, 8]), (Health(every=4, settled=0), [4, 8])]
)
def test_the_log_and_health_read_the_terms_of_their_rows(listener, steps):
    loop = SimpleNamespace(steps=8)
    assert [step for step in range(1, 9) if listener.reads_terms(loop, step)] == steps
