"""The verb ``pretrain``: a store and an objective become an encoder."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
import torch
from safetensors.torch import save as to_safetensors

from medssl.data.loader import make_loader, small_scans
from medssl.data.store import Store
from medssl.encoders.base import Encoder
from medssl.encoders.weights import save_encoder
from medssl.engine import callbacks, describe
from medssl.engine.checkpoint import Progress, RunFolder, write_whole
from medssl.engine.module import Feed, NotFinite, TrainingLoop, keyed_seed
from medssl.engine.optim import Optimization
from medssl.engine.parallel import Layout, layout
from medssl.engine.settings import Loading, Training
from medssl.objectives.base import Objective
from medssl.types import Card, UserError
from medssl.views.plan import make_batch, read_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from medssl.types import Batch, Crops, ViewPlan

PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def pretrain(
    *,
    store: Path,
    run: Path,
    encoder: Callable[[], Encoder],
    objective: Callable[[Encoder], Objective],
    training: Training,
    optimizer: Optimization = Optimization(),  # noqa: B008 (frozen)
    data: Loading = Loading(),  # noqa: B008 (frozen)
) -> int:
    """Pretrains an encoder, or goes on with a run that was stopped.

    Args:
        store: Folder made by ``medssl cache``.
        run: Folder of the run; where it holds this very configuration, training goes on from its last checkpoint.
        encoder: What is pretrained.
        objective: What it is pretrained with.
        training: How long and how large.
        optimizer: How weights move.
        data: How samples are read.

    Returns:
        0; 1 where the loss was not finite; 128 + the signal's number where a signal stopped the run after saving.

    Raises:
        UserError: Something the user can put right.
    """
    os.umask(0o077)
    place, folder = layout(), RunFolder(run)
    config: dict[str, Any] = describe.plain(
        {"encoder": encoder, "objective": objective, "training": training, "optimizer": optimizer, "data": data}
    )
    refuse_hardware(training)
    torch.manual_seed(keyed_seed(training.seed))
    network = objective(encoder())  # refuses sizes that do not fit, before any data is touched
    opened = Store.open(store, preprocess=data.preprocess)
    if data.sampling is not None:
        network.needs = replace(network.needs, sampling=data.sampling)
    plan = network.needs
    size = read_size(plan, describe.typical_spacing(opened, len(plan.views[0].size)))
    largest = tuple(map(max, zip(*(view.size for view in plan.views), strict=True)))
    small = small_scans(opened, largest, split=data.split, slice_axis=plan.sampling.slice_axis)
    feed = make_feed(opened, plan, size, training, data)
    progress = Progress(0, training.batch_size * training.accumulate * place.world_size, describe.store_digest(opened))
    with folder.opened(config) if place.first else contextlib.nullcontext(), explained(training, data, network):
        module = TrainingLoop(network, feed, optimizer, steps=training.steps, progress=progress)
        go_on(module, folder)
        if module.progress.step >= training.steps:
            if place.first:
                print(f"{run}: all {training.steps} steps are done already")
            return 0
        if place.first:
            print(first_line(module, training, place, small))
        card = partial(make_card, config, opened)
        return train(module, trainer_for(module, folder, training, place, card), folder)


def make_feed(store: Store, plan: ViewPlan, size: tuple[int, ...], training: Training, data: Loading) -> Feed:
    """Crops of the store in the order of the run, ``size`` voxels each, and the plan's views of them."""

    def crops(first: int, rank: int, world_size: int, workers: int = data.workers) -> Iterable[Crops]:
        loader: Iterable[Crops] = make_loader(
            store,
            plan=plan,
            read_size=size,
            batch_size=training.batch_size,
            seed=training.seed,
            split=data.split,
            workers=workers,
            first_batch=first,
            rank=rank,
            world_size=world_size,
        )
        return loader

    def batch(raw: Crops, device: torch.device) -> Batch:
        return make_batch(raw, plan, seed=training.seed, device=device)

    return Feed(crops, batch, training.accumulate, training.seed)


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


