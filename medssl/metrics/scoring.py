"""What scoring does for every kind of label, and where that of a kind is found by its schema or the task of a head.

The scoring of a kind is one file of ``metrics/kinds``: a subclass of ``Scoring`` with the task of its ``TargetKind``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medssl.data.labels.kinds.base import kind_of
from medssl.metrics.bootstrap import statistic_interval
from medssl.metrics.classification import SPECIFICITY
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jaxtyping import Float, Int

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.calibration import Scaling
    from medssl.metrics.label_efficiency import Trained
    from medssl.types import LabelSchema, Scan

    Statistic = Callable[[Int[np.ndarray, "M"]], float | None]
    Measure = Callable[[Float[np.ndarray, "M K"], Int[np.ndarray, "M"]], float | None]


@dataclass(frozen=True)
class Options:
    """What summaries take beside rows.

    Attributes:
        specificity: Share of the scans without a class or finding that the threshold of the sensitivity leaves below.
        scaling: A temperature of the probabilities that was fitted on other subjects; None for none.
    """

    specificity: float = SPECIFICITY
    scaling: Scaling | None = None


class Scoring(ABC):
    """Scores of one kind of label. A result is what is kept of a scan: a prediction, or scores of its voxels.

    Attributes:
        task: What heads of the kind answer (``TargetKind.task``); "kind" in summary.json.
        calibrates: Whether a temperature can be fitted to its probabilities.
        lacks: Whether a class can be absent from the label or the prediction of a scan.
    """

    task: ClassVar[str]
    calibrates: ClassVar[bool] = False
    lacks: ClassVar[bool] = False

    # --- one evaluation

    @abstractmethod
    def rows(self, scan: Scan, result: Any, schema: LabelSchema) -> list[Any]:
        """Rows of the table of cases for a scan: each with scan_id and subject_id."""

    @abstractmethod
    def write(self, path: Path, rows: Sequence[Any], schema: LabelSchema) -> None:
        """Writes the table of cases.

        Raises:
            UserError: The disk refuses the file.
        """

    @abstractmethod
    def read(self, path: Path) -> list[Any]:
        """Reads the table of cases back.

        Raises:
            UserError: No such file, or a cell that cannot be.
        """

    @abstractmethod
    def summarize(self, rows: Sequence[Any], schema: LabelSchema, options: Options, **more: Any) -> dict[str, Any]:
        """What ``summary.json`` holds; ``more`` is what was skipped, notes, and by what it was made.

        Raises:
            UserError: No rows, or rows that do not fit together.
        """

    # --- while training, and between runs

    @abstractmethod
    def validate(
        self, results: Sequence[Any], values: Sequence[Mapping[str, str]], subjects: Sequence[str], schema: LabelSchema
    ) -> tuple[str, float]:
        """Name and value of the measure that validation chooses weights by; more is better.

        Args:
            results: What the network answers for each scan; of masks Dice per class.
            values: Labels of whole scans.
            subjects: Subject of each scan.
            schema: The classes.
        """

    @abstractmethod
    def run_scores(self, what: tuple[str, int, int], file: Path) -> Trained:
        """What a run of a comparison scores on each subject, from its table of cases.

        Args:
            what: Arm, labeled subjects and number of the run.
            file: The table.
        """

    @abstractmethod
    def differences(
        self, first: Sequence[Any], second: Sequence[Any], summary: Mapping[str, Any]
    ) -> list[tuple[str, Interval]]:
        """The measures by which two evaluations of the same scans differ, more is better, and by how much.

        Args:
            first: Rows of one.
            second: Rows of the other.
            summary: Of the first.

        Raises:
            UserError: The labels of the scans differ.
        """

    def picture_scores(self, rows: Sequence[Any]) -> dict[str, float | None]:
        """Score of each scan that has a picture, by which pictures are ranked; {} where there are no pictures."""
        del rows
        return {}

    # --- predictions without labels

    def columns(self, schema: LabelSchema) -> list[str]:
        """Columns of predictions.csv behind the name of the scan; of masks none."""
        del schema
        return []

    def cells(self, prediction: Sequence[float], schema: LabelSchema) -> list[object]:
        """The cells of a scan under these columns."""
        del prediction, schema
        return []


@functools.cache
def scorings() -> tuple[Scoring, ...]:
    """The scoring of each kind: one of each subclass in the files of ``metrics/kinds``."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "kinds")]):
        importlib.import_module(f"{__package__}.kinds.{module.name}")
    return tuple(scoring() for scoring in Scoring.__subclasses__())


def tasks() -> list[str]:
    """The tasks whose predictions can be scored."""
    return [scoring.task for scoring in scorings()]


def scoring_of_task(task: str) -> Scoring:
    """The scoring of a task.

    Raises:
        UserError: There is none.
    """
    for scoring in scorings():
        if scoring.task == task:
            return scoring
    message = f"predictions of the task {task!r} cannot be scored: expected one of {', '.join(sorted(tasks()))}"
    raise UserError(message)


def scoring_of(schema: LabelSchema) -> Scoring:
    """The scoring of a schema."""
    return scoring_of_task(kind_of(schema).task)


def class_names(schema: LabelSchema) -> list[str]:
    """Names of the classes in the order of the outputs."""
    return [name for _, name in schema.classes]


def by_scan(first: Sequence[Any], second: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The rows of two evaluations in the order of their scans, one row a scan.

    Raises:
        UserError: The same scan has other labels in one than in the other.
    """
    rows = [sorted(of_run, key=lambda row: row.scan_id) for of_run in (first, second)]
    if [row.truth for row in rows[0]] != [row.truth for row in rows[1]]:
        message = "the two evaluations have different labels of the same scans"
        raise UserError(message)
    return rows[0], rows[1]


def measure_differences(
    rows: tuple[Sequence[Any], Sequence[Any]], measures: Mapping[str, Measure]
) -> list[tuple[str, Interval]]:
    """Differences of measures of probabilities between two evaluations, with their intervals.

    Args:
        rows: Of both evaluations, as ``by_scan`` gives them.
        measures: By name; each takes the probabilities [M, K] of some scans and their places among the rows.
    """
    scores = [np.array([row.probabilities for row in of_run]) for of_run in rows]
    subjects = [row.subject_id for row in rows[0]]

    def on_scans(measure: Measure, probabilities: Float[np.ndarray, "N K"]) -> Statistic:
        return lambda selected: measure(probabilities[selected], selected)

    return [
        (name, difference_interval([on_scans(measure, probabilities) for probabilities in scores], subjects))
        for name, measure in measures.items()
    ]


def difference_interval(pair: Iterable[Statistic], subjects: Sequence[str]) -> Interval:
    """The difference of a measure of two evaluations with its interval: the same subjects are drawn for both."""
    first, second = pair

    def gain(selected: Int[np.ndarray, "M"]) -> float | None:
        first_score, second_score = first(selected), second(selected)
        return None if first_score is None or second_score is None else first_score - second_score

    return statistic_interval(gain, subjects)
