"""A process that a comparison or a list of stages starts: commands of medssl, one after the other.

    python -m medssl.comparison.process PARENT COMMANDS

PARENT is the number of the process that starts it, COMMANDS a JSON list of lists of words behind ``medssl``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import Any

PARENT_DIED = 1  # prctl's PR_SET_PDEATHSIG


def main(parent: int, commands: Sequence[Sequence[str]]) -> int:
    """Runs commands until one fails; returns its exit code, or 0."""
    end_with_parent(parent)
    for words in commands:
        sys.argv = ["medssl", *words]
        try:
            runpy.run_module("medssl", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                return ended.code if isinstance(ended.code, int) else 1
    return 0


def end_with_parent(parent: int) -> None:
    """Asks the kernel (Linux) to send SIGTERM when the parent dies: a run then saves and stops."""
    with contextlib.suppress(OSError, AttributeError):
        library: Any = ctypes.CDLL(None)
        library.prctl(PARENT_DIED, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
