"""One run of the training loop: refuse what cannot be, go on where it stopped, train, say how it ended."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import torch

from medssl.training import hardware
from medssl.training.checkpoint_writer import CheckpointWriter
from medssl.training.distributed import layout
from medssl.training.loop import NotFinite
from medssl.training.memory import count_parameters, memory_in_words
from medssl.training.metrics_log import MetricsLog
from medssl.training.picture_writer import PictureWriter
from medssl.training.progress_display import ProgressDisplay
from medssl.training.results import TrainingResult
from medssl.training.resume import resume
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medssl.objectives.base import Objective
    from medssl.training.checkpoint import RunFolder
    from medssl.training.distributed import Layout
    from medssl.training.events import Listener
    from medssl.training.loop import TrainingLoop
    from medssl.training.settings import Examples, Loading, Training


log = logging.getLogger(__name__)


def run(
    loop: TrainingLoop,
    folder: RunFolder,
    config: dict[str, Any],
    training: Training,
    *,
    data: Loading | Examples,
    notes: Sequence[str],
    export: Callable[[], None],
    watching: Sequence[Listener] = (),
) -> TrainingResult:
    """Trains until all steps are done, a signal comes or the loss is not finite; goes on with a run that was stopped.

    Args:
        loop: The loop, with fresh weights.
        folder: Where everything is written.
        config: The resolved configuration, which the folder is held to.
        training: How long and how large.
        data: How samples are read.
        notes: What the first line tells besides sizes.
        export: Writes what other people use, whenever a checkpoint asks for it.
        watching: Judge and measure each step before it is logged and kept in a checkpoint.

    Raises:
        UserError: Something the user can put right.
    """
    place = layout()
    with (
        folder.opened(config) if place.first else contextlib.nullcontext(),
        explained(training, data, loop.objective),
    ):
        former, changes = resume(loop, folder)
        if loop.progress.step >= training.steps:
            if place.first:
                log.info(f"{folder.path}: all {training.steps} steps are done already")
            return TrainingResult(folder.path, loop.progress.step, loop.progress.smoothed)
        hardware.switch_recompute(loop.objective, training)
        hardware.refuse_too_large(loop.objective, training)
        if place.first:
            precision = hardware.precision_notes(training)
            log.info("; ".join([first_line(loop, training, place), *precision, *changes, *notes]))
        falls = loop.settings.decay_start(training.steps)
        listeners = listeners_of(folder, training, export, watching, decay_start=falls)
        return train(loop, folder, training, listeners, former)


def refuse_hardware(training: Training) -> None:
    """Refuses settings that this machine cannot follow, where Fabric would take others without a word.

    Raises:
        UserError: Names the setting.
    """
    if torch.cuda.is_available() and training.accelerator != "cpu":
        return
    if training.accelerator == "gpu":
        message = "training.accelerator is gpu, but torch sees none: set it to auto or cpu"
        raise UserError(message)
    if training.precision == "fp16":
        message = "training.precision fp16 needs a GPU: set it to fp32 or bf16"
        raise UserError(message)


def first_line(loop: TrainingLoop, training: Training, place: Layout) -> str:
    """What is told before the first step."""
    encoder, everything = count_parameters(loop.objective)
    needed = memory_in_words(loop.objective, training.batch_size, half=hardware.precision_of(training) != "fp32")
    done = loop.progress.step
    parts = [
        f"{everything / 1e6:.3g} M parameters ({encoder / 1e6:.3g} M encoder)",
        needed,
        f"{training.steps} steps of {loop.progress.global_batch} samples "
        f"({training.batch_size} x {training.accumulate} micro-batches x {place.world_size} processes)",
    ]
    parts += [f"going on after step {done}"] if done else []
    return "; ".join(parts)


def listeners_of(
    folder: RunFolder,
    training: Training,
    export: Callable[[], None],
    watching: Sequence[Listener],
    *,
    decay_start: int | None = None,
) -> list[Listener]:
    """What is called after each step, in this order: measures first, so that the log and a checkpoint hold them."""
    output = training.output
    validated = any(listener.judges for listener in watching)
    return [
        *watching,
        MetricsLog(folder.path, every=output.log_every),
        CheckpointWriter(
            folder,
            every=output.checkpoint_every,
            keep=output.keep_every,
            export=export,
            validated=validated,
            selects=any(listener.selects for listener in watching),
            decay_start=decay_start,
        ),
        PictureWriter(folder.path / "pictures", every=output.picture_every),
        ProgressDisplay(),
    ]


def train(
    loop: TrainingLoop,
    folder: RunFolder,
    training: Training,
    listeners: Sequence[Listener],
    former: dict[str, Any] | None,
) -> TrainingResult:
    """Runs the loop to the end, to a signal or to a loss that is not finite, and says which."""
    from medssl.training.fabric import make_fabric

    first = layout().first
    try:
        loop.run(make_fabric(training), listeners, former)
    except NotFinite as error:
        saved = folder.state()
        saved_step = (
            f"the checkpoint of step {saved['progress'].step} is kept" if saved else "there is no checkpoint yet"
        )
        if first:
            advice = "a lower optimizer.learning_rate or training.precision fp32 may help"
            log.error(f"error: {error}; {saved_step}; {advice}")
        return TrainingResult(folder.path, loop.progress.step, loop.progress.smoothed, "loss not finite", 1)
    step, number = loop.progress.step, loop.stopped_by
    if number and step < loop.steps:
        name = signal.Signals(number).name
        if first:
            log.info(f"stopped by {name} at step {step}: saved; run the same command to continue")
            if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        return TrainingResult(folder.path, step, loop.progress.smoothed, name, 128 + number)
    if first:
        written = [] if any(listener.judges for listener in listeners) else ["encoder.safetensors is written"]
        said = "; ".join([*written, *filter(None, (listener.summary(step) for listener in listeners))])
        log.info(f"{folder.path}: {step} steps done, smoothed loss {loop.progress.smoothed:.4f}; {said}")
    return TrainingResult(folder.path, step, loop.progress.smoothed)


@contextlib.contextmanager
def explained(training: Training, data: Loading | Examples, objective: Objective) -> Iterator[None]:
    """Keeps Lightning silent, and says of a full memory which settings to change.

    Raises:
        UserError: There is not enough memory.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")  # where LAMB imports timm
            yield
    except (MemoryError, RuntimeError, OSError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if "DataLoader worker" in text and "killed" in text:
            message = f"a reading process was killed, probably for memory: lower data.workers (now {data.workers})"
            raise UserError(message) from error
        memory_is_full = any(
            words in text.lower() for words in ("out of memory", "not enough memory", "t allocate memory")
        )
        if not (memory_is_full or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
            raise
        sizes = ", ".join(str(list(view.size)) for view in objective.needs.views)
        fewer = f"lower training.batch_size (now {training.batch_size}) "
        if objective.compares_samples:
            fewer += "in a new run: each sample is then compared with fewer"
        else:
            fewer += f"and raise training.accumulate (now {training.accumulate}) by as much"
        message = (
            f"out of memory: {fewer}, or make the views smaller (now {sizes}), "
            f"or set training.precision to bf16 (now {hardware.precision_of(training)})"
            + ("" if training.recompute else " or training.recompute to true")
        )
        raise UserError(message) from error
