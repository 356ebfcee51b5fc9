"""Bring an index up to date with the directories: read what is new or changed, forget what is gone, group, apply rules.

Every step ends in a commit that leaves the tables true and says in them what is still to do: an update can be killed at
any moment, and the next one goes on from there.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Self

from medssl.data import rules
from medssl.data.formats.base import FormatError
from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.header import read_slices, to_json
from medssl.data.formats.recognition import read_header, recognize
from medssl.data.identity import fingerprint, keyed_digest
from medssl.data.index import Index, IndexOptions
from medssl.data.neighbors import mark_beside_unread
from medssl.data.processes import follow_parent
from medssl.data.scans import regroup
from medssl.data.walk import Found, walk
from medssl.types import UserError

_FILES_AT_ONCE = 256
_SERIES_AT_ONCE = 64

Progress = Callable[[str, int], None]  # what is being done, and how many more files or series of it are done


@dataclass
class Update:
    """What an update did, in files."""

    read: int = 0
    unchanged: int = 0
    gone: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What one file is: ``state`` is slice, scan, ignored, rejected or failed; ``series`` is empty where ignored."""

    path: str
    state: str
    reason: str = ""
    series: str = ""
    header: str = ""
    shared: str = ""


def update(
    index: Index, directories: Sequence[Path], options: IndexOptions, *, key: bytes, progress: Progress | None = None
) -> Update:
    """Read ``directories`` (none: all that the index knows, by their own rules) into ``index``.

    Args:
        index: Opened with ``create=True``.
        directories: Each becomes a data set of its own; one already known gets the new rules.
        options: Rules of these directories.
        key: The institution's key.
        progress: Told about every batch.

    Raises:
        UserError: A directory is missing, lies inside another data set, the index was made with another key, or a
            worker process was killed.
    """
    tell = progress or (lambda _what, _count: None)
    with _alone(index):
        _check_key(index, key)
        datasets = _register(index, directories, options)
        done = Update()
        with _Processes(options.files.workers) as processes:
            try:
                for dataset in datasets:
                    _read_dataset(index, dataset, key, processes, done, tell)
            except BrokenProcessPool as error:
                message = (
                    "a process that read headers was killed, most likely for want of memory: run the same command "
                    "again with fewer --files.workers; what was read is kept"
                )
                raise UserError(message) from error
        _group(index, key, tell)
        done.notes = rules.apply(index, key)
    return done


@contextmanager
def _alone(index: Index) -> Iterator[None]:
    """One update at a time; the lock goes with the process, however it ends."""
    import fcntl

    lock = index.file.with_name(f".{index.file.name}.lock")
    with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{index.file} is being updated by another process: wait until it is done"
            raise UserError(message) from error
        yield


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _check_key(index: Index, key: bytes) -> None:
    known = index.meta("key")
    if known and known != fingerprint(key):
        message = f"{index.file} was made with another key: give that one with --files.key, or make a new index"
        raise UserError(message)
    index.connection.execute("INSERT OR REPLACE INTO meta VALUES ('key', ?)", (fingerprint(key),))


# --- data sets


@dataclass(frozen=True)
class _Dataset:
    name: str
    folder: Path
    below: bool


def _register(index: Index, directories: Sequence[Path], options: IndexOptions) -> list[_Dataset]:
    """Note the rules of each directory; new rules make all its scans due for grouping."""
    known = {}
    for row in index.connection.execute("SELECT name, folder, options FROM datasets ORDER BY name"):
        below = bool(json.loads(row["options"])["files"].get("below", True))  # an older index does not say
        known[str(row["name"])] = _Dataset(row["name"], Path(row["folder"]), below)
    if not directories:
        return list(known.values())
    if options.files.dataset and len(directories) > 1:
        message = f"--files.dataset {options.files.dataset} names one directory, got {len(directories)}"
        raise UserError(message)
    text = json.dumps(_saved(options), sort_keys=True)
    wanted = []
    for directory in directories:
        folder = directory.expanduser().resolve()
        if not folder.is_dir():
            message = f"no such directory: {directory}"
            raise UserError(message)
        dataset = _Dataset(options.files.dataset or folder.name, folder, options.files.below)
        _check_apart(dataset, known)
        known[dataset.name] = dataset
        wanted.append(dataset)
        with transaction(index.connection):
            old = index.connection.execute("SELECT options FROM datasets WHERE name = ?", (dataset.name,)).fetchone()
            row = (dataset.name, str(folder), text)
            index.connection.execute("INSERT OR REPLACE INTO datasets VALUES (?, ?, ?)", row)
            if old is not None and old[0] != text:
                due = "INSERT OR IGNORE INTO stale SELECT DISTINCT series FROM files WHERE dataset = ? AND series <> ''"
                index.connection.execute(due, (dataset.name,))
    return wanted