def go_on(module: TrainingLoop, folder: RunFolder) -> None:
    """Takes over the state of a run that was stopped.

    Raises:
        UserError: The store or the number of samples of a step is another one.
    """
    state = folder.state()
    if state is None:
        return
    former, now = state["progress"], module.progress
    if former.store != now.store:
        message = f"{folder.path.name}/ was trained on another store (or this one has changed): choose another --run"
        raise UserError(message)
    if former.global_batch != now.global_batch:
        message = (
            f"a step of {folder.path.name}/ has {former.global_batch} samples, this command's {now.global_batch}: "
            "keep training.batch_size x training.accumulate x processes as it was"
        )
        raise UserError(message)
    module.objective.load_state_dict(state["objective"])
    module.former, module.progress = state, former


def first_line(module: TrainingLoop, training: Training, place: Layout, small: int) -> str:
    """What is told before the first step."""
    encoder, everything = describe.parameters(module.objective)
    needed = describe.memory(module.objective, training.batch_size, half=training.precision != "fp32")
    done = module.progress.step
    parts = [
        f"{everything / 1e6:.3g} M parameters ({encoder / 1e6:.3g} M encoder)",
        needed,
        f"{training.steps} steps of {module.progress.global_batch} samples "
        f"({training.batch_size} x {training.accumulate} micro-batches x {place.world_size} processes)",
    ]
    parts += [f"going on after step {done}"] if done else []
    parts += [f"{small} scans are smaller than the view and are padded"] if small else []
    return "; ".join(parts)


def trainer_for(
    module: TrainingLoop, folder: RunFolder, training: Training, place: Layout, card: Callable[[int], Card]
) -> lightning.Trainer:
    """Lightning's Trainer with our callbacks and nothing of its own that writes or counts."""
    output = training.output

    def fixed_crops() -> Crops:
        return next(iter(module.feed.crops(0, 0, place.world_size, 0)))

    def export() -> None:
        write_weights(folder.path, module.objective, card(module.progress.step))

    return lightning.Trainer(
        accelerator=training.accelerator,
        precision=PRECISIONS[training.precision],
        callbacks=[
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
        print(f"{folder.path}: {step} steps done, loss {module.progress.smoothed:.4f}; encoder.safetensors is written")
    return 0


def make_card(config: dict[str, Any], opened: Store, step: int) -> Card:
    """What the weights of a step are."""
    return Card(
        encoder=describe.imported(config["encoder"]),
        preprocess=opened.preprocess,
        objective=describe.imported(config["objective"]),
        index_digest=opened.index_digest,
        subjects=describe.subjects(opened, config["data"]["split"]),
        step=step,
        versions=describe.versions(),
    )


def write_weights(folder: Path, objective: Objective, card: Card) -> None:
    """Writes the encoder with its card, and everything else of the objective for continuing."""
    save_encoder(folder, objective.exported()["encoder"], card)
    rest = {
        name: value.detach().clone().contiguous().cpu()
        for name, value in objective.state_dict().items()
        if not name.startswith("encoder.")
    }
    write_whole(folder / "objective.safetensors", lambda file: file.write(to_safetensors(rest)))


@contextlib.contextmanager
def explained(training: Training, data: Loading, objective: Objective) -> Iterator[None]:
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
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if "DataLoader worker" in text and "killed" in text:
            message = f"a reading process was killed, probably for memory: lower data.workers (now {data.workers})"
            raise UserError(message) from error
        told = any(words in text.lower() for words in ("out of memory", "not enough memory", "t allocate memory"))
        if not (told or isinstance(error, MemoryError)):
            raise
        sizes = ", ".join(str(list(view.size)) for view in objective.needs.views)
        message = (
            f"out of memory: lower training.batch_size (now {training.batch_size}) and raise training.accumulate "
            f"(now {training.accumulate}) by as much, or make the views smaller (now {sizes}), "
            f"or set training.precision to bf16 (now {training.precision})"
        )
        raise UserError(message) from error
