"""Save and load encoders with their model card, and load weights of other programs with a report of every key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.encoders.adapt import adapt_weight, assumed_grid, is_position_table
from medssl.encoders.base import Encoder
from medssl.encoders.layouts import translated
from medssl.encoders.misfits import ENOUGH, Keys, misfit, refuse_misfits, some
from medssl.encoders.tensors import read_tensors, refuse_strange, tensor_bytes
from medssl.io.atomic_write import atomic_files, explain_disk_errors
from medssl.io.documents import read_json
from medssl.io.older_keys import with_present_keys
from medssl.io.trust import network_class, refuse_transforms
from medssl.io.typed_json import build
from medssl.types import Card, Imported, UserError
from medssl.types.provenance import facts_of_json

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CARD = "encoder.safetensors", "card.json"
AVERAGED = ("teacher", "ema", "target", "momentum")  # of several networks in a file, the one that was averaged


# --- our own folders


def save_encoder(folder: Path, encoder: nn.Module, card: Card) -> None:
    """Writes ``encoder.safetensors`` and ``card.json`` atomically: both files are complete before either is replaced.

    Every key of the state dict is written, also where two keys name one tensor, so that any program can load the file
    strictly. The encoder's argument ``pretrained`` is left out of the card, since the file holds the weights.

    Raises:
        UserError: The files cannot be written; former files are unchanged.
    """
    init_args = {k: v for k, v in card.encoder.init_args.items() if k != "pretrained"}
    text = json.dumps(asdict(replace(card, encoder=replace(card.encoder, init_args=init_args))), indent=2, default=str)
    folder.mkdir(parents=True, exist_ok=True)
    with explain_disk_errors(folder / WEIGHTS), atomic_files(folder / WEIGHTS, folder / CARD) as (weights, card_file):
        weights.write(tensor_bytes(encoder.state_dict(), {"format": "pt"}))
        card_file.write(text.encode() + b"\n")


def load_card(folder: Path, trust: Collection[str] = ()) -> Card:
    """Reads ``card.json`` and checks that the classes that it names may be built.

    Args:
        folder: Folder of a run; it may come from someone else.
        trust: Import paths of further classes that may be built, beside the list of ``medssl.io.trust``.

    Raises:
        UserError: The file is missing, is not a card, or names classes that are not trusted.
    """
    card, where = read_card(folder), f"{folder.name}/{CARD}"
    refuse_encoder(card.encoder, where, trust)
    if card.tuned is not None:
        network_class(card.tuned.head, f"{where}: tuned.head", trust)
    refuse_transforms(card.preprocess.transforms, where, trust)
    return card


def read_card(folder: Path) -> Card:
    """Reads ``card.json`` as data; nothing is built from it.

    Raises:
        UserError: The file is missing, or is not a card.
    """
    file = folder / CARD
    try:
        data = with_present_keys(read_json(file))
    except NotADirectoryError as error:
        message = f"{folder} is a file: expected a folder that pretraining wrote"
        raise UserError(message) from error
    except OSError as error:
        message = f"{file}: no card could be read ({error.strerror}): expected a folder that pretraining wrote"
        raise UserError(message) from error
    except ValueError as error:
        message = f"{file}: not JSON ({error}): expected the card that pretraining wrote beside its weights"
        raise UserError(message) from error
    if isinstance(data, dict) and "subjects" in data:
        data["subjects"] = facts_of_json(data["subjects"])
    card: Card = build(Card, data, str(file))
    return card


def refuse_encoder(described: Imported, where: str, trust: Collection[str] = ()) -> None:
    """Refuses an encoder whose class is not trusted, or which would download pretrained weights.

    Raises:
        UserError: Names the class, or the argument.
    """
    network_class(described, f"{where}: encoder", trust)
    if described.init_args.get("pretrained"):
        message = f"{where}: encoder has pretrained true, but its weights lie beside the card: set it to false"
        raise UserError(message)


def load_encoder(folder: Path, trust: Collection[str] = ()) -> tuple[Encoder, Card]:
    """Builds the encoder that a card describes and loads all of its weights.

    Args:
        folder: Folder of a run.
        trust: As for ``load_card``.

    Returns:
        The encoder, and its card.

    Raises:
        UserError: Files are missing or damaged, the class is not trusted or is not an encoder, or keys differ.
    """
    card = load_card(folder, trust)
    encoder = make_encoder(card.encoder, str(folder / CARD), trust)
    report = load(encoder, folder / WEIGHTS, minimum=1.0)
    if report.unexpected:
        message = (
            f"{folder}: card and weights do not belong together: the weights have {len(report.unexpected)} keys that "
            f"{card.encoder.class_path} lacks ({some(report.unexpected)})"
        )
        raise UserError(message)
    return encoder, card


def make_encoder(described: Imported, where: str, trust: Collection[str] = ()) -> Encoder:
    """Builds an encoder with random weights from its import path and arguments.

    Args:
        described: Import path and arguments.
        where: Place of the description, for messages.
        trust: As for ``load_card``.

    Raises:
        UserError: The class cannot be imported, is not an encoder, or refuses its arguments.
    """
    try:
        return encoder_class(described, where, trust)(**described.init_args)
    except TypeError as error:
        message = f"{where}: {described.class_path} does not take its init_args ({error})"
        raise UserError(message) from error


def encoder_class(described: Imported, where: str, trust: Collection[str] = ()) -> type[Encoder]:
    """Imports the class of an encoder.

    Raises:
        UserError: The class is not trusted, cannot be imported, or is not an encoder.
    """
    kind = network_class(described, where, trust)
    if not issubclass(kind, Encoder):
        message = f"{where}: {described.class_path} is no medssl.encoders.base.Encoder"
        raise UserError(message)
    return kind


# --- files of others


@dataclass(frozen=True)
class Report:
    """Result of loading a file: what happened to every key.

    Keys are those of the module, except for ``unexpected``.

    Attributes:
        loaded: Keys whose weights were loaded as they are.
        adapted: Keys whose weights were converted to another number of input channels, axes or patches.
        missing: Keys of the module that the file did not fill.
        unexpected: Keys of the file that were not used.
        unfit: The two shapes, for missing keys that the file has in a shape that cannot be converted.
        assumed: The grid that was assumed, for adapted tables of positions.
        unfilled_input: Key of the layer that reads the image, where nothing filled it; else "".
        choice_note: Which of several networks in the file was taken; "" for a file of one network.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)
    unfilled_input: str = ""
    choice_note: str = ""

    @property
    def matched(self) -> float:
        """Share of the module's keys that the file filled, 0 to 1."""
        filled = len(self.loaded) + len(self.adapted)
        return filled / max(1, filled + len(self.missing))

    def __str__(self) -> str:
        line = f"{self.matched:.0%} of the keys filled: {len(self.loaded)} loaded, {len(self.adapted)} adapted"
        line += f" ({next(iter(self.assumed.values()))})" if self.assumed else ""
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            line += f", {len(keys)} {name}" + (f" ({some(keys)})" if keys else "")
        if self.unfilled_input:
            why = self.unfit.get(self.unfilled_input, "the file has no such key")
            line += f"; the layer that reads the image is not filled: {self.unfilled_input} ({why})"
        return f"{line}; {self.choice_note}" if self.choice_note else line


