"""Every file below a directory, in a fixed order, with what keeps a folder from being read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """One file or one obstacle: ``path`` is absolute; ``problem`` says why it cannot be looked into.

    ``folder`` is True where the obstacle is a folder, whose contents are then unknown rather than gone.
    """

    path: str
    size: int = 0
    modified_ns: int = 0
    problem: str = ""
    folder: bool = False


def walk(directory: Path, *, below: bool = True, names: Sequence[str] = ()) -> Iterator[Found]:
    """Files below ``directory``, sorted within each folder; links are followed, each folder once.

    Without ``below`` only those of the directory itself, with ``names`` only these of them. Memory grows with the
    number of folders, not of files.
    """
    if names:
        yield from _named(directory, names)
        return
    seen: set[tuple[int, int]] = set()
    pending = [str(directory)]
    while pending:
        folder = pending.pop()
        try:
            about = os.stat(folder)  # noqa: PTH116 - millions of entries: strings, not Path objects
            if (about.st_dev, about.st_ino) in seen:
                yield Found(folder, problem="folder met before (a link back or a second way in)", folder=True)
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(folder, problem=f"folder cannot be opened: {error.strerror}", folder=True)
            continue
        folders = []
        for entry in ordered:
            if not _is_text(entry.name):
                readable = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
                yield Found(readable, problem="name is not UTF-8: rename it", folder=_is_folder(entry))
            elif _is_folder(entry):
                folders.append(entry.path)
            else:
                yield _file(entry)
        pending.extend(reversed(folders) if below else ())


def _named(directory: Path, names: Sequence[str]) -> Iterator[Found]:
    """These files of a folder, as far as they are there."""
    for name in sorted(names):
        path = str(directory / name)
        try:
            about = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Found(path, problem=f"cannot be looked at: {error.strerror}")
            continue
        regular = stat.S_ISREG(about.st_mode)
        yield Found(path, about.st_size, about.st_mtime_ns) if regular else Found(path, problem="not a regular file")


def _is_text(name: str) -> bool:
    """Whether a name can be written down: old systems leave names in other encodings than UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link onto itself
        return False


def _file(entry: os.DirEntry[str]) -> Found:
    try:
        about = entry.stat()
    except FileNotFoundError:
        return Found(entry.path, problem="broken link" if entry.is_symlink() else "vanished while looking")
    except OSError as error:
        return Found(entry.path, problem=f"cannot be looked at: {error.strerror}")
    if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
        return Found(entry.path, problem="not a regular file")
    return Found(entry.path, about.st_size, about.st_mtime_ns)
