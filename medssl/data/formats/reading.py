"""Reads a scan of the index: its array, its affine and its masks, as stored on disk.

The modules of ``formats`` do the work. MONAI's readers are not used: they convert integers to float32, do not verify
checksums of gzip files, and take seconds to import in every process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats import masks, units
from medssl.data.formats.base import FormatError, Reading, first_line, times
from medssl.data.formats.recognition import FORMATS, format_of
from medssl.types import Grid, Part, Scan, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped


class ReadError(UserError):
    """A scan that cannot be read; the message has one line and names the file."""


@dataclass(frozen=True)
class Volume:
    """A scan as stored on disk.

    Attributes:
        image: [C, i, j, k] or [C, H, W] in the number type of the file, or float32 if the file defines a scaling to
            real numbers.
        affine: Voxel-to-world affine, mm.
        spacing_mm: Voxel spacing per axis.
        label: Whole numbers [1, *s]; None without a label.
        notes: Notes for the user.
        excluded: [1, *s], True for voxels that must not enter a loss; None without such voxels.
    """

    image: Shaped[np.ndarray, "C *s"]
    affine: np.ndarray
    spacing_mm: tuple[float, ...]
    label: Shaped[np.ndarray, "1 *s"] | None = None
    notes: tuple[str, ...] = ()
    excluded: Bool[np.ndarray, "1 *s"] | None = None


def read(scan: Scan, root: Path, *, with_label: bool = True) -> Volume:
    """Reads a scan, its label and its mask of excluded voxels.

    Args:
        scan: A scan of the index.
        root: Root of the index; the paths of the scan are relative to it.
        with_label: Also read the label, if there is one.

    Raises:
        ReadError: A file is missing, truncated or damaged, or a mask lies on another grid or does not hold classes.
    """
    notes: list[str] = []
    image, grid = _read_parts(scan.source.parts, root, scan.grid, _reading(scan), notes)
    if len(image) != len(scan.source.channels) or grid.shape != scan.grid.shape:
        message = (
            f"{_first_name(scan.source.parts)} now has shape {times(image.shape)}, the index says "
            f"{times((len(scan.source.channels), *scan.grid.shape))}: index the scans again"
        )
        raise ReadError(message)
    factor = units.factor_between(grid, scan.grid)
    grid = units.scaled(grid, factor)
    affine = np.array(grid.affine)
    label = excluded = None
    if with_label and scan.labels.classes:
        label = _read_objects(scan, root, grid, notes)
    elif with_label and scan.labels.mask:
        mask = _Mask("label", scan.labels.mask, "the number of the class", scan.labels.threshold)
        label = _read_mask(mask, scan, root, (grid, factor), notes)
    if scan.labels.excluded:
        mask = _Mask("mask of excluded voxels", scan.labels.excluded, "0 where voxels count")
        excluded = _read_mask(mask, scan, root, (grid, factor), notes)
    if excluded is not None and not excluded.any():
        excluded = None
    return Volume(image, affine, grid.spacing_mm, label, tuple(notes), excluded)


@dataclass(frozen=True)
class _Mask:
    """A mask to read: its name and content in messages, its files, and the threshold of class 1."""

    noun: str
    parts: tuple[Part, ...]
    holds: str
    threshold: float | None = None


def _read_mask(mask: _Mask, scan: Scan, root: Path, image_place: tuple[Grid, float], notes: list[str]) -> np.ndarray:
    """Reads a mask on the grid of the image [1, *s]: classes, or True for excluded voxels; adds to ``notes``.

    ``image_place`` is the grid of the image, and the factor by which the lengths in its file were multiplied.
    """
    grid, factor = image_place
    array, mask_grid = _read_parts(mask.parts, root, scan.grid, _reading(scan, label=True))
    mask_grid = units.like_image(mask_grid, grid, factor)
    name = f"{mask.noun} {_first_name(mask.parts)}"
    match = masks.compare(grid, mask_grid, trust=scan.labels.trust_grid)
    if match.problem.startswith("shape differs"):
        message = (
            f"{name} has shape {times(mask_grid.shape)}, its image {_first_name(scan.source.parts)} "
            f"{times(grid.shape)}: they must be equal"
        )
        raise ReadError(message)
    if match.problem:
        message = f"{mask.noun} {match.problem.format(name=_first_name(mask.parts))}"
        raise ReadError(message)
    if match.note:
        notes.append(f"{name} {match.note}")
    try:
        return _checked_values(mask, match.reorientation.apply(masks.one_channel(array, name, mask.holds, notes)), name)
    except masks.MaskError as error:
        raise ReadError(str(error)) from error


def _checked_values(mask: _Mask, array: np.ndarray, name: str) -> np.ndarray:
    """Checks values and converts them: whole numbers for a label map, True for nonzero voxels of an exclusion mask."""
    if mask.threshold is not None:
        return masks.apply_threshold(array, mask.threshold)
    if mask.noun == "label":
        masks.refuse_lossy(array, name, advice="binary masks: label.threshold 128; others: save them as PNG")
        return masks.whole_numbers(array, name)
    masks.refuse_lossy(array, name, advice="save it as PNG")
    if array.dtype.kind == "f" and np.isnan(array).any():
        message = f"{name} holds NaN: expected {mask.holds}"
        raise masks.MaskError(message)
    return np.asarray(array != 0)


def _reading(scan: Scan, *, label: bool = False) -> Reading:
    """Reading options of a scan, or of its masks."""
    options: dict[str, str] = json.loads(scan.source.reading) if scan.source.reading else {}
    return Reading(label, **options)


def _read_objects(scan: Scan, root: Path, grid: Grid, notes: list[str]) -> np.ndarray:
    """Label of a scan from DICOM segmentations and structure sets [1, i, j, k]; adds to ``notes``."""
    from medssl.data.formats.dicom.elements import DicomError
    from medssl.data.formats.dicom.label_objects import read_objects

    try:
        label, label_notes = read_objects(scan.labels.mask, scan.labels.classes, root, grid)
    except DicomError as error:
        raise ReadError(str(error)) from error
    except OSError as error:
        message = f"label {_first_name(scan.labels.mask)}: {error.strerror or 'cannot be read'}: index the scans again"
        raise ReadError(message) from error
    notes += label_notes
    return label


def _read_parts(
    parts: tuple[Part, ...], root: Path, place: Grid, reading: Reading, notes: list[str] | None = None
) -> tuple[np.ndarray, Grid]:
    """Array [C, *s] and grid of a scan or a label, by the format of its first file; ``place`` is the grid for DICOM."""
    if not parts:
        message = "a scan without files: index the scans again"
        raise ReadError(message)
    file = root / parts[0].path
    try:
        form, problem = format_of(file)
        if form == "dicom":
            return _dicom(parts, root, place, [] if notes is None else notes)
        if problem:
            message = f"{file.name}: {problem}"
            raise ReadError(message)
        image, grid = FORMATS[form].read_pixels(file, parts[0].frame, reading)
        image, grid = (image, grid) if len(parts) == 1 else _with_channels(image, grid, parts, root, reading)
    except FormatError as error:
        message = f"{file.name}: {error}"
        raise ReadError(message) from error
    except FileNotFoundError as error:
        message = f"{parts[0].path}: no such file below {root}: index the scans again"
        raise ReadError(message) from error
    except OSError as error:
        message = f"{file.name}: {error.strerror or 'damaged: ' + first_line(error)}"
        raise ReadError(message) from error
    if image.size == 0:
        message = f"{file.name}: zero-size, shape {times(image.shape)}"
        raise ReadError(message)
    return image, grid


def _with_channels(
    image: np.ndarray, grid: Grid, parts: tuple[Part, ...], root: Path, reading: Reading
) -> tuple[np.ndarray, Grid]:
    """Appends the channels of further files, which must lie on the same grid."""
    arrays = [image]
    for part in parts[1:]:
        channels, channel_grid = _read_parts((part,), root, grid, reading)
        match = masks.compare(grid, channel_grid)
        if match.problem:
            message = f"channel {match.problem.format(name=Path(part.path).name)}"
            raise ReadError(message)
        arrays.append(match.reorientation.apply(channels))
    return np.concatenate(arrays), grid


def _first_name(parts: tuple[Part, ...]) -> str:
    return Path(parts[0].path).name


def _dicom(parts: tuple[Part, ...], root: Path, grid: Grid, notes: list[str]) -> tuple[np.ndarray, Grid]:
    """A stack (column, row, slice) or one picture (row, column) whose parts are channels; the index has the grid."""
    from medssl.data.formats.dicom.elements import DicomError
    from medssl.data.formats.dicom.pixels import read_values

    try:
        values = read_values(root, parts)  # slice, row, column, sample
    except DicomError as error:
        raise ReadError(str(error)) from error
    notes.extend(values.notes)
    stack = values.array
    if len(grid.shape) == 3:
        image = stack.transpose(3, 2, 1, 0)
    else:
        image = stack.transpose(0, 3, 1, 2).reshape(-1, *stack.shape[1:3])
    return image, replace(grid, shape=tuple(image.shape[1:]))