def load(module: nn.Module, file: Path | str, *, minimum: float = ENOUGH) -> Report:
    """Loads the weights of a file into a module.

    Keys may have another prefix, or the layout of DINOv2 or DINOv3 in transformers. Weights for another number of
    channels, axes or patches are converted. With ``minimum`` of at least 0.9, two further checks apply. The layer that
    reads the image must be filled, since all other layers depend on it. And the file must be of the same network
    (:mod:`medssl.encoders.misfits`): as deep, and without tensors that would change what the network computes
    (LayerScale, class and register tokens, positions).

    Args:
        module: Receives the weights; on error it is unchanged.
        file: A safetensors file, or a torch file of tensors and plain containers.
        minimum: Smallest share of the module's keys that must be filled, 0 to 1.

    Returns:
        What happened to every key.

    Raises:
        UserError: The file cannot be read, holds tensors that cannot be weights, fills too few keys, does not fill the
            layer that reads the image, or comes from another or a deeper network.
    """
    file = Path(file)
    target = module.state_dict()
    layout = translated(read_tensors(file), target)
    source = layout.tensors
    strip, add, choice_note = _prefixes(source, target, file)
    renamed = {_known_name(add + key[len(strip) :], module, target): key for key in source if key.startswith(strip)}
    stem = next((key for key, value in target.items() if value.ndim >= 4), "")  # no learned token
    stem_keys = [key for key, value in target.items() if stem and value.data_ptr() == target[stem].data_ptr()]
    stem_axes = target[stem].ndim - 2 if stem else 2
    axes = (
        next((n - 2 for key in stem_keys if key in renamed and (n := source[renamed[key]].ndim) in (4, 5)), stem_axes),
        stem_axes,
    )
    fitted: dict[str, Tensor] = {}
    adapted_keys: list[str] = []
    unfit: dict[str, str] = {}
    shared = {key: source[renamed[key]] for key in target if key in renamed}
    refuse_strange(file, {key: (value, target[key]) for key, value in shared.items()})
    for key, value in shared.items():
        target_value = target[key]
        adapted_value = adapt_weight(value, target_value, is_first_layer=key in stem_keys, name=key, axes=axes)
        if adapted_value is None:
            unfit[key] = misfit(key, value, target_value)
            continue
        fitted[key] = adapted_value
        if adapted_value is not value or renamed[key] in layout.changed:
            adapted_keys.append(key)
    used_keys = {renamed[key] for key in (*fitted, *unfit)}
    report = Report(
        loaded=tuple(key for key in fitted if key not in adapted_keys),
        adapted=tuple(adapted_keys),
        missing=tuple(key for key in target if key not in fitted),
        unexpected=tuple(part for key in source if key not in used_keys for part in layout.origins[key]),
        unfit=unfit,
        assumed={
            key: assumed_grid(axes[0])
            for key in adapted_keys
            if is_position_table(key, source[renamed[key]], target[key])
            and source[renamed[key]].shape != target[key].shape
        },
        unfilled_input="" if any(key in fitted for key in stem_keys) else stem,
        choice_note=choice_note,
    )
    unused = {key: source[name] for key, name in renamed.items() if name not in used_keys}
    refuse_misfits(file, module, report, minimum, Keys(unused, target, axes))
    module.load_state_dict(fitted, strict=False)
    return report


