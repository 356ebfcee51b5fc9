"""A run folder and the trainer's state in it: written whole or not at all, read without unpickling code.

A run folder holds ``config.yaml`` (the resolved configuration without any path), ``checkpoints/`` (``last.pt``,
``best.pt``, ``step_000500.pt``), ``encoder.safetensors`` with ``card.json``, ``objective.safetensors``, logs, pictures.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml

from medssl.io.atomic_write import atomic_write
from medssl.io.documents import read_yaml
from medssl.io.locks import open_lock, try_lock
from medssl.types import TileRule, TissueRule, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# These change what is written or how fast, not what is learned; the two sizes are held to their product.
WRITING = ("checkpoint_every", "keep_every", "picture_every", "log_every", "health_every", "whole_image_batches")
FREE_KEYS = (
    "training.batch_size", "training.accumulate", "training.accelerator", "training.recompute",
    "training.extend", "data.workers", "probe",
    *(f"training.output.{name}" for name in WRITING),
)  # fmt: skip
GONE = (".pretrained_file",)  # ends of keys that older configurations hold as null
LATER: dict[str, Any] = {  # ends of keys, and what they are in configurations that are older than the keys
    ".sampling.labeled": 0.0, ".init_args.decoder": "light", ".init_args.crops": "one", ".init_args.balanced": False,
    ".matching.margin": 0.0,
    ".geometry.probability": 1.0, ".geometry.interpolation": "linear", ".min_overlap": 0.0,
    ".intensity.brightness_factor": [0.0, 1.0, 1.0], ".intensity.inverted_gamma": [0.0, 1.0, 1.0],
    ".intensity.reduced_resolution": [0.0, 1.0, 1.0], ".intensity.hed_jitter": [0.0, 0.0, 0.0],
    ".intensity.stain_exchange": 0.0, ".intensity.grayscale": 0.0, ".geometry.quarter_turns": 0.0,
    ".preprocess.stain.method": "none", ".preprocess.stain.reference": None, ".preprocess.mirror": "safe",
    **{f".preprocess.tissue.{key}": value for key, value in asdict(TissueRule()).items()},
    **{f".preprocess.tiles.{key}": value for key, value in asdict(TileRule()).items()}, ".mean": 0.0, ".deviation": 1.0,
    "training.recompute": False, "optimizer.learning_rate_per": None, "optimizer.schedule": "cosine",
    "optimizer.rate_decay.power": None, "optimizer.rate_decay.share": None, "optimizer.rate_decay.horizon": None,
    "optimizer.layer_decay": 1.0, "optimizer.unfreeze": 0.0, "optimizer.momentum": None, "optimizer.clip_per": "all",
    "optimizer.keep": "best", "optimizer.probe.start": False, "optimizer.probe.floor": False, "windows.mirror": "none",
}  # fmt: skip
BEFORE_DECAY = "before_decay.pt"  # the last checkpoint before the learning rate falls
SMOOTHING = 0.98
OLDER_LISTENERS = {"Health": "health", "ProbeWhileTraining": "online_probe"}  # names in checkpoints of 0.1.0
DAMAGE = (
    RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass
class Progress:
    """How far a run is; kept in its checkpoints.

    Attributes:
        step: Optimizer steps done.
        global_batch: Samples of one step over all processes and micro-batches.
        store: Digest of what the store holds, so that a run never goes on with other data.
        smoothed: Exponentially smoothed loss, None before the first step.
        judged: What ``best.pt`` is chosen by, the lower the better: the smoothed loss, or 1 - the validation metric.
        best: Lowest such value of any checkpoint.
        steps: Optimizer steps of the whole run; 0 in checkpoints of older versions.
        together: Samples that meet in one loss, over all processes; 0 in checkpoints of older versions.
    """

    step: int
    global_batch: int
    store: str
    smoothed: float | None = None
    judged: float | None = None
    best: float = float("inf")
    steps: int = 0
    together: int = 0

    def smooth(self, loss: float) -> float:
        """Takes the loss of a step into the smoothed loss, and returns that."""
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        return self.smoothed


def is_best(progress: Progress) -> bool:
    """Whether a run has not been judged better at any checkpoint."""
    return progress.judged is not None and progress.judged < progress.best


# --- one file


def link(source: Path, target: Path) -> None:
    """Gives a finished file a second name that outlives the first; copies where the disk knows no links."""
    part = target.with_name(f".{target.name}.link.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        atomic_write(target, lambda file: file.write(source.read_bytes()))
        return
    part.replace(target)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a trainer's state onto the CPU.

    Raises:
        UserError: The file is damaged; says what to do.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            flipped = archive.testzip()
        if flipped is not None:
            message = f"wrong checksum of {flipped}"
            raise ValueError(message)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["progress"] = Progress(**state["progress"])
        state.setdefault("listeners", listeners_of_older(state))
    except DAMAGE as error:
        others = [other.name for other in checkpoints(path.parent) if other != path]
        remedy = f"training goes on from {others[0]}" if others else "training starts anew"
        message = f"checkpoint {path.name} is damaged ({short(error)}): delete it and run the same command; {remedy}"
        raise UserError(message) from error
    return state


def listeners_of_older(state: dict[str, Any]) -> dict[str, Any]:
    """States of the listeners in a checkpoint of 0.1.0, which names them by their classes."""
    return {OLDER_LISTENERS.get(name, name): held for name, held in state.pop("callbacks", {}).items()}


def short(error: Exception) -> str:
    """The first line of an exception's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that training can go on from, the one to take first: ``last.pt``, then the newest numbered one."""
    last = folder / "last.pt"
    numbered = sorted(folder.glob("step_*.pt"), key=lambda path: (len(path.name), path.name), reverse=True)
    return [path for path in (last, *numbered, folder / "best.pt", folder / BEFORE_DECAY) if path.is_file()]


