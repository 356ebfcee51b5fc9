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
        message = f"a temperature is fitted to class probabilities, the network is a {fitted.kind}"
        raise UserError(message, key="calibrate", got=calibrate, hint="Leave it out")
    if calibrate is not None and calibrate == split:
        message = "is the split that is scored"
        raise UserError(message, key="calibrate", got=calibrate, hint="Choose another split, such as val")


def refuse_scored_calibration(fitted: Fitted, scans: Sequence[Scan], others: Sequence[Scan]) -> list[Note]:
    """Refuses to fit a temperature on subjects that are scored.

    Args:
        fitted: The network.
        scans: What is scored.
        others: What the temperature is fitted on.

    Returns:
        A note on how many subjects of the others the network was trained on.

    Raises:
        UserError: Some subjects are in both; it counts them.
    """
    subject_ids = {scan.subject.subject_id for scan in others}
    common = overlap(subject_ids, {scan.subject.subject_id for scan in scans})
    if common:
        message = f"{len(common)} subjects of this split are scored as well"
        raise UserError(message, key="calibrate", hint="Choose a split without them")
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
        message = f"a temperature is for class probabilities, the network is a {fitted.kind}"
        raise UserError(message, key="scaling", hint="Leave it out")
    summary = read_summary(scores / SUMMARY if scores.is_dir() else scores)
    if "scaling" not in summary:
        message = f"{scores} holds no temperature"
        raise UserError(message, key="scaling", hint="Evaluate with calibrate val first")
    if summary["by"].get("weights") != fitted.digest:
        message = f"{scores} is of the weights {summary['by'].get('weights')}, the network has {fitted.digest}"
        raise UserError(message, key="scaling", hint="Give the scores of this network")
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
