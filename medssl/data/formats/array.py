"""Arrays without a header: NumPy's ``.npy`` and ``.npz``, and HDF5. The user states the meaning of their axes.

Nothing is unpickled, and links in HDF5 files are not followed.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import tokenize
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

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
    times,
)
from medssl.types import Grid

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
NOUN = "an array file"
NEEDS_SUFFIX = True  # ZIP and HDF5 files hold many other things
_NPY, _ZIP, _HDF5 = b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
_MAX_MEMBERS = 1000
_DEFLATE_LIMIT = 1032  # bytes out of one byte in
_MAX_LISTED = 6  # members that a message names

Members = dict[str, tuple[tuple[int, ...], str]]  # name -> shape and number type


def matches(first: bytes) -> bool:
    """Whether a file starts as ``.npy``, ZIP or HDF5; the last two hold many other things, so the name must agree."""
    return first.startswith((_NPY, _ZIP, _HDF5))


def read_header(path: Path) -> FileHeader:
    """Reads names, shapes and number types; the grid has one voxel until ``lay_out`` knows the axes.

    Raises:
        FormatError: The file is truncated or damaged, has no array of numbers, or is HDF5 and h5py is missing.
    """
    with _as_format_error("not readable as an array"):
        members = _members(path)
    if not members:
        message = "no array of numbers with at least two axes"
        raise FormatError(message)
    details = {"arrays": {name: [list(shape), dtype] for name, (shape, dtype) in members.items()}}
    return FileHeader("volume", "gray", 1, make_grid((1, 1, 1), np.eye(4)), details=details)


def lay_out(arrays: Mapping[str, Any], options: Mapping[str, str]) -> tuple[FileHeader, str]:
    """Header of a file by its stated axes.

    Args:
        arrays: Shape and number type by name, as in the details of ``read_header``.
        options: "axes", "spacing_mm" and "member", as in the key ``files.arrays``.

    Returns:
        The header, and the fields of ``Reading`` as JSON.

    Raises:
        FormatError: No axes are stated, they do not fit, or the file has several arrays.
    """
    if not options.get("axes"):
        message = "arrays without stated axes: state them with files.arrays.axes, as in kji, ckji, ji or jic"
        raise FormatError(message)
    members = {name: (tuple(shape), dtype) for name, (shape, dtype) in arrays.items()}
    reading = Reading(axes=options["axes"], member=options.get("member", ""), spacing_mm=options.get("spacing_mm", ""))
    header = _header(*members[_select_member(members, reading)], reading)
    return header, json.dumps({key: value for key, value in asdict(reading).items() if value}, sort_keys=True)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Reads an array [C, i, j, k] or [C, row, column] and its grid, by the stated axes.

    Args:
        path: The file.
        frame: Number of the entry along the axis t; None takes all entries as channels.
        reading: Axes, spacing and name of the array; a label has no channel axis.

    Raises:
        FormatError: The file is truncated or damaged, or the axes do not fit.
    """
    with _as_format_error("truncated or damaged"):
        members = _members(path)
        name = _select_member(members, reading)
        header = _header(*members[name], reading)
        array = _load(path, name)
        letters = _letters(reading.axes, array.ndim)
        spatial_axes = "ijk" if "k" in letters else "ji"
        for letter in "ct":
            if letter not in letters:
                array, letters = array[None], letter + letters
        array = array.transpose([letters.index(letter) for letter in f"tc{spatial_axes}"])
        array = array if frame is None else array[frame : frame + 1]
        array = array.reshape(-1, *array.shape[2:])
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")), header.grid


def _letters(axes: str, ndim: int) -> str:
    """Letters of an array's axes; an array with one axis fewer than stated has no channel axis."""
    return axes.replace("c", "") if ndim == len(axes) - 1 and "c" in axes else axes


