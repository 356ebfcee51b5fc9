"""The tables of an index file (SQLite) and how a row becomes a Scan.

``files`` and ``parts`` are the only tables that hold paths; ``scans`` holds nothing that names a person.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import Any

from medssl.io.sqlite import refuse_programs
from medssl.types import Digests, Grid, Labels, Part, Scan, Source, Status, Subject, UserError

VERSION = 3

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE datasets (name TEXT PRIMARY KEY, folder TEXT NOT NULL, options TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, dataset TEXT NOT NULL, size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, series TEXT NOT NULL, header TEXT NOT NULL,
    shared INTEGER, walk INTEGER NOT NULL
);
CREATE TABLE shared (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE INDEX files_by_series ON files (series);
CREATE INDEX files_by_walk ON files (dataset, walk);
CREATE INDEX files_unread ON files (path) WHERE state = 'failed' OR reason = 'not an image: no known format';
CREATE TABLE stale (series TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE scans (
    scan_id TEXT PRIMARY KEY, subject_id TEXT, study_id TEXT, subject_known INTEGER, split TEXT, dataset TEXT,
    kind TEXT, modality TEXT, value_domain TEXT, channels INTEGER, size_i INTEGER, size_j INTEGER, size_k INTEGER,
    spacing_i_mm REAL, spacing_j_mm REAL, spacing_k_mm REAL, volume INTEGER, volumes INTEGER, files INTEGER,
    manufacturer TEXT, model TEXT, field_strength_t REAL, slice_thickness_mm REAL, body_part TEXT, sequence TEXT,
    kernel TEXT, echo_time_ms REAL, repetition_time_ms REAL, kvp REAL, sex TEXT, age_band TEXT, mpp_x REAL, mpp_y REAL,
    stain TEXT, scanner TEXT, levels INTEGER, objective REAL,
    has_mask INTEGER NOT NULL DEFAULT 0, labels TEXT NOT NULL DEFAULT '{}', status TEXT NOT NULL, reason TEXT NOT NULL,
    affine TEXT NOT NULL DEFAULT '[]', source_digest TEXT NOT NULL, pixels_digest TEXT NOT NULL DEFAULT '',
    series TEXT NOT NULL, found TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX scans_by_series ON scans (series);
CREATE TABLE parts (
    scan_id TEXT NOT NULL, role TEXT NOT NULL, number INTEGER NOT NULL, file INTEGER NOT NULL, frame INTEGER,
    PRIMARY KEY (scan_id, role, number)
) WITHOUT ROWID;
"""
# ``shared`` holds once what the headers of a series have in common: an index of millions of slices stays small.
# ``found`` is what the files alone say (status, reason, subject, digest), before the rules of a data set are applied.
SCAN_ID = re.compile(r"[0-9a-f]{16}")
_ADDED = {
    "mpp_x": "REAL",
    "mpp_y": "REAL",
    "stain": "TEXT",
    "scanner": "TEXT",
    "levels": "INTEGER",
    "objective": "REAL",
}  # columns of slides, which indexes of earlier versions get at their first update
_INTERNAL = ("labels", "affine", "series", "found", "source_digest", "pixels_digest")


