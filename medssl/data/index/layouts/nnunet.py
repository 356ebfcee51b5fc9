"""The raw folder of nnU-Net: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.layouts.base import (
    HIDDEN,
    About,
    Filled,
    Layout,
    class_names,
    modality_of,
    need_folder,
    read_json,
    with_defaults,
)
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.index.scan_index import IndexOptions

_IMAGES, _LABELS = ("imagesTr", "imagesTs"), ("labelsTr", "labelsTs")


def fill(options: IndexOptions, folder: Path) -> Filled:
    """Masks, classes, subjects (one a case) and modality; ``imagesTs`` is the split "test".

    Raises:
        UserError: No ``dataset.json`` or ``imagesTr``, or regions without ``label.class_names``.
    """
    about = read_json(folder / "dataset.json")
    if about.get("dataset"):
        message = "dataset.json lists its files under 'dataset', which is not read: list them in a table (layout csv)"
        raise UserError(message)
    need_folder(folder, "imagesTr")
    ending, channels = _ending(about), _channels(about)
    plain = LabelOptions()
    names, ignore = options.labels.class_names, options.labels.ignore
    if not names and about.get("labels"):
        names, ignore = class_names(about["labels"])
    labeled = (folder / "labelsTr").is_dir()
    masks = f"imagesTr=labelsTr,imagesTs=labelsTs,_0000{ending}={ending}" if labeled else ""
    test = (folder / "imagesTs").is_dir() and options.labels.split == plain.split
    split = "train=0.9,val=0.1" if test else plain.split
    modality = modality_of(about.get("channel_names") or about.get("modality"))
    subject = rf"(?:^|/)images(?:Tr|Ts)/(.+)_\d{{4}}{re.escape(ending)}$"
    filled = with_defaults(options, subject, modality, masks=masks, class_names=names, ignore=ignore, split=split)
    count = len(names.split(",")) if names else 0
    modality_text = f"modality {modality}" if modality else "no modality stated"
    summary = f"{count} classes, {channels} channel{'s' if channels > 1 else ''}, {modality_text}"
    summary += ", each case is a subject (change it with subject)" if options.subject == "dicom" else ""
    summary += "; imagesTs is the test split, imagesTr is split 0.9 to 0.1" if test else ""
    cases = len(list((folder / "labelsTr").glob(f"*{ending}"))) if labeled else 0
    if labeled and "numTraining" in about and about["numTraining"] != cases:
        summary += f"; dataset.json says {about['numTraining']} training cases, labelsTr has {cases}"
    return Filled(filled, summary)


def layout(options: IndexOptions, folder: Path) -> Layout:
    """What the folder says of its files."""
    del options
    about = read_json(folder / "dataset.json")
    return _Raw(_ending(about), _channels(about))


class _Raw(Layout):
    def __init__(self, ending: str, channels: int) -> None:
        self.ending, self.channels = ending, channels
        self.name = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}$")

    def about(self, path: str) -> About:
        """The first channel is the scan, the others belong to it."""
        top, _, rest = path.partition("/")
        if top in _LABELS:
            return About()
        if top not in _IMAGES:
            return About(("rejected", "not part of the layout nnunet"))
        match = self.name.match(rest)
        if not match:
            return About(("rejected", f"no channel number in its name: expected CASE_0000{self.ending}"))
        case, number = match.group(1), int(match.group(2))
        if number:
            return About(HIDDEN if number < self.channels else ("rejected", "channel that dataset.json does not name"))
        more = tuple(f"{top}/{case}_{channel:04d}{self.ending}" for channel in range(1, self.channels))
        return About(names={"split": "test"} if top == "imagesTs" else {}, channels=more)


def _ending(about: dict[str, object]) -> str:
    return str(about.get("file_ending") or ".nii.gz")


def _channels(about: dict[str, object]) -> int:
    named = about.get("channel_names") or about.get("modality")
    if not isinstance(named, dict) or not named:
        message = "dataset.json has no channel_names: expected a raw data set of nnU-Net"
        raise UserError(message)
    return len(named)
