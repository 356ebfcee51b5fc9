"""``medssl evaluate``: a fine-tuned network on labeled scans that it has not seen, scored on the scans' own grids."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medssl.data.bags.description import is_bags
from medssl.data.index.datasets import all_phantoms
from medssl.data.index.scan_index import Index
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.selection import labeled_scans_of_index
from medssl.data.labels.trained_on import missing_note
from medssl.inference.bag_scores import evaluate_bags, refuse_for_bags
from medssl.inference.bags import refuse_no_bags
from medssl.inference.evaluation import (
    check_leaks,
    distance_notes,
    draw_cases,
    fit_temperature,
    schemas_of,
    score_all,
)
from medssl.inference.finished_scans import Finished
from medssl.inference.predictor import Windows, device_of, load_fitted, settings_of
from medssl.inference.scan_scores import rows_of, write_scores
from medssl.inference.temperature import refuse_calibration, refuse_scored_calibration
from medssl.io.permissions import owner_only
from medssl.io.trust import names
from medssl.metrics import tables
from medssl.metrics.classification import SPECIFICITY, refuse_specificity
from medssl.metrics.scoring import Options
from medssl.metrics.segmentation import NSD_TOLERANCE_MM, refuse_tolerance
from medssl.metrics.subgroups import columns_of, values_of
from medssl.training.versions import package_versions

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

_WINDOWS = Windows()


@dataclass(frozen=True)
class EvaluateResult:
    """Scores of a network on labeled scans.

    Attributes:
        out: Folder with ``cases.csv``, ``summary.json`` and pictures.
        summary: What ``summary.json`` holds.
        new: Scans that this call scored; the others were scored before.
        exit_code: 0.
    """

    out: Path
    summary: dict[str, Any] = field(repr=False)
    new: int
    exit_code: int = 0

    @property
    def scans(self) -> int:
        """How many scans were scored."""
        return int(self.summary["scans"])

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Identifiers of scans that could not be scored, each with the reason."""
        return tuple((one["scan_id"], one["reason"]) for one in self.summary["skipped"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores must know."""
        return tuple(self.summary["notes"])

    def __str__(self) -> str:
        return tables.table(self.summary)


@owner_only()
def evaluate(  # noqa: PLR0913 (the keys of a command line)
    run: Path,
    *,
    index: Path,
    out: Path,
    split: str = "test",
    where: str | None = None,
    allow: tuple[Literal["seen"], ...] = (),
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    specificity: float = SPECIFICITY,
    calibrate: str | None = None,
    by: str = "",
    windows: Windows = _WINDOWS,
    trust: str = "",
) -> EvaluateResult:
    """Score a fine-tuned network on labeled scans; the same command goes on where it was stopped.

    Writes ``cases.csv`` (a row for each scan and class), ``summary.json`` (with 95 % intervals by subject) and, of
    segmentations, pictures of the worst, the median and the best scan; of classifications, ``calibration.svg``. Labels
    are kept from the network's eyes.

    Args:
        run: Run folder of the fine-tuned network.
        index: Index file of the scans and their labels, or a folder of bags.
        out: Folder of the scores; created if missing.
        split: Split to score.
        where: SQL condition on the columns of the index, such as "modality = 'CT'"; None takes all scans.
        allow: "seen" also scores subjects that the network was trained, validated or pretrained on, with a note.
        nsd_tolerance_mm: Distance in mm, above 0, up to which a surface point counts as right in the normalized surface
            distance (NSD).
        specificity: Specificity at which the sensitivity of classes and findings is given, above 0 to below 1.
        calibrate: Split to fit a temperature of class probabilities on, such as val. It is classified as well, under
            the same condition.
        by: Columns of the index, with commas (sex, manufacturer, age_band, ...). Every measure is also given for the
            scans of each value, or of at most five bands of a column with more than ten numbers.
        windows: Sliding windows: overlap, batch size, precision, device and mirroring.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        The scores, and which scans were skipped.

    Raises:
        UserError: No labeled scan, subjects that the network has seen, an unknown column, or not one scan that could
            be scored.
    """
    refuse_tolerance(nsd_tolerance_mm)
    refuse_specificity(specificity)
    fitted = load_fitted(run, device_of(windows.accelerator), names(trust))
    if is_bags(index):
        refuse_for_bags({"where": where, "calibrate": calibrate, "by": by})
        bags = evaluate_bags(fitted, index, out, split=split, allow_seen="seen" in allow, options=Options(specificity))
        return EvaluateResult(out, *bags)
    refuse_no_bags(fitted)
    refuse_calibration(fitted, calibrate, split)
    with Index.open(index) as opened:
        scans = labeled_scans_of_index(opened, fitted.schema, split, where)
        notes = check_leaks(fitted, scans, allow_seen="seen" in allow)
        schemas = schemas_of(opened, scans, fitted.schema)
        others = labeled_scans_of_index(opened, fitted.schema, calibrate, where) if calibrate else []
        values = values_of(columns_of(by, opened), opened, split, [scan.scan_id for scan in scans])
        root, digest = opened.root, opened.digest()
        versions = package_versions(synthetic=all_phantoms(opened, {scan.source.dataset for scan in scans}))
    notes += [*refuse_scored_calibration(fitted, scans, others), *missing_note(fitted.tuned.trained_on)]
    for note in notes:
        log.info(f"note: {note}")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_by: dict[str, Any] = {"weights": fitted.digest, **settings_of(fitted.tuned, windows)}
    per_voxel = kind_of(fitted.schema).per_voxel
    made_by |= {"nsd_tolerance_mm": nsd_tolerance_mm} if per_voxel else {}
    finished = Finished(out, made_by | {"split": split})
    place = (root, windows, nsd_tolerance_mm)
    new, skipped = score_all(fitted, scans, schemas, place, finished)
    made = {"step": fitted.card.step, "index": digest, **made_by, "split": split, "versions": versions}
    more: dict[str, Any] = {"skipped": skipped, "notes": list(map(str, notes)), "by": made}
    apart = (out / "calibration", made_by | {"split": calibrate})
    scaling, unread = fit_temperature(fitted, others, place, apart) if calibrate else (None, [])
    more["notes"] += map(str, unread)
    if per_voxel:
        more["notes"] += map(str, distance_notes([scan for scan in scans if finished.get(scan) is not None]))
    rows = rows_of(scans, finished, fitted.schema)
    summary, groups = write_scores(rows, fitted.schema, out, values, Options(specificity, scaling), more)
    if per_voxel:
        draw_cases(
            fitted, {scan.scan_id: scan for scan in scans}, rows, (root, windows, out / "pictures"), again=new > 0
        )
    summary |= {"subgroups": groups} if groups else {}
    summary |= {"leaks": [note.text for note in notes if note.kind == "leak"]}
    return written(out, summary, new)


def written(out: Path, summary: dict[str, Any], new: int) -> EvaluateResult:
    """Writes the summary and logs it."""
    tables.write_summary(out / tables.SUMMARY, summary)
    log.info(tables.table(summary))
    counts = f"{summary['scans']} scans scored ({new} new, {summary['scans'] - new} already present)"
    log.info(f"{out}: {counts}, {len(summary['skipped'])} skipped")
    return EvaluateResult(out, summary, new=new)
