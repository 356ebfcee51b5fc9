"""Worker processes: started afresh, and ended when the process that started them ends, in whatever way."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Self, TypeVar

from medssl.safe_path import protect_children

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

T = TypeVar("T")
S = TypeVar("S")


def spawning() -> SpawnContext:
    """How worker processes are started: afresh, without the working folder on their path."""
    protect_children()
    return get_context("spawn")


def follow_parent() -> None:
    """Initializer of a worker: ends it when its parent was killed, for it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait, args=(parent.sentinel,), daemon=True).start()


def _wait(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    os._exit(1)


class HeaderProcesses:
    """Processes that read headers: started when there is more than one batch to read, then kept until the end."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, read: Callable[[list[T]], list[S]], batches: Iterator[list[T]]) -> Iterator[tuple[list[T], list[S]]]:
        """Each batch with what ``read`` makes of it, in order, with few batches under way."""
        first = list(islice(batches, 2))
        if self.workers < 1 or (len(first) < 2 and self.pool is None):
            for batch in chain(first, batches):
                yield batch, read(batch)
            return
        self.pool = self.pool or ProcessPoolExecutor(self.workers, mp_context=spawning(), initializer=follow_parent)
        under_way: deque[tuple[list[T], Future[list[S]]]] = deque()
        for batch in chain(first, batches):
            under_way.append((batch, self.pool.submit(read, batch)))
            if len(under_way) > 2 * self.workers:
                done, future = under_way.popleft()
                yield done, future.result()
        while under_way:
            done, future = under_way.popleft()
            yield done, future.result()
