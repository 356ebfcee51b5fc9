"""DICOM segmentation objects (PS3.3 A.51, A.90; C.8.20): a map of classes on the grid of a scan.

Frames are placed by their positions. Missing frames are background. A frame that does not lie on voxels of the scan is
an error; nothing is resampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS, times
from medssl.data.formats.dicom.elements import DicomError, damage, quiet, reason_of, shown, syntax_of
from medssl.data.formats.dicom.label_objects.class_map import ClassMap
from medssl.types import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_OFF_VOXELS = 0.1  # a corner of a frame may lie this far from the voxel it belongs to: rounded positions
_OFF_SLICES = 0.2  # the slices of a scan may lie this far off even steps
_MAX_VALUES = 1 << 31


def read_segmentation(file: Path, classes: Mapping[int, int], grid: Grid) -> ClassMap:
    """Reads the segments of one object.

    Args:
        file: A Segmentation or Label Map Segmentation.
        classes: Class value by number of the segment; other segments are background.
        grid: Grid of the scan, RAS+.

    Raises:
        DicomError: The file is damaged, lies on another grid or between slices, or its segments overlap.
    """
    import pydicom

    try:
        with quiet():
            dataset = pydicom.dcmread(file, force=True)
            return _read(dataset, classes, grid)
    except DicomError:
        raise
    except damage() as error:
        message = f"segmentation object damaged: {reason_of(error)}"
        raise DicomError(message) from error


def _read(dataset: Dataset, classes: Mapping[int, int], grid: Grid) -> ClassMap:
    kind = str(dataset.get("SegmentationType", "")).upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        message = f"segmentation of type {shown(kind) or 'unknown'}: BINARY, FRACTIONAL and LABELMAP are read"
        raise DicomError(message)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(groups) != count:
        message = f"segmentation object of {count} frames describes {len(groups)} of them"
        raise DicomError(message)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    described = {int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or ()}
    frame_of = frame_reader(dataset)
    result = ClassMap.empty(grid, classes)
    if kind == "FRACTIONAL":
        maximum = int(dataset.MaximumFractionalValue)
        result.notes.append(f"fractional segments: voxels from half of {maximum} on belong to the segment")
    for number, group in enumerate(groups):
        if kind != "LABELMAP":
            segment = int(_item(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            if segment not in described:
                message = f"frame {number + 1} belongs to segment {segment}, which the object does not describe"
                raise DicomError(message)
            if not classes.get(segment):
                continue
        frame = frame_of(number)
        rows, columns = np.nonzero(frame >= maximum / 2) if kind == "FRACTIONAL" else np.nonzero(frame)
        values: np.ndarray | int
        if kind == "LABELMAP":
            values = _classes_of(frame[rows, columns], classes, described)
            rows, columns, values = rows[values != 0], columns[values != 0], values[values != 0]
        else:
            values = classes[segment]
            if kind == "BINARY" and int(frame.max(initial=0)) > 1:
                message = f"binary segmentation with the value {int(frame.max())}: expected 0 and 1"
                raise DicomError(message)
        if len(rows):
            first, right, down = _frame_place(group, shared, dataset, grid, number)
            result.put(first + columns[:, None] * right + rows[:, None] * down, values)
    return _checked(result)


def _checked(result: ClassMap) -> ClassMap:
    if result.overlap:
        message = f"segments overlap at {result.overlap:,} voxels: a voxel has one class; export them without overlap"
        raise DicomError(message)
    if result.outside:
        message = f"{result.outside:,} labeled voxels lie outside of the scan: it is not the one that was segmented"
        raise DicomError(message)
    return result


def _classes_of(values: np.ndarray, classes: Mapping[int, int], described: set[int]) -> np.ndarray:
    """Converts the pixels of a label map, which are segment numbers, to classes."""
    numbers = np.unique(values).tolist()
    unknown = [value for value in numbers if value not in described]
    if unknown:
        message = f"label map with the segment number {unknown[0]}, which the object does not describe"
        raise DicomError(message)
    table = np.array([classes.get(value, 0) for value in numbers], np.int64)
    return table[np.searchsorted(numbers, values)] if numbers else np.zeros(0, np.int64)


def _item(group: Any, shared: Any, name: str) -> Any:
    """An item of the functional group of a frame, or of the shared one."""
    for source in (group, shared):
        if source is not None and source.get(name):
            return source[name][0]
    message = f"segmentation object without {name.removesuffix('Sequence')}: where its frames lie is not known"
    raise DicomError(message)


def _frame_place(
    group: Any, shared: Any, dataset: Dataset, grid: Grid, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel of the scan at the first pixel of a frame, and its steps in voxels along columns and rows."""
    position = _numbers(_item(group, shared, "PlanePositionSequence").get("ImagePositionPatient"), 3)
    direction = _numbers(_item(group, shared, "PlaneOrientationSequence").get("ImageOrientationPatient"), 6)
    between_rows, between_columns = _numbers(_item(group, shared, "PixelMeasuresSequence").get("PixelSpacing"), 2)
    frame = np.eye(4)[:, [0, 1, 3]]
    frame[:3] = np.column_stack([direction[:3] * between_columns, direction[3:] * between_rows, position])
    frame[:3] *= np.array(LPS_TO_RAS)[:, None]
    pixel_to_voxel = np.linalg.solve(np.array(grid.affine), frame)[:3]  # pixel (column, row, 1) -> voxel
    right, down = np.rint(pixel_to_voxel[:, 0]).astype(int), np.rint(pixel_to_voxel[:, 1]).astype(int)
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    across = [axis for axis in range(3) if not right[axis] and not down[axis]]
    unit = np.abs(right).sum() == np.abs(down).sum() == 1 and len(across) == 1
    corners = np.array([[x, y, 1] for x in (0, columns - 1) for y in (0, rows - 1)])
    offsets = np.abs(
        corners @ pixel_to_voxel.T - (np.rint(pixel_to_voxel[:, 2]) + corners[:, :1] * right + corners[:, 1:2] * down)
    ).max(0)
    if not unit or np.delete(offsets, across).max() > _OFF_VOXELS or (offsets[across[0]] > 0.5):
        size = f"{rows} x {columns} pixels of {between_rows:.4g} x {between_columns:.4g} mm"
        message = (
            f"segmentation on another grid: frame {number + 1} has {size}, the scan "
            f"{times(grid.shape)} voxels of {'x'.join(f'{step:.4g}' for step in grid.spacing_mm)} mm; "
            "save it on the grid of its series"
        )
        raise DicomError(message)
    if offsets[across[0]] > _OFF_SLICES:
        message = f"frame {number + 1} of the segmentation lies between slices, {offsets[across[0]]:.2f} steps off"
        raise DicomError(message)
    return np.rint(pixel_to_voxel[:, 2]).astype(int), right, down


