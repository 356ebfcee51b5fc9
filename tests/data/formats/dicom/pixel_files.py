"""DICOM files of one slice for the tests of pixels: any layout, any transfer syntax an encoder is at hand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from data.make_scans import Series, slice_dataset, write_slice

from medssl.data.formats.dicom.pixels import StackValues, read_values
from medssl.types import Part

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2", "explicit": "1.2.840.10008.1.2.1", "deflated": "1.2.840.10008.1.2.1.99",
    "big endian": "1.2.840.10008.1.2.2", "rle": "1.2.840.10008.1.2.5", "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg extended": "1.2.840.10008.1.2.4.51", "jpeg lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80", "jpeg 2000": "1.2.840.10008.1.2.4.90", "htj2k": "1.2.840.10008.1.2.4.201",
    "mpeg-4": "1.2.840.10008.1.2.4.102",
}  # fmt: skip


def dataset_of(rows: np.ndarray, modality: str = "MR", *, number: int = 0, **extra: Any) -> Any:
    """A slice of gray (row, column) or color (row, column, 3) pixels; ``extra`` overrides elements, None removes."""
    gray = rows if rows.ndim == 2 else rows[..., 0]
    dataset = slice_dataset(Series(), number, np.ascontiguousarray(gray))
    dataset.Modality = modality
    if rows.ndim == 3:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    put(dataset, np.ascontiguousarray(rows).tobytes(), "OW" if rows.dtype.itemsize > 1 else "OB")
    for name, value in extra.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def put(dataset: Any, data: bytes, vr: str = "OW", element: int = 0x7FE00010) -> Any:
    """Give a dataset its pixels."""
    from pydicom.dataelem import DataElement

    if "PixelData" in dataset:
        del dataset["PixelData"]
    dataset[element] = DataElement(element, vr, data + b"\0" * (len(data) % 2))
    return dataset


def encapsulate(dataset: Any, syntax: str, frames: list[bytes], **options: Any) -> Any:
    """Give a dataset compressed frames."""
    from pydicom.encaps import encapsulate as join

    put(dataset, join(frames, **options), "OB")
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    return dataset


def encode(rows: np.ndarray, syntax: str, bits: int) -> bytes:
    """One frame, without loss."""
    import imagecodecs

    rows = np.ascontiguousarray(rows)
    unsigned = rows.view(f"u{rows.dtype.itemsize}") & np.array((1 << bits) - 1).astype(f"u{rows.dtype.itemsize}")
    if syntax == "jpeg lossless":
        return imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=1, bitspersample=bits)
    if syntax == "jpeg-ls":
        return imagecodecs.jpegls_encode(unsigned)
    if syntax == "htj2k":
        return imagecodecs.htj2k_encode(rows, level=0, reversible=True)
    return imagecodecs.jpeg2k_encode(rows, codecformat="j2k", level=0, reversible=True, bitspersample=bits)


def written(folder: Path, *datasets: Any) -> StackValues:
    """Write slices and read them as a stack."""
    parts = []
    for number, dataset in enumerate(datasets):
        write(folder / f"{number}.dcm", dataset)
        parts.append(Part(f"{number}.dcm", None))
    return read_values(folder, parts)


def write(file: Path, dataset: Any) -> Path:
    """Write a dataset in its transfer syntax."""
    if dataset.file_meta.TransferSyntaxUID != SYNTAXES["big endian"]:
        return write_slice(file, dataset)
    from pydicom.dataset import Dataset

    fresh = Dataset(dataset)  # without the byte order that it was made in
    fresh.file_meta, fresh.preamble = dataset.file_meta, dataset.preamble
    fresh.save_as(file, enforce_file_format=True)
    return file


def item(**values: Any) -> Any:
    """A sequence of one item."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return Sequence([made])
