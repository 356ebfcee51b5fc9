"""Shared parts of the proofs: pretrainings, probes and comparisons of a data set, with their rows and their time.

A proof is a list of ``medssl pretrain``, ``medssl probe`` and ``medssl compare`` commands. Everything goes on where it
was stopped. A row is appended to a table for each run that ends; rows that are there are kept. ``--measure`` trains
each part for a few steps first, prints seconds per step and predicts the whole time; nothing else is started.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import medssl, prepare

TIMED, COUNTED = 12, 8  # steps of a measurement, and those of them that count
POLL_S = 20.0
RUN_COLUMNS = ("part", "arm", "labels", "run", "setting", "measure", "test", "validation", "steps", "minutes")
PROBE_COLUMNS = ("part", "labels", "seed", "probe", "measure", "value", "low", "high")
LOSS_COLUMNS = ("part", "steps", "loss", "chance", "minutes")
TABLES = ("summary.md", "summary.json", "cases.csv", "efficiency.svg", "tuning.csv")


@dataclass(frozen=True)
class Pretraining:
    """A pretraining: words of ``medssl pretrain``, and its steps."""

    words: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class Comparison:
    """A comparison of pretrainings of one encoder.

    Attributes:
        arms: Names of pretrainings.
        words: Words of ``medssl compare``: recipe, head, optimizer.
        labels: Numbers of labeled subjects.
        steps: Optimizer steps of each fine-tuning.
        runs: Runs for each arm and number of labels.
        oracle_steps: Steps of the oracle's encoder; 0 trains none.
        tune: Words of a grid of learning rates; empty compares at one rate.
        settings: Settings of the grid beside the recipe.
        into: Comparison whose folder it shares, and whose runs it takes; "" has a folder of its own.
    """

    arms: tuple[str, ...]
    words: tuple[str, ...]
    labels: tuple[int, ...]
    steps: int
    runs: int = 5
    oracle_steps: int = 0
    tune: tuple[str, ...] = ()
    settings: int = 0
    into: str = ""

    def trainings(self) -> int:
        """Fine-tunings in all, at most: every arm and scratch; with a grid, also those that choose and at own rates."""
        arms = (len(self.arms) + 1 + bool(self.oracle_steps)) * len(self.labels)
        shared = 0 if self.into else self.runs
        return arms * (shared + (self.settings + self.runs - 1 if self.tune else 0))


@dataclass(frozen=True)
class Probing:
    """Probes of frozen encoders, each beside random weights: words of ``medssl probe``."""

    encoders: tuple[str, ...]
    words: tuple[str, ...]
    labels: tuple[int | None, ...] = (None,)
    seeds: int = 1


@dataclass(frozen=True)
class Proof:
    """All of a data set."""

    data: str
    pretrainings: dict[str, Pretraining]
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    probings: dict[str, Probing] = field(default_factory=dict)

    def scaled(self, factor: int) -> Proof:
        """The same with so many times the steps."""
        return replace(
            self,
            pretrainings={name: replace(one, steps=factor * one.steps) for name, one in self.pretrainings.items()},
            comparisons={
                name: replace(one, steps=factor * one.steps, oracle_steps=factor * one.oracle_steps)
                for name, one in self.comparisons.items()
            },
        )

    def only(self, names: list[str]) -> Proof:
        """Some parts, with the pretrainings that they need.

        Raises:
            SystemExit: There is no such part.
        """
        parts = {**self.pretrainings, **self.comparisons, **self.probings}
        if unknown := [name for name in names if name not in parts]:
            message = f"no part {unknown[0]!r}; there are {', '.join(parts)}"
            raise SystemExit(message)
        comparisons = {name: one for name, one in self.comparisons.items() if name in names}
        probings = {name: one for name, one in self.probings.items() if name in names}
        needed = {name for one in comparisons.values() for name in one.arms}
        needed |= {name for one in probings.values() for name in one.encoders} | {*names}
        kept = {name: one for name, one in self.pretrainings.items() if name in needed}
        return Proof(self.data, kept, comparisons, probings)


@dataclass(frozen=True)
class Place:
    """Where a proof is made.

    Attributes:
        work: Folder of index, store and runs.
        out: Folder of the tables, which are committed.
        jobs: Trainings at the same time.
        device: Words of every training: precision and accelerator.
    """

    work: Path
    out: Path
    jobs: int = 1
    device: tuple[str, ...] = ("--training.precision", "auto")

    @property
    def store(self) -> Path:
        """The store."""
        return self.work / "store"

    def pretrained(self, name: str) -> Path:
        """Run folder of a pretraining."""
        return self.work / "pretrained" / name


def main(proof: Proof, description: str, words: list[str] | None = None, *, folds: int = 1) -> None:
    """Reads the words of a proof's program, and does what is missing."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of index, store and runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--only", nargs="+", default=[], help="names of parts")
    parser.add_argument("--measure", action="store_true", help="print seconds per step and the whole time, no more")
    parser.add_argument("--gpu", action="store_true", help="ten times the steps, on a GPU")
    parser.add_argument("--fold", type=int, nargs="+", default=[0], help=f"which test subjects, 0 to {folds - 1}")
    given = parser.parse_args(words)
    proof = proof.only(given.only) if given.only else proof
    proof = proof.scaled(10) if given.gpu else proof
    for fold in given.fold:
        if not 0 <= fold < folds:
            parser.error(f"--fold is 0 to {folds - 1}")
        part = f"fold{fold}" if folds > 1 else "runs"
        place = Place(given.work / part, given.out / part if folds > 1 else given.out, given.jobs)
        prepare(proof.data, given.data, place.work, fold)
        (measure if given.measure else conduct)(proof, place)


