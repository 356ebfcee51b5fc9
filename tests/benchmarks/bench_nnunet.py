"""Segmentation from random weights beside nnU-Net v2: the same split, network, patches, batch and number of steps.

    python -m venv ENV && ENV/bin/pip install nnunetv2
    python tests/benchmarks/bench_nnunet.py hippocampus --data DATA --work WORK --rows ROWS.csv \
        --nnunet ENV/bin/python [--steps 250] [--runs 3] [--minutes 4]
    python tests/benchmarks/bench_nnunet.py hippocampus --rows ROWS.csv --summary

nnU-Net runs with its own plans (ResEnc) but for the sizes, which are those of our small preset, with its own
augmentation, SGD, deep supervision, mirrored prediction and last weights. The sides of medssl are the recipe
``segment_3d_small`` as it is, and with nnU-Net's optimizer and deep supervision ("medssl_nnunet"). Goal: a paired
difference of at most 0.01 Dice, over the test subjects.

The sides take turns, run by run; a row is a test subject of a run. Rows that are there are not computed again: with
--minutes the program stops after the first run beyond that time. It prints the seconds of a step of each side.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "studies"))
from datasets import medssl, prepare  # noqa: E402
from few_labels import append, read  # noqa: E402

GOAL = 0.01
COLUMNS = ("side", "run", "scan", "subject", "dice", "steps", "seconds_a_step")
RUN = ("side", "run", "scan")
SIDES = {
    "medssl": (),
    "nnunet": (),
    "medssl_nnunet": ("--optimizer", "nnunet", "--optimizer.keep", "final", "--head.deep_supervision", "true"),
}


@dataclass(frozen=True)
class Task:
    """A data set at a size that two CPU cores train.

    Attributes:
        folders: Of images and labels below the data.
        classes: Names of the labels, from 0.
        encoder: Preset of medssl.
        sizes: Channels, strides (axes of medssl) and blocks of that preset.
        patch: Voxels per axis of medssl.
        spacing: Target spacing of nnU-Net in its order; None takes its own.
    """

    folders: tuple[str, str]
    classes: tuple[str, ...]
    encoder: str
    sizes: dict[str, list[Any]]
    patch: tuple[int, ...]
    spacing: tuple[float, ...] | None = None


SMALL: dict[str, list[Any]] = {"channels": [16, 32, 64, 128], "blocks": [1, 2, 2, 2]}
HALVES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
THICK = [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2]]
TASKS = {
    "hippocampus": Task(
        ("hippocampus/imagesTr", "hippocampus/labelsTr"), ("background", "anterior", "posterior"), "resenc_small_3d",
        SMALL | {"strides": HALVES}, (32, 40, 32),
    ),
    "acdc": Task(
        ("acdc/images", "acdc/labels"), ("background", "right", "myocardium", "left"), "resenc_acdc",
        SMALL | {"strides": THICK}, (96, 96, 8), (8.0, 2.0, 2.0),
    ),
}  # fmt: skip


def main() -> None:
    """Does what is missing, and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--nnunet", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--steps", type=int, default=250, help="a multiple of 10")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--tests", type=int, help="test scans, the first of the list; nnU-Net's mirroring takes minutes"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--summary", action="store_true", help="print what is there, and train nothing")
    given = parser.parse_args()
    if not given.summary:
        compare(given, TASKS[given.task])
    print(summary(read(given.rows)))


def compare(given: argparse.Namespace, task: Task) -> None:
    """The runs that have no row yet, one side after the other."""
    started, work = time.monotonic(), given.work / given.task
    prepare(given.task, given.data, work)
    split = split_of(work)
    split["test"] = split["test"][: given.tests]
    settings = written_settings(given, task, work, split)
    there = {(row["side"], row["run"]) for row in read(given.rows)}
    for run in range(given.runs):
        for side in SIDES:
            if (side, str(run)) in there:
                continue
            folder = work / "runs" / f"{side}-{run}-{given.steps}"
            train = nnunet if side == "nnunet" else ours
            seconds = train(given, task, settings, (side, run), folder)
            rows = scores(given.data / task.folders[1], folder / "predicted", split["test"], len(task.classes))
            shared = {"side": side, "run": run, "steps": given.steps, "seconds_a_step": round(seconds, 3)}
            append(given.rows, COLUMNS, [shared | row for row in rows], RUN)
            mean = np.mean([float(row["dice"]) for row in rows])
            print(f"{side} {run}: mean Dice {mean:.4f} of {len(rows)} scans, {seconds:.2f} s a step", flush=True)
            if time.monotonic() - started > 60 * given.minutes:
                return


