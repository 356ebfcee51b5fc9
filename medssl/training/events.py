"""What the training loop reports after each step, and what its listeners return."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from medssl.training.loop import TrainingLoop
    from medssl.types import Batch, Crops, Loss


@dataclass(frozen=True)
class Measures:
    """What a listener measured at a step.

    Attributes:
        values: Numbers for the row of the log, by name; a step with measures always has a row.
        score: What the best checkpoint is chosen by, the lower the better; None where the listener judges nothing.
    """

    values: dict[str, float] = field(default_factory=dict)
    score: float | None = None

    def __or__(self, other: Measures | None) -> Measures:
        """Both together; of two scores the later one."""
        if other is None:
            return self
        return Measures(self.values | other.values, self.score if other.score is None else other.score)


@dataclass(frozen=True)
class Timing:
    """How long a step took.

    Attributes:
        seconds: Wall-clock time of the step.
        waited: Seconds of it in which this process waited for data.
        samples: Samples of the step, of all processes and micro-batches.
    """

    seconds: float
    waited: float
    samples: int

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / max(self.seconds, 1e-9)

    @property
    def samples_per_second(self) -> float:
        """Samples of all processes in a second."""
        return self.samples / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step that was done.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss of the micro-batches of this process.
        smoothed: Exponentially smoothed loss.
        terms: Mean of each other term of the loss.
        rates: Learning rate and weight decay.
        gradient_norm: Norm of the gradient before clipping.
        timing: How long it took.
        measures: What the listeners so far measured.
    """

    step: int
    loss: float
    smoothed: float
    terms: dict[str, float]
    rates: tuple[float, float]
    gradient_norm: float
    timing: Timing
    measures: Measures = field(default_factory=Measures)

    def with_measures(self, measures: Measures | None) -> StepRecord:
        """The record with what another listener measured."""
        return self if measures is None else replace(self, measures=self.measures | measures)

    def row(self) -> dict[str, float]:
        """All numbers by name, as the log holds them."""
        return (
            {"step": self.step, "loss": self.loss, "loss_smoothed": self.smoothed}
            | self.terms
            | {"learning_rate": self.rates[0], "weight_decay": self.rates[1], "gradient_norm": self.gradient_norm}
            | {"seconds": self.timing.seconds, "waiting": self.timing.waiting}
            | {"samples_per_second": self.timing.samples_per_second}
            | self.measures.values
        )


class Listener:
    """Is called around the steps of a training; overrides what it needs.

    Listeners are called in their order in every process, so that they may communicate. They read the loop and change
    nothing of it.

    Attributes:
        name: Key of its state in checkpoints; empty where it has none.
        judges: Whether its scores choose the best checkpoint in the place of the smoothed loss.
        selects: Whether the weights of the best checkpoint are the ones to write; otherwise those of each checkpoint
            are, up to the last.
    """

    name: ClassVar[str] = ""
    judges: ClassVar[bool] = False
    selects: bool = False

    def on_start(self, loop: TrainingLoop) -> None:
        """Called before the first step of this process, when the state of a former process was loaded."""

    def on_micro_batch(self, batch: Batch, loss: Loss, crops: Crops) -> None:
        """Called when the gradient of a micro-batch was computed."""

    def reads_terms(self, loop: TrainingLoop, step: int) -> bool:
        """Whether it needs all terms of the loss of a step, from 1, also those that cost time."""
        return False

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> Measures | None:
        """Called when a step was done, with what earlier listeners measured."""

    def summary(self, step: int) -> str:
        """A part of the last line of a run; empty where there is nothing to say."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on; called in every process."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what ``state_dict`` returned in a former process."""

    def close(self) -> None:
        """Called at the end, also after an error."""
