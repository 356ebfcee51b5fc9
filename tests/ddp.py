"""Two gloo processes for tests: ``run_two(function, *arguments)`` returns what the function returned on each.

The pair is started once per test session and kept, because importing torch costs more than most tests. Functions must
stand at the top of a module; arguments and results are pickled. A pair that hangs is ended, the next call starts anew.
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

SECONDS = 120


def run_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Runs ``function(*arguments)`` in both processes, with torch's seed set to 0; returns both results in rank order.

    Raises:
        RuntimeError: The function failed in a process; the message holds that process's traceback.
    """
    module = (function.__module__, inspect.getfile(function))
    job = pickle.dumps((function.__name__, arguments))
    pipes = [pipe for _, pipe in _pair()]
    for pipe in pipes:
        pipe.send_bytes(pickle.dumps((module, job)))
    answers: dict[int, tuple[bool, Any]] = {}
    patience = SECONDS
    while len(answers) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in answers], patience)
        answers |= {pipes.index(pipe): pickle.loads(pipe.recv_bytes()) for pipe in ready}
        if not ready:
            _end()
            break
        if not all(fine for fine, _ in answers.values()):
            patience = 5  # the other process may wait for the failed one
    failures = [f"process {rank}: {result}" for rank, (fine, result) in sorted(answers.items()) if not fine]
    if failures or len(answers) < len(pipes):
        raise RuntimeError("\n".join(failures) or f"no answer within {SECONDS} s")
    return [answers[rank][1] for rank in range(len(pipes))]


@cache
def _pair() -> list[tuple[Any, Any]]:
    spawn = multiprocessing.get_context("spawn")
    store = Path(tempfile.mkdtemp(prefix="two-processes-")) / "store"
    pair = []
    for rank in range(2):
        here, there = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(rank, store, there), daemon=True)
        process.start()
        pair.append((process, here))
    return pair


def _end() -> None:
    for process, pipe in _pair():
        process.kill()
        process.join()
        pipe.close()
    _pair.cache_clear()


def _serve(rank: int, store: Path, pipe: Any) -> None:
    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS / 2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    while True:
        try:
            module, job = pickle.loads(pipe.recv_bytes())
        except EOFError:  # the tests are over
            return
        try:
            _load(*module)
            name, arguments = pickle.loads(job)
            torch.manual_seed(0)
            answer = (True, getattr(sys.modules[module[0]], name)(*arguments))
        except Exception:  # noqa: BLE001  whatever it is, the other side shall hear of it
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))


def _load(name: str, file: str) -> None:
    """Puts a test module where pickle looks for it, whatever road pytest imported it by."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
