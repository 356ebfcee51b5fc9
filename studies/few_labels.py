"""The first study: does SparK help a network that is then fine-tuned with a few labels?

Everything is done through the command line of medssl. Each finished run is one row of a table; a study that was stopped
goes on where it was, and rows that are there are not computed again.

    python studies/few_labels.py hippocampus --data DATA --work WORK --rows docs/results/few_labels_hippocampus.csv
    python studies/few_labels.py ultrasound  --data DATA --work WORK --rows docs/results/few_labels_ultrasound.csv
    ... --twice    is the twin trained to its end?

Beside the rows, NAME_cases.csv holds what each run says of each test subject (numbered, not named) and NAME_curves.csv
its validation over steps: all that the summary needs.

Learning rates are chosen for each arm by the validation metric alone, at the second number of labels with seed 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePosixPath

from datasets import medssl, prepare

from medssl.data.index.scan_index import Index
from medssl.metrics.cases import read_classification, read_segmentation, scan_scores

COLUMNS = (
    "arm", "labels", "seed", "learning_rate", "steps", "best_step", "validation", "gain_last_third", "metric", "test",
    "low", "high", "seconds",
)  # fmt: skip
RUN = ("arm", "labels", "seed", "learning_rate")
CASES, CURVES = (*RUN, "case", "truth", "scores"), (*RUN, "step", "validation")
ARMS = ("pretrained", "scratch")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Study:
    """What is pretrained on a data set, and what is compared on it."""

    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    labels: tuple[int | None, ...]
    steps: tuple[int, ...]  # of fine-tuning, for each number of labels
    rates: tuple[float, ...]
    metric: str
    all_labels: int  # how many subjects None stands for
    runs: str = "runs"  # folder of the fine-tunings


STUDIES = {
    "hippocampus": Study(
        pretrain=(
            "--config", "spark_3d_small", "--objective.view.size", "[40,56,40]", "--training.batch_size", "2",
            "--training.steps", "4000", "--training.precision", "bf16", "--training.output.keep_every", "1000",
            "--training.output.checkpoint_every", "500", "--training.output.picture_every", "1000",
        ),
        finetune=(
            "--config", "segment_3d_small", "--data.view.size", "[40,56,40]", "--training.precision", "bf16",
            "--training.output.validate_every", "40",
        ),
        labels=(2, 4, 8),
        steps=(800, 800, 800),
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
        metric="dice",
        all_labels=80,
    ),
    "ultrasound": Study(
        pretrain=(
            "--config", "spark_2d_small", "--encoder.in_channels", "3", "--objective.view.size", "[128,128]",
            "--objective.view.area", "null",
        "--objective.view.scale", "[0.8,1.0]", "--training.steps", "2000", "--training.precision", "bf16",
            "--training.output.checkpoint_every", "250",
        ),
        finetune=(
            "--config", "classify_2d_small", "--training.precision", "bf16", "--training.output.validate_every", "20",
        ),
        labels=(24, None),
        steps=(400, 1200),
        rates=(3e-4, 1e-3, 3e-3),
        metric="auroc",
        all_labels=239,
    ),
}  # fmt: skip


def main() -> None:
    """Does what is missing of one study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--twice", action="store_true", help="is the twin trained to its end? twice its steps")
    given = parser.parse_args()
    study, work = STUDIES[given.study], given.work / given.study
    prepare(given.study, given.data, work)
    medssl("pretrain", *study.pretrain, "--store", str(work / "store"), "--run", str(work / "pretrained"))
    reference = study.labels[min(1, len(study.labels) - 1)]
    tuning = [(arm, reference, 0, rate) for arm, rate in product(ARMS, study.rates)]
    complete(study, work, given.rows, tuning, given.jobs)
    best = {arm: chosen_rate(given.rows, arm, reference) for arm in ARMS}
    print("learning rates chosen by validation:", best, flush=True)
    if given.twice:
        longer = replace(study, steps=tuple(2 * steps for steps in study.steps), runs="twice")
        again = [("scratch", count, seed, best["scratch"]) for seed, count in product(SEEDS, study.labels)]
        complete(longer, work, given.rows.with_name(f"{given.rows.stem}_twice.csv"), again, given.jobs)
        return
    runs = [(arm, count, seed, best[arm]) for seed, count, arm in product(SEEDS, study.labels, ARMS)]
    complete(study, work, given.rows, runs, given.jobs)


def complete(study: Study, work: Path, rows: Path, runs: list[tuple[str, int | None, int, float]], jobs: int) -> None:
    """Does the runs that have no row yet, ``jobs`` at a time."""
    there = {key(row) for row in read(rows)}
    missing = [run for run in dict.fromkeys(runs) if tuple(map(str, run)) not in there]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, study, work, run, threads) for run in missing]):
            row = done.result()
            run = (row["arm"], row["labels"], row["seed"], row["learning_rate"])
            detail(study, work, rows, run)
            append(rows, COLUMNS, [row])  # last: a run with a row is complete
            print(row, flush=True)


