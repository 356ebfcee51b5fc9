"""What a comparison consists of: arms, their runs, and the study that holds both."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from medssl.io.documents import read_yaml
from medssl.metrics.tables import SUMMARY
from medssl.reporting.parts import METRICS, named_folder, read_log
from medssl.training.configuration import as_data
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from medssl.training.initial_weights import InitialWeights
    from medssl.types import Note

SCRATCH, RANDOM = "scratch", "random"
TEST = "test"  # folder of a run's scores


@dataclass(frozen=True)
class Arm:
    """Initial weights under a name.

    Attributes:
        name: Name in tables and folders.
        folder: Run folder of the encoder, of a baseline that of an encoder of the same kind; None if only an earlier
            command named the arm.
        baseline: Name of the from-scratch baseline with the same encoder; "" of a baseline itself.
        minutes: Minutes of pretraining, 0 from scratch; None if unknown.
        digest: Digest of the initial weights, or "random".
    """

    name: str
    folder: Path | None
    baseline: str = ""
    minutes: float | None = 0.0
    digest: str = RANDOM


@dataclass(frozen=True)
class Run:
    """One fine-tuning: an arm, a number of labeled subjects, and the number of the run."""

    arm: Arm
    labels: int
    number: int

    def folder(self, out: Path) -> Path:
        """Folder of the run."""
        return out / "runs" / self.arm.name / f"{self.labels}-{self.number}"

    def done(self, out: Path) -> bool:
        """Whether it is trained and scored: the scores are written last."""
        return (self.folder(out) / TEST / SUMMARY).exists()

    def has_other_weights(self, out: Path) -> bool:
        """Whether it started from other weights than those of its arm, or its configuration cannot be read."""
        file = self.folder(out) / "config.yaml"
        try:
            config = read_yaml(file) if file.exists() else {"start": self.arm.digest}
        except (yaml.YAMLError, ValueError):
            return True
        return not isinstance(config, dict) or config.get("start") != self.arm.digest

    def __str__(self) -> str:
        return f"{self.arm.name}, {self.labels} labeled subjects, run {self.number}"


@dataclass(frozen=True)
class Study:
    """All that a folder holds.

    Attributes:
        out: The folder.
        arms: Of this command and of earlier ones.
        requested: Runs of this command.
        earlier: Runs of earlier commands that this one does not name.
        notes: What a reader of the results must know.
    """

    out: Path
    arms: tuple[Arm, ...]
    requested: tuple[Run, ...]
    earlier: tuple[Run, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def done(self) -> list[Run]:
        """The runs that are trained and scored."""
        return [run for run in (*self.requested, *self.earlier) if run.done(self.out)]


def encoders_of(words: Sequence[str]) -> dict[str, Path]:
    """Run folders of the encoders by their names.

    Raises:
        UserError: Two of one name, or a name that cannot be a folder's or is reserved for baselines.
    """
    pairs = [named_folder(word) for word in words]
    names = [name for name, _ in pairs]
    hint = "Give each encoder a name, as NAME=FOLDER."
    for name in names:
        if names.count(name) > 1:
            message = f"{names.count(name)} encoders have the same name"
            raise UserError(message, key="encoders", got=name, hint=hint)
        if name == SCRATCH or name.startswith(f"{SCRATCH}-"):
            message = "the name is reserved for from-scratch baselines"
            raise UserError(message, key="encoders", got=name, hint=hint)
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            right = "letters, digits, '-', '_', '+' and '.'"
            message = "the name cannot be that of a folder"
            raise UserError(message, key="encoders", got=name, expected=right, hint=hint)
    return dict(pairs)


def encoder_digest(encoder: Mapping[str, Any]) -> str:
    """Digest of an encoder's class and arguments: encoders of one kind share a baseline."""
    arguments = {"in_channels": 1} | encoder["init_args"]
    described = json.dumps([encoder["class_path"], arguments], sort_keys=True)
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()


def arms_of(
    folders: Mapping[str, Path], initial_weights: Mapping[str, InitialWeights], recorded: Mapping[str, Any]
) -> Iterator[Arm]:
    """The encoders, and before the first of each kind its baseline: the recorded one, or a new one.

    Args:
        folders: Run folder of each encoder by its name.
        initial_weights: Of each, with the channels of the store.
        recorded: Content of ``compare.yaml``.
    """
    baselines = {kind: name for name, kind in recorded["encoders"].items()}
    given = set()
    for name, folder in folders.items():
        kind = encoder_digest(as_data(initial_weights[name].encoder))
        if kind not in baselines:
            baselines[kind] = f"{SCRATCH}-{name}" if SCRATCH in baselines.values() else SCRATCH
        if baselines[kind] not in given:
            given.add(baselines[kind])
            yield Arm(baselines[kind], folder)
        yield Arm(name, folder, baselines[kind], training_minutes(folder), initial_weights[name].digest)


def training_minutes(folder: Path) -> float | None:
    """Minutes of training: steps times the median time of one, so that a stop in between does not count.

    None where the run logged no times.
    """
    log = read_log(folder / METRICS)
    seconds = [value for _, value in log.values("seconds")]
    return median(seconds) * log.rows[-1]["step"] / 60 if seconds else None