def _saved(options: IndexOptions) -> dict[str, object]:
    """The rules that decide about scans, without what only steers one run."""
    saved = asdict(options)
    for name in ("workers", "key", "dataset"):
        del saved["files"][name]
    return saved


def _check_apart(dataset: _Dataset, known: dict[str, _Dataset]) -> None:
    """Names are unique, and no file belongs to two data sets."""
    for other in known.values():
        if other.name == dataset.name and other.folder != dataset.folder:
            message = f"data set {dataset.name} is already {other.folder}: name this one with --files.dataset"
            raise UserError(message)
        inside = dataset.folder.is_relative_to(other.folder) and other.below
        nested = inside or (other.folder.is_relative_to(dataset.folder) and dataset.below)
        if other.folder != dataset.folder and nested:
            message = f"{dataset.folder} and {other.folder} (data set {other.name}) lie inside each other: index one"
            raise UserError(message)
        if other.folder == dataset.folder and other.name != dataset.name:
            message = f"{dataset.folder} is already data set {other.name}: leave --files.dataset out"
            raise UserError(message)


# --- files


def _read_dataset(
    index: Index, dataset: _Dataset, key: bytes, processes: _Processes, done: Update, tell: Progress
) -> None:
    """Walk a directory, read what is new or changed, forget what is gone."""
    number = int(index.meta("walk")) + 1
    index.connection.execute("UPDATE meta SET value = ? WHERE name = 'walk'", (str(number),))
    root = index.root
    hidden: list[str] = []
    read = partial(read_files, root=root, dataset=dataset.name, key=key)
    changed = _changed(index, dataset, number, done, hidden, tell)
    for found, entries in processes.map(read, changed):
        with transaction(index.connection):
            for one, entry in zip(found, entries, strict=True):
                _store(index.connection, dataset.name, number, one, entry)
        done.read += len(entries)
        tell("reading headers", len(entries))
    with transaction(index.connection):
        for folder in hidden:  # what cannot be looked into is unknown, not gone
            beginning = f"{os.path.relpath(folder, root)}/"
            index.connection.execute(
                "UPDATE files SET walk = ? WHERE dataset = ? AND substr(path, 1, ?) = ?",
                (number, dataset.name, len(beginning), beginning),
            )
        gone = "FROM files WHERE dataset = ? AND walk < ?"
        index.connection.execute(
            f"INSERT OR IGNORE INTO stale SELECT DISTINCT series {gone} AND series <> ''", (dataset.name, number)
        )
        done.gone += index.connection.execute(f"DELETE {gone}", (dataset.name, number)).rowcount


def _changed(
    index: Index, dataset: _Dataset, number: int, done: Update, hidden: list[str], tell: Progress
) -> Iterator[list[Found]]:
    """Batches of files that are new or differ in size or time from what is known; the others are marked as seen."""
    pending: list[Found] = []
    file = str(index.file.resolve())  # the index may lie among the scans, with its journal beside it
    own = {file, f"{file}-wal", f"{file}-shm", f"{file}-journal"}
    found = (one for one in walk(dataset.folder, below=dataset.below) if one.path not in own)
    while batch := list(islice(found, _FILES_AT_ONCE)):
        hidden.extend(one.path for one in batch if one.folder)
        paths = [_relative(one, index.root) for one in batch]
        query = f"SELECT path, size, modified_ns FROM files WHERE path IN ({','.join('?' * len(paths))})"
        known = {row[0]: (row[1], row[2]) for row in index.connection.execute(query, paths)}
        same = [path for one, path in zip(batch, paths, strict=True) if known.get(path) == (one.size, one.modified_ns)]
        with transaction(index.connection):
            index.connection.executemany("UPDATE files SET walk = ? WHERE path = ?", [(number, path) for path in same])
        done.unchanged += len(same)
        if same:
            tell("unchanged files", len(same))
        seen = set(same)
        pending += [one for one, path in zip(batch, paths, strict=True) if path not in seen]
        while len(pending) >= _FILES_AT_ONCE:
            yield pending[:_FILES_AT_ONCE]
            del pending[:_FILES_AT_ONCE]
    if pending:
        yield pending


def _relative(one: Found, root: Path) -> str:
    return os.path.relpath(one.path, root) + ("/" if one.folder else "")


