"""Does every objective learn? The small preset of each, 300 steps on real scans, with probes before and after.

    python studies/small_presets.py --data DATA --work WORK --rows docs/results/small_presets.csv [--jobs 2]
    python studies/small_presets.py --data DATA --work WORK --rows docs/results/small_presets.csv --seconds

Each row is one preset and one probe: seconds a step, the loss over the first and the last 20 steps beside that of a
network that knows nothing ("chance"), what health says at the end, and the probe of the encoder and of its random twin
on test scans: a linear probe of voxels (mean Dice) for volumes and slices of volumes, nearest neighbors and logistic
regression (AUROC) for images. NAME_curves.csv holds the losses, means of ten steps, and the folder NAME a picture of
each. Rows that are there are kept.

Sizes are those of the data: volumes of the hippocampus hold 36x50x36 voxels, images of ultrasound lie at 128x128, of
which views take 96x96. Each preset trains in bfloat16 on one thread. The second stage of global and local contrast
leaves the encoder as it is: its row has the probes of its first stage. Where whole scans are compared (SimCLR, graph
matching, global contrast) two views must share most of them, or 300 steps teach nothing; SimCLR on images takes
instance norm, which leaves it less brightness and contrast to unlearn.

With --seconds each trains for 30 steps, alone and on two threads, once the rows are there: NAME_seconds.csv has the
median of its last 20, for a quiet machine of two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from datasets import medssl, prepare
from few_labels import append, read

from medssl.reporting.curves import Point, Series, line_chart

STEPS, ENDS, MEAN_OF = 300, 20, 10
TIMED, COUNTED = 30, 20
PROBES = {"mask": ("voxel_logistic",), "class": ("knn", "logistic")}
MEASURES = {"mask": "dice", "class": "auroc"}
RUN = ("preset",)
CURVES = ("preset", "step", "loss")


@dataclass(frozen=True)
class Preset:
    """A small recipe on a data set; ``start`` names the preset whose encoder it starts from."""

    data: str
    target: str
    words: tuple[str, ...] = ()
    start: str = ""


IMAGE = ("--objective.view.size", "[96,96]")
COLOR = (*IMAGE, "--encoder.in_channels", "3")
CROP = ("--objective.view.size", "[32,48,32]")
PART = ("--objective.view.area", "null", "--objective.view.scale", "[0.8,1.0]")  # 96 pixels see 77 to 96 of 128
WIDE = ("--objective.view.scale", "[1.2,1.6]")  # 24 voxels see 29 to 38 of the hippocampus: who it is can be told
WHOLE = ("--objective.view.area", "null", "--objective.view.scale", "[0.9,1.35]")  # 96 pixels see 86 to 130 of 128
CROPS = (*COLOR, *WHOLE, "--objective.local_view.size", "[48,48]", "--objective.local_view.area", "null")
CROPS += ("--objective.local_view.scale", "[0.6,1.35]")  # 48 pixels see 29 to 65 of 128
BOXES = ("--objective.local_view.size", "[16,24,16]")
PRESETS = {
    "dino_3d_small": Preset("hippocampus", "mask", (*CROP, *BOXES)),
    "dinov2_3d_small": Preset("hippocampus", "mask", (*CROP, *BOXES)),
    "lejepa_3d_small": Preset("hippocampus", "mask", (*CROP, *BOXES)),
    "ijepa_3d_small": Preset("hippocampus", "mask", CROP),
    "dino_2d_small": Preset("ultrasound", "class", CROPS),
    "ibot_2d_small": Preset("ultrasound", "class", CROPS),
    "dinov2_2d_small": Preset("ultrasound", "class", CROPS),
    "lejepa_2d_small": Preset("ultrasound", "class", CROPS),
    "ijepa_2d_small": Preset("ultrasound", "class", (*COLOR, *WHOLE)),
    "spark_3d_small": Preset("hippocampus", "mask", CROP),
    "mae_resenc_3d_small": Preset("hippocampus", "mask", CROP),
    "mae_3d_small": Preset("hippocampus", "mask", CROP),
    "simmim_3d_small": Preset("hippocampus", "mask", CROP),
    "masked_distillation_3d_small": Preset("hippocampus", "mask", CROP),
    "simclr_3d_small": Preset("hippocampus", "mask", WIDE),
    "global_3d_small": Preset("hippocampus", "mask"),
    "local_3d_small": Preset("hippocampus", "mask", start="global_3d_small"),
    "graph_match_3d_small": Preset("hippocampus", "mask", WIDE),
    "spark_2d_small": Preset("ultrasound", "class", (*COLOR, *PART)),
    "mae_2d_small": Preset(
        "ultrasound", "class", (*COLOR, "--objective.view.area", "null", "--objective.view.scale", "[0.71,1.0]")
    ),
    "simmim_2d_small": Preset(
        "ultrasound", "class", (*COLOR, "--objective.view.area", "null", "--objective.view.scale", "[0.82,1.0]")
    ),
    "masked_distillation_2d_small": Preset("ultrasound", "class", (*COLOR, *WHOLE)),
    "simclr_2d_small": Preset("ultrasound", "class", (*COLOR, *WHOLE, "--encoder.norm", "instance")),
    "graph_match_2d_small": Preset("ultrasound", "class", (*COLOR, *WHOLE)),
    "global_2d_small": Preset(
        "acdc", "mask", (*IMAGE, "--objective.view.area", "null", "--objective.view.scale", "[1.0,1.6]")
    ),
    "local_2d_small": Preset("acdc", "mask", IMAGE, "global_2d_small"),
}
COLUMNS = (
    "preset", "data", "seconds_a_step", "first", "last", "chance", "health", "probe", "random", "pretrained",
    "low", "high",
)  # fmt: skip


def main() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="presets at a time")
    parser.add_argument("--seconds", action="store_true", help="measure how long a step takes, and nothing else")
    given = parser.parse_args()
    if given.seconds:
        for name in PRESETS:
            row = {"preset": name, "seconds_a_step": timed(given.work, name)}
            append(given.rows.with_name(f"{given.rows.stem}_seconds.csv"), tuple(row), [row], RUN)
            print(row, flush=True)
        return
    for name in dict.fromkeys(preset.data for preset in PRESETS.values()):
        prepare(name, given.data, given.work / name)
    there = {row["preset"] for row in read(given.rows)}
    for later in (False, True):
        names = [name for name, preset in PRESETS.items() if bool(preset.start) == later and name not in there]
        with ThreadPoolExecutor(given.jobs) as pool:
            for done in as_completed([pool.submit(one, given.work, name) for name in names]):
                rows, curve = done.result()
                append(given.rows.with_name(f"{given.rows.stem}_curves.csv"), CURVES, curve, RUN)
                draw(given.rows.with_suffix(""), rows[0], curve)
                append(given.rows, COLUMNS, rows, RUN)
                print(*rows, sep="\n", flush=True)


def one(work: Path, name: str) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Pretrains, probes the encoder and its twin, and returns the rows of the preset and of its curve."""
    preset = PRESETS[name]
    store, run = work / preset.data / "store", work / preset.data / "presets" / name
    log = run.with_suffix(".log")
    pretrain(work, name, run, steps=STEPS, threads="1")
    for twin in ((), ("--from-scratch",)):
        medssl(
            "probe", str(run), *twin, "--store", str(store), "--target", preset.target, "--out",
            str(run.parent / f"{name}-{'random' if twin else 'probe'}"), threads="1", log=log,
        )  # fmt: skip
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (statistics.mean(row["loss"] for row in part) for part in (steps[:ENDS], steps[-ENDS:]))
    shared = {
        "preset": name, "data": preset.data, "first": round(first, 4), "last": round(last, 4),
        "seconds_a_step": round(statistics.median(row["seconds"] for row in steps), 3),
        "chance": round(steps[0]["chance"], 4) if "chance" in steps[0] else "",
        "health": re.findall(r"health: (.*)", log.read_text())[-1],
    }  # fmt: skip
    measure = MEASURES[preset.target]
    rows = []
    for probe in PROBES[preset.target]:
        after, before = (measured(run.parent / f"{name}-{what}", probe, measure) for what in ("probe", "random"))
        found = {"probe": f"{probe} {measure}", "random": before["value"], "pretrained": after["value"]}
        rows.append(shared | found | {"low": after["low"], "high": after["high"]})
    means = [steps[place : place + MEAN_OF] for place in range(0, len(steps), MEAN_OF)]
    curve = [(part[-1]["step"], statistics.mean(row["loss"] for row in part)) for part in means]
    return rows, [dict(zip(CURVES, (name, step, round(value, 5)), strict=True)) for step, value in curve]


