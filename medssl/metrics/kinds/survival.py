"""Scores of survival: the predicted risk of each scan beside its time and event."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.survival import survival_of
from medssl.metrics.comparison import pseudo_values
from medssl.metrics.label_efficiency import Trained
from medssl.metrics.scoring import Options, Scoring, by_scan, difference_interval
from medssl.metrics.survival import (
    SurvivalRow,
    arrays_of,
    c_index,
    read_survival,
    summarize_survival,
    write_survival,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Int

    from medssl.metrics.bootstrap import Interval
    from medssl.types import LabelSchema, Scan


class Survival(Scoring):
    """Scores of survival. The result of a scan is a list of one risk."""

    task = "survival"

    def rows(self, scan: Scan, result: Sequence[float], schema: LabelSchema) -> list[SurvivalRow]:
        """One row."""
        time, event = survival_of(dict(scan.labels.values), schema)
        return [SurvivalRow(scan.scan_id, scan.subject.subject_id, time, int(event), result[0])]

    def write(self, path: Path, rows: Sequence[SurvivalRow], schema: LabelSchema) -> None:
        """Writes ``cases.csv``."""
        del schema
        write_survival(path, rows)

    def read(self, path: Path) -> list[SurvivalRow]:
        """Reads ``cases.csv``."""
        return read_survival(path)

    def summarize(
        self, rows: Sequence[SurvivalRow], schema: LabelSchema, options: Options, **more: Any
    ) -> dict[str, Any]:
        """C-index (``summarize_survival``)."""
        del options
        return summarize_survival(rows, schema.name, **more)

    def validate(
        self,
        results: Sequence[Sequence[float]],
        values: Sequence[Mapping[str, str]],
        subjects: Sequence[str],
        schema: LabelSchema,
    ) -> tuple[str, float]:
        """C-index."""
        del subjects
        pairs = np.array([survival_of(row, schema) for row in values])
        value = c_index(np.array(results)[:, 0], pairs[:, 0], pairs[:, 1])
        assert value is not None  # training is refused where no two scans can be put in order
        return "c_index", value

    def run_scores(self, what: tuple[str, int, int], file: Path) -> Trained:
        """What each subject adds to the C-index."""
        rows = read_survival(file)
        measure = on_scans(rows)
        whole = measure(np.arange(len(rows)))
        shares = pseudo_values(measure, [row.subject_id for row in rows])
        scores = {subject: None if math.isnan(value) else value for subject, value in shares.items()}
        return Trained(*what, "c_index", math.nan if whole is None else whole, scores)

    def differences(
        self, first: Sequence[SurvivalRow], second: Sequence[SurvivalRow], summary: Mapping[str, Any]
    ) -> list[tuple[str, Interval]]:
        """C-index."""
        del summary
        rows = by_scan(first, second)
        return [("c_index", difference_interval(map(on_scans, rows), [row.subject_id for row in rows[0]]))]

    def columns(self, schema: LabelSchema) -> list[str]:
        """The risk."""
        return [f"risk:{schema.name.replace(',', '+')}"]

    def cells(self, prediction: Sequence[float], schema: LabelSchema) -> list[object]:
        """The cell of a scan."""
        del schema
        return [*map(repr, prediction)]


def on_scans(rows: Sequence[SurvivalRow]) -> Callable[[Int[np.ndarray, "M"]], float | None]:
    """C-index from the places of some scans."""
    risk, time, event = arrays_of(rows)
    return lambda selected: c_index(risk[selected], time[selected], event[selected])
