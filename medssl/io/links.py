"""Files opened for writing in folders that others can write to: no symbolic link is followed."""

from __future__ import annotations

import errno
import os
from typing import IO, TYPE_CHECKING

from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path


def open_to_append(file: Path) -> IO[bytes]:
    """Opens a file for lines at its end, made where there is none.

    Raises:
        UserError: The file is a link.
    """
    return os.fdopen(open_without_links(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def open_without_links(file: Path, flags: int) -> int:
    """Opens a file for its owner alone and gives its descriptor.

    Args:
        file: The file.
        flags: Those of ``os.open``.

    Raises:
        UserError: The file is a link.
    """
    try:
        return os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        message = f"{file.name} in {file.parent.name}/ is a link to another file: delete it and run the command again"
        raise UserError(message) from error
