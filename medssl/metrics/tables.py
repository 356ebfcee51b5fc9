"""What an evaluation leaves behind: ``cases.csv`` (from ``evaluate.cases``) and ``summary.json``, its sum.

The sum is also a table for the console. Like the cases it holds nothing that names a person or a file.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from medssl.metrics.bootstrap import mean_interval, statistic_interval
from medssl.metrics.calibration import scaled
from medssl.metrics.cases import (
    CASES,
    LACKS,
    ClassificationRow,
    SegmentationRow,
    has_further,
    read_classification,
    read_segmentation,
    refuse_twice,
    refuse_uneven,
    scan_scores,
    write_classification,
    write_segmentation,
    write_text,
)
from medssl.metrics.classification import (
    SPECIFICITY,
    calibration_curve,
    means_of_classes,
    metrics,
    refuse_unfit,
    undefined,
)
from medssl.metrics.mask_measures import MEASURES
from medssl.metrics.scoring import tasks
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int

    from medssl.metrics.bootstrap import Interval
    from medssl.metrics.calibration import Scaling
    from medssl.metrics.classification import Metric
    from medssl.types import LabelSchema

__all__ = [
    "CASES",
    "SUMMARY",
    "ClassificationRow",
    "SegmentationRow",
    "read_classification",
    "read_segmentation",
    "read_summary",
    "scan_scores",
    "summarize_classification",
    "summarize_segmentation",
    "table",
    "write_classification",
    "write_segmentation",
    "write_summary",
]  # all that a verb or a report needs of both files

SUMMARY = "summary.json"
ENTRY = ("value", "low", "high", "subjects")  # of each measure
SCALED = ("ece", "brier", "nll")  # what a temperature changes
KEYS = ("kind", "classes", "scans", "subjects", "metrics", "counts", "skipped", "notes", "by")


def summarize_segmentation(
    rows: Sequence[SegmentationRow],
    schema: LabelSchema,
    *,
    skipped: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (),
    by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sums up the scores of a segmentation, as ``summary.json`` holds them.

    "dice" and "hd95_mm" are means over subjects of the mean of their scans, whose score is the mean over the classes
    that have one: classes that are absent from both are left out, missed and invented ones count as Dice 0 and have no
    distance. "dice:NAME" is that of one class. Where the rows have further measures, each stands for all classes and
    each one, for each class alone, or as a sum, as its entry in ``MEASURES`` says.

    Args:
        rows: A row for each class of each scan.
        schema: The classes; the first is the background.
        skipped: Identifier and reason of each scan that was not scored.
        notes: What a reader must know.
        by: What was evaluated and on what.

    Raises:
        UserError: No rows, or not one for each class of each scan.
    """
    classes = [name for value, name in schema.classes[1:] if value != schema.ignore]
    skipped = list(skipped)
    refuse_nothing(rows, skipped)
    refuse_uneven(rows, classes)
    of_scan = {row.scan_id: row.subject_id for row in rows}
    intervals = segmentation_means(rows, classes)
    tally = Counter((row.score.note, row.class_name) for row in rows)
    counts = {lack: {name: tally[lack, name] for name in classes} for lack in LACKS}
    without, invented = (sum(sum(counts[lack].values()) for lack in lacks) for lacks in (LACKS[1:], LACKS[2:]))
    reasons = [f"hd95_mm leaves out {without} scores without a distance: the class was missed or invented"]
    reasons = reasons if without else []
    further = has_further(rows)
    if further and invented:
        for name, measure in MEASURES.items():
            if measure.leaves_out:
                reasons.append(f"{name} leaves out {invented} {measure.leaves_out}: the class was invented")
    summed = [name for name, measure in MEASURES.items() if measure.summed == "count"]
    lesions = {"lesions": {name: _sums(rows, name, classes) for name in summed}} if further else {}
    return {
        "kind": "segmentation",
        "classes": classes,
        "scans": len(of_scan),
        "subjects": len(set(of_scan.values())),
        "metrics": {name: entry(interval) for name, interval in intervals.items()},
        "counts": counts,
        **lesions,
        "skipped": [{"scan_id": scan_id, "reason": reason} for scan_id, reason in skipped],
        "notes": [*notes, *reasons, *interval_notes(intervals)],
        "by": dict(by or {}),
    }


