"""Where processes of medssl look for modules: never in the working folder, which may hold a ``torch.py`` of others.

The folder of ``PYTHONPATH`` is taken, since somebody has named it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "PYTHONSAFEPATH"


def leave_working_folder() -> None:
    """Takes the folder off the path that ``python -m`` has put there; a medssl that lies in it stays importable."""
    if sys.flags.safe_path or sys.argv[:1] != ["-m"] or not sys.path:
        return
    if sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    own = str(Path(__file__).parents[2])
    if own not in sys.path:
        sys.path.append(own)


def protect_children() -> None:
    """Keeps the working folder off the path of every Python that this process starts, whichever package starts it."""
    os.environ[VARIABLE] = "1"


def python_command() -> list[str]:
    """The beginning of a command that starts this Python."""
    protect_children()
    return [sys.executable, "-P"]
