"""Worker processes that do not outlive the process that started them, however that one ends."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process


def follow_parent() -> None:
    """Initializer of a worker: ends it when its parent was killed, for it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait, args=(parent.sentinel,), daemon=True).start()


def _wait(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    os._exit(1)
