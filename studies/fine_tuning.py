"""How is a pretrained encoder fine-tuned with 32 labels, so that it keeps what pretraining brought?

    python studies/fine_tuning.py --data DATA --work WORK --rows docs/results/fine_tuning_tiles.csv [--minutes 4]
    python studies/fine_tuning.py --rows docs/results/fine_tuning_tiles.csv --summary

Histology tiles, tumour in the center or not: SimCLR on 4,000 without labels (720 steps of 32), then
`classify_2d_small` with 16 + 16 labels in each of the ways below, five draws of the labels. The validation has 100
tiles, the test 500. Tiles are stored at 64x64. Rows are written as they come, and rows that are there are not
computed again: with --minutes it stops after the first row beyond that time, so that a machine can be shared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from datasets import medssl
from few_labels import append, read

from medssl import cli

COLUMNS = (
    "way", "seed", "steps", "validation", "test_auroc", "test_accuracy", "seconds",
)  # fmt: skip
RUN = ("way", "seed")
STEPS, DRAWS, REFERENCES = 100, 5, ("scratch", "together")
PRETRAINING = 720  # steps of 32 tiles
FIRST = 4  # ways of which all draws are done before the others
FORMER = ("--optimizer.keep=best", "--optimizer.average=0", "--optimizer.probe.start=false")
PLAIN = ("--optimizer.probe.start=false", "--optimizer.probe.floor=false")
START = ("--optimizer.probe.start=true", "--optimizer.probe.floor=false")
FROZEN, BOTH, FLOOR = "frozen probe", "probe, then both", "probe, then both, floor"  # the floor: by the rows of the two
WAYS = {
    "scratch": ("--from-scratch=true", *PLAIN),
    "together": PLAIN,
    BOTH: START,
    FROZEN: (*START, "--optimizer=frozen", "--optimizer.learning_rate=1e-12"),
    "together, best step": (*FORMER, "--optimizer.probe.floor=false"),
    "probe, then both, encoder 0.1": (*START, "--optimizer.encoder_rate=0.1"),
    "head first, then both": (*PLAIN, "--optimizer.head_first=0.3"),
    "probe, then both, layer decay 0.7": (*START, "--optimizer.layer_decay=0.7"),
    "probe, then layer after layer": (*START, "--optimizer.unfreeze=0.6"),
}


def main() -> None:
    """Does what is missing, or prints what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--summary", action="store_true", help="print the table, and train nothing")
    given = parser.parse_args()
    if given.summary:
        print(summary(given.rows))
        return
    started = time.monotonic()
    if not pretrained(given.data, given.work, given.minutes):
        return
    there = {(row["way"], row["seed"]) for row in read(given.rows)}
    ways = list(WAYS)
    for seed, way in (*product(range(DRAWS), ways[:FIRST]), *product(range(DRAWS), ways[FIRST:])):
        if (way, str(seed)) in there:
            continue
        row = one(given.work, way, seed)
        append(given.rows, COLUMNS, [row], RUN)
        print(row, flush=True)
        if time.monotonic() - started > 60 * given.minutes:
            return


def pretrained(data: Path, work: Path, minutes: float) -> bool:
    """Index, store and pretraining; whether the pretraining is done."""
    store, run = work / "store", work / "pretrained"
    if not (store / "store.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        labels = ("--label.classes", "folder", "--label.split", "folder")
        medssl("index", str(data / "tiles"), *labels, "--index", str(work / "index.sqlite"))
        sizes = ("--preprocess", "image", "--preprocess.image_size", "[64,64]")
        medssl("cache", str(work / "index.sqlite"), str(store), *sizes)
    log = work / "pretrained.log"
    if log.exists() and f"{PRETRAINING} steps done" in log.read_text():
        return True
    words = (
        "pretrain", "--config", "simclr_2d_small", "--store", str(store), "--run", str(run),
        "--objective.view.size", "[64,64]", "--objective.view.scale", "[0.45,1.0]", "--encoder.in_channels", "3",
        "--training.batch_size", "32", "--training.steps", str(PRETRAINING), "--training.output.checkpoint_every", "50",
    )  # fmt: skip
    with log.open("a") as stream:
        command = [sys.executable, "-m", "medssl", *words]
        training = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=stream, stderr=stream)
        try:
            training.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            training.terminate()  # saves; the next call goes on
            training.wait()
    return f"{PRETRAINING} steps done" in log.read_text()


