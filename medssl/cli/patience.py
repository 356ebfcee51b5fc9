"""A line on the console where loading the modules of a verb takes long."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 2.0


@contextmanager
def said_when_slow(verb: str) -> Iterator[None]:
    """Says on the console that modules are being loaded, where that takes over two seconds."""

    def tell() -> None:
        sys.stderr.write(f"medssl {verb}: loading PyTorch, a few seconds ...\n")
        sys.stderr.flush()

    timer = threading.Timer(PATIENCE_S, tell)
    timer.daemon = True
    if os.environ.get("RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