def segmentation_means(rows: Sequence[SegmentationRow], classes: Sequence[str]) -> dict[str, Interval]:
    """The mean of each measure with its interval, by the names that ``summarize_segmentation`` gives them."""
    of_scan = {row.scan_id: row.subject_id for row in rows}
    summed = {name: measure.summed for name, measure in MEASURES.items() if has_further(rows)}
    intervals = {}
    for measure, how in {"dice": "mean", "hd95_mm": "mean", **summed}.items():
        if how == "count":
            continue
        if how == "mean":
            intervals[measure] = mean_interval(list(scan_scores(rows, measure).values()), list(of_scan.values()))
        for name in classes:
            rows_of_class = [row for row in rows if row.class_name == name]
            scores = [row.score.value(measure) for row in rows_of_class]
            intervals[f"{measure}:{name}"] = mean_interval(scores, [row.subject_id for row in rows_of_class])
    return intervals


def summarize_classification(
    rows: Sequence[ClassificationRow],
    names: Sequence[str],
    *,
    skipped: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (),
    by: Mapping[str, Any] | None = None,
    scaling: Scaling | None = None,
    specificity: float = SPECIFICITY,
) -> dict[str, Any]:
    """Sums up a classification, as ``summary.json`` holds it: the measures of ``evaluate.classification``.

    "calibration" is the curve behind "ece". With a temperature, "ece_scaled", "brier_scaled", "nll_scaled" and
    "calibration_scaled" are of the scaled probabilities; their intervals take the temperature as given.

    Args:
        rows: A row for each scan.
        names: The classes in the order of the probabilities.
        skipped: Identifier and reason of each scan that was not scored.
        notes: What a reader must know.
        by: What was evaluated and on what.
        scaling: A temperature that was fitted on other subjects.
        specificity: Share of the other scans that the threshold of the sensitivity leaves below.

    Raises:
        UserError: No rows, a scan that stands twice, an unknown class, or scores that are no probabilities.
    """
    skipped = list(skipped)
    refuse_nothing(rows, skipped)
    refuse_twice(rows)
    probabilities, truth = arrays_of(rows, names)
    intervals = classification_means(rows, names, scaling, specificity)
    defined = {name: interval for name, interval in intervals.items() if interval.value is not None}
    occurring = {"truth": Counter(row.truth for row in rows), "predicted": Counter(row.predicted for row in rows)}
    curves = {"calibration": _curve(probabilities, truth)}
    if scaling is not None:
        curves["calibration_scaled"] = _curve(scaled(probabilities, scaling.temperature), truth)
    reasons = [scaling.note] if scaling is not None and scaling.note else []
    return {
        "kind": "classification",
        "classes": list(names),
        "scans": len(rows),
        "subjects": len({row.subject_id for row in rows}),
        "metrics": {name: entry(interval) for name, interval in intervals.items()},
        "counts": {role: {name: count[name] for name in names} for role, count in occurring.items()},
        **curves,
        **({} if scaling is None else {"scaling": asdict(scaling)}),
        "skipped": [{"scan_id": scan_id, "reason": reason} for scan_id, reason in skipped],
        "notes": [*notes, *reasons, *grouped(undefined(truth, names, specificity)), *interval_notes(defined)],
        "by": dict(by or {}),
    }


def classification_means(
    rows: Sequence[ClassificationRow],
    names: Sequence[str],
    scaling: Scaling | None = None,
    specificity: float = SPECIFICITY,
) -> dict[str, Interval]:
    """Each measure with its interval, by the names that ``summarize_classification`` gives them."""
    probabilities, truth = arrays_of(rows, names)
    subjects = [row.subject_id for row in rows]
    measures, means = metrics(names, specificity), means_of_classes(specificity)
    intervals = {
        name: statistic_interval(_on_resample(metric, probabilities, truth, name in means), subjects)
        for name, metric in measures.items()
    }
    if scaling is not None:
        after = scaled(probabilities, scaling.temperature)
        for name in SCALED:
            statistic = _on_resample(measures[name], after, truth, every_class=False)
            intervals[f"{name}_scaled"] = statistic_interval(statistic, subjects)
    return intervals


