"""Small scans of every format, written for the tests: each function writes files and returns what is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
MR_STORAGE, CT_STORAGE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"


def noise(shape: tuple[int, ...], dtype: Any = np.int16, *, seed: int = 0, high: int = 1000) -> np.ndarray:
    """Reproducible values that fit ``dtype``."""
    return np.random.default_rng(seed).integers(0, min(high, np.iinfo(dtype).max), shape).astype(dtype)


def write_nifti(file: Path, array: np.ndarray, affine: np.ndarray | None = None) -> np.ndarray:
    """NIfTI of (i, j, k[, t]), compressed by the name's ending."""
    import nibabel

    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine), file)
    return array


def write_itk(file: Path, array: np.ndarray, spacing: tuple[float, ...] = (0.5, 0.75, 2.0)) -> np.ndarray:
    """NRRD or MetaImage of (i, j, k)."""
    import SimpleITK

    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing[: array.ndim])
    image.SetOrigin(tuple(float(10 * axis) for axis in range(array.ndim)))
    SimpleITK.WriteImage(image, str(file))
    return array


def write_picture(file: Path, array: np.ndarray) -> np.ndarray:
    """PNG, JPEG or TIFF of (H, W[, 3])."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)
    return array


@dataclass
class Series:
    """A DICOM series to write; ``extra`` overrides any element of every slice."""

    shape: tuple[int, int, int] = (8, 6, 5)  # columns, rows, slices
    orientation: tuple[float, ...] = AXIAL
    step_mm: float = 2.5
    spacing_mm: tuple[float, float] = (0.8, 0.6)  # between rows, between columns
    uid: str = "1.2.826.0.1.3680043.8.498.1"
    seed: int = 0
    dtype: Any = np.int16
    extra: dict[str, Any] = field(default_factory=dict)

    def pixels(self) -> np.ndarray:
        """(slice, row, column)."""
        columns, rows, slices = self.shape
        return noise((slices, rows, columns), self.dtype, seed=self.seed)

    def normal(self) -> np.ndarray:
        """Direction from slice to slice, LPS."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def slice_dataset(series: Series, number: int, pixels: np.ndarray) -> Any:
    """One slice as a pydicom data set, explicit little endian."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    uid = f"{series.uid}.{number + 1}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MR_STORAGE, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MR_STORAGE, uid
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series.uid, f"{series.uid.rsplit('.', 1)[0]}.99"
    dataset.PatientID, dataset.PatientName, dataset.PatientAge, dataset.PatientSex = "MRN-4711", "Doe^Jane", "045Y", "F"
    dataset.Modality, dataset.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
    dataset.Manufacturer, dataset.MagneticFieldStrength = "ACME", "1.5"
    dataset.SeriesDescription = "head of Jane Doe"
    dataset.ImageOrientationPatient = [float(value) for value in series.orientation]
    dataset.ImagePositionPatient = [round(float(v), 6) for v in series.normal() * series.step_mm * number - 7]
    dataset.PixelSpacing, dataset.SliceThickness = list(series.spacing_mm), series.step_mm
    dataset.InstanceNumber = number + 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset["PixelData"] = _pixel_element(pixels)
    for name, value in series.extra.items():
        setattr(dataset, name, value)
    return dataset


def _pixel_element(pixels: np.ndarray) -> Any:
    from pydicom.dataelem import DataElement

    return DataElement(
        0x7FE00010, "OW" if pixels.dtype.itemsize > 1 else "OB", pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    )


def write_slice(file: Path, dataset: Any) -> Path:
    """One file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def write_series(folder: Path, series: Series | None = None) -> tuple[Series, list[Path]]:
    """A whole series, the files in an order that is not that of the slices."""
    series = series or Series()
    count = series.shape[2]
    files = []
    for number, pixels in enumerate(series.pixels()):
        name = f"IM{(number * 7 + 3) % 101:03d}"
        files.append(write_slice(folder / name, slice_dataset(series, number, pixels)))
    assert len(set(files)) == count
    return series, files


def truncate(file: Path, keep: float = 0.6) -> Path:
    """Cut a file off."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    return file
