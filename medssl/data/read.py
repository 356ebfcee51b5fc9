"""One scan of the index -> its array, its affine and its masks, as they lie on disk.

The modules of ``formats`` do the work: the readers of MONAI turn integers into float32, never look at the checksum of
a gzip file, and cost seconds of import in every process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.base import FormatError, Reading
from medssl.data.formats.recognition import FORMATS, format_of
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
    array, its_grid = _read_parts(mask.parts, root, scan.grid, label=True)
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


def _read_parts(parts: tuple[Part, ...], root: Path, place: Grid, *, label: bool = False) -> tuple[np.ndarray, Grid]:
    """Array [C, *s] and grid of a scan or a label, by the format of its first file; DICOM lies at ``place``."""
    if not parts:
        message = "a scan without files: run medssl index again"
        raise ReadError(message)
    file = root / parts[0].path
    try:
        form, problem = format_of(file)
        if form == "dicom":
            return _dicom(parts, root, place)
        if problem:
            message = f"{file.name}: {problem}"
            raise ReadError(message)
        image, grid = FORMATS[form].read_pixels(file, parts[0].frame, Reading(label=label))
    except FormatError as error:
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


def _dicom(parts: tuple[Part, ...], root: Path, grid: Grid) -> tuple[np.ndarray, Grid]:
    """A stack (column, row, slice) or one picture (row, column); the index knows where its slices lie."""
    from medssl.data.formats.dicom.elements import DicomError
    from medssl.data.formats.dicom.pixels import read_stack

    try:
        stack = read_stack(root, parts)  # slice, row, column, sample
    except DicomError as error:
        raise ReadError(str(error)) from error
    image = stack.transpose(3, 2, 1, 0) if len(grid.shape) == 3 else stack[0].transpose(2, 0, 1)
    return image, replace(grid, shape=tuple(image.shape[1:]))
