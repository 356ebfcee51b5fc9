"""Reads one DICOM header: the slices of its file, or the reason why it holds no scan.

References: DICOM PS3.3 (2024e) C.7.6.1 to C.7.6.3, C.7.6.16 (frames), C.8 (modalities); PS3.5 (transfer syntaxes).
Identifiers are hashed when they are read, and never leave this package in clear text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from medssl.data.formats.dicom import fields, label_objects, mosaic, whole_slide
from medssl.data.formats.dicom.attributes import VECTORS, attributes_of, of_frames, split_shared, tags
from medssl.data.formats.dicom.elements import DicomError, damage, is_capture, parse, quiet, reason_of, shown, syntax_of
from medssl.data.formats.dicom.geometry import TAGS, picture_spacing, pose_of, spacing_of, vector_poses
from medssl.data.formats.dicom.pixels.extent import check_length
from medssl.data.formats.dicom.pixels.layout import samples_of
from medssl.data.formats.dicom.pixels.values import unit_of
from medssl.data.formats.dicom.slices import Slice
from medssl.data.formats.modality import normalized

if TYPE_CHECKING:
    from pydicom import Dataset

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientSex", "PatientAge",
    "Modality", "ImageType", "BurnedInAnnotation", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength",
    "SliceThickness", "BodyPartExamined", "ScanningSequence", "EchoTime", "RepetitionTime", "KVP", "ConvolutionKernel",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "InstanceNumber", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept", "RescaleType",
    "ModalityLUTSequence", "Units", "FrameTime",
)  # fmt: skip
_MAX_FRAMES = 100_000
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC: .100 to .108
_FRAME_TIME = 0x00181063
_NO_PICTURE = (
    "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTRECORD", "REG", "FID", "AU", "ECG", "HD", "EPS", "PLAN"
)  # fmt: skip
_COLOR = ("US", "ES", "XC", "GM", "SM", "OP", "IVUS", "IVOCT", "OPT", "DMS")


def read_slices(file: Path, path: str, digest: Callable[..., str]) -> tuple[str, list[Slice]]:
    """Reads one header.

    Args:
        file: The file.
        path: Path to store in the slices (relative to the root of the index).
        digest: Function that returns a keyed hash of some words.

    Returns:
        Digest of the series, and the slices (one for each frame; one for a film).

    Raises:
        DicomError: The file is rejected or damaged; holds the reason, and the series if it could be read.
        WholeSlideFound: The file is one of a whole slide.
    """
    with file.open("rb") as stream, quiet():
        dataset = parse(stream, (*_TAGS, *TAGS, *tags(), *whole_slide.TAGS))
        series = ""
        slices: tuple[Slice, ...] = ()
        try:
            series = digest("series", str(dataset.get("SeriesInstanceUID", "") or Path(path).parent))
            if form := label_objects.form_of(dataset):
                message = f"{form}: not a scan; label.objects true takes it as the label of its series"
                raise DicomError(message, rejected=True, label_object=label_objects.describe(stream, digest))
            if whole_slide.is_whole_slide(dataset):
                raise _whole_slide(dataset, stream, file.stat().st_size, series, digest)
            reason = _rejection(dataset)
            if reason:
                raise DicomError(reason, rejected=True)
            if "Rows" in dataset and "Columns" in dataset:
                slices = tuple(_slices(dataset, path, digest))
            check_length(dataset, stream, file.stat().st_size)
            return series, mosaic.tiles(slices, stream, digest) if mosaic.is_mosaic(dataset) else list(slices)
        except DicomError as error:
            rejected, label_object = error.rejected, error.label_object
            raise DicomError(
                str(error), rejected=rejected, series=series, slices=slices, label_object=label_object
            ) from error
        except damage() as error:
            raise DicomError(reason_of(error), series=series) from error


def _whole_slide(
    dataset: Dataset, stream: BinaryIO, size: int, series: str, digest: Callable[..., str]
) -> whole_slide.WholeSlideFound:
    """What a file of a whole slide holds; files of labels and overviews are not looked into."""
    file = whole_slide.describe(dataset)
    if file.flavor == "VOLUME":
        check_length(dataset, stream, size)
    facts = _facts(dataset, digest)
    facts["burned_in"] |= fields.text(dataset, 0x00480010).upper() == "YES"  # the label is in the picture
    return whole_slide.WholeSlideFound(series, file, facts)


def _rejection(dataset: Dataset) -> str:
    """Why the object is not a scan; "" if it is one."""
    modality, sop = normalized(str(dataset.get("Modality", ""))), str(dataset.get("SOPClassUID", ""))
    image_type = [str(word).upper() for word in (dataset.get("ImageType") or ())]
    if sop == "1.2.840.10008.1.3.10" or "DirectoryRecordSequence" in dataset:
        return "not an image: DICOMDIR"
    if modality == "SEG":
        return "segmentation object of surfaces or another kind that is not read"
    if modality == "RTDOSE":
        return "distribution of a dose (RTDOSE), not a scan"
    if modality in _NO_PICTURE or sop.startswith("1.2.840.10008.5.1.4.1.1.104"):
        return f"report, plan or other object without a picture ({shown(modality) or 'encapsulated document'})"
    if is_capture(sop):
        if not all(fields.texts(dataset, tag) for tag in (0x00200032, 0x00200037, 0x00280030)):
            return "secondary capture"
    if {"LOCALIZER", "SCOUT", "TOPOGRAM"} & set(image_type):
        return "localizer"
    if {"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT"} & set(image_type):
        return "screenshot"
    if modality not in _COLOR and samples_of(dataset) > 1:
        return f"screenshot or color overlay ({shown(modality) or 'no modality'} in color)"
    return ""


def _slices(dataset: Dataset, path: str, digest: Callable[..., str]) -> list[Slice]:
    """One slice for each frame. Frames without positions are a film, which has one slice for all frames."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 0 < frames <= _MAX_FRAMES:
        message = f"{frames:,} frames: expected 1 to {_MAX_FRAMES:,}"
        raise DicomError(message)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if groups and len(groups) != frames:
        message = f"{frames} frames with functional groups of {len(groups)}"
        raise DicomError(message)
    shared = dataset.get("SharedFunctionalGroupsSequence")
    sources = [[group, *(shared or ())[:1]] for group in groups] or [list((shared or ())[:1])]
    poses = [pose_of(dataset, source) for source in sources]
    common = attributes_of(dataset, digest)
    frame_attributes = of_frames(dataset, groups, digest) if groups else [{}]
    if frames > 1 and not groups:
        poses, frame_attributes = _by_vectors(dataset, poses[0], frames)
    spacings = [spacing_of(dataset, source) for source in sources]
    spacings = spacings if len(spacings) == frames else spacings * frames
    picture = picture_spacing(dataset) if None in poses and None in spacings else None
    shared_attributes, slice_attributes = split_shared([common | attributes for attributes in frame_attributes])
    facts = _facts(dataset, digest) | {"apart": shared_attributes}
    uid = str(dataset.get("SOPInstanceUID", "") or path)
    number = fields.number(dataset, 0x00200013) or 0.0
    shape = (int(dataset.Rows), int(dataset.Columns), samples_of(dataset))
    film = frames > 1 and not any(poses)
    slices = [
        Slice(
            path=path,
            frame=frame if frames > 1 or groups else None,
            instance=digest("instance", uid, str(frame)),
            shape=shape,
            spacing_mm=spacings[frame] or (picture if poses[frame] is None else None),
            pose=poses[frame],
            slice_attributes=slice_attributes[frame] | {"number": number + frame},
            facts=facts,
        )
        for frame in range(1 if film else frames)
    ]
    if film:
        return [_film_slice(dataset, slices[0], frames)]
    return slices


def _film_slice(dataset: Dataset, first: Slice, frames: int) -> Slice:
    """The slice of a film; its ``slice_attributes`` hold the number of frames.

    Raises:
        DicomError: The pixels are a video stream.
    """
    if syntax_of(dataset).startswith(_VIDEO):
        message = f"film of {frames} frames as a video stream (MPEG): export its frames as pictures"
        raise DicomError(message, rejected=True)
    slice_attributes: dict[str, Any] = {"number": first.slice_attributes.get("number", 0.0), "frames": frames}
    time = fields.number(dataset, _FRAME_TIME)
    return replace(first, frame=None, slice_attributes=slice_attributes | ({"frame_ms": time} if time else {}))


def _by_vectors(
    dataset: Dataset, pose: tuple[float, ...] | None, frames: int
) -> tuple[list[tuple[float, ...] | None], list[dict[str, Any]]]:
    """Poses and attributes of the frames of a reconstructed nuclear medicine volume; other frames have no poses."""
    reconstructed = any(word.upper().startswith("RECON") for word in fields.texts(dataset, 0x00080008))
    poses = vector_poses(dataset, pose, frames) if reconstructed else None
    if poses is None:
        return [None] * frames, [{}] * frames
    vectors = {name: dataset.get(name) for name in VECTORS}
    usable = {name: value for name, value in vectors.items() if value is not None and hasattr(value, "__len__")}
    frame_attributes = [
        {name: float(value[frame]) for name, value in usable.items() if len(value) == frames} for frame in range(frames)
    ]
    return list(poses), frame_attributes


def _facts(dataset: Dataset, digest: Callable[..., str]) -> dict[str, Any]:
    """Facts for the selection of scans; free text is left out, since it may contain names."""
    patient, issuer = fields.identifier(dataset, 0x00100020), fields.identifier(dataset, 0x00100021)
    study, reference = fields.text(dataset, 0x0020000D), fields.text(dataset, 0x00200052)
    sequence = dataset.get("ScanningSequence") or ""
    age = str(dataset.get("PatientAge", "") or "")
    facts: dict[str, Any] = {
        "modality": normalized(str(dataset.get("Modality", "") or "")) or "OT",
        "unit": unit_of(dataset),
        "subject": digest("patient", patient) if patient else "",
        "name": ""
        if patient
        else digest("name", fields.identifier(dataset, 0x00100010)),  # tells nameless series apart
        "issuer": digest("issuer", issuer) if issuer else "",
        "study": digest("study", study) if study else "",
        "reference": digest("reference", reference) if reference else "",
        "manufacturer": str(dataset.get("Manufacturer", "") or "").strip(),
        "model": str(dataset.get("ManufacturerModelName", "") or "").strip(),
        "body_part": str(dataset.get("BodyPartExamined", "") or "").strip(),
        "sequence": sequence if isinstance(sequence, str) else "/".join(map(str, sequence)),
        "kernel": str(dataset.get("ConvolutionKernel", "") or ""),
        "sex": str(dataset.get("PatientSex", "") or ""),
        "age_band": _age_band(age),
        "capture": is_capture(fields.text(dataset, 0x00080016)),
        "burned_in": str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
    }
    for word, tag in (
        ("field_strength_t", 0x00180087),
        ("slice_thickness_mm", 0x00180050),
        ("echo_time_ms", 0x00180081),
        ("repetition_time_ms", 0x00180080),
        ("kvp", 0x00180060),
    ):
        facts[word] = fields.number(dataset, tag)
    return facts


def _age_band(age: str) -> str:
    """Age in bands of ten years: 045Y is 40-49; ages from 90 on are one band."""
    if len(age) != 4 or not age[:3].isdigit() or age[3] not in "DWMY":
        return ""
    years = int(age[:3]) if age[3] == "Y" else int(age[:3]) // {"D": 365, "W": 52, "M": 12}[age[3]]
    return "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"
