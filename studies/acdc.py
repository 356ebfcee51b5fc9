"""Which objective helps a segmentation of the heart with few labels? All four core objectives and SimCLR on ACDC.

    python studies/acdc.py --data DATA --work WORK --out docs/results/acdc [--jobs 2]

Slices of 128x128 of cine MR volumes, 2D as Chaitanya et al. (NeurIPS 2020) do: 13 patients for pretraining without
labels (the labeled ones are among them), 2 to choose the step, 10 for the test. One encoder, one number of steps and
one precision for all. "global" is the first stage of global and local contrast, "global_local" the first two;
fine-tuning is the third. "mae" and "global_local" bring the decoder that they trained, too. 13 patients do not fill a
batch of SimCLR or a graph with one slice each: several slices of one patient may meet there.

Everything goes on where it was stopped, and finished runs are copied to the folder OUT as they come.
"""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from datasets import medssl, prepare

COMMON = (
    "--encoder", "resenc_small_2d", "--objective.view.size", "[128,128]", "--training.steps", "800",
    "--training.precision", "bf16", "--training.output.checkpoint_every", "100",
    "--training.output.picture_every", "500",
)  # fmt: skip
WHOLE = (
    "--objective.view.area",
    "null",
    "--objective.view.scale",
    "[0.8,1.3]",
)  # 128 pixels see 205 to 333 mm: two views share most of a slice
FIRST = {
    "spark": (
        "--config", "spark_2d_small", "--objective.decoder_width", "64", "--objective.view.area", "null",
        "--objective.view.scale", "[0.8,1.0]",
    ),
    "mae": (
        "--config", "mae_resenc_3d_small", "--objective", "mae_resenc_2d", "--objective.view.area", "null",
        "--objective.view.scale", "[0.71,1.0]",
        "--training.batch_size", "16",
    ),
    "simclr": ("--config", "simclr_2d_small", *WHOLE, "--objective.sampling.distinct_subjects", "false"),
    "graph_match": ("--config", "graph_match_2d_small", *WHOLE, "--objective.sampling.distinct_subjects", "false"),
    "global": ("--config", "global_2d_small", *WHOLE),
}  # fmt: skip
SECOND = {"global_local": ("--config", "local_2d_small")}
COMPARE = (
    "--config", "segment_2d_small", "--labels", "[1,8]", "--runs", "3", "--training.steps", "600",
    "--training.batch_size", "8", "--optimizer.learning_rate", "2.0e-3", "--data.sampling.labeled", "0.33",
    "--training.precision", "bf16", "--training.output.validate_every", "100",
)  # fmt: skip
TABLES = ("summary.json", "runs.csv", "cases.csv", "efficiency.svg")


def main() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    given = parser.parse_args()
    work = given.work / "acdc"
    prepare("acdc", given.data, work)
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda name: pretrain(work, name, FIRST[name]), FIRST))
    pretrain(work, "global_local", (*SECOND["global_local"], "--pretrained", str(work / "pretrained/global")))
    arms = [f"{name}={work / 'pretrained' / name}" for name in (*FIRST, *SECOND)]
    words = (
        "compare", *arms, *COMPARE, "--store", str(work / "store"), "--index", str(work / "index.sqlite"), "--out",
        str(work / "compare"), "--jobs", str(given.jobs),
    )  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        comparing = pool.submit(medssl, *words, threads="1")
        while wait([comparing], timeout=60).not_done:
            copy(work / "compare", given.out)
        copy(work / "compare", given.out)
        comparing.result()


def copy(found: Path, out: Path) -> None:
    """Copies the tables that are there."""
    for name in TABLES:
        if (found / name).exists():
            shutil.copyfile(found / name, out / name)


def pretrain(work: Path, name: str, words: tuple[str, ...]) -> None:
    """One pretraining, with its log beside it."""
    run = work / "pretrained" / name
    medssl(
        "pretrain", *words, *COMMON, "--store", str(work / "store"), "--run", str(run), threads="1",
        log=run.with_suffix(".log"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