def _numbers(value: Any, count: int) -> np.ndarray:
    numbers = np.array([float(number) for number in value or ()])
    if len(numbers) != count or not np.isfinite(numbers).all():
        message = "segmentation object without usable position, orientation or spacing"
        raise DicomError(message)
    return numbers


# --- pixels


def frame_reader(dataset: Dataset) -> Callable[[int], np.ndarray]:
    """Function that returns one frame (row, column), from packed bits, bytes or encoded pixels."""
    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    count = int(dataset.get("NumberOfFrames") or 1)
    if bits not in (1, 8, 16) or min(rows, columns, count) < 1 or rows * columns * count > _MAX_VALUES:
        message = f"segmentation of {count} frames of {rows} x {columns} pixels of {bits} bits: not read"
        raise DicomError(message)
    if "PixelData" not in dataset:
        message = "truncated: segmentation object without pixels"
        raise DicomError(message)
    syntax = syntax_of(dataset)
    if syntax in _NATIVE:
        return _native(bytes(dataset.PixelData), (rows, columns, bits, count), big=syntax == _BIG_ENDIAN)
    if syntax == _DEFLATED_FRAMES:
        from pydicom.encaps import generate_frames

        needed = -(-rows * columns * bits // 8)
        packed = list(generate_frames(bytes(dataset.PixelData), number_of_frames=count))
        return lambda number: _unpacked(_inflated(packed[number], needed), 0, (rows, columns, bits), big=False)
    from pydicom.pixels import pixel_array

    return lambda number: np.asarray(pixel_array(dataset, index=number)).reshape(rows, columns)


def _inflated(data: bytes, needed: int) -> bytes:
    """Unpacks a frame of Deflated Image Frame Compression, at most ``needed`` bytes."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, needed)


def _native(data: bytes, size: tuple[int, int, int, int], *, big: bool) -> Callable[[int], np.ndarray]:
    rows, columns, bits, count = size
    needed = -(-rows * columns * bits * count // 8)
    if len(data) < needed:
        message = f"truncated: {len(data):,} of {needed:,} bytes of pixels"
        raise DicomError(message)
    return lambda number: _unpacked(data, number * rows * columns * bits, (rows, columns, bits), big=big)


def _unpacked(data: bytes, start: int, size: Sequence[int], *, big: bool) -> np.ndarray:
    """One frame that starts at bit ``start``."""
    rows, columns, bits = size
    length = rows * columns * bits
    part = data[start // 8 : -(-(start + length) // 8)]
    if len(part) * 8 < length:
        message = "truncated: a frame of the segmentation has too few bytes"
        raise DicomError(message)
    if bits == 1:
        values = np.unpackbits(np.frombuffer(part, np.uint8), bitorder="little")[start % 8 :][: rows * columns]
    else:
        values = np.frombuffer(part, ">u2" if big and bits == 16 else f"<u{bits // 8}")
    return values.reshape(rows, columns)
