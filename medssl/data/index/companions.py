"""Files that hold a part of another file's scan, such as the ``.raw`` of an ``.mhd``: what they were when it was read.

A header file and its companions are one scan: where a companion comes, changes or goes, the header file is read
again, and the scan's digest changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medssl.data.index.scan_index import Index
from medssl.data.index.walk import FileState
from medssl.io.sqlite import transaction

_MISSING = (-1, 0)
_CLAIMED = "pixels of "
DETACHED = (".hdr", ".nhdr", ".mhd")  # headers whose pixels may lie beside them: read again until these exist


def states_of(folder: Path, names: Sequence[str]) -> list[list[Any]]:
    """Each companion of a file in ``folder``: relative path, size, modification time (-1 and 0: missing)."""
    return [[name, *_state(os.path.join(folder, name))] for name in names]  # noqa: PTH118


def outdated(index: Index, dataset: str) -> list[FileState]:
    """Files of a data set that must be read again: their companions are no longer what they were."""
    outdated_paths = []
    claimed = set()
    for path, states in _owners(index, dataset):
        folder = os.path.dirname(path)  # noqa: PTH120 - millions of files
        beside = [(os.path.normpath(os.path.join(folder, name)), size, time) for name, size, time in states]  # noqa: PTH118
        claimed |= {name for name, _, _ in beside}
        if any(_state(str(index.root / name)) != (size, time) for name, size, time in beside):
            outdated_paths.append(path)
    query = "SELECT path FROM files WHERE dataset = ? AND state = 'ignored' AND reason LIKE ?"
    for (path,) in index.connection.execute(query, (dataset, f"{_CLAIMED}%")):
        if path not in claimed:
            outdated_paths.append(path)
    return [FileState(os.path.normpath(index.root / path), *_state(str(index.root / path))) for path in outdated_paths]


def claim(index: Index, dataset: str) -> None:
    """Mark files that hold the pixels of another file as ignored."""
    rows: list[tuple[str, str]] = []
    claimed: set[str] = set()
    for path, states in _owners(index, dataset):
        if path in claimed:
            continue
        reason = f"{_CLAIMED}{os.path.basename(path)}"  # noqa: PTH119
        folder = os.path.dirname(path)  # noqa: PTH120
        beside = [os.path.normpath(os.path.join(folder, name)) for name, _, _ in states]  # noqa: PTH118
        claimed.update(beside)
        rows += [(reason, one) for one in beside]
    with transaction(index.connection):
        for reason, path in rows:
            due = "INSERT OR IGNORE INTO stale SELECT series FROM files WHERE path = ? AND series <> '' AND state <> ?"
            index.connection.execute(due, (path, "ignored"))
            index.connection.execute(
                "UPDATE files SET state = 'ignored', reason = ?, series = '', header = '' "
                "WHERE path = ? AND dataset = ? AND reason <> ?",
                (reason, path, dataset, reason),
            )


def _owners(index: Index, dataset: str) -> Iterator[tuple[str, list[list[Any]]]]:
    """Files that have companions, with what these were."""
    query = """
        SELECT path, header FROM files
        WHERE dataset = ? AND state = 'scan' AND instr(header, '"companions":[[') > 0 ORDER BY path
    """
    for path, header in index.connection.execute(query, (dataset,)).fetchall():
        yield path, json.loads(header)["details"]["companions"]


def _state(path: str) -> tuple[int, int]:
    try:
        about = os.stat(path)  # noqa: PTH116
    except OSError:
        return _MISSING
    return about.st_size, about.st_mtime_ns
