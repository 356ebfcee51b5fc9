"""Sound files of every format, small and written by other libraries, for the tests of damaged files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Sound:
    """A sound file: its name, from which byte on check sums cover what is changed, and whether it is a label."""

    file: str
    covered: Callable[[bytes], int] | None = None  # first byte that a check sum covers; None: none does
    label: bool = False


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3000, (12, 11, 10)).astype(np.int16)


def rows(seed: int = 0, channels: int = 1) -> np.ndarray:
    shape = (24, 20) if channels == 1 else (24, 20, channels)
    return np.random.default_rng(seed).integers(0, 250, shape).astype(np.uint8)


def smooth() -> np.ndarray:
    return np.add.outer(np.arange(32) * 3, np.arange(24) * 2).astype(np.uint16)


# --- sound files


def nifti(folder: Path) -> Sound:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(volume(), np.diag([2.0, 2, 3, 1])), folder / "a.nii")
    return Sound("a.nii")


def nifti_gzip(folder: Path) -> Sound:
    nifti(folder)
    (folder / "a.nii.gz").write_bytes(gzip.compress((folder / "a.nii").read_bytes(), mtime=0))
    (folder / "a.nii").unlink()
    return Sound("a.nii.gz", covered=lambda _data: 10)


def _nrrd(encoding: str, data: bytes) -> bytes:
    lines = (
        "NRRD0005", "type: short", "dimension: 3", "space: left-posterior-superior", "sizes: 12 11 10",
        "space directions: (2,0,0) (0,2,0) (0,0,3)", "endian: little", f"encoding: {encoding}", "space origin: (0,0,0)",
        "", "",
    )  # fmt: skip
    return "\n".join(lines).encode() + data


def nrrd(folder: Path) -> Sound:
    (folder / "a.nrrd").write_bytes(_nrrd("raw", volume().tobytes(order="F")))
    return Sound("a.nrrd")


def nrrd_gzip(folder: Path) -> Sound:
    (folder / "a.nrrd").write_bytes(_nrrd("gzip", gzip.compress(volume().tobytes(order="F"), mtime=0)))
    return Sound("a.nrrd", covered=lambda data: data.index(b"\n\n") + 12)


def nrrd_text(folder: Path) -> Sound:
    (folder / "a.nrrd").write_bytes(_nrrd("ascii", " ".join(map(str, volume().ravel("F"))).encode()))
    return Sound("a.nrrd")


def _metaimage(packed: bool, data: bytes) -> bytes:
    lines = (
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed}", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 2 2 3",
        "DimSize = 12 11 10", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", "",
    )  # fmt: skip
    return "\n".join(lines).encode() + data


def metaimage(folder: Path) -> Sound:
    (folder / "a.mha").write_bytes(_metaimage(False, volume().tobytes(order="F")))
    return Sound("a.mha")


def metaimage_zlib(folder: Path) -> Sound:
    (folder / "a.mha").write_bytes(_metaimage(True, zlib.compress(volume().tobytes(order="F"))))
    return Sound("a.mha", covered=lambda data: data.index(b"LOCAL\n") + 8)


def png(folder: Path) -> Sound:
    from PIL import Image

    Image.fromarray(rows(channels=3)).save(folder / "a.png")
    return Sound("a.png", covered=lambda _data: 0)


def png_palette(folder: Path) -> Sound:
    from PIL import Image

    Image.fromarray(rows(channels=3)).quantize(16).save(folder / "a.png", transparency=3)
    return Sound("a.png", covered=lambda _data: 0)


def jpeg(folder: Path) -> Sound:
    from PIL import Image

    image = Image.fromarray(rows(channels=3))
    exif = image.getexif()
    exif[274] = 3
    image.save(folder / "a.jpg", exif=exif)
    return Sound("a.jpg")


def jpeg_progressive(folder: Path) -> Sound:
    from PIL import Image

    Image.fromarray(rows()).save(folder / "a.jpg", progressive=True)
    return Sound("a.jpg")


def tiff(folder: Path) -> Sound:
    import tifffile

    tifffile.imwrite(folder / "a.tif", rows(channels=3), photometric="rgb")
    return Sound("a.tif")


def tiff_packed(folder: Path) -> Sound:
    import tifffile

    tifffile.imwrite(folder / "a.tif", smooth(), compression="zlib", predictor=2)
    return Sound("a.tif")


def tiff_lzw_tiles(folder: Path) -> Sound:
    import tifffile

    tifffile.imwrite(folder / "a.tif", smooth(), compression="lzw", tile=(16, 16), bigtiff=True)
    return Sound("a.tif")


def bmp(folder: Path) -> Sound:
    from PIL import Image

    Image.fromarray(rows()).save(folder / "a.bmp")
    return Sound("a.bmp")


def npy(folder: Path) -> Sound:
    np.save(folder / "a.npy", volume())
    return Sound("a.npy")


def npz(folder: Path) -> Sound:
    np.savez_compressed(folder / "a.npz", x=volume())
    return Sound("a.npz")


def _dicom(folder: Path, syntax: str, modality: str = "CR") -> Sound:
    from data.formats.dicom.pixel_files import SYNTAXES, dataset_of, encapsulate, encode, write

    number = sum(map(ord, syntax))  # each of a series of its own
    dataset = dataset_of(smooth(), modality, BitsStored=12, HighBit=11, PixelRepresentation=0, StudyInstanceUID="1.2.9")
    dataset.SeriesInstanceUID = dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
    for name in ("ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, name)
    if syntax == "rle":
        dataset.compress(SYNTAXES["rle"], generate_instance_uid=False, encoding_plugin="pydicom")
    elif syntax != "explicit":
        dataset = encapsulate(dataset, syntax, [encode(smooth(), syntax, 12)])
    write(folder / "a.dcm", dataset)
    return Sound("a.dcm")


def dicom(folder: Path) -> Sound:
    return _dicom(folder, "explicit")


def dicom_rle(folder: Path) -> Sound:
    return _dicom(folder, "rle")


def dicom_jpeg(folder: Path) -> Sound:
    return _dicom(folder, "jpeg lossless")


def dicom_jpeg_ls(folder: Path) -> Sound:
    return _dicom(folder, "jpeg-ls")


def dicom_jpeg_2000(folder: Path) -> Sound:
    return _dicom(folder, "jpeg 2000")


def _labeled(folder: Path, make: Callable[[list[Any], Any], Any]) -> Sound:
    from data.formats.dicom.label_objects import grid_of, write_scan
    from data.make_scans import Series

    series = Series(shape=(12, 10, 5))
    sources = write_scan(folder / "scan", series)
    dataset = make(sources, grid_of(series))
    dataset.save_as(folder / "label.dcm", enforce_file_format=True)
    return Sound("label.dcm", label=True)


def segmentation(folder: Path) -> Sound:
    from data.formats.dicom.label_objects import segmentation as made

    mask = (np.random.default_rng(1).random((5, 10, 12)) < 0.4).astype(np.uint8)
    return _labeled(folder, lambda sources, _grid: made(sources, mask, ["organ"], "BINARY"))


def structure_set(folder: Path) -> Sound:
    from data.formats.dicom.label_objects import contour
    from data.formats.dicom.label_objects import structure_set as made

    points = [(2, 2), (8, 2), (8, 7), (3, 6)]
    return _labeled(
        folder,
        lambda sources, grid: made(
            sources, {"organ": [("CLOSED_PLANAR", contour(grid, points, index)) for index in (1, 2, 3)]}
        ),
    )


FORMATS: dict[str, Callable[[Path], Sound]] = {
    made.__name__.strip("_"): made
    for made in (
        nifti, nifti_gzip, nrrd, nrrd_gzip, nrrd_text, metaimage, metaimage_zlib, png, png_palette, jpeg,
        jpeg_progressive, tiff, tiff_packed, tiff_lzw_tiles, bmp, npy, npz, dicom, dicom_rle, dicom_jpeg, dicom_jpeg_ls,
        dicom_jpeg_2000, segmentation, structure_set,
    )
}  # fmt: skip

LABELS = ("segmentation", "structure_set")
