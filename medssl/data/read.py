"""One scan of the index -> its array, its affine and its masks, as they lie on disk.

nibabel, SimpleITK, Pillow and tifffile are called directly: the readers of MONAI that wrap them turn integers into
float32, never look at the check sum of a gzip file, and cost seconds of import in every process.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.headers import (
    DAMAGE,
    HeaderError,
    format_of,
    itk_layout,
    itk_reader,
    itk_reason,
    nifti_damage,
    nifti_layout,
    picture_grid,
    picture_layout,
    silent,
    tiff_layout,
)  # fmt: skip
from medssl.types import Grid, LabelSchema, Part, Scan, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped

_SAME_AFFINE_MM = 1e-2


class ReadError(UserError):
    """A scan that cannot be read: one line that names the file."""


@dataclass(frozen=True)
class Volume:
    """A scan as it lies on disk.

    ``image`` is [C, i, j, k] or [C, H, W] in the file's own number type (float32 where the file asks for scaling that
    leaves the whole numbers), ``affine`` voxel -> world mm, ``label`` [1, *s] of whole numbers, ``notes`` what is odd,
    ``excluded`` [1, *s] True where no loss may look (None: nowhere).
    """

    image: Shaped[np.ndarray, "C *s"]
    affine: np.ndarray
    spacing_mm: tuple[float, ...]
    label: Shaped[np.ndarray, "1 *s"] | None = None
    notes: tuple[str, ...] = ()
    excluded: Bool[np.ndarray, "1 *s"] | None = None


def read(scan: Scan, root: Path, *, with_label: bool = True) -> Volume:
    """Read a scan, its label and its mask of excluded voxels.

    Args:
        scan: A scan of the index.
        root: Root of the index, which the paths of the scan start from.
        with_label: Read the label too, where there is one.

    Raises:
        ReadError: Missing, truncated or damaged file, or a mask whose shape differs from the image's.
    """
    image, grid = _read_parts(scan.source.parts, root, scan.grid)
    if len(image) != len(scan.source.channels) or grid.shape != scan.grid.shape:
        message = (
            f"{_first(scan.source.parts)} now has shape {_times(image.shape)}, the index says "
            f"{_times((len(scan.source.channels), *scan.grid.shape))}: run medssl index again"
        )
        raise ReadError(message)
    affine = np.array(grid.affine)
    notes: list[str] = []
    label = excluded = None
    if with_label and scan.labels.mask:
        mask = _Mask("label", scan.labels.mask, "the number of the class")
        label = whole_numbers(_read_mask(mask, scan, root, grid, notes), _first(scan.labels.mask))
    if scan.labels.excluded:
        mask = _Mask("mask of excluded voxels", scan.labels.excluded, "0 where voxels count")
        excluded = _read_mask(mask, scan, root, grid, notes) != 0
    if excluded is not None and not excluded.any():
        excluded = None
    return Volume(image, affine, grid.spacing_mm, label, tuple(notes), excluded)


def check_label(label: np.ndarray, schema: LabelSchema) -> None:
    """Compare the values of a label with the class map.

    Raises:
        UserError: Naming the values that are neither a class nor the value to ignore, and how many voxels hold them.
    """
    values, counts = np.unique(label, return_counts=True)
    known = {value for value, _ in schema.classes} | ({schema.ignore} if schema.ignore is not None else set())
    strange = {int(value): int(count) for value, count in zip(values, counts, strict=True) if int(value) not in known}
    if strange:
        shown = ", ".join(f"{value} ({count:,} voxels)" for value, count in list(strange.items())[:5])
        classes = ", ".join(f"{value}={name}" for value, name in schema.classes)
        message = (
            f"label value not in the class map {classes}: {shown}; name it with --labels.class_names "
            "or leave it out of the loss with --labels.ignore"
        )
        raise UserError(message)


def whole_numbers(label: np.ndarray, name: str = "") -> np.ndarray:
    """A label as integers, every value unchanged.

    Args:
        label: Values of any number type.
        name: File that messages name.

    Raises:
        ReadError: Values that are not whole numbers, or beyond what 32 bits hold.
    """
    if label.dtype.kind == "b":
        return label.astype(np.uint8)
    limits = np.iinfo(np.int32)
    if label.dtype.kind == "f" and not np.array_equal(np.rint(label), label):
        problem = "values that are not whole numbers"
    elif label.size and not limits.min <= label.min() <= label.max() <= limits.max:
        problem = f"values from {label.min():.0f} to {label.max():.0f}: a class is a number of at most 32 bits"
    else:
        return label.astype(np.int32) if label.dtype.kind == "f" else label
    message = f"label {name} holds {problem}".replace("  ", " ")
    raise ReadError(message)


@dataclass(frozen=True)
class _Mask:
    """What messages call a mask, its files, and what its only channel holds."""

    noun: str
    parts: tuple[Part, ...]
    holds: str


def _read_mask(mask: _Mask, scan: Scan, root: Path, grid: Grid, notes: list[str]) -> np.ndarray:
    """A mask of the image's shape [1, *s]; what is odd about it joins ``notes``."""
    array, its_grid = _read_parts(mask.parts, root, scan.grid)
    name = f"{mask.noun} {_first(mask.parts)}"
    if its_grid.shape != grid.shape:
        message = (
            f"{name} has shape {_times(its_grid.shape)}, its image {_first(scan.source.parts)} "
            f"{_times(grid.shape)}: they must be equal"
        )
        raise ReadError(message)
    if len(array) != 1:
        message = f"{name} has {len(array)} channels: expected one, holding {mask.holds}"
        raise ReadError(message)
    off = float(np.abs(np.array(its_grid.affine) - np.array(grid.affine)).max())
    if off > _SAME_AFFINE_MM:
        notes.append(f"{name} lies up to {off:.3g} mm off its image")
    return array


