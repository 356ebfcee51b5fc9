"""One optimizer step: micro-batches in; loss, gradient, clipping, update and the objective's own update."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
import torch
from torch import distributed

from medssl.training.optim import Optimization, drop_unmoved, make_optimizer, set_rates
from medssl.types import Loss, Step, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Float
    from torch import Tensor

    from medssl.objectives.base import Objective
    from medssl.training.checkpoint import Progress
    from medssl.types import Batch, Crops, Origin

SMOOTHING = 0.98


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite; the message names the step and the samples that made it."""


@dataclass(frozen=True)
class Feed:
    """Where a step's data come from.

    Attributes:
        crops: Given the first micro-batch, the rank and the number of processes: endless micro-batches of raw crops; a
            fourth number sets how many processes read.
        batch: Turns raw crops into views on a device.
        accumulate: Micro-batches of one step.
        seed: Seed of the whole run.
    """

    crops: Callable[..., Iterable[Crops]]
    batch: Callable[[Crops, torch.device], Batch]
    accumulate: int
    seed: int


class TrainingLoop(lightning.LightningModule):
    """Trains an objective; one call of ``training_step`` is one optimizer step.

    ``progress`` says how far the run is, ``record`` holds the numbers of the last step.
    """

    def __init__(
        self, objective: Objective, feed: Feed, settings: Optimization, *, steps: int, progress: Progress
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective = objective
        self.feed = feed
        self.settings = settings
        self.steps = steps
        self.progress = progress
        self.former: dict[str, Any] | None = None  # state to go on from, taken in when the optimizer exists
        self.stream: Iterator[Crops] = iter(())
        self.record: dict[str, float] = {}
        self.asked_to_stop = 0  # number of a signal that this process got
        self.agreed_to_stop = 0  # number of a signal that any process got before the step was done
        self.gradient_norm = math.nan
        self.gradients_checked = False  # that the loss reaches every parameter, which several processes need
        self.waited = 0.0
        self.origins: list[Origin] = []
        self.validated: bool | None = None  # whether this step was validated; None: the loss judges
        self.measured = False  # whether this step has measures that belong into the log
        self.watch: Callable[[Batch, Loss, Crops], None] | None = None  # sees every micro-batch with its loss
        self.outcome = "encoder.safetensors is written"  # what the last line of the run says

    # --- what Lightning asks for

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer, with its former state when the run goes on."""
        optimizer = make_optimizer(self.objective, self.settings)
        if self.former is not None:
            optimizer.load_state_dict(self.former["optimizer"])
        return optimizer

    def train_dataloader(self) -> Iterable[Iterator[Crops]]:
        """Endless steps, each an iterator over its micro-batches, from the first step that is not done."""
        first = self.progress.step * self.feed.accumulate
        self.stream = iter(self.feed.crops(first, self.global_rank, self.trainer.world_size))
        return Steps(self.stream, self.feed.accumulate)

    def close(self) -> None:
        """Ends the reading processes."""
        getattr(self.stream, "close", lambda: None)()
        self.stream = iter(())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the iterator alone: ``feed.batch`` moves integers to the device and makes views there."""
        return batch

    def on_train_start(self) -> None:
        """Takes in the states of the gradient scaler (float16) and of the callbacks."""
        if self.former is not None:
            self.trainer.precision_plugin.load_state_dict(self.former["scaler"])
            for callback in self.trainer.callbacks:
                state = self.former.get("callbacks", {}).get(type(callback).__name__)
                if state is not None:
                    callback.load_state_dict(state)
            self.former = None

    def state(self) -> dict[str, Any]:
        """Everything that going on needs: weights, optimizer, gradient scaler, what callbacks remember.

        To be called in every process.
        """
        states = {type(callback).__name__: callback.state_dict() for callback in self.trainer.callbacks}
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "scaler": self.trainer.precision_plugin.state_dict(),
            "callbacks": {name: state for name, state in states.items() if state},
        }

    # --- one step

    def training_step(self, micro_batches: Iterator[Crops], batch_idx: int) -> None:
        """One optimizer step.

        Raises:
            NotFinite: The loss or the gradient is NaN or infinite; no weight has changed.
        """
        started = time.monotonic()
        self.waited, self.origins = 0.0, []
        optimizer = self.optimizers()
        rates = set_rates(optimizer.optimizer, self.settings, self.progress.step / max(1, self.steps))
        with torch.autocast(self.device.type, enabled=False):
            losses = self.losses(micro_batches)
            values = torch.stack([loss.total.detach().float() for loss in losses])
            self.agree(values)
            optimizer.step()  # on_before_optimizer_step measures and clips
            optimizer.zero_grad()
            self.objective.after_step(self.step_of(self.origins[-1].samples))
        self.progress.step += 1
        self.note(losses, float(values.mean()), rates, time.monotonic() - started)

    def losses(self, micro_batches: Iterator[Crops]) -> list[Loss]:
        """Loss and gradient of every micro-batch of a step.

        Where the objective counts the terms of its means, all batches are made before the first forward pass, so that
        each is weighed by the counts of the whole step.
        """
        accumulate = self.feed.accumulate
        first = self.micro_batch(micro_batches, 0)
        counts = self.objective.counts(first[1], self.step_of(first[1].origin.samples)) if accumulate > 1 else None
        if counts is None:
            rest = (self.micro_batch(micro_batches, number) for number in range(1, accumulate))
            return [self.micro_step(*one, number, None) for number, one in enumerate(chain([first], rest))]
        batches = [first, *(self.micro_batch(micro_batches, number) for number in range(1, accumulate))]
        for _, batch in batches[1:]:
            more = self.objective.counts(batch, self.step_of(batch.origin.samples))
            assert more is not None
            counts = counts + more
        if self.trainer.world_size > 1:
            distributed.all_reduce(counts)
        counts = counts.double() / accumulate
        return [self.micro_step(*one, number, counts) for number, one in enumerate(batches)]

    def micro_batch(self, micro_batches: Iterator[Crops], number: int) -> tuple[Crops, Batch]:
        """The next micro-batch, on the device."""
        asked = time.monotonic()
        crops = next(micro_batches, None)
        if crops is None:
            message = "the crops came to an end: a loader for pretraining must be endless"
            raise RuntimeError(message)
        self.waited += time.monotonic() - asked
        self.origins.append(crops.origin)
        self.seed_micro_batch(number)
        return crops, self.feed.batch(crops, self.device)

    def seed_micro_batch(self, number: int) -> None:
        """Sets the global random state to what belongs to a micro-batch of this process."""
        micro = self.progress.step * self.feed.accumulate + number
        torch.manual_seed(keyed_seed(self.feed.seed, micro, self.global_rank))

    def micro_step(self, crops: Crops, batch: Batch, number: int, counts: Tensor | None) -> Loss:
        """Loss and gradient of one micro-batch; processes add their gradients up with the last one of a step."""
        self.seed_micro_batch(number)
        alone = getattr(self.trainer.strategy, "block_backward_sync", contextlib.nullcontext)
        with contextlib.nullcontext() if number == self.feed.accumulate - 1 else alone():
            with self.trainer.precision_plugin.forward_context():
                loss: Any = self.objective(batch, replace(self.step_of(batch.origin.samples), counts=counts))
            if not isinstance(loss, Loss):
                name, kind = type(self.objective).__name__, type(loss).__name__
                message = f"{name}.forward returns a {kind}, expected a medssl.types.Loss: try check_objective on it"
                raise UserError(message)
            self.manual_backward(loss.total / self.feed.accumulate)
        if self.watch is not None:
            self.watch(batch, loss, crops)
        return loss

    def step_of(self, samples: tuple[int, ...]) -> Step:
        """The step in hand, for some of its samples."""
        return Step(index=self.progress.step, total=self.steps, seed=self.feed.seed, samples=samples)

    def agree(self, values: Float[Tensor, "micro"]) -> None:
        """Lets all processes learn whether any of them met a loss that is not finite, or was asked to stop.

        Raises:
            NotFinite: In every process, where any process met one.
        """
        finite = torch.isfinite(values)
        flags = torch.stack([(~finite).any().float(), torch.tensor(float(self.asked_to_stop), device=values.device)])
        if self.trainer.world_size > 1:
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        bad, signal = flags.tolist()
        self.agreed_to_stop = int(signal)
        if bad:
            self.blame("loss", [origin for origin, good in zip(self.origins, finite.tolist(), strict=True) if not good])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measures and clips the gradient (unscaled by now); an infinite one is the gradient scaler's business."""
        if self.trainer.world_size > 1 and not self.gradients_checked:
            require_gradients(self.objective)
            self.gradients_checked = True
        drop_unmoved(optimizer)
        parameters = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        limit = math.inf if self.settings.clip is None else self.settings.clip
        self.gradient_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(self.gradient_norm) and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            self.blame("gradient", self.origins)

    def blame(self, what: str, origins: list[Origin]) -> None:
        """Raises NotFinite with the samples and scans of all processes."""
        found = [(sample, scan) for o in origins for sample, scan in zip(o.samples, o.scan_ids, strict=True)]
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            distributed.all_gather_object(shares, found)
            found = [pair for share in shares for pair in share]
        samples = ", ".join(str(sample) for sample, _ in sorted(found))
        scans = ", ".join(sorted({scan for _, scan in found}))
        message = f"the {what} is not finite at step {self.progress.step + 1}: samples {samples} of scans {scans}"
        raise NotFinite(message)

    def note(self, losses: list[Loss], value: float, rates: tuple[float, float], seconds: float) -> None:
        """Keeps the numbers of the step that was done for the log, and follows the smoothed loss."""
        former = self.progress.smoothed
        smoothed = value if former is None else SMOOTHING * former + (1 - SMOOTHING) * value
        self.progress.smoothed = smoothed
        if self.validated is None:
            self.progress.judged = smoothed
        names = sorted({name for loss in losses for name in loss.terms} - {"loss"})
        terms = {
            name: sum(float(loss.terms[name]) for loss in losses if name in loss.terms)
            / sum(name in loss.terms for loss in losses)
            for name in names
        }
        self.record = {"step": self.progress.step, "loss": value, "loss_smoothed": smoothed} | terms
        self.record |= {"learning_rate": rates[0], "weight_decay": rates[1], "gradient_norm": self.gradient_norm}
        self.record |= {"seconds": seconds, "waiting": self.waited / max(seconds, 1e-9)}
        self.record["samples_per_second"] = self.progress.global_batch / max(seconds, 1e-9)


class Steps:
    """Endless steps over a stream of micro-batches; a step reads its micro-batches only when asked for them."""

    def __init__(self, crops: Iterator[Crops], accumulate: int) -> None:
        self.crops = crops
        self.accumulate = accumulate

    def __iter__(self) -> Iterator[Iterator[Crops]]:
        while True:
            yield islice(self.crops, self.accumulate)


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
