"""Synthetic slides as DICOM whole slides (PS3.3 A.32.8): one file a level, tiles in full order as JPEG frames."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.synthetic.slide_files import TILE, Pyramid, jpeg
from medssl.data.synthetic.slides import MPP, OBJECTIVE

if TYPE_CHECKING:
    import pydicom

    from medssl.data.synthetic.slides import SyntheticSlide

_ITEM, _END, _UNDEFINED = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xff\xff\xff\xff"
_CODES = {"hematoxylin": ("12710003", "hematoxylin stain"), "eosin": ("36879007", "water soluble eosin stain")}


def write_dicom(folder: Path, slide: SyntheticSlide, name: str, key: tuple[int, int]) -> None:
    """Write the levels of a slide as ``level0.dcm``, ``level1.dcm``...

    Args:
        folder: An empty folder.
        slide: The slide.
        name: Name of the slide; its beginning is the patient's.
        key: Seed and number, from which identifiers follow.
    """
    with Pyramid(slide, folder / "level") as levels:
        for number, (shape, tiles) in enumerate(levels):
            dataset = _header(shape, slide, number, name, key)
            file = folder / f"level{number}.dcm"
            dataset.save_as(file, enforce_file_format=True)
            with file.open("ab") as stream:
                stream.write(b"\xe0\x7f\x10\x00OB\0\0" + _UNDEFINED + _ITEM + bytes(4))
                for frame in _frames(tiles):
                    stream.write(_ITEM + struct.pack("<I", len(frame)) + frame)
                stream.write(_END + bytes(4))


def _frames(tiles: Iterator[np.ndarray]) -> Iterator[bytes]:
    for tile in tiles:
        data = jpeg(tile, "422")
        yield data + b"\0" * (len(data) % 2)


def _uid(*parts: object) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["medssl slide", *map(str, parts)]))


def _header(
    shape: tuple[int, int], slide: SyntheticSlide, number: int, name: str, key: tuple[int, int]
) -> pydicom.FileDataset:
    """Everything but the pixels."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = VLWholeSlideMicroscopyImageStorage, JPEGBaseline8Bit
    meta.MediaStorageSOPInstanceUID = _uid(*key, slide.stain, "level", number)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(*key, "study"), _uid(*key, slide.stain, "series")
    dataset.FrameOfReferenceUID = _uid(*key, "frame of reference")
    patient = name.rsplit("-", 2)[0]
    dataset.PatientID, dataset.PatientName = patient, patient
    dataset.Modality, dataset.Manufacturer, dataset.InstanceNumber = "SM", "medssl", number + 1
    dataset.ImageType = [
        "DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"
    ]  # fmt: skip
    dataset.Rows = dataset.Columns = TILE
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = shape
    dataset.NumberOfFrames = -(-shape[0] // TILE) * -(-shape[1] // TILE)
    dataset.DimensionOrganizationType, dataset.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.BurnedInAnnotation, dataset.SpecimenLabelInImage, dataset.NumberOfOpticalPaths = "NO", "NO", 1
    dataset.LossyImageCompression = "01"
    measures, groups, path = Dataset(), Dataset(), Dataset()
    spacing = [round(MPP / 1000 * full / part, 9) for full, part in zip(slide.size, shape, strict=True)]
    measures.PixelSpacing, measures.SliceThickness = spacing, 0.004
    groups.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [groups]
    path.ObjectiveLensPower, path.OpticalPathIdentifier = OBJECTIVE, "1"
    dataset.OpticalPathSequence = [path]
    dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = (length * MPP / 1000 for length in slide.size[::-1])
    if slide.stain == "HE":
        dataset.SpecimenDescriptionSequence = [_specimen(Dataset)]
    return dataset


def _specimen(dataset_class: type) -> object:
    """Preparation of the specimen: its stains by their codes."""
    steps = []
    for value, meaning in _CODES.values():
        code, content, step = dataset_class(), dataset_class(), dataset_class()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
        content.ValueType, content.ConceptCodeSequence = "CODE", [code]
        step.SpecimenPreparationStepContentItemSequence = [content]
        steps.append(step)
    specimen = dataset_class()
    specimen.SpecimenIdentifier, specimen.SpecimenPreparationSequence = "1", steps
    return specimen
