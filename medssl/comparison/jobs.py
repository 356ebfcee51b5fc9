"""Jobs: commands of medssl in processes, several at a time, each with its device and its log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import torch

from medssl.io.documents import read_json
from medssl.io.links import open_to_append
from medssl.io.locks import open_lock, try_lock
from medssl.io.safe_path import python_command
from medssl.types import UserError
from medssl.types.errors import ERROR_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM sends SIGUSR1 before time is up
REMINDER_S = 5.0
PATIENCE_S = 120.0  # time for the processes of a killed parent to save


@dataclass(frozen=True)
class Job:
    """Commands that follow one another in one process, as words behind ``medssl``; ``log`` receives their output."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path

    @property
    def error(self) -> Path:
        """File to which the process writes the error that ends it, as JSON."""
        return self.log.with_suffix(".error.json")


@dataclass(frozen=True)
class Failure:
    """Why a job failed, for the console; ``written``, for tables that may be passed on, names no file or folder."""

    reason: str
    written: str


def run_jobs(jobs: Sequence[Job], done: Callable[[Job, Failure | None], None], *, at_once: int, lock: IO[str]) -> int:
    """Runs jobs, ``at_once`` at a time, in their order; a job that fails stops no other.

    Args:
        jobs: The jobs.
        done: Called with each job as it ends, and with the reason why it failed or None.
        at_once: Processes at the same time; they take turns with the GPUs and share the processor's cores.
        lock: Held open by every process, so that the lock on it lasts as long as any of them.

    Returns:
        0, or the number of the signal that stopped it: every process received it and has saved what it can.
    """
    waiting, running = deque(jobs), dict[subprocess.Popen[bytes], tuple[Job, int, int]]()
    free, received, forward_at = list(range(at_once)), list[int](), 0.0
    former = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    try:
        while running or (waiting and not received):
            while waiting and free and not received:
                slot = free.pop(0)
                job = waiting.popleft()
                before = job.log.stat().st_size if job.log.exists() else 0  # what earlier attempts said
                running[start(job, slot, at_once, lock)] = job, slot, before
            time.sleep(0.1)
            if received and time.monotonic() >= forward_at:  # repeated: a job may be between commands
                for process in running:
                    process.send_signal(signal.SIGTERM)
                forward_at = time.monotonic() + REMINDER_S
            for process in [process for process in running if process.poll() is not None]:
                job, slot, before = running.pop(process)
                free.append(slot)
                if not received:
                    done(job, failure(job, process.returncode, before) if process.returncode else None)
    finally:
        for process in running:  # an exception of ours
            process.kill()
        for number, handler in former.items():
            signal.signal(number, handler)
    return received[0] if received else 0


def start(job: Job, slot: int, at_once: int, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Starts a job's process on the device of its slot."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    cores = max(1, len(os.sched_getaffinity(0)) // at_once) if hasattr(os, "sched_getaffinity") else 1
    job.error.unlink(missing_ok=True)
    environment = {"OMP_NUM_THREADS": str(cores)} | os.environ | devices(slot) | {ERROR_FILE: str(job.error)}
    with open_to_append(job.log) as log:
        return subprocess.Popen(
            command(job.commands),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which forwards it
        )


def command(commands: Sequence[Sequence[str]]) -> list[str]:
    """Command line that starts commands of medssl, one after the other, in a process that stops when this one ends."""
    return [*python_command(), "-m", "medssl.comparison.process", str(os.getpid()), json.dumps(commands)]


def devices(slot: int) -> dict[str, str]:
    """Which GPU a slot sees: they take turns; nothing where there is none."""
    count = torch.cuda.device_count()
    if not count:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = named.split(",") if named else [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]}


def failure(job: Job, code: int, before: int = 0) -> Failure:
    """Why a job failed: the error that its process wrote, else the signal or the exit code.

    Args:
        job: What failed.
        code: Exit code, or less than 0 of a signal.
        before: Bytes of the log that earlier attempts wrote.
    """
    if code < 0:
        text = f"killed by {signal.Signals(-code).name}"
        text += ", often because memory was full" if code == -signal.SIGKILL else ""
        return Failure(text, text)
    if job.error.exists():
        error = read_json(job.error)
        about = f"{error['key']} was refused" if error["key"] else "its input was refused"
        return Failure(error["text"], f"{about}; its log says why")
    lines = job.log.read_bytes()[before:].decode("utf-8", "replace").splitlines()
    text = f"exit code {code}"
    return Failure(f"{text}; its log ends: {(lines or ['nothing'])[-1]}", f"{text}; its log says why")


@contextlib.contextmanager
def alone(file: Path, what: str) -> Iterator[IO[str]]:
    """Holds a lock that this process passes on to its children; waits for those of a parent that was killed.

    Raises:
        UserError: Another process keeps it.
    """
    with open_lock(file) as lock:
        since = time.monotonic()
        while not try_lock(lock):
            if time.monotonic() - since > PATIENCE_S:
                message = f"another process is at work in {what}"
                hint = "Wait for it, or choose another folder for results."
                raise UserError(message, key="out", hint=hint)
            if time.monotonic() - since < 0.1:
                log.warning(f"waiting for a process that is at work in {what}")
            time.sleep(0.2)
        yield lock