def _select_member(members: Members, reading: Reading) -> str:
    """Name of the array that is read."""
    listed = ", ".join(f"{name} ({times(shape)})" for name, (shape, _) in list(members.items())[:_MAX_LISTED])
    if len(members) > _MAX_LISTED:
        listed += f" and {len(members) - _MAX_LISTED} more"
    if "" in members or (len(members) == 1 and not reading.member):
        return next(iter(members))
    if matching_names := [name for name in reading.member.split(",") if name in members]:
        return matching_names[0]
    if reading.member:
        message = f"no array named {reading.member} (files.arrays.member), only {listed}"
    else:
        message = f"several arrays: choose one with files.arrays.member: {listed}"
    raise FormatError(message)


def _header(shape: tuple[int, ...], dtype: str, reading: Reading) -> FileHeader:
    """Kind, channels and grid of an array, by its stated axes."""
    letters = _letters(reading.axes, len(shape))
    if len(letters) != len(shape):
        message = (
            f"axes that do not fit: {times(shape)} has {len(shape)}, files.arrays.axes "
            f"{reading.axes} states {len(reading.axes)}"
        )
        raise FormatError(message)
    if 0 in shape:
        message = f"zero-size: shape {times(shape)}"
        raise FormatError(message)
    length = dict(zip(letters, shape, strict=True))
    spatial = [letter for letter in letters if letter in "ijk"]
    steps = [float(step) for step in reading.spacing_mm.split(",")] if reading.spacing_mm else [1.0] * len(spatial)
    step = dict(zip(spatial, steps, strict=True))
    channels, count = length.get("c", 1), length.get("t", 1)
    frames = Frames(count, "arrays along the axis t") if count > 1 else Frames()
    dtype = "uint8" if dtype == "bool" else dtype
    if "k" in length:
        grid = make_grid(tuple(length[letter] for letter in "ijk"), np.diag([*(step[axis] for axis in "ijk"), 1.0]))
        return FileHeader("volume", "gray", channels, grid, frames, dtype, ("its orientation is not known",))
    grid = picture_grid(length["j"], length["i"], (step["j"], step["i"]))
    if channels == 3 and dtype == "uint8":
        return FileHeader("image", "rgb", 3, grid, frames, dtype, ("three channels of 8 bits: taken as colors",))
    return FileHeader("image", "gray", channels, grid, frames, dtype)