class _Processes:
    """Processes that read headers: started when there is more than one batch to read, then kept until the end."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(
        self, read: Callable[[Sequence[Found]], list[Entry]], batches: Iterator[list[Found]]
    ) -> Iterator[tuple[list[Found], list[Entry]]]:
        """Each batch with what ``read`` makes of it, in order, with few batches under way."""
        first = list(islice(batches, 2))
        if self.workers < 1 or (len(first) < 2 and self.pool is None):
            for batch in chain(first, batches):
                yield batch, read(batch)
            return
        self.pool = self.pool or ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=follow_parent
        )
        under_way: deque[tuple[list[Found], Future[list[Entry]]]] = deque()
        for batch in chain(first, batches):
            under_way.append((batch, self.pool.submit(read, batch)))
            if len(under_way) > 2 * self.workers:
                done, future = under_way.popleft()
                yield done, future.result()
        while under_way:
            done, future = under_way.popleft()
            yield done, future.result()


def _store(connection: sqlite3.Connection, dataset: str, number: int, one: Found, entry: Entry) -> None:
    """Write what one file is; its old and its new series are due for grouping."""
    old = connection.execute("SELECT series FROM files WHERE path = ?", (entry.path,)).fetchone()
    due = {entry.series, old[0] if old else ""} - {""}
    connection.executemany("INSERT OR IGNORE INTO stale VALUES (?)", [(series,) for series in due])
    shared = None
    if entry.shared:
        connection.execute("INSERT OR IGNORE INTO shared (text) VALUES (?)", (entry.shared,))
        shared = connection.execute("SELECT id FROM shared WHERE text = ?", (entry.shared,)).fetchone()[0]
    unread = entry.state == "failed" and entry.reason.startswith("cannot be opened")  # is tried again next time
    connection.execute(
        """
        INSERT INTO files (path, dataset, size, modified_ns, state, reason, series, header, shared, walk)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET
        dataset = excluded.dataset, size = excluded.size, modified_ns = excluded.modified_ns, state = excluded.state,
        reason = excluded.reason, series = excluded.series, header = excluded.header, shared = excluded.shared,
        walk = excluded.walk
        """,
        (
            entry.path, dataset, one.size, -1 if unread or one.problem else one.modified_ns, entry.state, entry.reason,
            entry.series, entry.header, shared, number,
        ),
    )  # fmt: skip


def read_files(batch: Sequence[Found], *, root: Path, dataset: str, key: bytes) -> list[Entry]:
    """Say of each file what it is: the part of the work that runs in other processes."""
    digest = partial(keyed_digest, key)
    return [_entry(one, root, partial(digest, "file", dataset), digest, dataset) for one in batch]


def _entry(one: Found, root: Path, of_path: Callable[..., str], digest: Callable[..., str], dataset: str) -> Entry:
    path = _relative(one, root)
    file = Path(one.path)
    if one.problem:
        return Entry(path, "ignored" if "met before" in one.problem else "failed", one.problem, of_path(path))
    try:
        kind = recognize(file)
        if kind.state:
            return Entry(path, kind.state, kind.reason, "" if kind.state == "ignored" else of_path(path))
        if kind.form == "dicom":
            series, slices = read_slices(file, path, digest)
            return Entry(path, "slice", kind.note, digest("dicom", dataset, series), *to_json(slices))
        header = read_header(file, kind.form)
        notes = "; ".join(filter(None, (kind.note, *header.notes)))
        return Entry(path, "scan", notes, of_path(path), json.dumps(asdict(header), separators=(",", ":")))
    except DicomError as error:
        series = digest("dicom", dataset, error.series) if error.series else of_path(path)
        own, about = to_json(error.slices) if error.slices else ("", "")
        return Entry(path, "rejected" if error.rejected else "failed", str(error), series, own, about)
    except FormatError as error:
        return Entry(path, "failed", str(error), of_path(path))
    except OSError as error:
        return Entry(path, "failed", f"cannot be opened: {error.strerror}", of_path(path))


# --- scans


def _group(index: Index, key: bytes, tell: Progress) -> None:
    """Make the scans of every series that changed."""
    with transaction(index.connection):
        mark_beside_unread(index.connection)
    while True:
        query = "SELECT series FROM stale ORDER BY series LIMIT ?"
        due = [str(row[0]) for row in index.connection.execute(query, (_SERIES_AT_ONCE,))]
        if not due:
            return
        with transaction(index.connection):
            for series in due:
                regroup(index, series, key)
            index.connection.executemany("DELETE FROM stale WHERE series = ?", [(series,) for series in due])
            index.connection.execute("DELETE FROM meta WHERE name = 'ruled'")
        tell("grouping series", len(due))