def arrays_of(
    rows: Sequence[ClassificationRow], names: Sequence[str]
) -> tuple[Float[np.ndarray, "N K"], Int[np.ndarray, "N"]]:
    """Probabilities and true class numbers of rows.

    Raises:
        UserError: An unknown class, or scores that are no probabilities.
    """
    number = {name: place for place, name in enumerate(names)}
    truth = np.array([number.get(row.truth, -1) for row in rows])
    probabilities = np.array([row.probabilities for row in rows], dtype=np.float64)
    refuse_unfit(probabilities, truth, names, [row.scan_id for row in rows])
    return probabilities, truth


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes a summary as JSON.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    write_text(path, json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a summary back.

    Raises:
        UserError: No such file, or no summary of an evaluation.
    """

    def refuse(constant: str) -> NoReturn:
        message = f"holds {constant}"
        raise ValueError(message)

    try:
        summary = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): evaluate again"
        raise UserError(message) from error
    lacking = [key for key in KEYS if key not in summary] if isinstance(summary, dict) else list(KEYS)
    if lacking or summary["kind"] not in tasks():
        what = f"it lacks {', '.join(lacking)}" if lacking else f"its kind is {summary['kind']!r}"
        message = f"{path} is no summary of an evaluation ({what}): expected a folder of scores of an evaluation"
        raise UserError(message)
    for name, entry in summary["metrics"].items():
        if any(key not in entry for key in ENTRY):
            message = f"{path}: {name} holds {', '.join(entry) or 'nothing'}: expected {', '.join(ENTRY)}"
            raise UserError(message)
    return dict(summary)


def table(summary: Mapping[str, Any]) -> str:
    """The summary as aligned lines for the console."""
    rows = [("measure", "value", "95 % interval", "subjects")]
    rows += [(name, *_shown(entry)) for name, entry in summary["metrics"].items()]
    kind = summary["kind"].replace("_", "-")
    lines = [f"{kind}: {summary['scans']} scans of {summary['subjects']} subjects", *_aligned(rows)]
    for column, groups in summary.get("subgroups", {}).items():
        head = ("measure", column, "value", "95 % interval", "subjects")
        cells = [
            (name, value, *_shown(group["metrics"][name]))
            for name in summary["metrics"]
            for value, group in groups.items()
        ]
        lines += [f"by {column}:", *_aligned([head, *cells], left=2)]
    for what, counts in (summary["counts"] | summary.get("lesions", {})).items():
        if any(counts.values()):
            lines.append(f"{what}: {', '.join(f'{name} {count}' for name, count in counts.items() if count)}")
    if "scaling" in summary:
        fit = summary["scaling"]
        lines.append(f"temperature {fit['temperature']:.4g}, fitted on {fit['scans']} scans of split {fit['split']}")
    if summary["skipped"]:
        lines.append(f"skipped: {len(summary['skipped'])} scans")
        lines += [f"  {scan['scan_id']}: {scan['reason']}" for scan in summary["skipped"]]
    return "\n".join([*lines, *(f"note: {note}" for note in summary["notes"])])


def _shown(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    bounds = "-" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
    return "-" if entry["value"] is None else f"{entry['value']:.4f}", bounds, str(entry["subjects"])


def _aligned(rows: Sequence[tuple[str, ...]], left: int = 1) -> list[str]:
    """Rows with columns of one width; the first ``left`` stand to the left of theirs."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _on_resample(
    metric: Metric, probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"], every_class: bool
) -> Callable[[Int[np.ndarray, "M"]], float | None]:
    classes = len(np.unique(truth))

    def statistic(places: Int[np.ndarray, "M"]) -> float | None:
        drawn = truth[places]
        if every_class and len(np.unique(drawn)) < classes:  # a mean over fewer classes is another measure
            return None
        return metric(probabilities[places], drawn)

    return statistic


def _curve(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> list[dict[str, float]]:
    return [asdict(part) for part in calibration_curve(probabilities.max(1), probabilities.argmax(1) == truth)]


def _sums(rows: Sequence[SegmentationRow], what: str, classes: Sequence[str]) -> dict[str, int]:
    return {name: sum(int(row.score.value(what) or 0) for row in rows if row.class_name == name) for name in classes}


def entry(interval: Interval) -> dict[str, float | int | None]:
    return {key: getattr(interval, key) for key in ENTRY}


def interval_notes(intervals: Mapping[str, Interval]) -> list[str]:
    return grouped({name: interval.note for name, interval in intervals.items()})


def grouped(notes: Mapping[str, str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, note in notes.items():
        if note:
            names.setdefault(note, []).append(name)
    return [f"{', '.join(same)}: {note}" for note, same in names.items()]


def refuse_nothing(rows: Sequence[object], skipped: Sequence[tuple[str, str]]) -> None:
    if not rows:
        reasons = "; ".join(f"{count} {reason}" for reason, count in Counter(why for _, why in skipped).most_common(3))
        message = f"no scan was scored, {len(skipped)} were skipped ({reasons or 'there were none'})"
        raise UserError(message)
