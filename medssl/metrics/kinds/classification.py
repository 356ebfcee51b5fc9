"""Scores of one class of several: probabilities of each scan beside its true class."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.classes import class_number
from medssl.metrics.cases import PROBABILITY, ClassificationRow, read_classification, write_classification
from medssl.metrics.classification import metrics, score_cases
from medssl.metrics.run_scores import Ranked, by_auroc
from medssl.metrics.scoring import Options, Scoring, by_scan, class_names, measure_differences
from medssl.metrics.tables import arrays_of, summarize_classification

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.label_efficiency import Trained
    from medssl.types import LabelSchema, Scan

COMPARED = ("auroc", "balanced_accuracy")  # more is better


class Classification(Scoring):
    """Scores of classes. The result of a scan is a probability for each class."""

    task = "classification"
    calibrates = True

    def rows(self, scan: Scan, result: Sequence[float], schema: LabelSchema) -> list[ClassificationRow]:
        """One row."""
        names = class_names(schema)
        truth = names[class_number(dict(scan.labels.values), schema)]
        predicted = names[int(np.argmax(result))]
        return [ClassificationRow(scan.scan_id, scan.subject.subject_id, truth, predicted, tuple(result))]

    def write(self, path: Path, rows: Sequence[ClassificationRow], schema: LabelSchema) -> None:
        """Writes ``cases.csv``."""
        write_classification(path, rows, class_names(schema))

    def read(self, path: Path) -> list[ClassificationRow]:
        """Reads ``cases.csv``."""
        return read_classification(path)[0]

    def summarize(
        self, rows: Sequence[ClassificationRow], schema: LabelSchema, options: Options, **more: Any
    ) -> dict[str, Any]:
        """AUROC, accuracy, calibration, ... (``summarize_classification``)."""
        return summarize_classification(
            rows, class_names(schema), scaling=options.scaling, specificity=options.specificity, **more
        )

    def validate(
        self,
        results: Sequence[Sequence[float]],
        values: Sequence[Mapping[str, str]],
        subjects: Sequence[str],
        schema: LabelSchema,
    ) -> tuple[str, float]:
        """AUROC."""
        del subjects
        truth = np.array([class_number(row, schema) for row in values])
        value = score_cases(np.array(results), truth, class_names(schema))["auroc"]
        assert value is not None  # training is refused on scans of one class
        return "auroc", value

    def run_scores(self, what: tuple[str, int, int], file: Path) -> Trained:
        """What each subject adds to the mean AUROC of the classes; of two classes to that of the second."""
        rows, names = read_classification(file)
        probabilities, truth = np.array([row.probabilities for row in rows]), np.array([row.truth for row in rows])
        known = np.ones(len(rows), bool)
        ranked = [Ranked(name, probabilities[:, k], truth == name, known) for k, name in enumerate(names)]
        return by_auroc(what, ranked if len(ranked) > 2 else ranked[1:], [row.subject_id for row in rows])

    def differences(
        self, first: Sequence[ClassificationRow], second: Sequence[ClassificationRow], summary: Mapping[str, Any]
    ) -> list[tuple[str, Interval]]:
        """AUROC and balanced accuracy."""
        rows = by_scan(first, second)
        names = summary["classes"]
        truth = arrays_of(rows[0], names)[1]
        count, measures = len(np.unique(truth)), metrics(names)

        def on_all_classes(
            measure: Callable[..., float | None],
            probabilities: Float[np.ndarray, "M K"],
            selected: Int[np.ndarray, "M"],
        ) -> float | None:
            if len(np.unique(truth[selected])) < count:  # a mean over fewer classes is another measure
                return None
            return measure(probabilities, truth[selected])

        return measure_differences(rows, {name: partial(on_all_classes, measures[name]) for name in COMPARED})

    def columns(self, schema: LabelSchema) -> list[str]:
        """The most probable class, and a probability for each."""
        return ["predicted", *(PROBABILITY + name for name in class_names(schema))]

    def cells(self, prediction: Sequence[float], schema: LabelSchema) -> list[object]:
        """The cells of a scan."""
        return [class_names(schema)[int(np.argmax(prediction))], *map(repr, prediction)]
