"""What the store knows of each scan: rows in SQLite while caching, plain arrays while training."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.masks import value_counts
from medssl.data.store import checksums
from medssl.data.store.disk import DiskFull
from medssl.io.sqlite import refuse_programs
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from medssl.data.store.preprocess import Prepared
    from medssl.types import Scan

DESCRIBED = ("scan_id", "key", "subject_id", "study_id", "dataset", "modality", "domain", "split", "scores")
COLUMNS = (
    *DESCRIBED, "shape", "affine", "dtype", "label_dtype", "intensity", "fill", "cells", "pack", "first", "nbytes",
    "label_first", "label_nbytes", "pixels", "details",
)  # fmt: skip
TABLE = "records.sqlite"
TABLES = f"""
CREATE TABLE IF NOT EXISTS scans ({", ".join(COLUMNS)}, PRIMARY KEY (scan_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (scan_id PRIMARY KEY, key) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (scan_id PRIMARY KEY, key, reason, kind, value) WITHOUT ROWID;
{checksums.TABLE}
"""
STRANGE = re.compile(r"(^|\0)\.|[^\w.+\-\0]")  # in a name that is one of a file, several with zeros between them
MARKED = "int16 excluded"  # dtype of a scan in which one code marks voxels that no loss looks at
LABELS = {"": 0, "uint8": 1, "int8": 2, "uint16": 3, "int16": 4, "int32": 5, "uint32": 6, "int64": 7}


@dataclass(frozen=True)
class Place:
    """Where the bytes of a scan lie: a pack with offsets, or files of its own (``pack`` empty) of ``sizes`` bytes."""

    pack: str = ""
    first: int = 0
    nbytes: int = 0
    label_first: int = 0
    label_nbytes: int = 0
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Records:
    """The scans of a store in the order of their identifiers, as arrays (N scans; about 250 bytes each).

    ``facts`` has one fixed row a scan (``FACTS``): ``wide`` says that it is stored as int16, ``excluded`` that
    ``coding.EXCLUDED`` marks voxels of it that no loss looks at; its codes point into ``tables``, its positions into
    ``numbers`` and ``blobs``, which hold one scan after the other what differs in length.
    """

    scan_id: NDArray[np.bytes_]
    key: NDArray[np.bytes_]
    subject: NDArray[np.int32]
    facts: NDArray[np.void]
    affine: NDArray[np.float64]
    tables: dict[str, tuple[str, ...]]
    numbers: NDArray[np.float32]
    blobs: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.scan_id)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for f in fields(self) if isinstance(x := getattr(self, f.name), np.ndarray))

    def shape(self, number: int) -> tuple[int, ...]:
        """Spatial shape of a stored scan, 2 or 3 axes."""
        fact = self.facts[number]
        return tuple(int(n) for n in fact["shape"][: fact["ndim"]])

    def world(self, number: int) -> NDArray[np.float64]:
        """Stored voxel -> world mm, (n+1, n+1)."""
        n = int(self.facts[number]["ndim"])
        out = np.eye(n + 1)
        out[:n] = self.affine[number, : n * (n + 1)].reshape(n, n + 1)
        return out

    def intensity(self, number: int) -> NDArray[np.float32]:
        """[C, 6] numbers that decode a scan, as in ``Crops``."""
        fact = self.facts[number]
        channels, first = int(fact["channels"]), int(fact["numbers"])
        return self.numbers[first : first + 7 * channels].reshape(channels, 7)[:, :6]

    def fill(self, number: int) -> NDArray[np.float32]:
        """[C] code of the lowest value."""
        fact = self.facts[number]
        channels, first = int(fact["channels"]), int(fact["numbers"])
        return self.numbers[first : first + 7 * channels].reshape(channels, 7)[:, 6]

    def cells(self, number: int) -> NDArray[np.bool_]:
        """Foreground map of a scan, one bool per cell in C order (padded to full bytes)."""
        fact = self.facts[number]
        first = int(fact["blobs"])
        return np.unpackbits(self.blobs[first : first + int(fact["cells"])]).view(np.bool_)

    def values(self, number: int) -> dict[str, str]:
        """Scan-level labels by name."""
        fact = self.facts[number]
        first = int(fact["blobs"]) + int(fact["cells"])
        values: dict[str, str] = json.loads(self.blobs[first : first + int(fact["text"])].tobytes() or b"{}")
        return values


FACTS = np.dtype(
    [
        ("shape", "<i4", 3), ("ndim", "u1"), ("channels", "u1"), ("wide", "?"), ("excluded", "?"), ("label", "u1"),
        ("split", "u1"), ("domain", "u1"), ("cells", "<u2"), ("text", "<u4"), ("pack", "<i4"), ("first", "<i8"),
        ("nbytes", "<i8"), ("label_first", "<i8"), ("label_nbytes", "<i8"), ("numbers", "<i8"), ("blobs", "<i8"),
        ("content", "<u8"),
    ]
)  # fmt: skip


@contextmanager
def room() -> Iterator[None]:
    """Turns SQLite's word for a full disk into the one that the store's files have.

    Raises:
        DiskFull: No room for the table.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFull from error
        raise


@room()
def connect(path: Path) -> sqlite3.Connection:
    """Opens the table of records, made if it is not there; several processes may write (each waits its turn)."""
    connection = sqlite3.connect(path, timeout=120)
    refuse_programs(connection, path.name)
    connection.execute("PRAGMA synchronous=FULL")
    connection.executescript(TABLES)
    path.chmod(0o600)
    return connection


def row(scan: Scan, key: str, prepared: Prepared, place: Place, content: str) -> tuple[Any, ...]:
    """Returns one row of the table, in the order of ``COLUMNS``."""
    numbers = prepared.coding
    undo = prepared.undo
    details: dict[str, Any] = {
        "error": numbers.error,
        "clipped": numbers.clipped,
        "bytes": list(place.sizes),
        "source": {"shape": undo.shape, "affine": undo.affine, "crop": [undo.crop_start, undo.crop_size]},
    }
    if prepared.label is not None:
        details["classes"] = {str(value): count for value, count in value_counts(prepared.label).items()}
    if prepared.stain is not None:
        details["stain"] = {"method": prepared.stain.method, "numbers": prepared.stain.numbers}
    label = "" if prepared.label is None else prepared.label.dtype.name
    kind = MARKED if numbers.excluded else prepared.image.dtype.name
    return (
        *described(scan, key),
        np.asarray(prepared.image.shape, "<i4").tobytes(), prepared.affine.astype("<f8").tobytes(),
        kind, label, numbers.intensity.astype("<f4").tobytes(),
        numbers.fill.astype("<i4").tobytes(), np.packbits(prepared.cells).tobytes(),
        place.pack, place.first, place.nbytes, place.label_first, place.label_nbytes, content, json.dumps(details),
    )  # fmt: skip


def described(scan: Scan, key: str) -> tuple[str, ...]:
    """Returns what the index says of a scan: the first columns, which change without new voxels."""
    who = scan.subject
    scores = json.dumps(dict(scan.labels.values), sort_keys=True) if scan.labels.values else ""
    source = scan.source
    return (
        scan.scan_id, key, who.subject_id, who.study_id, source.dataset, source.modality, source.value_domain,
        who.split, scores,
    )  # fmt: skip


def insert(
    connection: sqlite3.Connection,
    rows: Iterable[tuple[Any, ...]],
    checks: Mapping[str, tuple[bytes, bytes]] | None = None,
) -> None:
    """Writes rows in one transaction; a scan that was stored before is replaced, its failure forgotten.

    ``checks`` has the checksums of the bytes of image and label of each scan (``checksums``).
    """
    rows = list(rows)
    with connection:
        connection.executemany(f"INSERT OR REPLACE INTO scans VALUES ({', '.join('?' * len(COLUMNS))})", rows)
        for row in rows:
            connection.execute("DELETE FROM failures WHERE scan_id = ?", row[:1])
            connection.execute("DELETE FROM lost WHERE scan_id = ?", row[:1])
            connection.execute("DELETE FROM checksums WHERE scan_id = ?", row[:1])
            if piece_sums := (checks or {}).get(row[0]):
                sums = checksums.of_row(row[:-1]), checksums.of_row(row[-1:])
                connection.execute("INSERT INTO checksums VALUES (?, ?, ?, ?, ?)", (row[0], *sums, *piece_sums))


def seal_row(connection: sqlite3.Connection, scan_id: str) -> None:
    """Brings the checksum of a row up to what was written to it."""
    names = ", ".join(COLUMNS[:-1])
    row = connection.execute(f"SELECT {names} FROM scans WHERE scan_id = ?", (scan_id,)).fetchone()
    connection.execute("UPDATE checksums SET row = ? WHERE scan_id = ?", (checksums.of_row(row), scan_id))


def load(path: Path) -> Records:
    """Reads every row into arrays.

    Raises:
        UserError: The table cannot be read, or is not what the cache wrote.
    """
    names = ", ".join(f"scans.{name}" for name in COLUMNS[:-1])
    again = "cache the index again with the same index and store, which repairs it"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=120)) as connection:
            connection.execute("BEGIN")  # nobody writes until this ends
            refuse_programs(connection, path.name)
            checksums.refuse_broken(path.parent, path.name)
            summed = checksums.has_table(connection)
            joined = "scans LEFT JOIN checksums USING (scan_id)" if summed else "scans"
            query = f"SELECT {names}, {'checksums.row' if summed else 'NULL'} FROM {joined} ORDER BY scans.scan_id"
            rows = connection.execute(query).fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        message = f"the store's table {path.name} cannot be read ({error}): {again}"
        raise UserError(message) from error
    columns = list(zip(*rows, strict=True))[:-1]
    table = dict(zip(COLUMNS, columns or [()] * len(COLUMNS), strict=False))
    for column in ("scan_id", "key", "pack"):  # files are called after them
        if STRANGE.search("\0".join(map(str, table[column]))):
            message = f"the store's table {path.name} holds a {column} that medssl does not write: cache the scans anew"
            raise UserError(message)
    for row in rows:
        if row[-1] is not None and row[-1] != checksums.of_row(row[:-1]):
            message = f"scan {row[0]}: its row in the store's table {path.name} is damaged: {again}"
            raise UserError(message)
    return _arrays(table)


