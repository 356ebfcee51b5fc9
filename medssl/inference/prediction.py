"""Predictions of a network for many scans, as files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.formats.reading import read
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.trained_on import NAMES, differences
from medssl.data.store.unchanged import UNREADABLE, refuse_changed
from medssl.inference import writers as outputs
from medssl.inference.finished_scans import Finished
from medssl.inference.predictor import Windows, classify, reason_of, segment
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from medssl.inference.predictor import Fitted
    from medssl.types import Scan

log = logging.getLogger(__name__)


def refuse_unknown(allow: Iterable[str]) -> None:
    """Refuses a difference that has no name.

    Raises:
        UserError: Names it.
    """
    if unknown := sorted(set(allow) - set(NAMES)):
        message = "unknown difference"
        raise UserError(message, key="allow", got=unknown[0], expected=", ".join(NAMES))


def split_by_training(
    fitted: Fitted, scans: Sequence[Scan], allowed: Collection[str]
) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Scans like those of the training, and the others with the reason."""
    known = fitted.tuned.trained_on
    if known is None:
        log.info("note: the card does not say which scans the network was trained on: scans are not compared with them")
        return list(scans), []
    alike, others = [], []
    for scan in scans:
        reasons = {k: v for k, v in differences(scan, known, fitted.card.preprocess).items() if k not in allowed}
        if reasons:
            reason = f"{'; '.join(reasons.values())} (allow: {','.join(reasons)} takes it)"
            others.append((scan.scan_id, reason))
        else:
            alike.append(scan)
    return alike, others


def predict_all(
    fitted: Fitted, scans: Sequence[Scan], called: dict[str, str], place: tuple[Path, Path, Windows], finished: Finished
) -> tuple[int, list[tuple[str, str]]]:
    """Predicts scans without a prediction; returns how many had one, and which failed with the reason."""
    from tqdm.auto import tqdm

    out, root, windows = place
    per_voxel = kind_of(fitted.schema).per_voxel
    existing, failed = 0, []
    for scan in tqdm(scans, desc="predict", unit="scan", disable=not scans):
        ending = ".png" if len(scan.grid.shape) == 2 else ".nii.gz"
        target = out / f"{called[scan.scan_id]}{ending}"
        if finished.get(scan) is not None and (target.exists() or not per_voxel):
            existing += 1
            continue
        try:
            refuse_changed(scan, root)
            volume = read(scan, root, with_label=False)
            ask = segment if per_voxel else classify
            answer = ask(fitted, volume, scan.source.value_domain, windows)
        except UNREADABLE as error:
            failed.append((scan.scan_id, reason_of(error)))
            continue
        if not per_voxel:
            finished.add(scan, answer.tolist())
            continue
        if answer.ndim == 2:
            outputs.write_picture(target, answer)
        else:
            outputs.write_nifti(target, answer, volume.affine, fitted.schema)
        finished.add(scan, True)
    return existing, failed