@contextmanager
def _as_format_error(what: str) -> Iterator[None]:
    """Converts errors of libraries on damaged files to a ``FormatError`` of one line."""
    try:
        yield
    except (FormatError, FileNotFoundError, PermissionError):
        raise
    except (OSError, *DAMAGE, zipfile.BadZipFile, lzma.LZMAError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # it cannot be read now: said by the caller, and tried again
        message = f"{what}: {_reason(error)}"
        raise FormatError(message) from error


def _reason(error: BaseException) -> str:
    """What is wrong with a file, from an error of zipfile, NumPy or HDF5."""
    text = first_line(error)
    if "CRC-32" in text:
        return "the checksum of an array in the ZIP file does not match its content"
    if "filter returned failure" in text:
        return "the checksum of a chunk of the array does not match, or its compressed data are damaged"
    if isinstance(error, lzma.LZMAError):
        return "the compressed data are damaged"
    if isinstance(error, zipfile.BadZipFile):
        return "names in the ZIP file that do not agree" if "name in directory" in text else text
    if "encrypted" in text:
        return "the ZIP file is encrypted"
    if isinstance(error, EOFError):
        return "it ends early"
    if isinstance(error, (TypeError, AttributeError, LookupError, MemoryError, SyntaxError)) or (
        isinstance(error, OSError) and error.errno == errno.EINVAL
    ):
        return "a header that makes no sense"
    if "magic string" in text:
        return "an array without the first bytes of NumPy"
    return text


def _members(path: Path) -> Members:
    """Shape and number type of every array of numbers with two axes or more."""
    with path.open("rb") as stream:
        first = stream.read(8)
    if first.startswith(_NPY):
        return _npy_members(path)
    if first.startswith(_ZIP):
        return _npz_members(path)
    if first == _HDF5:
        return _hdf5_members(path)
    message = "its first bytes are not those of NumPy or HDF5"
    raise FormatError(message)


def _read_npy_header(stream: BinaryIO | Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads shape and number type from a header of NumPy's format; the stream is then at the first number."""
    version = np.lib.format.read_magic(stream)
    read_fields = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_fields is None:
        message = f"NumPy format {version[0]}.{version[1]}: only arrays of numbers are read"
        raise FormatError(message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, _, dtype = read_fields(stream)
    except (SyntaxError, TypeError, ValueError, tokenize.TokenError) as error:
        message = "damaged: the header of the NumPy array makes no sense"
        raise FormatError(message) from error
    if min(shape, default=1) < 0:
        message = f"damaged: a shape of {times(shape)}"
        raise FormatError(message)
    return tuple(int(length) for length in shape), dtype


def _is_number(dtype: Any) -> bool:
    """Whether a type can be that of voxels; objects, texts, times, records and complex numbers cannot."""
    return dtype.kind in "iufb" and dtype.itemsize <= 8


def _can_be_scan(shape: tuple[int, ...], dtype: Any) -> bool:
    return _is_number(dtype) and len(shape) >= 2


def _npy_members(path: Path) -> Members:
    with path.open("rb") as stream:
        shape, dtype = _read_npy_header(stream)
        start = stream.tell()
    if not _is_number(dtype):
        kind = "Python objects, which are never loaded" if dtype.hasobject else f"values of type {dtype}"
        message = f"{kind}: only whole and real numbers are read"
        raise FormatError(message)
    size, expected = path.stat().st_size, start + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != expected:
        message = f"truncated: {size:,} of {expected:,} bytes"
        if size > expected:
            message = f"{size - expected:,} bytes behind the array: several arrays in one .npy file are not read"
        raise FormatError(message)
    return {"": (shape, dtype.name)} if _can_be_scan(shape, dtype) else {}


def _npz_members(path: Path) -> Members:
    members: Members = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist()[: _MAX_MEMBERS + 1]:
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as stream:
                shape, dtype = _read_npy_header(stream)
                start = stream.tell()
            if not _can_be_scan(shape, dtype):
                continue
            expected = start + int(np.prod(shape, dtype=object)) * dtype.itemsize
            if entry.file_size != expected or expected > 4096 + _DEFLATE_LIMIT * entry.compress_size:
                message = f"damaged: {entry.filename} has {entry.file_size:,} bytes, its header says {expected:,}"
                raise FormatError(message)
            members[entry.filename.removesuffix(".npy")] = (shape, dtype.name)
    return _check_count(members)


def _check_count(members: Members) -> Members:
    if len(members) > _MAX_MEMBERS:
        message = f"more than {_MAX_MEMBERS:,} arrays: such a file is no scan"
        raise FormatError(message)
    return members


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        message = "HDF5 needs h5py: pip install 'medssl[hdf5]'"
        raise FormatError(message) from error
    return h5py


def _hdf5_members(path: Path) -> Members:
    h5py, members = _h5py(), {}

    def collect(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and entry.shape is not None and _can_be_scan(entry.shape, entry.dtype):
            members[name] = (tuple(int(length) for length in entry.shape), entry.dtype.name)

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(collect)  # goes along hard links only
    return _check_count(members)


def _load(path: Path, name: str) -> np.ndarray:
    """Reads one array, booleans as 0 and 1; checksums are verified if the file has them."""
    with path.open("rb") as stream:
        first = stream.read(8)
    if first == _HDF5:
        array = _load_hdf5(path, name)
    elif not name:
        array = np.load(path, allow_pickle=False)
    else:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(f"{name}.npy")  # to the end: the check sum is compared there
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return np.asarray(array.astype(np.uint8) if array.dtype == bool else array)


def _load_hdf5(path: Path, name: str) -> np.ndarray:
    with _h5py().File(path, "r", locking=False) as file:
        entry = file[name]
        if entry.is_virtual or entry.external:
            message = f"{name} keeps its numbers in other files, which are not followed"
            raise FormatError(message)
        return np.asarray(entry[...])
