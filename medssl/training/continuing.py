"""Continuing: a pretraining that starts from another run, with its heads and teacher, or from a file of weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medssl.encoders.tensors import read_tensors, refuse_strange
from medssl.encoders.weights import CARD, WEIGHTS, Report, load, misfit, read_card
from medssl.io.documents import read_yaml
from medssl.training.checkpoint import checkpoints
from medssl.training.initial_weights import brings_weights, run_of, seen_by, seen_by_file, tell_keys
from medssl.types import Card, Imported, UserError
from medssl.types.provenance import Seen

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from medssl.objectives.base import Objective
    from medssl.training.checkpoint import RunFolder
    from medssl.types import Preprocess

REST = "objective.safetensors"
OWN = "first weights: those that the encoder brings (pretrained), of which nothing tells whom they have seen"


@dataclass(frozen=True)
class Begin:
    """Where the first weights come from.

    Attributes:
        notes: What became of them, for the first line of the run.
        digest: Names them in ``config.yaml`` without a path; None where they are random.
        seen: Subjects that they have seen.
        preprocess: Rules that their scans were stored by, where that is known.
    """

    notes: tuple[str, ...] = ()
    digest: str | None = None
    seen: Seen = field(default_factory=Seen)
    preprocess: Preprocess | None = None


def begin_again(folder: RunFolder, init: Path | None) -> Begin | None:
    """What a run that has a checkpoint began with: its weights are in there, and its source need not be there still.

    Args:
        folder: Of the run.
        init: As of the command line; the run itself stands for what it began with.

    Returns:
        None where there is no checkpoint, or it began with no other weights.

    Raises:
        UserError: The source has changed.
    """
    file = folder.path / "config.yaml"
    if init is None or not file.exists() or not checkpoints(folder.checkpoints):
        return None
    former = read_yaml(file).get("init")
    if former is None:
        return None
    source, itself = run_of(init), init.resolve() == folder.path.resolve()
    if source.exists() and not itself and (now := digest_of(source)) != former:
        message = f"the run {folder.path.name}/ started from other weights ({former} there, {now} here)"
        hint = f"Give {folder.path} itself to continue from its own checkpoint, or choose another run folder."
        raise UserError(message, key="pretrained", got=str(init), hint=hint)
    card = folder.path / CARD  # lacks where the run was killed between its first checkpoint and the card
    seen = read_card(folder.path).subjects if card.exists() else Seen(complete=False)
    return Begin((f"first weights: {former}",), former, seen)


def begin(objective: Objective, init: Path | None, minimum: float, made: Imported) -> Begin:
    """Fills an objective with the weights of ``init``.

    Of a run, the encoder and, where the objective is of the same class, everything else that fits by name and shape; of
    a file, the encoder alone. Every key that is adapted, missing (with its shapes, where these differ) or unexpected is
    printed.

    Args:
        objective: With fresh weights.
        init: Run folder, or a file of weights; None leaves the weights as they are.
        minimum: Smallest share of the encoder's keys that must be filled.
        made: What the encoder was made of; it may bring weights of its own (``pretrained``).

    Raises:
        UserError: There is no such folder or file, too few keys are filled, or the encoder would stay random.
    """
    if not 0 <= minimum <= 1:
        message = "no share"
        raise UserError(message, key="pretrained_minimum", got=minimum, expected="a share from 0 to 1")
    if init is None:
        if not brings_weights(made):
            refuse_random(objective)
            return Begin()
        return Begin((OWN,), seen=Seen(complete=False))
    init = run_of(init)
    if not init.exists():
        message = "there is no such folder or file"
        raise UserError(message, key="pretrained", got=str(init))
    card = read_card(init) if init.is_dir() else None
    weights = init if card is None else init / WEIGHTS
    if not weights.exists():
        message = f"the folder has {CARD} but no {WEIGHTS}"
        raise UserError(message, key="pretrained", got=str(init))
    report = load(objective.encoder, weights, minimum=minimum)
    tell_keys(report)
    objective.after_load()
    own = Seen(complete=not brings_weights(made))
    if card is None:
        return Begin((f"encoder: {report}",), digest_of(init), own | seen_by_file(init))
    notes = (f"encoder of step {card.step}: {report}", fill_rest(objective, init / REST, card))
    return Begin(notes, digest_of(init), own | seen_by(card), card.preprocess)


def digest_of(init: Path) -> str:
    """Names a file of weights, or those of a run folder, by what is in them."""
    digest = hashlib.sha256()
    for file in (init / WEIGHTS, init / REST) if init.is_dir() else (init,):
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
    own = {name: value for name, value in objective.state_dict().items() if not name.startswith("encoder.")}
    if not file.exists():
        return f"nothing else is taken over: the run has no {REST}"
    if kind != former:
        return f"nothing else is taken over: that run's objective was {former.rpartition('.')[2]}"
    tensors: dict[str, Tensor] = read_tensors(file, allow_empty=True)
    if not own and not tensors:
        return "the objective has nothing but its encoder"
    shared = [key for key in own if key in tensors]
    fitting = {key: tensors[key] for key in shared if own[key].shape == tensors[key].shape}
    refuse_strange(file, {key: (tensors[key], own[key]) for key in fitting})
    objective.load_state_dict(fitting, strict=False)
    report = Report(
        loaded=tuple(fitting),
        adapted=(),
        missing=tuple(key for key in own if key not in fitting),
        unexpected=tuple(key for key in tensors if key not in own),
        unfit={key: misfit(key, tensors[key], own[key]) for key in shared if key not in fitting},
    )
    tell_keys(report, " in the objective")
    return (
        f"{len(fitting)} of {len(own)} keys of the rest of the objective: {len(report.missing)} missing, "
        f"{len(report.unfit)} of them of another shape, {len(report.unexpected)} unexpected"
    )
