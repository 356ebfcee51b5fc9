"""Position, orientation and pixel spacing of a slice (DICOM PS3.3 C.7.6.2, C.7.6.16.2, C.8.4.15)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.base import FARTHEST_MM, LARGEST_MM, SMALLEST_MM
from medssl.data.formats.dicom import fields
from medssl.data.formats.dicom.elements import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

TAGS = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "EstimatedRadiographicMagnificationFactor",
    "PixelAspectRatio", "ImageOrientationPatient", "ImagePositionPatient", "SequenceOfUltrasoundRegions",
    "SpacingBetweenSlices", "DetectorInformationSequence", "SliceVector",
)  # fmt: skip
_RIGHT_ANGLE = 5e-3  # cosines written with three decimals are this far off
_SPACING, _IMAGER, _SCANNED, _MAGNIFICATION = 0x00280030, 0x00181164, 0x00182010, 0x00181114
_ORIENTATION, _POSITION, _BETWEEN, _SLICES = 0x00200037, 0x00200032, 0x00180088, 0x00540080
_CENTIMETERS = 3.0

Spacing = tuple[float, float]


def spacing_of(dataset: Dataset, groups: Sequence[Any]) -> Spacing | None:
    """Distance between rows and between columns in the patient, mm; None if the header does not state it.

    Args:
        dataset: The file.
        groups: Functional groups of the frame, then the shared ones.

    Raises:
        DicomError: A value is zero, negative, or outside 0.001 to 100 mm.
    """
    for source in (*(_item(group, "PixelMeasuresSequence") for group in groups), dataset):
        spacing = _spacing(source, _SPACING, "PixelSpacing")
        if spacing:
            return spacing
    return None


def picture_spacing(dataset: Dataset) -> Spacing | None:
    """Pixel spacing of a picture without ``PixelSpacing``, from other attributes of its modality.

    ``ImagerPixelSpacing`` is measured on the detector; it is divided by the magnification if that is known. With only
    an aspect ratio, the shorter side of a pixel is 1 mm.
    """
    spacing = _spacing(dataset, _IMAGER, "ImagerPixelSpacing")
    if spacing:
        factor = fields.number(dataset, _MAGNIFICATION) or 1.0
        return (spacing[0] / factor, spacing[1] / factor) if 0.1 < factor < 100 else spacing
    spacing = _spacing(dataset, _SCANNED, "NominalScannedPixelSpacing") or _spacing_of_regions(dataset)
    ratio = fields.numbers(dataset, 0x00280034, 2)
    if spacing or not ratio or min(ratio) <= 0:
        return spacing
    return ratio[0] / min(ratio), ratio[1] / min(ratio)


def pose_of(dataset: Dataset, groups: Sequence[Any]) -> tuple[float, ...] | None:
    """Direction of a row (3), of a column (3), unit vectors, and the position of the first pixel (3), LPS mm.

    Raises:
        DicomError: The directions are not unit vectors at right angles.
    """
    detector = _item(dataset, "DetectorInformationSequence")
    orientation = _first(
        [_item(group, "PlaneOrientationSequence") for group in groups] + [dataset, detector], _ORIENTATION, 6
    )
    position = _first([_item(group, "PlanePositionSequence") for group in groups] + [dataset, detector], _POSITION, 3)
    if orientation is None or position is None or not any(orientation):
        return None
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = float(np.linalg.norm(rows)), float(np.linalg.norm(columns))
    angle = float(rows @ columns) / max(lengths[0] * lengths[1], 1e-12)
    if max(abs(length - 1) for length in lengths) > _RIGHT_ANGLE or abs(angle) > _RIGHT_ANGLE:
        message = (
            f"ImageOrientationPatient: directions of length {lengths[0]:.4g} and {lengths[1]:.4g} with cosine "
            f"{angle:.4f}, expected unit vectors at right angles"
        )
        raise DicomError(message)
    distance = max(map(abs, position))
    if distance > FARTHEST_MM:
        message = f"ImagePositionPatient {distance:.3g} mm away: expected at most {FARTHEST_MM:g} mm"
        raise DicomError(message)
    if max(abs(length - 1) for length in lengths) > 1e-6:
        rows, columns = rows / lengths[0], columns / lengths[1]
    return (*(float(value) for value in (*rows, *columns)), *position)


def vector_poses(dataset: Dataset, pose: tuple[float, ...] | None, frames: int) -> list[tuple[float, ...]] | None:
    """Pose of each frame of a nuclear medicine volume, from SliceVector and SpacingBetweenSlices.

    A positive spacing follows the cross product of the directions of the first slice (C.8.4.15). None if one of these
    attributes is missing.
    """
    slices, step = fields.numbers(dataset, _SLICES, frames), fields.number(dataset, _BETWEEN)
    if pose is None or slices is None or not step:
        return None
    normal = np.cross(pose[:3], pose[3:6])
    return [
        (*pose[:6], *(float(value) for value in np.array(pose[6:]) + (number - 1) * step * normal)) for number in slices
    ]


def check_step(name: str, values: Sequence[float]) -> None:
    """Refuses distances that are not plausible.

    Raises:
        DicomError: A value is zero, negative, not finite, or outside 0.001 to 100 mm.
    """
    if all(math.isfinite(value) and SMALLEST_MM <= value <= LARGEST_MM for value in values):
        return
    shown = " x ".join(f"{value:g}" for value in values)
    message = f"{name} of {shown} mm: expected {SMALLEST_MM:g} to {LARGEST_MM:g} mm (DICOM measures in mm)"
    raise DicomError(message)


def _spacing(source: Any, tag: int, name: str) -> Spacing | None:
    values = fields.numbers(source, tag, 2) if source is not None else None
    if values is None:
        if source is not None and fields.texts(source, tag):
            message = f"{name} of another form: expected two numbers"
            raise DicomError(message)
        return None
    check_step(name, values)
    return values[0], values[1]


def _spacing_of_regions(dataset: Dataset) -> Spacing | None:
    """Spacing of ultrasound: that of its 2D regions, if all agree and measure in centimeters."""
    spacings = set()
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        if fields.number(region, 0x00186012) != 1:
            continue
        deltas = fields.number(region, 0x0018602E), fields.number(region, 0x0018602C)
        units = fields.number(region, 0x00186026), fields.number(region, 0x00186024)
        if units != (_CENTIMETERS, _CENTIMETERS) or None in deltas:
            return None
        spacings.add((abs(deltas[0] or 0.0) * 10, abs(deltas[1] or 0.0) * 10))
    if len(spacings) != 1:
        return None
    (spacing,) = spacings
    check_step("PhysicalDeltaX and PhysicalDeltaY", spacing)
    return spacing


def _item(source: Any, name: str) -> Any:
    """First item of a sequence, or None."""
    sequence = source.get(name) if source is not None else None
    return sequence[0] if sequence else None


def _first(sources: Sequence[Any], tag: int, count: int) -> tuple[float, ...] | None:
    for source in sources:
        values = fields.numbers(source, tag, count) if source is not None else None
        if values is not None:
            return values if all(map(math.isfinite, values)) else None
    return None
