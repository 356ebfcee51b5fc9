"""Whether the files of a scan are still those that the index has read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.types import Scan

UNREADABLE = (OSError, ValueError, RuntimeError, ArithmeticError, LookupError)  # of a scan that is left out
_CLOCKS_NS = (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)
# file systems keep times in steps of these lengths; a copy on another one has the time rounded down


class ChangedError(UserError):
    """A file that is no longer what the index has read."""


def refuse_changed(scan: Scan, root: Path) -> None:
    """Compare size and time of a scan's files, its masks and their companions with those in the index.

    A file that is not there is left to the reader, which names it.

    Args:
        scan: A scan of the index.
        root: Root of the index.

    Raises:
        ChangedError: Names the first file that changed.
    """
    parts = (*scan.source.parts, *scan.labels.mask, *scan.labels.excluded)
    for path, size, modified_ns in sorted({state for part in parts for state in part.states}):
        try:
            about = (root / path).stat()
        except OSError:
            continue
        if about.st_size != size or not same_time(about.st_mtime_ns, modified_ns):
            message = f"{PurePosixPath(path).name} has changed since it was indexed: index the scans again"
            raise ChangedError(message)


def same_time(one_ns: int, other_ns: int) -> bool:
    """Whether two modification times are one, or one of them is the other rounded down by a coarser clock."""
    low, high = sorted((one_ns, other_ns))
    return any(low == high // step * step for step in _CLOCKS_NS)
