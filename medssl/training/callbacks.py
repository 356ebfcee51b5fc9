"""What happens around the steps: checkpoints, signals, logs, the progress bar, pictures."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from typing import IO, TYPE_CHECKING, Any

import lightning.pytorch as lightning
import torch
from tqdm import tqdm

from medssl.io.atomic_write import atomic_write
from medssl.io.links import open_to_append
from medssl.training.checkpoint import is_best
from medssl.training.pictures import draw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medssl.training.checkpoint import RunFolder
    from medssl.training.loop import TrainingLoop
    from medssl.types import Crops


class Stop(lightning.Callback):
    """Ends the run after the last step, and after the step during which any process got a signal."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM sends SIGUSR1 before time is up

    def __init__(self) -> None:
        self.module: TrainingLoop | None = None
        self.former: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: TrainingLoop) -> None:
        """Listens, after Lightning has put up its own ears."""
        self.module = pl_module
        self.former = {number: signal.signal(number, self.heard) for number in self.SIGNALS}

    def heard(self, number: int, frame: object) -> None:
        """Remembers the signal; a second Ctrl-C does not wait for the step."""
        if self.module is None or (number == signal.SIGINT and self.module.asked_to_stop == signal.SIGINT):
            raise KeyboardInterrupt
        self.module.asked_to_stop = number

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: TrainingLoop, *_: object) -> None:
        """Tells the trainer when there is nothing more to do."""
        if pl_module.agreed_to_stop or pl_module.progress.step >= pl_module.steps:
            trainer.should_stop = True

    def close(self) -> None:
        """Gives the signals back."""
        while self.former:
            number, handler = self.former.popitem()
            signal.signal(number, handler)


class Checkpoints(lightning.Callback):
    """Saves at the ends of steps: every ``every`` of them and when the run ends or is stopped.

    ``export`` writes what other people use (the encoder with its card) before each checkpoint; where a validation
    judges, before the best so far. A kill between the two leaves a checkpoint that comes to the same weights again; the
    other order would leave a run that is done with weights of an earlier step.
    """

    def __init__(self, folder: RunFolder, *, every: int, keep: int | None, export: Callable[[], None]) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.export = export

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: TrainingLoop, *_: object) -> None:
        """Saves where it is time to."""
        step = pl_module.progress.step
        keep = self.keep is not None and step % self.keep == 0
        due = keep or step % self.every == 0 or step >= pl_module.steps
        if not (due or pl_module.validated):
            pl_module.progress.judged = None  # a stop adds a checkpoint, and must not add a candidate for the best
        if due or pl_module.validated or pl_module.agreed_to_stop:
            state = pl_module.state()
            if trainer.is_global_zero:
                if pl_module.validated is None or is_best(pl_module.progress):
                    self.export()
                self.folder.save(state, pl_module.progress, keep=keep)


class Metrics(lightning.Callback):
    """Writes ``metrics.jsonl`` (one object a line) and TensorBoard events, from the first process.

    The event file is written record by record, since TensorBoard's own writer puts the machine's name into the file's.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder = folder
        self.every = every
        self.lines: IO[str] | None = None
        self.events: IO[bytes] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: TrainingLoop) -> None:
        """Cuts off rows of steps that were lost with a kill, so that every step has at most one row."""
        if not trainer.is_global_zero:
            return
        done = pl_module.progress.step
        path = self.folder / "metrics.jsonl"
        if path.exists():
            rows = [row for row in path.read_text(encoding="utf-8").splitlines() if kept(row, done)]
            atomic_write(path, lambda file: file.write("".join(f"{row}\n" for row in rows).encode()))
        self.lines = io.TextIOWrapper(open_to_append(path), encoding="utf-8")
        events = self.folder / "tensorboard"
        events.mkdir(exist_ok=True)
        number = len(list(events.iterdir()))
        self.events = (events / f"events.out.tfevents.{time.time_ns()}.{number}").open("xb")
        self.write_event(file_version="brain.Event:2")
        if done:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self.write_event(step=done + 1, session_log=SessionLog(status=SessionLog.START))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: TrainingLoop, *_: object) -> None:
        """Writes the numbers of the step that was done."""
        record = pl_module.record
        last = pl_module.progress.step >= pl_module.steps or pl_module.agreed_to_stop
        due = last or pl_module.validated or pl_module.measured or pl_module.progress.step % self.every == 0
        if self.lines is None or not due:
            return
        self.lines.write(json.dumps(record) + "\n")
        self.lines.flush()
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items() if name != "step"]
        self.write_event(step=pl_module.progress.step, summary=Summary(value=values))

    def write_event(self, **fields: Any) -> None:
        """Appends one event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self.events is not None:
            RecordWriter(self.events).write(Event(wall_time=time.time(), **fields).SerializeToString())
            self.events.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self.lines, self.events):
            if file is not None:
                file.close()
        self.lines = self.events = None


