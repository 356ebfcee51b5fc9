"""Bytes on disk: how an array is cut, compressed, written whole or not at all, and read back in part.

Three forms: a blosc2 array file (chunks of 64, blocks of 16 per axis, LZ4 after bit shuffling), a raw ``.npy`` that is
mapped into memory, and a pack of small arrays, each one blosc2 buffer. Blosc2: https://www.blosc.org.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medssl.data.store import checksums
from medssl.data.store.disk import DiskFull
from medssl.io.atomic_write import DISK_FULL, atomic_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK, CHUNK = 16, 64  # voxels per axis of a volume
OPEN = 128  # arrays that one process keeps open


class Opened(Protocol):
    """An array on disk that can be read in part."""

    def read(self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[Any]) -> None:
        """Fills ``out`` (C order, the file's dtype) with the box [start, stop) of the array [C, *s]."""


class _Chunked:
    def __init__(self, path: Path, known: bytes) -> None:
        import blosc2

        self.pieces = checksums.Pieces(path, known) if known else None
        if self.pieces is not None:
            self.pieces.check((0, len(self.pieces) - 1))  # before a library looks at them
        self.array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        self.steps = self.array.chunks
        self.counts = tuple(-(-n // step) for n, step in zip(self.array.shape, self.steps, strict=True))
        if self.pieces is not None and len(self.pieces) != math.prod(self.counts) + 2:  # not one of each chunk
            self.pieces.check_all()
            self.pieces = None

    def read(self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[Any]) -> None:
        if self.pieces is not None and 1 in self.pieces.due:
            self.pieces.check(self._touched(start, stop))
        self.array.get_slice_numpy(out, (start, stop))  # decodes into out, without the copies of __getitem__

    def _touched(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Iterator[int]:
        """Pieces of the chunks that a box lies in: the header is piece 0, then they come in C order."""
        ranges = [range(a // k, -(-b // k)) for a, b, k in zip(start, stop, self.steps, strict=True)]
        for place in itertools.product(*ranges):
            number = 0
            for n, count in zip(place, self.counts, strict=True):
                number = number * count + n
            yield number + 1


class _Plain:
    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def read(self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[Any]) -> None:
        out[...] = self.array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]


class _Raw(_Plain):
    def __init__(self, path: Path, known: bytes) -> None:
        self.pieces = checksums.Pieces(path, known) if known else None
        if self.pieces is not None:
            self.pieces.check((0,))
        super().__init__(np.load(path, mmap_mode="r", allow_pickle=False))
        self.first = path.stat().st_size - self.array.nbytes  # where the header ends

    def read(self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[Any]) -> None:
        if self.pieces is not None and self._due_between(start, stop, self.pieces.due):
            self.pieces.check(self._touched(start, stop).tolist())
        super().read(start, stop, out)

    def _due_between(self, start: tuple[int, ...], stop: tuple[int, ...], due: bytearray) -> bool:
        """Whether a piece between the first and the last voxel of a box is still to be compared."""
        strides = self.array.strides
        low = self.first + sum(a * step for a, step in zip(start, strides, strict=True))
        high = self.first + sum((b - 1) * step for b, step in zip(stop, strides, strict=True)) + self.array.itemsize - 1
        return due.find(1, low // checksums.PIECE, high // checksums.PIECE + 1) >= 0

    def _touched(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[np.intp]:
        """Pieces of the rows of a box: between its first and its last voxel on each of the slowest axes."""
        strides = self.array.strides
        assert self.pieces is not None
        row_starts: NDArray[Any] = np.zeros((), np.int64)
        for a, b, step in zip(start[:-2], stop[:-2], strides, strict=False):
            row_starts = np.add.outer(row_starts, np.arange(a, b) * step)
        row_starts = row_starts.ravel() + self.first
        low = sum(a * step for a, step in zip(start[-2:], strides[-2:], strict=True))
        high = sum((b - 1) * step for b, step in zip(stop[-2:], strides[-2:], strict=True)) + self.array.itemsize
        count = len(self.pieces) + 1
        opened = np.bincount((row_starts + low) // checksums.PIECE, minlength=count)
        closed = np.bincount((row_starts + high - 1) // checksums.PIECE + 1, minlength=count)
        due = np.frombuffer(self.pieces.due, bool)
        return np.flatnonzero(due & (np.cumsum(opened - closed)[:-1] > 0))


class Handles:
    """The arrays that a process has open; the one unused for longest is closed first."""

    def __init__(self, limit: int = OPEN) -> None:
        self.limit = limit
        self._open: OrderedDict[object, Opened] = OrderedDict()

    def get(self, key: object, opening: Callable[[], Opened]) -> Opened:
        """Returns the array of ``key``, opened now if it is not open yet."""
        array = self._open.get(key)
        if array is not None:
            self._open.move_to_end(key)
            return array
        array = self._open[key] = opening()
        if len(self._open) > self.limit:
            self._open.popitem(last=False)
        return array

    def __len__(self) -> int:
        return len(self._open)


def open_chunked(path: Path, known: bytes = b"") -> Opened:
    """Opens a blosc2 array file for partial reads; with ``known`` checksums they are compared before they are used."""
    return _Chunked(path, known)


class Table(_Plain):
    """A table on disk that was compared with its checksums."""


def open_table(path: Path, known: bytes = b"") -> Table:
    """Maps a ``.npy`` table into memory, after all of it was compared with ``known`` checksums."""
    opened = _Raw(path, known)
    if opened.pieces is not None:
        opened.pieces.check_all()
    return Table(opened.array)


def open_raw(path: Path, known: bytes = b"") -> Opened:
    """Maps a ``.npy`` file into memory; ``known`` as of ``open_chunked``."""
    return _Raw(path, known)


def open_packed(
    path: Path, place: tuple[int, int], like: tuple[tuple[int, ...], np.dtype[Any]], known: bytes = b""
) -> Opened:
    """Reads one small array (shape and dtype in ``like``) out of a pack; it is decoded once and kept while open.

    Args:
        path: The pack.
        place: First byte and number of bytes.
        like: Shape and dtype.
        known: Checksums that are compared first, if any.
    """
    import blosc2

    data = packed_bytes(path, place)
    if known:
        checksums.check_packed(data, known, path.name)
    out = np.empty(*like)
    blosc2.decompress2(data, dst=out)
    return _Plain(out)


def packed_bytes(path: Path, place: tuple[int, int]) -> bytes:
    """Bytes of one array in a pack.

    Raises:
        OSError: The pack is missing or too short.
    """
    with path.open("rb") as file:
        file.seek(place[0])
        data = file.read(place[1])
    if len(data) != place[1]:
        message = f"{path.name} ends {place[1] - len(data)} bytes too early"
        raise OSError(message)
    return data


def compress(array: NDArray[Any]) -> bytes:
    """Compresses a small array into one buffer (for packs)."""
    import blosc2

    return bytes(blosc2.compress2(np.ascontiguousarray(array), **_settings(array.dtype)))


def chunked_bytes(array: NDArray[Any]) -> bytes:
    """Returns the bytes of a blosc2 array file of [C, *s], made in memory: a full disk then shows as an error."""
    return bytes(_chunked(array).to_cframe())


def with_checksums(array: NDArray[Any], tier: str) -> tuple[tuple[bytes | NDArray[np.uint8], ...], bytes]:
    """Returns the parts of the file of an array [C, *s] in a tier, and the checksums of its pieces."""
    if tier == "raw":
        head, data = raw_parts(array)
        return (head, data), checksums.of_raw(head, data)
    made = _chunked(array)
    content = bytes(made.to_cframe())
    each = (made.schunk.get_chunk(number) for number in range(made.schunk.nchunks))
    return (content,), checksums.of_chunks(content, each)


def _chunked(array: NDArray[Any]) -> Any:
    import blosc2

    chunks, blocks = layout(array.shape)
    return blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=_settings(array.dtype))


def raw_parts(array: NDArray[Any]) -> tuple[bytes, NDArray[np.uint8]]:
    """Returns header and data of a ``.npy`` file."""
    array = np.ascontiguousarray(array)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return head.getvalue(), array.reshape(-1).view(np.uint8)


def layout(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns chunk and block of an array [C, *s]: 64 and 16 per axis of a volume, 512 and 64 per axis of an image.

    Where an axis is thinner than that, the others grow until the volume of a block (4096) or chunk is reached again.
    """
    spatial = shape[1:]
    chunk, block = (CHUNK, BLOCK) if len(spatial) == 3 else (512, 64)
    chunks = _box(spatial, chunk)
    return (1, *chunks), (1, *_box(chunks, block))


def write_parts(path: Path, parts: Iterable[bytes | NDArray[np.uint8]]) -> int:
    """Writes a file of the store whole or not at all; returns its bytes.

    Raises:
        DiskFull: No room; nothing of the file is left.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_files(path) as (file,):
            return sum(file.write(part.data if isinstance(part, np.ndarray) else part) for part in parts)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFull from error
        raise


def _box(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    box = [min(side, n) for n in shape]
    while np.prod(box) * 2 <= side ** len(shape):
        free = [axis for axis, n in enumerate(shape) if box[axis] < n]
        if not free:
            break
        axis = min(free, key=lambda a: box[a])
        box[axis] = min(box[axis] * 2, shape[axis])
    return tuple(max(1, n) for n in box)


def _settings(dtype: np.dtype[Any]) -> dict[str, Any]:
    import blosc2

    return {
        "codec": blosc2.Codec.LZ4,
        "clevel": 5,
        "typesize": dtype.itemsize,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "filters_meta": [0],
        "nthreads": 1,
    }
