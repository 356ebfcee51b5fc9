"""Says while pretraining goes on whether it works: measures for the log, and one line for each thing that is wrong."""

from __future__ import annotations

import logging
import math
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from medssl.metrics import health
from medssl.metrics.embedding_measures import describe
from medssl.ops.collectives import gather
from medssl.training.events import Listener, Measures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop
    from medssl.types import Batch, Crops, Loss

log = logging.getLogger(__name__)

WINDOW = 256  # embeddings that are measured together: the newest of all micro-batches and processes
CALM = 3  # measurements without an alarm after which it is over
CONSTANT = 1e-4  # greatest difference of values in a view that holds nothing
LOGGED = ("embedding_rank", "embedding_spread", "embedding_variation", "embedding_dead", "input_flat")
APART = {"step", "seconds", "waiting", "samples_per_second", "loss_smoothed", "weight_decay"}  # of no use to a verdict


class Health(Listener):
    """Measures the embeddings every ``every`` steps, judges the run by ``evaluate.health`` and tells.

    It draws nothing, and neither weights nor gradients pass through it. Everything it remembers is in the checkpoints,
    so that a run that was stopped measures and tells what an uninterrupted one does. An alarm stops nothing, and is
    told once until it was absent in three measurements.
    """

    name = "health"

    def __init__(self, *, every: int, settled: int) -> None:
        self.every = every
        self.settled = settled
        self.pending: list[tuple[Tensor, ...]] = []  # sample numbers, what is flat, embeddings: of this process alone
        self.window: tuple[Tensor, ...] = ()  # the same of all processes, on the CPU
        self.recent: list[dict[str, float]] = []  # the numbers of each step since the last measurement
        self.history: list[dict[str, float]] = []
        self.alarm_steps: dict[str, list[int]] = {}  # kind of an alarm: first step and last step of each time

    # --- what the loop calls

    def reads_terms(self, loop: TrainingLoop, step: int) -> bool:
        """Of the steps at which it measures: these have a row in the log."""
        return step % self.every == 0

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> Measures | None:
        """Measures where it is time to; the first process says what is new."""
        due = record.step % self.every == 0 or record.step >= loop.steps
        values, alarms = self.follow(record.row(), due=due)
        for alarm in alarms if loop.rank == 0 else ():
            log.info(f"health, step {record.step}: {alarm.message}")
        return Measures(values) if due else None

    def state_dict(self) -> dict[str, Any]:
        """What going on needs; to be called in every process."""
        self.collect()
        return {"window": list(self.window), "recent": self.recent, "history": self.history, "told": self.alarm_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a checkpoint was written."""
        self.window = tuple(state_dict["window"])
        self.recent, self.history = list(state_dict["recent"]), list(state_dict["history"])
        self.alarm_steps = {kind: list(steps) for kind, steps in state_dict["told"].items()}

    # --- collecting

    @torch.no_grad()
    def on_micro_batch(self, batch: Batch, loss: Loss, crops: Crops | None = None) -> None:
        """Keeps the embeddings of a micro-batch, and which of its samples hold nothing; waits for no device."""
        flat = torch.stack([is_flat(view.image, view.valid) for view in batch.views]).float().mean(0)
        if crops is not None:
            flat = flat.maximum(holds_nothing(crops).to(flat, non_blocking=True))
        samples = torch.tensor(batch.origin.samples, device=flat.device)
        rows = flat.new_zeros(len(flat), 0) if loss.embedding is None else loss.embedding.detach().float()
        self.pending.append((samples, flat, rows))
        while sum(len(part[0]) for part in self.pending[1:]) >= WINDOW:
            self.pending.pop(0)

    def collect(self) -> None:
        """Brings the rows of all processes together, in the order of their samples."""
        if not self.pending:
            return
        new = [gather(torch.cat(parts)).cpu() for parts in zip(*self.pending, strict=True)]
        order = new[0].argsort()
        joined = [part[order] for part in new]
        if self.window:
            joined = [torch.cat(pair) for pair in zip(self.window, joined, strict=True)]
        self.window, self.pending = tuple(part[-WINDOW:].clone() for part in joined), []

    # --- measuring and judging

    def follow(self, row: dict[str, float], *, due: bool) -> tuple[dict[str, float], list[health.Alarm]]:
        """Takes in the numbers of a step; where it is due returns measures, and alarms that are new."""
        self.recent.append({name: x for name, x in row.items() if name not in APART and math.isfinite(x)})
        if not self.history:  # the first step tells what an untrained network costs
            self.history = [{**self.recent[0], "step": row["step"]}]
        if not due:
            return {}, []
        values = {name: [row[name] for row in self.recent if name in row] for name in {*chain(*self.recent)}}
        now = {name: fmean(held) for name, held in sorted(values.items())} | {"step": row["step"], **self.measure()}
        self.recent = []
        self.history = [dict(kept) for kept in health.shortened([*self.history, now])]
        alarms = health.alarms(self.history, settled=self.settled)
        measures = {name: now[name] for name in LOGGED if name in now} | {"alarms": float(len(alarms))}
        return measures, [alarm for alarm in alarms if self.is_new(alarm.kind, int(row["step"]))]

    def measure(self) -> dict[str, float]:
        """Measures of the window."""
        self.collect()
        _, flat, rows = self.window
        measures = {"input_flat": float(flat.mean())}
        if rows.shape[1] and len(rows) > 1:
            measures |= describe(rows.numpy()) | {"embedding_width": float(rows.shape[1])}
        return measures

    def is_new(self, kind: str, step: int) -> bool:
        """Notes an alarm; whether it has not been told yet, or was over."""
        steps = self.alarm_steps.setdefault(kind, [])
        new = not steps or step - steps[-1] > CALM * self.every
        if new:
            steps += [step, step]
        steps[-1] = step
        return new

    def summary(self, step: int) -> str:
        """What the last line of a run says."""
        return f"health: {self.verdict(step)}"

    def verdict(self, step: int) -> str:
        """Whether the training works, and what does not."""
        if not self.alarm_steps and (count := len(self.history) - 1) < health.FEWEST:
            return (
                f"not judged: {max(0, count)} of the {health.FEWEST} measurements that this takes (a lower "
                "training.output.health_every gives more)"
            )
        if not self.alarm_steps:
            young = step < self.settled and bool(self.history) and "chance" in self.history[0]
            return f"well so far (the loss is judged from step {self.settled} on)" if young else "well"
        times = [
            f"{kind} (steps {first} to {last})"
            for kind, steps in self.alarm_steps.items()
            for first, last in zip(steps[::2], steps[1::2], strict=True)
        ]
        return f"not well: {', '.join(times)}"


def settled_after(steps: int, warmup: float) -> int:
    """Step from which on a loss must have moved: some hundred steps after the warm-up of the learning rate."""
    return round(warmup * steps) + health.SETTLING


def holds_nothing(crops: Crops) -> Bool[Tensor, "B"]:
    """Which raw crops hold one value only, up to 0.0001 after normalizing, in every channel: noise would hide it."""
    codes = crops.image.flatten(2)
    ends = torch.stack((codes.amin(2), codes.amax(2)), -1).float()  # all others lie between, also when they are clipped
    scale, offset, low, high, _, divisor = crops.intensity.cpu()[..., None].unbind(2)
    values = (ends.cpu() * scale + offset).clamp(low, high) / divisor
    return ((values[..., 1] - values[..., 0]).abs() <= CONSTANT).all(1)


def is_flat(image: Float[Tensor, "B C *s"], valid: Bool[Tensor, "B 1 *s"]) -> Bool[Tensor, "B"]:
    """Which samples hold one value only, up to 0.0001, in the valid voxels of every channel."""
    high = image.masked_fill(~valid, -torch.inf).flatten(2).amax(2)
    low = image.masked_fill(~valid, torch.inf).flatten(2).amin(2)
    return (high - low <= CONSTANT).all(1)
