"""Texts on an index for the console: what it holds, what was left out and why, the files of scans."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medssl.data.index.scan_index import Index
    from medssl.data.index.update import Update

log = logging.getLogger(__name__)

_SHOWN = 20  # rows or reasons that are shown


def log_summary(opened: Index, counts: Update) -> tuple[int, dict[str, int]]:
    """Logs what an update did, what the index holds, and what was left out and why.

    Returns:
        Number of scans, and of scans or files that are "failed", "rejected", "needs_spacing" or "ignored".
    """
    log.info(f"files: {counts.read:,} read, {counts.unchanged:,} unchanged, {counts.gone:,} gone")
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
    reasons_left_out = opened.counts()
    for status in ("failed", "rejected", "needs_spacing", "ignored"):
        reasons = [(reason, count) for code, reason, count in reasons_left_out if code == status]
        if reasons:
            unit = "files" if status == "ignored" else "scans or files"
            log.info(f"{status}: {sum(count for _, count in reasons):,} {unit} (show {status} names them)")
            for reason, count in reasons[:_SHOWN]:
                log.info(f"  {count:,} {reason}")
    _log_notes(opened)
    for note in counts.notes:
        log.info(f"note: {note}")
    left_out = Counter[str]()
    for code, _, count in reasons_left_out:
        left_out[code] += count
    return total, dict(left_out)


def _log_notes(opened: Index) -> None:
    """Logs what was assumed for scans or left out of them, by kind with the first file."""
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


def log_scans(opened: Index, where: str | None) -> int:
    """Logs the first scans that meet a condition; returns how many do."""
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
    more = f", {_SHOWN} shown: export them to see all" if count > _SHOWN else ""
    log.info(f"{count:,} scans{more}")
    return count


def log_files(opened: Index, what: str) -> int:
    """Logs the files of one scan, or of all that were left out; returns how many scans or files these are."""
    if what == "ignored":
        rows = opened.connection.execute("SELECT path, reason FROM files WHERE state = 'ignored' ORDER BY path")
    elif what in ("failed", "rejected", "needs_spacing"):
        query = """
            SELECT files.path, scans.reason, scans.files FROM scans
            JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
            JOIN files ON files.id = parts.file WHERE scans.status = ? ORDER BY files.path
        """
        rows = opened.connection.execute(query, (what,))
    else:
        return _log_scan(opened, what)
    count = 0
    for row in rows:
        count += 1
        more = f" and {row['files'] - 1:,} more" if "files" in row.keys() and row["files"] > 1 else ""
        log.info(f"{opened.root / row['path']}{more}: {row['reason']}")
    log.info(f"{count:,} {what}")
    return count


def _log_scan(opened: Index, scan_id: str) -> int:
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
