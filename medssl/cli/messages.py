"""What the command line says of a mistake: one line in the user's words, with the nearest name that there is."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.io.older_keys import PRESENT_KEYS
from medssl.io.suggestions import nearest
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.cli.keys import Keys

GONE = {  # keys of earlier versions without a successor, and what does their work
    "pretrained_file": "leave it out; --pretrained FILE loads weights of a file",
}
FORMER = {  # keys of earlier versions, and those that take their place
    "allow_seen": "allow seen",
    "init": "pretrained",
    "init_minimum": "pretrained_minimum",
    "labels.": "label.",
}


def renamed(key: str) -> str:
    """The key that takes the place of one of an earlier version; "" of other keys."""
    if key in FORMER:
        return FORMER[key]
    parent, _, last = key.rpartition(".")
    if last in PRESENT_KEYS:
        return f"{parent}.{PRESENT_KEYS[last]}".lstrip(".")
    group, _, rest = key.partition(".")
    return f"{FORMER[f'{group}.']}{rest}" if rest and f"{group}." in FORMER else ""


def unknown_key(key: str, keys: Keys) -> UserError:
    """The error on a key that a verb does not take, with its new name, or the nearest one that there is."""
    if now := renamed(key):
        return UserError(f"--{key} is now --{now}")
    if remedy := GONE.get(key.rpartition(".")[2]):
        return UserError(f"unknown key {key!r}: {remedy}")
    first = keys.first_unknown(key)
    return UserError(f"unknown key {first!r}{nearest(first, sorted(keys.known)) or ': --help all lists the keys'}")


def located(error: UserError, keys: Keys | None) -> UserError:
    """The error with the whole key of the verb: ``temperature`` of an objective is ``objective.temperature``.

    Where no option or several options may be meant, the key becomes a part of the message.
    """
    if not error.key or (keys is not None and keys.takes(error.key)):
        return error
    ends = [name for name in (keys.parameters if keys else ()) if name.endswith(f".{error.key}")]
    if len(ends) == 1:
        return error.changed(key=ends[0])
    return error.changed(message=f"{error.key}: {error.message}", key="")


def trouble(error: OSError | sqlite3.OperationalError) -> str:
    """One line on what the system refused (a full disk, a folder without permission), or nothing for other errors."""
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) and error.filename:
        path = Path(error.filename)
        if isinstance(error, IsADirectoryError):
            return f"{path} is a folder, a file is expected: name a file in it"
        file = next((one for one in (path, *path.parents) if one.is_file()), path)
        return f"{file} is a file, a folder is expected: choose another name"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}" if error.errno else ""
    refused = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    if error.sqlite_errorcode & 0xFF not in (*refused, sqlite3.SQLITE_BUSY):
        return ""
    return f"SQLite says: {error}; check the room on the disk, the permissions, and who else works in that folder"
