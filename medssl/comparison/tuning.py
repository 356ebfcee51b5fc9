"""Own learning rate of each arm: a grid of optimizer settings, from which validation subjects choose.

Every arm has the same grid and the same budget at each number of labeled subjects: ``runs`` runs with each setting.
The setting with the highest mean validation score is taken; the shared recipe is taken instead where it is as good to
within ``TIE``. Test subjects have no part in the choice. The runs that chose are also runs of the result, with the
chosen setting; the others are trained afterwards.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medssl.comparison.arms import TEST, Run
from medssl.data.labels.selection import labeled_scans
from medssl.io.atomic_write import atomic_write
from medssl.io.configurations import load_config, merged
from medssl.io.csv_text import as_csv
from medssl.io.documents import read_json, read_yaml
from medssl.io.typed_json import build
from medssl.metrics.cases import write_text
from medssl.ops.limits import expect
from medssl.reporting.parts import METRICS, read_log
from medssl.training.configuration import as_data
from medssl.training.optim import FineTuning
from medssl.types import LabelSchema, Note, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medssl.data.store.store import Store
    from medssl.training.settings import Examples

log = logging.getLogger(__name__)

TABLE, CHOSEN = "tuning.csv", "tuning.json"
COLUMNS = ("arm", "labels", "run", "setting", "learning_rate", "encoder_rate", "validation", "chosen")
TIE = 0.001  # difference of mean validation scores below which the shared recipe is kept
FEW = 5  # validation subjects below which a choice is hardly more than chance
STATES = "checkpoints"


@dataclass(frozen=True)
class Tuning:
    """Grid of optimizer settings from which each arm takes its own, by validation subjects.

    Attributes:
        learning_rates: Values of ``optimizer.learning_rate``, each above 0.
        encoder_rates: Values of ``optimizer.encoder_rate`` (learning rate of the encoder as a share of that of the
            head), each above 0.
        presets: Names of optimizer presets, such as sawtooth; each changes the optimizer of the recipe.
        runs: Runs with each setting, for each arm and number of labels, at least 1 and at most the runs of the
            comparison.
    """

    learning_rates: tuple[float, ...] = ()
    encoder_rates: tuple[float, ...] = ()
    presets: tuple[str, ...] = ()
    runs: int = 1

    def __post_init__(self) -> None:
        for name in ("learning_rates", "encoder_rates"):
            values = getattr(self, name)
            expect(all(value > 0 for value in values), f"tune.{name}", values, "numbers above 0")
        expect(self.runs >= 1, "tune.runs", self.runs, "at least 1")


@dataclass(frozen=True)
class Setting:
    """A setting of the grid: its name, which is that of a folder, and the whole optimizer as a recipe has it."""

    name: str
    optimizer: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """All settings of a comparison, beside the shared recipe.

    Attributes:
        settings: By their names.
        runs: Runs with each that choose.
        shared: Optimizer of the recipe.
    """

    settings: Mapping[str, Setting]
    runs: int
    shared: Mapping[str, Any]

    def candidates(self, run: Run) -> list[Run]:
        """Runs of one arm and number with every setting, the shared recipe first."""
        return [run, *(replace(run, setting=name) for name in self.settings)]

    def file(self, out: Path, name: str) -> Path:
        """Recipe that changes the shared one to a setting."""
        return out / "settings" / f"{name}.yaml"

    def write(self, out: Path) -> None:
        """Writes the recipe of each setting."""
        for name, setting in self.settings.items():
            text = yaml.safe_dump({"optimizer": dict(setting.optimizer)}, sort_keys=False)
            self.file(out, name).parent.mkdir(exist_ok=True)
            write_text(self.file(out, name), text)


def grid_of(tune: Tuning, optimizer: FineTuning, runs: int) -> Grid:
    """The settings of a grid; those that equal the shared recipe are left out.

    Raises:
        UserError: The grid is empty or holds nothing but the recipe, a preset is none, or more runs than there are.
    """
    if not (tune.learning_rates or tune.encoder_rates or tune.presets):
        message = "the grid holds no learning rate"
        hint = "Give tune.learning_rates, tune.encoder_rates or tune.presets."
        raise UserError(message, key="tune.learning_rates", hint=hint)
    if tune.runs > runs:
        message = f"there are {runs} runs"
        raise UserError(message, key="tune.runs", got=tune.runs, expected=f"at most {runs}")
    shared = as_data(optimizer)
    settings: dict[str, Setting] = {}
    for preset, rate, share in product(
        tune.presets or ("",), tune.learning_rates or (None,), tune.encoder_rates or (None,)
    ):
        content = merged(shared, load_config(preset, "optimizers") if preset else {})
        content |= {} if rate is None else {"learning_rate": float(rate), "learning_rate_per": None}
        content |= {} if share is None else {"encoder_rate": float(share)}
        content = as_data(build(type(optimizer), json.loads(json.dumps(content)), "tune"))
        parts = [Path(preset).stem] if preset else []
        parts += [] if rate is None else [f"lr{rate:g}"]
        parts += [] if share is None else [f"encoder{share:g}"]
        if content not in (shared, *(one.optimizer for one in settings.values())):
            settings["_".join(parts)] = Setting("_".join(parts), content)
    if not settings:
        message = "the grid holds nothing but the recipe's own setting"
        got = [*tune.learning_rates, *tune.encoder_rates, *tune.presets]
        raise UserError(message, key="tune", got=got, expected="at least one other setting")
    return Grid(settings, tune.runs, shared)


def validation_subjects(store: Store, schema: LabelSchema, data: Examples) -> int:
    """Number of labeled validation subjects, which choose.

    Raises:
        UserError: There are none.
    """
    try:
        scans = labeled_scans(store, len(data.view.size), data.validation, schema)
    except UserError as error:
        message = f"no validation subject can choose a learning rate: {error.message}"
        raise error.changed(
            message=message, key="tune", hint="Label validation subjects, or leave tune out."
        ) from error
    count = len(store.distinct_subjects(scans))
    return count if data.validation_labels is None else min(count, data.validation_labels)


def tuning_notes(grid: Grid, subjects: int) -> list[Note]:
    """Notes on the grid, the budget, and how many subjects choose."""
    names = ", ".join(grid.settings)
    chooser = f"{subjects} validation subject{'s' * (subjects != 1)}"
    text = (
        f"Own rates: each arm, from-scratch baselines too, takes the best of {len(grid.settings) + 1} settings "
        f"(recipe, {names}) at each number of labels, by {grid.runs} run{'s' * (grid.runs > 1)} each on {chooser}. "
        f"The recipe is kept where it is as good to within {TIE}."
    )
    notes = [Note("other", text)]
    if subjects < FEW:
        text = (
            f"Only {chooser} choose the rates: the choice is hardly more than chance. Prefer the verdict at one rate."
        )
        notes.append(Note("guess", text))
    return notes


def is_tried(run: Run, out: Path) -> bool:
    """Whether a run has a validation score: it is scored on test subjects, or marked by ``mark_tried``."""
    return run.done(out) or (run.folder(out) / CHOSEN).exists()


def mark_tried(run: Run, out: Path) -> None:
    """Records the validation score of a run that is trained; its checkpoints are no longer needed."""
    folder = run.folder(out)
    text = json.dumps({"validation": validation_of(folder)})
    atomic_write(folder / CHOSEN, lambda stream: stream.write(text.encode()))
    (folder / TEST).mkdir(exist_ok=True)  # marks it as trained: it may be scored later
    shutil.rmtree(folder / STATES, ignore_errors=True)


def validation_of(folder: Path) -> float | None:
    """Validation score of the weights of a run: of the best step where that is written, else of the last."""
    if (folder / CHOSEN).exists():
        score = read_json(folder / CHOSEN)["validation"]
        return None if score is None else float(score)
    logged = read_log(folder / METRICS)
    values = [value for _, value in logged.values(logged.validation)] if logged.validation else []
    if not values:
        return None
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    return max(values) if config.get("optimizer", {}).get("keep", "best") == "best" else values[-1]


def choose(grid: Grid, runs: Sequence[Run], out: Path) -> dict[str, dict[int, str]]:
    """Setting of each arm at each number of labels; "" is the shared recipe.

    An arm is left out where its runs by the shared recipe are not all there. A setting is left out where a run failed.

    Args:
        grid: The settings.
        runs: Runs by the shared recipe.
        out: Folder of the comparison.
    """
    chosen: dict[str, dict[int, str]] = {}
    for arm, labels in dict.fromkeys((run.arm.name, run.labels) for run in runs):
        own = [run for run in runs if (run.arm.name, run.labels) == (arm, labels) and run.number < grid.runs]
        means = {}
        for name in ("", *grid.settings):
            scores = [validation_of(one.folder(out)) for run in own if is_tried(one := replace(run, setting=name), out)]
            if len(scores) == grid.runs and None not in scores:
                means[name] = sum(score for score in scores if score is not None) / grid.runs
        if "" in means:
            best = max(means, key=means.__getitem__)
            chosen.setdefault(arm, {})[labels] = "" if means[best] - means[""] <= TIE else best
    return chosen


def write_tuning(grid: Grid, runs: Sequence[Run], rates: Mapping[str, Mapping[int, str]], out: Path) -> None:
    """Writes ``tuning.csv``: a row for each run that chooses, with its validation score."""
    rows: list[tuple[Any, ...]] = [COLUMNS]
    order = list(dict.fromkeys(run.arm.name for run in runs))
    chooses = [run for run in runs if run.number < grid.runs]
    for run in sorted(chooses, key=lambda run: (order.index(run.arm.name), run.labels, run.number)):
        for one in grid.candidates(run):
            if not is_tried(one, out):
                continue
            optimizer = grid.settings[one.setting].optimizer if one.setting else grid.shared
            score = validation_of(one.folder(out))
            chosen = rates.get(run.arm.name, {}).get(run.labels)
            values = (optimizer["learning_rate"], optimizer["encoder_rate"], "" if score is None else round(score, 6))
            mark = "" if chosen is None else int(chosen == one.setting)
            rows.append((run.arm.name, run.labels, run.number, one.setting or "recipe", *values, mark))
    if len(rows) > 1:
        write_text(out / TABLE, as_csv(rows))
