"""Scores of masks: Dice and further measures of each class of each scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medssl.metrics.bootstrap import mean_of_known, paired_difference, subject_means
from medssl.metrics.cases import SegmentationRow, read_segmentation, scan_scores, write_segmentation
from medssl.metrics.mask_measures import MEASURES, ClassScore
from medssl.metrics.run_scores import by_dice
from medssl.metrics.scoring import Options, Scoring
from medssl.metrics.tables import summarize_segmentation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.label_efficiency import Trained
    from medssl.types import LabelSchema, Scan


class Segmentation(Scoring):
    """Scores of masks. The result of a scan is a score for each class by name, as a dictionary."""

    task = "segmentation"
    lacks = True

    def rows(self, scan: Scan, result: Mapping[str, Mapping[str, Any]], schema: LabelSchema) -> list[SegmentationRow]:
        """A row for each class."""
        del schema
        return [
            SegmentationRow(scan.scan_id, scan.subject.subject_id, name, stored_score(score))
            for name, score in result.items()
        ]

    def write(self, path: Path, rows: Sequence[SegmentationRow], schema: LabelSchema) -> None:
        """Writes ``cases.csv``."""
        del schema
        write_segmentation(path, rows)

    def read(self, path: Path) -> list[SegmentationRow]:
        """Reads ``cases.csv``."""
        return read_segmentation(path)

    def summarize(
        self, rows: Sequence[SegmentationRow], schema: LabelSchema, options: Options, **more: Any
    ) -> dict[str, Any]:
        """Means over subjects (``summarize_segmentation``)."""
        del options
        return summarize_segmentation(rows, schema, **more)

    def validate(
        self,
        results: Sequence[Sequence[float | None]],
        values: Sequence[Mapping[str, str]],
        subjects: Sequence[str],
        schema: LabelSchema,
    ) -> tuple[str, float]:
        """Mean Dice over subjects; 0 where no scan has any class."""
        del values, schema
        means = subject_means([mean_of_known(list(row)) for row in results], list(subjects))
        return "dice", mean_of_known(list(means.values())) or 0.0

    def run_scores(self, what: tuple[str, int, int], file: Path) -> Trained:
        """Mean Dice of each subject."""
        return by_dice(what, read_segmentation(file))

    def picture_scores(self, rows: Sequence[SegmentationRow]) -> dict[str, float | None]:
        """Mean Dice of each scan."""
        return scan_scores(rows)

    def differences(
        self, first: Sequence[SegmentationRow], second: Sequence[SegmentationRow], summary: Mapping[str, Any]
    ) -> list[tuple[str, Interval]]:
        """Mean Dice, then the Dice of each class."""
        differences = []
        for name in (None, *summary["classes"]):
            means = []
            for rows in (first, second):
                of_class = [row for row in rows if name in (None, row.class_name)]
                subject_of = {row.scan_id: row.subject_id for row in of_class}
                scores = scan_scores(of_class)
                means.append(subject_means([scores[scan] for scan in subject_of], list(subject_of.values())))
            differences.append(("dice" if name is None else f"dice:{name}", paired_difference(*means)))
        return differences


def stored_score(score: Mapping[str, Any]) -> ClassScore:
    """The score of a class from the dictionary that stores it; 0.1.0 stored no measure that follows from others."""
    further = dict(score["further"])
    for name, measure in MEASURES.items():
        if measure.derived:
            further[name] = measure.value(None, further)
    return ClassScore(**{**score, "further": further})
