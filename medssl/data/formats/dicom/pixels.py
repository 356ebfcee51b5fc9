"""Pixels of a DICOM stack: read straight into one array where they are stored plain, decoded by pydicom where not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.dicom.elements import PIXEL_TAGS, DicomError, damage, parse, plain, quiet
from medssl.data.formats.dicom.extent import frame_bytes, pixel_place
from medssl.data.formats.dicom.mosaic import is_mosaic, read_mosaic, tile_of
from medssl.types import Part

if TYPE_CHECKING:
    from io import BufferedReader

    from pydicom import Dataset


@dataclass(frozen=True)
class _Layout:
    """How the pixels of one file are stored and what they mean."""

    shape: tuple[int, int, int]
    dtype: str
    stored_bits: int
    photometric: str


def read_stack(root: Path, parts: Sequence[Part]) -> np.ndarray:
    """Read slices in the order of ``parts``.

    Returns:
        Array (slice, row, column, sample), rescaled: whole numbers stay whole where slope and intercept are.

    Raises:
        DicomError: Naming the file that is truncated, of another shape than the first, or cannot be decoded.
    """
    stack: np.ndarray | None = None
    first: _Layout | None = None
    scales: list[tuple[float, float]] = []
    for number, part in enumerate(parts):
        file = root / part.path
        try:
            with file.open("rb") as stream, quiet():
                dataset = parse(stream, PIXEL_TAGS)
                side = read_mosaic(stream).side if is_mosaic(dataset) else 1
                layout = _layout(dataset, side)
                if stack is None or first is None:
                    first, stack = layout, np.empty((len(parts), *layout.shape), dtype=layout.dtype)
                if layout != first:
                    message = f"{layout} where the first slice has {first}"
                    raise DicomError(message)
                if side == 1:
                    _read_frame(dataset, stream, part.frame or 0, stack[number])
                else:
                    picture = np.empty((int(dataset.Rows), int(dataset.Columns), layout.shape[2]), layout.dtype)
                    _read_frame(dataset, stream, 0, picture)
                    stack[number] = tile_of(picture, part.frame or 0, side)
                scales.append(_scale(dataset, part.frame))
        except OSError as error:
            message = f"{file.name}: {error.strerror or error}"
            raise DicomError(message) from error
        except damage() as error:
            message = f"{file.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            raise DicomError(message) from error
    if stack is None or first is None:
        message = "a scan without files"
        raise DicomError(message)
    return _rescaled(_clean(stack, first), scales)


def same_pixels(root: Path, one: Part, other: Part) -> bool:
    """Whether two slices hold equal values; one that cannot be read equals none."""
    try:
        digests = {hashlib.sha256(read_stack(root, (part,)).tobytes()).digest() for part in (one, other)}
    except DicomError:
        return False
    return len(digests) == 1


def _layout(dataset: Dataset, side: int) -> _Layout:
    samples = int(dataset.get("SamplesPerPixel") or 1)
    bits = int(dataset.BitsAllocated)
    if bits not in (8, 16, 32):
        message = f"{bits} bits a pixel: only 8, 16 and 32 are read"
        raise DicomError(message)
    stored = int(dataset.get("BitsStored") or bits)
    if samples == 1 and int(dataset.get("HighBit", stored - 1)) != stored - 1:
        message = f"pixels that do not start at bit 0 (high bit {dataset.HighBit}, {stored} bits)"
        raise DicomError(message)
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    shape = (int(dataset.Rows) // side, int(dataset.Columns) // side, samples)
    return _Layout(shape, f"{kind}{bits // 8}", stored, str(dataset.get("PhotometricInterpretation", "MONOCHROME2")))


def _read_frame(dataset: Dataset, stream: BufferedReader, frame: int, out: np.ndarray) -> None:
    """Read one frame into ``out`` (row, column, sample)."""
    if plain(dataset) and out.shape[-1] == 1 and np.little_endian:
        start, _ = pixel_place(dataset, stream)
        if start is None:
            message = "truncated: no pixels after the header"
            raise DicomError(message)
        stream.seek(start + frame * frame_bytes(dataset))
        if stream.readinto(out.reshape(-1).view(np.uint8).data) != out.nbytes:
            message = f"truncated: fewer than {out.nbytes:,} bytes of pixels"
            raise DicomError(message)
        return
    import pydicom

    stream.seek(0)
    whole: Any = pydicom.dcmread(stream, force=True)
    if "TransferSyntaxUID" not in whole.file_meta:
        whole.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    from pydicom.pixels import pixel_array

    index = frame if int(whole.get("NumberOfFrames") or 1) > 1 else None
    out[...] = np.asarray(pixel_array(whole, index=index)).reshape(out.shape)


def _clean(stack: np.ndarray, layout: _Layout) -> np.ndarray:
    """Drop what is no part of the value above the stored bits (old overlays), and turn inverted gray round."""
    spare = stack.dtype.itemsize * 8 - layout.stored_bits
    if spare and layout.shape[2] == 1:
        low = -(1 << layout.stored_bits - 1) if stack.dtype.kind == "i" else 0
        if int(stack.max()) > low + (1 << layout.stored_bits) - 1 or int(stack.min()) < low:
            np.left_shift(stack, spare, out=stack)
            np.right_shift(stack, spare, out=stack)
    if layout.photometric == "MONOCHROME1":
        if stack.dtype.kind == "i":
            np.invert(stack, out=stack)
        else:
            np.subtract((1 << layout.stored_bits) - 1, stack, out=stack, casting="unsafe")
    return stack


def _scale(dataset: Dataset, frame: int | None) -> tuple[float, float]:
    """Slope and intercept of one frame (PS3.3 C.11.1), from its functional group, the shared one, or the file."""
    groups, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for source in ((groups[frame] if groups and frame is not None else None), shared[0] if shared else None):
        if source is not None and source.get("PixelValueTransformationSequence"):
            item = source.PixelValueTransformationSequence[0]
            return float(item.RescaleSlope), float(item.RescaleIntercept)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return (1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept))


def _rescaled(stack: np.ndarray, scales: Sequence[tuple[float, float]]) -> np.ndarray:
    """Apply slope and intercept; the smallest of int16, uint16 and int32 that holds the whole numbers."""
    if set(scales) == {(1.0, 0.0)}:
        return stack
    slopes, intercepts = np.array(scales).T
    if (slopes == 1).all() and (intercepts == intercepts[0]).all() and intercepts[0] == round(intercepts[0]):
        shift = int(intercepts[0])
        lowest, highest = int(stack.min()) + shift, int(stack.max()) + shift
        for dtype in (np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                shifted: np.ndarray = stack.astype(dtype, copy=False)
                return np.asarray(np.add(shifted, np.array(shift).astype(dtype), out=shifted))  # wraps twice: right
    scaled: np.ndarray = stack.astype(np.float32)
    scaled *= slopes.astype(np.float32)[:, None, None, None]
    scaled += intercepts.astype(np.float32)[:, None, None, None]
    return scaled
