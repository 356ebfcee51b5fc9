"""Parts of a page: runs of pretraining and fine-tuning, and evaluations, read from their folders."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.encoders.weights import CARD, read_card
from medssl.io.documents import read_yaml
from medssl.metrics.cases import CASES
from medssl.metrics.scoring import scoring_of_task
from medssl.metrics.tables import SUMMARY, read_summary
from medssl.reporting.studies import PROBE, STUDY, Probes, Study, read_probes, read_study
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.metrics.scoring import Scoring
    from medssl.types import Card

METRICS, CONFIG, PICTURES = "metrics.jsonl", "config.yaml", "pictures"


@dataclass(frozen=True)
class Log:
    """Rows of ``metrics.jsonl`` by step; ``broken`` counts lines that cannot be read (a killed run may cut one)."""

    rows: tuple[dict[str, float], ...]
    broken: int

    def values(self, key: str) -> tuple[tuple[float, float], ...]:
        """Pairs of step and value, for the rows that have the key."""
        return tuple((row["step"], row[key]) for row in self.rows if key in row)

    @property
    def validation(self) -> str:
        """Name of the validation measure, such as "validation_dice"; "" without validation."""
        names = {key for row in self.rows for key in row if key.startswith("validation_")}
        return min(names, default="")


@dataclass(frozen=True)
class Picture:
    """A PNG; its name is the step of the run, or the scan, that it shows."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Run:
    """A run of pretraining, or of fine-tuning if ``card.tuned`` is set; ``picture`` is its newest picture."""

    name: str
    card: Card
    config: dict[str, Any]
    log: Log
    picture: Picture | None


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation in a folder; its rows are of one kind, as ``summary["kind"]`` says."""

    name: str
    summary: dict[str, Any]
    rows: tuple[Any, ...]
    pictures: tuple[Picture, ...]

    @property
    def scoring(self) -> Scoring:
        """How its kind is scored."""
        return scoring_of_task(self.summary["kind"])

    @property
    def scans(self) -> dict[str, str]:
        """Subject of each scan."""
        return {row.scan_id: row.subject_id for row in self.rows}


Part = Run | Evaluation | Probes | Study


def read_part(name: str, folder: Path) -> Part:
    """Reads a folder of any of the five kinds; its files determine the kind.

    Raises:
        UserError: The folder does not exist or has none of these kinds, or a file in it is damaged.
    """
    if not folder.is_dir():
        problem = "is a file, no folder" if folder.exists() else "no such folder"
        message = f"{folder}: {problem}: expected a folder of a run, evaluation, probe or comparison"
        raise UserError(message)
    if (folder / PROBE).exists():
        return read_probes(name, folder)
    if (folder / STUDY).exists():
        return read_study(name, folder)
    if (folder / SUMMARY).exists():
        return _read_evaluation(name, folder)
    if not (folder / CARD).exists():
        message = (
            f"{folder} holds neither {CARD} nor {SUMMARY}: expected a run folder whose first checkpoint is written, "
            "or a folder of an evaluation, a probe or a comparison"
        )
        raise UserError(message)
    config = _read_config(folder / CONFIG)
    files = sorted((folder / PICTURES).glob("step_*.png"), key=lambda file: (len(file.name), file.name))
    picture = Picture(str(int(re.sub(r"\D", "", files[-1].stem))), files[-1].read_bytes()) if files else None
    return Run(name, read_card(folder), config, read_log(folder / METRICS), picture)


def read_log(path: Path) -> Log:
    """Reads the rows that training logged; without a file there are no rows."""
    if not path.exists():
        return Log((), 0)
    rows, broken = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = {key: float(value) for key, value in json.loads(line).items() if isinstance(value, int | float)}
        except (ValueError, AttributeError):
            broken += 1
            continue
        if math.isfinite(row.get("step", math.nan)):
            rows.append(row)
        else:
            broken += 1
    return Log(tuple(sorted(rows, key=lambda row: row["step"])), broken)


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        message = f"{path} cannot be read ({str(error).splitlines()[0]}): expected what medssl wrote beside {CARD}"
        raise UserError(message) from error
    return config if isinstance(config, dict) else {}


def _read_evaluation(name: str, folder: Path) -> Evaluation:
    summary = read_summary(folder / SUMMARY)
    rows = scoring_of_task(summary["kind"]).read(folder / CASES)
    scans = {row.scan_id for row in rows}
    files = sorted((folder / PICTURES).glob("*.png"))
    pictures = tuple(Picture(file.stem, file.read_bytes()) for file in files if file.stem in scans)
    return Evaluation(name, summary, tuple(rows), pictures)


def named_folder(part: str) -> tuple[str, Path]:
    """Name and folder from ``NAME=FOLDER`` or ``FOLDER``; an existing path is taken as a folder, also with "="."""
    name, separator, folder = part.partition("=")
    if separator and not Path(part).exists():
        return name, Path(folder)
    return Path(part).resolve().name, Path(part)
