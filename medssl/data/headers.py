"""What a file is, from its first bytes and its header: no pixel is decoded here.

Known: NIfTI, NRRD, MetaImage (.mha, .mhd), PNG, JPEG, TIFF, BMP; DICOM is recognised here and understood in ``dicom``.
"""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medssl.types import Grid, Kind, ValueDomain

Format = Literal["nifti", "itk", "picture", "tiff", "dicom"]

_ENDINGS: tuple[tuple[str, Format], ...] = (
    (".nii", "nifti"), (".nii.gz", "nifti"), (".nrrd", "itk"), (".nhdr", "itk"), (".mha", "itk"), (".mhd", "itk"),
    (".png", "picture"), (".jpg", "picture"), (".jpeg", "picture"), (".bmp", "picture"),
    (".tif", "tiff"), (".tiff", "tiff"), (".dcm", "dicom"), (".dicom", "dicom"), (".ima", "dicom"),
)  # fmt: skip
_SIDECARS = tuple(
    (
        ".txt .json .csv .tsv .xml .html .htm .pdf .md .log .yaml .yml .xlsx .xls .doc .docx .zip .tar .gz .raw .zraw "
        ".bval .bvec .py .sqlite .db .npy .npz .pt .pth .safetensors .ipynb .sh .ini .cfg"
    ).split()
)
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".qptiff", ".ome.tif", ".ome.tiff")
LPS_TO_RAS = (-1.0, -1.0, 1.0)
DAMAGE = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, SyntaxError, EOFError,
    struct.error, zlib.error, gzip.BadGzipFile,
)  # fmt: skip
# what the libraries raise on files whose bytes make no sense: one such file must not end the reading of a million


class HeaderError(ValueError):
    """A file of a known format that cannot be a scan: it failed."""


@dataclass(frozen=True)
class Header:
    """What a file of one scan says about itself; ``four_d``: the channels may as well be points in time."""

    kind: Kind
    value_domain: ValueDomain
    channels: int
    grid: Grid
    note: str = ""
    four_d: bool = False


def format_of(path: Path) -> Format | str:
    """Format of a file by its name, or by its first bytes where the name says nothing.

    Returns:
        One of ``Format``, or, for what is no image, a reason of several words.
    """
    name = path.name.lower()
    if name.startswith("._"):
        return "not an image: AppleDouble file"
    if name.startswith("."):
        return "not an image: hidden file"
    if name.endswith(_SLIDES):
        return "whole slide: not read by this version"
    for ending, form in _ENDINGS:
        if name.endswith(ending):
            return form
    suffix = Path(name).suffix
    if suffix in _SIDECARS:
        return f"not an image: {suffix} file"
    with path.open("rb") as stream:
        first = stream.read(132)
    if first[128:132] == b"DICM" or _bare_dicom(first):
        return "dicom"
    return f"not an image: {suffix} file" if suffix and not suffix[1:].isdigit() else "not an image: no known format"


def _bare_dicom(first: bytes) -> bool:
    """A data set without the preamble starts with group 0008 and a low element, little endian."""
    group, element, length = first[:2], int.from_bytes(first[2:4], "little"), int.from_bytes(first[4:8], "little")
    return group == b"\x08\x00" and element <= 0x18 and (first[4:6].isalpha() or 0 < length <= 256)


