"""The Medical Segmentation Decathlon: ``dataset.json`` lists images and labels; 4D files hold one modality a volume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.layouts.base import (
    About,
    Filled,
    Layout,
    Rows,
    class_names,
    modality_of,
    read_json,
    with_defaults,
)
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.index.scan_index import IndexOptions


def fill(options: IndexOptions, folder: Path) -> Filled:
    """Classes, subjects (one a file), modality, and channels where there are several modalities.

    Raises:
        UserError: No ``dataset.json``, or one without a list of training images.
    """
    about = read_json(folder / "dataset.json")
    rows = _rows(about)
    plain = LabelOptions()
    names, ignore = options.labels.class_names, options.labels.ignore
    if not names and about.get("labels"):
        names, ignore = class_names(about["labels"])
    modalities = about.get("modality") or {}
    test = any(row.names for row in rows.values()) and options.labels.split == plain.split
    split = "train=0.9,val=0.1" if test else plain.split
    modality = modality_of(modalities)
    subject = r"([^/]+?)\.nii(?:\.gz)?$"
    filled = with_defaults(options, subject, modality, class_names=names, ignore=ignore, split=split)
    if len(modalities) > 1 and options.files.frames == "refuse":
        filled = replace(filled, files=replace(filled.files, frames="channels"))
    count = len(names.split(",")) if names else 0
    channels, modality_text = max(1, len(modalities)), f"modality {modality}" if modality else "no modality stated"
    summary = f"{len(rows)} images, {count} classes, {channels} channels, {modality_text}"
    summary += ", each file is a subject (change it with subject)" if options.subject == "dicom" else ""
    summary += "; the list 'test' is the test split, the others are split 0.9 to 0.1" if test else ""
    return Filled(filled, summary)


def layout(options: IndexOptions, folder: Path) -> Layout:
    """What the folder says of its files."""
    about = read_json(folder / "dataset.json")
    count = len(about.get("modality") or {}) if options.files.frames == "channels" else 0
    rows = {path: replace(one, count=count) for path, one in _rows(about).items()}
    return Rows(rows, "dataset.json")


def _rows(about: dict[str, Any]) -> dict[str, About]:
    """What is said of each image."""
    rows: dict[str, About] = {}
    try:
        for entry in about["training"]:
            image, label = (entry, "") if isinstance(entry, str) else (entry["image"], entry.get("label", ""))
            row = About(masks={"mask": _path(label)} if label else {})
            if rows.setdefault(_path(image), row) != row:
                message = f"dataset.json lists {_path(image)} twice, with two labels: remove one"
                raise UserError(message)
        for entry in about.get("test", []):
            rows[_path(entry if isinstance(entry, str) else entry["image"])] = About(names={"split": "test"})
    except (KeyError, TypeError, AttributeError) as error:
        message = "dataset.json has no list 'training' of images and labels: expected a data set of the Decathlon"
        raise UserError(message) from error
    return rows


def _path(text: str) -> str:
    return PurePosixPath(text).as_posix().removeprefix("./")
