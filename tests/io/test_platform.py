"""Linux and macOS: what only Linux has stands in a few places, each of which works without it."""

from __future__ import annotations

import builtins
import os
import re
from pathlib import Path

import pytest

from medssl.comparison import process
from medssl.io import limits
from medssl.training import hardware

PACKAGE = Path(__file__).parents[2] / "medssl"
LINUX_ONLY = re.compile(r'"/proc|"/sys|prctl\(|sched_getaffinity|import resource\b|import fcntl|import ctypes')
PLACES = {  # each of them has a test below, or in test_locks
    "comparison/process.py": {"prctl(", "import ctypes"},
    "comparison/jobs.py": {"sched_getaffinity"},
    "io/limits.py": {'"/proc', '"/sys', "import resource"},
    "io/locks.py": {"import fcntl"},
    "training/hardware.py": {'"/proc', '"/sys'},
}


def test_what_only_linux_has_stands_in_few_places():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if names := set(LINUX_ONLY.findall(path.read_text(encoding="utf-8"))):
            found[path.relative_to(PACKAGE).as_posix()] = names
    assert found == PLACES


@pytest.fixture
def without_proc(monkeypatch):
    """A system without the folders of Linux that say what the machine is."""
    real_open, real_read = builtins.open, Path.read_text

    def refuse(path):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory")

    def opened(path, *arguments, **options):
        refuse(path)
        return real_open(path, *arguments, **options)

    def read(path, *arguments, **options):
        refuse(path)
        return real_read(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(Path, "read_text", read)


def test_memory_is_that_of_the_machine(without_proc):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.total_memory_gb() == machine / 1e9
    assert hardware.memory_limit("cpu") == machine


def test_no_limit_of_memory_without_proc(without_proc, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("a limit was set"))
    limits.memory_limit(1.0)


def test_half_precision_is_not_taken_for_granted(without_proc):
    hardware.processor_computes_in_bf16.cache_clear()
    assert hardware.processor_computes_in_bf16() is False
    hardware.processor_computes_in_bf16.cache_clear()


def test_jobs_start_without_the_calls_of_linux(monkeypatch):
    class Library:
        """A C library without prctl."""

    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: Library())
    process.end_with_parent(os.getppid())
