"""What a comparison consists of: arms, their runs, and the study that holds both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import yaml

from medssl.io.documents import read_yaml
from medssl.metrics.tables import SUMMARY
from medssl.reporting.parts import METRICS, read_log
from medssl.training.configuration import as_data

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from medssl.training.initial_weights import InitialWeights
    from medssl.types import Imported, Note

SCRATCH, ORACLE, RANDOM = "scratch", "oracle", "random"
TEST = "test"  # folder of a run's scores
OWN_RATE = ", own rate"  # behind the name of an arm, in tables and curves
ArmKind = Literal["pretrained", "scratch", "oracle", "foreign"]


@dataclass(frozen=True)
class Arm:
    """Initial weights under a name.

    Attributes:
        name: Name in tables and folders.
        paths: Run folders of pretraining, which the runs take in turn, or one file of weights. Of a baseline those of
            an arm with the same encoder. Empty if only an earlier command named the arm.
        baseline: Name of the from-scratch baseline with the same encoder; "" of a baseline itself.
        minutes: Minutes of pretraining, 0 from scratch; None if unknown.
        digests: Digest of the initial weights at each path, or "random".
        kind: "pretrained" by medssl, "scratch" (random weights), "oracle" (trained with all labels), or "foreign"
            (weights of another program).
        encoder: Encoder of a file of weights; None takes that of the run folder.
    """

    name: str
    paths: tuple[Path, ...] = ()
    baseline: str = ""
    minutes: float | None = 0.0
    digests: tuple[str, ...] = (RANDOM,)
    kind: ArmKind = "pretrained"
    encoder: Imported | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Run:
    """One fine-tuning: an arm, a number of labeled subjects, the number of the run, and the optimizer setting.

    ``setting`` is a name from the grid of ``medssl.comparison.tuning``, "" for the shared recipe.
    """

    arm: Arm
    labels: int
    number: int
    setting: str = ""

    @property
    def pretraining(self) -> int:
        """Number of the pretraining that it starts from: runs take those of the arm in turn."""
        return self.number % len(self.arm.digests)

    @property
    def digest(self) -> str:
        """Digest of its initial weights."""
        return self.arm.digests[self.pretraining]

    def folder(self, out: Path) -> Path:
        """Folder of the run."""
        of_arm = out / "runs" / self.arm.name
        return (of_arm / self.setting if self.setting else of_arm) / f"{self.labels}-{self.number}"

    def done(self, out: Path) -> bool:
        """Whether it is trained and scored: the scores are written last."""
        return (self.folder(out) / TEST / SUMMARY).exists()

    def has_other_weights(self, out: Path) -> bool:
        """Whether it started from other weights than those of its arm, or its configuration cannot be read."""
        file = self.folder(out) / "config.yaml"
        try:
            config = read_yaml(file) if file.exists() else {"start": self.digest}
        except (yaml.YAMLError, ValueError):
            return True
        return not isinstance(config, dict) or config.get("start") != self.digest

    def __str__(self) -> str:
        setting = f", {self.setting}" if self.setting else ""
        return f"{self.arm.name}, {self.labels} labeled subjects, run {self.number}{setting}"


@dataclass(frozen=True)
class Study:
    """All that a folder holds.

    Attributes:
        out: The folder.
        arms: Of this command and of earlier ones.
        requested: Runs of this command, by the shared recipe.
        earlier: Runs of earlier commands that this one does not name, by the shared recipe.
        notes: What a reader of the results must know.
        rates: Chosen setting of each tuned arm by the number of labeled subjects; "" is the shared recipe.
    """

    out: Path
    arms: tuple[Arm, ...]
    requested: tuple[Run, ...]
    earlier: tuple[Run, ...] = ()
    notes: tuple[Note, ...] = ()
    rates: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @property
    def done(self) -> list[Run]:
        """The runs by the shared recipe that are trained and scored."""
        return [run for run in (*self.requested, *self.earlier) if run.done(self.out)]

    def at_own_rate(self, runs: Sequence[Run]) -> list[Run]:
        """The same runs with the chosen setting of their arm, of arms that are tuned at that number of labels."""
        chosen = [(run, self.rates.get(run.arm.name, {}).get(run.labels)) for run in runs]
        return [replace(run, setting=setting) for run, setting in chosen if setting is not None]

    @property
    def tuned(self) -> list[Run]:
        """The runs at the own rate of their arm that are trained and scored."""
        return [run for run in self.at_own_rate((*self.requested, *self.earlier)) if run.done(self.out)]


def encoder_digest(encoder: Mapping[str, Any]) -> str:
    """Digest of an encoder's class and arguments: encoders of one kind share a baseline."""
    arguments = {"in_channels": 1} | encoder["init_args"]
    described = json.dumps([encoder["class_path"], arguments], sort_keys=True)
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()


def arms_of(
    arms: Sequence[Arm], initial_weights: Mapping[str, Sequence[InitialWeights]], recorded: Mapping[str, Any]
) -> Iterator[Arm]:
    """The arms, and before the first of each kind of encoder its baseline: the recorded one, or a new one.

    Args:
        arms: Arms of the command, whose baselines are not known yet.
        initial_weights: Of each, one for each path, with the channels of the store.
        recorded: Content of ``compare.yaml``.
    """
    baselines = {kind: name for name, kind in recorded["encoders"].items()}
    given = set()
    for arm in arms:
        initial = initial_weights[arm.name]
        kind = encoder_digest(as_data(initial[0].encoder))
        if kind not in baselines:
            baselines[kind] = f"{SCRATCH}-{arm.name}" if SCRATCH in baselines.values() else SCRATCH
        if baselines[kind] not in given:
            given.add(baselines[kind])
            yield Arm(baselines[kind], arm.paths[:1], kind="scratch", encoder=arm.encoder)
        yield replace(arm, baseline=baselines[kind], digests=tuple(one.digest for one in initial))


def encoders_of(arms: Sequence[Arm], initial_weights: Mapping[str, Sequence[InitialWeights]]) -> dict[str, str]:
    """Digest of the encoder of each from-scratch baseline."""
    named = [arm for arm in arms if arm.baseline and arm.name in initial_weights]
    return {arm.baseline: encoder_digest(as_data(initial_weights[arm.name][0].encoder)) for arm in named}


def training_minutes(folder: Path) -> float | None:
    """Minutes of training: steps times the median time of one, so that a stop in between does not count.

    None where the run logged no times.
    """
    log = read_log(folder / METRICS)
    seconds = [value for _, value in log.values("seconds")]
    return median(seconds) * log.rows[-1]["step"] / 60 if seconds else None