def split_of(work: Path) -> dict[str, list[str]]:
    """Names of the scans of each split."""
    with (work / "split.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = ("train", "val", "test")
    return {name: [row["name"] for row in rows if row["split"] == name] for name in names}


def written_settings(given: argparse.Namespace, task: Task, work: Path, split: dict[str, list[str]]) -> Path:
    """nnU-Net's raw data set and what its side needs to know; plans and preprocesses it once."""
    file, name = work / f"nnunet-{given.steps}.json", f"Dataset{501 + list(TASKS).index(given.task)}_bench"
    case = {scan: scan.removesuffix(".nii.gz") for part in split.values() for scan in part}
    raw = work / "nnunet/raw" / name
    for part, folder in (("train", "Tr"), ("val", "Tr"), ("test", "Ts")):
        for scan in split[part]:
            for source, target in zip(task.folders, (f"{case[scan]}_0000.nii.gz", scan), strict=True):
                below = raw / f"{'images' if target != scan else 'labels'}{folder}"
                below.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(given.data / source / scan, below / target)
    labels = {name: number for number, name in enumerate(task.classes)}
    count = len(split["train"]) + len(split["val"])
    about = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(about))
    settings = task.sizes | {
        "work": str((work / "nnunet").resolve()), "dataset": int(name[7:10]), "name": name, "batch": 2,
        "patch": task.patch[::-1], "strides": [stride[::-1] for stride in task.sizes["strides"]],
        "spacing": task.spacing, "steps": given.steps, "threads": given.threads,
        "train": [case[scan] for scan in split["train"]], "validation": [case[scan] for scan in split["val"]],
    }  # fmt: skip
    file.write_text(json.dumps(settings))
    if not (work / "nnunet/planned").exists():
        side(given, "plan", file)
        (work / "nnunet/planned").touch()
    return file


def side(given: argparse.Namespace, *words: str | Path) -> None:
    """A command of nnU-Net's side, without the modules of this one; what it says goes to a log."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = str(given.threads)
    command = [str(given.nnunet), str(HERE / "nnunet_side.py"), *map(str, words)]
    with (given.work / given.task / "nnunet.log").open("a") as log:
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)


def nnunet(given: argparse.Namespace, task: Task, settings: Path, which: tuple[str, int], folder: Path) -> float:
    """Trains and predicts with nnU-Net; returns the seconds of a step."""
    del task, which
    side(given, "train", settings, folder)
    side(given, "predict", settings, folder)
    return float(json.loads((folder / "seconds.json").read_text())["seconds"]) / given.steps


def ours(given: argparse.Namespace, task: Task, settings: Path, which: tuple[str, int], folder: Path) -> float:
    """Trains and predicts with medssl; returns the seconds of a step."""
    del settings
    name, run = which
    work, log = given.work / given.task, folder.with_suffix(".log")
    medssl(
        "finetune", "--config", "segment_3d_small", "--encoder", task.encoder, "--store", str(work / "store"), "--run",
        str(folder), "--data.view.size", json.dumps(list(task.patch)), "--training.batch_size", "2",
        "--training.steps", str(given.steps), "--training.seed", str(run), "--training.output.log_every", "1",
        "--training.output.validate_every", str(given.steps), *SIDES[name], threads=str(given.threads), log=log,
    )  # fmt: skip
    medssl(
        "predict", str(folder), "--index", str(work / "index.sqlite"), "--where", "split = 'test'", "--names", "file",
        "--out", str(folder / "predicted"), threads=str(given.threads), log=log,
    )  # fmt: skip
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([row["seconds"] for row in steps]))


def scores(labels: Path, predicted: Path, scans: list[str], classes: int) -> list[dict[str, object]]:
    """Mean Dice over the foreground classes of each scan; a class that is in neither is left out."""
    import nibabel

    rows: list[dict[str, object]] = []
    for scan in scans:
        truth, found = (np.asarray(nibabel.load(folder / scan).dataobj).astype(int) for folder in (labels, predicted))
        pairs = [(truth == number, found == number) for number in range(1, classes)]
        dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if a.any() or b.any()]
        subject = re.match(r"patient\d+|hippocampus_\d+", scan)
        assert subject is not None
        rows.append({"scan": scan, "subject": subject[0], "dice": round(float(np.mean(dice)), 5)})
    return rows


def summary(rows: list[dict[str, str]]) -> str:
    """Mean Dice of each side, and each side of medssl less nnU-Net: paired by subject, bootstrapped over subjects."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault(row["side"], {}).setdefault(row["subject"], []).append(float(row["dice"]))
    lines = []
    for name, subjects in values.items():
        mine = [row for row in rows if row["side"] == name]
        runs, seconds = {row["run"] for row in mine}, {float(row["seconds_a_step"]) for row in mine}
        mean = np.mean([np.mean(dice) for dice in subjects.values()])
        lines.append(f"{name}: Dice {mean:.4f} ({len(runs)} runs, {np.median(list(seconds)):.2f} s a step)")
    for name in set(values) & set(SIDES) - {"nnunet"} if "nnunet" in values else ():
        shared = sorted(set(values[name]) & set(values["nnunet"]))
        gaps = np.array([np.mean(values[name][one]) - np.mean(values["nnunet"][one]) for one in shared])
        draws = np.random.default_rng(0).choice(gaps, (10_000, len(gaps))).mean(1)
        low, high = np.quantile(draws, (0.025, 0.975))
        verdict = "reached" if gaps.mean() >= -GOAL else "missed"
        lines.append(
            f"{name} less nnunet: {gaps.mean():+.4f} [{low:+.4f}, {high:+.4f}], {len(gaps)} subjects: {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
