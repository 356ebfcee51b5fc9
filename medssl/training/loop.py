"""The training loop: micro-batches, loss, gradient, clipping, update, the objective's own update, record, listeners."""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from medssl.training.events import StepRecord, Timing
from medssl.training.optim import Optimization, clip_gradients, drop_unmoved, make_optimizer, set_rates
from medssl.training.stop_signals import StopSignals
from medssl.types import Loss, Step, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from jaxtyping import Float
    from lightning.fabric import Fabric
    from torch import Tensor

    from medssl.objectives.base import Objective
    from medssl.training.batch_source import BatchSource
    from medssl.training.checkpoint import Progress
    from medssl.training.events import Listener
    from medssl.training.whole_image_statistics import WholeImageStatistics
    from medssl.types import Batch, Crops, Origin


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite; the message names the step and the samples that made it."""


@dataclass(frozen=True)
class MicroBatch:
    """Number ``number`` of the micro-batches of a step, with the counts of the whole step where the loss has some."""

    number: int
    crops: Crops
    batch: Batch
    counts: Tensor | None = None


class TrainingLoop:
    """Trains an objective; ``run`` takes the steps that are left.

    Attributes:
        objective: What is trained.
        source: Where micro-batches come from.
        settings: How weights move.
        steps: Optimizer steps of the whole run.
        horizon: Steps that warm-up, weight decay and the objective's own schedules are shares of.
        progress: How far the run is.
        statistics: Measures the batch-norm statistics of the modules that are written; None leaves them.
        stopped_by: Number of a signal that any process got before the last step was done; 0 where none did.
    """

    fabric: Fabric
    listeners: Sequence[Listener]
    optimizer: Any  # a torch.optim.Optimizer, as Fabric wraps it
    network: Any  # the objective, as Fabric wraps it

    def __init__(
        self, objective: Objective, source: BatchSource, settings: Optimization, *, steps: int, progress: Progress
    ) -> None:
        self.objective = objective
        self.source = source
        self.settings = settings
        self.steps, self.horizon = steps, settings.horizon(steps)
        self.progress = progress
        self.signals = StopSignals()
        self.stopped_by = 0
        self.waited = 0.0
        self.origins: list[Origin] = []
        self.statistics: WholeImageStatistics | None = None
        self.gradients_checked = False  # that the loss reaches every parameter, which several processes need

    def run(self, fabric: Fabric, listeners: Sequence[Listener], former: dict[str, Any] | None = None) -> None:
        """Takes all steps that are left, or stops after the step in which any process got a signal.

        Args:
            fabric: Device, precision and processes.
            listeners: Are called after each step in this order; they log, measure, judge and save.
            former: State of a former process (``state``), to go on from.

        Raises:
            NotFinite: The loss or the gradient is NaN or infinite.
        """
        self.set_up(fabric, listeners, former)
        first = self.progress.step * self.source.accumulate
        crops = iter(self.source.crops(first, self.rank, self.world_size))
        try:
            self.signals.listen()
            for listener in listeners:
                listener.on_start(self)
            while not self.is_over:
                record = self.step(crops)
                for listener in listeners:
                    record = record.with_measures(listener.on_step(self, record))
        finally:
            for part in (crops, *listeners, self.signals):
                getattr(part, "close", lambda: None)()

    def set_up(self, fabric: Fabric, listeners: Sequence[Listener], former: dict[str, Any] | None) -> None:
        """Moves the objective to its device, makes the optimizer and loads the state of a former process."""
        from medssl.training.fabric import ForwardPass

        self.fabric, self.listeners = fabric, listeners
        self.network = fabric.setup_module(ForwardPass(self.objective))
        optimizer = make_optimizer(self.objective, self.settings)
        if former is not None:
            optimizer.load_state_dict(former["optimizer"])
            fabric.strategy.precision.load_state_dict(former["scaler"])
            for listener in listeners:
                if listener.name in former["listeners"]:
                    listener.load_state_dict(former["listeners"][listener.name])
        self.optimizer = fabric.setup_optimizers(optimizer)

    # --- what listeners read

    @property
    def device(self) -> torch.device:
        """Where the objective computes."""
        device: torch.device = self.fabric.device
        return device

    @property
    def rank(self) -> int:
        """Number of this process among all."""
        return int(self.fabric.global_rank)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.fabric.world_size)

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or a signal stopped the run."""
        return self.progress.step >= self.steps or self.stopped_by > 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""
        context: AbstractContextManager[Any] = self.fabric.autocast()
        return context

    def as_exported(self) -> AbstractContextManager[None]:
        """Sets the batch-norm statistics with which modules are probed and written; to be entered in every process."""
        return nullcontext() if self.statistics is None else self.statistics.applied(self)

    def step_of(self, samples: tuple[int, ...]) -> Step:
        """The step in hand, for some of its samples."""
        return Step(index=self.progress.step, total=self.horizon, seed=self.source.seed, samples=samples)

    def state(self) -> dict[str, Any]:
        """Everything that going on needs: weights, optimizer, gradient scaler, what listeners remember.

        To be called in every process.
        """
        states = {listener.name: listener.state_dict() for listener in self.listeners if listener.name}
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "listeners": {name: state for name, state in states.items() if state},
        }

    # --- one step

    def step(self, crops: Iterator[Crops]) -> StepRecord:
        """Takes one optimizer step.

        Raises:
            NotFinite: The loss or the gradient is NaN or infinite; no weight has changed.
        """
        started = time.monotonic()
        self.waited, self.origins = 0.0, []
        done = self.progress.step
        progress, early = done / max(1, self.steps), done / max(1, self.horizon)
        rates = set_rates(self.optimizer.optimizer, self.settings, progress, early)
        losses = [self.backward(micro_batch) for micro_batch in self.micro_batches(crops)]
        values = torch.stack([loss.total.detach().float() for loss in losses])
        self.agree(values)
        norm = self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step(self.step_of(self.origins[-1].samples))
        self.progress.step += 1
        loss = float(values.mean())
        smoothed = self.progress.smooth(loss)
        timing = Timing(time.monotonic() - started, self.waited, self.progress.global_batch)
        return StepRecord(self.progress.step, loss, smoothed, mean_terms(losses), rates, norm, timing)

    def micro_batches(self, crops: Iterator[Crops]) -> Iterator[MicroBatch]:
        """The micro-batches of a step, each made when the one before is done.

        Where the objective counts the terms of its means, all are made before the first forward pass, so that each is
        weighed by the counts of the whole step.
        """
        accumulate = self.source.accumulate
        rest = (self.micro_batch(crops, number) for number in range(accumulate))
        first = next(rest)
        counts = self.counts_of(first) if accumulate > 1 else None
        if counts is None:
            yield first
            yield from rest
            return
        micro_batches = [first, *rest]
        for micro_batch in micro_batches[1:]:
            more = self.counts_of(micro_batch)
            assert more is not None
            counts = counts + more
        if self.world_size > 1:
            distributed.all_reduce(counts)
        counts = counts.double() / accumulate
        yield from (replace(micro_batch, counts=counts) for micro_batch in micro_batches)

    def counts_of(self, micro_batch: MicroBatch) -> Tensor | None:
        """What the objective counts in a micro-batch, with the random state and precision of its forward pass."""
        self.seed_micro_batch(micro_batch.number)
        with self.autocast():
            return self.objective.counts(micro_batch.batch, self.step_of(micro_batch.batch.origin.samples))

    def micro_batch(self, crops: Iterator[Crops], number: int) -> MicroBatch:
        """The next micro-batch, on the device."""
        started = time.monotonic()
        raw = next(crops, None)
        if raw is None:
            message = "the crops came to an end: a loader for pretraining must be endless"
            raise RuntimeError(message)
        self.waited += time.monotonic() - started
        self.origins.append(raw.origin)
        self.seed_micro_batch(number)
        return MicroBatch(number, raw, self.source.batch(raw, self.device))

    def seed_micro_batch(self, number: int) -> None:
        """Sets the global random state to what belongs to a micro-batch of this process."""
        micro = self.progress.step * self.source.accumulate + number
        torch.manual_seed(keyed_seed(self.source.seed, micro, self.rank))

    def backward(self, micro: MicroBatch) -> Loss:
        """Loss and gradient of one micro-batch; processes add their gradients up with the last one of a step."""
        from medssl.training.fabric import ForwardCall

        self.seed_micro_batch(micro.number)
        step = self.step_of(micro.batch.origin.samples)
        logged = any(listener.reads_terms(self, self.progress.step + 1) for listener in self.listeners)
        step = replace(step, counts=micro.counts, micro_batches=self.source.accumulate, logged=logged)
        call = ForwardCall(micro.batch, step)
        with self.fabric.no_backward_sync(self.network, enabled=micro.number < self.source.accumulate - 1):
            self.network(call)
            loss = call.loss
            if not isinstance(loss, Loss):
                name, kind = type(self.objective).__name__, type(loss).__name__
                message = f"{name}.forward returns a {kind}, expected a medssl.types.Loss: try check_objective on it"
                raise UserError(message)
            self.fabric.backward(loss.total / self.source.accumulate)
        for listener in self.listeners:
            listener.on_micro_batch(micro.batch, loss, micro.crops)
        return loss

    def agree(self, values: Float[Tensor, "micro"]) -> None:
        """Lets all processes know whether any of them met a loss that is not finite, or got a signal.

        Raises:
            NotFinite: In every process, where any process met one.
        """
        finite = torch.isfinite(values)
        received = torch.tensor(float(self.signals.received), device=values.device)
        flags = torch.stack([(~finite).any().float(), received])
        if self.world_size > 1:
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        bad, signal = flags.tolist()
        self.stopped_by = int(signal)
        if bad:
            self.blame("loss", [origin for origin, good in zip(self.origins, finite.tolist(), strict=True) if not good])

    def clip(self) -> float:
        """Clips the gradient, as the objective leaves it, and returns its norm before clipping.

        An infinite one is left to the gradient scaler.

        Raises:
            NotFinite: The norm is not finite, and no gradient scaler would skip the step.
        """
        optimizer, precision = self.optimizer.optimizer, self.fabric.strategy.precision
        precision.unscale_gradients(optimizer)
        if self.world_size > 1 and not self.gradients_checked:
            require_gradients(self.objective)
            self.gradients_checked = True
        drop_unmoved(optimizer)
        self.objective.before_step(self.step_of(self.origins[-1].samples))
        parameters = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        norm = clip_gradients(parameters, self.settings)
        if not math.isfinite(norm) and getattr(precision, "scaler", None) is None:
            self.blame("gradient", self.origins)
        return norm

    def blame(self, what: str, origins: list[Origin]) -> None:
        """Raises NotFinite with the samples and scans of all processes."""
        pairs = [(sample, scan) for o in origins for sample, scan in zip(o.samples, o.scan_ids, strict=True)]
        if self.world_size > 1:
            shares: list[Any] = [None] * self.world_size
            distributed.all_gather_object(shares, pairs)
            pairs = [pair for share in shares for pair in share]
        samples = ", ".join(str(sample) for sample, _ in sorted(pairs))
        scans = ", ".join(sorted({scan for _, scan in pairs}))
        message = f"the {what} is not finite at step {self.progress.step + 1}: samples {samples} of scans {scans}"
        raise NotFinite(message)


def mean_terms(losses: Sequence[Loss]) -> dict[str, float]:
    """Mean of each term but the loss itself, over the micro-batches that have it."""
    names = sorted({name for loss in losses for name in loss.terms} - {"loss"})
    return {
        name: sum(float(loss.terms[name]) for loss in losses if name in loss.terms)
        / sum(name in loss.terms for loss in losses)
        for name in names
    }


def require_gradients(objective: Objective) -> None:
    """Refuses trained parameters that the loss does not reach: processes would wait for their gradients for ever.

    Raises:
        UserError: Names them.
    """
    trained = [(name, parameter) for name, parameter in objective.named_parameters() if parameter.requires_grad]
    without = [name for name, parameter in trained if parameter.grad is None]
    if without:
        shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        message = (
            f"the loss of {type(objective).__name__} gives {len(without)} of {len(trained)} parameters no gradient "
            f"({shown}), and several processes need one for each: use them in forward, or set requires_grad to False"
        )
        raise UserError(message)


def keyed_seed(*key: int) -> int:
    """A seed that depends on every number of a key."""
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
