"""``medssl predict``: scans of any readable format -> segmentations on their own grids, or a table of answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medssl.data.index.scan_index import FileOptions, Index
from medssl.data.labels.trained_on import Difference, missing_note
from medssl.inference import writers as outputs
from medssl.inference.finished_scans import Finished
from medssl.inference.prediction import predict_all, refuse_unknown, split_by_training
from medssl.inference.predictor import Windows, device_of, load_fitted
from medssl.inference.requested_scans import RequestedScans, prediction_names, refuse_formulas
from medssl.inference.temperature import scaling_of
from medssl.io.permissions import owner_only
from medssl.io.trust import names as trusted
from medssl.metrics.calibration import scaled
from medssl.types import UserError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

_FILES, _WINDOWS = FileOptions(), Windows()
_SHOWN = 20


@dataclass(frozen=True)
class PredictResult:
    """Predictions of a network.

    Attributes:
        out: Folder with a label map for each scan, or ``predictions.csv``.
        scans: How many scans have a prediction.
        there: How many of them were predicted by an earlier call.
        skipped: What was not predicted, each with the reason.
        exit_code: 0; 1 where nothing could be predicted.
    """

    out: Path
    scans: int
    there: int
    skipped: tuple[tuple[str, str], ...] = field(repr=False)
    exit_code: int = 0


@owner_only()
def predict(  # noqa: PLR0913 (the keys of a command line)
    run: Path,
    scans: tuple[Path, ...] = (),
    *,
    out: Path,
    index: Path | None = None,
    where: str | None = None,
    files: FileOptions = _FILES,
    names: Literal["scan_id", "file"] = "scan_id",
    scaling: Path | None = None,
    windows: Windows = _WINDOWS,
    allow: tuple[Difference, ...] = (),
    trust: str = "",
) -> PredictResult:
    """Ask a fine-tuned network about scans: NIfTI label maps on the scans' own grids, PNG for images, or a table.

    The same command goes on where it was stopped. What cannot be read is skipped and listed.

    Args:
        run: Folder of a fine-tuned network.
        scans: Folders, files, DICOM series; a file of a series stands for the whole series.
        out: Folder of the predictions; made if it is not there.
        index: Take the scans from an index instead.
        where: SQL condition on the columns of the index.
        files: How files are read, and the institution's key (scans that are no index's).
        names: Name predictions after the "scan_id", or after the "file" (or folder of a series) that the scan is from.
        scaling: Folder of the scores of ``medssl evaluate --calibrate``, or its summary.json: the probabilities of
            classes are given at the temperature that was fitted there.
        windows: How a scan is gone through.
        allow: Predict scans that differ from those of the training in their "modality", value "domain" or "spacing";
            others that differ are skipped and listed.
        trust: Classes of the card that may run although they are none of medssl's, by import path, several with commas.

    Returns:
        Where predictions are, and what was skipped.
    """
    if bool(scans) == (index is not None):
        message = "say what to predict: files or folders, or else an index"
        raise UserError(message)
    refuse_unknown(allow)
    fitted = load_fitted(run, device_of(windows.accelerator), trusted(trust))
    fit = None if scaling is None else scaling_of(scaling, fitted)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_by: dict[str, Any] = {"weights": fitted.digest, "overlap": windows.overlap, "precision": windows.precision}
    made_by |= {} if fit is None else {"temperature": fit.temperature}
    finished = Finished(out, made_by)
    given = RequestedScans(scans, out, files) if index is None else None
    with Index.open(given.index if given else index or Path()) as opened:
        chosen = [scan for scan in opened.scans(where) if given is None or given.has(scan, opened.root)]
        skipped = list(given.left_out(opened)) if given else []
        for note in missing_note(fitted.tuned.trained_on):
            log.info(f"note: {note}")
        chosen, others = split_by_training(fitted, chosen, allow)
        skipped += others
        called = prediction_names(chosen, names)
        if fitted.kind != "segmentation":
            refuse_formulas(called.values())
        there, failed = predict_all(fitted, chosen, called, (out, opened.root, windows), finished)
    skipped += failed
    if fitted.kind != "segmentation":
        rows = [(called[scan.scan_id], finished.get(scan)) for scan in chosen if finished.get(scan) is not None]
        first = "scan_id" if names == "scan_id" else "name"
        if fit is not None:
            log.info(
                f"probabilities at temperature {fit.temperature:.4g}, fitted on {fit.scans} scans of split {fit.split}"
            )
            rows = [(who, scaled(np.array([own]), fit.temperature)[0].tolist()) for who, own in rows]
        if rows:
            outputs.write_answers(out / "predictions.csv", rows, fitted.schema, first=first)
    elif len(chosen) > len(failed):
        outputs.write_classes(out, fitted.schema)
    if given is not None and names == "scan_id":
        log.info(f"which file a scan_id is: medssl index --index {given.index} --show SCAN_ID")
    if (out / "index.sqlite").exists():
        log.info(f"note: {out}/index.sqlite, of an earlier version, names files: delete it before you pass {out} on")
    return _summary(PredictResult(out, len(chosen) - len(failed), there, tuple(skipped)))


def _summary(result: PredictResult) -> PredictResult:
    """Says what there is now, and what was skipped and why."""
    skipped = result.skipped
    for name, reason in skipped[:_SHOWN]:
        log.info(f"skipped {name}: {reason}")
    if len(skipped) > _SHOWN:
        log.info(f"skipped {len(skipped) - _SHOWN} more")
    if not result.scans:
        found = "" if skipped else ": none was found"
        log.error(f"error: no scan could be predicted{found}, {len(skipped)} were skipped")
        return replace(result, exit_code=1)
    new = result.scans - result.there
    counts = f"{new} new, {result.there} there already"
    log.info(f"{result.out}: {result.scans} scans predicted ({counts}), {len(skipped)} skipped")
    return result