def read_header(path: Path, form: Format) -> Header:
    """Read the header of a file that is one scan (all formats but DICOM).

    Raises:
        HeaderError: Truncated, empty, of another content than its name says, or of a layout that is no scan.
        OSError: The file cannot be opened.
    """
    if path.stat().st_size == 0:
        message = "empty file"
        raise HeaderError(message)
    reader = {"nifti": _nifti, "itk": _itk, "picture": _picture, "tiff": _tiff}[form]
    header = reader(path)
    if 0 in header.grid.shape:
        message = f"zero-size: shape {'x'.join(map(str, header.grid.shape))}"
        raise HeaderError(message)
    affine = np.array(header.grid.affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        message = "geometry unusable: the affine in the header cannot be inverted"
        raise HeaderError(message)
    return header


def make_grid(shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """Grid from a voxel -> world affine (n+1, n+1); the spacing is the length of its columns."""
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    rows = tuple(tuple(float(value) for value in row) for row in affine)
    return Grid(tuple(int(length) for length in shape), tuple(float(step) for step in spacing), rows)


def picture_grid(height: int, width: int, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Grid:
    """Grid of an image: (row, column) -> millimetres from the first pixel."""
    return make_grid((height, width), np.diag([*spacing_mm, 1.0]))


@contextmanager
def silent() -> Iterator[None]:
    """Keeps nibabel and tifffile quiet about what is odd in a file: what matters is raised, and is one line here."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "tifffile")]
    former = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, former, strict=True):
            logger.disabled = disabled


# --- NIfTI


def _nifti(path: Path) -> Header:
    import nibabel

    try:
        with silent():
            image = nibabel.load(path)
    except nifti_damage() as error:
        message = f"not readable as NIfTI: {_first_line(error)}"
        raise HeaderError(message) from error
    kind = image.get_data_dtype().kind
    if kind not in "iufb":
        message = f"not readable as NIfTI: voxels of type {image.get_data_dtype()} (colour or complex) are no scan"
        raise HeaderError(message)
    _nifti_is_whole(path, image)
    return nifti_layout(tuple(image.shape), image.affine)


def nifti_damage() -> tuple[type[Exception], ...]:
    """What a damaged NIfTI file raises; nibabel's own errors have no base that says so."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError

    return (ImageFileError, HeaderDataError, HeaderTypeError, *DAMAGE)


def nifti_layout(shape: tuple[int, ...], affine: np.ndarray) -> Header:
    """Kind, channels and grid of a NIfTI array: (i, j) is an image with rows j, (i, j, k) a volume."""
    shape = shape + (1,) * (3 - len(shape))
    channels = int(np.prod(shape[3:]))  # 1 for three axes
    if shape[2] == 1:
        width, height = shape[:2]
        steps = np.linalg.norm(affine[:3, :2], axis=0)
        return Header("image", "gray", channels, picture_grid(height, width, (float(steps[1]), float(steps[0]))))
    return Header("volume", "gray", channels, make_grid(shape[:3], affine), four_d=channels > 1)


def _nifti_is_whole(path: Path, image: Any) -> None:
    """Compare the length of the voxels with what the file holds; a gzip file tells its length in its last bytes."""
    count = int(np.prod(image.shape, dtype=np.int64)) * image.get_data_dtype().itemsize
    expected = int(image.dataobj.offset) + count
    if path.suffix != ".gz":
        found = path.stat().st_size
    else:
        with path.open("rb") as stream:
            stream.seek(-4, 2)
            if int.from_bytes(stream.read(4), "little") == expected % 2**32:
                return
        found = _unpacked_size(path)  # several members, or something after the voxels: count
    if found < expected:
        message = f"truncated: {found:,} of {expected:,} bytes"
        raise HeaderError(message)


def _unpacked_size(path: Path) -> int:
    total = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                total += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"truncated or damaged: {_first_line(error)}"
        raise HeaderError(message) from error
    return total


# --- NRRD and MetaImage


def _itk(path: Path) -> Header:
    reader = itk_reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        message = f"not readable: {itk_reason(error)}"
        raise HeaderError(message) from error
    return itk_layout(reader)


def itk_reader(path: Path) -> Any:
    """A SimpleITK reader of the format that the name says."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    return reader


def itk_reason(error: RuntimeError) -> str:
    """The line of an ITK error that says something, without paths in memory."""
    lines = [line.strip() for line in str(error).splitlines() if "ITK ERROR" in line or "rror" in line]
    return (lines[-1].split("): ")[-1] if lines else "damaged header")[:200]


def itk_layout(reader: Any) -> Header:
    """Kind, channels and grid of what a SimpleITK reader has read of the header; LPS becomes RAS."""
    size, dimension = reader.GetSize(), reader.GetDimension()
    channels = reader.GetNumberOfComponents()
    if dimension == 2:
        width, height = size
        across, down = reader.GetSpacing()
        return Header(
            "image", "rgb" if channels in (3, 4) else "gray", channels, picture_grid(height, width, (down, across))
        )
    if dimension != 3:
        message = f"{dimension} axes: only 2 and 3 (with channels) are read"
        raise HeaderError(message)
    affine = np.eye(4)
    directions = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    affine[:3] = np.column_stack([directions, reader.GetOrigin()]) * np.array(LPS_TO_RAS)[:, None]
    return Header("volume", "gray", channels, make_grid(tuple(size), affine))


# --- pictures


def picture_layout(mode: str) -> tuple[ValueDomain, int]:
    """Value domain and channels of a Pillow mode; a palette becomes RGB, transparency is left out."""
    if mode in ("L", "1", "I", "I;16", "I;16B", "I;16L", "F", "LA"):
        return "gray", 1
    if mode in ("RGB", "RGBA", "P", "PA"):
        return "rgb", 3
    message = f"colours of kind {mode}: only gray and RGB pictures are read"
    raise HeaderError(message)


def _picture(path: Path) -> Header:
    from PIL import Image

    try:
        with Image.open(path) as image:
            domain, channels = picture_layout(image.mode)
            if not _picture_ends(path, image.format):
                image.load()
            note = "transparency left out" if image.mode in ("LA", "RGBA", "PA") else ""
            return Header("image", domain, channels, picture_grid(image.height, image.width), note)
    except HeaderError:
        raise
    except (OSError, *DAMAGE, Image.DecompressionBombError) as error:
        problem = _first_line(error).replace(str(path), path.name)
        message = f"not readable as a {path.suffix[1:].upper()} picture: {problem}"
        raise HeaderError(message) from error


def _picture_ends(path: Path, form: str | None) -> bool:
    """Whether the last bytes are the end mark of the format; otherwise only decoding can tell."""
    with path.open("rb") as stream:
        stream.seek(-min(64, path.stat().st_size), 2)
        tail = stream.read()
    return b"IEND" in tail if form == "PNG" else b"\xff\xd9" in tail if form == "JPEG" else False


def _tiff(path: Path) -> Header:
    import tifffile

    try:
        with silent(), tifffile.TiffFile(path) as file:
            series = file.series[0]
            header = tiff_layout(series.axes, tuple(series.shape), series.dtype)
            last = max(
                (
                    offset + length
                    for page in series.pages
                    if page is not None
                    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)
                ),
                default=0,
            )
    except HeaderError:
        raise
    except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
        message = f"not readable as a TIFF picture: {_first_line(error)}"
        raise HeaderError(message) from error
    if last > path.stat().st_size:
        message = f"truncated: {path.stat().st_size:,} of at least {last:,} bytes"
        raise HeaderError(message)
    return header


def tiff_layout(axes: str, shape: tuple[int, ...], dtype: np.dtype | None) -> Header:
    """Kind, channels and grid of a TIFF series by its axis letters (Y, X and at most one axis of channels)."""
    if dtype is None or dtype.kind not in "iufb":
        message = f"pixels of type {dtype}: only whole and real numbers are read"
        raise HeaderError(message)
    lengths = dict(zip(axes, shape, strict=True))
    others = {letter: length for letter, length in lengths.items() if letter not in "YX" and length > 1}
    if not {"Y", "X"} <= set(lengths) or len(others) > 1 or set(others) - set("CSQI"):
        message = f"layout {axes} {'x'.join(map(str, shape))}: only one picture, with channels, is read"
        raise HeaderError(message)
    channels = next(iter(others.values()), 1)
    if channels > 64:
        message = f"{channels} pages: a stack of pictures is not one picture"
        raise HeaderError(message)
    colour = channels == 3 and "S" in others and dtype == np.uint8
    return Header("image", "rgb" if colour else "gray", channels, picture_grid(lengths["Y"], lengths["X"]))


def _first_line(error: BaseException) -> str:
    """First line of an error's text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
