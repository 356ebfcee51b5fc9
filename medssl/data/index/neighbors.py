"""Files in the folder of a DICOM series that could not be read and of which nobody knows the series.

They may be slices of any series in their folder, so a change among them makes these series due for grouping.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import PurePath

_NO_FORMAT = "not an image: no known format"
_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
_UNREAD = "SELECT path FROM files WHERE state = 'failed' UNION SELECT path FROM files WHERE reason = ?"


def unread_beside(connection: sqlite3.Connection, dataset: str, paths: Sequence[str]) -> list[str]:
    """Names of files that could not be read, in the folders of ``paths``, and that belong to no series with slices."""
    names = []
    for folder in sorted({_folder(path) for path in paths}):
        for term in ("state = 'failed'", f"reason = '{_NO_FORMAT}'"):
            query = f"""
                SELECT path FROM files WHERE {term} AND path > ? AND path < ? AND dataset = ? AND NOT EXISTS (
                    SELECT 1 FROM files AS other WHERE other.series = files.series AND other.state = 'slice')
                ORDER BY path
            """
            rows = connection.execute(query, (*_inside(folder), dataset))
            names += [PurePath(row[0]).name for row in rows if _folder(row[0]) == folder and _may_be_dicom(row[0])]
    return names


def mark_beside_unread(connection: sqlite3.Connection) -> None:
    """Make series due whose folders hold other unread files than at the last update."""
    folders: dict[str, list[str]] = {}
    for (path,) in connection.execute(_UNREAD, (_NO_FORMAT,)):
        if _may_be_dicom(path):
            folders.setdefault(_folder(path), []).append(path)
    now = {
        folder: hashlib.blake2b("\0".join(paths).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        for folder, paths in folders.items()
    }
    row = connection.execute("SELECT value FROM meta WHERE name = 'unread'").fetchone()
    before: dict[str, str] = json.loads(row[0]) if row else {}
    for folder in sorted(folder for folder in now.keys() | before.keys() if now.get(folder) != before.get(folder)):
        inside = "path > ? AND path < ? AND state = 'slice'"
        due = f"INSERT OR IGNORE INTO stale SELECT DISTINCT series FROM files WHERE {inside}"
        connection.execute(due, _inside(folder))
    if now != before:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('unread', ?)", (json.dumps(now),))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _inside(folder: str) -> tuple[str, str]:
    """What the paths in and below a folder lie between; "" is the root of the index."""
    return (f"{folder}/", f"{folder}0") if folder else ("", "\U0010ffff")


def _may_be_dicom(path: str) -> bool:
    suffix = PurePath(path).suffix.lower()
    return suffix in _SUFFIXES or suffix[1:].isdigit()
