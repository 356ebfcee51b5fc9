"""``medssl predict``: scans of any readable format -> segmentations on their own grids, or a table of answers."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medssl.data.formats.reading import read
from medssl.data.index.pseudonyms import load_key
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.labels.sources import names_of
from medssl.data.labels.trained_on import NAMES, Difference, differences, missing_note
from medssl.data.store.unchanged import refuse_changed
from medssl.data.store.writer import UNREADABLE
from medssl.inference import writers as outputs
from medssl.inference.finished_scans import Finished
from medssl.inference.predictor import Windows, classify, device_of, load_fitted, reason_of, segment
from medssl.inference.temperature import scaling_of
from medssl.io.csv_text import is_formula
from medssl.io.progress import progress_bar
from medssl.io.trust import names as trusted
from medssl.metrics.calibration import scaled
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from medssl.inference.predictor import Fitted
    from medssl.types import Scan

log = logging.getLogger(__name__)

_FILES, _WINDOWS = FileOptions(), Windows()
_SHOWN = 20


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
) -> int:
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
        0; 1 if nothing could be predicted.
    """
    os.umask(0o077)
    if bool(scans) == (index is not None):
        message = "say what to predict: files or folders, or else an --index"
        raise UserError(message)
    refuse_unknown(allow)
    fitted = load_fitted(run, device_of(windows.accelerator), trusted(trust))
    fit = None if scaling is None else scaling_of(scaling, fitted)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    made_by: dict[str, Any] = {"weights": fitted.digest, "overlap": windows.overlap, "precision": windows.precision}
    made_by |= {} if fit is None else {"temperature": fit.temperature}
    finished = Finished(out, made_by)
    given = _Given(scans, out, files) if index is None else None
    with Index.open(given.index if given else index or Path()) as opened:
        chosen = [scan for scan in opened.scans(where) if given is None or given.has(scan, opened.root)]
        skipped = list(given.left_out(opened)) if given else []
        for note in missing_note(fitted.tuned.trained_on):
            log.info(f"note: {note}")
        chosen, others = split_by_training(fitted, chosen, allow)
        skipped += others
        called = _names(chosen, names)
        if fitted.kind != "segmentation":
            refuse_formulas(called.values())
        there, failed = _predict_all(fitted, chosen, called, (out, opened.root, windows), finished)
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
    return _summary(out, len(chosen) - len(failed), there, skipped)


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
        found = {k: v for k, v in differences(scan, known, fitted.card.preprocess).items() if k not in allowed}
        if found:
            reason = f"{'; '.join(found.values())} (--allow {','.join(found)} predicts it all the same)"
            others.append((scan.scan_id, reason))
        else:
            alike.append(scan)
    return alike, others


