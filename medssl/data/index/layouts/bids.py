"""BIDS: ``sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz``, labels in ``derivatives``, values in ``participants.tsv``."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from medssl.data.index.layouts.base import HIDDEN, About, Filled, Layout, read_json, with_defaults
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.index.scan_index import IndexOptions

_MR = (
    "T1w T2w T2star T2starw PDw PDT2 FLAIR inplaneT1 inplaneT2 angio T1map T2map T2starmap R1map R2map PDmap MTw UNIT1 "
    "SWI swi bold cbv sbref dwi asl m0scan MP2RAGE MPM MEGRE MESE VFA IRT1 phase magnitude magnitude1 magnitude2 "
    "phasediff phase1 phase2 fieldmap epi ADC T1c T1ce T1gd"
).split()
_SUFFIXES = dict.fromkeys(_MR, "MR") | {"CT": "CT", "ct": "CT", "pet": "PT", "us": "US"}
_LABELS = ("dseg", "mask", "label", "labels", "seg")
_FREE = ("desc", "label", "res", "den", "atlas", "seg", "from", "to", "rater", "annot")  # entities of labels alone
_ENDING = re.compile(r"\.nii(?:\.gz)?$", re.IGNORECASE)


def fill(options: IndexOptions, folder: Path) -> Filled:
    """Subjects, and the columns of ``participants.tsv`` that the user chooses.

    Raises:
        UserError: No ``dataset_description.json``, or no folder of a subject.
    """
    read_json(folder / "dataset_description.json")
    subjects = [one for one in folder.glob("sub-*") if one.is_dir()]
    if not subjects:
        message = f"{folder.name} has no folder sub-LABEL"
        raise UserError(message)
    table = folder / "participants.tsv"
    summary = f"{len(subjects)} subjects"
    values, key = "", ""
    if table.is_file() and options.labels.columns and not options.labels.values:
        values, key = str(table), "participant_id"
        summary += f", columns {options.labels.columns} of participants.tsv"
    elif table.is_file() and not options.labels.values:
        names = table.read_text(encoding="utf-8-sig").partition("\n")[0].strip().split("\t")
        summary += f"; keep columns of participants.tsv with label.columns ({', '.join(names[1:]) or 'none'})"
    filled = with_defaults(options, r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[/_])", values=values, key=key)
    return Filled(filled, summary)


def layout(options: IndexOptions, folder: Path) -> Layout:
    """What the folder says of its files."""
    return _Bids(folder, choose=not options.labels.masks, modality=options.files.modality)


class _Bids(Layout):
    """Subjects, sessions, modalities by name; a label of ``derivatives`` belongs to the only image of its entities."""

    def __init__(self, folder: Path, *, choose: bool, modality: str) -> None:
        self.modality = modality
        self.labels: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.images: dict[tuple[str, str], int] = defaultdict(int)
        self.unclear: set[str] = set()
        self.choose = choose
        self.used: set[str] = set()
        if choose:
            self._look(folder)

    def about(self, path: str) -> About:
        """Study, modality and mask of a raw file; files outside of subjects are left out."""
        parts = PurePosixPath(path).parts
        if parts[0] == "derivatives":
            if not self.choose:
                return About()
            return About(HIDDEN if path in self.used else ("rejected", "derivative of BIDS, not a raw scan"))
        if not parts[0].startswith("sub-"):
            return About(("rejected", "outside of the subjects of BIDS"))
        names = {}
        if len(parts) > 1 and parts[1].startswith("ses-"):
            names["study"] = "/".join(parts[:2])
        _, suffix = _entities(parts[-1])
        if self.choose and suffix in (*_LABELS, "defacemask"):
            return About(("rejected", "label map among raw files of BIDS: say with label.masks whose it is"))
        if not self.modality and suffix in _SUFFIXES:
            names["modality"] = _SUFFIXES[suffix]
        label = self._label(path)
        return About(names=names, masks={"mask": label} if label else {})

    def notes(self) -> list[str]:
        """Labels whose image is not clear."""
        if not self.unclear:
            return []
        return [
            f"{len(self.unclear):,} label files of derivatives belong to several images, or several to one (first: "
            f"{min(self.unclear)}): say with label.masks which to take"
        ]

    def _look(self, folder: Path) -> None:
        """Find the raw images and the labels of derivatives by name."""
        for place, _, names in os.walk(folder):
            below = PurePosixPath(Path(place).relative_to(folder).as_posix())
            for name in sorted(filter(_ENDING.search, names)):
                entities, suffix = _entities(name)
                if below.parts[:1] == ("derivatives",) and suffix in _LABELS:
                    at = next((n for n, part in enumerate(below.parts) if part.startswith("sub-")), len(below.parts))
                    bare = "_".join(part for part in entities if part.partition("-")[0] not in _FREE)
                    self.labels["/".join(below.parts[at:]), bare].append((below / name).as_posix())
                elif below.parts and below.parts[0].startswith("sub-"):
                    self.images[below.as_posix(), "_".join(entities)] += 1
        for key, files in self.labels.items():
            if self.images[key] == 1 and len(files) == 1:
                self.used.update(files)
            elif self.images[key]:
                self.unclear.update(files)

    def _label(self, path: str) -> str:
        place = PurePosixPath(path)
        files = self.labels.get((place.parent.as_posix(), "_".join(_entities(place.name)[0])), [])
        return files[0] if len(files) == 1 and files[0] in self.used else ""


def _entities(name: str) -> tuple[list[str], str]:
    """Entities of a file's name ("sub-01", "ses-1") and its suffix ("T1w")."""
    *entities, suffix = _ENDING.sub("", name).split("_")
    return entities, suffix
