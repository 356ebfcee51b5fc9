"""Initial weights: those of a run, of a file, or random ones."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from medssl.data.split import refuse_leaks
from medssl.encoders.tensors import read_tensors
from medssl.encoders.weights import CARD, WEIGHTS, encoder_class, load, read_card, refuse_encoder
from medssl.io.trust import named_in
from medssl.training.configuration import as_data, imported
from medssl.training.distributed import layout
from medssl.types import Card, Imported, Note, UserError
from medssl.types.provenance import Provenance, TrainingSubjects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from medssl.data.store.store import Store
    from medssl.encoders.base import Encoder
    from medssl.encoders.weights import Report
    from medssl.heads.base import Head

log = logging.getLogger(__name__)

DECODER = "decoder.safetensors"
_DIGEST = re.compile(r"[0-9a-f]{16}")  # as ``InitialWeights.digest`` and ``digest_of`` write it
Allowed = Literal["seen", "channels", "preprocess"]


@dataclass(frozen=True)
class InitialWeights:
    """An encoder as a description, and the weights that training starts from.

    Attributes:
        encoder: Import path and arguments.
        weights: File of weights; None starts from those that the encoder is made with.
        card: Card of the run that the weights, or the description of the encoder alone, come from.
        digest: Names the weights in ``config.yaml`` without a path: a digest of the file, "random", or "pretrained"
            where the encoder brings its own.
        trust: Import paths of classes that may be built: those that the command names, whatever a card says.
        notes: What became of the weights, for the first line of a run.
    """

    encoder: Imported
    weights: Path | None = None
    card: Card | None = None
    digest: str = "random"
    trust: frozenset[str] = field(default=frozenset(), compare=False)
    notes: tuple[str, ...] = ()

    @property
    def provenance(self) -> Provenance:
        """Subjects that the weights were trained on, with labels or without."""
        of_encoder = Provenance(complete=not brings_weights(self.encoder))
        if self.weights is None:
            return of_encoder
        return of_encoder | (provenance_of(self.card) if self.card else provenance_of_file(self.weights))

    @property
    def labeled(self) -> tuple[str, ...]:
        """Subjects whose labels these weights were trained on, known even where those of pretraining are not."""
        tuned = None if self.card is None or self.weights is None else self.card.tuned
        return () if tuned is None else tuned.subjects

    @property
    def training_subjects(self) -> TrainingSubjects:
        """The same subjects, for ``refuse_test_subjects``."""
        return TrainingSubjects(pretrained=self.provenance)


def read_initial_weights(
    pretrained: Path | None,
    encoder: Callable[[], Encoder] | Imported | None,
    *,
    from_scratch: bool,
    trust: Collection[str] = (),
) -> InitialWeights:
    """Finds the weights to start from; none are loaded yet, and no class of a card is imported.

    Raises:
        UserError: Neither an encoder nor a run to take it from, no such file, a run folder without a card, or an
            encoder from scratch that brings weights.
    """
    given = None if encoder is None else imported(as_data(encoder, "encoder"))
    allowed = frozenset(trust) | frozenset(() if given is None else named_in(asdict(given)))
    if from_scratch and given is not None and brings_weights(given):
        message = "from_scratch, and encoder.pretrained true: the encoder would bring weights; leave one of them out"
        raise UserError(message)
    if pretrained is None:
        if given is None:
            message = "nothing to start from: give pretrained, or an encoder for random weights"
            raise UserError(message)
        return InitialWeights(given, None, None, "pretrained" if brings_weights(given) else "random", allowed)
    pretrained = source_of(pretrained)
    if pretrained.is_dir():
        card = read_card(pretrained)
        if given is None:
            refuse_encoder(card.encoder, f"{pretrained.name}/{CARD}", trust)
        weights, wanted = pretrained / WEIGHTS, given or card.encoder
        if not from_scratch and not weights.exists():
            message = f"the folder has {CARD} but no {WEIGHTS}"
            raise UserError(message, key="pretrained", got=str(pretrained))
    elif given is None:
        message = f"{pretrained.name} is a file of weights"
        raise UserError(message, key="encoder", hint="Give the encoder that they fit.")
    else:
        card, weights, wanted = None, pretrained, given
    if from_scratch:
        return InitialWeights(wanted, None, card, "random", allowed)
    digest = hashlib.sha256(weights.read_bytes())
    if (file := decoder_of(weights)) is not None:
        digest.update(file.read_bytes())
    return InitialWeights(wanted, weights, card, digest.hexdigest()[:16], allowed)


def brings_weights(encoder: Imported) -> bool:
    """Whether an encoder is made with weights of its own, of which no subjects are known."""
    return bool(encoder.init_args.get("pretrained"))


def run_of(path: Path) -> Path:
    """The run folder of an ``encoder.safetensors`` or a card that have each other; any other path is itself."""
    pair = (WEIGHTS, CARD)
    return path.parent if path.name in pair and all((path.parent / name).exists() for name in pair) else path


def source_of(path: Path) -> Path:
    """The run folder or file of weights to start from.

    Raises:
        UserError: There is none, or the value is the digest of weights that a ``config.yaml`` holds.
    """
    source = run_of(path)
    if source.exists():
        return source
    if _DIGEST.fullmatch(str(path)):
        message = "this is a digest of weights, which names no folder and no file"
        hint = (
            "Give the run folder or the file of these weights. config.yaml of a run holds the digest in the key "
            "pretrained or start, of version 0.1.0 in init or start."
        )
        raise UserError(message, key="pretrained", got=str(path), hint=hint)
    message = "there is no such folder or file"
    raise UserError(message, key="pretrained", got=str(source))


def provenance_of(card: Card) -> Provenance:
    """Subjects that the weights of a card were trained on, with labels or without."""
    return card.subjects | Provenance(card.tuned.subjects if card.tuned else ())


def provenance_of_file(file: Path) -> Provenance:
    """Provenance of a file of weights: not known, but in a run folder the subjects of its card are among them."""
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    unknown = Provenance(complete=False)
    return unknown | provenance_of(read_card(folder)) if (folder / CARD).exists() else unknown


def decoder_of(weights: Path | None) -> Path | None:
    """The file of the decoder that a pretraining trained along with these weights of its encoder, if any."""
    file = None if weights is None or weights.name != WEIGHTS else weights.with_name(DECODER)
    return file if file is not None and file.exists() else None


def with_channels(initial: InitialWeights, channels: int, allow: Sequence[Allowed]) -> InitialWeights:
    """The same weights for scans of ``channels`` channels.

    Raises:
        UserError: The encoder takes another number, and "channels" is not allowed.
    """
    present = initial.encoder.init_args.get("in_channels", 1)
    if present == channels:
        return initial
    if "channels" not in allow:
        message = (
            f"the encoder takes {present} channel(s), the scans of the store have {channels}: choose other scans, or "
            "set allow to channels to spread the weights of the first layer"
        )
        raise UserError(message)
    return replace(
        initial, encoder=replace(initial.encoder, init_args=initial.encoder.init_args | {"in_channels": channels})
    )


def with_drop_path(initial: InitialWeights, chance: float | None) -> InitialWeights:
    """The same weights with another probability of dropping residual branches; None leaves the encoder's own.

    Raises:
        UserError: The encoder has no such argument.
    """
    if chance is None:
        return initial
    if "drop_path" not in inspect.signature(encoder_class(initial.encoder, "encoder", initial.trust)).parameters:
        name = initial.encoder.class_path.rpartition(".")[2]
        message = f"optimizer.drop_path {chance}: {name} has no drop_path, as transformers have; set it to null"
        raise UserError(message)
    return replace(
        initial, encoder=replace(initial.encoder, init_args=initial.encoder.init_args | {"drop_path": chance})
    )


def load_encoder(encoder: Encoder, initial: InitialWeights) -> Report | None:
    """Loads initial weights into an encoder; returns what became of every key.

    Raises:
        UserError: The file cannot be read, or fills fewer than 90 % of the encoder's keys.
    """
    return None if initial.weights is None else load(encoder, initial.weights, minimum=0.9)


def weights_in_words(initial: InitialWeights) -> str:
    """What the first line says of weights that are in no file."""
    return "the encoder's own pretrained weights" if brings_weights(initial.encoder) else "random weights"


def log_keys(report: Report, where: str = "") -> None:
    """Logs each key that was not simply loaded, and shapes that do not fit, in the first process."""
    for name, keys in (("adapted", report.adapted), ("missing", report.missing), ("unexpected", report.unexpected)):
        for key in keys if layout().first else ():
            more = report.unfit.get(key) or report.assumed.get(key)
            log.info(f"{name}{where}: {key}" + (f" ({more})" if more else ""))


def load_decoder(head: Head, initial: InitialWeights) -> str:
    """Loads the first steps of a decoder that pretraining trained into that of the head; returns a note, or nothing.

    Raises:
        UserError: The head's decoder is another one.
    """
    file = decoder_of(initial.weights)
    if file is None:
        return ""
    tensors, present = read_tensors(file), head.state_dict()
    if not any(name.startswith("decoder.") for name in present):
        return "the pretrained decoder is not used: this head has none"
    fitting = {
        f"decoder.{key}": value
        for key, value in tensors.items()
        if f"decoder.{key}" in present and present[f"decoder.{key}"].shape == value.shape
    }
    steps = {".".join(key.split(".")[:2]) for key in tensors}  # such as steps.0
    needed = {name for name in present if any(name.startswith(f"decoder.{step}.") for step in steps)}
    if len(fitting) < len(tensors) or needed != set(fitting):
        message = (
            f"{len(fitting)} of the {len(tensors)} keys of the pretrained decoder fit the head {type(head).__name__}: "
            "take the head unet with the norm and channels of pretraining, or start from the stage before"
        )
        raise UserError(message)
    head.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of the {sum(name.startswith('decoder.') for name in present)} keys of the decoder too"


def refuse_test_subjects(store: Store, networks: Mapping[str, TrainingSubjects], allow: Collection[str]) -> list[Note]:
    """Refuses networks that were trained on subjects of the store's split "test".

    Args:
        store: Scans to train on or to probe with.
        networks: Subjects that each network was trained on, by its name in messages, such as "the encoder".
        allow: "seen" allows it.

    Returns:
        Notes on what was allowed, and on subjects that are not known.

    Raises:
        UserError: One was; it counts the subjects.
    """
    group, test = "subjects of split 'test'", store.subjects_of_split("test")
    return [
        note
        for network, training in networks.items()
        for note in refuse_leaks(test, training, allowed="seen" in allow, network=network, group=group)
    ]