# --- training


def conduct(proof: Proof, place: Place) -> None:
    """Does what is missing of all parts."""
    with ThreadPoolExecutor(place.jobs) as pool:
        jobs = {pool.submit(pretrain, place, name, one): name for name, one in proof.pretrainings.items()}
        for job in as_completed(jobs):
            append(place.out / "pretrainings.csv", LOSS_COLUMNS, [job.result()], ("part",))
    for name, probing in proof.probings.items():
        probe(place, name, probing)
    for name, comparison in proof.comparisons.items():
        compare(place, name, comparison)


def pretrain(place: Place, name: str, one: Pretraining) -> dict[str, object]:
    """One pretraining, with its log beside it; returns its row."""
    run = place.pretrained(name)
    medssl(
        "pretrain", *one.words, *place.device, "--store", str(place.store), "--run", str(run),
        "--training.steps", str(one.steps), "--training.output.checkpoint_every", str(max(1, min(250, one.steps))),
        threads="1", log=run.with_suffix(".log"),
    )  # fmt: skip
    rows = logged(run)
    last = rows[-max(1, len(rows) // 10) :]
    seconds = statistics.median(row["seconds"] for row in rows if "seconds" in row)
    return {
        "part": name, "steps": rows[-1]["step"], "loss": round(statistics.mean(row["loss"] for row in last), 4),
        "chance": round(rows[0]["chance"], 4) if "chance" in rows[0] else "",
        "minutes": round(seconds * rows[-1]["step"] / 60, 1),
    }  # fmt: skip


def compare(place: Place, name: str, one: Comparison) -> None:
    """One comparison; its rows and tables are copied while it runs."""
    folder, ended = place.work / "compare" / (one.into or name), threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_S):
            copy_rows(folder, place.out, folder.name)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        medssl(*compare_words(place, name, one), threads="1")
    finally:
        ended.set()
        follower.join()
        copy_rows(folder, place.out, folder.name)
    for table in TABLES:
        if (folder / table).exists():
            shutil.copyfile(folder / table, place.out / f"{folder.name}_{table}")


def compare_words(place: Place, name: str, one: Comparison) -> list[str]:
    """Words of ``medssl compare``."""
    arms = [f"{arm}={place.pretrained(arm)}" for arm in one.arms]
    oracle = ("--oracle", "--oracle_steps", str(one.oracle_steps)) if one.oracle_steps else ()
    validate = max(1, one.steps // 6)
    return [
        "compare", *arms, *one.words, *place.device, "--labels", ",".join(map(str, one.labels)), "--runs",
        str(one.runs), "--training.steps", str(one.steps), "--training.output.validate_every", str(validate),
        "--training.output.checkpoint_every", str(validate), *oracle, *one.tune, "--jobs", str(place.jobs),
        "--store", str(place.store), "--index", str(place.work / "index.sqlite"),
        "--out", str(place.work / "compare" / (one.into or name)),
    ]  # fmt: skip


def probe(place: Place, name: str, one: Probing) -> None:
    """Probes of every encoder and of random weights, at each number of labels and seed."""
    table = place.out / "probes.csv"
    done = {(row["part"], row["labels"], row["seed"]) for row in read(table)}
    for encoder in one.encoders:
        for labels in one.labels:
            for seed in range(one.seeds):
                for scratch in (False, True):
                    part = f"{name}:{'random ' if scratch else ''}{encoder}"
                    if (part, str(labels), str(seed)) in done:
                        continue
                    out = place.work / "probes" / f"{name}-{encoder}{'-random' if scratch else ''}"
                    words = ["--from-scratch"] if scratch else []
                    words += [] if labels is None else ["--labels", str(labels)]
                    medssl(
                        "probe", str(place.pretrained(encoder)), *one.words, *words, "--seed", str(seed), "--store",
                        str(place.store), "--out", str(out), threads="1", log=out.with_suffix(".log"),
                    )  # fmt: skip
                    append(table, PROBE_COLUMNS, probe_rows(out, part, labels, seed), PROBE_COLUMNS[:4])


def probe_rows(out: Path, part: str, labels: int | None, seed: int) -> list[dict[str, object]]:
    """One row for each probe and its first measure of several."""
    rows = []
    for one in json.loads((out / "probe.json").read_text())["probes"]:
        name, measure = next(iter(one["metrics"].items()))
        values = {key: measure.get(key) for key in ("value", "low", "high")}
        shown = {key: "" if value is None else round(value, 5) for key, value in values.items()}
        about = {"part": part, "labels": labels, "seed": seed, "probe": one["probe"], "measure": name}
        rows.append(about | shown)
    return rows


# --- time


def measure(proof: Proof, place: Place) -> float:
    """Prints seconds per step of every part, and returns the hours that all of it is predicted to take."""
    timed, total = place.work / "timed", 0.0
    shutil.rmtree(timed, ignore_errors=True)
    short = replace(place, work=timed)
    medssl_words = ["--store", str(place.store)]
    print(f"{'part':24} {'s a step':>9} {'s besides':>9} {'trainings':>9} {'steps':>7} {'hours':>6}")
    for name, one in proof.pretrainings.items():
        run = short.pretrained(name)
        words = ("pretrain", *one.words, *place.device, *medssl_words, "--run", str(run))
        total += predicted(name, run, words, (1, one.steps))
    for name, comparison in proof.comparisons.items():
        run = short.pretrained(name)
        start = ("--pretrained", str(short.pretrained(comparison.arms[0])), "--labels", str(comparison.labels[0]))
        words = ("finetune", *trained_words(comparison.words), *place.device, *medssl_words, "--run", str(run), *start)
        total += predicted(name, run, words, (comparison.trainings(), comparison.steps))
        if comparison.oracle_steps and not comparison.into:
            total += seconds_of(run)[0] * comparison.oracle_steps
    hours = total / place.jobs / 3600
    print(f"all, {place.jobs} at a time: about {hours:.1f} hours, without scoring test scans")
    return hours


def trained_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words of a comparison without those of scoring, which ``medssl finetune`` does not take."""
    pairs = [words[place : place + 2] for place in range(0, len(words), 2)]
    return tuple(word for pair in pairs if not pair[0].startswith("--windows.") for word in pair)


def predicted(name: str, run: Path, words: tuple[str, ...], counts: tuple[int, int]) -> float:
    """Trains for a few steps; prints and returns the seconds of so many trainings of so many steps."""
    begin = time.monotonic()
    output = ("--training.output.log_every", "1", "--training.output.validate_every", str(TIMED))
    medssl(*words, "--training.steps", str(TIMED), *output, threads="1", log=run.with_suffix(".log"))
    step, sum_of_steps = seconds_of(run)
    besides = max(0.0, time.monotonic() - begin - sum_of_steps)
    trainings, steps = counts
    seconds = trainings * (besides + steps * step)
    print(f"{name:24} {step:9.3f} {besides:9.1f} {trainings:9} {steps:7} {seconds / 3600:6.2f}", flush=True)
    return seconds


def seconds_of(run: Path) -> tuple[float, float]:
    """Median seconds of the last steps of a run, and the sum over all."""
    seconds = [row["seconds"] for row in logged(run) if "seconds" in row]
    return statistics.median(seconds[-COUNTED:]), sum(seconds)


def logged(run: Path) -> list[dict[str, float]]:
    """Rows of a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- tables


def copy_rows(folder: Path, out: Path, name: str) -> None:
    """Copies the rows of a comparison that are there, in the place of those of the same runs."""
    if rows := read(folder / "runs.csv"):
        append(out / "runs.csv", RUN_COLUMNS, [row | {"part": name} for row in rows], RUN_COLUMNS[:5])


def read(rows: Path) -> list[dict[str, str]]:
    """The rows of a table that are there."""
    if not rows.exists():
        return []
    with rows.open(newline="") as stream:
        return list(csv.DictReader(stream))


def append(table: Path, columns: tuple[str, ...], new: list[dict[str, object]], key: tuple[str, ...]) -> None:
    """Adds rows in the place of those with the same key: the whole table is written beside and renamed."""
    table.parent.mkdir(parents=True, exist_ok=True)
    fresh = [{name: str(row[name]) for name in columns} for row in new]
    keys = {tuple(row[name] for name in key) for row in fresh}
    kept = [row for row in read(table) if tuple(row[name] for name in key) not in keys]
    part = table.with_suffix(".part")
    with part.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + fresh)
    part.replace(table)
