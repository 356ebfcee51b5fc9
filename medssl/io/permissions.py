"""New files that only their owner can read."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def owner_only() -> Iterator[None]:
    """New files and folders are for their owner alone (umask 0077) until the context ends; also a decorator.

    The umask is one of the whole process: other threads see it too, until it is restored.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
