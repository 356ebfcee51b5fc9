"""The verb `medssl phantoms`: write synthetic scans to try the other verbs on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhantomsResult:
    """Synthetic scans.

    Attributes:
        out: Their folder.
        scans: How many there are.
        labeled: How many of them have labels.
        written: How many this call wrote; the others were there.
        exit_code: 0.
    """

    out: Path
    scans: int
    labeled: int
    written: int
    exit_code: int = 0


def phantoms(
    out: Path,
    *,
    count: int = 24,
    labeled: int = 8,
    shape: tuple[int, ...] = (80, 64, 64),
    modality: Literal["MR", "CT", "both"] = "MR",
    seed: int = 0,
    shuffle_labels: bool = False,
) -> PhantomsResult:
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
        Where the scans are, and how many were written by this call.
    """
    from tqdm.auto import tqdm

    from medssl.data.synthetic.phantom_files import Recipe, write_phantoms

    recipe = Recipe(count, labeled, tuple(shape), modality, seed, shuffle_labels)
    with tqdm(total=count, desc="phantoms", unit="scan") as bar:
        new, old = write_phantoms(out, recipe, written=lambda _: bar.update())
    labels = "labels of another patient" if shuffle_labels else "labels"
    log.info(f"{out}: {count} synthetic scans, {labeled} with {labels} ({new} written, {old} there already)")
    return PhantomsResult(out, count, labeled, written=new)
