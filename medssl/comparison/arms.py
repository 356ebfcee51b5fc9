"""What a comparison consists of, and what its folder is held to: ``compare.yaml``, which names no path.

The file keeps the recipe, the weights of each arm, the encoder of each twin from scratch, which runs were asked for,
and after how many runs p-values were told, so that encoders, numbers of labels and runs can be added by later commands
in any order, and a verdict says how often it was looked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from medssl.io.atomic_write import atomic_write
from medssl.io.documents import read_yaml
from medssl.metrics.tables import SUMMARY
from medssl.reporting.parts import METRICS, named_folder, read_log
from medssl.training.checkpoint import FREE_KEYS, differing
from medssl.training.configuration import as_data
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from medssl.training.initial_weights import InitialWeights

SCRATCH, RANDOM = "scratch", "random"
CONFIG, TEST = "compare.yaml", "test"  # of the comparison; of a run
RECORDED = ("arms", "encoders", "twins", "minutes", "asked", "looks")  # what compare.yaml holds beside the recipe
FREE = (*FREE_KEYS, "windows.batch_size", "windows.accelerator")  # how fast a scan is scored, not how well


@dataclass(frozen=True)
class Arm:
    """One way to start.

    Attributes:
        name: What it is called.
        folder: Run folder of its encoder, or of the encoder that it is the twin of; None of an arm that only an
            earlier command named.
        twin: Name of the arm from scratch with the same encoder; "" of such an arm itself.
        minutes: Of pretraining, 0 from scratch; None where that is not known.
        digest: Names the weights that its runs start from, or "random".
    """

    name: str
    folder: Path | None
    twin: str = ""
    minutes: float | None = 0.0
    digest: str = RANDOM


@dataclass(frozen=True)
class Run:
    """One fine-tuning: an arm, a number of labeled subjects, and which of the runs it is."""

    arm: Arm
    labels: int
    number: int

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
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
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> list[Run]:
        """The runs that are trained and scored."""
        return [run for run in (*self.requested, *self.earlier) if run.done(self.out)]


def encoders_of(words: Sequence[str]) -> dict[str, Path]:
    """Run folders of the encoders by their names.

    Raises:
        UserError: Two of one name, or a name that cannot be a folder's or is a twin's.
    """
    found = [named_folder(word) for word in words]
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1 or name == SCRATCH or name.startswith(f"{SCRATCH}-"):
            why = f"{names.count(name)} encoders are called" if names.count(name) > 1 else "a twin is called"
            message = f"{why} {name!r}: give each a name of its own, as NAME=FOLDER"
            raise UserError(message)
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            message = f"{name!r} cannot be the name of a folder: use letters, digits, '-', '_', '+' and '.'"
            raise UserError(message)
    return dict(found)


def encoder_digest(encoder: Mapping[str, Any]) -> str:
    """Digest of an encoder's class and arguments: encoders of one kind share a twin."""
    arguments = {"in_channels": 1} | encoder["init_args"]
    described = json.dumps([encoder["class_path"], arguments], sort_keys=True)
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()


def arms_of(
    folders: Mapping[str, Path], starts: Mapping[str, InitialWeights], kept: Mapping[str, Any]
) -> Iterator[Arm]:
    """The encoders, and a twin for each kind of encoder among them: the one that is kept, or a new one.

    Args:
        folders: Run folder of each encoder by its name.
        starts: Of each, with the channels of the store.
        kept: What ``compare.yaml`` holds.
    """
    held = {kind: name for name, kind in kept["encoders"].items()}
    told = set()
    for name, folder in folders.items():
        kind = encoder_digest(as_data(starts[name].encoder))
        if kind not in held:
            held[kind] = f"{SCRATCH}-{name}" if SCRATCH in held.values() else SCRATCH
        if held[kind] not in told:
            told.add(held[kind])
            yield Arm(held[kind], folder)
        yield Arm(name, folder, held[kind], training_minutes(folder), starts[name].digest)


def read_recorded(out: Path) -> dict[str, Any]:
    """What ``compare.yaml`` holds; one of an earlier version is completed from the runs.

    Raises:
        UserError: It is damaged, or gone from a folder with runs; or an earlier version left runs of different
            encoders in one folder.
    """
    file = out / CONFIG
    nothing: dict[str, Any] = {key: {} for key in RECORDED}
    if not file.exists():
        if (out / "runs").exists():
            message = (
                f"{out}/ holds runs but no {CONFIG}, which says by which recipe and from which weights they were made: "
                "put it back, or choose another folder for results"
            )
            raise UserError(message)
        return nothing
    try:
        found = read_yaml(file)
    except (yaml.YAMLError, ValueError):
        found = None
    if not is_complete(found):
        message = (
            f"{file} is damaged (empty, cut off or edited): put a whole one back, or choose another folder for results"
        )
        raise UserError(message)
    kept: dict[str, Any] = nothing | found
    if kept["arms"] and not kept["encoders"]:
        kinds = {name: _kind_of_runs(out, name) for name in kept["arms"]}
        kept["encoders"] = {
            name: kinds[name] for name, digest in kept["arms"].items() if digest == RANDOM and kinds[name]
        }
        twins = {kind: name for name, kind in kept["encoders"].items()}
        kept["twins"] = {
            name: twins[kinds[name]]
            for name, digest in kept["arms"].items()
            if digest != RANDOM and kinds[name] in twins
        }
    return kept


def is_complete(found: object) -> bool:
    """Whether ``compare.yaml`` has all that is read of it: a recipe with its batch, and the keys beside it."""
    if not isinstance(found, dict) or "arms" not in found or not isinstance(found.get("training"), dict):
        return False
    return {"batch_size", "accumulate"} <= found["training"].keys() and all(
        isinstance(found.get(key, {}), dict) for key in RECORDED
    )


