"""Continuing: a pretraining that starts from another run, with its heads and teacher, or from a file of weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from medssl.encoders.misfits import misfit
from medssl.encoders.tensors import read_tensors, refuse_strange
from medssl.encoders.weights import CARD, WEIGHTS, Report, load, read_card
from medssl.io.documents import read_yaml
from medssl.training.checkpoint import checkpoints
from medssl.training.initial_weights import InitialWeights, brings_weights, log_keys, run_of, source_of
from medssl.types import Card, Imported, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from medssl.objectives.base import Objective
    from medssl.training.checkpoint import RunFolder

REST = "objective.safetensors"
WEIGHTS_OF_ENCODER = (
    "first weights: those that the encoder brings (pretrained), of which nothing tells whom they have seen"
)


def weights_of_former_start(folder: RunFolder, pretrained: Path | None, made: Imported) -> InitialWeights | None:
    """Initial weights of a run that has a checkpoint: the run no longer needs them, nor the place they came from.

    Args:
        folder: Of the run.
        pretrained: As of the command line; the run itself stands for what it started from.
        made: What the encoder is made of.

    Returns:
        None where there is no checkpoint, or the run started from no other weights.

    Raises:
        UserError: The source has changed.
    """
    file = folder.path / "config.yaml"
    if pretrained is None or not file.exists() or not checkpoints(folder.checkpoints):
        return None
    former = read_yaml(file).get("pretrained")
    if former is None:
        return None
    source, itself = run_of(pretrained), pretrained.resolve() == folder.path.resolve()
    if source.exists() and not itself and (now := digest_of(source)) != former:
        message = f"the run {folder.path.name}/ started from other weights ({former} there, {now} here)"
        hint = f"Give {folder.path} itself to continue from its own checkpoint, or choose another run folder."
        raise UserError(message, key="pretrained", got=str(pretrained), hint=hint)
    # a run that was killed between its first checkpoint and the card has no card
    card = read_card(folder.path) if (folder.path / CARD).exists() else None
    return InitialWeights(made, folder.path / WEIGHTS, card, former, notes=(f"first weights: {former}",))


def load_initial_weights(
    objective: Objective, pretrained: Path | None, minimum: float, made: Imported
) -> InitialWeights:
    """Fills an objective with weights.

    Of a run, the encoder and, where the objective is of the same class, everything else that fits by name and shape; of
    a file, the encoder alone. Every key that is adapted, missing (with its shapes, where these differ) or unexpected is
    logged.

    Args:
        objective: With fresh weights.
        pretrained: Run folder, or a file of weights; None leaves the weights as they are.
        minimum: Smallest share of the encoder's keys that must be filled.
        made: What the encoder was made of; it may bring weights of its own (``pretrained``).

    Raises:
        UserError: There is no such folder or file, too few keys are filled, or the encoder would stay random.
    """
    if not 0 <= minimum <= 1:
        message = "no share"
        raise UserError(message, key="pretrained_minimum", got=minimum, expected="a share from 0 to 1")
    if pretrained is None:
        if brings_weights(made):
            return InitialWeights(made, digest="pretrained", notes=(WEIGHTS_OF_ENCODER,))
        refuse_random(objective)
        return InitialWeights(made)
    source = source_of(pretrained)
    card = read_card(source) if source.is_dir() else None
    weights = source if card is None else source / WEIGHTS
    if not weights.exists():
        message = f"the folder has {CARD} but no {WEIGHTS}"
        raise UserError(message, key="pretrained", got=str(source))
    report = load(objective.encoder, weights, minimum=minimum)
    log_keys(report)
    objective.after_load()
    notes: tuple[str, ...] = (f"encoder: {report}",)
    if card is not None:
        notes = (f"encoder of step {card.step}: {report}", fill_rest(objective, source / REST, card))
    return InitialWeights(made, weights, card, digest_of(source), notes=notes)


def digest_of(source: Path) -> str:
    """Names a file of weights, or those of a run folder, by what is in them."""
    digest = hashlib.sha256()
    for file in (source / WEIGHTS, source / REST) if source.is_dir() else (source,):
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()[:16]


def refuse_random(objective: Objective) -> None:
    """Refuses to train on top of an encoder that knows nothing and is not to learn anything.

    Raises:
        UserError: No parameter of the encoder learns.
    """
    learns = [parameter.requires_grad for parameter in objective.encoder.parameters()]
    if learns and not any(learns):
        message = f"{type(objective).__name__} does not train the encoder, and the encoder's weights are random"
        raise UserError(message, key="pretrained", hint="Give the run of the stage before, or a file of weights.")


def fill_rest(objective: Objective, file: Path, card: Card) -> str:
    """Takes over heads, teacher and queue of a run of the same objective; returns what became of them."""
    kind = f"{type(objective).__module__}.{type(objective).__qualname__}"
    former = "none" if card.objective is None else card.objective.class_path
    rest = {name: value for name, value in objective.state_dict().items() if not name.startswith("encoder.")}
    if not file.exists():
        return f"nothing else is taken over: the run has no {REST}"
    if kind != former:
        return f"nothing else is taken over: that run's objective was {former.rpartition('.')[2]}"
    tensors: dict[str, Tensor] = read_tensors(file, allow_empty=True)
    if not rest and not tensors:
        return "the objective has nothing but its encoder"
    shared = [key for key in rest if key in tensors]
    fitting = {key: tensors[key] for key in shared if rest[key].shape == tensors[key].shape}
    refuse_strange(file, {key: (tensors[key], rest[key]) for key in fitting})
    objective.load_state_dict(fitting, strict=False)
    report = Report(
        loaded=tuple(fitting),
        adapted=(),
        missing=tuple(key for key in rest if key not in fitting),
        unexpected=tuple(key for key in tensors if key not in rest),
        unfit={key: misfit(key, tensors[key], rest[key]) for key in shared if key not in fitting},
    )
    log_keys(report, " in the objective")
    return (
        f"{len(fitting)} of {len(rest)} keys of the rest of the objective: {len(report.missing)} missing, "
        f"{len(report.unfit)} of them of another shape, {len(report.unexpected)} unexpected"
    )
