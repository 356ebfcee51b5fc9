"""Scores of numbers: the predicted beside the true number of each scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.number import number_of
from medssl.metrics.bootstrap import subject_means
from medssl.metrics.cases import NumberRow, read_regression, write_regression
from medssl.metrics.label_efficiency import Trained
from medssl.metrics.regression import r2, summarize_regression
from medssl.metrics.run_scores import mean_of_subjects
from medssl.metrics.scoring import Options, Scoring, by_scan, difference_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int

    from medssl.metrics.bootstrap import Interval
    from medssl.types import LabelSchema, Scan


class Regression(Scoring):
    """Scores of numbers. The result of a scan is a list of one number."""

    task = "regression"

    def rows(self, scan: Scan, result: Sequence[float], schema: LabelSchema) -> list[NumberRow]:
        """One row."""
        truth = number_of(dict(scan.labels.values), schema)
        return [NumberRow(scan.scan_id, scan.subject.subject_id, truth, result[0])]

    def write(self, path: Path, rows: Sequence[NumberRow], schema: LabelSchema) -> None:
        """Writes ``cases.csv``."""
        del schema
        write_regression(path, rows)

    def read(self, path: Path) -> list[NumberRow]:
        """Reads ``cases.csv``."""
        return read_regression(path)

    def summarize(
        self, rows: Sequence[NumberRow], schema: LabelSchema, options: Options, **more: Any
    ) -> dict[str, Any]:
        """Errors and correlations (``summarize_regression``)."""
        del options
        return summarize_regression(rows, schema.name, **more)

    def validate(
        self,
        results: Sequence[Sequence[float]],
        values: Sequence[Mapping[str, str]],
        subjects: Sequence[str],
        schema: LabelSchema,
    ) -> tuple[str, float]:
        """Share of the variance that is explained, on true numbers in single precision."""
        del subjects
        truth = np.array([number_of(row, schema) for row in values]).astype(np.float32)
        value = r2(np.array(results)[:, 0], truth)
        assert value is not None  # training is refused on scans of one number
        return "r2", value

    def run_scores(self, what: tuple[str, int, int], file: Path) -> Trained:
        """Mean absolute error of each subject, negative: more is better, as of every measure here."""
        rows = read_regression(file)
        errors = [-abs(row.predicted - row.truth) for row in rows]
        means = subject_means(errors, [row.subject_id for row in rows])
        return Trained(*what, "negative_mae", mean_of_subjects(means), means)

    def differences(
        self, first: Sequence[NumberRow], second: Sequence[NumberRow], summary: Mapping[str, Any]
    ) -> list[tuple[str, Interval]]:
        """Share of the variance that is explained."""
        del summary
        rows = by_scan(first, second)
        truth, subjects = np.array([row.truth for row in rows[0]]), [row.subject_id for row in rows[0]]

        def on_scans(predicted: Float[np.ndarray, "N"]) -> Callable[[Int[np.ndarray, "M"]], float | None]:
            return lambda selected: r2(predicted[selected], truth[selected])

        predictions = [np.array([row.predicted for row in of_run]) for of_run in rows]
        return [("r2", difference_interval(map(on_scans, predictions), subjects))]

    def columns(self, schema: LabelSchema) -> list[str]:
        """The number."""
        return [f"predicted:{schema.name}"]

    def cells(self, prediction: Sequence[float], schema: LabelSchema) -> list[object]:
        """The cell of a scan."""
        del schema
        return [*map(repr, prediction)]
