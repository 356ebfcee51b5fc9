"""Comparisons whose runs are forks of one process that imported everything, so that a run takes a second.

Called as ``compare_child.py FOLDER SCENARIO``; prints one JSON object. Like the real processes of
``medssl.comparison.jobs`` the forks hold the lock, end with their parent and write a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from commands import labeled

from medssl import cli
from medssl.comparison import jobs as processes
from medssl.comparison.process import end_with_parent
from medssl.data.store.store import Store
from medssl.encoders.resenc import ResEnc
from medssl.encoders.weights import save_encoder
from medssl.types import Card, Imported, Preprocess
from medssl.types.provenance import Provenance

RESENC = "medssl.encoders.resenc.ResEnc"
ENCODER = {"in_channels": 1, "ndim": 3, "channels": (4, 8), "strides": ((1, 1, 1), (2, 2, 2)), "blocks": (1, 1)}


class Forked:
    """What ``subprocess.Popen`` is to the code under test."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forked(job: processes.Job, slot: int, at_once: int, lock) -> Forked:
    parent = os.getpid()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return Forked(child)
    code = 99
    try:
        for number in processes.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        end_with_parent(parent)
        code = next((found for words in job.commands if (found := cli.main(list(words)))), 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


processes.start = forked


def made(folder: Path) -> Path:
    """Labeled volumes, index, store, and two encoders that saw the training subjects."""
    below = folder / "data"
    labeled.volumes(below / "scans")
    file = labeled.indexed(below / "scans", below / "index.sqlite", key=folder / "key")
    labeled.stored(file, below / "store", Preprocess(foreground_crop=False, orientation=None))
    store = Store.open(below / "store")
    for number, name in enumerate(("first", "second")):
        torch.manual_seed(number)
        card = Card(
            Imported(RESENC, ENCODER), store.preprocess, None, "digest",
            Provenance(store.subjects_of_split("train")), 7, {},
        )  # fmt: skip
        save_encoder(below / name, ResEnc(**ENCODER), card)
    return below


def words(below: Path, out: Path, *encoders: str, **more: str) -> list[str]:
    given = {
        "config": "segment_3d_small", "store": below / "store", "index": below / "index.sqlite", "out": out,
        "labels": "[2]", "runs": "2", "data.view.size": "[16,16,8]", "training.steps": "6",
        "training.output.validate_every": "3", "training.output.checkpoint_every": "1", "data.workers": "0",
        "optimizer.learning_rate": "0.01", "jobs": "1",
    } | more  # fmt: skip
    return ["compare", *encoders, *(f"--{key}={value}" for key, value in given.items())]


def command(below: Path, out: Path, *encoders: str, kill_when=None, number: int = signal.SIGKILL, **more: str) -> int:
    """The verb in a process of its own, which gets a signal as soon as ``kill_when`` holds."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = cli.main(words(below, out, *encoders, **more))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while kill_when is not None and os.waitpid(child, os.WNOHANG)[0] == 0:
        if kill_when():
            os.kill(child, number)
            break
        time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 98  # it was done before the signal


def kills(below: Path) -> dict[str, object]:
    """Killed three times at different moments and stopped once by a signal, then finished."""
    straight, broken = below / "straight", below / "broken"
    spark = str(below / "first")

    def there(pattern: str, count: int = 1):
        return lambda: len(list(broken.glob(pattern))) >= count

    codes = [command(below, straight, spark)]
    codes += [
        command(below, broken, spark, kill_when=there("runs/*/*/checkpoints/last.pt")),  # while it trains
        command(below, broken, spark, kill_when=there("runs/*/*/test/finished.jsonl")),  # while it scores
        command(below, broken, spark, kill_when=there("runs/*/*/test/summary.json", 2)),  # between two runs
        command(below, broken, spark, kill_when=there("runs/*/*/test/summary.json", 3), number=signal.SIGTERM),
    ]
    done = len(list(broken.glob("runs/*/*/test/summary.json")))
    codes += [command(below, broken, spark)]
    return {"codes": codes, "done": done}


def failures(below: Path) -> dict[str, object]:
    """One arm's weights are damaged; then both arms fail; then a table is edited; then another encoder comes along."""
    out = below / "out"
    (below / "second/encoder.safetensors").write_bytes(b"damaged")
    two = ["spark=" + str(below / "first"), "broken=" + str(below / "second")]
    codes = [command(below, out, *two, runs="1")]
    codes += [command(below, below / "all", two[1], **{"data.view.size": "[15,16,8]"}, runs="1")]
    text = (out / "runs.csv").read_text()
    (out / "runs.csv").write_text(text.replace("scratch,2,0,,dice,0.", "scratch,2,0,,dice,1."))
    codes += [command(below, out, two[0], runs="1", labels="[0.3,2]")]  # a share of 6 subjects
    codes += [command(below, out, two[0], runs="1", **{"training.steps": "7"})]
    return {"codes": codes, "same": (out / "runs.csv").read_text() == text}


def fair(below: Path) -> dict[str, object]:
    """Two pretrainings of one arm, an oracle and own rates, killed on the way; then weights of another program."""
    out, spark = below / "fair", f"spark={below / 'first'},{below / 'second'}"
    shutil.copy(below / "first/encoder.safetensors", below / "other.safetensors")
    description = {"weights": "other.safetensors", "encoder": {"class_path": RESENC, "init_args": ENCODER}}
    (below / "other.yaml").write_text(json.dumps(description))
    more = {
        "tune.learning_rates": "[0.01,0.003]", "oracle": "true", "training.steps": "3", "labels": "[2]",
        "training.precision": "auto",
    }  # fmt: skip

    def there(pattern: str):
        return lambda: bool(list(out.glob(pattern)))

    codes = [
        command(below, out, spark, kill_when=there("oracles/oracle/checkpoints/last.pt"), **more),
        command(below, out, spark, kill_when=there("runs/*/lr0.003/2-0/checkpoints/last.pt"), **more),
        command(below, out, spark, kill_when=there("runs/*/lr0.003/2-0/tuning.json"), number=signal.SIGTERM, **more),
        command(below, out, spark, **more),
    ]
    before = (out / "runs.csv").read_text()
    codes += [command(below, out, spark, against=f"other={below / 'other.yaml'}", **more)]
    codes += [command(below, out, spark, **more | {"tune.learning_rates": "[0.01,0.001]"})]
    return {"codes": codes, "before": before}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    result = {"kills": kills, "failures": failures, "fair": fair}[sys.argv[2]](made(place))
    print(json.dumps(result))
