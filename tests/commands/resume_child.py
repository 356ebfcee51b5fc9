"""Trains without a break, and again with kills at chosen moments, in forks of one process that imported everything.

Called as ``resume_child.py FOLDER NORM``; prints one JSON object: exit codes, and digests of both last checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from commands import toys

from medssl import cli
from medssl.training import checkpoint, metrics_log
from medssl.training import health_monitor as health


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def in_accumulation(call: int, number: int = signal.SIGKILL) -> None:
    """A signal when the forward pass number ``call`` begins: an even one is the second micro-batch of a step."""
    forward, seen = toys.ToyObjective.forward, []

    def faulty(self, batch, step):
        seen.append(0)
        if len(seen) == call:
            os.kill(os.getpid(), number)
        return forward(self, batch, step)

    toys.ToyObjective.forward = faulty


def while_writing(call: int) -> None:
    """A kill when half of the checkpoint number ``call`` is on the disk."""
    save, seen = torch.save, []

    def faulty(state, file):
        seen.append(0)
        save(state, file)
        if len(seen) == call:
            file.truncate(file.tell() // 2)
            die()

    checkpoint.torch.save = faulty


def after_the_log(step: int) -> None:
    """A kill when the row of a step is written, its checkpoint not."""
    write = metrics_log.MetricsLog.on_step

    def faulty(self, loop, record):
        write(self, loop, record)
        if record.step == step:
            die()

    metrics_log.MetricsLog.on_step = faulty


def forked(run: Path, store: Path, norm: str, fault=lambda: None) -> int:
    """One run of the verb in a process of its own; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            fault()
            recipe = str(Path(__file__).with_name("toys.yaml"))
            words = ["--config", recipe, "--store", str(store), "--run", str(run)]
            steps = ["--training.steps", "12", "--data.workers", "2", "--encoder.norm", norm]
            health.WINDOW = 14  # of the 48 samples, no multiple of a step's 4
            code = cli.main(["pretrain", *words, *steps, "--training.output.health_every", "5"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(run: Path) -> str:
    """Digest of every number of the last checkpoint: weights, statistics, optimizer, smoothed loss, embeddings."""
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    health = state["listeners"].get("health")  # fine-tuning has none
    watched = dict(enumerate(health["window"])) if health else {}
    numbers = {**state["objective"], **{f"window {i}": x for i, x in watched.items()}}
    numbers |= {f"{i}.{k}": v for i in moments for k, v in moments[i].items()}
    found = hashlib.sha256(repr((state["progress"], state["scaler"])).encode())
    for name in sorted(numbers):
        found.update(name.encode() + numbers[name].numpy().tobytes())
    return found.hexdigest()


def main(folder: Path, norm: str) -> None:
    faults = [
        lambda: in_accumulation(8),  # step 4, two checkpoints passed
        lambda: while_writing(2),  # steps 3-4 are repeated, the checkpoint of step 6 is cut off
        lambda: after_the_log(7),
        lambda: in_accumulation(4, signal.SIGTERM),  # the step is finished and saved
    ]
    store = toys.toy_store(folder / "store")
    straight, broken = folder / "straight", folder / "broken"
    codes = [forked(straight, store, norm)]
    codes += [forked(broken, store, norm, fault) for fault in faults]
    codes += [forked(broken, store, norm), forked(broken, store, norm)]
    watched = len(torch.load(straight / "checkpoints/last.pt", weights_only=True)["listeners"]["health"]["window"])
    print(json.dumps({"codes": codes, "straight": digest(straight), "broken": digest(broken), "watched": watched}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
