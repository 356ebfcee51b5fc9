"""One run of the training loop: refuse what cannot be, go on where it stopped, train, say how it ended."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
import torch

from medssl.data.loading.loader import make_loader
from medssl.ops.schedules import cosine
from medssl.training import callbacks, describe, hardware
from medssl.training.checkpoint import Progress
from medssl.training.distributed import layout
from medssl.training.loop import Feed, NotFinite
from medssl.types import UserError
from medssl.views.plan import make_batch, read_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from medssl.data.store.store import Store
    from medssl.objectives.base import Objective
    from medssl.training.checkpoint import RunFolder
    from medssl.training.distributed import Layout
    from medssl.training.loop import TrainingLoop
    from medssl.training.settings import Examples, Loading, Training
    from medssl.types import Batch, Crops, ViewPlan

PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def run(
    module: TrainingLoop,
    folder: RunFolder,
    config: dict[str, Any],
    training: Training,
    *,
    data: Loading | Examples,
    notes: Sequence[str],
    export: Callable[[], None],
    watching: Sequence[lightning.Callback] = (),
) -> int:
    """Trains until all steps are done, a signal comes or the loss is not finite; goes on with a run that was stopped.

    Args:
        module: The loop, with fresh weights.
        folder: Where everything is written.
        config: The resolved configuration, which the folder is held to.
        training: How long and how large.
        data: How samples are read.
        notes: What the first line tells besides sizes.
        export: Writes what other people use, whenever a checkpoint asks for it.
        watching: Judge and measure each step before it is logged and kept in a checkpoint.

    Returns:
        0; 1 where the loss was not finite; 128 + the signal's number where a signal stopped the run after saving.

    Raises:
        UserError: Something the user can put right.
    """
    place = layout()
    with (
        folder.opened(config) if place.first else contextlib.nullcontext(),
        explained(training, data, module.objective),
    ):
        notes = [*go_on(module, folder), *notes]
        if module.progress.step >= training.steps:
            if place.first:
                print(f"{folder.path}: all {training.steps} steps are done already")
            return 0
        hardware.refuse_too_large(module.objective, training)
        if place.first:
            print("; ".join([first_line(module, training, place), *hardware.precision_notes(training), *notes]))
        return train(module, trainer_for(module, folder, training, export, watching), folder)


def make_feed(
    store: Store,
    plan: ViewPlan,
    training: Training,
    *,
    workers: int,
    split: str | None,
    scans: tuple[int, ...] | None = None,
    groups: tuple[int, ...] | None = None,
    with_labels: bool = False,
) -> Feed:
    """Crops of a store in the order of the run, and the plan's views of them.

    Args:
        store: Where the scans are.
        plan: The views, and how scans and regions fill a batch.
        training: Its batch size and seed.
        workers: Processes that read, unless ``Feed.crops`` is told another number.
        split: Only scans of this split; None takes all.
        scans: Only these scans of the split, by their number in the store; None takes all.
        groups: Class of each of ``scans``, where the plan's sampling balances them.
        with_labels: Read the voxels of the masks too.
    """
    size, own = read_size(plan, store.spacing(len(plan.views[0].size))), workers

    def crops(first: int, rank: int, world_size: int, workers: int = own) -> Iterable[Crops]:
        return make_loader(
            store,
            plan=plan,
            read_size=size,
            batch_size=training.batch_size,
            seed=training.seed,
            split=split,
            workers=workers,
            first_batch=first,
            rank=rank,
            world_size=world_size,
            with_labels=with_labels,
            scans=scans,
            groups=groups,
        )

    def batch(raw: Crops, device: torch.device) -> Batch:
        return make_batch(raw, plan, seed=training.seed, device=device)

    return Feed(crops, batch, training.accumulate, training.seed)


def first_progress(training: Training, store: str) -> Progress:
    """The progress of a run before its first step, on a store of this digest."""
    together = training.batch_size * layout().world_size
    return Progress(0, together * training.accumulate, store, steps=training.steps, together=together)


def refuse_hardware(training: Training) -> None:
    """Refuses settings that this machine cannot follow, where Lightning would quietly take others.

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


def go_on(module: TrainingLoop, folder: RunFolder) -> list[str]:
    """Takes over the state of a run that was stopped.

    Returns:
        What the first line of the run tells: how a longer run changes the learning rate.

    Raises:
        UserError: The store, the number of samples of a step, or what a loss compares is another one.
    """
    state = folder.state()
    if state is None:
        return []
    former, now = state["progress"], module.progress
    if former.store != now.store:
        message = (
            f"{folder.path.name}/ was trained on another store (or this one has changed): choose another run folder"
        )
        raise UserError(message)
    if former.global_batch != now.global_batch:
        message = (
            f"a step of {folder.path.name}/ has {former.global_batch} samples, this command's {now.global_batch}: "
            "keep training.batch_size x training.accumulate x processes as it was"
        )
        raise UserError(message)
    refuse_other_comparison(module, former, folder.path.name)
    notes = stretched(module, former)
    former.steps, former.together = now.steps, now.together
    module.objective.load_state_dict(state["objective"])
    module.former, module.progress = state, former
    return notes


