"""Scores of a network on labeled scans: what it knows of them, measures of each scan, pictures of three."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medssl.data.formats.reading import read
from medssl.data.index.scan_index import Index
from medssl.data.labels.kinds.base import kind_of
from medssl.data.split import refuse_leaks
from medssl.data.store import grid
from medssl.data.store.unchanged import UNREADABLE
from medssl.inference.finished_scans import Finished
from medssl.inference.predictor import Windows, classify, reason_of, segment
from medssl.inference.scan_scores import rows_of
from medssl.inference.temperature import fit_scaling
from medssl.io.atomic_write import atomic_write
from medssl.metrics import cases
from medssl.metrics.cases import SegmentationRow
from medssl.metrics.segmentation import score_case
from medssl.reporting.overlay import overlay
from medssl.types import Note, UserError
from medssl.types.provenance import TrainingSubjects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medssl.inference.predictor import Fitted
    from medssl.metrics.calibration import Scaling
    from medssl.types import LabelSchema, Scan

log = logging.getLogger(__name__)


def check_leaks(fitted: Fitted, scans: Sequence[Scan], *, allow_seen: bool) -> list[Note]:
    """Refuses to score subjects that the network was trained on.

    Returns:
        Notes on what was allowed and on what cannot be known.

    Raises:
        UserError: The network was trained on some of them; it counts them and says in which training.
    """
    scored = {scan.subject.subject_id for scan in scans}
    training = TrainingSubjects(fitted.tuned.subjects, fitted.card.subjects)
    notes = refuse_leaks(scored, training, allowed=allow_seen, network="the network", group="scored subjects")
    if not all(scan.subject.known for scan in scans):
        text = "some scans have no known subject and count as one subject each: leaks are possible"
        notes.append(Note("leak", text))
    return notes


def schemas_of(opened: Index, scans: Sequence[Scan], schema: LabelSchema) -> dict[str, LabelSchema]:
    """The network's classes, with the value to ignore of each data set.

    Raises:
        UserError: A data set gives a value another name than the network.
    """
    class_names = dict(schema.classes)
    schemas = {}
    for dataset in sorted({scan.source.dataset for scan in scans}):
        dataset_schema = opened.schema(dataset) if kind_of(schema).per_voxel else None
        for value, name in dataset_schema.classes if dataset_schema else ():
            if class_names.get(value, name) != name:
                message = (
                    f"value {value} is {name!r} in data set {dataset}, the network learned it as "
                    f"{class_names[value]!r}: index with the class names that the network was trained with"
                )
                raise UserError(message)
        ignored = dataset_schema is not None and dataset_schema.ignore is not None
        schemas[dataset] = replace(schema, ignore=dataset_schema.ignore) if dataset_schema and ignored else schema
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
    per_voxel = kind_of(fitted.schema).per_voxel
    new, skipped = 0, []
    for scan in tqdm(scans, desc="evaluate", unit="scan"):
        if finished.get(scan) is not None:
            continue
        try:
            volume = read(scan, root, with_label=per_voxel)
            domain = scan.source.value_domain
            if not per_voxel:
                finished.add(scan, classify(fitted, volume, domain, windows).tolist())
            else:
                assert volume.label is not None
                prediction = segment(fitted, volume, domain, windows)
                schema = schemas[scan.source.dataset]
                scores = score_case(prediction, volume.label[0], schema, volume.spacing_mm, nsd_tolerance_mm=tolerance)
                finished.add(scan, {name: asdict(score) for name, score in scores.items()})
        except UNREADABLE as error:
            skipped.append((scan.scan_id, without_paths(reason_of(error), scan, root)))
            continue
        new += 1
    return new, skipped


def without_paths(reason: str, scan: Scan, root: Path) -> str:
    """A reason without the names of files, for tables that may be passed on."""
    paths = [part.path for part in (*scan.source.parts, *scan.labels.mask, *scan.labels.excluded)]
    words = {str(root), *paths, *(str(root / path) for path in paths), *(PurePosixPath(path).name for path in paths)}
    for word in sorted(words, key=len, reverse=True):
        reason = reason.replace(word, "the file" if word != str(root) else "the folder")
    return reason


def fit_temperature(
    fitted: Fitted, scans: Sequence[Scan], place: tuple[Path, Windows, float], results: tuple[Path, dict[str, Any]]
) -> tuple[Scaling, list[Note]]:
    """Classifies the scans of another split and fits the temperature on them.

    Args:
        fitted: The network.
        scans: What the temperature is fitted on.
        place: As of ``score_all``.
        results: Folder of their predictions, and what makes them.

    Returns:
        The temperature, and a note on what was skipped.
    """
    folder, made_by = results
    folder.mkdir(mode=0o700, exist_ok=True)
    finished, split = Finished(folder, made_by), made_by["split"]
    _, unread = score_all(fitted, scans, {}, place, finished)
    names = [name for _, name in fitted.schema.classes]
    scaling = fit_scaling(rows_of(scans, finished, fitted.schema), names, split, unread)
    text = f"temperature: {len(unread)} scans of split {split} skipped"
    return scaling, [Note("skipped", text)] if unread else []


def distance_notes(scans: Sequence[Scan]) -> list[Note]:
    """A note where distances are not in mm: images whose pixels are of 1 mm, which stands where nothing says.

    An image whose pixels are known to be of 1 mm is counted, too: its distances are the same in both units.
    """
    count = sum(scan.grid.spacing_mm == (1.0, 1.0) for scan in scans)
    text = f"no spacing is known for {count} pictures: distances (hd95_mm, nsd) are in pixels"
    return [Note("guess", text)] if count else []


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
        again: Draw existing pictures again.
    """
    root, windows, folder = place
    scores = {scan_id: dice for scan_id, dice in cases.scan_scores(rows).items() if dice is not None}
    ordered = sorted(scores, key=lambda scan_id: (scores[scan_id], scan_id))
    shown = {ordered[k] for k in (0, len(ordered) // 2, len(ordered) - 1)} if ordered else set()
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in shown:
            path.unlink()
    for scan_id in sorted(shown):
        path = folder / f"{scan_id}.png"
        if again or not path.exists():
            draw_case(fitted, scans[scan_id], root, windows, path)


def draw_case(fitted: Fitted, scan: Scan, root: Path, windows: Windows, path: Path) -> None:
    """Draws one scan with its label and its prediction."""
    volume = read(scan, root)
    assert volume.label is not None
    prediction = segment(fitted, volume, scan.source.value_domain, windows)
    image, label, predicted, affine = volume.image, volume.label, prediction[None], volume.affine
    if prediction.ndim == 3:
        label, predicted = (grid.orient(array, affine, "RAS")[0] for array in (label, predicted))
        image, affine = grid.orient(image, affine, "RAS")
    picture = overlay(image, label[0], predicted[0], fitted.schema, grid.spacing_of(affine))
    atomic_write(path, lambda file: file.write(picture))
