"""``medssl predict``: scans of any readable format -> segmentations on their own grids, or a table of answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medssl.data.bags.description import is_bags
from medssl.data.index.scan_index import FileOptions, Index
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.trained_on import Difference, missing_note
from medssl.data.store.store import Store
from medssl.inference import writers as outputs
from medssl.inference.bag_scores import predict_bags, refuse_for_bags
from medssl.inference.bags import refuse_no_bags
from medssl.inference.finished_scans import Finished
from medssl.inference.heat_maps import draw_heat_maps
from medssl.inference.prediction import predict_all, refuse_unknown, split_by_training
from medssl.inference.predictor import Fitted, Windows, device_of, load_fitted, settings_of
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
    heat_maps: Path | None = None,
    windows: Windows = _WINDOWS,
    allow: tuple[Difference, ...] = (),
    trust: str = "",
) -> PredictResult:
    """Predict scans with a fine-tuned network: NIfTI label maps on the scans' own grids, PNG for images, or a table.

    The same command goes on where it was stopped. What cannot be read is skipped and listed.

    Args:
        run: Run folder of the fine-tuned network.
        scans: Folders, files or DICOM series to predict, or a folder of bags. One file of a series stands for the whole
            series.
        out: Folder of the predictions; created if missing.
        index: Index file to take the scans from instead.
        where: SQL condition on the columns of the index, such as "modality = 'CT'"; None takes all scans.
        files: How to read files, and the institution's key (for scans that are not from an index).
        names: Name predictions by "scan_id", or by the "file" (or folder of a series) that the scan is from.
        scaling: Folder of scores of ``medssl evaluate --calibrate``, or its summary.json: apply the temperature fitted
            there to class probabilities.
        heat_maps: Store of the slides that bags are of: also draw which tiles of each slide the network looks at, as
            PNG over a thumbnail and as GeoJSON for QuPath.
        windows: Sliding windows: overlap, batch size, precision, device and mirroring.
        allow: Names, with commas: predict scans that differ from the training scans in their "modality", value "domain"
            or "spacing". Scans with other differences are skipped and listed.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        Where predictions are, and what was skipped.
    """
    if bool(scans) == (index is not None):
        message = "say what to predict: files or folders, or else an index"
        raise UserError(message)
    refuse_unknown(allow)
    fitted = load_fitted(run, device_of(windows.accelerator), trusted(trust))
    folder = index if index is not None else scans[0] if len(scans) == 1 else None
    if folder is not None and is_bags(folder):
        refuse_for_bags({"where": where, "scaling": scaling, "allow": allow})
        return _summary(PredictResult(out, *_of_bags(fitted, folder, out, heat_maps)))
    refuse_no_bags(fitted, heat_maps)
    per_voxel = kind_of(fitted.schema).per_voxel
    fit = None if scaling is None else scaling_of(scaling, fitted)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_by: dict[str, Any] = {} if fit is None else {"temperature": fit.temperature}
    finished = Finished(out, {"weights": fitted.digest, **settings_of(fitted.tuned, windows), **made_by})
    given = RequestedScans(scans, out, files) if index is None else None
    with Index.open(given.index if given else index or Path()) as opened:
        chosen = [scan for scan in opened.scans(where) if given is None or given.has(scan, opened.root)]
        skipped = list(given.left_out(opened)) if given else []
        for note in missing_note(fitted.tuned.trained_on):
            log.info(f"note: {note}")
        chosen, others = split_by_training(fitted, chosen, allow)
        skipped += others
        called = prediction_names(chosen, names)
        if not per_voxel:
            refuse_formulas(called.values())
        there, failed = predict_all(fitted, chosen, called, (out, opened.root, windows), finished)
    skipped += failed
    if not per_voxel:
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


def _of_bags(
    fitted: Fitted, folder: Path, out: Path, slides: Path | None
) -> tuple[int, int, tuple[tuple[str, str], ...]]:
    """Predicts bags: how many there are, how many there were, and what was skipped."""
    count, there, skipped = predict_bags(fitted, folder, out)
    if slides is not None:
        drawn, left_out = draw_heat_maps(fitted, folder, Store.open(slides), out)
        log.info(f"{out}/heat_maps: {drawn} drawn now, {len(left_out)} left out")
        for scan_id, reason in left_out[:_SHOWN]:
            log.info(f"no heat map of {scan_id}: {reason}")
    return count, there, tuple(skipped)


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
    counts = f"{new} new, {result.there} already present"
    log.info(f"{result.out}: {result.scans} scans predicted ({counts}), {len(skipped)} skipped")
    return result
