"""Initial weights of the arms: runs of pretraining, several of them under one name, and files of other programs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medssl.comparison.arms import ORACLE, SCRATCH, Arm, encoder_digest, training_minutes
from medssl.data.store.store import Store
from medssl.encoders.tensors import read_tensors
from medssl.encoders.weights import make_encoder
from medssl.io.configurations import config_names, is_fragment, load_config
from medssl.io.documents import read_yaml
from medssl.io.typed_json import build
from medssl.reporting.parts import named_folder
from medssl.training.configuration import as_data
from medssl.training.initial_weights import InitialWeights, load_encoder
from medssl.types import Imported, Note, UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor, nn

SPACING_RATIO = 1.25  # largest ratio of two spacings that count as equal
FORM = "NAME=FILE@ENCODER with a preset, or NAME=FILE.yaml that holds weights, encoder and spacing_mm"


@dataclass(frozen=True)
class Foreign:
    """Weights of another program, with what is known of their pretraining.

    Attributes:
        weights: File of weights, relative to the file of this description.
        encoder: Preset of the encoder, or a class with its arguments.
        spacing_mm: Spacing of the pretraining scans per axis in mm; None if unknown.
        channels: Channels of the pretraining scans; None reads them from the weights.
    """

    weights: str
    encoder: Any
    spacing_mm: tuple[float, ...] | None = None
    channels: int | None = None


def encoder_arms(words: Sequence[str], *, oracle: bool = False) -> list[Arm]:
    """Arms of run folders: ``FOLDER``, ``NAME=FOLDER``, or ``NAME=FOLDER,FOLDER`` for several pretrainings.

    Args:
        words: One for each arm.
        oracle: Whether names of oracles are reserved.

    Raises:
        UserError: Two of one name, or a name that cannot be a folder's or is reserved for baselines.
    """
    pairs = [named_folder(word) for word in words]
    names = [name for name, _ in pairs]
    for name in names:
        refuse_name(name, names, "encoders", oracle=oracle)
    arms: list[Arm] = []
    for name, folder in pairs:
        paths = (folder,) if folder.exists() else tuple(Path(part) for part in str(folder).split(",") if part)
        if len(paths) > 1 and f"{name}=" not in words[len(arms)]:
            message = "several runs of pretraining need a name"
            raise UserError(message, key="encoders", got=str(folder), expected="NAME=FOLDER,FOLDER")
        minutes = [training_minutes(path) for path in paths]
        total = None if None in minutes else sum(one for one in minutes if one is not None)
        arms.append(Arm(name, paths, minutes=total))
    return arms


def refuse_name(name: str, names: Sequence[str], key: str, *, oracle: bool) -> None:
    """Refuses a name that stands twice, is reserved, or cannot be that of a folder.

    Raises:
        UserError: Names it.
    """
    hint = "Give each encoder a name, as NAME=FOLDER."
    if names.count(name) > 1:
        message = f"{names.count(name)} encoders have the same name"
        raise UserError(message, key=key, got=name, hint=hint)
    reserved = {SCRATCH: "from-scratch baselines"} | ({ORACLE: "oracles"} if oracle else {})
    for word, what in reserved.items():
        if name == word or name.startswith(f"{word}-"):
            message = f"the name is reserved for {what}"
            raise UserError(message, key=key, got=name, hint=hint)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        right = "letters, digits, '-', '_', '+' and '.'"
        message = "the name cannot be that of a folder"
        raise UserError(message, key=key, got=name, expected=right, hint=hint)


def refuse_mixed(name: str, initial: Sequence[InitialWeights], runs: int) -> list[Note]:
    """Refuses several pretrainings of one arm that cannot stand for one way of pretraining.

    Returns:
        Notes on how runs are spread over them.

    Raises:
        UserError: Their encoders differ, two have the same weights, or there are more of them than runs.
    """
    if len(initial) == 1:
        return []
    encoders = [encoder_digest(as_data(one.encoder)) for one in initial]
    other = next((number for number, digest in enumerate(encoders) if digest != encoders[0]), None)
    if other is not None:
        message = f"{name}: run {other + 1} has another encoder than run 1: pretrainings of one arm differ in the seed"
        got = f"{described(initial[0].encoder)} and {described(initial[other].encoder)}"
        raise UserError(message, key="encoders", got=got, hint="Give them names of their own.")
    digests = [one.digest for one in initial]
    if len({*digests}) < len(digests):
        same = next(number for number, digest in enumerate(digests) if digests.index(digest) < number)
        message = f"{name}: runs {digests.index(digests[same]) + 1} and {same + 1} hold the same weights"
        raise UserError(message, key="encoders", hint="Pretrain with another seed (training.seed).")
    if len(digests) > runs:
        message = f"{name} has {len(digests)} pretrainings, which {runs} runs cannot all start from"
        raise UserError(message, key="runs", got=runs, expected=f"{len(digests)} or more")
    text = (
        f"{name}: {runs} runs are spread over {len(digests)} pretrainings. Runs of one pretraining are averaged first; "
        "intervals and p-values are over pretrainings and test subjects."
    )
    notes = [Note("other", text)]
    if runs % len(digests):
        text = f"{name}: {runs} runs are not a multiple of {len(digests)} pretrainings: each pretraining counts alike."
        notes.append(Note("other", text))
    objectives = {json.dumps(as_data(one.card.objective), sort_keys=True) for one in initial if one.card}
    if len(objectives) > 1:
        notes.append(Note("guess", f"{name}: its pretrainings differ in the objective, not in the seed alone."))
    return notes


def described(encoder: Imported) -> str:
    """An encoder on one line."""
    arguments = ", ".join(f"{key} {value}" for key, value in encoder.init_args.items())
    return f"{encoder.class_path.rpartition('.')[2]}({arguments})"


# --- weights of other programs


def foreign_arms(
    words: Sequence[str], names: Sequence[str], *, trust: Collection[str] = (), oracle: bool = False
) -> list[tuple[Arm, Foreign]]:
    """Arms of weights of other programs, with what is known of them.

    Args:
        words: ``NAME=FILE@ENCODER`` or ``NAME=FILE.yaml`` for each.
        names: Names of the other arms.
        trust: Import paths of encoders that may be built.
        oracle: Whether names of oracles are reserved.

    Raises:
        UserError: No file, no encoder, or a name that is taken.
    """
    arms = []
    pairs = [word.partition("=")[::2] if "=" in word else ("", word) for word in words]
    for name, place in pairs:
        if not name:
            message = "the name is missing"
            raise UserError(message, key="against", got=place, expected=FORM)
        refuse_name(name, [*names, *(name for name, _ in pairs)], "against", oracle=oracle)
        facts = read_foreign(place)
        file = Path(facts.weights)
        if not file.is_file():
            what = "is a folder: name runs of medssl as encoders" if file.is_dir() else "there is no such file"
            message = f"{name}: {what}"
            raise UserError(message, key="against", got=facts.weights, expected=FORM)
        encoder = encoder_of(facts.encoder, frozenset(trust))
        arms.append((Arm(name, (file,), minutes=None, kind="foreign", encoder=encoder), facts))
    return arms


def read_foreign(place: str) -> Foreign:
    """What is known of weights: a description in YAML, or a file of weights with a preset behind "@".

    Raises:
        UserError: It is no such file, or says no encoder.
    """
    file = Path(place)
    if file.suffix in {".yaml", ".yml"}:
        try:
            content = read_yaml(file)
        except (OSError, ValueError, yaml.YAMLError) as error:
            message = f"the description cannot be read ({str(error).splitlines()[0]})"
            raise UserError(message, key="against", got=place, expected=FORM) from error
        facts: Foreign = build(Foreign, content, f"against: {file.name}")
        return Foreign(str(file.parent / facts.weights), facts.encoder, facts.spacing_mm, facts.channels)
    weights, _, preset = place.rpartition("@")
    if not weights or not preset:
        message = "the encoder of the weights is missing"
        raise UserError(message, key="against", got=place, expected=FORM)
    return Foreign(weights, preset)


def encoder_of(value: Any, trust: frozenset[str]) -> Imported:
    """An encoder from the name of a preset, or from a class with its arguments.

    Raises:
        UserError: There is no such preset, or the encoder would bring weights of its own.
    """
    content = load_config(value, "encoders", trust) if is_fragment("encoder", value) else value
    if not isinstance(content, dict) or "class_path" not in content:
        message = "no encoder"
        right = f"a preset ({', '.join(config_names('encoders'))}), or class_path and init_args"
        raise UserError(message, key="against", got=value, expected=right)
    encoder = Imported(content["class_path"], dict(content.get("init_args") or {}))
    if encoder.init_args.get("pretrained"):
        message = "the encoder has pretrained true and would bring weights of its own"
        raise UserError(message, key="against", hint="Set it to false: the file holds the weights.")
    return encoder


def check_foreign(
    arm: Arm, facts: Foreign, initial: InitialWeights, store: Store, allow: Collection[str]
) -> list[Note]:
    """Loads weights of another program for a try, and compares channels and spacing with those of the store.

    Returns:
        Notes on what is unknown and was assumed.

    Raises:
        UserError: The weights do not fit the encoder, or were trained with other channels or another spacing.
    """
    try:
        network = make_encoder(initial.encoder, "encoder", initial.trust)
        report = load_encoder(network, initial)
    except UserError as error:
        raise error.changed(message=f"{arm.name}: {error.message}", key="against") from error
    notes = [Note("guess", f"{arm.name}: {report}.")]
    found = facts.channels or stem_channels(read_tensors(arm.paths[0]), network)
    if found and found != store.channels and "channels" not in allow:
        message = f"{arm.name}: the weights take {found} channel(s), the scans of the store have {store.channels}"
        hint = "Choose other scans, or set allow to channels to spread the weights of the first layer."
        raise UserError(message, key="against", hint=hint)
    if found and found != store.channels:
        text = f"{arm.name}: weights for {found} channel(s) are spread over {store.channels} (allowed)."
        notes.append(Note("guess", text))
    stored = store.spacing(3)
    if facts.spacing_mm is None:
        place = "x".join(f"{mm:g}" for mm in stored) + " mm" if stored else "of the store"
        text = f"{arm.name}: spacing and intensity rule of its pretraining are unknown: assumed those of the store"
        notes.append(Note("guess", f"{text} ({place})."))
    elif stored:
        notes += _compare_spacing(arm.name, facts.spacing_mm, stored, allow)
    return notes


def _compare_spacing(
    name: str, spacing: Sequence[float], stored: Sequence[float], allow: Collection[str]
) -> list[Note]:
    """Refuses another spacing than that of the store, unless it is allowed."""
    axes = min(len(spacing), len(stored))  # 2D weights: in plane
    pairs = list(zip(spacing[:axes], stored[:axes], strict=True))
    if all(max(a, b) <= SPACING_RATIO * min(a, b) for a, b in pairs if a > 0 and b > 0):
        return []
    sizes = ["x".join(f"{mm:g}" for mm in one) for one in (spacing, stored)]
    message = f"{name}: the weights were trained at {sizes[0]} mm, the store has {sizes[1]} mm"
    if "preprocess" in allow:
        return [Note("guess", f"{message} (allowed).")]
    hint = "Cache the scans at that spacing (preprocess.spacing_mm), or set allow to preprocess."
    raise UserError(message, key="against", hint=hint)


def stem_channels(tensors: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Input channels of the file's first layer: the key with the longest common end with that of the encoder."""
    stem = next((key for key, value in network.state_dict().items() if value.ndim >= 4), "")
    parts = stem.split(".")[::-1]

    def common(key: str) -> int:
        pairs = zip(key.split(".")[::-1], parts, strict=False)
        return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(parts), key.count(".") + 1))

    kernels = {key: value for key, value in tensors.items() if value.ndim >= 4}
    best = max(kernels, key=common, default="")
    return kernels[best].shape[1] if best and common(best) > 1 else None


def weights_argument(arm: Arm) -> tuple[str, ...]:
    """Options that give the encoder of a file of weights; none where a run folder says it."""
    if arm.encoder is None:
        return ()
    return ("--encoder", json.dumps(as_data(arm.encoder)))
