"""Files that appear whole or not at all: written beside their place, brought to the disk, then renamed."""

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

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole(*paths: Path) -> Iterator[tuple[IO[bytes], ...]]:
    """Opens files that take their places when the block ends, all of them complete before the first is renamed.

    A block that raises leaves what was there before. A process that is killed leaves ``.NAME.*.part`` files besides:
    whoever owns the folder may delete them.

    Raises:
        OSError: The disk refuses a file.
    """
    parts = [path.with_name(f".{path.name}.{secrets.token_hex(4)}.part") for path in paths]
    try:
        with ExitStack() as stack:
            files = tuple(stack.enter_context(part.open("wb")) for part in parts)
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


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: The disk is full or refuses the file; the former file is untouched.
    """
    with refusals(path), whole(path) as (file,):
        write(file)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Says which file the disk refused, why, and what to do.

    Raises:
        UserError: The block met an OSError, or an error of torch that hides one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps a failing write into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        full = cause.errno in FULL
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
