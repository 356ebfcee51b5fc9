"""DICOM files: from one header to slices, and from the files of a stack to its array.

References: DICOM PS3.3 (2024e) C.7.6.1 to C.7.6.3, C.7.6.16 (frames), C.8 (modalities); PS3.5 (transfer syntaxes).
Identifiers never leave this room in the clear: they are hashed as they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.dicom import mosaic
from medssl.data.formats.dicom.elements import DicomError, damage, parse, quiet
from medssl.data.formats.dicom.extent import check_length
from medssl.types import Kind, ValueDomain

if TYPE_CHECKING:
    from pydicom import Dataset

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientSex", "PatientAge",
    "Modality", "ImageType", "BurnedInAnnotation", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength",
    "SliceThickness", "BodyPartExamined", "ScanningSequence", "EchoTime", "RepetitionTime", "KVP", "ConvolutionKernel",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "InstanceNumber", "TemporalPositionIdentifier", "EchoNumbers",
    "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
_NO_PICTURE = (
    "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "AU", "ECG", "HD", "EPS", "PLAN"
)  # fmt: skip
_STACKED = ("CT", "MR", "PT", "NM")
_COLOUR = ("US", "ES", "XC", "GM", "SM", "OP", "IVUS", "IVOCT", "OPT", "DMS")


@dataclass(frozen=True)
class Slice:
    """One slice (or one picture) of a DICOM series, all identifiers hashed.

    Attributes:
        instance: Digest of the SOP instance and the frame.
        shape: Rows, columns, samples a pixel.
        spacing_mm: Between rows, between columns; None where nothing says.
        pose: Direction of a row (3), direction of a column (3), position of the first pixel (3), LPS; None without.
        turn: What may tell volumes of one series apart: time, echo, b_value, trigger, part, acquisition, number.
        about: Facts of the series, safe to list.
    """

    path: str
    frame: int | None
    instance: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float] | None
    pose: tuple[float, ...] | None
    turn: dict[str, float | str]
    about: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """Slices of CT, MR, PET and all else that has a place in space belong to volumes; the rest are images."""
        return "volume" if self.pose is not None or self.about["modality"] in _STACKED else "image"

    @property
    def value_domain(self) -> ValueDomain:
        """What the values mean, by modality and samples."""
        if self.shape[2] == 3:
            return "rgb"
        domains: dict[str, ValueDomain] = {"CT": "hu", "MR": "mr"}
        return domains.get(self.about["modality"], "gray")


def to_json(slices: Sequence[Slice]) -> tuple[str, str]:
    """The slices of one file as JSON: what is each one's own, and what they share with their whole series."""
    own = [[one.frame, one.instance, one.shape, one.spacing_mm, one.pose, one.turn] for one in slices]
    return json.dumps(own, separators=(",", ":")), json.dumps(slices[0].about, separators=(",", ":"))


def from_json(own: str, about: str, path: str) -> list[Slice]:
    """The opposite of ``to_json``."""
    shared = json.loads(about)
    return [
        Slice(
            path=path,
            frame=frame,
            instance=instance,
            shape=tuple(shape),
            spacing_mm=tuple(spacing_mm) if spacing_mm else None,
            pose=tuple(pose) if pose else None,
            turn=turn,
            about=shared,
        )
        for frame, instance, shape, spacing_mm, pose, turn in json.loads(own)
    ]


# --- one header


def read_slices(file: Path, path: str, digest: Callable[..., str]) -> tuple[str, list[Slice]]:
    """Read one header.

    Args:
        file: The file.
        path: What the slices are to call it (relative to the root of the index).
        digest: Keyed hash of some words.

    Returns:
        Digest of the series, and the slices (one for each frame).

    Raises:
        DicomError: Rejected or damaged, with the reason; the series where it could be read.
    """
    with file.open("rb") as stream, quiet():
        dataset = parse(stream, _TAGS)
        series = ""
        try:
            series = digest("series", str(dataset.get("SeriesInstanceUID", "") or Path(path).parent))
            reason = _rejection(dataset)
            if reason:
                raise DicomError(reason, rejected=True)
            check_length(dataset, stream, file.stat().st_size)
            slices = _slices(dataset, path, digest)
            return series, mosaic.tiles(slices, stream, digest) if mosaic.is_mosaic(dataset) else slices
        except DicomError as error:
            raise DicomError(str(error), rejected=error.rejected, series=series) from error
        except damage() as error:
            message = f"header not understood: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            raise DicomError(message, series=series) from error


def _rejection(dataset: Dataset) -> str:
    """Why the object is no scan, or nothing."""
    modality, sop = str(dataset.get("Modality", "")), str(dataset.get("SOPClassUID", ""))
    image_type = [str(word).upper() for word in (dataset.get("ImageType") or ())]
    if sop == "1.2.840.10008.1.3.10" or "DirectoryRecordSequence" in dataset:
        return "not an image: DICOMDIR"
    if modality == "SEG":
        return "segmentation object, not a scan"
    if modality in _NO_PICTURE or sop.startswith("1.2.840.10008.5.1.4.1.1.104"):
        return f"report, plan or other object without a picture ({modality or 'encapsulated document'})"
    if sop.startswith("1.2.840.10008.5.1.4.1.1.77.1.6"):
        return "whole slide: not read by this version"
    if sop.startswith("1.2.840.10008.5.1.4.1.1.7") and not sop.startswith("1.2.840.10008.5.1.4.1.1.77"):
        return "secondary capture"
    if {"LOCALIZER", "SCOUT", "TOPOGRAM"} & set(image_type):
        return "localiser"
    if str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        return "palette colours: not read by this version"  # the stored numbers are places in a table, no values
    if {"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT"} & set(image_type):
        return "screenshot"
    if modality not in _COLOUR and int(dataset.get("SamplesPerPixel") or 1) > 1:
        return f"screenshot or colour overlay ({modality or 'no modality'} in colour)"
    return ""


def _slices(dataset: Dataset, path: str, digest: Callable[..., str]) -> list[Slice]:
    """One slice for each frame; frames without positions are a film, which is no scan."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames > 1 and not groups:
        message = f"{frames} frames without positions (a film)"
        raise DicomError(message, rejected=True)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    uid = str(dataset.get("SOPInstanceUID", "") or path)
    about = _about(dataset, digest)
    shape = (int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1))
    found = []
    for frame in range(frames):
        sources = [groups[frame], shared, dataset] if groups else [dataset]
        spacing = _numbers(sources, "PixelMeasuresSequence", "PixelSpacing", 2) or _numbers(
            [dataset], "", "ImagerPixelSpacing", 2
        )
        orientation = _numbers(sources, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        position = _numbers(sources, "PlanePositionSequence", "ImagePositionPatient", 3)
        found.append(
            Slice(
                path=path,
                frame=frame if frames > 1 or groups else None,
                instance=digest("instance", uid, str(frame)),
                shape=shape,
                spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
                pose=orientation + position if orientation and position else None,
                turn=_turn(dataset, groups[frame] if groups else None, frame),
                about=about,
            )
        )
    return found


def _numbers(sources: Sequence[Any], sequence: str, name: str, count: int) -> tuple[float, ...] | None:
    """The first finite value of ``name``, in the functional group ``sequence`` or plain."""
    for source in sources:
        if source is None:
            continue
        item = source.get(sequence)[0] if sequence and source.get(sequence) else source
        value = item.get(name)
        if value is not None and not isinstance(value, str) and len(value) == count:
            numbers = tuple(float(number) for number in value)
            return numbers if np.isfinite(numbers).all() else None
    return None


def _turn(dataset: Dataset, group: Any, frame: int) -> dict[str, float | str]:
    """What may tell the volumes of one series apart, as far as the header says."""
    turn: dict[str, float | str] = {}
    names = {
        "time": "TemporalPositionIdentifier",
        "echo": "EchoNumbers",
        "b_value": "DiffusionBValue",
        "echo_time": "EchoTime",
        "trigger": "TriggerTime",
        "acquisition": "AcquisitionNumber",
    }
    for word, name in names.items():
        value = dataset.get(name)
        if value is not None and str(value) not in ("", "None"):
            turn[word] = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    image_type = [str(kind) for kind in (dataset.get("ImageType") or ())]
    if image_type[2:]:
        turn["part"] = image_type[2]
    content = group.get("FrameContentSequence") if group is not None else None
    if content and content[0].get("TemporalPositionIndex") is not None:
        turn["time"] = float(content[0].TemporalPositionIndex)
    number = dataset.get("InstanceNumber")
    turn["number"] = float(number if number not in (None, "") else 0) + frame
    return turn


def _about(dataset: Dataset, digest: Callable[..., str]) -> dict[str, Any]:
    """Facts to select scans by; free text stays out, since it may hold names."""
    patient = str(dataset.get("PatientID", "") or "").strip()
    study = str(dataset.get("StudyInstanceUID", "") or "")
    sequence = dataset.get("ScanningSequence") or ""
    age = str(dataset.get("PatientAge", "") or "")
    about: dict[str, Any] = {
        "modality": str(dataset.get("Modality", "") or "OT"),
        "subject": digest("patient", patient) if patient else "",
        "study": digest("study", study) if study else "",
        "manufacturer": str(dataset.get("Manufacturer", "") or "").strip(),
        "model": str(dataset.get("ManufacturerModelName", "") or "").strip(),
        "body_part": str(dataset.get("BodyPartExamined", "") or "").strip(),
        "sequence": sequence if isinstance(sequence, str) else "/".join(map(str, sequence)),
        "kernel": str(dataset.get("ConvolutionKernel", "") or ""),
        "sex": str(dataset.get("PatientSex", "") or ""),
        "age_band": _age_band(age),
        "burned_in": str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
    }
    for word, name in (
        ("field_strength_t", "MagneticFieldStrength"),
        ("slice_thickness_mm", "SliceThickness"),
        ("echo_time_ms", "EchoTime"),
        ("repetition_time_ms", "RepetitionTime"),
        ("kvp", "KVP"),
    ):
        value = dataset.get(name)
        about[word] = float(value) if value not in (None, "") and not isinstance(value, list) else None
    return about


def _age_band(age: str) -> str:
    """Ten years to a band: 045Y is 40-49; ages from 90 share one band."""
    if len(age) != 4 or not age[:3].isdigit() or age[3] not in "DWMY":
        return ""
    years = int(age[:3]) if age[3] == "Y" else int(age[:3]) // {"D": 365, "W": 52, "M": 12}[age[3]]
    return "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"
