"""Worker processes: started afresh, watched, and ended when the process that started them ends, in whatever way.

A file of others can make a decoder crash, hang or take all memory. It is read in a process of its own kind, which says
which item of its batch it is at, so that what goes wrong is charged to that item and the others go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pickle import PicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from medssl.io.limits import TOO_LARGE, TOO_SLOW, Limits, memory_limit
from medssl.io.safe_path import protect_children
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext

T = TypeVar("T")
POLL_S = 0.2  # how often time limits are looked at
AHEAD_BYTES = 50_000  # of a batch that is sent while another is in work: more would not fit into the pipe
FAILED_STARTS = 3  # processes in a row that die before they have begun
SIGNALS = {
    signal.SIGSEGV: "signal 11, an invalid access to memory", signal.SIGABRT: "signal 6, it gave up",
    signal.SIGKILL: "signal 9, most likely for want of memory", signal.SIGBUS: "signal 7, the file became shorter",
}  # fmt: skip


def spawning() -> SpawnContext:
    """How worker processes are started: afresh, without the working folder on their path."""
    protect_children()
    return get_context("spawn")


def forking() -> ForkServerContext:
    """How many small worker processes are started: from a server that has what reads headers, and nothing else."""
    protect_children()
    context = get_context("forkserver")
    context.set_forkserver_preload(["medssl.data.index.entries"])
    return context


@contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes that do not import the program's main module again.

    Workers run functions of this package alone. Without this, a script that calls the library outside of
    ``if __name__ == "__main__"`` would run again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def in_worker() -> bool:
    """Whether this process was started by another of ours."""
    return parent_process() is not None


def one_thread() -> None:
    """First call of a small worker: as many of them as cores are asked for, so none starts threads of its own."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def follow_parent() -> None:
    """Initializer of a worker: ends it when its parent was killed, for it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait, args=(parent.sentinel,), daemon=True).start()


def _wait(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@dataclass(frozen=True)
class Lost:
    """An item that no result came of, and why."""

    reason: str
    limit: str = ""  # "seconds" or "memory_gb" where that limit was met


@dataclass
class _Job(Generic[T]):
    """Items of one batch that are read together; ``places`` are theirs in the batch number ``batch``."""

    batch: int
    places: list[int]
    items: list[T]
    task: Callable[..., Any]
    single: bool = False


class _Worker(Generic[T]):
    """A process and the jobs that it was sent, the first of them in work."""

    def __init__(self, context: Any, setup: Callable[[], None], limits: Limits) -> None:
        self.jobs: deque[_Job[T]] = deque()
        self.connection, other = context.Pipe()
        self.progress = context.RawArray("d", 3)  # jobs begun, item of the last one, since when
        self.answered = 0  # jobs whose answers came
        self.stopped = ""  # why we ended it
        self.process = context.Process(target=_work, args=(other, self.progress, setup, limits.memory_gb), daemon=True)
        with without_main_module():
            self.process.start()
        other.close()

    def send(self, job: _Job[T], data: bytes) -> None:
        self.jobs.append(job)
        with suppress(OSError):  # it died: seen by its sentinel
            self.connection.send_bytes(data)

    def place(self) -> int | None:
        """Which item of its first job it is at, if it has begun."""
        return int(self.progress[1]) if self.jobs and int(self.progress[0]) == self.answered + 1 else None

    def stop(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.join(5)
        self.connection.close()


class Pool(Generic[T]):
    """Processes that work on batches of items; each item has a time and a memory limit.

    A process that dies is replaced: the item it was at is tried alone in a fresh one, and is lost if that dies too.

    Args:
        workers: How many; 0 works in this process, without limits.
        limits: Of each item.
        context: How processes are started.
        setup: First call of each process.
        ordered: Whether results come in the order of the batches.
    """

    def __init__(
        self, workers: int, limits: Limits, *, context: Any = None, setup: Callable[[], None], ordered: bool = True
    ) -> None:
        self.workers, self.limits, self.ordered = workers, limits, ordered
        self.context, self.setup = context, setup
        self.running: list[_Worker[T]] = []
        self.single_jobs: deque[_Job[T]] = deque()
        self.retries: deque[_Job[T]] = deque()
        self.deaths, self.more_batches = 0, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self.running:
            if kind is None and not worker.jobs:
                worker.connection.close()  # it sees the end of its work
                worker.process.join(2)
        for worker in self.running:
            worker.stop()
        self.running = []

    def map(self, task: Callable[..., Any], batches: Iterator[Sequence[T]]) -> Iterator[tuple[list[T], Any | Lost]]:
        """Parts of the batches, each with what ``task(items, report)`` makes of it, or one item with why it is lost.

        ``task`` calls ``report(number)`` before each item.
        """
        if self.workers < 1:
            for batch in batches:
                yield list(batch), task(batch, lambda _number: None)
            return
        parts = _Results[T](self.ordered)
        source = enumerate(batches)
        self.more_batches = True
        while True:
            self._fill(task, source, parts)
            yield from parts.finished()
            if not (
                self.more_batches or self.single_jobs or self.retries or any(worker.jobs for worker in self.running)
            ):
                return
            self._listen(parts)

    def _fill(self, task: Callable[..., Any], source: Iterator[tuple[int, Sequence[T]]], parts: _Results[T]) -> None:
        """Gives work to processes that have too little."""
        if self.single_jobs:
            if not any(worker.jobs for worker in self.running):
                for worker in self.running:  # a fresh one: whatever happened before, it is not to blame
                    worker.stop()
                self.running = []
                self._send(self._worker(), self.single_jobs.popleft())
            return
        while len(self.running) < self.workers or any(len(worker.jobs) < 2 for worker in self.running):
            if self.retries:
                job = self.retries.popleft()
            else:
                number, batch = next(source, (-1, ()))
                if number < 0:
                    self.more_batches = False
                    return
                job = _Job(number, list(range(len(batch))), list(batch), task)
                parts.expect(number, len(batch))
            if not self._send(self._worker(), job):
                return

    def _worker(self) -> _Worker[T]:
        """The process with the least to do, a new one where all have something."""
        worker = min(self.running, key=lambda worker: len(worker.jobs), default=None)
        if worker is None or (worker.jobs and len(self.running) < self.workers):
            worker = _Worker(self.context, self.setup, self.limits)
            self.running.append(worker)
        return worker

    def _send(self, worker: _Worker[T], job: _Job[T]) -> bool:
        """Sends a job, or keeps it for later where the process is busy and the job is large."""
        from multiprocessing.reduction import ForkingPickler

        data = bytes(ForkingPickler.dumps((job.task, job.items)))
        if worker.jobs and len(data) > AHEAD_BYTES:
            self.retries.appendleft(job)
            return False
        worker.send(job, data)
        return True

    def _listen(self, parts: _Results[T]) -> None:
        """Waits for answers, deaths and time limits."""
        handles = {handle: worker for worker in self.running for handle in (worker.connection, worker.process.sentinel)}
        for worker in {id(handles[handle]): handles[handle] for handle in wait(list(handles), POLL_S)}.values():
            try:
                answer = worker.connection.recv() if worker.connection.poll() else None
            except (EOFError, OSError):
                answer = None
            if answer is not None:
                self._answered(worker, answer, parts)
            else:
                self._died(worker, parts)
        now = time.monotonic()
        for worker in self.running:
            place = worker.place()
            if place is not None:
                limit = self.limits.seconds_of(worker.jobs[0].items[place])
                if now - worker.progress[2] > limit:
                    worker.stopped = TOO_SLOW.format(round(limit, 1))
                    worker.process.kill()

    def _answered(self, worker: _Worker[T], answer: tuple[str, Any], parts: _Results[T]) -> None:
        kind, value = answer
        job = worker.jobs.popleft()
        worker.answered += 1
        self.deaths = 0
        if kind == "error":
            raise value
        if kind == "memory":
            self._lose(job, int(value), Lost(TOO_LARGE.format(self.limits.memory_gb), "memory_gb"), parts)
        else:
            parts.add(job, value)

    def _died(self, worker: _Worker[T], parts: _Results[T]) -> None:
        """Charges the death of a process to what it was at, and has the rest done again."""
        place, jobs = worker.place(), list(worker.jobs)
        worker.stop()
        self.running.remove(worker)
        code = worker.process.exitcode or 0
        if place is None:
            self.deaths += 1
            if self.deaths == FAILED_STARTS:
                message = (
                    f"{FAILED_STARTS} worker processes in a row ended before they had begun ({_describe_exit(code)}): "
                    "run the same command again with fewer workers"
                )
                raise UserError(message)
            self.retries.extendleft(reversed(jobs))
            return
        job = jobs[0]
        self.retries.extendleft(reversed(jobs[1:]))
        if worker.stopped:
            self._lose(job, place, Lost(worker.stopped, "seconds"), parts)
        elif job.single:
            self._lose(job, place, Lost(f"the reader ended ({_describe_exit(code)}) while it read this"), parts)
        else:
            self.single_jobs.append(_Job(job.batch, [job.places[place]], [job.items[place]], job.task, single=True))
            self._without(job, place)

    def _lose(self, job: _Job[T], place: int, lost: Lost, parts: _Results[T]) -> None:
        parts.add(_Job(job.batch, [job.places[place]], [job.items[place]], job.task), lost)
        self._without(job, place)

    def _without(self, job: _Job[T], place: int) -> None:
        """Has the other items of a job done again."""
        if len(job.items) > 1:
            del job.places[place], job.items[place]
            self.retries.append(job)


@dataclass
class _Results(Generic[T]):
    """Results until the batches before them are complete."""

    ordered: bool
    missing: dict[int, int] = field(default_factory=dict)
    held: dict[int, list[tuple[list[int], list[T], Any]]] = field(default_factory=dict)
    next: int = 0

    def expect(self, number: int, count: int) -> None:
        self.missing[number] = count
        self.held[number] = []

    def add(self, job: _Job[T], result: Any) -> None:
        self.missing[job.batch] -= len(job.items)
        self.held[job.batch].append((job.places, job.items, result))

    def finished(self) -> Iterator[tuple[list[T], Any]]:
        if not self.ordered:
            for number in list(self.held):
                yield from self._take(number)
        while self.missing.get(self.next) == 0:
            yield from self._take(self.next)
            del self.missing[self.next], self.held[self.next]
            self.next += 1

    def _take(self, number: int) -> Iterator[tuple[list[T], Any]]:
        parts, self.held[number] = sorted(self.held[number], key=lambda part: part[0]), []
        for _, items, result in parts:
            yield items, result


def _describe_exit(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"exit code {code}"
    return SIGNALS.get(signal.Signals(-code), f"signal {-code}")


def _work(connection: Connection, progress: Any, setup: Callable[[], None], memory_gb: float) -> None:
    """What a worker process does: one batch after the other, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    follow_parent()
    setup()
    memory_limit(memory_gb)
    number = 0

    def report(place: int) -> None:
        nonlocal number
        progress[1], progress[2] = place, time.monotonic()
        progress[0] = number

    while True:
        try:
            task, items = connection.recv()
        except (EOFError, OSError):
            return
        number += 1
        answer: tuple[str, Any]
        try:
            answer = ("done", task(items, report))
        except MemoryError:
            answer = ("memory", progress[1])
        except BaseException as error:  # noqa: BLE001 - raised again by the parent
            answer = ("error", error)
        try:
            connection.send(answer)
        except OSError:
            return
        except (TypeError, AttributeError, PicklingError):  # an error that cannot be sent
            connection.send(("error", RuntimeError(str(answer[1]))))
