"""The log of a run: ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import io
import json
import time
from typing import IO, TYPE_CHECKING, Any

from medssl.io.atomic_write import atomic_write
from medssl.io.links import open_to_append
from medssl.training.events import Listener

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop


class MetricsLog(Listener):
    """Writes ``metrics.jsonl`` (one object a line) and TensorBoard events, from the first process.

    The event file is written record by record, since TensorBoard's own writer puts the machine's name into the file's.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder = folder
        self.every = every
        self.lines: IO[str] | None = None
        self.events: IO[bytes] | None = None

    def on_start(self, loop: TrainingLoop) -> None:
        """Opens the files; cuts off rows of steps that were lost with a kill, so that a step has at most one row."""
        if loop.rank == 0:
            self.open(loop.progress.step)

    def open(self, done: int) -> None:
        """Opens the files of a run of which ``done`` steps are done."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            rows = [row for row in path.read_text(encoding="utf-8").splitlines() if is_row_of(row, done)]
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

    def reads_terms(self, loop: TrainingLoop, step: int) -> bool:
        """Of the first step, of every n-th and of the last."""
        return step == 1 or step % self.every == 0 or step >= loop.steps

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> None:
        """Writes the numbers of every n-th step, of the last, and of steps with measures."""
        due = loop.is_over or record.measures.values or record.step % self.every == 0
        if self.lines is None or not due:
            return
        row = record.row()
        self.lines.write(json.dumps(row) + "\n")
        self.lines.flush()
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self.write_event(step=record.step, summary=Summary(value=values))

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


def is_row_of(row: str, done: int) -> bool:
    """Whether a row of the log is whole and of one of the first ``done`` steps."""
    try:
        return int(json.loads(row)["step"]) <= done
    except (ValueError, KeyError, TypeError):
        return False
