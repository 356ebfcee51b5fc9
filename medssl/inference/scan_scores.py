"""Scores of an evaluation by the kind of its labels: the table of cases, the summary, and those of subgroups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medssl.inference.temperature import CALIBRATION
from medssl.metrics import cases
from medssl.metrics.scoring import Options, scoring_of
from medssl.metrics.subgroups import subgroups
from medssl.reporting.calibration import calibration_chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from medssl.inference.finished_scans import Finished
    from medssl.types import LabelSchema, Scan


def rows_of(scans: Sequence[Scan], finished: Finished, schema: LabelSchema) -> list[Any]:
    """The rows of the scans that have a result."""
    scoring = scoring_of(schema)
    results = [(scan, finished.get(scan)) for scan in scans]
    return [row for scan, result in results if result is not None for row in scoring.rows(scan, result, schema)]


def write_scores(
    rows: Sequence[Any],
    schema: LabelSchema,
    out: Path,
    values: Mapping[str, Mapping[str, str]],
    options: Options,
    more: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the table of cases, and the calibration where there are probabilities of classes.

    Args:
        rows: What the network predicted, beside what is true.
        schema: The labels.
        out: Folder of the scores.
        values: Value of each scan by column, for subgroups.
        options: Of the summary.
        more: Of the summary: what was skipped, notes, by what it was made.

    Returns:
        The summary, and those of subgroups.
    """
    scoring = scoring_of(schema)
    summary = scoring.summarize(rows, schema, options, **more)
    groups = subgroups(rows, values, lambda own: scoring.summarize(own, schema, options))
    scoring.write(out / cases.CASES, rows, schema)
    if "calibration" in summary:
        cases.write_text(out / CALIBRATION, calibration_chart(summary))
    return summary, groups