def _read_parts(parts: tuple[Part, ...], root: Path, place: Grid) -> tuple[np.ndarray, Grid]:
    """Array [C, *s] and grid of a scan or a label, by the format of its first file; DICOM lies at ``place``."""
    if not parts:
        message = "a scan without files: run medssl index again"
        raise ReadError(message)
    file = root / parts[0].path
    try:
        form = format_of(file)
        if form == "dicom":
            return _dicom(parts, root, place)
        readers: Mapping[str, Any] = {"nifti": _nifti, "itk": _itk, "picture": _picture, "tiff": _tiff}
        if form not in readers:
            message = f"{file.name}: {form}"
            raise ReadError(message)
        image, grid = readers[form](file)
    except HeaderError as error:
        message = f"{file.name}: {error}"
        raise ReadError(message) from error
    except FileNotFoundError as error:
        message = f"{parts[0].path}: no such file below {root}: run medssl index again"
        raise ReadError(message) from error
    except OSError as error:
        message = f"{file.name}: {error.strerror or 'damaged: ' + str(error).splitlines()[0]}"
        raise ReadError(message) from error
    if image.size == 0:
        message = f"{file.name}: zero-size, shape {_times(image.shape)}"
        raise ReadError(message)
    return image, grid


def _first(parts: tuple[Part, ...]) -> str:
    return Path(parts[0].path).name


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# --- one reader for each format: array [C, *s] and grid


def _nifti(file: Path) -> tuple[np.ndarray, Grid]:
    """Whole numbers as they are stored; scaled ones in float32 (computed in float64)."""
    import nibabel

    try:
        with silent():
            image: Any = nibabel.load(file)
        header, proxy = nifti_layout(tuple(image.shape), image.affine), image.dataobj
        stored: np.ndarray = np.empty(int(np.prod(image.shape)), dtype=image.get_data_dtype())
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            _fill(stored, stream, int(proxy.offset))
    except nifti_damage() as error:
        message = f"truncated or damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise HeaderError(message) from error
    values = stored if stored.dtype.isnative else stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    values = _scaled(values, float(proxy.slope), float(proxy.inter))
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    array = values.reshape(*shape[:3], header.channels, order="F")  # i, j, k, C
    if header.kind == "image":
        return array[:, :, 0].transpose(2, 1, 0), header.grid  # rows are j, columns i
    return np.moveaxis(array, -1, 0), header.grid


