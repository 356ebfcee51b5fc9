"""Settings in numbers: the learning rate for the batch of a step, the horizon of a schedule, the precision."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from medssl.io.documents import read_yaml
from medssl.training import hardware
from medssl.training.checkpoint import checkpoints, flat
from medssl.training.optim import LARGE, Optimization
from medssl.training.resume import samples_of_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from medssl.training.checkpoint import RunFolder
    from medssl.training.settings import Training

Settings = TypeVar("Settings", bound=Optimization)


def resolved(
    optimizer: Settings, training: Training, folder: RunFolder, network: nn.Module, views: Iterable[Sequence[int]]
) -> tuple[Settings, Training, list[str]]:
    """The optimizer and the training as a run records and uses them, and what its first line says of them.

    What a run resolved when it was started, it keeps when it is continued or prolonged: the steps that its warm-up is a
    share of, and its precision.

    Args:
        optimizer: As given.
        training: As given.
        folder: Of the run.
        network: With its encoder as ``encoder``.
        views: Voxels of each view per axis.

    Raises:
        UserError: ``learning_rate`` and ``learning_rate_per`` contradict each other, or the processor computes wrong
            gradients in the precision that is asked for.
    """
    hardware.refuse_wrong_gradients(training, network, views)
    stored = stored_settings(folder)
    batch = samples_of_step(training)
    horizon = stored.get("optimizer.rate_decay.horizon") or training.steps
    now = optimizer.resolved(batch, horizon)
    notes = [rate_in_words(now, batch), *optimizer_notes(now, batch)]
    precision = training.precision
    if precision == "auto":
        wrong = hardware.device_type(training.accelerator) == "cpu" and hardware.thin_maps(network, views)
        precision = "fp32" if wrong else stored.get("training.precision", hardware.precision_of(training))
        notes.append(f"training.precision auto: {precision}")
    return now, replace(training, precision=precision), notes


def stored_settings(folder: RunFolder) -> dict[str, Any]:
    """The configuration of a run that has a checkpoint, by dotted keys; empty where there is none."""
    file = folder.path / "config.yaml"
    if not file.exists() or not checkpoints(folder.checkpoints):
        return {}
    return dict(flat(read_yaml(file)))


def rate_in_words(settings: Optimization, batch: int) -> str:
    """The optimizer, the highest learning rate and where it comes from."""
    said = f"{settings.in_words()}, learning rate {settings.peak:.3g}"
    if settings.learning_rate_per is not None:
        base, reference = settings.learning_rate_per
        said += f" ({base:g} for {reference} samples, times the square root of {batch} / {reference})"
    return said


def optimizer_notes(settings: Optimization, batch: int) -> list[str]:
    """Where an optimizer for large batches is given a small one."""
    if settings.name not in ("lamb", "lars") or batch >= LARGE:
        return []
    other = "adamw" if settings.name == "lamb" else "sgd or adamw"
    return [f"{settings.name} is for steps of {LARGE} samples and more, this one has {batch}: {other} learns faster"]
