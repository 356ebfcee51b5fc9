"""``medssl stages``: a list of runs that build on each other, each started where the one before it ended."""

from __future__ import annotations

import json
import logging
import pydoc
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from medssl.comparison.jobs import SIGNALS, command
from medssl.data.labels.selection import labeled_scans
from medssl.data.store.store import Store
from medssl.io.safe_path import python_command
from medssl.training.distributed import layout
from medssl.training.label_targets import schema_for
from medssl.types import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One run of the list.

    Attributes:
        name: Folder of the run below ``out``.
        verb: What is done.
        config: Recipe, by name or path.
        start: Name of the earlier stage whose weights it starts from; "" starts as the recipe says.
        settings: More keys of the verb with their values.
    """

    name: str
    verb: Literal["pretrain", "finetune"]
    config: str
    start: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StagesResult:
    """Runs that build on each other.

    Attributes:
        runs: Folders of the runs that are done, in their order.
        exit_code: 0, or that of the stage that ended otherwise.
    """

    runs: tuple[Path, ...]
    exit_code: int = 0


def stages(
    *, stages: tuple[Stage, ...], store: Path, out: Path, settings: dict[str, Any] | None = None
) -> StagesResult:
    """Run several trainings that build on each other.

    Args:
        stages: Trainings in their order: name, verb, recipe, stage to start from, settings.
        store: Folder written by ``medssl cache``.
        out: Folder that holds one run folder per stage.
        settings: Keys of one stage, such as global.training.steps, or of all stages, such as *.training.precision, with
            their values.

    Returns:
        The run folders; the exit code is that of the stage that ended otherwise, else 0.

    Raises:
        UserError: Two stages of one name, a start that is no earlier stage, settings for a stage that is not there, or
            labels that a stage lacks: nothing has begun then.
    """
    refuse(stages, settings or {})
    commands = [words_of(stage, store, out, settings or {}) for stage in stages]
    for stage, words in zip(stages, commands, strict=True):
        if not (out / stage.name).exists() and (code := check(stage, words, store)):
            return StagesResult((), code)
    for number, (stage, words) in enumerate(zip(stages, commands, strict=True), 1):
        if layout().first:
            log.info(f"stage {number} of {len(stages)}, {stage.name}: medssl {' '.join(words)}")
        if code := run(words):
            return StagesResult(tuple(out / done.name for done in stages[: number - 1]), code)
    return StagesResult(tuple(out / stage.name for stage in stages))


def refuse(stages: tuple[Stage, ...], settings: dict[str, Any]) -> None:
    """Refuses a list that cannot be done.

    Raises:
        UserError: Names the stage.
    """
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages):
        known = ", ".join(names[:number]) or "none"
        problem = ""
        if not stage.name or Path(stage.name).name != stage.name or stage.name.startswith((".", "*")):
            problem = "a name is that of a folder, without slashes and dots before it"
        elif stage.name in names[:number]:
            problem = "there are two of this name: rename one"
        elif stage.start and stage.start not in names[:number]:
            problem = f"it starts from {stage.start!r}, which is no earlier stage; there are {known}"
        if problem:
            message = f"stage {stage.name!r}: {problem}"
            raise UserError(message)
    for key in settings:
        name, _, rest = key.partition(".")
        if name not in {*names, "*"} or not rest:
            message = f"settings.{key}: expected STAGE.KEY or *.KEY, with a stage out of {', '.join(names)}"
            raise UserError(message)


def words_of(stage: Stage, store: Path, out: Path, settings: dict[str, Any]) -> list[str]:
    """The command of a stage behind ``medssl``; what is set for it wins over what is set for all, and over its own."""
    keys = {"store": str(store), "run": str(out / stage.name)}
    if stage.start:
        keys["pretrained"] = str(out / stage.start)
    given = dict(stage.settings)
    for name in ("*", stage.name):
        given |= {key.partition(".")[2]: value for key, value in settings.items() if key.partition(".")[0] == name}
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    return [stage.verb, f"--config={stage.config}", *(f"--{key}={value}" for key, value in keys.items()), *words]


def check(stage: Stage, words: list[str], store: Path) -> int:
    """Reads the command of a stage without doing it: a mistake in the last is found before the first takes a day.

    Returns:
        0, or the exit code of a command that cannot be read; it has said why.

    Raises:
        UserError: The store lacks the labels that the stage wants to learn from.
    """
    code, text = read(words)
    if code == 0 and stage.verb == "finetune":
        config, opened = yaml.safe_load(text), Store.open(store)
        data = config["data"]
        schema = schema_for(opened, data["target"], pydoc.locate(config["head"]["class_path"]))
        for split in (data["train"], data["validation"]):
            labeled_scans(opened, len(data["view"]["size"]), split, schema)
    return code


def read(words: list[str]) -> tuple[int, str]:
    """The exit code of a command that is read and not done, and its whole configuration in YAML."""
    command = [*python_command(), "-m", "medssl", *words, "--print_config"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def run(words: list[str]) -> int:
    """Does one command in a process of its own; returns its exit code.

    The process hears the signals that this one gets, and SIGTERM when this one is killed: it then saves and stops.
    """
    process = subprocess.Popen(command([words]))

    def pass_on(number: int, frame: object) -> None:
        if number != signal.SIGINT:  # Ctrl-C reaches both
            process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