def _fill(stored: np.ndarray, stream: Any, offset: int) -> None:
    """Read the voxels in place and on to the end of the file, where gzip checks its sum."""
    stream.seek(offset)
    target = stored.view(np.uint8).data
    done = 0
    while done < len(target):
        count = stream.readinto(target[done : done + (1 << 24)])
        if not count:
            message = f"truncated: {done:,} of {len(target):,} bytes of voxels"
            raise HeaderError(message)
        done += count
    if isinstance(stream, gzip.GzipFile):
        while stream.read(1 << 20):
            pass


def _scaled(values: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Apply NIfTI's scl_slope and scl_inter; a whole shift keeps whole numbers where int32 holds them."""
    if not np.isfinite(slope) or slope == 0 or (slope == 1 and inter == 0):
        return values
    if slope == 1 and inter == round(inter) and values.dtype.kind in "iu" and values.size:
        lowest, highest = int(values.min()) + int(inter), int(values.max()) + int(inter)
        for dtype in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                return np.asarray((values.astype(np.int64) + int(inter)).astype(dtype))
    return np.asarray((values.astype(np.float64) * slope + inter).astype(np.float32))


def _itk(file: Path) -> tuple[np.ndarray, Grid]:
    """SimpleITK gives (k, j, i[, C])."""
    import SimpleITK

    try:
        reader = itk_reader(file)
        reader.ReadImageInformation()
        header, image = itk_layout(reader), reader.Execute()
    except RuntimeError as error:
        message = f"truncated or damaged: {itk_reason(error)}"
        raise HeaderError(message) from error
    array = SimpleITK.GetArrayFromImage(image)
    if header.channels == 1:
        array = array[..., None]
    if header.kind == "image":
        return np.moveaxis(array, -1, 0), header.grid
    return array.transpose(3, 2, 1, 0), header.grid


def _picture(file: Path) -> tuple[np.ndarray, Grid]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            domain, _ = picture_layout(image.mode)
            if domain == "rgb":
                array = np.asarray(image.convert("RGB"))
            else:
                array = np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)
    except HeaderError:
        raise
    except (OSError, *DAMAGE, Image.DecompressionBombError) as error:
        message = f"truncated or damaged: {str(error).splitlines()[0].replace(str(file), file.name)}"
        raise HeaderError(message) from error
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    channels = array.transpose(2, 0, 1) if array.ndim == 3 else array[None]
    return channels, picture_grid(*channels.shape[1:])


def _tiff(file: Path) -> tuple[np.ndarray, Grid]:
    import tifffile

    try:
        with silent(), tifffile.TiffFile(file) as opened:
            series = opened.series[0]
            header = tiff_layout(series.axes, tuple(series.shape), series.dtype)
            axes = series.axes
            others = (number for number, letter in enumerate(axes) if letter not in "YX")
            order = (*others, axes.index("Y"), axes.index("X"))
            array = series.asarray().transpose(order).reshape(header.channels, *header.grid.shape)
    except HeaderError:
        raise
    except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
        message = f"truncated or damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise HeaderError(message) from error
    return array, header.grid


def _dicom(parts: tuple[Part, ...], root: Path, grid: Grid) -> tuple[np.ndarray, Grid]:
    """A stack (column, row, slice) or one picture (row, column); the index knows where its slices lie."""
    from medssl.data.dicom import DicomError
    from medssl.data.pixels import read_stack

    try:
        stack = read_stack(root, parts)  # slice, row, column, sample
    except DicomError as error:
        raise ReadError(str(error)) from error
    image = stack.transpose(3, 2, 1, 0) if len(grid.shape) == 3 else stack[0].transpose(2, 0, 1)
    return image, replace(grid, shape=tuple(image.shape[1:]))
