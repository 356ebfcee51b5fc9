"""Scans that are named by folders and files, found by a private index of the user."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from medssl.data.index.label_sources import names_of
from medssl.data.index.pseudonyms import load_key
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.io.csv_text import is_formula
from medssl.io.progress import progress_bar
from medssl.types import StatusCode, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from medssl.types import Scan

log = logging.getLogger(__name__)

LEFT_OUT: tuple[StatusCode, ...] = ("failed", "rejected", "needs_spacing")


def private_index(out: Path) -> Path:
    """Where the paths of predicted scans are kept: in the user's state folder, never among what is passed on."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.blake2b(str(out.resolve()).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return state / "medssl" / "predict" / name / "index.sqlite"


class RequestedScans:
    """Scans that were named on the command line, found by a private index of the user."""

    def __init__(self, scans: Sequence[Path], out: Path, files: FileOptions) -> None:
        self.index = private_index(out)
        self.folders: set[Path] = set()
        self.files: set[Path] = set()
        for path in scans:
            resolved = path.expanduser().resolve()
            if not resolved.exists():
                message = f"no such file or folder: {path}"
                raise UserError(message)
            (self.folders if resolved.is_dir() else self.files).add(resolved)
        inside = [folder for folder in sorted(self.folders) if out.resolve().is_relative_to(folder)]
        if inside:
            message = f"the folder lies inside {inside[0]}, whose scans are to be predicted"
            raise UserError(message, key="out", got=str(out), hint="Choose another folder for results.")
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
        for status in LEFT_OUT:
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
    formulas = [name for name in names if is_formula(name)]
    if formulas:
        message = f"the file {formulas[0]!r} would be a formula in predictions.csv: rename it, or set names to scan_id"
        raise UserError(message)


def prediction_names(scans: Sequence[Scan], by: Literal["scan_id", "file"]) -> dict[str, str]:
    """What the prediction of each scan is called: by file, several of one name have their identifiers behind it."""
    if by == "scan_id":
        return {scan.scan_id: scan.scan_id for scan in scans}
    names = {}
    for scan in scans:
        paths = [PurePosixPath(path) for path in dict.fromkeys(part.path for part in scan.source.parts)]
        names[scan.scan_id] = names_of(str(paths[0]))[-1] if len(paths) == 1 else paths[0].parent.name
    count = Counter(names.values())
    return {one: name if count[name] == 1 else f"{name}-{one}" for one, name in names.items()}