def create(file: Path, root: Path) -> None:
    """Make an empty index, readable by its owner alone, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        connection = sqlite3.connect(beside)
        connection.executescript(_SCHEMA)
        rows = [("version", str(VERSION)), ("root", str(root)), ("walk", "0")]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        connection.commit()
        connection.close()
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def connect(file: Path, *, writable: bool) -> sqlite3.Connection:
    """Open an index.

    Raises:
        UserError: No such file, not an index, or of another version.
    """
    if file.is_dir():
        message = f"{file} is a folder: give the index file itself, such as {file / 'index.sqlite'}"
        raise UserError(message)
    if not file.is_file():
        message = f"no index at {file}: index a folder of scans into {file}"
        raise UserError(message)
    mode = "rw" if writable else "ro"
    try:
        fixed = "" if os.access(file.parent, os.W_OK) else "&immutable=1"  # reading WAL needs a file beside it
        address = f"{file.resolve().as_uri()}?mode={mode}{fixed}"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=60, check_same_thread=False)
        refuse_programs(connection, file.name)
        version = connection.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        message = f"{file} is no index: {error}"
        raise UserError(message) from error
    if version is None or version[0] != str(VERSION):
        message = (
            f"{file} has index version {version and version[0]}, this program reads {VERSION}: index the "
            "folders again into a new file"
        )
        raise UserError(message)
    connection.row_factory = sqlite3.Row
    if writable:
        _add_columns(connection)
    return connection


def _add_columns(connection: sqlite3.Connection) -> None:
    """Adds the columns that an index of an earlier version lacks; they are empty for its scans."""
    present = {row["name"] for row in connection.execute("PRAGMA table_info(scans)")}
    for name, kind in _ADDED.items():
        if name not in present:
            connection.execute(f"ALTER TABLE scans ADD COLUMN {name} {kind}")


def listing(connection: sqlite3.Connection) -> tuple[str, list[str]]:
    """The query behind ``rows`` and ``export``, and its columns: scans without internals, labels as columns.

    A label called "diagnosis" is the column ``label_diagnosis``.
    """
    columns = [row["name"] for row in connection.execute("PRAGMA table_info(scans)") if row["name"] not in _INTERNAL]
    names = "SELECT DISTINCT entry.key FROM scans, json_each(scans.labels) AS entry ORDER BY entry.key"
    labels = [row[0] for row in connection.execute(names)]
    quoted = [f"""json_extract(labels, '$."{_inner(name)}"') AS {_quoted(f"label_{name}")}""" for name in labels]
    query = f"SELECT {', '.join([*columns, *quoted])} FROM scans WHERE status <> 'label'"
    return query, columns + [f"label_{name}" for name in labels]


def _inner(name: str) -> str:
    return name.replace("'", "''")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def scan_of(row: sqlite3.Row, parts: Sequence[sqlite3.Row], options: str) -> Scan:
    """A row of ``scans``, its rows of ``parts`` and of their files, and the options of its data set as a Scan."""
    if not SCAN_ID.fullmatch(str(row["scan_id"])):
        message = f"the index holds a scan called {row['scan_id']!r}: expected 16 hexadecimal digits; make it anew"
        raise UserError(message)
    sizes = tuple(row[name] for name in ("size_i", "size_j", "size_k") if row[name] is not None)
    spacing = tuple(row[f"spacing_{axis}_mm"] for axis in "ijk" if row[f"spacing_{axis}_mm"] is not None)
    values: dict[str, str] = json.loads(row["labels"])
    by_role: dict[str, list[Part]] = {"image": [], "channel": [], "mask": [], "excluded": []}
    for part in parts:
        by_role[part["role"]].append(Part(part["path"], part["frame"], _states(part)))
    masks: dict[str, Any] = json.loads(options)["labels"]
    channels = row["channels"] or 1
    domain: Any = row["value_domain"]
    names = ("red", "green", "blue") if domain == "rgb" and channels == 3 else tuple(str(n) for n in range(channels))
    return Scan(
        scan_id=row["scan_id"],
        subject=Subject(row["subject_id"], row["study_id"], row["split"], bool(row["subject_known"])),
        source=Source(
            dataset=row["dataset"],
            kind=row["kind"],
            modality=row["modality"],
            value_domain=domain,
            parts=(*by_role["image"], *by_role["channel"]),
            channels=names if channels > 1 else ("",),
            reading=json.loads(row["found"]).get("reading", ""),
        ),
        grid=Grid(sizes, spacing, tuple(tuple(line) for line in json.loads(row["affine"]))),
        digests=Digests(row["source_digest"], row["pixels_digest"]),
        labels=Labels(
            tuple(by_role["mask"]),
            tuple(sorted(values.items())),
            tuple(by_role["excluded"]),
            masks.get("threshold"),
            masks.get("grid") == "trust",
            tuple(json.loads(row["found"]).get("classes", ())),
        ),
        status=Status(row["status"], row["reason"]),
    )


def _states(part: sqlite3.Row) -> tuple[tuple[str, int, int], ...]:
    """What a part's file and its companions were when they were indexed."""
    states = [(str(part["path"]), int(part["size"]), int(part["modified_ns"]))]
    if part["header"]:
        folder = PurePosixPath(part["path"]).parent
        for name, size, modified_ns in json.loads(part["header"])["details"]["companions"]:
            states.append((normpath(folder / name), size, modified_ns))
    return tuple(states)
