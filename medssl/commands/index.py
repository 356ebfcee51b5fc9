"""``medssl index``: directories -> one index file, and questions to that file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medssl.data.index import layouts
from medssl.data.index.datasets import places_of
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.pseudonyms import SubjectRule, load_key
from medssl.data.index.report import log_files, log_scans, log_summary
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions, LayoutName
from medssl.data.index.update import update
from medssl.io.progress import progress_bar
from medssl.types import UserError

log = logging.getLogger(__name__)

_LABELS, _FILES = LabelOptions(), FileOptions()


@dataclass(frozen=True)
class IndexResult:
    """What an index holds.

    Attributes:
        index: Its file.
        scans: Scans that it holds, or that meet the condition, or whose files were named.
        left_out: After an update: how many files or scans are "failed", "rejected" or "ignored".
        notes: After an update: what was assumed.
        exported: Table that was written.
        exit_code: 0; 1 where the index holds no scan, or none meets the condition.
    """

    index: Path
    scans: int
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), repr=False)
    exported: Path | None = None
    exit_code: int = 0


def index(  # noqa: PLR0913 (the keys of a command line)
    directories: tuple[Path, ...] = (),
    *,
    index: Path = Path("index.sqlite"),
    subject: str = "dicom",
    label: LabelOptions = _LABELS,
    files: FileOptions = _FILES,
    layout: LayoutName = "",
    where: str | None = None,
    export: Path | None = None,
    show: str | None = None,
) -> IndexResult:
    """Find the scans of folders and write them to an index, or query an index. Headers are read, pixels are not.

    With folders or files, or with no question, the index is brought up to date: only new and changed files are read,
    and an interrupted update goes on where it stopped. ``--where``, ``--export`` and ``--show`` ask an existing index.

    Args:
        directories: Folders with scans, or single files. Each folder becomes a data set. Without any, update all data
            sets of the index by their saved rules.
        index: Index file to write or to query. It names files, so only its owner may read it.
        subject: How to recognize the subject of a scan: "dicom" (PatientID); a regular expression with one group,
            searched in the path below the folder; or "column:NAME" of the table of values.
        label: Rules that say where masks, values and splits are.
        files: How to read files, and the institution's key.
        layout: Read the folder in the layout of nnU-Net ("nnunet"), BIDS ("bids"), the Medical Segmentation Decathlon
            ("decathlon") or a table of images ("csv", with ``label.values``). The layout sets the rules that are not
            given.
        where: Query: SQL condition on the columns of the scans, such as "modality='MR' AND size_k > 20".
        export: Query: write the scans (those of ``where``) to this .csv or .parquet file.
        show: Query: name the files of a scan by its identifier, or those of all scans that are "failed", "rejected" or
            "ignored".

    Returns:
        How many scans the index holds, or how many meet the condition.
    """
    is_query = where is not None or export is not None or show is not None
    if directories or not is_query:
        result = _update(list(directories), index, IndexOptions(subject, label, files, layout))
        if result.exit_code or not is_query:
            return result
    with Index.open(index) as opened:
        if show is not None:
            return IndexResult(index, log_files(opened, show))
        if export is not None:
            count = opened.export(export, where)
            log.info(f"{count:,} scans written to {export}")
            return IndexResult(index, count, exported=export)
        count = log_scans(opened, where)
        return IndexResult(index, count, exit_code=0 if count else 1)


def _update(directories: Sequence[Path], file: Path, options: IndexOptions) -> IndexResult:
    """Updates an index, and logs what it holds now."""
    SubjectRule(options.subject)
    places = places_of(directories)
    for folder in places.folders if options.layout else ():
        log.info(f"{folder.name}: {layouts.fill(options, folder).summary}")
    if not directories and not file.exists():
        message = f"no index at {file}"
        raise UserError(message, key="index", hint="Name the folders or files to index")
    key = load_key(options.files.key, away_from=[file.parent, *places.folders])
    first = next(iter((*places.folders, *places.files)), None)
    root = first.parent if first else None
    with Index.open(file, create=True, root=root) as opened, progress_bar() as progress:
        counts = update(opened, directories, options, key=key, progress=progress)
    with Index.open(file) as opened:
        total, left_out = log_summary(opened, counts)
    if not total:
        where = ", ".join(map(str, directories)) or "the directories of this index"
        log.error(f"error: nothing readable in {where}")
    notes = tuple(map(str, counts.notes))
    return IndexResult(file, total, left_out=left_out, notes=notes, exit_code=0 if total else 1)