def _arrays(table: dict[str, tuple[Any, ...]]) -> Records:
    count = len(table["scan_id"])
    facts = np.zeros(count, FACTS)
    sizes = np.array([len(x) // 4 for x in table["shape"]], np.int64)
    shapes = np.ones((count, 4), np.int32)
    for width in (3, 4):
        chosen = np.flatnonzero(sizes == width)
        joined = b"".join(table["shape"][i] for i in chosen)
        shapes[chosen, :width] = np.frombuffer(joined, "<i4").reshape(-1, width)
    facts["channels"], facts["shape"], facts["ndim"] = shapes[:, 0], shapes[:, 1:], sizes - 1
    facts["wide"] = [x in ("int16", MARKED) for x in table["dtype"]]
    facts["excluded"] = [x == MARKED for x in table["dtype"]]
    facts["label"] = [LABELS[x] for x in table["label_dtype"]]
    for name in ("first", "nbytes", "label_first", "label_nbytes"):
        facts[name] = table[name]
    facts["content"] = [int(x[:16], 16) for x in table["pixels"]]
    tables = {name: tuple(sorted(set(table[name]))) for name in ("split", "domain", "pack")}
    for name, known in tables.items():
        codes = {text: code for code, text in enumerate(known)}
        facts[name] = [codes[text] for text in table[name]]
    texts = [x.encode() for x in table["scores"]]
    facts["cells"], facts["text"] = [len(x) for x in table["cells"]], [len(x) for x in texts]
    facts["numbers"] = _starts(7 * facts["channels"].astype(np.int64))
    facts["blobs"] = _starts(facts["cells"].astype(np.int64) + facts["text"])
    subjects = {text: code for code, text in enumerate(sorted(set(table["subject_id"])))}
    return Records(
        scan_id=np.array([x.encode() for x in table["scan_id"]], np.bytes_),
        key=np.array([x.encode() for x in table["key"]], np.bytes_),
        subject=np.array([subjects[x] for x in table["subject_id"]], np.int32),
        facts=facts,
        affine=_affines(table["affine"], sizes - 1),
        tables={**tables, "subject": tuple(subjects)},
        numbers=_numbers(table["intensity"], table["fill"]),
        blobs=np.frombuffer(b"".join(x for pair in zip(table["cells"], texts, strict=True) for x in pair), np.uint8),
    )


def _affines(blobs: tuple[bytes, ...], axes: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, 12]: the upper rows of every affine, a 2D one in the first six places."""
    out = np.zeros((len(blobs), 12))
    for n in (2, 3):
        chosen = np.flatnonzero(axes == n)
        square = np.frombuffer(b"".join(blobs[i] for i in chosen), "<f8").reshape(-1, n + 1, n + 1)
        out[chosen, : n * (n + 1)] = square[:, :n].reshape(len(chosen), n * (n + 1))
    return out


def _numbers(intensity: tuple[bytes, ...], fill: tuple[bytes, ...]) -> NDArray[np.float32]:
    """Seven numbers a channel, one scan after the other: the six of the intensity, then the fill."""
    six = np.frombuffer(b"".join(intensity), "<f4").reshape(-1, 6)
    one = np.frombuffer(b"".join(fill), "<i4").astype(np.float32)
    return np.ascontiguousarray(np.concatenate([six, one[:, None]], axis=1)).ravel()


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths
