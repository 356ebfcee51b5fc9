"""The verb `medssl phantoms`: write synthetic scans to try the other verbs on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)


def phantoms(
    out: Path,
    *,
    count: int = 24,
    labeled: int = 8,
    shape: tuple[int, ...] = (80, 64, 64),
    modality: Literal["MR", "CT", "both"] = "MR",
    seed: int = 0,
    shuffle_labels: bool = False,
) -> int:
    """Write synthetic patients with labels of liver, spleen and kidneys: NIfTI, DICOM series, or PNG pictures.

    Args:
        out: Folder to write into; a folder that was left half full is completed.
        count: Scans in all, one of each patient.
        labeled: How many of them, from the first on, have a label map.
        shape: Voxels per axis; two numbers (rows, columns) make pictures instead of volumes.
        modality: MR, CT, or both in turns.
        seed: Names the population; the same seed gives the same files.
        shuffle_labels: Give every labeled patient the label map of another: a control in which there is nothing to
            learn from the image.

    Returns:
        0: every scan is there.
    """
    from tqdm.auto import tqdm

    from medssl.data.synthetic.phantom_files import Recipe, write_phantoms

    recipe = Recipe(count, labeled, tuple(shape), modality, seed, shuffle_labels)
    with tqdm(total=count, desc="phantoms", unit="scan") as bar:
        new, old = write_phantoms(out, recipe, written=lambda _: bar.update())
    labels = "labels of another patient" if shuffle_labels else "labels"
    log.info(f"{out}: {count} synthetic scans, {labeled} with {labels} ({new} written, {old} there already)")
    return 0
