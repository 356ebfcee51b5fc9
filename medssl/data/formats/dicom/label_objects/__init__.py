"""DICOM objects that label scans: segmentations and structure sets. Their description in the index, and their reading.

Names of segments are free text. They stay in the index file; messages about single scans use numbers instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medssl.data.formats.dicom import fields
from medssl.data.formats.dicom.elements import DicomError, damage, parse, quiet, reason_of
from medssl.data.formats.dicom.label_objects.contours import read_structures
from medssl.data.formats.dicom.label_objects.segmentation import read_segmentation
from medssl.types import Grid, Part

if TYPE_CHECKING:
    from pydicom import Dataset

_FORMS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation object",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation object",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "structure set",
}
_TAGS = (
    "SOPClassUID", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SegmentSequence", "SegmentationType",
    "ReferencedSeriesSequence", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence",
)  # fmt: skip
_LONGEST_NAME = 200
_MAX_ENTRIES = 10_000  # segments, slices


@dataclass(frozen=True)
class LabelObject:
    """Description of a label object in the index; identifiers are hashed like those of scans.

    Attributes:
        form: "segmentation object" or "structure set".
        subject: Digest of the patient.
        study: Digest of the study.
        series: Digests of the series that the object references.
        references: Digests of its frames of reference.
        segments: Number, label and type of each segment or region.
        instances: Digests of the slices (first frames of multi-frame files) that the object references.
    """

    form: str
    subject: str
    study: str
    series: tuple[str, ...]
    references: tuple[str, ...]
    segments: tuple[tuple[int, str, str], ...]
    instances: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The description as JSON, for the index."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> LabelObject:
        """Inverse of ``to_json``."""
        stored: dict[str, Any] = json.loads(text)
        lists = {name: tuple(stored[name]) for name in ("series", "references", "instances")}
        segments = tuple((int(number), str(label), str(kind)) for number, label, kind in stored["segments"])
        return cls(stored["form"], stored["subject"], stored["study"], **lists, segments=segments)


def form_of(dataset: Dataset) -> str:
    """Kind of a label object for messages; "" for other objects."""
    return _FORMS.get(str(dataset.get("SOPClassUID", "")), "")


def describe(stream: BinaryIO, digest: Callable[..., str]) -> str:
    """Description of a label object for the index, as JSON.

    Args:
        stream: The file.
        digest: Function that returns a keyed hash of some words.
    """
    stream.seek(0)
    dataset = parse(stream, _TAGS)
    form = form_of(dataset)
    structures = form == "structure set"
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or ()
    references = [str(item.get("FrameOfReferenceUID", "")) for item in (dataset, *frames)]
    series = _series_of_structures(frames) if structures else list(dataset.get("ReferencedSeriesSequence") or ())
    patient, study = fields.identifier(dataset, 0x00100020), fields.text(dataset, 0x0020000D)
    segments = _regions(dataset) if structures else _segments(dataset)
    uids = [str(item.get("SeriesInstanceUID", "")) for item in series]
    return LabelObject(
        form=form,
        subject=digest("patient", patient) if patient else "",
        study=digest("study", study) if study else "",
        series=tuple(digest("series", uid) for uid in dict.fromkeys(uids) if uid),
        references=tuple(digest("reference", uid) for uid in dict.fromkeys(references) if uid),
        segments=tuple(segments[:_MAX_ENTRIES]),
        instances=tuple(digest("instance", uid, "0") for uid in _instances(series)[:_MAX_ENTRIES]),
    ).to_json()


def _series_of_structures(frames: Sequence[Any]) -> list[Any]:
    studies = [study for frame in frames for study in frame.get("RTReferencedStudySequence") or ()]
    return [series for study in studies for series in study.get("RTReferencedSeriesSequence") or ()]


def _instances(series: Sequence[Any]) -> list[str]:
    names = ("ReferencedInstanceSequence", "ContourImageSequence")
    items = [item for entry in series for name in names for item in entry.get(name) or ()]
    uids = [str(item.get("ReferencedSOPInstanceUID", "")) for item in items]
    return [uid for uid in dict.fromkeys(uids) if uid]


def _segments(dataset: Dataset) -> list[tuple[int, str, str]]:
    background = 0 if str(dataset.get("SegmentationType", "")).upper() == "LABELMAP" else None
    segments = []
    for item in dataset.get("SegmentSequence") or ():
        kind = (item.get("SegmentedPropertyTypeCodeSequence") or [{}])[0].get("CodeMeaning", "")
        if int(item.SegmentNumber) != background:
            segments.append((int(item.SegmentNumber), _name(item.get("SegmentLabel", "")), _name(kind)))
    return segments


def _regions(dataset: Dataset) -> list[tuple[int, str, str]]:
    items = dataset.get("StructureSetROISequence") or ()
    return [(int(item.ROINumber), _name(item.get("ROIName", "")), "") for item in items]


def _name(value: Any) -> str:
    return " ".join(str(value or "").split())[:_LONGEST_NAME]


def read_objects(parts: Sequence[Part], classes: Sequence[int], root: Path, grid: Grid) -> tuple[np.ndarray, list[str]]:
    """Reads the label of a scan from its label objects.

    Args:
        parts: File and segment (as ``frame``) of each part of the label.
        classes: Class value of each part.
        root: Root of the index.
        grid: Grid of the scan, which is a volume.

    Returns:
        The label [1, i, j, k], and notes.

    Raises:
        DicomError: A file is damaged or does not fit the scan; names the file.
        OSError: A file is missing.
    """
    by_path: dict[str, dict[int, int]] = {}
    for part, value in zip(parts, classes, strict=True):
        by_path.setdefault(part.path, {})[part.frame or 0] = value
    label: np.ndarray | None = None
    notes: list[str] = []
    for path, segments in by_path.items():
        file = root / path
        try:
            with file.open("rb") as stream, quiet():
                form = form_of(parse(stream, ("SOPClassUID",)))
            if not form:
                message = "is no segmentation object or structure set any more: index the scans again"
                raise DicomError(message)
            result = (read_structures if form == "structure set" else read_segmentation)(file, segments, grid)
        except OSError:
            raise
        except damage() as error:
            message = f"label {file.name}: {reason_of(error)}"
            raise DicomError(message) from error
        notes += [f"label {file.name}: {note}" for note in result.notes]
        if label is None:
            label = result.array
            continue
        overlap = int(((label != 0) & (result.array != 0)).sum())
        if overlap:
            message = f"label {file.name}: overlaps another object of the scan at {overlap:,} voxels: keep one of them"
            raise DicomError(message)
        label = np.where(result.array != 0, result.array, label)
    if label is None:
        message = "a label without files"
        raise DicomError(message)
    return label[None], notes
