"""The road of weights: our folders of safetensors and card, and files of others with a report of every key."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from medssl.encoders.adapt import adapted, assumed, is_table
from medssl.encoders.base import Encoder
from medssl.encoders.tensors import read_tensors, refuse_strange, tensor_bytes
from medssl.io.atomic_write import atomic_files, explain_disk_errors
from medssl.io.documents import read_json
from medssl.io.trust import network_class, refuse_transforms
from medssl.types import Card, Imported, UserError
from medssl.types.provenance import as_written

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CARD = "encoder.safetensors", "card.json"
AVERAGED = ("teacher", "ema", "target", "momentum")  # of several networks in a file, the one that was averaged
INDEX = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")  # no weights
BLOCK = re.compile(r"(\d+)\.(?=[^.]+\.)")  # a numbered part of a network that has parts itself
ENOUGH = 0.9  # share of the keys that a file must fill where nothing else is asked for


# --- our own folders


def save_encoder(folder: Path, encoder: nn.Module, card: Card) -> None:
    """Writes ``encoder.safetensors`` and ``card.json``: both complete before either takes its place.

    Every key of the state dict is written, also where two keys name one tensor, so that any program can load the file
    strictly. Where pretrained weights came from is left out of the card: they are in the file now.

    Raises:
        UserError: The disk refuses the files; former files are untouched.
    """
    own = {k: v for k, v in card.encoder.init_args.items() if k != "pretrained"}
    text = json.dumps(asdict(replace(card, encoder=replace(card.encoder, init_args=own))), indent=2, default=str)
    folder.mkdir(parents=True, exist_ok=True)
    with explain_disk_errors(folder / WEIGHTS), atomic_files(folder / WEIGHTS, folder / CARD) as (weights, written):
        weights.write(tensor_bytes(encoder.state_dict(), {"format": "pt"}))
        written.write(text.encode() + b"\n")


def load_card(folder: Path, trust: Collection[str] = ()) -> Card:
    """Reads ``card.json`` to build what it describes.

    Args:
        folder: Of a run, which may be another's.
        trust: Import paths of classes that may be built although they are not on the list (``medssl.io.trust``).

    Raises:
        UserError: There is none, it is no card, or it names classes that are not built from files of others.
    """
    card, where = read_card(folder), f"{folder.name}/{CARD}"
    refuse_encoder(card.encoder, where, trust)
    if card.tuned is not None:
        network_class(card.tuned.head, f"{where}: tuned.head", trust)
    refuse_transforms(card.preprocess.transforms, where, trust)
    return card


def read_card(folder: Path) -> Card:
    """Reads ``card.json`` as data, of which nothing is to be built.

    Raises:
        UserError: There is none, or it is no card.
    """
    file = folder / CARD
    try:
        data = read_json(file)
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
        data["subjects"] = as_written(data["subjects"])
    card: Card = _build(Card, data, str(file))
    return card


def refuse_encoder(described: Imported, where: str, trust: Collection[str] = ()) -> None:
    """Refuses the encoder of a card that is not built from files of others, or would fetch weights of its own.

    Raises:
        UserError: Names its class, or its argument.
    """
    network_class(described, f"{where}: encoder", trust)
    if described.init_args.get("pretrained"):
        message = f"{where}: encoder has pretrained true, but its weights lie beside the card: set it to false"
        raise UserError(message)


def load_encoder(folder: Path, trust: Collection[str] = ()) -> tuple[Encoder, Card]:
    """Rebuilds the encoder that a card describes and loads its weights, every key; ``trust`` as of ``load_card``.

    Raises:
        UserError: Files are missing or damaged, the class is not one that is built or is no encoder, or keys differ.
    """
    card = load_card(folder, trust)
    encoder = make_encoder(card.encoder, str(folder / CARD), trust)
    report = load(encoder, folder / WEIGHTS, minimum=1.0)
    if report.unexpected:
        message = (
            f"{folder}: card and weights do not belong together: the weights have {len(report.unexpected)} keys that "
            f"{card.encoder.class_path} lacks ({_some(report.unexpected)})"
        )
        raise UserError(message)
    return encoder, card


def make_encoder(described: Imported, where: str, trust: Collection[str] = ()) -> Encoder:
    """An encoder with random weights, of its import path and arguments; ``where`` is what messages name.

    Raises:
        UserError: The class cannot be imported, is no encoder, or refuses its arguments.
    """
    try:
        return encoder_class(described, where, trust)(**described.init_args)
    except TypeError as error:
        message = f"{where}: {described.class_path} does not take its init_args ({error})"
        raise UserError(message) from error


def encoder_class(described: Imported, where: str, trust: Collection[str] = ()) -> type[Encoder]:
    """The class of an encoder, of its import path, on the list of ``medssl.io.trust`` or among ``trust``.

    Raises:
        UserError: It is not built, cannot be imported, or is no encoder.
    """
    kind = network_class(described, where, trust)
    if not issubclass(kind, Encoder):
        message = f"{where}: {described.class_path} is no medssl.encoders.base.Encoder"
        raise UserError(message)
    return kind


# --- files of others


@dataclass(frozen=True)
class Report:
    """What became of every key; names are the module's, those of ``unexpected`` the file's.

    ``adapted`` weights were made to fit another number of input channels, of axes, or of patches. ``unfit`` says of
    missing keys that the file has in another shape which shapes these are; ``assumed`` of adapted tables of positions
    which grid they were taken for; ``unread`` is the layer that reads the image, where nothing filled it; ``chosen`` of
    several networks in the file says which was taken.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)
    unread: str = ""
    chosen: str = ""

    @property
    def matched(self) -> float:
        """Share of the module's keys that the file filled."""
        found = len(self.loaded) + len(self.adapted)
        return found / max(1, found + len(self.missing))

    def __str__(self) -> str:
        line = f"{self.matched:.0%} of the keys filled: {len(self.loaded)} loaded, {len(self.adapted)} adapted"
        line += f" ({next(iter(self.assumed.values()))})" if self.assumed else ""
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            line += f", {len(keys)} {name}" + (f" ({_some(keys)})" if keys else "")
        if self.unread:
            why = self.unfit.get(self.unread, "the file has no such key")
            line += f"; the layer that reads the image is not filled: {self.unread} ({why})"
        return f"{line}; {self.chosen}" if self.chosen else line


