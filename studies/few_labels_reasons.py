"""Why does SparK help as much, or as little, as it does? Small experiments beside ``few_labels.py hippocampus``.

    python studies/few_labels_reasons.py --work WORK --rows docs/results/few_labels_hippocampus_reasons.csv

Each row is one run that starts from an encoder ("start") and learns from some labels by one recipe:

    scratch     random weights
    spark       the encoder of the study
    mask_60     SparK that hides 60 % of the cells, fewer steps
    voxels      SparK that predicts the voxels as they are, fewer steps
    supervised  an encoder trained with the labels of all training subjects: what no pretraining without labels can beat

    probe       the encoder stays as it is, a linear map classifies each voxel
    frozen      the encoder stays as it is, the U-Net decoder learns
    constant, warmup, sawtooth    configs/optimizers
    slow        the encoder's learning rate is a tenth of the decoder's
    long        twice the steps: is the twin of the study trained to its end?

Only validation subjects judge; the test subjects of the study are not looked at. Rows that are there are kept.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from datasets import medssl
from few_labels import STUDIES, append, curve, read
from safetensors.torch import load_file

RUN = ("start", "recipe", "labels", "seed", "learning_rate")
COLUMNS = (*RUN, "steps", "best_step", "validation", "kept")
VARIANTS = {
    "mask_60": ("--objective.mask_ratio", "0.6"),
    "voxels": ("--objective.normalise_target", "false"),
}
VARIANT_STEPS = 1500
RECIPES = {
    "probe": ("--head", "voxel_linear", "--optimizer", "frozen"),
    "frozen": ("--optimizer", "frozen"),
    "constant": ("--optimizer", "constant"),
    "warmup": (),
    "sawtooth": ("--optimizer", "sawtooth"),
    "slow": ("--optimizer.encoder_rate", "0.1"),
    "long": (),
}
STEPS = {"probe": 300, "long": 1600}  # all others: those of the study
PLAN = [  # with "warmup" scratch and spark are runs of the study itself
    *((start, "probe", 8, 0, 1e-1) for start in ("scratch", "spark", "supervised", *VARIANTS)),
    ("supervised", "warmup", 2, 0, 3e-3),
    *((start, "sawtooth", 2, 0, 3e-3) for start in ("scratch", "spark", "supervised")),
    *(("scratch", "long", labels, 0, 3e-3) for labels in (8, 4, 2)),
    *((start, recipe, 2, 0, 3e-3) for recipe in ("frozen", "slow") for start in ("scratch", "spark", "supervised")),
]


def main() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="that of few_labels.py, whose encoder is there")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    given = parser.parse_args()
    work = given.work / "hippocampus"
    for name in ("scratch", "spark", "supervised", *VARIANTS):
        start_of(work, name)
    there = {tuple(row[name] for name in RUN) for row in read(given.rows)}
    missing = [run for run in PLAN if tuple(map(str, run)) not in there]
    with ThreadPoolExecutor(given.jobs) as pool:
        for done in as_completed([pool.submit(one, work, run) for run in missing]):
            row = done.result()
            append(given.rows, COLUMNS, [row], RUN)
            print(row, flush=True)


def start_of(work: Path, name: str) -> tuple[str, ...]:
    """The words that start a run from an encoder, which is trained first if it is not there."""
    study, folder = STUDIES["hippocampus"], work / "starts" / name
    if name in {"scratch", "spark"}:
        return "--pretrained", str(work / "pretrained"), *(("--from-scratch",) if name == "scratch" else ())
    if not (folder / "done").exists():
        if name == "supervised":
            words = ("finetune", *study.finetune, "--pretrained", str(work / "pretrained"), "--from-scratch",
                     "--training.steps", str(study.steps[-1]), "--optimizer.learning_rate", "3e-3",
                     "--training.seed", "7")  # fmt: skip
        else:
            words = ("pretrain", *study.pretrain, "--training.steps", str(VARIANT_STEPS), *VARIANTS[name])
        medssl(
            *words, "--store", str(work / "store"), "--run", str(folder), threads="1", log=folder.with_suffix(".log")
        )
        (folder / "done").touch()
    return "--pretrained", str(folder)


def one(work: Path, run: tuple[str, str, int, int, float]) -> dict[str, object]:
    """Fine-tunes and returns the row; ``kept`` is the cosine between the encoder's weights before and after."""
    start, recipe, labels, seed, rate = run
    folder = work / "reasons" / "-".join(map(str, run))
    words, study = start_of(work, start), STUDIES["hippocampus"]
    medssl(
        "finetune", *study.finetune, *RECIPES[recipe], "--store", str(work / "store"), "--run", str(folder), *words,
        "--labels", str(labels), "--training.seed", str(seed), "--optimizer.learning_rate", str(rate),
        "--training.steps", str(STEPS.get(recipe, study.steps[-1])), threads="1", log=folder.with_suffix(".log"),
    )  # fmt: skip
    points = curve(folder, "dice")
    step, best = max(points, key=lambda point: point[1])
    kept = "" if start == "scratch" else f"{cosine(Path(words[1]), folder):.3f}"
    return dict(zip(COLUMNS, (*run, points[-1][0], step, round(best, 5), kept), strict=True))


def cosine(before: Path, after: Path) -> float:
    """Cosine between two sets of convolution weights."""
    old, new = (load_file(folder / "encoder.safetensors") for folder in (before, after))
    names = [name for name, value in old.items() if value.ndim > 1]
    flat = [torch.cat([weights[name].flatten() for name in names]) for weights in (old, new)]
    return float(torch.cosine_similarity(*flat, dim=0))


if __name__ == "__main__":
    main()
