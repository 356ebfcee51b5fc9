"""Writes scans into a store: one job reads, prepares and writes one scan, or a pack of small ones, in any process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.masks import check_label
from medssl.data.formats.reading import read
from medssl.data.store import checksums, chunks, records, slides
from medssl.data.store.naming import SMALL, content_digest, scan_file, scan_key
from medssl.data.store.preprocess import prepare
from medssl.data.store.unchanged import UNREADABLE, refuse_changed
from medssl.io.processes import in_worker

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from medssl.data.store.naming import Tier
    from medssl.data.store.preprocess import Prepared
    from medssl.io.limits import Limits
    from medssl.io.processes import Lost
    from medssl.types import LabelSchema, Preprocess, Scan

PACK = 1024  # small scans in a pack
COMPRESSED = 0.8  # stored bytes of a chunked scan, as a share of its voxels' bytes: a guess on the high side


@dataclass(frozen=True)
class StorePlan:
    """What all writing jobs of one store share.

    Attributes:
        root: Root of the index, which the scans' paths start from.
        store: Folder of the store.
        preprocess: Rules of the store.
        tier: "chunked" or "raw".
        schemas: Class map of each data set, or None.
    """

    root: Path
    store: Path
    preprocess: Preprocess
    tier: Tier
    schemas: dict[str, LabelSchema | None]

    def key(self, scan: Scan) -> str:
        """Digest that names the scan's bytes in this store."""
        return scan_key(scan, self.preprocess, self.tier)


@dataclass(frozen=True)
class Outcome:
    """What one job did: rows for the table, checksums, and which scans were skipped, each with the reason.

    ``size`` counts the bytes of the voxels that were expected.
    """

    rows: tuple[tuple[Any, ...], ...] = ()
    skipped: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[tuple[str, tuple[bytes, bytes]], ...] = ()
    size: int = 0


def write_scans(
    plan: StorePlan, scans: Sequence[Scan], report: Callable[[int], None] = lambda _number: None
) -> Outcome:
    """Stores one scan in separate files, several scans in a pack.

    A scan that cannot be read or prepared is skipped with its reason and the others go on; ``report`` is called with
    the number of each scan before it is read.

    Raises:
        disk.DiskFull: No room; nothing of the file in work is left.
    """
    rows: list[tuple[Any, ...]] = []
    skipped: list[tuple[str, str, str]] = []
    notes: list[str] = []
    pack: list[bytes] = []
    checks: dict[str, tuple[bytes, bytes]] = {}
    for number, scan in enumerate(scans):
        report(number)
        try:
            if plan.tier == "slides":
                row, checks[scan.scan_id] = _write_tiles(plan, scan)
                rows.append(row)
                continue
            prepared, read_notes = _prepared(plan, scan)
        except MemoryError:
            if in_worker():  # the process that started this one leaves the scan out
                raise
            skipped.append((scan.scan_id, plan.key(scan), "needs more memory than there is"))
            continue
        except UNREADABLE as error:
            text = str(error) or "no reason given"
            reason = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
            skipped.append((scan.scan_id, plan.key(scan), " ".join(reason.split())))
            continue
        notes += [f"{scan.scan_id}: {note}" for note in read_notes]
        if len(scans) == 1 and not _small(prepared):
            row, checks[scan.scan_id] = _write_files(plan, scan, prepared)
            rows.append(row)
        else:
            place, checks[scan.scan_id] = _packed(prepared, pack)
            rows.append(records.row(scan, plan.key(scan), prepared, place, content_digest(prepared)))
    size = sum(expected_bytes(plan, scan) for scan in scans)
    return Outcome(tuple(_published(plan, rows, pack)), tuple(skipped), tuple(notes), tuple(checks.items()), size)


def jobs(
    plan: StorePlan,
    scans: Iterable[Scan],
    connection: sqlite3.Connection,
    left_out: Callable[[Scan], bool] = lambda _scan: False,
) -> Iterator[tuple[Scan, ...]]:
    """Groups the scans that the store lacks: large ones alone, small ones 1024 to a pack; failed ones again at the end.

    Those that ``left_out`` says are not tried. The grouping depends on the scans and on what is stored alone, so a run
    that was killed comes to the same files.
    """
    small: list[Scan] = []
    again: list[Scan] = []
    failed = {str(row[0]) for row in connection.execute("SELECT scan_id FROM failures")}
    for scan in scans:
        if stored(plan, scan, connection) or left_out(scan):
            continue
        if scan.scan_id in failed:
            again.append(scan)
        elif plan.tier == "slides" or expected_bytes(plan, scan) >= SMALL[len(scan.grid.shape)]:
            yield (scan,)
        else:
            small.append(scan)
        if len(small) == PACK:
            yield tuple(small)
            small = []
    if small:
        yield tuple(small)
    yield from ((scan,) for scan in again)