def load(module: nn.Module, file: Path | str, *, minimum: float = ENOUGH) -> Report:
    """Loads weights whose keys may carry another prefix; those of other channels, axes or patches are made to fit.

    The layer that reads the image must be filled, too: it is one key of many, and all others build on it; and the file
    must end where the module does, not in further blocks: what was learned for those says little without them. Who asks
    for less than 90 % of the keys gets along without, and the report says so.

    Args:
        module: Gets the weights; on error it is left as it was.
        file: safetensors, or a torch file that holds nothing but tensors and plain containers.
        minimum: Smallest share of the module's keys that must be filled.

    Returns:
        What became of every key.

    Raises:
        UserError: The file cannot be read, has tensors that are no weights, fills fewer keys than ``minimum``, or not
            the layer that reads the image, or is of a deeper network.
    """
    file = Path(file)
    source, target = read_tensors(file), module.state_dict()
    strip, add, chosen = _prefixes(source, target, file)
    renamed = {add + key[len(strip) :]: key for key in source if key.startswith(strip)}
    stem = next((key for key, value in target.items() if value.ndim >= 4), "")  # no learned token
    same = [key for key, value in target.items() if stem and value.data_ptr() == target[stem].data_ptr()]
    own = target[stem].ndim - 2 if stem else 2
    axes = next((n - 2 for key in same if key in renamed and (n := source[renamed[key]].ndim) in (4, 5)), own), own
    new: dict[str, Tensor] = {}
    fitted: list[str] = []
    unfit: dict[str, str] = {}
    shared = {key: source[renamed[key]] for key in target if key in renamed}
    refuse_strange(file, {key: (value, target[key]) for key, value in shared.items()})
    for key, value in shared.items():
        old = target[key]
        fitting = adapted(value, old, first=key in same, name=key, axes=axes)
        if fitting is None:
            unfit[key] = misfit(key, value, old)
            continue
        new[key] = fitting
        if fitting is not value:
            fitted.append(key)
    told = {renamed[key] for key in (*new, *unfit)}
    report = Report(
        loaded=tuple(key for key in new if key not in fitted),
        adapted=tuple(fitted),
        missing=tuple(key for key in target if key not in new),
        unexpected=tuple(key for key in source if key not in told),
        unfit=unfit,
        assumed={key: assumed(axes[0]) for key in fitted if is_table(key, source[renamed[key]], target[key])},
        unread="" if any(key in new for key in same) else stem,
        chosen=chosen,
    )
    beyond = [add + key[len(strip) :] for key in report.unexpected if key.startswith(strip)]
    if report.matched < minimum:
        message = f"{file}: too few weights fit {type(module).__name__}: {report}; expected at least {minimum:.0%}"
        raise UserError(message)
    if minimum >= ENOUGH and (deeper := _deeper(beyond, target)):
        message = (
            f"{file}: the weights are those of a deeper network: {len(deeper)} of their keys go on where "
            f"{type(module).__name__} ends ({_some(deeper)}); make the encoder as deep as that of the file was, or "
            "choose another file"
        )
        raise UserError(message)
    if minimum >= ENOUGH and (inside := _inside(beyond, target)):
        message = (
            f"{file}: the weights are those of another network: {len(inside)} of their keys belong to blocks that "
            f"{type(module).__name__} has without them ({_some(inside)}); make the encoder as that of the file was "
            "(with its LayerScale, its norms), or choose another file"
        )
        raise UserError(message)
    if report.unread and minimum >= ENOUGH:
        message = (
            f"{file}: {type(module).__name__} would look at images through random weights: {report}; make the encoder "
            "as that of the file was (its patch, its first convolution), or choose another file"
        )
        raise UserError(message)
    module.load_state_dict(new, strict=False)
    return report