def kept(row: str, done: int) -> bool:
    """Whether a row of the log is whole and of a step that is done."""
    try:
        return int(json.loads(row)["step"]) <= done
    except (ValueError, KeyError, TypeError):
        return False


class Console(lightning.Callback):
    """A progress bar (on a terminal) or twenty lines a run (elsewhere), and the predicted end after ten steps."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.started = 0.0
        self.first = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: TrainingLoop) -> None:
        """Opens the bar."""
        if trainer.is_global_zero:
            self.started, self.first = time.monotonic(), pl_module.progress.step
            self.bar = tqdm(total=pl_module.steps, initial=self.first, unit="step", disable=None, smoothing=0.1)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: TrainingLoop, *_: object) -> None:
        """Moves the bar."""
        if self.bar is None:
            return
        step, record = pl_module.progress.step, pl_module.record
        shown = {"smoothed loss": f"{record['loss_smoothed']:.4f}", "waiting": f"{record['waiting']:.0%}"}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        done = step - self.first
        pace = (time.monotonic() - self.started) / done
        if done == 10 and step < pl_module.steps:
            seconds = pace * (pl_module.steps - step)
            at = time.strftime("%H:%M", time.localtime(time.time() + seconds))
            self.say(
                f"{pace:.3g} s a step, {record['waiting']:.0%} of it waiting for data: done in {span(seconds)}, at {at}"
            )
        elif self.bar.disable and step % max(1, pl_module.steps // 20) == 0:
            left = span(pace * (pl_module.steps - step))
            self.say(
                f"step {step}/{pl_module.steps}  smoothed loss {record['loss_smoothed']:.4f}  "
                f"{pace:.3g} s a step, {left} left"
            )

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


def span(seconds: float) -> str:
    """A duration for people: ``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Pictures(lightning.Callback):
    """Draws ``objective.pictures`` of the same samples every ``every`` steps into ``pictures/step_000500.png``.

    Only the first process does, so ``pictures`` must not talk to the others, and must leave the objective as it was.
    """

    def __init__(self, folder: Path, crops: Callable[[], Crops], *, every: int) -> None:
        self.folder = folder
        self.crops = crops
        self.every = every
        self.fixed: Crops | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: TrainingLoop, *_: object) -> None:
        """Draws where it is time to."""
        step = pl_module.progress.step
        pictures = getattr(pl_module.objective, "pictures", None)
        last = step >= pl_module.steps or pl_module.agreed_to_stop
        if pictures is None or not trainer.is_global_zero or not (step == 1 or last or step % self.every == 0):
            return
        self.fixed = self.crops() if self.fixed is None else self.fixed
        with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            batch = pl_module.feed.batch(self.fixed, pl_module.device)
            drawn = pictures(batch, pl_module.step_of(batch.origin.samples))
            captions = getattr(pl_module.objective, "captions", None)
            words = captions(batch) if captions else ()
        self.folder.mkdir(exist_ok=True)
        images = {name: image.float().cpu() for name, image in drawn.items()}
        view = batch.views[0]
        to_the_right = bool(view.world_affine[0, 0, 0] > 0)
        spacing_mm = view.spacing_mm.median(0).values.tolist()
        draw(self.folder / f"step_{step:06d}.png", images, spacing_mm, mirrored=to_the_right, captions=words)
