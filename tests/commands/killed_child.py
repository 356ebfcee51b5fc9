"""One verb without a break, and again with kills at random moments, in forks of one process that imported everything.

Called as ``killed_child.py FOLDER VERB KILLS SEED``; prints one JSON object: how often it was killed and by when, exit
codes, and a digest of everything that each road left.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from commands import compare_child, toys
from commands.resume_child import digest as checkpoint_digest
from data.make_scans import Series, noise, write_nifti, write_picture, write_series

from medssl import cli
from medssl.commands import stages

Road = tuple[list[str], Callable[[], str]]  # words behind medssl, and what they left


def until_free(words: list[str], after: float | None = None) -> tuple[int, float]:
    """As ``forked``, again while what the killed parent had started still saves its work (exit code 2)."""
    for _ in range(60):
        code, seconds = forked(words, after)
        if code != 2:
            break
        time.sleep(1.0)
    return code, seconds


def forked(words: list[str], after: float | None = None) -> tuple[int, float]:
    """Exit code (negative: a signal) and seconds of one command, which is killed ``after`` so many seconds."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setpgid(0, 0)
            code = cli.main(words)
        except BaseException:  # noqa: BLE001 (the exit code alone would not say why)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while after is not None and time.monotonic() - started < after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - started
        time.sleep(0.002)
    if after is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - started


def files_digest(folder: Path, *, without: tuple[str, ...] = ()) -> str:
    """Digest of all files below a folder by name and bytes."""
    state = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if not any(part in name for part in without):
            state.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return state.hexdigest()


