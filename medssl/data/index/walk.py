"""Every file below a directory, in a fixed order, with what keeps a folder from being read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileState:
    """A file, or a folder that cannot be opened.

    Attributes:
        path: Absolute path.
        size: Bytes.
        modified_ns: Modification time in ns.
        problem: Why it cannot be read; "" where it can.
        folder: Whether it is a folder: its contents are then unknown, not removed.
    """

    path: str
    size: int = 0
    modified_ns: int = 0
    problem: str = ""
    folder: bool = False


def walk(directory: Path, *, below: bool = True, names: Sequence[str] = ()) -> Iterator[FileState]:
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
                yield FileState(folder, problem="folder met before (a link back or a second way in)", folder=True)
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield FileState(folder, problem=f"folder cannot be opened: {error.strerror}", folder=True)
            continue
        folders = []
        for entry in ordered:
            if not _is_text(entry.name):
                readable = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
                yield FileState(readable, problem="name is not UTF-8: rename it", folder=_is_folder(entry))
            elif _is_folder(entry):
                folders.append(entry.path)
            else:
                yield _file(entry)
        pending.extend(reversed(folders) if below else ())


def _named(directory: Path, names: Sequence[str]) -> Iterator[FileState]:
    """The files of a folder with these names, as far as they exist."""
    for name in sorted(names):
        path = str(directory / name)
        try:
            about = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            continue
        except OSError as error:
            yield FileState(path, problem=f"cannot be looked at: {error.strerror}")
            continue
        regular = stat.S_ISREG(about.st_mode)
        yield (
            FileState(path, about.st_size, about.st_mtime_ns)
            if regular
            else FileState(path, problem="not a regular file")
        )


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


def _file(entry: os.DirEntry[str]) -> FileState:
    try:
        about = entry.stat()
    except FileNotFoundError:
        return FileState(entry.path, problem="broken link" if entry.is_symlink() else "vanished while looking")
    except OSError as error:
        return FileState(entry.path, problem=f"cannot be looked at: {error.strerror}")
    if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
        return FileState(entry.path, problem="not a regular file")
    return FileState(entry.path, about.st_size, about.st_mtime_ns)
