"""Phantoms as files, the way hospitals keep scans: NIfTI with label maps, DICOM series in nested folders, PNG pictures.

The same arguments write the same bytes. Every scan appears whole or not at all, and a folder that was left half full
is completed by the same call.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medssl.data.synthetic.phantoms import PHANTOMS, VERSION, Modality, Phantom, phantom
from medssl.io.atomic_write import atomic_files
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pydicom

FOLDER_FILE = f"{PHANTOMS}.json"  # stands in a folder of phantoms


@dataclass(frozen=True)
class Recipe:
    """What a folder of phantoms holds.

    Attributes:
        count: Scans in all, one of each patient.
        labeled: How many of them, from the first on, have a label map.
        shape: Voxels per axis; two numbers (rows, columns) make pictures. Every fourth volume is scanned in slices
            twice as thick, so it has half as many.
        modality: "MR", "CT", or "both" in turns.
        seed: Names the population.
        shuffle_labels: Give every labeled patient the label map of the next one: a control in which there is nothing
            to learn but where organs are on average.
    """

    count: int = 24
    labeled: int = 8
    shape: tuple[int, ...] = (80, 64, 64)
    modality: Literal["MR", "CT", "both"] = "MR"
    seed: int = 0
    shuffle_labels: bool = False


def write_phantoms(folder: Path, recipe: Recipe, *, written: Callable[[str], object] | None = None) -> tuple[int, int]:
    """Write the scans of a recipe, leaving those that are already there.

    Volumes with a label are NIfTI (``images/``, ``labels/``), of the others every second one is a DICOM series
    (``dicom/PHANTOM-0007/...``, file names without extension). Pictures are 16-bit PNG with 8-bit label maps. The
    patient's name is in the path and, in DICOM, in PatientID.

    Args:
        folder: Where to write; made when absent.
        recipe: What to write.
        written: Called with the patient's name after each scan.

    Returns:
        How many scans were written now, and how many were already present.

    Raises:
        UserError: The recipe cannot be, or the folder holds phantoms of another recipe or other files.
    """
    _claim(folder, recipe)
    for part in folder.rglob(".*.part"):  # of a call that was killed
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    new = 0
    for number in range(recipe.count):
        name = f"PHANTOM-{number:04d}"
        if not _destination(folder, recipe, number).exists():
            _write(folder, recipe, number)
            new += 1
        if written is not None:
            written(name)
    return new, recipe.count - new


def _claim(folder: Path, recipe: Recipe) -> None:
    """Note the recipe in the folder, or refuse a folder that has another one or something else in it."""
    if recipe.count < 1 or not 0 <= recipe.labeled <= recipe.count or recipe.seed < 0:
        message = (
            f"count {recipe.count}, labeled {recipe.labeled}, seed {recipe.seed}: give at least one scan, "
            "not more labeled scans than scans, and a seed of 0 or more"
        )
        raise UserError(message)
    if recipe.shuffle_labels and recipe.labeled < 2:
        message = f"labeled {recipe.labeled}: labels can be shuffled among two or more patients"
        raise UserError(message)
    asked = {"version": VERSION, **asdict(recipe), "shape": list(recipe.shape)}
    file = folder / FOLDER_FILE
    if not file.exists():
        if folder.exists() and (
            not folder.is_dir() or any(not path.name.startswith(f".{FOLDER_FILE}.") for path in folder.iterdir())
        ):
            message = f"{folder} is not an empty folder: phantoms are written into a folder of their own"
            raise UserError(message)
        folder.mkdir(parents=True, exist_ok=True)
        _put(file, json.dumps(asked, indent=1).encode())
        return
    there = json.loads(file.read_text())
    other = [f"{key} {there.get(key)} there, {asked[key]} asked" for key in asked if there.get(key) != asked[key]]
    if other:
        message = f"{folder} holds phantoms of another recipe ({'; '.join(other)}): take another folder or remove it"
        raise UserError(message)


def _is_series(recipe: Recipe, number: int) -> bool:
    return len(recipe.shape) == 3 and number >= recipe.labeled and number % 2 == 1


def _destination(folder: Path, recipe: Recipe, number: int) -> Path:
    """What exists once scan ``number`` is complete."""
    name = f"PHANTOM-{number:04d}"
    if _is_series(recipe, number):
        return folder / "dicom" / name
    return folder / "images" / f"{name}{'.nii.gz' if len(recipe.shape) == 3 else '.png'}"


def _write(folder: Path, recipe: Recipe, number: int) -> None:
    """Write one scan; its label comes first, so that the image completes the pair."""
    modality: Modality = ("MR", "CT")[number % 2] if recipe.modality == "both" else recipe.modality
    shape = recipe.shape
    if len(shape) == 3 and number % 4 == 3:
        shape = (*shape[:2], max(8, shape[2] // 2))
    scan = phantom(recipe.seed, shape, number=number, modality=modality)
    destination = _destination(folder, recipe, number)
    if _is_series(recipe, number):
        _put_series(destination, scan, modality, (recipe.seed, number))
        return
    encode = _png if len(shape) == 2 else _nifti_stored_ras if number % 2 == 0 else _nifti_stored_lps
    if number < recipe.labeled:
        other = (number + 1) % recipe.labeled if recipe.shuffle_labels else number
        label = scan.label if other == number else phantom(recipe.seed, shape, number=other, modality=modality).label
        _put(folder / "labels" / destination.name, encode(label, scan))
    _put(destination, encode(scan.image, scan))


def _put(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files(file) as (stream,):
        stream.write(content)


def _png(array: np.ndarray, _: Phantom) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def _nifti_stored_ras(array: np.ndarray, scan: Phantom) -> bytes:
    return _nifti(array, scan, turned=False)


def _nifti_stored_lps(array: np.ndarray, scan: Phantom) -> bytes:
    """The same scan with its first two axes stored backwards, as many scanners do."""
    return _nifti(array[::-1, ::-1], scan, turned=True)


def _nifti(array: np.ndarray, scan: Phantom, *, turned: bool) -> bytes:
    import nibabel

    signs = np.array([-1.0, -1.0, 1.0] if turned else [1.0, 1.0, 1.0])
    affine = np.diag([*(signs * scan.spacing_mm), 1.0])
    affine[:3, 3] = -signs * scan.spacing_mm * (np.array(array.shape) - 1) / 2
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=5, mtime=0)


# --- DICOM


def _put_series(folder: Path, scan: Phantom, modality: Modality, key: tuple[int, int]) -> None:
    """Write a series of axial slices as ``STUDY0/SERIES0/IM0000``...; the folder appears when all are written."""
    partial = folder.with_name(f".{folder.name}.part")
    series = partial / "STUDY0" / "SERIES0"
    series.mkdir(parents=True)
    shift = 1024 if modality == "CT" else 0
    count = scan.image.shape[2]
    for k in range(count):
        pixels = scan.image[::-1, ::-1, k].T.astype(np.int32) + shift  # rows to the back, columns to the left
        dataset = _header(scan, modality, key)
        dataset.RescaleIntercept = -shift
        dataset.InstanceNumber = count - k  # numbered from the head down, as scanners like to do
        dataset.SOPInstanceUID = _uid(*key, "slice", k)
        right, front = (
            (size - 1) / 2 * step for size, step in zip(scan.image.shape, scan.spacing_mm[:2], strict=False)
        )
        height = (k - (count - 1) / 2) * scan.spacing_mm[2]
        dataset.ImagePositionPatient = [round(-right, 6), round(-front, 6), round(height, 6)]
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PixelData = pixels.clip(0, 65535).astype("<u2").tobytes()
        dataset.save_as(series / f"IM{count - k:04d}", enforce_file_format=True)
    partial.replace(folder)


def _uid(*parts: object) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["medssl phantom", *map(str, parts)]))


def _header(scan: Phantom, modality: Modality, key: tuple[int, int]) -> pydicom.FileDataset:
    """Everything but the pixels and what differs between slices (DICOM PS3.3, CT and MR image modules)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(*key, "study"), _uid(*key, "series")
    dataset.FrameOfReferenceUID = _uid(*key, "frame of reference")
    dataset.PatientID, dataset.PatientName = f"PHANTOM-{key[1]:04d}", f"Phantom^{key[1]:04d}"
    dataset.Modality, dataset.Manufacturer = modality, "medssl"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesNumber, dataset.AcquisitionNumber = 1, 1
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [round(scan.spacing_mm[1], 6), round(scan.spacing_mm[0], 6)]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = round(scan.spacing_mm[2], 6)
    dataset.Rows, dataset.Columns = scan.image.shape[1], scan.image.shape[0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope = 1
    if modality == "CT":
        dataset.RescaleType = "HU"
    return dataset