def _prefixes(source: Mapping[str, Tensor], target: Mapping[str, Tensor], file: Path) -> tuple[str, str, str]:
    """What to strip from the file's keys and what to put before them so that most keys and shapes agree.

    Where the file holds several networks that fit alike, the averaged one is taken, and the third value says so.

    Raises:
        UserError: Several networks fit alike, and no name says which one is averaged.
    """
    shapes = {(key, value.shape[:1]) for key, value in target.items()}

    def agreement(pair: tuple[str, str]) -> tuple[int, int]:
        strip, add = pair
        found = sum((add + k[len(strip) :], v.shape[:1]) in shapes for k, v in source.items() if k.startswith(strip))
        return found, -len(strip) - len(add)

    pairs = [(strip, add) for strip in _common(source) for add in _common(target)]
    scores = {pair: agreement(pair) for pair in pairs}
    strip, add = max(pairs, key=scores.__getitem__)
    most = scores[strip, add][0]
    alike = {other for (other, _), (found, _) in scores.items() if found == most}
    # prefixes of which one begins with the other are one network
    networks = sorted(one for one in alike if not any(one != other and one.startswith(other) for other in alike))
    if most == 0 or len(networks) < 2:
        return strip, add, ""
    averaged = [one for one in networks if any(word in one.lower() for word in AVERAGED)]
    if len(averaged) != 1:
        message = (
            f"{file}: {len(networks)} networks in it fit ({', '.join(one.rstrip('.') for one in networks)}): save the "
            "one that is meant in a file of its own"
        )
        raise UserError(message)
    best = max((pair for pair in pairs if pair[0].startswith(averaged[0])), key=scores.__getitem__)
    others = ", ".join(one.rstrip(".") for one in networks if one not in averaged)
    return *best, f"taken is {averaged[0].rstrip('.')}, not {others}"


