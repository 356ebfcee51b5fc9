"""``medssl evaluate``: a fine-tuned network on labeled scans that it has not seen, scored on the scans' own grids."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medssl.data.formats.reading import read
from medssl.data.index.datasets import all_phantoms
from medssl.data.index.scan_index import Index
from medssl.data.index.split import overlap
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.kinds.classes import class_number
from medssl.data.labels.selection import labeled_scans_of_index
from medssl.data.labels.trained_on import missing_note
from medssl.data.store import grid
from medssl.data.store.writer import UNREADABLE
from medssl.inference.finished_scans import Finished
from medssl.inference.predictor import Windows, classify, device_of, load_fitted, reason_of, segment
from medssl.inference.scan_scores import score_answers, score_classes
from medssl.inference.temperature import fit_scaling, refuse_calibration, refuse_shared
from medssl.io.atomic_write import atomic_write
from medssl.io.trust import names
from medssl.metrics import cases, tables
from medssl.metrics.cases import ClassificationRow, SegmentationRow
from medssl.metrics.classification import SPECIFICITY, refuse_specificity
from medssl.metrics.segmentation import NSD_TOLERANCE_MM, ClassScore, Further, refuse_tolerance, score_case
from medssl.metrics.subgroups import columns_of, subgroups, values_of
from medssl.reporting.overlay import overlay
from medssl.training import describe
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medssl.inference.predictor import Fitted
    from medssl.metrics.calibration import Scaling
    from medssl.types import LabelSchema, Scan

log = logging.getLogger(__name__)

_WINDOWS = Windows()


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
) -> int:
    """Score a fine-tuned network on labeled scans; the same command goes on where it was stopped.

    Writes ``cases.csv`` (a row for each scan and class), ``summary.json`` (with 95 % intervals by subject) and, of
    segmentations, pictures of the worst, the median and the best scan; of classifications, ``calibration.svg``. Labels
    are kept from the network's eyes.

    Args:
        run: Folder of a fine-tuned network.
        index: Index of the scans and their labels.
        out: Folder of the scores; made if it is not there.
        split: Split whose scans are scored.
        where: SQL condition on the columns of the index.
        allow: "seen" also scores subjects that the network was trained, validated or pretrained on, with a note.
        nsd_tolerance_mm: Millimeters that a surface of a segmentation may lie off and still count as right (NSD).
        specificity: Share of the scans without a class (or a finding) that the threshold of the sensitivity leaves
            below.
        calibrate: Split on which a temperature for the probabilities of a classification is fitted, such as val; it is
            classified, too, under the same condition.
        by: Columns of the index, with commas between them (sex, manufacturer, age_band, ...): every measure is also
            given for the scans of each value, or of each of at most five bands where there are more than ten numbers.
        windows: How a scan is gone through.
        trust: Classes of the card that may run although they are none of medssl's, by import path, several with commas.

    Returns:
        0.

    Raises:
        UserError: No labeled scan, subjects that the network has seen, an unknown column, or not one scan that could
            be scored.
    """
    os.umask(0o077)
    refuse_tolerance(nsd_tolerance_mm)
    refuse_specificity(specificity)
    fitted = load_fitted(run, device_of(windows.accelerator), names(trust))
    refuse_calibration(fitted, calibrate, split)
    with Index.open(index) as opened:
        scans = labeled_scans_of_index(opened, fitted.schema, split, where)
        notes = refuse_seen(fitted, scans, allow_seen="seen" in allow)
        schemas = schemas_of(opened, scans, fitted.schema)
        others = labeled_scans_of_index(opened, fitted.schema, calibrate, where) if calibrate else []
        values = values_of(columns_of(by, opened), opened, split, [scan.scan_id for scan in scans])
        root, digest = opened.root, opened.digest()
        versions = describe.versions(synthetic=all_phantoms(opened, {scan.source.dataset for scan in scans}))
    notes += [*refuse_shared(fitted, scans, others), *missing_note(fitted.tuned.trained_on)]
    for note in notes:
        log.info(f"note: {note}")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_by: dict[str, Any] = {"weights": fitted.digest, "overlap": windows.overlap, "precision": windows.precision}
    made_by |= {"nsd_tolerance_mm": nsd_tolerance_mm} if fitted.kind == "segmentation" else {}
    finished = Finished(out, made_by | {"split": split})
    place = (root, windows, nsd_tolerance_mm)
    new, skipped = score_all(fitted, scans, schemas, place, finished)
    made = {"step": fitted.card.step, "index": digest, **made_by, "split": split, "versions": versions}
    more: dict[str, Any] = {"skipped": skipped, "notes": notes, "by": made}
    if fitted.kind == "segmentation":
        notes += distance_notes([scan for scan in scans if finished.get(scan) is not None])
        rows, by_name = rows_of(scans, finished), {scan.scan_id: scan for scan in scans}
        summary = tables.summarize_segmentation(rows, fitted.schema, **more)
        groups = subgroups(rows, values, lambda own: tables.summarize_segmentation(own, fitted.schema))
        cases.write_segmentation(out / cases.CASES, rows)
        draw_cases(fitted, by_name, rows, (root, windows, out / "pictures"), again=new > 0)
    elif fitted.kind != "classification":
        summary, groups = score_answers(scans, finished, fitted.schema, out / cases.CASES, values, more, specificity)
    else:
        apart = (out / "calibration", made_by | {"split": calibrate})
        scaling, unread = fitted_scaling(fitted, others, place, apart) if calibrate else (None, [])
        notes += unread
        answers = answers_of(fitted, scans, finished)
        summary, groups = score_classes(answers, fitted.schema, out, values, more, scaling, specificity)
    summary |= {"subgroups": groups} if groups else {}
    tables.write_summary(out / tables.SUMMARY, summary)
    log.info(tables.table(summary))
    there = summary["scans"] - new
    log.info(f"{out}: {new + there} scans scored ({new} new, {there} there already), {len(skipped)} skipped")
    return 0


def refuse_seen(fitted: Fitted, scans: Sequence[Scan], *, allow_seen: bool) -> list[str]:
    """Refuses subjects that the network knows.

    Returns:
        Notes on what was allowed and on what cannot be known.

    Raises:
        UserError: Counts the subjects and says how the network knows them.
    """
    asked = {scan.subject.subject_id for scan in scans}
    known = {
        "trained or validated on with labels": overlap(asked, fitted.tuned.subjects),
        "pretrained on": overlap(asked, fitted.card.subjects.known),
    }
    found = [f"{len(subjects)} of the {len(asked)} subjects were {how}" for how, subjects in known.items() if subjects]
    if found and not allow_seen:
        message = (
            f"{'; '.join(found)}: scores on them say nothing about new patients; choose another --split, or say "
            "--allow seen and tell it with the scores"
        )
        raise UserError(message)
    notes = [f"{line}: scores may be too good" for line in found]
    if not fitted.card.subjects.complete:
        notes.append(
            "the card does not name all subjects that pretraining has seen: whether these are among them is unknown"
        )
    if not all(scan.subject.known for scan in scans):
        notes.append("nothing tells the subjects of some scans apart, each stands for itself: leaks are possible")
    return notes


def schemas_of(opened: Index, scans: Sequence[Scan], schema: LabelSchema) -> dict[str, LabelSchema]:
    """The network's classes, with the value to ignore of each data set.

    Raises:
        UserError: A data set gives a value another name than the network.
    """
    own = dict(schema.classes)
    schemas = {}
    for dataset in sorted({scan.source.dataset for scan in scans}):
        theirs = opened.schema(dataset) if kind_of(schema).per_voxel else None
        for value, name in theirs.classes if theirs else ():
            if own.get(value, name) != name:
                message = (
                    f"value {value} is {name!r} in data set {dataset}, the network learned it as {own[value]!r}: "
                    "index with the class names that the network was trained with"
                )
                raise UserError(message)
        ignored = theirs is not None and theirs.ignore is not None
        schemas[dataset] = replace(schema, ignore=theirs.ignore) if theirs and ignored else schema
    return schemas


def score_all(
    fitted: Fitted,
    scans: Sequence[Scan],
    schemas: Mapping[str, LabelSchema],
    place: tuple[Path, Windows, float],
    finished: Finished,
) -> tuple[int, list[tuple[str, str]]]:
    """Scores what is not there yet; returns how many scans were, and what was skipped with the reason.

    Args:
        fitted: The network.
        scans: What is scored.
        schemas: Classes of a segmentation by data set.
        place: Root of the index, how a scan is gone through, tolerance of surfaces in mm.
        finished: Where scores are kept.
    """
    from tqdm.auto import tqdm

    root, windows, tolerance = place
    new, skipped = 0, []
    for scan in tqdm(scans, desc="evaluate", unit="scan"):
        if finished.get(scan) is not None:
            continue
        try:
            volume = read(scan, root, with_label=fitted.kind == "segmentation")
            domain = scan.source.value_domain
            if fitted.kind != "segmentation":
                finished.add(scan, classify(fitted, volume, domain, windows).tolist())
            else:
                assert volume.label is not None
                prediction = segment(fitted, volume, domain, windows)
                schema = schemas[scan.source.dataset]
                scores = score_case(prediction, volume.label[0], schema, volume.spacing_mm, nsd_tolerance_mm=tolerance)
                finished.add(scan, {name: asdict(score) for name, score in scores.items()})
        except UNREADABLE as error:
            skipped.append((scan.scan_id, nameless(reason_of(error), scan, root)))
            continue
        new += 1
    return new, skipped


def score_of(kept: Mapping[str, Any]) -> ClassScore:
    """A score as ``score_all`` keeps it."""
    return ClassScore(**{**kept, "further": Further(**kept["further"])})


def nameless(reason: str, scan: Scan, root: Path) -> str:
    """A reason without the names of files, for tables that may be passed on."""
    paths = [part.path for part in (*scan.source.parts, *scan.labels.mask, *scan.labels.excluded)]
    words = {str(root), *paths, *(str(root / path) for path in paths), *(PurePosixPath(path).name for path in paths)}
    for word in sorted(words, key=len, reverse=True):
        reason = reason.replace(word, "the file" if word != str(root) else "the folder")
    return reason


def fitted_scaling(
    fitted: Fitted, scans: Sequence[Scan], place: tuple[Path, Windows, float], apart: tuple[Path, dict[str, Any]]
) -> tuple[Scaling, list[str]]:
    """Classifies the scans of another split and fits the temperature on them.

    Args:
        fitted: The network.
        scans: What the temperature is fitted on.
        place: As of ``score_all``.
        apart: Folder where their answers are kept, and what makes them.

    Returns:
        The temperature, and a note on what was skipped.
    """
    folder, made_by = apart
    folder.mkdir(mode=0o700, exist_ok=True)
    finished, split = Finished(folder, made_by), made_by["split"]
    _, unread = score_all(fitted, scans, {}, place, finished)
    names = [name for _, name in fitted.schema.classes]
    scaling = fit_scaling(answers_of(fitted, scans, finished), names, split, unread)
    return scaling, [f"temperature: {len(unread)} scans of split {split} skipped"] if unread else []


def distance_notes(scans: Sequence[Scan]) -> list[str]:
    """A note where distances are not in mm: images whose pixels are of 1 mm, which stands where nothing says.

    An image whose pixels are known to be of 1 mm is counted, too: its distances are the same in both units.
    """
    count = sum(scan.grid.spacing_mm == (1.0, 1.0) for scan in scans)
    return [f"no spacing is known for {count} pictures: distances (hd95_mm, nsd) are in pixels"] if count else []


def rows_of(scans: Sequence[Scan], finished: Finished) -> list[SegmentationRow]:
    """The rows of the scans that were segmented."""
    return [
        SegmentationRow(scan.scan_id, scan.subject.subject_id, name, score_of(score))
        for scan in scans
        for name, score in (finished.get(scan) or {}).items()
    ]


def answers_of(fitted: Fitted, scans: Sequence[Scan], finished: Finished) -> list[ClassificationRow]:
    """The rows of the scans that were classified."""
    return [answer_row(scan, finished.get(scan), fitted.schema) for scan in scans if finished.get(scan) is not None]


def answer_row(scan: Scan, probabilities: Sequence[float], schema: LabelSchema) -> ClassificationRow:
    """The row of a scan that was classified."""
    names = [name for _, name in schema.classes]
    truth = names[class_number(dict(scan.labels.values), schema)]
    predicted = names[int(np.argmax(probabilities))]
    return ClassificationRow(scan.scan_id, scan.subject.subject_id, truth, predicted, tuple(probabilities))


def draw_cases(
    fitted: Fitted,
    scans: Mapping[str, Scan],
    rows: Sequence[SegmentationRow],
    place: tuple[Path, Windows, Path],
    *,
    again: bool,
) -> None:
    """Draws the worst, the median and the best scan by Dice, predicted once more; other pictures go.

    Args:
        fitted: The network.
        scans: What was scored, by identifier.
        rows: The scores.
        place: Root of the index, how a scan is gone through, folder of the pictures.
        again: Draw also what is there.
    """
    root, windows, folder = place
    scores = {scan_id: dice for scan_id, dice in cases.scan_scores(rows).items() if dice is not None}
    ordered = sorted(scores, key=lambda scan_id: (scores[scan_id], scan_id))
    chosen = {ordered[k] for k in (0, len(ordered) // 2, len(ordered) - 1)} if ordered else set()
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in chosen:
            path.unlink()
    for scan_id in sorted(chosen):
        path = folder / f"{scan_id}.png"
        if again or not path.exists():
            draw_case(fitted, scans[scan_id], root, windows, path)


def draw_case(fitted: Fitted, scan: Scan, root: Path, windows: Windows, path: Path) -> None:
    """Draws one scan with its label and its prediction."""
    volume = read(scan, root)
    assert volume.label is not None
    prediction = segment(fitted, volume, scan.source.value_domain, windows)
    image, label, found, affine = volume.image, volume.label, prediction[None], volume.affine
    if prediction.ndim == 3:
        label, found = (grid.orient(array, affine, "RAS")[0] for array in (label, found))
        image, affine = grid.orient(image, affine, "RAS")
    picture = overlay(image, label[0], found[0], fitted.schema, grid.spacing_of(affine))
    atomic_write(path, lambda file: file.write(picture))
