"""Run folders and folders of evaluations, as the verbs write them."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from medssl.metrics import cases, tables
from medssl.metrics.cases import ClassificationRow, SegmentationRow
from medssl.metrics.mask_measures import ClassScore
from medssl.metrics.subgroups import subgroups
from medssl.types import Card, Imported, LabelSchema, Preprocess, Tuned
from medssl.types.provenance import Provenance

SCHEMA = LabelSchema("mask", ((0, "background"), (1, "liver"), (2, "spleen")))


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def run(
    folder: Path,
    *,
    tuned: bool = False,
    steps: int = 20,
    start: str = "random",
    scale: float = 1.0,
    alarms: dict[int, int] | None = None,
) -> Path:
    """A run folder without weights: a report needs none. ``alarms`` counts those of the steps that were measured."""
    head = Tuned(Imported("medssl.heads.segmentation.UNet"), SCHEMA, (8, 8, 8), 2, ("a", "b", "c")) if tuned else None
    card = Card(
        encoder=Imported("medssl.encoders.resenc.ResEnc", {"channels": [4, 8]}),
        preprocess=Preprocess(),
        objective=Imported("medssl.objectives.spark.SparK", {"share": 0.6}),
        index_digest="d1",
        subjects=Provenance(("s1", "s2", "s3", "s4", "s5")),
        step=steps,
        versions={},
        tuned=head,
    )
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(asdict(card)))
    config = {"training": {"steps": steps, "batch_size": 2, "precision": "bf16"}, "optimizer": {"learning_rate": 0.001}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | ({"start": start} if tuned else {})))
    rows = [{"step": n, "loss": scale / n, "loss_smoothed": scale / n + 0.01} for n in range(1, steps + 1)]
    for n, count in (alarms or {}).items():
        rows[n - 1]["alarms"] = count
    if tuned:
        for n in range(4, steps, 5):
            rows[n]["validation_dice"] = scale * n / steps
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pictures").mkdir()
    for step in (1, 10, 200):
        (folder / "pictures" / f"step_{step:06d}.png").write_bytes(png(step))
    return folder


def segmentation(folder: Path, dice: list[float], *, first: int = 0, notes: tuple[str, ...] = ()) -> Path:
    """An evaluation with these Dice of both classes, a scan and subject each; pictures of five scans at most."""
    rows = []
    for number, value in enumerate(dice, first):
        for name, share in (("liver", 1.0), ("spleen", 0.8)):
            score = ClassScore(value * share, 3.0, 100, 90) if value else ClassScore(0.0, None, 100, 0, "missed")
            rows.append(SegmentationRow(f"scan{number}", f"subject{number}", name, score))
    folder.mkdir(parents=True)
    cases.write_segmentation(folder / cases.CASES, rows)
    by = {"split": "test", "step": 20, "versions": {"torch": "2"}}
    skipped = [("scan99", "unreadable: truncated")]
    summary = tables.summarize_segmentation(rows, SCHEMA, skipped=skipped, notes=notes, by=by)
    tables.write_summary(folder / tables.SUMMARY, summary)
    (folder / "pictures").mkdir()
    for number in range(min(5, len(dice))):
        (folder / "pictures" / f"scan{first + number}.png").write_bytes(png(number))
    return folder


def classification(folder: Path, right: list[float], *, sites: tuple[str, ...] = ()) -> Path:
    """An evaluation of two classes in turns, of which every site has both; the probability of the truth is given."""
    names = ("benign", "malignant")
    rows = []
    for number, value in enumerate(right):
        truth = number % 2
        pair = (value, 1 - value) if truth == 0 else (1 - value, value)
        rows.append(
            ClassificationRow(f"scan{number}", f"subject{number}", names[truth], names[int(pair[1] > pair[0])], pair)
        )
    folder.mkdir(parents=True)
    cases.write_classification(folder / cases.CASES, rows, names)
    summary = tables.summarize_classification(rows, names)
    if sites:
        values = {"site": {row.scan_id: sites[place // 2 % len(sites)] for place, row in enumerate(rows)}}
        summary["subgroups"] = subgroups(rows, values, lambda own: tables.summarize_classification(own, names))
    tables.write_summary(folder / tables.SUMMARY, summary)
    return folder


def probes(folder: Path) -> Path:
    """A folder of ``medssl probe``."""
    metrics = {"auroc": {"value": 0.812, "low": 0.7, "high": 0.9, "subjects": 5, "note": ""}}
    summary = {
        "target": "grade",
        "classes": ["low", "high"],
        "scans": {"train": 4, "val": 3, "test": 5},
        "probes": [{"probe": "linear", "chosen": "C 0.1", "validation": 0.9, "metrics": metrics, "note": ""}],
        "skipped": [{"probe": "prototypes, 20 shots", "reason": "the rarest class has 2 training scans"}],
        "embedding": {"scans": 12, "features": 8, "effective_rank": 3.0, "spread": 0.5},
        "notes": ["a note"],
        "by": {"seed": 0},
    }
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text(json.dumps(summary))
    return folder


def study(folder: Path) -> Path:
    """A folder of ``medssl compare``."""
    level = {"labels": 4, "value": 0.5, "low": 0.4, "high": 0.6, "runs": 1}
    one = {
        "arm": "spark",
        "baseline": "scratch",
        "verdict": "too few runs at 4: 1 of each arm, it takes 5",
        "saved": [],
    }
    summary = {
        "measure": "Dice",
        "curves": {"spark": [level | {"value": 0.6}], "scratch": [level]},
        "compared": [one | {"labels": [4], "differences": [], "p_values": [None]}],
        "notes": [],
        "failed": {"scratch 4": "out of memory"},
    }
    folder.mkdir(parents=True)
    (folder / "compare.yaml").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
