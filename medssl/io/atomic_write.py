"""Atomic writes: a file is written beside its place, brought to the disk, and then renamed.

A reader sees the former file or the new one, never a part of either.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_files(*paths: Path) -> Iterator[tuple[IO[bytes], ...]]:
    """Opens files that take their places when the block ends, all of them complete before the first is renamed.

    A block that raises leaves the former files. A process that is killed leaves ``.NAME.*.part`` files besides; the
    owner of the folder may delete them.

    Raises:
        OSError: The disk refuses a file.
    """
    parts = [path.with_name(f".{path.name}.{secrets.token_hex(4)}.part") for path in paths]
    try:
        with ExitStack() as stack:
            files = tuple(stack.enter_context(part.open("xb")) for part in parts)
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes one file completely or not at all.

    Args:
        path: Where it lies in the end.
        write: Writes the content into the open file that it is given.

    Raises:
        UserError: The disk is full or refuses the file; the former file is untouched.
    """
    with explain_disk_errors(path), atomic_files(path) as (file,):
        write(file)


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turns an error of the disk into one line: which file, why, and what to do.

    Raises:
        UserError: The block raised an OSError, or an error of torch that hides one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps a failing write into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        full = cause.errno in DISK_FULL
        room = f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free" if full else ""
        message = (
            f"{path.name} could not be written ({cause.strerror or cause}{room}): the file that was there before is "
            f"intact; {'make room' if full else 'check the folder'} and run the same command to continue"
        )
        raise UserError(message) from error


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network shares cannot do it for folders
            raise
    finally:
        os.close(handle)