def record_plan(
    out: Path, held: dict[str, Any], arms: Sequence[Arm], starts: Mapping[str, InitialWeights], asked: Sequence[Run]
) -> dict[str, Any]:
    """Keeps the recipe and the arms, or holds the command to those that are kept; arms and runs may be added.

    Args:
        out: Folder of the comparison.
        held: The recipe, and what is learned from and scored.
        arms: Of this command.
        starts: Of each encoder.
        asked: Runs of this command.

    Returns:
        What ``compare.yaml`` now holds.

    Raises:
        UserError: Names the keys that differ.
    """
    kept = read_recorded(out)
    weights = {arm.name: arm.digest for arm in arms}
    now = {"arms": kept["arms"] | weights, "twins": kept["twins"] | {arm.name: arm.twin for arm in arms if arm.twin}}
    then = {"arms": now["arms"] | kept["arms"], "twins": now["twins"] | kept["twins"]}
    if (out / CONFIG).exists():
        former = {key: value for key, value in kept.items() if key not in RECORDED}
        if found := differing(_with_batch(former) | then, _with_batch(held) | now, FREE):
            message = f"{out}/ holds another comparison: {found}; choose another folder for results"
            raise UserError(message)
    now["encoders"] = dict(kept["encoders"])
    for arm in arms:
        if arm.twin:
            now["encoders"][arm.twin] = encoder_digest(as_data(starts[arm.name].encoder))
    now["minutes"] = kept["minutes"] | {arm.name: arm.minutes for arm in arms if arm.minutes is not None}
    now["asked"] = {name: dict(counts) for name, counts in kept["asked"].items()}
    for run in asked:
        counts = now["asked"].setdefault(run.arm.name, {})
        counts[run.labels] = max(counts.get(run.labels, 0), run.number + 1)
    now["looks"] = kept["looks"]
    _write(out, held | now)
    return now


def record_looks(out: Path, runs: Mapping[str, Mapping[int, int]]) -> list[int]:
    """Keeps after how many runs p-values are told; whoever adds runs until they please finds too much.

    Args:
        out: Folder of the comparison.
        runs: Of each arm, how many runs give a verdict, by the number of labeled subjects.

    Returns:
        Numbers of runs, rising, after which p-values of the same arm and number of labeled subjects were told earlier.
    """
    kept, earlier = read_recorded(out), set[int]()
    for arm, counts in runs.items():
        for labels, count in counts.items():
            told = kept["looks"].setdefault(arm, {}).setdefault(labels, [])
            earlier |= {number for number in told if number < count}
            if count not in told:
                told.append(count)
    _write(out, kept)
    return sorted(earlier)


def study_of(out: Path, kept: Mapping[str, Any], arms: Sequence[Arm], asked: Sequence[Run]) -> Study:
    """This command's arms and runs together with those of earlier commands, in the order in which they came.

    Args:
        out: Folder of the comparison.
        kept: What ``compare.yaml`` holds.
        arms: Of this command.
        asked: Runs of this command.
    """
    own = {arm.name: arm for arm in arms}
    every = [own.get(name) or _earlier(name, kept) for name in kept["arms"]]
    known = {(run.arm.name, run.labels, run.number) for run in asked}
    earlier = []
    for arm in every:
        wanted = {(n, number) for n, count in kept["asked"].get(arm.name, {}).items() for number in range(count)}
        for folder in (out / "runs" / arm.name).glob("*-*"):
            if found := re.fullmatch(r"(\d+)-(\d+)", folder.name):
                wanted.add((int(found[1]), int(found[2])))
        earlier += [Run(arm, *place) for place in sorted(wanted) if (arm.name, *place) not in known]
    return Study(out, tuple(every), tuple(asked), tuple(earlier))


def training_minutes(folder: Path) -> float | None:
    """Minutes of training: steps times the median time of one, so that a stop in between does not count.

    None where the run logged no times.
    """
    log = read_log(folder / METRICS)
    seconds = [value for _, value in log.values("seconds")]
    return median(seconds) * log.rows[-1]["step"] / 60 if seconds else None


def _earlier(name: str, kept: Mapping[str, Any]) -> Arm:
    """An arm that this command does not name."""
    digest = kept["arms"][name]
    minutes = 0.0 if digest == RANDOM else kept["minutes"].get(name)
    return Arm(name, None, kept["twins"].get(name, ""), minutes, digest)


def _write(out: Path, kept: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(kept), sort_keys=False)
    atomic_write(out / CONFIG, lambda stream: stream.write(text.encode()))


def _kind_of_runs(out: Path, name: str) -> str:
    """The kind of encoder that an arm's runs began with; "" where none has begun."""
    found = defaultdict(list)
    for file in sorted((out / "runs" / name).glob("*/config.yaml")):
        config = read_yaml(file)
        found[encoder_digest(config["encoder"])].append(file.parent.name)
    if len(found) > 1:
        groups = "; ".join(", ".join(runs) for runs in found.values())
        message = (
            f"{out}/runs/{name}/ holds runs of {len(found)} different encoders, which an earlier version mixed up "
            f"({groups}): delete those of all but one, or choose another folder for results"
        )
        raise UserError(message)
    return next(iter(found), "")


def _with_batch(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the samples of a step, which its two free factors must leave as they are."""
    training = recipe["training"]
    return {**recipe, "training": {**training, "samples of a step": training["batch_size"] * training["accumulate"]}}
