"""Shows how far a run is, and when it will end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from medssl.training.events import Listener

if TYPE_CHECKING:
    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop


log = logging.getLogger(__name__)


class ProgressDisplay(Listener):
    """A progress bar (on a terminal) or twenty lines a run (elsewhere), and the predicted end after ten steps."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.started = 0.0
        self.first = 0

    def on_start(self, loop: TrainingLoop) -> None:
        """Opens the bar in the first process."""
        if loop.rank == 0:
            self.started, self.first = time.monotonic(), loop.progress.step
            self.bar = tqdm(total=loop.steps, initial=self.first, unit="step", disable=None, smoothing=0.1)

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> None:
        """Moves the bar."""
        if self.bar is None:
            return
        waiting = record.timing.waiting
        self.bar.set_postfix({"smoothed loss": f"{record.smoothed:.4f}", "waiting": f"{waiting:.0%}"}, refresh=False)
        self.bar.update()
        done = record.step - self.first
        pace = (time.monotonic() - self.started) / done
        left = pace * (loop.steps - record.step)
        if done == 10 and record.step < loop.steps:
            at = time.strftime("%H:%M", time.localtime(time.time() + left))
            log.info(f"{pace:.3g} s a step, {waiting:.0%} of it waiting for data: done in {duration(left)}, at {at}")
        elif self.bar.disable and record.step % max(1, loop.steps // 20) == 0:
            log.info(
                f"step {record.step}/{loop.steps}  smoothed loss {record.smoothed:.4f}  "
                f"{pace:.3g} s a step, {duration(left)} left"
            )

    def close(self) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """A duration for people: ``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
