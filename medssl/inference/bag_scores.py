"""What ``evaluate`` and ``predict`` do with a folder of bags."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from medssl.data.labels.trained_on import missing_note
from medssl.inference import bags
from medssl.inference import writers as outputs
from medssl.inference.evaluation import check_leaks
from medssl.inference.finished_scans import Finished
from medssl.inference.scan_scores import rows_of, write_scores
from medssl.metrics import tables
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from medssl.inference.predictor import Fitted
    from medssl.metrics.scoring import Options

log = logging.getLogger(__name__)


def refuse_for_bags(given: Mapping[str, Any]) -> None:
    """Refuses options that have no meaning for bags.

    Raises:
        UserError: Names the first that is given.
    """
    for key, value in given.items():
        if value:
            message = "bags are no scans of an index"
            raise UserError(message, key=key, got=str(value), hint="Leave it out")


def evaluate_bags(
    fitted: Fitted, path: Path, out: Path, *, split: str, allow_seen: bool, options: Options
) -> tuple[dict[str, Any], int]:
    """Scores a network on the labeled bags of a split; continues where it was stopped.

    Writes ``cases.csv`` and ``summary.json``. Of targets with two classes, sensitivity and specificity are at a
    threshold that the validation split chose. Where subjects have several slides, scores of subjects are added.

    Args:
        fitted: The network.
        path: Folder of bags.
        out: Folder of the scores.
        split: Split to score.
        allow_seen: Whether subjects that the network was trained on may be scored.
        options: Of the summary.

    Returns:
        The summary, and how many bags this call scored.

    Raises:
        UserError: No labeled bag, other features, or subjects that the network has seen.
    """
    store = bags.open_bags(path, fitted)
    numbers = bags.labeled_bags(store, fitted.schema, split)
    scans = [bags.scan_of(store, number) for number in numbers]
    notes = check_leaks(fitted, scans, allow_seen=allow_seen) + missing_note(fitted.tuned.trained_on)
    for note in notes:
        log.info(f"note: {note}")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_by: dict[str, Any] = {"weights": fitted.digest, "features": store.facts.encoder.digest}
    finished = Finished(out, made_by | {"split": split})
    new, skipped = bags.answer_all(fitted, store, numbers, finished, "evaluate")
    rows = rows_of(scans, finished, fitted.schema)
    of_subjects, mixed = bags.subject_scores(scans, finished, fitted.schema, options) if rows else ({}, [])
    more: dict[str, Any] = {
        "skipped": skipped,
        "notes": [str(note) for note in (*notes, *mixed)],
        "by": {"step": fitted.card.step, "bags": store.digest, **made_by, "split": split},
    }
    summary, _ = write_scores(rows, fitted.schema, out, {}, options, more)
    (out / "threshold").mkdir(mode=0o700, exist_ok=True)
    apart = Finished(out / "threshold", made_by | {"split": bags.VALIDATION})
    summary |= of_subjects | bags.threshold_scores(fitted, store, rows, (apart, split))
    summary |= {"leaks": [note.text for note in notes if note.kind == "leak"]}
    tables.write_summary(out / tables.SUMMARY, summary)
    log.info(tables.table(summary))
    for line in more_lines(summary):
        log.info(line)
    log.info(f"{out}: {summary['scans']} bags scored ({new} new), {len(skipped)} skipped")
    return summary, new


def more_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a summary of bags says besides, for the console."""
    lines = []
    if "threshold" in summary:
        chosen = summary["threshold"]
        values = ", ".join(f"{name} {_shown(entry)}" for name, entry in chosen["metrics"].items())
        lines.append(f"at {chosen['value']:.4g}, chosen on {chosen['scans']} bags of split {chosen['split']}: {values}")
    if "of_subjects" in summary:
        own = summary["of_subjects"]
        values = ", ".join(f"{name} {_shown(entry)}" for name, entry in own["metrics"].items() if ":" not in name)
        lines.append(f"mean of the slides of each of {own['subjects']} subjects: {values}")
    return lines


def predict_bags(fitted: Fitted, path: Path, out: Path) -> tuple[int, int, list[tuple[str, str]]]:
    """Predicts all bags of a folder into ``predictions.csv``; continues where it was stopped.

    Returns:
        How many bags have a prediction, how many had one before, and what was skipped with the reason.

    Raises:
        UserError: Other features than those that the network was trained on.
    """
    store = bags.open_bags(path, fitted)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    finished = Finished(out, {"weights": fitted.digest, "features": store.facts.encoder.digest})
    numbers = list(range(len(store)))
    new, skipped = bags.answer_all(fitted, store, numbers, finished, "predict")
    scans = [bags.scan_of(store, number) for number in numbers]
    rows = [(scan.scan_id, answer) for scan in scans if (answer := finished.get(scan)) is not None]
    if rows:
        outputs.write_answers(out / "predictions.csv", rows, fitted.schema, first="scan_id")
    return len(rows), len(rows) - new, skipped


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "not defined"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"
