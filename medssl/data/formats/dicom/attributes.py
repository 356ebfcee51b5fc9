"""Attributes that may separate the volumes of one DICOM series (DICOM PS3.3 C.7.6.16, C.8).

There are three kinds of attributes:

- ``CONTRASTS`` describe the meaning of voxels (echo, b-value, kernel, image type, unit). Slices that differ in one of
  them never belong to the same volume.
- ``MOMENTS`` describe when or in which run a slice was acquired (acquisition, point in time, cardiac phase, tube
  voltage). Slices of one volume may differ in them. They separate volumes only under the conditions of ``separation``.
- ``DESCRIPTIONS`` describe the patient and the series. They separate as moments do, after them. Copies are compared
  without them.

Identifiers and free text are stored as digests, times as seconds from a keyed point in time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from medssl.data.formats.dicom import fields

if TYPE_CHECKING:
    from pydicom import Dataset

Kind = Literal["set", "text", "number", "vector", "digest"]
Attributes = dict[str, Any]

CONTRASTS: dict[str, Kind] = {
    "SOPClassUID": "text", "ImageType": "set", "FrameType": "set", "StackID": "text", "ComplexImageComponent": "text",
    "AcquisitionContrast": "text", "EchoNumbers": "text", "EchoTime": "number", "EffectiveEchoTime": "number",
    "DiffusionBValue": "number", "DiffusionDirectionality": "text", "DiffusionGradientOrientation": "vector",
    "InversionTime": "number", "InversionTimes": "vector", "FlipAngle": "number", "VelocityEncodingDirection": "vector",
    "ASLContext": "text", "ConvolutionKernel": "text", "ConvolutionKernelGroup": "text",
    "ReconstructionAlgorithm": "text",
    "MonoenergeticEnergyEquivalent": "number",
    "EnergyWeightingFactor": "number", "RescaleType": "text", "Units": "text", "CorrectedImage": "set",
    "ContrastBolusAgent": "digest", "ContrastBolusAgentPhase": "text", "Laterality": "text", "ImageLaterality": "text",
    "FrameLaterality": "text", "LUTLabel": "digest", "MeasurementUnitsCodeSequence": "digest",
}  # fmt: skip
MOMENTS: dict[str, Kind] = {
    "TemporalPositionIdentifier": "number", "TemporalPositionIndex": "number", "TemporalPositionTimeOffset": "number",
    "NominalPercentageOfCardiacPhase": "number", "NominalCardiacTriggerDelayTime": "number", "TriggerTime": "number",
    "NominalPercentageOfRespiratoryPhase": "number", "NominalRespiratoryTriggerDelayTime": "number",
    "FrameReferenceTime": "number", "AcquisitionNumber": "number", "FrameAcquisitionNumber": "number",
    "AcquisitionUID": "digest", "IrradiationEventUID": "digest", "KVP": "number", "RepetitionTime": "number",
    "SequenceName": "digest", "SliceThickness": "number", "SpacingBetweenSlices": "number",
    "ReconstructionDiameter": "number", "ActualCardiacTriggerDelayTime": "number",
    "ActualRespiratoryTriggerDelayTime": "number", "AcquisitionDateTime": "number", "AcquisitionTime": "number",
}  # fmt: skip
DESCRIPTIONS: dict[str, Kind] = {
    "PatientName": "digest", "PatientBirthDate": "digest", "PatientSex": "text", "StudyDate": "digest",
    "AccessionNumber": "digest", "SeriesNumber": "number", "SeriesDescription": "digest", "ProtocolName": "digest",
    "SeriesDate": "digest", "SeriesTime": "digest", "ScanOptions": "set", "ScanningSequence": "set",
    "SequenceVariant": "set", "MRAcquisitionType": "text", "PatientPosition": "text", "GantryDetectorTilt": "number",
    "PixelBandwidth": "number", "NumberOfAverages": "number", "ReceiveCoilName": "digest", "FilterType": "digest",
    "DerivationDescription": "digest", "StationName": "digest",
}  # fmt: skip
CLOCKS = (
    "TriggerTime", "NominalCardiacTriggerDelayTime", "ActualCardiacTriggerDelayTime", "FrameReferenceTime",
    "AcquisitionDateTime", "AcquisitionTime",
)  # fmt: skip
# The vectors of a nuclear medicine object: one value for each frame (PS3.3 C.8.4.8).
VECTORS = (
    "EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector", "TimeSlotVector",
    "AngularViewVector", "TimeSliceVector",
)  # fmt: skip
_CODE_VALUE = {"CodeValue": "MeasurementUnitsCodeSequence"}
# Attributes that differ from slice to slice in regular series: stored for each slice, the others for each file.
_OF_SLICES = frozenset({*CLOCKS, "TemporalPositionIdentifier", "AcquisitionNumber"})
_DEFAULTS = (("RescaleType", "US"), ("RescaleType", "HU"))  # equal to a missing value, which other slices have
_GROUPS = (
    "FrameContentSequence", "PixelMeasuresSequence", "MRDiffusionSequence", "DiffusionGradientDirectionSequence",
    "MREchoSequence", "MRImageFrameTypeSequence", "MRModifierSequence", "MRTimingAndRelatedParametersSequence",
    "MRVelocityEncodingSequence", "MRArterialSpinLabelingSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence", "ParametricMapFrameTypeSequence", "CTReconstructionSequence", "CTXRayDetailsSequence",
    "CTExposureSequence", "ContrastBolusUsageSequence", "CardiacSynchronizationSequence",
    "RespiratorySynchronizationSequence", "TemporalPositionSequence", "FrameAnatomySequence",
    "PixelValueTransformationSequence", "RealWorldValueMappingSequence", "MeasurementUnitsCodeSequence",
    "UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence",
)  # fmt: skip
_OTHER_TAGS = (
    "AcquisitionDate", "FrameAcquisitionDateTime", "NumberOfTemporalPositions", "DimensionIndexSequence",
    "FrameOfReferenceUID", "IssuerOfPatientID", "PatientName", "DetectorInformationSequence", "SliceVector", *VECTORS,
)  # fmt: skip
# Places inside a stack: their indices do not separate volumes.
_PLACES = (0x00200032, 0x00209057, 0x00209301, 0x00201041, 0x00209113, 0x0048021E, 0x0048021F)
_INDEX = " (index)"

# Private elements for missing public attributes (b-values, directions, magnitude or phase): creator, elements, format.
_PRIVATE = (
    ("SIEMENS MR HEADER", 0x0019, "DiffusionBValue", (0x0019100C,), "text"),
    ("GEMS_PARM_01", 0x0043, "DiffusionBValue", (0x00431039,), "text"),
    ("Philips Imaging DD 001", 0x2001, "DiffusionBValue", (0x20011003,), "f"),
    ("GEMS_PARM_01", 0x0043, "ComplexImageComponent", (0x0043102F,), "text"),
    ("SIEMENS MR HEADER", 0x0019, "DiffusionGradientOrientation", (0x0019100E,), "d"),
    ("GEMS_ACQU_01", 0x0019, "DiffusionGradientOrientation", (0x001910BB, 0x001910BC, 0x001910BD), "text"),
    ("Philips MR Imaging DD 001", 0x2005, "DiffusionGradientOrientation", (0x200510B0, 0x200510B1, 0x200510B2), "f"),
)


def is_contrast(name: str) -> bool:
    """Whether an attribute is a contrast; a dimension index is of the kind of its attribute."""
    if name.endswith(_INDEX):
        return name.removesuffix(_INDEX) not in (*MOMENTS, "FrameAcquisitionDateTime")
    return name in CONTRASTS or name in VECTORS[:2]


@cache
def tags() -> tuple[str | int, ...]:
    """Tags of a file that are needed for its attributes."""
    private: list[str | int] = sorted({group << 16 | 0x10 for _, group, *_ in _PRIVATE})
    private += sorted({element for *_, elements, _ in _PRIVATE for element in elements})
    return (*CONTRASTS, *MOMENTS, *DESCRIPTIONS, *_OTHER_TAGS, *private)


@cache
def _attributes_by_tag() -> dict[int, tuple[str, Kind]]:
    from pydicom.datadict import tag_for_keyword

    names: dict[str, tuple[str, Kind]] = {
        name: (name, kind) for name, kind in (CONTRASTS | MOMENTS | DESCRIPTIONS).items()
    }
    names |= {word: (name, "digest") for word, name in _CODE_VALUE.items()}
    for name in ("MeasurementUnitsCodeSequence", "AcquisitionDateTime", "AcquisitionTime"):
        del names[name]
    names["NumberOfTemporalPositions"] = ("NumberOfTemporalPositions", "number")
    return {int(tag_for_keyword(name) or 0): about for name, about in names.items()}


@cache
def _sequences() -> frozenset[int]:
    from pydicom.datadict import tag_for_keyword

    return frozenset(int(tag_for_keyword(name) or 0) for name in _GROUPS)


def attributes_of(dataset: Dataset, digest: Callable[..., str]) -> Attributes:
    """Attributes of a data set that apply to all of its frames."""
    attributes = _collect(dataset, digest)
    attributes |= _acquisition_time(dataset, digest)
    for creator, group, name, elements, form in _PRIVATE:
        if name not in attributes and fields.text(dataset, group << 16 | 0x10) == creator:
            values = _private(dataset, elements, form)
            if values and (name != "DiffusionGradientOrientation" or attributes.get("DiffusionBValue")):
                attributes[name] = list(values) if name == "DiffusionGradientOrientation" else values[0]
    shared = dataset.get("SharedFunctionalGroupsSequence")
    return attributes | (_collect(shared[0], digest) if shared else {})


def of_frames(dataset: Dataset, groups: Sequence[Dataset], digest: Callable[..., str]) -> list[Attributes]:
    """Attributes of each frame: its functional groups and its dimension indices."""
    dimensions = _dimensions(dataset)
    attributes = []
    for group in groups:
        frame_attributes = _collect(group, digest)
        for name in ("UnassignedPerFrameConvertedAttributesSequence", "FrameContentSequence"):
            for item in group.get(name) or ():
                frame_attributes |= _acquisition_time(item, digest, dataset) | _dimension_values(item, dimensions)
        attributes.append(frame_attributes)
    return attributes


def split_shared(attributes: Sequence[Attributes]) -> tuple[Attributes, list[Attributes]]:
    """Splits the attributes of the slices of one file into those of the file and those of each slice."""
    if len(attributes) == 1:
        (slice_attributes,) = attributes
        slice_only = {name: value for name, value in slice_attributes.items() if name in _OF_SLICES}
        return {name: value for name, value in slice_attributes.items() if name not in slice_only}, [slice_only]
    first = attributes[0]
    shared = {
        name: value
        for name, value in first.items()
        if all(name in compared and compared[name] == value for compared in attributes)
    }
    return shared, [
        {name: value for name, value in slice_attributes.items() if name not in shared}
        for slice_attributes in attributes
    ]


def _collect(source: Dataset, digest: Callable[..., str]) -> Attributes:
    """Collects the attributes of a data set, or of a functional group and its items."""
    keywords, sequences = _attributes_by_tag(), _sequences()
    attributes: Attributes = {}
    for tag in list(source.keys()):
        number = int(tag)
        if number in sequences:
            for item in fields.items(source, tag):
                attributes |= _collect(item, digest)
        elif number in keywords:
            name, kind = keywords[number]
            value = _value(source, number, kind, digest)
            if value not in (None, "", []) and (name, value) not in _DEFAULTS:
                attributes[name] = value
    return attributes


def _value(source: Dataset, tag: int, kind: Kind, digest: Callable[..., str]) -> Any:
    if kind == "number":
        return fields.number(source, tag)
    if kind == "vector":
        return list(fields.numbers(source, tag) or ())
    words = fields.texts(source, tag)
    if kind == "set":
        return sorted({word.upper() for word in words if word})
    text = "\\".join(words)
    return digest("attribute", text.rstrip("^ ").casefold()) if kind == "digest" and text else text


def _acquisition_time(source: Dataset, digest: Callable[..., str], dataset: Dataset | None = None) -> Attributes:
    """Time of acquisition, in seconds from a keyed point in time, so that the index holds no date."""
    start = int(digest("clock", fields.text(dataset if dataset is not None else source, 0x0020000D)), 16) % 10**9
    for tag in (0x00189074, 0x0008002A):
        moment = _seconds(fields.text(source, tag)[:8], fields.text(source, tag)[8:])
        if moment is not None:
            return {"AcquisitionDateTime": round(moment - start, 6)}
    moment = _seconds(fields.text(source, 0x00080022), fields.text(source, 0x00080032))
    return {} if moment is None else {"AcquisitionTime": round(moment - start, 6)}


def _seconds(day: str, time: str) -> float | None:
    """Seconds of a DICOM date ("" without one) and a DICOM time of day; None if they are not valid."""
    time = time.split("+")[0].split("-")[0].replace(":", "")
    day = day.replace(".", "")
    try:
        days = date(int(day[:4]), int(day[4:6]), int(day[6:8])).toordinal() if day else 0
        return days * 86400.0 + int(time[:2]) * 3600 + int(time[2:4] or 0) * 60 + float(time[4:] or 0)
    except ValueError:
        return None


def _private(dataset: Dataset, elements: Sequence[int], form: str) -> tuple[float, ...] | None:
    """Numbers of private elements, from text or from binary numbers of 4 or 8 bytes."""
    values: list[float] = []
    for element in elements:
        item = dataset.get_item(element)
        value = item.value if item is not None else None
        if form in "fd" and isinstance(value, bytes):
            size = struct.calcsize(form)
            if not value or len(value) % size:
                return None
            values += struct.unpack(f"<{len(value) // size}{form}", value)
        else:
            numbers = fields.numbers(dataset, element)
            if not numbers:
                return None
            values += numbers[:1] if form == "text" else numbers
    return tuple(values)


def _dimensions(dataset: Dataset) -> list[str] | None:
    """Attribute of each dimension index, "" for places; None if the object does not define them."""
    from pydicom.datadict import keyword_for_tag

    sequence = dataset.get("DimensionIndexSequence")
    if not sequence:
        return None
    names = []
    for item in sequence:
        pointer = item.get("DimensionIndexPointer")
        tag = int(pointer) if pointer is not None else 0
        word = keyword_for_tag(tag) or f"{tag >> 16:04X},{tag & 0xFFFF:04X}"
        names.append("" if tag in _PLACES else f"{word}{_INDEX}")
    return names


def _dimension_values(content: Dataset, dimensions: list[str] | None) -> Attributes:
    values = fields.numbers(content, 0x00209157) or ()
    if dimensions is None:
        return {f"DimensionIndexValues[{place + 1}]": value for place, value in enumerate(values)}
    return {name: value for name, value in zip(dimensions, values, strict=False) if name}