def _common(keys: Mapping[str, Tensor]) -> list[str]:
    """Dotted beginnings, at most four names long, that at least a tenth of the keys share; the empty one first."""
    counts: Counter[str] = Counter()
    for key in keys:
        names = key.split(".")
        counts.update(".".join(names[:depth]) + "." for depth in range(1, min(4, len(names) - 1) + 1))
    return ["", *(prefix for prefix, count in counts.items() if count >= len(keys) / 10)]


def _deeper(unexpected: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """Keys of numbered blocks that go on where the module's own end, as ``stages.4.`` after ``stages.3.`` does."""
    last: dict[str, int] = {}
    for key in own:
        for found in BLOCK.finditer(key):
            last[key[: found.start(1)]] = max(int(found[1]), last.get(key[: found.start(1)], 0))
    return tuple(
        key
        for key in unexpected
        if any(int(found[1]) > last.get(key[: found.start(1)], int(found[1])) for found in BLOCK.finditer(key))
    )


def _inside(unexpected: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """Weights of the file in numbered blocks that the module has, but without these weights."""
    blocks = {key[: found.end()] for key in own for found in BLOCK.finditer(key)}
    return tuple(
        key
        for key in unexpected
        if not key.endswith(INDEX) and any(key[: found.end()] in blocks for found in BLOCK.finditer(key))
    )


def misfit(key: str, value: Tensor, old: Tensor) -> str:
    """Why a weight could not be made to fit."""
    shapes = f"{list(value.shape)} in the file, {list(old.shape)} here"
    return shapes + ("; only square or cubic grids of patches are made to fit" if is_table(key, value, old) else "")


def _some(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


# --- cards from JSON


def _build(kind: Any, data: Any, where: str) -> Any:
    """``data`` as a value of the annotated type ``kind``; ``where`` is what messages name."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, data, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if data is None else _build(next(k for k in inner if k is not NoneType), data, where)
    if origin is tuple and isinstance(data, list):
        kinds = [inner[0]] * len(data) if len(inner) == 2 and inner[1] is ... else inner
        return tuple(_build(k, value, f"{where}[{n}]") for n, (k, value) in enumerate(zip(kinds, data, strict=True)))
    if origin is dict and isinstance(data, dict):
        return {key: _build(inner[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind is Any or (data in inner if origin is Literal else _is(data, kind)):
        return data
    message = f"{where} holds {data!r}: expected {getattr(kind, '__name__', kind)}"
    raise UserError(message)


def _is(data: Any, kind: Any) -> bool:
    """Whether a JSON value is of a plain type; whole numbers are numbers, truth values are not."""
    if isinstance(data, bool):
        return kind is bool
    return isinstance(data, (int, float) if kind is float else kind)


def _build_dataclass(kind: type, data: Any, where: str) -> Any:
    """A dataclass of a mapping with its field names."""
    names = [field.name for field in fields(kind)]
    if not isinstance(data, dict) or (unknown := [key for key in data if key not in names]):
        got = f"unknown key {unknown[0]}" if isinstance(data, dict) else repr(data)
        message = f"{where}: {got}; a {kind.__name__} has {', '.join(names)}"
        raise UserError(message)
    needed = [own.name for own in fields(kind) if own.default is MISSING and own.default_factory is MISSING]
    if lacking := [name for name in needed if name not in data]:
        message = f"{where}: without {', '.join(lacking)} this is no {kind.__name__}: expected what medssl wrote there"
        raise UserError(message)
    hints = get_type_hints(kind)
    return kind(**{key: _build(hints[key], value, f"{where}: {key}") for key, value in data.items()})
