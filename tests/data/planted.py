"""Readers that crash, hang or take all memory on files of certain names; worker processes find them by this module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from medssl.data.index import entries
from medssl.data.store import writer


def harm(path: Path) -> None:
    """What a broken decoder does; each time is written down beside the folder."""
    folder, kind = path.parent.parent, path.name.split("_")[0].split(".")[0]
    if kind in ("segv", "abort", "exit", "hang", "memory", "once"):
        mark = folder / f"{kind}.tried"
        before = mark.exists()
        mark.write_text(mark.read_text() + "x" if before else "x")
    if kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "abort":
        os.abort()
    elif kind == "exit":
        os._exit(3)
    elif kind == "hang":
        time.sleep(600)
    elif kind == "memory":
        bytearray(8 << 30)
    elif kind == "once" and not before:  # damage that an earlier file did
        os.kill(os.getpid(), signal.SIGSEGV)


recognize, read = entries.recognize, writer.read


def read_files(batch, report, **about):
    entries.recognize = lambda path: harm(path) or recognize(path)
    return entries.read_files(batch, report, **about)


def write_scans(plan, scans, report):
    writer.read = lambda scan, root: harm(root / scan.source.parts[0].path) or read(scan, root)
    return REAL_WRITE(plan, scans, report)


REAL_WRITE = writer.write_scans
