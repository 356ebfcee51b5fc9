"""The part of ``medssl evaluate`` on classes, findings and numbers: what a network answered, beside what is true."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from medssl.data.labels.kinds.findings import findings_of
from medssl.data.labels.kinds.number import number_of
from medssl.inference.temperature import CALIBRATION
from medssl.metrics import cases, tables
from medssl.metrics.cases import FindingsRow, NumberRow
from medssl.metrics.multi_label import summarize_multi_label
from medssl.metrics.regression import summarize_regression
from medssl.metrics.subgroups import subgroups
from medssl.reporting.calibration import calibration_chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from medssl.inference.finished_scans import Finished
    from medssl.metrics.calibration import Scaling
    from medssl.metrics.cases import ClassificationRow
    from medssl.types import LabelSchema, Scan


def score_answers(
    scans: Sequence[Scan],
    finished: Finished,
    schema: LabelSchema,
    file: Path,
    values: Mapping[str, Mapping[str, str]],
    more: Mapping[str, Any],
    specificity: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the table of cases.

    Args:
        scans: What was asked about.
        finished: The answers.
        schema: Findings, or the name of a number.
        file: Where the table goes.
        values: Value of each scan by column, for subgroups.
        more: Of the summary: what was skipped, notes, by what it was made.
        specificity: At which the sensitivity of findings is given.

    Returns:
        The summary, and those of subgroups.
    """
    pairs = [(scan, answer) for scan in scans if (answer := finished.get(scan)) is not None]
    if schema.kind == "number":
        numbers = [number_row(scan, answer, schema) for scan, answer in pairs]
        found = summarize_regression(numbers, schema.name, **more)
        cases.write_regression(file, numbers)
        return found, subgroups(numbers, values, lambda own: summarize_regression(own, schema.name))
    names = [name for _, name in schema.classes]
    rows = [findings_row(scan, answer, schema) for scan, answer in pairs]
    found = summarize_multi_label(rows, names, **more, specificity=specificity)
    cases.write_multi_label(file, rows, names)
    return found, subgroups(rows, values, lambda own: summarize_multi_label(own, names, specificity=specificity))


def score_classes(
    rows: Sequence[ClassificationRow],
    schema: LabelSchema,
    out: Path,
    values: Mapping[str, Mapping[str, str]],
    more: Mapping[str, Any],
    scaling: Scaling | None,
    specificity: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the table of cases and the calibration of classes.

    Args:
        rows: What a network answered, beside what is true.
        schema: The classes.
        out: Folder of the scores.
        values: Value of each scan by column, for subgroups.
        more: Of the summary: what was skipped, notes, by what it was made.
        scaling: A temperature that was fitted on other subjects.
        specificity: At which the sensitivity is given.

    Returns:
        The summary, and those of subgroups.
    """
    names = [name for _, name in schema.classes]
    summarize = partial(tables.summarize_classification, names=names, scaling=scaling, specificity=specificity)
    found = summarize(rows, **more)
    cases.write_classification(out / cases.CASES, rows, names)
    cases.write_text(out / CALIBRATION, calibration_chart(found))
    return found, subgroups(rows, values, summarize)


def findings_row(scan: Scan, answer: Sequence[float], schema: LabelSchema) -> FindingsRow:
    """The row of a scan whose findings were asked for."""
    truth = findings_of(dict(scan.labels.values), schema)
    return FindingsRow(scan.scan_id, scan.subject.subject_id, truth, tuple(answer))


def number_row(scan: Scan, answer: Sequence[float], schema: LabelSchema) -> NumberRow:
    """The row of a scan whose number was asked for."""
    truth = number_of(dict(scan.labels.values), schema)
    return NumberRow(scan.scan_id, scan.subject.subject_id, truth, answer[0])
