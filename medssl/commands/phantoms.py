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
        out: Folder to write to. A folder that was interrupted is completed.
        count: Number of scans, one per patient, at least 1.
        labeled: Number of scans with a label map, counted from the first, 0 to ``count``.
        shape: Voxels per axis: three numbers write volumes, two numbers (rows, columns) write pictures.
        modality: Modality of the scans: MR, CT, or both in turns.
        seed: Seed of the patients, 0 or more. The same seed writes the same files.
        shuffle_labels: Give each labeled patient the label map of another one. As a control: images then tell nothing
            of labels.

    Returns:
        Where the scans are, and how many were written by this call.
    """
    from tqdm.auto import tqdm

    from medssl.data.synthetic.phantom_files import Recipe, write_phantoms

    recipe = Recipe(count, labeled, tuple(shape), modality, seed, shuffle_labels)
    with tqdm(total=count, desc="phantoms", unit="scan") as bar:
        new, old = write_phantoms(out, recipe, written=lambda _: bar.update())
    labels = "labels of another patient" if shuffle_labels else "labels"
    log.info(f"{out}: {count} synthetic scans, {labeled} with {labels} ({new} written, {old} already present)")
    return PhantomsResult(out, count, labeled, written=new)
