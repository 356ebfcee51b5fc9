"""Scores of findings: a probability for each finding of each scan, and whether the scan has it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.findings import findings_of
from medssl.metrics.cases import PROBABILITY, FindingsRow, read_multi_label, write_multi_label
from medssl.metrics.classification import auroc
from medssl.metrics.multi_label import (
    NOT_KNOWN,
    findings_arrays,
    mean_of_findings,
    measures,
    summarize_multi_label,
)
from medssl.metrics.run_scores import Ranked, by_auroc
from medssl.metrics.scoring import Options, Scoring, by_scan, class_names, measure_differences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.label_efficiency import Trained
    from medssl.types import LabelSchema, Scan

COMPARED = ("auroc", "average_precision")  # more is better


class MultiLabel(Scoring):
    """Scores of findings. The result of a scan is a probability for each finding."""

    task = "multi_label"

    def rows(self, scan: Scan, result: Sequence[float], schema: LabelSchema) -> list[FindingsRow]:
        """One row."""
        truth = findings_of(dict(scan.labels.values), schema)
        return [FindingsRow(scan.scan_id, scan.subject.subject_id, truth, tuple(result))]

    def write(self, path: Path, rows: Sequence[FindingsRow], schema: LabelSchema) -> None:
        """Writes ``cases.csv``."""
        write_multi_label(path, rows, class_names(schema))

    def read(self, path: Path) -> list[FindingsRow]:
        """Reads ``cases.csv``."""
        return read_multi_label(path)[0]

    def summarize(
        self, rows: Sequence[FindingsRow], schema: LabelSchema, options: Options, **more: Any
    ) -> dict[str, Any]:
        """AUROC, average precision, ... of each finding (``summarize_multi_label``)."""
        return summarize_multi_label(rows, class_names(schema), specificity=options.specificity, **more)

    def validate(
        self,
        results: Sequence[Sequence[float]],
        values: Sequence[Mapping[str, str]],
        subjects: Sequence[str],
        schema: LabelSchema,
    ) -> tuple[str, float]:
        """Mean AUROC of the findings."""
        del subjects
        value = mean_of_findings(auroc, np.array(results), np.array([findings_of(row, schema) for row in values]))
        assert value is not None  # training is refused on scans of equal findings
        return "auroc", value

    def run_scores(self, what: tuple[str, int, int], file: Path) -> Trained:
        """What each subject adds to the mean AUROC of the findings."""
        rows, names = read_multi_label(file)
        scores, truth = findings_arrays(rows, names)
        present, known = truth == 1, truth != NOT_KNOWN
        ranked = [Ranked(name, scores[:, k], present[:, k], known[:, k]) for k, name in enumerate(names)]
        return by_auroc(what, ranked, [row.subject_id for row in rows])

    def differences(
        self, first: Sequence[FindingsRow], second: Sequence[FindingsRow], summary: Mapping[str, Any]
    ) -> list[tuple[str, Interval]]:
        """Mean AUROC and mean average precision."""
        rows = by_scan(first, second)
        truth = np.array([row.truth for row in rows[0]])
        defined = sum(summary["metrics"][f"auroc:{name}"]["value"] is not None for name in summary["classes"])

        def mean(
            measure: Callable[..., float | None],
            probabilities: Float[np.ndarray, "M K"],
            selected: Int[np.ndarray, "M"],
        ) -> float | None:
            return mean_of_findings(measure, probabilities, truth[selected], every=defined)

        return measure_differences(rows, {name: partial(mean, measures()[name]) for name in COMPARED})

    def columns(self, schema: LabelSchema) -> list[str]:
        """A probability for each finding."""
        return [PROBABILITY + name for name in class_names(schema)]

    def cells(self, prediction: Sequence[float], schema: LabelSchema) -> list[object]:
        """The cells of a scan."""
        del schema
        return [*map(repr, prediction)]
