"""Calibration of class probabilities: where a temperature is fitted, and where a fitted one is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medssl.data.split import overlap
from medssl.metrics.calibration import Scaling, temperature
from medssl.metrics.scoring import scoring_of_task
from medssl.metrics.tables import SUMMARY, arrays_of, read_summary
from medssl.types import Note, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from medssl.inference.predictor import Fitted
    from medssl.metrics.cases import ClassificationRow
    from medssl.types import Scan

CALIBRATION = "calibration.svg"


def refuse_calibration(fitted: Fitted, calibrate: str | None, split: str) -> None:
    """Refuses what has no probabilities to calibrate, and a temperature fitted on what it is judged by.

    Raises:
        UserError: No classification, or the split that is scored.
    """
    if calibrate is not None and not scoring_of_task(fitted.kind).calibrates:
        message = f"calibrate {calibrate} fits a temperature of class probabilities, the network is a {fitted.kind}: "
        message += "leave calibrate out"
        raise UserError(message)
    if calibrate is not None and calibrate == split:
        message = f"calibrate {calibrate} is the split that is scored: fit the temperature on another one, such as val"
        raise UserError(message)


def refuse_shared(fitted: Fitted, scans: Sequence[Scan], others: Sequence[Scan]) -> list[Note]:
    """Refuses a temperature that is fitted on subjects that are scored.

    Returns:
        A note on how many of the others the network knows.

    Raises:
        UserError: Counts the subjects in both.
    """
    subject_ids = {scan.subject.subject_id for scan in others}
    common = overlap(subject_ids, {scan.subject.subject_id for scan in scans})
    if common:
        message = f"{len(common)} subjects are scored and in the split of calibrate, too: choose a split without them"
        raise UserError(message)
    trained = overlap(subject_ids, fitted.tuned.subjects)
    if not trained:
        return []
    text = f"temperature: {len(trained)} of the {len(subject_ids)} subjects were trained or validated on with labels"
    return [Note("other", text)]


def scaling_of(scores: Path, fitted: Fitted) -> Scaling:
    """The temperature that an evaluation with ``calibrate`` fitted for a network.

    Args:
        scores: Folder of the scores, or its summary.json.
        fitted: The network that is to be asked.

    Raises:
        UserError: No classification, no readable summary, no temperature in it, or one of other weights.
    """
    if not scoring_of_task(fitted.kind).calibrates:
        message = f"scaling {scores} is for class probabilities, the network is a {fitted.kind}: leave scaling out"
        raise UserError(message)
    summary = read_summary(scores / SUMMARY if scores.is_dir() else scores)
    if "scaling" not in summary:
        message = f"scaling {scores} holds no temperature: evaluate with calibrate val first"
        raise UserError(message)
    if summary["by"].get("weights") != fitted.digest:
        message = (
            f"scaling {scores} is of the weights {summary['by'].get('weights')}, the network has {fitted.digest}: "
            "give the scores of this network"
        )
        raise UserError(message)
    return Scaling(**summary["scaling"])


def fit_scaling(
    rows: Sequence[ClassificationRow], names: Sequence[str], split: str, skipped: Sequence[tuple[str, str]]
) -> Scaling:
    """The temperature of the rows of a split.

    Raises:
        UserError: There are none.
    """
    if not rows:
        message = f"not one scan of split {split!r} could be classified ({skipped[0][1]}): no temperature was fitted"
        raise UserError(message)
    value = temperature(*arrays_of(rows, names))
    return Scaling(value, split, len(rows), len({row.subject_id for row in rows}))