def one(study: Study, work: Path, run: tuple[str, int | None, int, float], threads: str) -> dict[str, object]:
    """Fine-tunes, evaluates on the test subjects, and returns the row."""
    arm, count, seed, rate = run
    folder = work / study.runs / f"{arm}-{count}-{seed}-{rate:g}"
    log, started = folder.parent / f"{folder.name}.log", time.monotonic()
    medssl(
        "finetune", *study.finetune, "--store", str(work / "store"), "--run", str(folder),
        "--pretrained", str(work / "pretrained"), *(["--from-scratch"] if arm == "scratch" else []),
        *(["--labels", str(count)] if count else []), "--training.seed", str(seed),
        "--training.steps", str(study.steps[study.labels.index(count)]),
        "--optimizer.learning_rate", str(rate), threads=threads, log=log,
    )  # fmt: skip
    medssl(
        "evaluate", str(folder), "--index", str(work / "index.sqlite"), "--out", str(folder / "test"),
        threads=threads, log=log,
    )  # fmt: skip
    points = curve(folder, study.metric)
    before = max(value for step, value in points if step <= points[-1][0] * 2 / 3)
    top_step, top = max(points, key=lambda point: point[1])
    found = json.loads((folder / "test" / "summary.json").read_text())["metrics"][study.metric]
    return dict(zip(COLUMNS, (
        *run, points[-1][0], top_step, round(top, 5), round(max(0.0, top - before), 5), study.metric,
        round(found["value"], 5), round(found["low"], 5), round(found["high"], 5), round(time.monotonic() - started),
    ), strict=True))  # fmt: skip


def chosen_rate(rows: Path, arm: str, labels: int | None) -> float:
    """The learning rate with the best validation metric."""
    own = [row for row in read(rows) if (row["arm"], row["labels"], row["seed"]) == (arm, str(labels), "0")]
    return float(max(own, key=lambda row: float(row["validation"]))["learning_rate"])


def key(row: dict[str, str]) -> tuple[str, ...]:
    """What makes a row a run of its own."""
    return tuple(row[name] for name in RUN)


def read(rows: Path) -> list[dict[str, str]]:
    """The rows that are there."""
    if not rows.exists():
        return []
    with rows.open(newline="") as stream:
        return list(csv.DictReader(stream))


def append(table: Path, columns: tuple[str, ...], new: list[dict[str, object]], run: tuple[str, ...] = RUN) -> None:
    """Adds rows in the place of those of the same runs: the whole table is written beside and renamed."""
    table.parent.mkdir(parents=True, exist_ok=True)
    fresh = [{name: str(row[name]) for name in columns} for row in new]
    runs = {tuple(row[name] for name in run) for row in fresh}
    part = table.with_suffix(".part")
    with part.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        kept = [row for row in read(table) if tuple(row[name] for name in run) not in runs]
        writer.writerows(kept + fresh)
    part.replace(table)


def detail(study: Study, work: Path, rows: Path, run: tuple[object, ...]) -> None:
    """Keeps what a run says of every test subject, and its validation over steps."""
    arm, count, seed, rate = run
    folder, named = work / study.runs / f"{arm}-{count}-{seed}-{rate:g}", dict(zip(RUN, run, strict=True))
    place = {scan_id: number for number, scan_id in enumerate(test_order(work))}
    if study.metric == "dice":
        table = read_segmentation(folder / "test/cases.csv")
        cases = [(place[scan_id], "", repr(value)) for scan_id, value in scan_scores(table).items()]
    else:
        answers, _ = read_classification(folder / "test/cases.csv")
        cases = [(place[row.scan_id], row.truth, " ".join(map(repr, row.probabilities))) for row in answers]
    append(
        rows.with_name(f"{rows.stem}_cases.csv"), CASES,
        [named | {"case": case, "truth": truth, "scores": scores} for case, truth, scores in sorted(cases)],
    )  # fmt: skip
    append(
        rows.with_name(f"{rows.stem}_curves.csv"), CURVES,
        [named | {"step": step, "validation": value} for step, value in curve(folder, study.metric)],
    )  # fmt: skip


def test_order(work: Path) -> list[str]:
    """Test scans in the order of the table of splits, which depends on the names of the files alone."""
    with (work / "split.csv").open(newline="") as stream:
        names = [row["name"] for row in csv.DictReader(stream) if row["split"] == "test"]
    with Index.open(work / "index.sqlite") as opened:
        found = {PurePosixPath(scan.source.parts[0].path).name: scan.scan_id for scan in opened.scans(split="test")}
    return [found[name] for name in names]


def curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Step and validation measure of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[f"validation_{metric}"]) for row in rows if f"validation_{metric}" in row]


if __name__ == "__main__":
    main()