def stored(plan: StorePlan, scan: Scan, connection: sqlite3.Connection) -> bool:
    """Whether the store holds this scan, made of these files by these rules, with all its bytes."""
    query = "SELECT key, pack, first, nbytes, label_first, label_nbytes, details FROM scans WHERE scan_id = ?"
    row = connection.execute(query, (scan.scan_id,)).fetchone()
    if row is None or row[0] != plan.key(scan):
        return False
    if row[1]:
        needed = max(row[2] + row[3], row[4] + row[5])
        return bool(_size(plan.store / "packs" / row[1]) >= needed)
    sizes = json.loads(row[6])["bytes"]
    names = [scan_file(plan.store, row[0], part, plan.tier) for part in ("", "label")][: len(sizes)]
    return bool([_size(name) for name in names] == sizes)


def expected_bytes(plan: StorePlan, scan: Scan) -> int:
    """Bytes of the voxels of a scan after its new grid, before compression (two bytes a voxel)."""
    shape = np.asarray(scan.grid.shape, float)
    rules = plan.preprocess
    if plan.tier == "slides" and scan.source.kind == "slide":  # the thumbnail alone is in memory
        shape = shape * np.asarray(scan.grid.spacing_mm) * 1000.0 / rules.tissue.mpp
    if len(shape) == 2 and rules.image_size:
        shape = np.asarray(rules.image_size, float)
    spacing = rules.spacing_mm if isinstance(rules.spacing_mm, tuple) else ()
    if len(shape) == 3 and spacing and not rules.orientation:
        new = np.asarray(spacing)
        shape = shape * np.asarray(scan.grid.spacing_mm) / np.where(new > 0, new, scan.grid.spacing_mm)
    elif len(shape) == 3 and spacing and all(spacing):
        shape = shape * np.prod(scan.grid.spacing_mm) ** (1 / 3) / np.prod(spacing) ** (1 / 3)
    narrow = scan.source.value_domain == "rgb" and not scan.labels.excluded
    voxels = float(np.prod(np.maximum(shape, 1)))
    return (
        int(min(voxels if np.isfinite(voxels) else np.inf, 1e30))
        * max(1, len(scan.source.channels))
        * (1 if narrow else 2)
    )


def seconds_for(plan: StorePlan, scan: Scan) -> float:
    """Seconds that a scan may take besides, for its size: 2 MB each."""
    return expected_bytes(plan, scan) / 2e6


def left_out(plan: StorePlan, scan: Scan, connection: sqlite3.Connection, limits: Limits) -> str:
    """Why a scan is not tried: too large for the memory limit, or it met a limit before that is no wider now.

    Nothing where it is tried.
    """
    needed = expected_bytes(plan, scan) / 1e9
    if needed > limits.memory_gb:
        return f"needs about {needed:.3g} GB of memory, the limit is {limits.memory_gb:.3g} GB (memory_gb)"
    query = 'SELECT reason, kind, value FROM lost WHERE scan_id = ? AND "key" = ?'
    row = connection.execute(query, (scan.scan_id, plan.key(scan))).fetchone()
    if row is None or (limits.seconds if row[1] == "seconds" else limits.memory_gb) > row[2]:
        return ""
    return f"{row[0]} in an earlier run, and is tried again with a higher {row[1]}"


@records.room()
def record_lost(plan: StorePlan, connection: sqlite3.Connection, scan: Scan, lost: Lost, limits: Limits) -> Outcome:
    """Records that no process could read a scan; returns an outcome that skips it."""
    key = plan.key(scan)
    value = {"seconds": limits.seconds, "memory_gb": limits.memory_gb}.get(lost.limit)
    with connection:
        connection.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (scan.scan_id, key))
        connection.execute("DELETE FROM lost WHERE scan_id = ?", (scan.scan_id,))
        if value is not None:
            row = (scan.scan_id, key, lost.reason, lost.limit, value)
            connection.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?)", row)
    return Outcome(skipped=((scan.scan_id, key, lost.reason),), size=expected_bytes(plan, scan))


@records.room()
def refresh(plan: StorePlan, scans: Iterable[Scan], connection: sqlite3.Connection) -> int:
    """Brings subjects, splits and scan-level labels of stored scans up to the index; returns how many changed."""
    names = records.DESCRIBED
    changed = 0
    with connection:
        for scan in scans:
            now = records.described(scan, plan.key(scan))
            query = f"SELECT {', '.join(names)} FROM scans WHERE scan_id = ? AND key = ?"
            before = connection.execute(query, now[:2]).fetchone()
            if before is not None and before != now:
                marks = ", ".join(f"{name} = ?" for name in names)
                connection.execute(f"UPDATE scans SET {marks} WHERE scan_id = ?", (*now, scan.scan_id))
                records.seal_row(connection, scan.scan_id)
                changed += 1
    return changed


