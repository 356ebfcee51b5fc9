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
STARTS = 3  # processes in a row that die before they have begun
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
    alone: bool = False


class _Worker(Generic[T]):
    """A process and the jobs that it was sent, the first of them in work."""

    def __init__(self, context: Any, setup: Callable[[], None], limits: Limits) -> None:
        self.jobs: deque[_Job[T]] = deque()
        self.connection, other = context.Pipe()
        self.at = context.RawArray("d", 3)  # jobs begun, item of the last one, since when
        self.begun = 0  # jobs whose answers came
        self.stopped = ""  # why we ended it
        self.process = context.Process(target=_work, args=(other, self.at, setup, limits.memory_gb), daemon=True)
        with without_main_module():
            self.process.start()
        other.close()

    def send(self, job: _Job[T], data: bytes) -> None:
        self.jobs.append(job)
        with suppress(OSError):  # it died: seen by its sentinel
            self.connection.send_bytes(data)

    def place(self) -> int | None:
        """Which item of its first job it is at, if it has begun."""
        return int(self.at[1]) if self.jobs and int(self.at[0]) == self.begun + 1 else None

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
        self.crew: list[_Worker[T]] = []
        self.alone: deque[_Job[T]] = deque()
        self.again: deque[_Job[T]] = deque()
        self.deaths, self.more = 0, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self.crew:
            if kind is None and not worker.jobs:
                worker.connection.close()  # it sees the end of its work
                worker.process.join(2)
        for worker in self.crew:
            worker.stop()
        self.crew = []

    def map(self, task: Callable[..., Any], batches: Iterator[Sequence[T]]) -> Iterator[tuple[list[T], Any | Lost]]:
        """Parts of the batches, each with what ``task(items, tell)`` makes of it, or one item with why it is lost.

        ``task`` calls ``tell(number)`` before each item.
        """
        if self.workers < 1:
            for batch in batches:
                yield list(batch), task(batch, lambda _number: None)
            return
        parts = _Parts[T](self.ordered)
        source = enumerate(batches)
        self.more = True
        while True:
            self._fill(task, source, parts)
            yield from parts.finished()
            if not (self.more or self.alone or self.again or any(worker.jobs for worker in self.crew)):
                return
            self._listen(parts)

    def _fill(self, task: Callable[..., Any], source: Iterator[tuple[int, Sequence[T]]], parts: _Parts[T]) -> None:
        """Gives work to processes that have too little."""
        if self.alone:
            if not any(worker.jobs for worker in self.crew):
                for worker in self.crew:  # a fresh one: whatever happened before, it is not to blame
                    worker.stop()
                self.crew = []
                self._send(self._worker(), self.alone.popleft())
            return
        while len(self.crew) < self.workers or any(len(worker.jobs) < 2 for worker in self.crew):
            if self.again:
                job = self.again.popleft()
            else:
                number, batch = next(source, (-1, ()))
                if number < 0:
                    self.more = False
                    return
                job = _Job(number, list(range(len(batch))), list(batch), task)
                parts.expect(number, len(batch))
            if not self._send(self._worker(), job):
                return

    def _worker(self) -> _Worker[T]:
        """The process with the least to do, a new one where all have something."""
        worker = min(self.crew, key=lambda worker: len(worker.jobs), default=None)
        if worker is None or (worker.jobs and len(self.crew) < self.workers):
            worker = _Worker(self.context, self.setup, self.limits)
            self.crew.append(worker)
        return worker

    def _send(self, worker: _Worker[T], job: _Job[T]) -> bool:
        """Sends a job, or keeps it for later where the process is busy and the job is large."""
        from multiprocessing.reduction import ForkingPickler

        data = bytes(ForkingPickler.dumps((job.task, job.items)))
        if worker.jobs and len(data) > AHEAD_BYTES:
            self.again.appendleft(job)
            return False
        worker.send(job, data)
        return True

    def _listen(self, parts: _Parts[T]) -> None:
        """Waits for answers, deaths and time limits."""
        handles = {handle: worker for worker in self.crew for handle in (worker.connection, worker.process.sentinel)}
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
        for worker in self.crew:
            place = worker.place()
            if place is not None:
                limit = self.limits.seconds_of(worker.jobs[0].items[place])
                if now - worker.at[2] > limit:
                    worker.stopped = TOO_SLOW.format(round(limit, 1))
                    worker.process.kill()

    def _answered(self, worker: _Worker[T], answer: tuple[str, Any], parts: _Parts[T]) -> None:
        kind, value = answer
        job = worker.jobs.popleft()
        worker.begun += 1
        self.deaths = 0
        if kind == "error":
            raise value
        if kind == "memory":
            self._lose(job, int(value), Lost(TOO_LARGE.format(self.limits.memory_gb), "memory_gb"), parts)
        else:
            parts.add(job, value)

    def _died(self, worker: _Worker[T], parts: _Parts[T]) -> None:
        """Charges the death of a process to what it was at, and has the rest done again."""
        place, jobs = worker.place(), list(worker.jobs)
        worker.stop()
        self.crew.remove(worker)
        code = worker.process.exitcode or 0
        if place is None:
            self.deaths += 1
            if self.deaths == STARTS:
                message = (
                    f"{STARTS} worker processes in a row ended before they had begun ({_words(code)}): run the same "
                    "command again with fewer workers"
                )
                raise UserError(message)
            self.again.extendleft(reversed(jobs))
            return
        job = jobs[0]
        self.again.extendleft(reversed(jobs[1:]))
        if worker.stopped:
            self._lose(job, place, Lost(worker.stopped, "seconds"), parts)
        elif job.alone:
            self._lose(job, place, Lost(f"the reader ended ({_words(code)}) while it read this"), parts)
        else:
            self.alone.append(_Job(job.batch, [job.places[place]], [job.items[place]], job.task, alone=True))
            self._without(job, place)

    def _lose(self, job: _Job[T], place: int, lost: Lost, parts: _Parts[T]) -> None:
        parts.add(_Job(job.batch, [job.places[place]], [job.items[place]], job.task), lost)
        self._without(job, place)

    def _without(self, job: _Job[T], place: int) -> None:
        """Has the other items of a job done again."""
        if len(job.items) > 1:
            del job.places[place], job.items[place]
            self.again.append(job)


@dataclass
class _Parts(Generic[T]):
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


def _words(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"exit code {code}"
    return SIGNALS.get(signal.Signals(-code), f"signal {-code}")


def _work(connection: Connection, at: Any, setup: Callable[[], None], memory_gb: float) -> None:
    """What a worker process does: one batch after the other, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    follow_parent()
    setup()
    memory_limit(memory_gb)
    number = 0

    def tell(place: int) -> None:
        nonlocal number
        at[1], at[2] = place, time.monotonic()
        at[0] = number

    while True:
        try:
            task, items = connection.recv()
        except (EOFError, OSError):
            return
        number += 1
        answer: tuple[str, Any]
        try:
            answer = ("done", task(items, tell))
        except MemoryError:
            answer = ("memory", at[1])
        except BaseException as error:  # noqa: BLE001 - raised again by the parent
            answer = ("error", error)
        try:
            connection.send(answer)
        except OSError:
            return
        except (TypeError, AttributeError, PicklingError):  # an error that cannot be sent
            connection.send(("error", RuntimeError(str(answer[1]))))
