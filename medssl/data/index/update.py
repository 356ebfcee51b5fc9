"""Bring an index up to date with the directories: read new and changed files, remove missing ones, group, apply rules.

Every step ends in a commit that leaves the tables valid and lists in them what remains to do: an update can be killed
at any moment, and the next one continues from there.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from medssl.data.index import companions, modality_notes, rules
from medssl.data.index.datasets import Dataset, register
from medssl.data.index.entries import Entry, lost_entry, read_files, relative
from medssl.data.index.grouping import regroup
from medssl.data.index.neighbors import mark_beside_unread
from medssl.data.index.pseudonyms import fingerprint
from medssl.data.index.scan_index import Index, IndexOptions
from medssl.data.index.walk import FileState, walk
from medssl.io.limits import Limits
from medssl.io.locks import open_lock, try_lock
from medssl.io.processes import Lost, Pool, forking, one_thread
from medssl.io.sqlite import transaction
from medssl.types import UserError

_FILES_AT_ONCE = 256
_SERIES_AT_ONCE = 64

Progress = Callable[[str, int, int], None]  # what is being done, how many more files or series of it, of how many bytes


@dataclass
class Update:
    """What an update did, in files."""

    read: int = 0
    unchanged: int = 0
    gone: int = 0
    notes: tuple[str, ...] = ()


def update(
    index: Index, directories: Sequence[Path], options: IndexOptions, *, key: bytes, progress: Progress | None = None
) -> Update:
    """Read ``directories`` (none: all that the index knows, by their own rules) into ``index``.

    Args:
        index: Opened with ``create=True``.
        directories: Each folder becomes a data set of its own, files of one folder one together; one already known
            gets the new rules.
        options: Rules of these directories.
        key: The institution's key.
        progress: Called after every batch.

    Raises:
        UserError: A file or folder is missing, lies inside another data set, or the index was made with another key.
    """
    report = progress or (lambda _what, _count, _size: None)
    with _alone(index):
        _check_key(index, key)
        datasets = register(index, directories, options)
        counts = Update()
        limits = Limits(options.files.seconds, options.files.memory_gb)
        with Pool[FileState](options.files.workers, limits, context=forking(), setup=one_thread) as pool:
            for dataset in datasets:
                _read_dataset(index, dataset, key, pool, counts, report)
        _group(index, key, report)
        counts.notes = (*rules.apply(index, key), *_notes_on_values(index))
    return counts


@contextmanager
def _alone(index: Index) -> Iterator[None]:
    """One update at a time; the lock goes with the process, however it ends."""
    lock = index.file.with_name(f".{index.file.name}.lock")
    with open_lock(lock) as stream:
        if not try_lock(stream):
            message = f"{index.file} is being updated by another process: wait until it is done"
            raise UserError(message)
        yield


def _check_key(index: Index, key: bytes) -> None:
    known = index.meta("key")
    if known and known != fingerprint(key):
        message = f"{index.file} was made with another key"
        raise UserError(message, key="files.key", hint="Give the file of that key, or make a new index")
    index.connection.execute("INSERT OR REPLACE INTO meta VALUES ('key', ?)", (fingerprint(key),))


# --- files


def _read_dataset(
    index: Index, dataset: Dataset, key: bytes, pool: Pool[FileState], counts: Update, report: Progress
) -> None:
    """Walk a directory, read what is new or changed, forget what is gone."""
    number = int(index.meta("walk")) + 1
    index.connection.execute("UPDATE meta SET value = ? WHERE name = 'walk'", (str(number),))
    hidden: list[str] = []
    read = partial(_read, index, dataset, key, pool)
    for files, entries in read(_changed(index, dataset, number, counts, hidden, report, pool.limits)):
        _store_all(index, dataset.name, number, files, entries)
        counts.read += len(entries)
        report("reading headers", len(entries), sum(one.size for one in files))
    _forget(index, dataset, number, hidden, counts)
    again = companions.outdated(index, dataset.name)
    for files, entries in read(again[start : start + _FILES_AT_ONCE] for start in range(0, len(again), _FILES_AT_ONCE)):
        _store_all(index, dataset.name, number, files, entries)
    counts.read += len(again)
    counts.unchanged -= len(again)
    companions.claim(index, dataset.name)


def _read(
    index: Index, dataset: Dataset, key: bytes, pool: Pool[FileState], batches: Iterator[list[FileState]]
) -> Iterator[tuple[list[FileState], list[Entry]]]:
    """Files with what they are; one that no process could read is a row, too."""
    task = partial(read_files, root=index.root, dataset=dataset.name, key=key)
    for files, entries in pool.map(task, batches):
        if isinstance(entries, Lost):
            yield files, [lost_entry(files[0], entries.reason, root=index.root, dataset=dataset.name, key=key)]
        else:
            yield files, entries


def _forget(index: Index, dataset: Dataset, number: int, hidden: Sequence[str], counts: Update) -> None:
    """Forget the files that this walk did not meet."""
    with transaction(index.connection):
        for folder in hidden:  # what cannot be looked into is unknown, not gone
            beginning = f"{os.path.relpath(folder, index.root)}/"
            index.connection.execute(
                "UPDATE files SET walk = ? WHERE dataset = ? AND substr(path, 1, ?) = ?",
                (number, dataset.name, len(beginning), beginning),
            )
        gone = "FROM files WHERE dataset = ? AND walk < ?"
        index.connection.execute(
            f"INSERT OR IGNORE INTO stale SELECT DISTINCT series {gone} AND series <> ''", (dataset.name, number)
        )
        counts.gone += index.connection.execute(f"DELETE {gone}", (dataset.name, number)).rowcount


def _changed(
    index: Index, dataset: Dataset, number: int, counts: Update, hidden: list[str], report: Progress, limits: Limits
) -> Iterator[list[FileState]]:
    """Batches of files that are new or differ in size or time from what is known; the others are marked as seen.

    A file that met a time or memory limit is read again where the limit is wider now.
    """
    pending: list[FileState] = []
    file = str(index.file.resolve())  # the index may lie among the scans, with its journal beside it
    index_files = {file, f"{file}-wal", f"{file}-shm", f"{file}-journal"}
    files = (
        one for one in walk(dataset.folder, below=dataset.below, names=dataset.names) if one.path not in index_files
    )
    while batch := list(islice(files, _FILES_AT_ONCE)):
        hidden.extend(one.path for one in batch if one.folder)
        paths = [relative(one, index.root) for one in batch]
        query = f"SELECT path, size, modified_ns, reason FROM files WHERE path IN ({','.join('?' * len(paths))})"
        rows = index.connection.execute(query, paths)
        known = {row[0]: (row[1], row[2]) for row in rows if not limits.wider_than(row[3])}
        same = [path for one, path in zip(batch, paths, strict=True) if known.get(path) == (one.size, one.modified_ns)]
        with transaction(index.connection):
            index.connection.executemany("UPDATE files SET walk = ? WHERE path = ?", [(number, path) for path in same])
        counts.unchanged += len(same)
        if same:
            report("unchanged files", len(same), 0)
        seen = set(same)
        pending += [one for one, path in zip(batch, paths, strict=True) if path not in seen]
        while len(pending) >= _FILES_AT_ONCE:
            yield pending[:_FILES_AT_ONCE]
            del pending[:_FILES_AT_ONCE]
    if pending:
        yield pending


def _store_all(index: Index, dataset: str, number: int, files: Sequence[FileState], entries: Sequence[Entry]) -> None:
    with transaction(index.connection):
        for one, entry in zip(files, entries, strict=True):
            _store(index.connection, dataset, number, one, entry)


def _store(connection: sqlite3.Connection, dataset: str, number: int, one: FileState, entry: Entry) -> None:
    """Write what one file is; its old and its new series are due for grouping."""
    old = connection.execute("SELECT series FROM files WHERE path = ?", (entry.path,)).fetchone()
    due = {entry.series, old[0] if old else ""} - {""}
    connection.executemany("INSERT OR IGNORE INTO stale VALUES (?)", [(series,) for series in due])
    shared = None
    if entry.shared:
        connection.execute("INSERT OR IGNORE INTO shared (text) VALUES (?)", (entry.shared,))
        shared = connection.execute("SELECT id FROM shared WHERE text = ?", (entry.shared,)).fetchone()[0]
    again = entry.reason.startswith("cannot be opened") or entry.path.lower().endswith(companions.DETACHED)
    unread = entry.state == "failed" and again  # is tried again next time
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


def _notes_on_values(index: Index) -> list[str]:
    """What values and modalities say; a few files are read where anything changed since they were last."""
    options = [list(row) for row in index.connection.execute("SELECT name, options FROM datasets ORDER BY name")]
    state = json.dumps([options, index.digest()])
    known = json.loads(index.meta("values", "{}"))
    if known.get("state") != state:
        known = {"state": state, "notes": modality_notes.value_notes(index)}
        index.connection.execute("INSERT OR REPLACE INTO meta VALUES ('values', ?)", (json.dumps(known),))
    return [*known["notes"], *modality_notes.unknown_notes(index)]


# --- scans


def _group(index: Index, key: bytes, report: Progress) -> None:
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
        report("grouping series", len(due), 0)