def rows_digest(file: Path, *queries: str) -> str:
    """Digest of what queries to a table find."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return hashlib.sha256(repr([connection.execute(query).fetchall() for query in queries]).encode()).hexdigest()


# --- the verbs: each gives a road into a folder of its own


def scans(folder: Path) -> Path:
    """A mixed folder: series, NIfTI, a pair of image and mask, pictures, text, a damaged file."""
    place = folder / "scans"
    for number in range(4):
        write_series(place / f"series{number}", Series(uid=f"1.2.3.{number}", seed=number))
    for number in range(60):
        write_nifti(place / "images" / f"n{number:02d}.nii.gz", noise((9, 8, 7), seed=number))
        write_nifti(place / "labels" / f"n{number:02d}.nii.gz", noise((9, 8, 7), np.uint8, seed=number, high=2))
        write_picture(place / "pictures" / f"p{number:02d}.png", noise((9, 8), np.uint8, seed=number, high=255))
    (place / "notes.txt").write_text("text")
    (place / "images" / "broken.nii.gz").write_bytes(b"no gzip")
    key = folder / "keys" / "key"
    key.parent.mkdir()
    key.write_text("0" * 64)
    key.chmod(0o600)
    return place


def index(folder: Path, out: Path) -> Road:
    file, place = out / "i.sqlite", folder / "scans"
    words = [
        "index", str(place), "--index", str(file), "--files.key", str(folder / "keys/key"), "--files.modality", "MR",
        "--label.masks", "images=labels", "--subject", "(n[0-9]+)",
    ]  # fmt: skip

    def left() -> str:
        parts = "SELECT parts.*, files.path FROM parts JOIN files ON files.id = parts.file ORDER BY 1, 2, 3"
        shown = parts.replace("parts.*", "scan_id, role, number, frame")
        return rows_digest(
            file,
            "SELECT * FROM scans ORDER BY scan_id",
            shown,
            "SELECT path, size, modified_ns, state, reason, series FROM files ORDER BY path",
        )

    return words, left


def cache(folder: Path, out: Path) -> Road:
    store = out / "store"
    words = ["cache", str(folder / "made/i.sqlite"), str(store), "--workers", "2"]

    def left() -> str:
        table = rows_digest(store / "records.sqlite", "SELECT * FROM scans ORDER BY scan_id", "SELECT * FROM failures")
        return table + files_digest(store, without=(".lock", "records.sqlite"))

    return words, left


def pretrain(folder: Path, out: Path) -> Road:
    recipe = str(Path(__file__).with_name("toys.yaml"))
    run = out / "run"
    words = ["pretrain", "--config", recipe, "--store", str(folder / "store"), "--run", str(run)]
    words += ["--training.steps", "30", "--training.output.checkpoint_every", "3", "--data.workers", "1"]
    return words, lambda: checkpoint_digest(run) + log(run) + files_digest(run, without=CHANGING)


def finetune(folder: Path, out: Path) -> Road:
    run = out / "run"
    words = [
        "finetune", "--config", "segment_3d_small", "--store", str(folder / "data/store"), "--run", str(run),
        "--pretrained", str(folder / "data/first"), "--data.view.size", "[16,16,8]", "--training.steps", "12",
        "--labels", "3", "--training.output.validate_every", "3", "--training.output.checkpoint_every", "2",
        "--training.output.log_every", "1", "--data.workers", "0",
    ]  # fmt: skip
    return words, lambda: checkpoint_digest(run) + log(run) + files_digest(run, without=CHANGING)


def compare(folder: Path, out: Path) -> Road:
    words = compare_child.words(folder / "data", out / "study", str(folder / "data/first"))

    def left() -> str:
        with (out / "study/runs.csv").open(newline="") as stream:
            rows = [row | {"minutes": ""} for row in csv.DictReader(stream)]
        names = ("cases.csv", "efficiency.svg")
        return hashlib.sha256(repr(rows).encode()).hexdigest() + "".join(
            hashlib.sha256((out / "study" / name).read_bytes()).hexdigest() for name in names
        )

    return words, left


def stages_road(folder: Path, out: Path) -> Road:
    words = [
        "stages", "--config=global_local_3d_small", f"--store={folder / 'data/store'}", f"--out={out / 'all'}",
        "--settings", json.dumps({
            "*.training.steps": 6, "*.training.batch_size": 4, "*.data.workers": 0,
            "*.training.output.picture_every": 100, "*.training.output.checkpoint_every": 2,
            "tuned.data.view.size": [16, 16, 8],
        }),
    ]  # fmt: skip

    def left() -> str:
        return "".join(
            checkpoint_digest(run) for run in sorted(path for path in (out / "all").iterdir() if path.is_dir())
        )

    return words, left


CHANGING = ("checkpoints", ".lock", "events.out", "metrics.jsonl", "pictures")  # hold times, or are compared by numbers
ROADS = {"index": index, "cache": cache, "pretrain": pretrain, "finetune": finetune, "compare": compare}
ROADS |= {"stages": stages_road}


def log(run: Path) -> str:
    """Digest of the rows of a log but for their times."""
    times = {"seconds", "waiting", "samples_per_second", "time"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key not in times} for row in rows]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def here(words: list[str]) -> int:
    """A stage as a fork that ends with its parent, as the real process does."""
    from medssl.comparison.process import end_with_parent

    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            end_with_parent(parent)
            code = cli.main(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def prepare(folder: Path, verb: str) -> None:
    """What the verb starts from."""
    if verb == "pretrain":
        toys.toy_store(folder / "store")
    elif verb in ("index", "cache"):
        scans(folder)
        if verb == "cache":
            assert forked([*index(folder, folder / "made")[0], "--files.workers", "0"])[0] == 0
    else:
        compare_child.made(folder)
    stages.run = here
    stages.read = lambda words: (0, "")
    stages.check = lambda *_: 0


def main(folder: Path, verb: str, kills: int, seed: int) -> None:
    prepare(folder, verb)
    words, left = ROADS[verb](folder, folder / "straight")
    (folder / "straight").mkdir()
    code, seconds = forked(words)
    assert code == 0, code
    expected = left()
    generator, moments, tries = random.Random(seed), [], 0
    attempt = folder / "broken0"
    while len(moments) < kills:
        attempt.mkdir(exist_ok=True)
        words, left = ROADS[verb](folder, attempt)
        after = generator.uniform(0.0, seconds)
        code, _ = until_free(words, after)
        tries += 1
        if code == -signal.SIGKILL:
            moments.append(round(after / seconds, 3))
        else:  # it was done before: another one begins
            assert code == 0, code
            assert left() == expected, f"finished after {len(moments)} kills with another result"
            attempt = folder / f"broken{tries}"
    words, left = ROADS[verb](folder, attempt)
    attempt.mkdir(exist_ok=True)
    code, _ = until_free(words)
    again, _ = until_free(words)
    print(json.dumps({"codes": [code, again], "kills": len(moments), "moments": moments, "same": left() == expected}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
