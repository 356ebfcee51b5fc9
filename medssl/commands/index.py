"""``medssl index``: directories -> one index file, and questions to that file."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from medssl.data.index import layouts
from medssl.data.index.datasets import places_of
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.pseudonyms import SubjectRule, load_key
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions, LayoutName
from medssl.data.index.update import Update, update
from medssl.io.progress import progress_bar
from medssl.types import UserError

log = logging.getLogger(__name__)

_SHOWN = 20
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
        exit_code: 0; 1 where nothing was found.
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
    asked = where is not None or export is not None or show is not None
    if directories or not asked:
        result = _update(list(directories), index, IndexOptions(subject, label, files, layout))
        if result.exit_code or not asked:
            return result
    with Index.open(index) as opened:
        if show is not None:
            return IndexResult(index, _show(opened, show))
        if export is not None:
            count = opened.export(export, where)
            log.info(f"{count:,} scans written to {export}")
            return IndexResult(index, count, exported=export)
        count = _list(opened, where)
        return IndexResult(index, count, exit_code=0 if count else 1)


# --- update


def _update(directories: Sequence[Path], file: Path, options: IndexOptions) -> IndexResult:
    """Update and print what there is now."""
    SubjectRule(options.subject)
    places = places_of(directories)
    for folder in places.folders if options.layout else ():
        log.info(f"{folder.name}: {layouts.fill(options, folder).summary}")
    if not directories and not file.exists():
        message = f"no index at {file}: name the folders or files to index"
        raise UserError(message)
    key = load_key(options.files.key, away_from=[file.parent, *places.folders])
    first = next(iter((*places.folders, *places.files)), None)
    root = first.parent if first else None
    with Index.open(file, create=True, root=root) as opened, progress_bar() as progress:
        done = update(opened, directories, options, key=key, progress=progress)
    with Index.open(file) as opened:
        return _summary(opened, file, done, directories)


def _summary(opened: Index, file: Path, done: Update, directories: Sequence[Path]) -> IndexResult:
    """Print what was done, what there is, and what was left out and why."""
    log.info(f"files: {done.read:,} read, {done.unchanged:,} unchanged, {done.gone:,} gone")
    query = """
        SELECT dataset, kind, modality, count(*) AS scans, count(DISTINCT subject_id) AS subjects,
        sum(has_mask) AS masks, min(channels) AS fewest, max(channels) AS most,
        sum(scan_id IN (SELECT scan_id FROM parts WHERE role = 'excluded')) AS excluded,
        min(size_i), max(size_i), min(size_j), max(size_j), min(size_k), max(size_k)
        FROM scans WHERE status = 'ok' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    """
    rows = opened.connection.execute(query).fetchall()
    total = sum(row["scans"] for row in rows)
    log.info(f"scans: {total:,}")
    for row in rows:
        sizes = [
            f"{low}-{high}" if low != high else f"{low}" for low, high in zip(row[9::2], row[10::2], strict=True) if low
        ]
        channels = f", {row['fewest']} to {row['most']} channels" if row["most"] > row["fewest"] else ""
        channels = channels or (f", {row['most']} channels" if row["most"] > 1 else "")
        size = " x ".join(sizes) + channels
        masks = f", {row['masks']:,} with a mask" if row["masks"] else ""
        masks += f", {row['excluded']:,} with excluded voxels" if row["excluded"] else ""
        kind = f"{row['modality']} {row['kind']}".strip()
        log.info(f"  {row['dataset']}: {row['scans']:,} {kind}, {size}, {row['subjects']:,} subjects{masks}")
    splits = opened.connection.execute("SELECT split, count(*) FROM scans WHERE status = 'ok' GROUP BY 1 ORDER BY 1")
    log.info("split: " + (", ".join(f"{name or 'none'} {count:,}" for name, count in splits) or "none"))
    counts = opened.counts()
    for status in ("failed", "rejected", "ignored"):
        reasons = [(reason, count) for code, reason, count in counts if code == status]
        if reasons:
            unit = "files" if status == "ignored" else "scans or files"
            log.info(f"{status}: {sum(count for _, count in reasons):,} {unit} (--show {status} names them)")
            for reason, count in reasons[:_SHOWN]:
                log.info(f"  {count:,} {reason}")
    _print_notes(opened)
    for note in done.notes:
        log.info(f"note: {note}")
    left_out = Counter[str]()
    for code, _, count in counts:
        left_out[code] += count
    result = IndexResult(file, total, left_out=dict(left_out), notes=tuple(map(str, done.notes)))
    if total:
        return result
    where = ", ".join(map(str, directories)) or "the directories of this index"
    log.error(f"error: nothing readable in {where}")
    return replace(result, exit_code=1)


def _print_notes(opened: Index) -> None:
    """What was guessed or left out of scans that are taken, by kind with the first file."""
    query = """
        SELECT scans.reason, path FROM scans
        JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
        JOIN files ON files.id = parts.file WHERE status = 'ok' AND scans.reason <> ''
        UNION ALL SELECT reason, path FROM files WHERE state = 'slice' AND reason <> '' ORDER BY path
    """
    first: dict[str, tuple[str, str]] = {}
    count: Counter[str] = Counter()
    for reason, path in opened.connection.execute(query):
        for note in reason.split("; "):
            count[kind := _kind_of_note(note)] += 1
            first.setdefault(kind, (note, PurePosixPath(path).name))
    if count:
        log.info("notes on scans:")
    for kind, number in count.most_common(_SHOWN):
        note, name = first[kind]
        log.info(f"  {number:,}: {note} ({name})" if number == 1 else f"  {number:,}: {note} (first: {name})")


def _kind_of_note(note: str) -> str:
    """A note without the numbers that differ from scan to scan."""
    return re.sub(r"\d[\d.,]*(?![\w-])", "#", note.split(" (")[0])


# --- questions


def _list(opened: Index, where: str | None) -> int:
    """Shows the first scans of a condition; returns how many there are."""
    cursor = opened.rows(where)
    names = [column[0] for column in cursor.description]
    shown = ["scan_id", "status", "dataset", "modality", "size_i", "size_j", "size_k", "split"]
    places = [names.index(name) for name in shown]
    count = 0
    log.info("\t".join(shown))
    for row in cursor:
        count += 1
        if count <= _SHOWN:
            log.info("\t".join("" if row[place] is None else str(row[place]) for place in places))
    more = f", {_SHOWN} shown: --export FILE.csv writes all" if count > _SHOWN else ""
    log.info(f"{count:,} scans{more}")
    return count


def _show(opened: Index, what: str) -> int:
    """Names the files of one scan, or of all that was left out; returns how many there are."""
    if what == "ignored":
        rows = opened.connection.execute("SELECT path, reason FROM files WHERE state = 'ignored' ORDER BY path")
    elif what in ("failed", "rejected"):
        query = """
            SELECT files.path, scans.reason, scans.files FROM scans
            JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
            JOIN files ON files.id = parts.file WHERE scans.status = ? ORDER BY files.path
        """
        rows = opened.connection.execute(query, (what,))
    else:
        return _show_scan(opened, what)
    count = 0
    for row in rows:
        count += 1
        more = f" and {row['files'] - 1:,} more" if "files" in row.keys() and row["files"] > 1 else ""
        log.info(f"{opened.root / row['path']}{more}: {row['reason']}")
    log.info(f"{count:,} {what}")
    return count


def _show_scan(opened: Index, scan_id: str) -> int:
    scan = opened.scan(scan_id)
    grid, source = scan.grid, scan.source
    log.info(f"{scan.scan_id} {scan.status.code} {scan.status.reason}".rstrip())
    log.info(f"  {source.dataset}: {source.modality} {source.kind}, values {source.value_domain}")
    spacing = " x ".join(f"{step:.3g}" for step in grid.spacing_mm)
    log.info(f"  shape {' x '.join(map(str, grid.shape))}, spacing {spacing} mm")
    log.info(
        f"  subject {scan.subject.subject_id}, study {scan.subject.study_id or 'unknown'}, split {scan.subject.split}"
    )
    for name, value in scan.labels.values:
        log.info(f"  {name}: {value}")
    roles = (("file", source.parts), ("mask", scan.labels.mask), ("excluded", scan.labels.excluded))
    for role, parts in roles:
        for part in parts:
            frame = "" if part.frame is None else f" frame {part.frame}"
            log.info(f"  {role} {opened.root / part.path}{frame}")
    return 1