@records.room()
def record_outcome(plan: StorePlan, connection: sqlite3.Connection, outcome: Outcome) -> None:
    """Enters what a job did into the table; deletes files of an older state of the same scans."""
    old = [
        connection.execute("SELECT key, pack FROM scans WHERE scan_id = ? AND key != ?", row[:2]).fetchone()
        for row in outcome.rows
    ]
    records.insert(connection, outcome.rows, dict(outcome.checks))
    with connection:
        connection.executemany(
            "INSERT OR REPLACE INTO failures VALUES (?, ?)", [skipped[:2] for skipped in outcome.skipped]
        )
    for key, pack in filter(None, old):
        for part in () if pack else ("", "label"):
            scan_file(plan.store, key, part, plan.tier).unlink(missing_ok=True)


def _prepared(plan: StorePlan, scan: Scan) -> tuple[Prepared, tuple[str, ...]]:
    refuse_changed(scan, plan.root)
    if scan.source.kind == "slide":
        message = "a whole slide: cache slides into a store of their own (tier slides, preprocess slides)"
        raise ValueError(message)
    volume = read(scan, plan.root)
    schema = plan.schemas.get(scan.source.dataset)
    if volume.label is not None:
        check_label(volume.label, schema)
    prepared = prepare(volume, plan.preprocess, domain=scan.source.value_domain)
    return prepared, volume.notes


def _small(prepared: Prepared) -> bool:
    return prepared.image.nbytes < SMALL[prepared.image.ndim - 1]


def _write_files(plan: StorePlan, scan: Scan, prepared: Prepared) -> tuple[tuple[Any, ...], tuple[bytes, bytes]]:
    """Writes the files of one scan and returns its row and its checksums."""
    key = plan.key(scan)
    sizes, checks = [], [b""] if prepared.label is None else []
    for part, array in (("label", prepared.label), ("", prepared.image)):
        if array is not None:
            parts, known = chunks.with_checksums(array, plan.tier)
            sizes.append(chunks.write_parts(scan_file(plan.store, key, part, plan.tier), parts))
            checks.append(known)
    place = records.Place(sizes=tuple(reversed(sizes)))
    return records.row(scan, key, prepared, place, content_digest(prepared)), (checks[1], checks[0])


def _write_tiles(plan: StorePlan, scan: Scan) -> tuple[tuple[Any, ...], tuple[bytes, bytes]]:
    """Writes the table of tiles of a slide and returns its row and its checksums."""
    if scan.source.kind != "slide":
        noun = "an image" if scan.source.kind == "image" else f"a {scan.source.kind}"
        message = f"{noun}, and no whole slide: cache it into another store (tier chunked)"
        raise ValueError(message)
    refuse_changed(scan, plan.root)
    prepared, found = slides.prepare_slide(scan, plan.root, plan.preprocess)
    key, table = plan.key(scan), slides.table_of(found)
    parts, known = chunks.with_checksums(table, "raw")
    place = records.Place(sizes=(chunks.write_parts(scan_file(plan.store, key, "", plan.tier), parts),))
    content = hashlib.blake2b(table.tobytes(), digest_size=12)
    content.update(f"{scan.digests.source} {prepared.image.shape}".encode())
    content.update(prepared.coding.intensity.tobytes())
    return records.row(scan, key, prepared, place, content.hexdigest()), (known, b"")


def _packed(prepared: Prepared, pack: list[bytes]) -> tuple[records.Place, tuple[bytes, bytes]]:
    """Appends a scan's bytes to a pack in the making; returns their place and their checksums."""
    image = chunks.compress(prepared.image)
    label = b"" if prepared.label is None else chunks.compress(prepared.label)
    first = sum(map(len, pack))  # a few thousand lengths at most
    pack += [image, label]
    place = records.Place("?", first, len(image), first + len(image), len(label))
    return place, (checksums.of_packed(image), checksums.of_packed(label))


def _published(plan: StorePlan, rows: list[tuple[Any, ...]], pack: list[bytes]) -> Iterator[tuple[Any, ...]]:
    """Writes the pack, named after its content, and enters its name into the rows that point to it."""
    if not pack:
        yield from rows
        return
    digest = hashlib.blake2b(digest_size=12)
    for data in pack:
        digest.update(data)
    name = f"{digest.hexdigest()}.pack"
    chunks.write_parts(plan.store / "packs" / name, pack)
    place = records.COLUMNS.index("pack")
    for row in rows:
        yield (*row[:place], name if row[place] else "", *row[place + 1 :])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