# --- the folder


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one configuration."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the trainer's states lie."""
        return self.path / "checkpoints"

    def state(self) -> dict[str, Any] | None:
        """The state to go on from, None where there is none yet.

        Raises:
            UserError: It is damaged.
        """
        files = checkpoints(self.checkpoints)
        return load_state(files[0]) if files else None

    def save(self, state: dict[str, Any], progress: Progress, *, keep: bool) -> bool:
        """Writes ``last.pt``; gives it a numbered name when ``keep``, and the name ``best.pt`` when it is the best.

        Returns:
            Whether it is the best so far.
        """
        best = is_best(progress)
        if best and progress.judged is not None:
            progress.best = progress.judged
        last = self.checkpoints / "last.pt"
        atomic_write(last, lambda file: torch.save(state | {"progress": asdict(progress)}, file))
        if keep:
            link(last, self.checkpoints / f"step_{progress.step:06d}.pt")
        if best:
            link(last, self.checkpoints / "best.pt")
        return best

    def keep_before_decay(self) -> None:
        """Gives ``last.pt``, if there is one, a second name, to prolong the run from."""
        last = self.checkpoints / "last.pt"
        if last.is_file():
            link(last, self.checkpoints / BEFORE_DECAY)

    @contextlib.contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Makes the folder or checks that it is this configuration's, and keeps other processes out.

        Raises:
            UserError: Another configuration's folder, no run folder, or in use.
        """
        stored = self.path / "config.yaml"
        names = {file.name for file in self.path.iterdir()} if self.path.is_dir() else set()
        names -= {".lock", self.checkpoints.name}  # a kill at the very start leaves these, and parts of config.yaml
        if not stored.exists() and any(not name.startswith(".config.yaml.") for name in names):
            message = f"{self.path.name}/ holds files but no config.yaml, so it is no run folder: choose an empty one"
            raise UserError(message)
        self.checkpoints.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open_lock(self.path / ".lock") as lock:
            if not try_lock(lock, inherited=False):
                message = f"another process is training in {self.path.name}/: wait for it, or choose another run folder"
                raise UserError(message)
            for part in self.path.rglob(".*.part"):
                part.unlink()
            if stored.exists() and checkpoints(self.checkpoints):
                refuse_other(read_yaml(stored), config, self.path.name)
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            atomic_write(stored, lambda file: file.write(text.encode()))
            yield


def refuse_other(stored: dict[str, Any], config: dict[str, Any], name: str) -> None:
    """Refuses a folder of another configuration, naming the keys that differ."""
    refuse_fewer_steps(stored, config, name)
    free = [*FREE_KEYS, *(["training.steps"] if dict(flat(config)).get("training.extend") else [])]
    differences = differing(stored, config, free)
    if not differences:
        return
    hint = " (training.extend true goes on with more steps)" if differences.startswith("training.steps") else ""
    if "optimizer.learning_rate: " in differences and dict(flat(config)).get("optimizer.learning_rate_per"):
        hint = " (the learning rate follows the samples of a step: keep batch_size x accumulate x processes as it was)"
    if stored.get("pretrained") and not config.get("pretrained"):
        hint = " (the run's own folder as `pretrained` continues from its checkpoint)"
    message = f"{name}/ is a run of another configuration: {differences}; choose another run folder{hint}"
    raise UserError(message)


def refuse_fewer_steps(stored: dict[str, Any], config: dict[str, Any], name: str) -> None:
    """Refuses ``training.extend`` with fewer steps than the run has: a schedule that is over cannot be shortened."""
    then, now = (dict(flat(one)).get("training.steps") for one in (stored, config))
    if dict(flat(config)).get("training.extend") and isinstance(then, int) and isinstance(now, int) and now < then:
        message = (
            f"training.steps is {now}, and {name}/ is a run of {then} steps: training.extend goes on with more steps, "
            f"give {then} or more"
        )
        raise UserError(message)


def differing(stored: dict[str, Any], config: dict[str, Any], free: Sequence[str]) -> str:
    """The first five keys that differ and are not free, with both values; "" where none does."""
    now = dict(flat(config))
    older = {key: value for key in now for end, value in LATER.items() if key.endswith(end)}
    then = older | {key: value for key, value in flat(stored) if value is not None or not key.endswith(GONE)}
    differences = [
        f"{key}: {then.get(key, 'absent')} there, {now.get(key, 'absent')} here"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not any(key == known or key.startswith(f"{known}.") for known in free)
    ]
    return "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dictionaries with its dotted key."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, item in value.items():
        yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
