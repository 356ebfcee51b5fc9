"""NIfTI-1 and NIfTI-2 (``.nii``, ``.nii.gz``)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import (
    DAMAGE,
    FileHeader,
    FormatError,
    Frames,
    Reading,
    first_line,
    make_grid,
    picture_grid,
    silent,
)
from medssl.types import Grid

SUFFIXES = (".nii", ".nii.gz")


def matches(first: bytes) -> bool:
    """Whether a file begins with a NIfTI header."""
    return first[344:347] in (b"n+1", b"ni1") or first[4:7] in (b"n+2", b"ni2")


def companions(path: Path) -> tuple[Path, ...]:
    """A NIfTI file is whole by itself."""
    del path
    return ()


def read_header(path: Path) -> FileHeader:
    """Read type, shape and affine, and compare the length of the voxels with what the file holds.

    Raises:
        FormatError: Truncated, damaged, or voxels of a type that is no scan.
    """
    import nibabel

    try:
        with silent():
            image: Any = nibabel.load(path)
    except _damage() as error:
        message = f"not readable as NIfTI: {first_line(error)}"
        raise FormatError(message) from error
    dtype = image.get_data_dtype()
    if dtype.kind not in "iufb":
        message = f"not readable as NIfTI: voxels of type {dtype} (color or complex) are no scan"
        raise FormatError(message)
    _check_length(path, image)
    return _header(image)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Read whole numbers as they are stored and scaled ones in float32 (computed in float64).

    Args:
        path: The file.
        frame: Which volume of several; None takes all as channels.
        reading: Not used.

    Returns:
        Array [C, i, j, k] or [C, row, column], and its grid.

    Raises:
        FormatError: Truncated or damaged.
    """
    del reading
    import nibabel

    try:
        with silent():
            image: Any = nibabel.load(path)
        header, proxy = _header(image), image.dataobj
        stored: np.ndarray = np.empty(int(np.prod(image.shape)), dtype=image.get_data_dtype())
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            _fill(stored, stream, int(proxy.offset))
    except _damage() as error:
        message = f"truncated or damaged: {first_line(error)}"
        raise FormatError(message) from error
    values = stored if stored.dtype.isnative else stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    array = values.reshape(*shape[:3], header.frames.count, order="F")  # i, j, k, frame
    array = array if frame is None else array[..., frame : frame + 1]
    array = _scaled(array, float(proxy.slope), float(proxy.inter))
    if header.kind == "image":
        return array[:, :, 0].transpose(2, 1, 0), header.grid  # rows are j, columns i
    return np.moveaxis(array, -1, 0), header.grid


def _damage() -> tuple[type[Exception], ...]:
    """What a damaged NIfTI file raises; nibabel's own errors have no base that says so."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError

    return (ImageFileError, HeaderDataError, HeaderTypeError, *DAMAGE)


def _header(image: Any) -> FileHeader:
    """Kind, frames and grid of a NIfTI array: (i, j) is an image with rows j, (i, j, k) a volume."""
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    count = int(np.prod(shape[3:]))  # 1 for three axes
    frames = Frames(count, "volumes along the fourth axis") if count > 1 else Frames()
    dtype = image.get_data_dtype().name
    if shape[2] == 1:
        width, height = shape[:2]
        steps = np.linalg.norm(image.affine[:3, :2], axis=0)
        grid = picture_grid(height, width, (float(steps[1]), float(steps[0])))
        return FileHeader("image", "gray", 1, grid, frames, dtype)
    return FileHeader("volume", "gray", 1, make_grid(shape[:3], image.affine), frames, dtype)


def _check_length(path: Path, image: Any) -> None:
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
        raise FormatError(message)


def _unpacked_size(path: Path) -> int:
    total = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                total += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"truncated or damaged: {first_line(error)}"
        raise FormatError(message) from error
    return total


def _fill(stored: np.ndarray, stream: Any, offset: int) -> None:
    """Read the voxels in place and on to the end of the file, where gzip checks its sum."""
    stream.seek(offset)
    target = stored.view(np.uint8).data
    done = 0
    while done < len(target):
        count = stream.readinto(target[done : done + (1 << 24)])
        if not count:
            message = f"truncated: {done:,} of {len(target):,} bytes of voxels"
            raise FormatError(message)
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