def _known_name(key: str, module: nn.Module, target: Mapping[str, Tensor]) -> str:
    """The module's key of a tensor that published weights have by another name; else the key itself."""
    before, dot, name = key.rpartition(".")
    alias = before + dot + module.aliases.get(name, name) if isinstance(module, Encoder) else key
    return alias if alias in target else key


def _prefixes(source: Mapping[str, Tensor], target: Mapping[str, Tensor], file: Path) -> tuple[str, str, str]:
    """Prefix to remove from the file's keys and prefix to add, so that most keys and shapes agree.

    Where several networks in the file fit equally well, the averaged one is taken, and the third value says so.

    Raises:
        UserError: Several networks fit equally well, and no name marks one of them as averaged.
    """
    shapes = {(key, value.shape[:1]) for key, value in target.items()}

    def agreement(pair: tuple[str, str]) -> tuple[int, int]:
        strip, add = pair
        matches = sum((add + k[len(strip) :], v.shape[:1]) in shapes for k, v in source.items() if k.startswith(strip))
        return matches, -len(strip) - len(add)

    pairs = [(strip, add) for strip in _common(source) for add in _common(target)]
    scores = {pair: agreement(pair) for pair in pairs}
    strip, add = max(pairs, key=scores.__getitem__)
    best_count = scores[strip, add][0]
    best_strips = {shorter for (shorter, _), (matches, _) in scores.items() if matches == best_count}
    # prefixes of which one begins with the other are one network
    networks = sorted(
        network
        for network in best_strips
        if not any(network != shorter and network.startswith(shorter) for shorter in best_strips)
    )
    if best_count == 0 or len(networks) < 2:
        return strip, add, ""
    averaged = [network for network in networks if any(word in network.lower() for word in AVERAGED)]
    if len(averaged) != 1:
        names = ", ".join(network.rstrip(".") for network in networks)
        message = (
            f"{file}: {len(networks)} networks in it fit ({names}): save the one that is meant in a file of its own"
        )
        raise UserError(message)
    best = max((pair for pair in pairs if pair[0].startswith(averaged[0])), key=scores.__getitem__)
    others = ", ".join(network.rstrip(".") for network in networks if network not in averaged)
    return *best, f"taken is {averaged[0].rstrip('.')}, not {others}"


def _common(keys: Mapping[str, Tensor]) -> list[str]:
    """Dotted prefixes of at most four names that at least a tenth of the keys share; the empty prefix comes first."""
    counts: Counter[str] = Counter()
    for key in keys:
        names = key.split(".")
        counts.update(".".join(names[:depth]) + "." for depth in range(1, min(4, len(names) - 1) + 1))
    return ["", *(prefix for prefix, count in counts.items() if count >= len(keys) / 10)]
