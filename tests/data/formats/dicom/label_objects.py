"""Segmentation objects and structure sets for the tests, about series of ``make_scans``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data.make_scans import Series, slice_dataset, write_slice

from medssl.data.formats.base import LPS_TO_RAS, make_grid
from medssl.types import Grid

SPACE = "1.2.826.0.1.3680043.8.498.77"  # frame of reference of the series below
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def datasets_of(series: Series) -> list[Any]:
    """The slices of a series with what a segmentation object takes from them."""
    series.extra = {
        "FrameOfReferenceUID": SPACE, "PatientBirthDate": "", "AccessionNumber": "", "StudyID": "", "StudyDate": "",
        "StudyTime": "", "SeriesNumber": 1, "PositionReferenceIndicator": "",
    } | series.extra  # fmt: skip
    return [slice_dataset(series, number, pixels) for number, pixels in enumerate(series.pixels())]


def write_scan(folder: Path, series: Series) -> list[Any]:
    """Write the slices of a series; returns their data sets."""
    datasets = datasets_of(series)
    for number, dataset in enumerate(datasets):
        write_slice(folder / f"{number:03d}.dcm", dataset)
    return datasets


def grid_of(series: Series) -> Grid:
    """Grid of the volume that the slices make, voxels (column, row, slice)."""
    columns, rows, slices = series.shape
    affine = np.eye(4)
    right, down = np.array(series.orientation[:3]), np.array(series.orientation[3:])
    steps = [right * series.spacing_mm[1], down * series.spacing_mm[0], series.normal() * series.step_mm, [-7.0] * 3]
    affine[:3] = np.column_stack(steps) * np.array(LPS_TO_RAS)[:, None]
    return make_grid((columns, rows, slices), affine)


def segmentation(sources: Sequence[Any], pixels: np.ndarray, names: Sequence[str], kind: str, **more: Any) -> Any:
    """A segmentation object by highdicom; ``pixels`` (slice, row, column[, segment])."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    described = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Tissue, codes.SCT.Liver if number == 1 else codes.SCT.Tissue,
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, start=1)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.seg.Segmentation(
            source_images=list(sources), pixel_array=pixels, segmentation_type=kind, segment_descriptions=described,
            series_instance_uid=generate_uid(), series_number=9, sop_instance_uid=generate_uid(), instance_number=1,
            manufacturer="ACME", manufacturer_model_name="M", software_versions="1", device_serial_number="1", **more,
        )  # fmt: skip


def structure_set(sources: Sequence[Any], regions: dict[str, list[tuple[str, np.ndarray]]]) -> Any:
    """A structure set of named regions, each a list of contours: geometric type and points [N, 3] in LPS mm."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.sequence import Sequence as Items
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def item(**elements: Any) -> Dataset:
        dataset = Dataset()
        for name, value in elements.items():
            setattr(dataset, name, Items(value) if isinstance(value, list) and name.endswith("Sequence") else value)
        return dataset

    first = sources[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTSTRUCT, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTSTRUCT, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, name, first.get(name))
    images = [item(ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in sources]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = item(ReferencedSOPInstanceUID=first.StudyInstanceUID, RTReferencedSeriesSequence=[series])
    space = item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    dataset.ReferencedFrameOfReferenceSequence = Items([space])
    numbered = list(enumerate(regions.items(), start=1))
    dataset.StructureSetROISequence = Items(
        item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID)
        for number, (name, _) in numbered
    )
    dataset.ROIContourSequence = Items(
        item(
            ReferencedROINumber=number,
            ContourSequence=[
                item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{value:.6f}"[:16] for value in np.asarray(points).ravel()],
                )
                for kind, points in contours
            ],
        )
        for number, (_, contours) in numbered
    )
    return dataset


def contour(grid: Grid, points: Any, index: float) -> np.ndarray:
    """Points [N, 2] in voxels of slice ``index`` as LPS mm."""
    points = np.asarray(points, float)
    voxels = np.column_stack([points, np.full(len(points), index), np.ones(len(points))])
    return (voxels @ np.array(grid.affine).T)[:, :3] * LPS_TO_RAS
