"""How long and with how much memory one file may be read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

TOO_SLOW, TOO_LARGE = "took longer than {:g} s", "needs more than {:g} GB of memory"  # why an item is lost
_MET = re.compile(r"took longer than ([\d.e+]+) s$|needs more than ([\d.e+]+) GB of memory$")


@dataclass(frozen=True)
class Limits:
    """Limits of one item of work.

    Attributes:
        seconds: Time for an item that is small.
        memory_gb: Memory beside what a process has at its start.
        more: Seconds that an item may take besides, for its size.
    """

    seconds: float
    memory_gb: float
    more: Callable[[Any], float] | None = None

    def seconds_of(self, item: Any) -> float:
        """Time limit of an item."""
        return self.seconds + (self.more(item) if self.more else 0.0)

    def wider_than(self, reason: str) -> bool:
        """Whether an item that was lost for this reason met a limit that is wider now."""
        met = _MET.match(reason)
        return met is not None and (self.seconds > float(met[1]) if met[1] else self.memory_gb > float(met[2]))


def memory_limit(memory_gb: float) -> None:
    """Let this process allocate so much more memory; beyond that, Python raises ``MemoryError`` (Linux)."""
    import resource

    with suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no path of ours
            data = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        limit = data + int(memory_gb * 1e9)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def total_memory_gb() -> float:
    """Memory of this machine, or of the group of processes that the system has put this one into."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(name, encoding="ascii") as file:  # noqa: PTH123
            total = min(total, int(file.read()))
    return total / 1e9