def private_index(out: Path) -> Path:
    """Where the paths of predicted scans are kept: in the user's state folder, never among what is passed on."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.blake2b(str(out.resolve()).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return state / "medssl" / "predict" / name / "index.sqlite"


class _Given:
    """Scans that were named on the command line, found by a private index of the user."""

    def __init__(self, scans: Sequence[Path], out: Path, files: FileOptions) -> None:
        self.index = private_index(out)
        self.folders: set[Path] = set()
        self.files: set[Path] = set()
        for path in scans:
            whole = path.expanduser().resolve()
            if not whole.exists():
                message = f"no such file or folder: {path}"
                raise UserError(message)
            (self.folders if whole.is_dir() else self.files).add(whole)
        inside = [folder for folder in sorted(self.folders) if out.resolve().is_relative_to(folder)]
        if inside:
            message = f"--out {out} lies inside {inside[0]}, whose scans are to be predicted: choose another place"
            raise UserError(message)
        alone = {file.parent for file in self.files} - self.folders
        self.places = [*((folder, True) for folder in sorted(self.folders)), *((one, False) for one in sorted(alone))]
        self._bring_up_to_date(files, load_key(files.key, away_from=[out, *self.folders]))

    def _bring_up_to_date(self, files: FileOptions, key: bytes) -> None:
        root = self.places[0][0].parent
        self.index.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Index.open(self.index, create=True, root=root) as opened, progress_bar() as progress:
            for folder, below in self.places:
                options = IndexOptions(files=replace(files, below=below))
                update(opened, [folder], options, key=key, progress=progress)

    def has(self, scan: Scan, root: Path) -> bool:
        """Whether a scan was meant: in a folder that was named, or of a file that was."""
        for part in scan.source.parts:
            path = Path(os.path.normpath(root / part.path))
            if path in self.files or any(path.is_relative_to(folder) for folder in self.folders):
                return True
        return False

    def left_out(self, opened: Index) -> Iterator[tuple[str, str]]:
        """What was meant but is no scan, with the reason."""
        for status in ("failed", "rejected"):
            for scan in opened.scans(status=status):
                if self.has(scan, opened.root):
                    name = PurePosixPath(scan.source.parts[0].path).name
                    yield f"{scan.scan_id} ({name})", scan.status.reason
        for path, reason in opened.connection.execute("SELECT path, reason FROM files WHERE state = 'ignored'"):
            if Path(os.path.normpath(opened.root / path)) in self.files:
                yield PurePosixPath(path).name, reason


def refuse_formulas(names: Iterable[str]) -> None:
    """Refuses names of files that a spreadsheet would take for formulas.

    Raises:
        UserError: Names one.
    """
    found = [name for name in names if is_formula(name)]
    if found:
        message = f"the file {found[0]!r} would be a formula in predictions.csv: rename it, or say --names scan_id"
        raise UserError(message)


def _names(scans: Sequence[Scan], by: Literal["scan_id", "file"]) -> dict[str, str]:
    """What the prediction of each scan is called: by file, several of one name have their identifiers behind it."""
    if by == "scan_id":
        return {scan.scan_id: scan.scan_id for scan in scans}
    names = {}
    for scan in scans:
        paths = [PurePosixPath(path) for path in dict.fromkeys(part.path for part in scan.source.parts)]
        names[scan.scan_id] = names_of(str(paths[0]))[-1] if len(paths) == 1 else paths[0].parent.name
    count = Counter(names.values())
    return {one: name if count[name] == 1 else f"{name}-{one}" for one, name in names.items()}


def _predict_all(
    fitted: Fitted, scans: Sequence[Scan], called: dict[str, str], place: tuple[Path, Path, Windows], finished: Finished
) -> tuple[int, list[tuple[str, str]]]:
    """Predicts what is not there yet; returns how many were, and what failed with the reason."""
    from tqdm.auto import tqdm

    out, root, windows = place
    there, failed = 0, []
    for scan in tqdm(scans, desc="predict", unit="scan", disable=not scans):
        ending = ".png" if len(scan.grid.shape) == 2 else ".nii.gz"
        target = out / f"{called[scan.scan_id]}{ending}"
        if finished.get(scan) is not None and (fitted.kind != "segmentation" or target.exists()):
            there += 1
            continue
        try:
            refuse_changed(scan, root)
            volume = read(scan, root, with_label=False)
            ask = segment if fitted.kind == "segmentation" else classify
            answer = ask(fitted, volume, scan.source.value_domain, windows)
        except UNREADABLE as error:
            failed.append((scan.scan_id, reason_of(error)))
            continue
        if fitted.kind != "segmentation":
            finished.add(scan, answer.tolist())
            continue
        if answer.ndim == 2:
            outputs.write_picture(target, answer)
        else:
            outputs.write_nifti(target, answer, volume.affine, fitted.schema)
        finished.add(scan, True)
    return there, failed


def _summary(out: Path, good: int, there: int, skipped: Sequence[tuple[str, str]]) -> int:
    """Says what there is now, and what was skipped and why."""
    for name, reason in skipped[:_SHOWN]:
        log.info(f"skipped {name}: {reason}")
    if len(skipped) > _SHOWN:
        log.info(f"skipped {len(skipped) - _SHOWN} more")
    if not good:
        found = "" if skipped else ": none was found"
        log.error(f"error: no scan could be predicted{found}, {len(skipped)} were skipped")
        return 1
    log.info(f"{out}: {good} scans predicted ({good - there} new, {there} there already), {len(skipped)} skipped")
    return 0
