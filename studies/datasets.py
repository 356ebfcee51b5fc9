"""The data sets of the studies: how they are found, split and cached, all through the command line of medssl."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

SPLIT_BY_FILE = ("--label.values", "{work}/split.csv", "--label.key", "name", "--label.split", "column:split")


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        images: Folder of the scans, and a pattern that finds the subject in their names (the whole name if "").
        index: Words of ``medssl index``.
        cache: Words of ``medssl cache``.
        test: Subjects for the test; 0 where the folders of the data set say the split (``split``).
        validation: Subjects that choose; the rest trains.
        split: Words of ``medssl index`` that say the split.
    """

    images: tuple[str, str]
    index: tuple[str, ...]
    cache: tuple[str, ...]
    test: int = 0
    validation: int = 0
    split: tuple[str, ...] = SPLIT_BY_FILE


DATA_SETS = {
    "hippocampus": DataSet(
        images=("hippocampus/imagesTr", ""),
        index=(
            "{data}/hippocampus", "--subject", r"hippocampus_(\d+)", "--files.modality", "MR",
            "--label.masks", "imagesTr=labelsTr", "--label.class_names", "0=background,1=anterior,2=posterior",
        ),
        cache=("--preprocess", "mr"),
        test=40,
        validation=10,
    ),
    "ultrasound": DataSet(
        images=("breast_ultrasound", ""),
        index=("{data}/breast_ultrasound", "--label.classes", "folder", "--files.modality", "US"),
        cache=("--preprocess", "image", "--preprocess.image_size", "[128,128]"),
        test=100,
        validation=50,
    ),
    "acdc": DataSet(
        images=("acdc/images", r"patient\d+"),
        index=(
            "{data}/acdc", "--subject", r"patient(\d+)", "--files.modality", "MR", "--label.masks", "images=labels",
            "--label.class_names", "0=background,1=right ventricle,2=myocardium,3=left ventricle",
        ),
        # 128 pixels are 256 mm, as 192 pixels of 1.37 mm in the paper on global and local contrast
        cache=("--preprocess", "mr", "--preprocess.spacing_mm", "[2.0,2.0,0]"),
        test=10,
        validation=2,
    ),
    "tiles": DataSet(
        images=("tiles", ""),
        index=("{data}/tiles", "--label.classes", "folder", "--files.modality", "SM"),
        cache=("--preprocess", "image", "--preprocess.image_size", "96,96", "--preprocess.mirror", "all"),
        split=("--label.split", "folder"),
    ),
}  # fmt: skip
DATA_SETS["acdc_folds"] = replace(DATA_SETS["acdc"], test=6, validation=4)  # 15 patients remain


def prepare(name: str, data: Path, work: Path, fold: int = 0) -> None:
    """Index and store below ``work``; what is there is brought up to date.

    Args:
        name: Of the data set.
        data: Folder of all data sets.
        work: Folder of index and store.
        fold: Which subjects are for the test, where the split is by a digest: the next ones for each fold.
    """
    chosen = DATA_SETS[name]
    work.mkdir(parents=True, exist_ok=True)
    if chosen.test and not (work / "split.csv").exists():
        write_split(chosen, data, work / "split.csv", fold)
    words = [word.replace("{data}", str(data)).replace("{work}", str(work)) for word in (*chosen.index, *chosen.split)]
    medssl("index", *words, "--index", str(work / "index.sqlite"))
    medssl("cache", str(work / "index.sqlite"), str(work / "store"), *chosen.cache)


def write_split(chosen: DataSet, data: Path, file: Path, fold: int = 0) -> None:
    """Splits subjects by a digest of their names: the same on every machine, and of exact sizes."""
    folder, pattern = chosen.images
    names = {path.name for path in (data / folder).rglob("*") if path.is_file() and path.suffix in {".gz", ".png"}}
    subjects = {name: re.search(pattern, name)[0] if pattern else name for name in names if not name.startswith(".")}  # type: ignore[index]
    order = sorted(set(subjects.values()), key=lambda subject: hashlib.sha256(subject.encode()).hexdigest())
    place = {subject: (number - fold * chosen.test) % len(order) for number, subject in enumerate(order)}
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("name", "split"))
        for name in sorted(subjects, key=lambda name: (place[subjects[name]], name)):
            number = place[subjects[name]]
            split = "test" if number < chosen.test else "val" if number < chosen.test + chosen.validation else "train"
            table.writerow((name, split))


def medssl(*words: str, threads: str | None = None, log: Path | None = None) -> None:
    """One command of medssl; its output goes to the log, or to the console."""
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    command = [sys.executable, "-m", "medssl", *words]
    if log is None:
        subprocess.run(command, check=True, env=environment)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        subprocess.run(command, check=True, env=environment, stdout=stream, stderr=subprocess.STDOUT)
