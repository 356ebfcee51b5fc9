"""Saves a run at the ends of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medssl.training.checkpoint import is_best
from medssl.training.events import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

    from medssl.training.checkpoint import RunFolder
    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop


class CheckpointWriter(Listener):
    """Saves every ``every`` steps, where a listener judged the step, and when the run ends or is stopped.

    Where the rate is constant before it falls, the last checkpoint before its fall is kept, to prolong the run from.

    ``export`` writes what other people use (the encoder with its card) before each checkpoint; where a validation
    selects, before the best so far. A kill between the two leaves a checkpoint that comes to the same weights again;
    the other order would leave a run that is done with weights of an earlier step. A run that is stopped saves first,
    since it may have little time left.

    Args:
        folder: Of the run.
        every: Steps between checkpoints.
        keep: Steps between checkpoints that are kept for good; None keeps none.
        export: Writes the weights.
        validated: A listener judges; otherwise the smoothed loss does.
        selects: Export the best so far alone, where a listener judges.
        decay_start: Steps that are done when a constant learning rate begins to fall; None where none is constant.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        every: int,
        keep: int | None,
        export: Callable[[], None],
        validated: bool = False,
        selects: bool = True,
        decay_start: int | None = None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.export = export
        self.validated, self.selects = validated, selects
        self.decay_start = decay_start

    def on_start(self, loop: TrainingLoop) -> None:
        """Keeps the checkpoint before the fall of the rate, where a kill came between writing and keeping it."""
        if loop.rank == 0 and loop.progress.step == self.decay_start:
            self.folder.keep_before_decay()

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> None:
        """Saves where it is time to. A stop adds a checkpoint, but no candidate for the best."""
        progress, score = loop.progress, record.measures.score
        keep = self.keep is not None and record.step % self.keep == 0
        before_decay = record.step == self.decay_start
        due = keep or before_decay or record.step % self.every == 0 or record.step >= loop.steps
        progress.judged = score if self.validated else record.smoothed if due else None
        if not (due or loop.is_over or score is not None):
            return
        state, better = loop.state(), not (self.validated and self.selects) or is_best(progress)
        stopped = loop.is_over and record.step < loop.steps
        if better and not stopped:
            self.write(loop)
        if loop.rank == 0:
            self.folder.save(state, progress, keep=keep)
            if before_decay:
                self.folder.keep_before_decay()
        if better and stopped:
            self.write(loop)

    def write(self, loop: TrainingLoop) -> None:
        """Writes the weights, from the first process, with the statistics that belong to them."""
        with loop.as_exported():
            if loop.rank == 0:
                self.export()
