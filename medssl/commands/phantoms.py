"""The verb `medssl phantoms`: write synthetic scans to try the other verbs on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medssl.types import UserError

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


@dataclass(frozen=True)
class SlideOptions:
    """What slides a patient has, with ``kind slides``.

    Attributes:
        per_patient: Slides of each patient and stain, 1 or more.
        stains: Stains with commas: "HE", "IHC" or "HE,IHC". The stains of a slide are registered.
        layout: Files in the layout of "svs", "dicom" whole slides, or "both" in turns.
    """

    per_patient: int = 1
    stains: str = "HE"
    layout: Literal["svs", "dicom", "both"] = "svs"


_SLIDES = SlideOptions()
_VOLUME, _SLIDE = (80, 64, 64), (4096, 4096)


def phantoms(  # noqa: PLR0913 (the keys of a command line)
    out: Path,
    *,
    count: int = 24,
    labeled: int = 8,
    kind: Literal["scans", "slides"] = "scans",
    shape: tuple[int, ...] = _VOLUME,
    modality: Literal["MR", "CT", "both"] = "MR",
    seed: int = 0,
    shuffle_labels: bool = False,
    slides: SlideOptions = _SLIDES,
) -> PhantomsResult:
    """Write synthetic patients: scans with labels of liver, spleen and kidneys, or whole slides with tumor.

    Scans are NIfTI, DICOM series or PNG pictures. Slides are pyramidal TIFF or DICOM; their tumor is known.

    Args:
        out: Folder to write to. A folder that was interrupted is completed.
        count: Number of patients, at least 1; each has one scan, or the slides of ``slides``.
        labeled: Number of patients with a label, counted from the first, 0 to ``count``.
        kind: Write "scans", or whole "slides".
        shape: Voxels per axis: three numbers write volumes, two numbers (rows, columns) write pictures. Slides have
            two numbers, 4096 x 4096 where nothing is given.
        modality: Modality of the scans: MR, CT, or both in turns.
        seed: Seed of the patients, 0 or more. The same seed writes the same files.
        shuffle_labels: Give each labeled patient the label map of another one. As a control: images then tell nothing
            of labels.
        slides: Slides of each patient, with ``kind slides``.

    Returns:
        Where the scans are, and how many were written by this call.
    """
    from tqdm.auto import tqdm

    if kind == "slides":
        size = _SLIDE if tuple(shape) == _VOLUME else tuple(shape)
        about = (count, labeled, size, seed, shuffle_labels, slides.per_patient, slides.stains, slides.layout)
        return _write_slides(out, about, modality)
    if slides != _SLIDES:
        message = "has no effect without kind slides"
        raise UserError(message, key="slides", hint="Give both, or leave it out")
    from medssl.data.synthetic.phantom_files import Recipe, write_phantoms

    recipe = Recipe(count, labeled, tuple(shape), modality, seed, shuffle_labels)
    with tqdm(total=count, desc="phantoms", unit="scan") as bar:
        new, old = write_phantoms(out, recipe, written=lambda _: bar.update())
    labels = "labels of another patient" if shuffle_labels else "labels"
    log.info(f"{out}: {count} synthetic scans, {labeled} with {labels} ({new} written, {old} already present)")
    return PhantomsResult(out, count, labeled, written=new)


def _write_slides(out: Path, about: tuple[Any, ...], modality: str) -> PhantomsResult:
    """Writes slides by the values of a ``SlideRecipe``."""
    from tqdm.auto import tqdm

    from medssl.data.synthetic.slide_files import SlideRecipe, write_slides

    if modality != "MR":
        message = "has no effect with kind slides"
        raise UserError(message, key="modality", got=modality, hint="Leave it out")
    recipe = SlideRecipe(*about)
    names: list[str] = []
    with tqdm(desc="phantoms", unit="slide") as bar:

        def written(name: str) -> None:
            names.append(name)
            bar.update()

        new = write_slides(out, recipe, written=written)
    total = len(names)
    labeled = total // recipe.patients * recipe.labeled
    log.info(f"{out}: {total} synthetic slides, {labeled} with a label ({new} written, {total - new} already present)")
    return PhantomsResult(out, total, labeled, written=new)
