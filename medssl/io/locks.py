"""Locks on files, which end with the process that holds them, however it ends.

Not the package ``filelock``: it has no lock that several processes share, and none that child processes inherit.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

from medssl.io.links import open_without_links
from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path


def open_lock(file: Path) -> IO[str]:
    """Opens a lock file, made where there is none; neither its content nor that of another file is touched.

    Raises:
        UserError: The file is a link.
    """
    return os.fdopen(open_without_links(file, os.O_RDWR | os.O_CREAT), "w")  # a descriptor is not emptied


def try_lock(file: IO[str], *, inherited: bool = True) -> bool:
    """Takes the only lock on an open file; False where another process holds one.

    Args:
        file: From ``open_lock``; closing it gives the lock back.
        inherited: Whether child processes that are handed the file hold the lock, too. Without it the lock is one of
            POSIX, which network file systems know better.

    Raises:
        UserError: This system has no such locks (Windows).
        OSError: The file system has none.
    """
    fcntl = _fcntl()
    lock = fcntl.flock if inherited else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def share_lock(file: IO[str]) -> None:
    """Takes a lock that other processes may share, or turns one's own into such a lock; waits for who holds it alone.

    Raises:
        UserError: This system has no such locks (Windows).
        OSError: The file system has none.
    """
    fcntl = _fcntl()
    fcntl.flock(file, fcntl.LOCK_SH)


def _fcntl() -> Any:
    try:
        import fcntl
    except ImportError as error:
        message = "medssl needs the file locks of Linux or macOS; on Windows, run it in the Windows Subsystem for Linux"
        raise UserError(message) from error
    return fcntl