def pretrain(work: Path, name: str, run: Path, *, steps: int, threads: str) -> None:
    """Trains a preset; the second stage starts from the run of the first."""
    preset = PRESETS[name]
    start = ("--pretrained", str(work / preset.data / "presets" / preset.start)) if preset.start else ()
    medssl(
        "pretrain", "--config", name, *preset.words, *start, "--store", str(work / preset.data / "store"), "--run",
        str(run), "--training.steps", str(steps), "--training.precision", "bf16", "--training.output.log_every", "1",
        "--training.output.health_every", "20", threads=threads, log=run.with_suffix(".log"),
    )  # fmt: skip


def timed(work: Path, name: str) -> float:
    """Median seconds of a step on two threads."""
    run = work / PRESETS[name].data / "timed" / name
    shutil.rmtree(run, ignore_errors=True)
    pretrain(work, name, run, steps=TIMED, threads="2")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(round(statistics.median(row["seconds"] for row in rows[-COUNTED:]), 3))


def draw(folder: Path, row: dict[str, object], curve: list[dict[str, object]]) -> None:
    """The loss over steps, beside that of a network that knows nothing."""
    name, chance = str(row["preset"]), row["chance"]
    points = [Point(float(str(place["step"])), float(str(place["loss"]))) for place in curve]
    lines = [Series("loss, mean of 10 steps", tuple(points))]
    if chance != "":
        level = float(str(chance))
        lines.append(Series("knows nothing", (Point(points[0].x, level), Point(points[-1].x, level)), faint=True))
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{name} on {row['data']}"
    (folder / f"{name}.svg").write_text(line_chart(lines, title=title, x_label="optimizer steps", y_label="loss"))


def measured(folder: Path, probe: str, measure: str) -> dict[str, float]:
    """Value and interval of a probe."""
    found = json.loads((folder / "probe.json").read_text())["probes"]
    (entry,) = (entry for entry in found if entry["probe"] == probe)
    return {key: round(entry["metrics"][measure][key], 4) for key in ("value", "low", "high")}


if __name__ == "__main__":
    main()
