"""Small labeled scans on disk with an index and a store, for fine-tuning, prediction and evaluation."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from data.make_scans import write_nifti, write_picture

from medssl.commands.cache import cache
from medssl.commands.index import index
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions
from medssl.types import Preprocess

SHAPE = (20, 18, 14)
SPLITS = ("train", "train", "train", "train", "train", "train", "val", "val", "test", "test", "test")


def ball(shape: tuple[int, ...], center: np.ndarray, radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(grid - center, axis=-1) <= radius


def volumes(folder: Path, *, strange: bool = False, seed: int = 0) -> Path:
    """Eleven volumes with two bright balls of different brightness (classes 1 and 4), masks, and a table of splits."""
    generator = np.random.default_rng(seed)
    for number in range(len(SPLITS)):
        image, mask = generator.normal(100, 10, SHAPE), np.zeros(SHAPE, np.uint8)
        for value, bright, side in ((1, 200, 5.0), (4, 300, 13.0)):
            inside = ball(SHAPE, np.array([side, 9, 7]) + generator.uniform(-2, 2, 3), 3.5)
            image[inside], mask[inside] = image[inside] + bright, value
        if strange and number == 2:
            mask[0, 0, 0] = 9
        write_nifti(folder / "images" / f"p{number:02d}.nii.gz", image.astype(np.int16), np.diag([1, 1, 1.5, 1]))
        write_nifti(folder / "labels" / f"p{number:02d}.nii.gz", mask, np.diag([1, 1, 1.5, 1]))
    table(folder.parent / "splits.csv", [f"p{number:02d}.nii.gz" for number in range(len(SPLITS))])
    return folder


def pictures(folder: Path) -> Path:
    """33 gray pictures: a bright ball on the left, on the right, or none."""
    generator = np.random.default_rng(0)
    names = []
    for number in range(3 * len(SPLITS)):
        kind = ("left", "right", "none")[number % 3]
        image = generator.normal(60, 10, (32, 32))
        if kind != "none":
            image[ball((32, 32), np.array([16, 8 if kind == "left" else 24]), 5)] += 120
        names.append(f"p{number:02d}.png")
        write_picture(folder / kind / names[-1], image.clip(0, 255).astype(np.uint8))
    table(folder.parent / "splits.csv", names)
    return folder


def table(file: Path, names: list[str]) -> None:
    """Splits of files in turn."""
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("name", "split"), *((n, SPLITS[k % len(SPLITS)]) for k, n in enumerate(names))])


def indexed(folder: Path, place: Path, *, classes: str = "0=background,1=left,4=right", key: Path) -> Path:
    """Index of what ``volumes`` or ``pictures`` wrote."""
    masks = (folder / "labels").is_dir()
    key.write_text("0" * 64)
    key.chmod(0o600)
    options = LabelOptions(
        masks="images=labels" if masks else "", classes="" if masks else "folder", class_names=classes if masks else "",
        values=str(folder.parent / "splits.csv"), key="name", split="column:split",
    )  # fmt: skip
    files = FileOptions(modality="MR" if masks else "XR", key=key)
    assert index((folder,), index=place, subject=r"(p\d+)", label=options, files=files).exit_code == 0
    return place


def stored(index_file: Path, place: Path, preprocess: Preprocess | None = None) -> Path:
    """Store of an index."""
    assert (
        cache(index_file, place, preprocess=preprocess or Preprocess(foreground_crop=False), workers=0).exit_code == 0
    )
    return place