def refuse_other_comparison(module: TrainingLoop, former: Progress, name: str) -> None:
    """Refuses another split of a step into micro-batches, where the loss or the order depends on it.

    Raises:
        UserError: Says how many samples were compared with each other, and how many would be.
    """
    sampling, now = module.objective.needs.sampling, module.progress
    if former.together in (0, now.together) or not (module.objective.compares_samples or sampling.distinct_subjects):
        return
    what = "compares the samples of a micro-batch with each other" if module.objective.compares_samples else ""
    what = what or "takes no subject twice into a micro-batch (distinct_subjects)"
    message = (
        f"{type(module.objective).__name__} {what}: {name}/ has {former.together} of them, this command "
        f"{now.together}; keep training.batch_size x processes as it was"
    )
    raise UserError(message)


def stretched(module: TrainingLoop, former: Progress) -> list[str]:
    """What more steps do to the learning rate and the weight decay of a run that goes on."""
    if former.steps in (0, module.steps):
        return []
    settings = module.settings
    then, now = (former.step / steps for steps in (former.steps, module.steps))
    rates = [settings.rate(progress, encoder=False) for progress in (then, now)]
    decays = [cosine(progress, *settings.weight_decay) for progress in (then, now)]
    note = (
        f"{module.steps} steps instead of {former.steps} stretch the schedule: the learning rate goes from "
        f"{rates[0]:.3g} to {rates[1]:.3g}"
    )
    return [note + (f", the weight decay from {decays[0]:.3g} to {decays[1]:.3g}" if decays[0] != decays[1] else "")]


def first_line(module: TrainingLoop, training: Training, place: Layout) -> str:
    """What is told before the first step."""
    encoder, everything = describe.parameters(module.objective)
    needed = describe.memory(module.objective, training.batch_size, half=hardware.precision_of(training) != "fp32")
    done = module.progress.step
    parts = [
        f"{everything / 1e6:.3g} M parameters ({encoder / 1e6:.3g} M encoder)",
        needed,
        f"{training.steps} steps of {module.progress.global_batch} samples "
        f"({training.batch_size} x {training.accumulate} micro-batches x {place.world_size} processes)",
    ]
    parts += [f"going on after step {done}"] if done else []
    return "; ".join(parts)


def trainer_for(
    module: TrainingLoop,
    folder: RunFolder,
    training: Training,
    export: Callable[[], None],
    watching: Sequence[lightning.Callback],
) -> lightning.Trainer:
    """Lightning's Trainer with our callbacks and nothing of its own that writes or counts."""
    output, place = training.output, layout()

    def fixed_crops() -> Crops:
        return next(iter(module.feed.crops(0, 0, place.world_size, 0)))

    return lightning.Trainer(
        accelerator=training.accelerator,
        precision=PRECISIONS[hardware.precision_of(training)],
        callbacks=[
            *watching,
            callbacks.Metrics(folder.path, every=output.log_every),
            callbacks.Checkpoints(folder, every=output.checkpoint_every, keep=output.keep_every, export=export),
            callbacks.Pictures(folder.path / "pictures", fixed_crops, every=output.picture_every),
            callbacks.Console(),
            callbacks.Stop(),
        ],
        max_epochs=1,
        max_steps=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder.path,
        **place.trainer_arguments(),
    )


def train(module: TrainingLoop, trainer: lightning.Trainer, folder: RunFolder) -> int:
    """Runs the trainer to the end, to a signal or to a loss that is not finite; returns the exit code."""
    try:
        trainer.fit(module)
    except NotFinite as error:
        saved = folder.state()
        kept = f"the checkpoint of step {saved['progress'].step} is kept" if saved else "there is no checkpoint yet"
        if trainer.is_global_zero:
            advice = "a lower optimizer.learning_rate or training.precision fp32 may help"
            print(f"error: {error}; {kept}; {advice}", file=sys.stderr)
        return 1
    finally:
        for part in (module, *trainer.callbacks):
            getattr(part, "close", lambda: None)()
    step, number = module.progress.step, module.agreed_to_stop
    if number and step < module.steps:
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            print(f"stopped by {name} at step {step}: saved; run the same command to continue")
            if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        return 128 + number
    if trainer.is_global_zero:
        print(f"{folder.path}: {step} steps done, smoothed loss {module.progress.smoothed:.4f}; {module.outcome}")
    return 0


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
        told = any(words in text.lower() for words in ("out of memory", "not enough memory", "t allocate memory"))
        if not (told or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
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
        )
        raise UserError(message) from error
