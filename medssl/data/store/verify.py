"""Whether a store still holds the bytes that were written: looking at all of it, and mending it before it is filled."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from medssl.data.store import checksums, chunks, records
from medssl.data.store.naming import Tier, scan_file
from medssl.io.sqlite import refuse_programs
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COLUMNS = ", ".join(f"scans.{name}" for name in records.COLUMNS)
QUERY = (
    f"SELECT {COLUMNS}, checksums.row, checksums.details, checksums.image, checksums.label "
    "FROM scans LEFT JOIN checksums USING (scan_id) ORDER BY scans.scan_id"
)


@dataclass
class Findings:
    """What is wrong with a store.

    Attributes:
        checked: Scans that were looked at.
        without: Those of them that were stored without checksums.
        damaged: What is wrong with each damaged scan.
        files: What is wrong with the table and the description.
        sealed: Whether the last run of the cache came to its end, so that table and description are checked as files.
    """

    checked: int = 0
    without: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    sealed: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not (self.damaged or self.files)


def verify(store: Path, report: Callable[[int], object] = lambda _bytes: None) -> Findings:
    """Compare every byte of a store with its checksums; what is damaged is marked for the next run of the cache.

    Args:
        store: Its folder.
        report: Called with the number of bytes that were compared, after each scan.

    Raises:
        UserError: There is no store.
    """
    if not (store / records.TABLE).exists():
        message = f"{store} is no store (no {records.TABLE}): cache an index first"
        raise UserError(message)
    findings = Findings(sealed=(store / checksums.SEAL).exists())
    findings.files += [f"{name}: its checksum differs" for name in checksums.broken(store)]
    try:
        tier = _tier(store)
    except ValueError as error:
        findings.files.append(f"store.json: {error}")
        tier = "chunked"
    try:
        with closing(_connect(store)) as connection:
            for line in connection.execute("PRAGMA integrity_check(3)"):
                if line[0] != "ok":
                    findings.files.append(f"{records.TABLE}: {line[0]}")
            if _orphans(connection):
                findings.files.append(f"{records.TABLE}: it has checksums of scans that it does not have")
            for row in connection.execute(_query(connection)):
                findings.checked += 1
                findings.without += row[-4] is None
                if problem := _problem(store, tier, row, report):
                    findings.damaged[str(row[0])] = problem
                    checksums.mark(store, str(row[0]))
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        findings.files.append(f"{records.TABLE}: {error}")
    findings.files = list(dict.fromkeys(findings.files))
    return findings


def mend(store: Path) -> tuple[str, ...]:
    """Take what is damaged out of a store, so that it is stored anew: marked scans, rows, the table, the description.

    What was not marked is not read. From here on until ``checksums.seal`` the store counts as being changed.

    Returns:
        What was taken out, one line each.
    """
    table, lines = store / records.TABLE, list[str]()
    if not table.exists():
        return ()
    broken = checksums.broken(store)
    checksums.unseal(store)
    try:
        tier = _tier(store)
    except ValueError:
        broken += ("store.json",)
        tier = "chunked"
    try:
        lines += _mend_rows(store, tier)
        if records.TABLE in broken:
            _rewrite(table)
            lines.append(f"{records.TABLE} was damaged and is written anew")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        for path in (table, store / f"{records.TABLE}-journal"):
            path.unlink(missing_ok=True)
        records.connect(table).close()
        lines.append(f"{records.TABLE} was damaged ({error}): all scans are stored anew")
    if "store.json" in broken:
        (store / "store.json").unlink(missing_ok=True)
        lines.append("store.json was damaged and is written anew")
    for scan_id in checksums.marked(store):
        (store / checksums.MARKS / scan_id).unlink(missing_ok=True)
    return tuple(lines)


def _rewrite(table: Path) -> None:
    """Write the table anew, also the bytes that no row lies in.

    Raises:
        sqlite3.DatabaseError: It is damaged beyond its rows.
    """
    with closing(sqlite3.connect(table, isolation_level=None, timeout=120)) as connection:
        connection.execute("VACUUM")
        state = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(state)


def _orphans(connection: sqlite3.Connection) -> bool:
    """Whether there are checksums of scans that are not there: one of the two names was changed."""
    query = "SELECT 1 FROM checksums WHERE scan_id NOT IN (SELECT scan_id FROM scans) LIMIT 1"
    return checksums.has_table(connection) and connection.execute(query).fetchone() is not None


def _mend_rows(store: Path, tier: str) -> Iterator[str]:
    """Delete the rows that are damaged, and those of marked scans whose bytes are."""
    marked = set(checksums.marked(store))
    with closing(sqlite3.connect(store / records.TABLE, timeout=120)) as connection, connection:
        refuse_programs(connection, records.TABLE)
        bad, renamed = [], _orphans(connection)
        for row in connection.execute(_query(connection)):
            problem = _row_problem(row) or ("its row in the table is damaged" if renamed and row[-4] is None else "")
            if not problem and row[0] in marked:
                problem = _problem(store, tier, row, lambda _: None)
            if problem:
                bad.append((row[0], problem))
        for scan_id, problem in bad:
            for name in ("scans", "checksums"):
                connection.execute(f"DELETE FROM {name} WHERE scan_id IS ?", (scan_id,))
            yield f"scan {scan_id} is stored anew: {problem}"
        if renamed:
            connection.execute("DELETE FROM checksums WHERE scan_id NOT IN (SELECT scan_id FROM scans)")


def _connect(store: Path) -> sqlite3.Connection:
    where = f"{(store / records.TABLE).resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(where, uri=True, timeout=120)
    refuse_programs(connection, records.TABLE)
    return connection


def _query(connection: sqlite3.Connection) -> str:
    if checksums.has_table(connection):
        return QUERY
    return f"SELECT {COLUMNS}, NULL, NULL, NULL, NULL FROM scans ORDER BY scan_id"


def _tier(store: Path) -> str:
    """Tier of a store.

    Raises:
        ValueError: Its description says none.
    """
    try:
        tier = json.loads((store / "store.json").read_bytes())["tier"]
    except (OSError, ValueError, LookupError, TypeError):
        tier = None
    if tier not in get_args(Tier):
        message = "it does not say the tier"
        raise ValueError(message)
    return str(tier)


def _row_problem(row: tuple[Any, ...]) -> str:
    """What is wrong with a row of the table, or nothing."""
    values, known = row[:-4], row[-4:-2]
    if known[0] is None:
        return ""
    whole = known == (checksums.of_row(values[:-1]), checksums.of_row(values[-1:]))
    return "" if whole else "its row in the table is damaged"


def _problem(store: Path, tier: str, row: tuple[Any, ...], report: Callable[[int], object]) -> str:
    """What is wrong with a scan, its row or its bytes, or nothing."""
    if problem := _row_problem(row):
        return problem
    record = dict(zip(records.COLUMNS, row, strict=False))
    known = (row[-2] or b"", row[-1] or b"")
    try:
        for part, entries in zip(("", "label"), known, strict=True):
            if part and not record["label_dtype"]:
                continue
            report(_compare(store, tier, record, part, entries))
    except checksums.DamagedError as error:
        return str(error)
    except FileNotFoundError:
        return "its file is missing"
    except OSError as error:
        return f"its file cannot be read: {error.strerror or error}"
    return ""


def _compare(store: Path, tier: str, record: dict[str, Any], part: str, entries: bytes) -> int:
    """Compare image or label of a scan; without entries only its length. Returns its bytes."""
    if record["pack"]:
        prefix = "label_" if part else ""
        place = (record[f"{prefix}first"], record[f"{prefix}nbytes"])
        data = chunks.packed_bytes(store / "packs" / record["pack"], place)
        if entries:
            checksums.check_packed(data, entries, record["pack"])
        return len(data)
    path = scan_file(store, record["key"], part, "chunked" if tier == "chunked" else "raw")
    if entries:
        pieces = checksums.Pieces(path, entries)
        pieces.check_all()
        return len(pieces.view)
    size, sizes = path.stat().st_size, json.loads(record["details"])["bytes"]
    if sizes and size != sizes[bool(part)]:
        message = f"{path.name} has {size:,} bytes, {sizes[bool(part)]:,} were written"
        raise checksums.DamagedError(message)
    return size