def one(work: Path, way: str, seed: int) -> dict[str, object]:
    """Fine-tunes, and returns the row."""
    started, name = time.monotonic(), re.sub(r"\W+", "-", way)
    run = work / "runs" / f"{name}-{seed}"
    log = run.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [
        "finetune", "--config", "classify_2d_small", "--store", str(work / "store"), "--run", str(run),
        "--pretrained", str(work / "pretrained"), "--labels", "32", "--data.validation_labels", "100",
        "--data.label_seed", str(seed), "--training.seed", str(seed), "--data.view.size", "[64,64]",
        "--training.steps", str(STEPS), "--training.output.validate_every", "50", "--data.workers", "0",
        "--training.output.checkpoint_every", "200", *WAYS[way],
    ]  # fmt: skip
    with log.open("a") as stream, contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        code = cli.main(words)
    if code:
        message = f"{way} {seed} failed: see {log}"
        raise RuntimeError(message)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    auroc, accuracy = tested(work / "store", run)
    return dict(zip(COLUMNS, (
        way, seed, STEPS, round([row["validation_auroc"] for row in lines if "validation_auroc" in row][-1], 4),
        round(auroc, 4), round(accuracy, 4), round(time.monotonic() - started),
    ), strict=True))  # fmt: skip


def tested(store: Path, run: Path) -> tuple[float, float]:
    """AUROC and accuracy on the test tiles, each seen once."""
    import numpy as np
    import torch

    from medssl.data.labels.selection import labeled_scans
    from medssl.data.store.store import Store
    from medssl.heads.weights import load_network
    from medssl.metrics.classification import auroc
    from medssl.training.supervised import StoredScan

    torch.set_num_threads(1)
    network, card = load_network(run)
    assert card.tuned is not None
    opened, names = Store.open(store), [name for _, name in card.tuned.schema.classes]
    numbers = labeled_scans(opened, 2, "test", card.tuned.schema)[::2]
    truth = np.array([names.index(opened.values(number)["class"]) for number in numbers])
    size, scores = (64, 64), []
    for first in range(0, len(numbers), 100):
        batch = [StoredScan(opened, number, size, 2).read((0, 0), size) for number in numbers[first : first + 100]]
        with torch.inference_mode():
            logits = network(torch.stack(batch))
        assert isinstance(logits, torch.Tensor)
        scores.append(logits.softmax(1)[:, 1].numpy())
    positive = np.concatenate(scores)
    value = auroc(positive, truth == 1)
    assert value is not None
    return value, float(((positive > 0.5) == (truth == 1)).mean())


def summary(rows: Path) -> str:
    """Mean AUROC of each way, and its differences to two over the same draws, with t intervals of 95 %."""
    from scipy.stats import t

    values = {(row["way"], row["seed"]): float(row["test_auroc"]) for row in read(rows)}
    validation = {(row["way"], row["seed"]): float(row["validation"]) for row in read(rows)}
    for name, seed in list(values):
        if name == FROZEN and (BOTH, seed) in values:
            better = FROZEN if validation[FROZEN, seed] > validation[BOTH, seed] else BOTH
            values[FLOOR, seed] = values[better, seed]
    lines = [
        f"| way | draws | test AUROC | {' | '.join(f'less {name}' for name in REFERENCES)} |",
        "|---|---|---|---|---|",
    ]
    for way in (*WAYS, FLOOR):
        seeds = [seed for name, seed in values if name == way]
        if len(seeds) < 2:
            continue
        mean, gaps = statistics.mean(values[way, seed] for seed in seeds), []
        for reference in REFERENCES:
            shared = [values[way, s] - values[reference, s] for s in seeds if (reference, s) in values]
            half = t.ppf(0.975, len(shared) - 1) * statistics.stdev(shared) / len(shared) ** 0.5
            middle = statistics.mean(shared)
            same = "" if way == reference else f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}]"
            gaps.append(same)
        lines.append(f"| {way} | {len(seeds)} | {mean:.3f} | {' | '.join(gaps)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
