"""Open slides of this process: opened when they are read, the least recently used closed, never shared by a fork."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medssl.data.formats.slide.base import OpenFile

MOST_OPEN = 32  # files of one process

Key = tuple[Path, ...]


class _Entry:
    """An open file with its lock; the last one who uses it closes it."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.lock = threading.Lock()
        self.users = 0
        self.dropped = False


class Handles:
    """The open slides of a process, at most ``most`` of them beside those in use."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self.most = most
        self._abandoned: list[object] = []  # of the process that this one was forked from: never closed here
        self._reset()

    def _reset(self) -> None:
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked process: forgets what the other process opened."""
        self._abandoned.append(self._entries)
        self._reset()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def opened(self, key: Key, opener: Callable[[], OpenFile]) -> Iterator[OpenFile]:
        """The open file of ``key``, for this thread alone; a file that raises an error is opened anew next time."""
        entry = self._take(key, opener)
        try:
            with entry.lock:
                yield entry.file
        except BaseException:
            self._drop(key, entry)
            raise
        finally:
            self._give_back(entry)

    def close_all(self) -> None:
        """Closes all files that are not in use."""
        for key, entry in list(self._entries.items()):
            self._drop(key, entry)
            if not entry.users:
                entry.file.close()

    def _take(self, key: Key, opener: Callable[[], OpenFile]) -> _Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.users += 1
                return entry
        opened = _Entry(opener())
        surplus: list[_Entry] = []
        with self._lock:
            entry = self._entries.setdefault(key, opened)
            entry.users += 1
            surplus += [opened] if entry is not opened else []
            self._entries.move_to_end(key)
            for old_key in [one for one, held in self._entries.items() if not held.users]:
                if len(self._entries) <= self.most:
                    break
                surplus.append(self._entries.pop(old_key))
        for old in surplus:
            old.file.close()
        return entry

    def _drop(self, key: Key, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]
            entry.dropped = True

    def _give_back(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            last = entry.dropped and not entry.users
        if last:
            entry.file.close()


HANDLES = Handles()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=HANDLES.after_fork)
