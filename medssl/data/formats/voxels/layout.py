"""Converts the numbers of a file to an array [C, i, j, k] or [C, row, column], for any order of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from medssl.data.formats.base import FormatError, Frames, make_grid, picture_grid
from medssl.data.formats.voxels.streams import Source, allocate, check_length, check_possible, read_into, size_of
from medssl.types import Grid

_NARROW = ("u1", "i1", "u2", "i2", "f4")  # scaled values of these need no more than 32 bits
_SPATIAL = "ijk"


@dataclass(frozen=True)
class Layout:
    """Layout of numbers in a file.

    Attributes:
        dtype: Number type, with its byte order.
        shape: Lengths of the axes, fastest first.
        roles: One letter for each axis: i, j, k space; c channels; t frames; - an axis of length 1 that is dropped.
        keep: Number of channels to read (the rest is transparency); 0 reads all.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    roles: str
    keep: int = 0

    @property
    def count(self) -> int:
        """Number of values in the file."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Number of bytes in the file."""
        return self.count * self.dtype.itemsize

    def length(self, role: str) -> int:
        """Product of the lengths of the axes with a role."""
        return prod(length for length, axis_role in zip(self.shape, self.roles, strict=True) if axis_role == role)

    @property
    def channels(self) -> int:
        """Number of channels of one frame."""
        return self.keep or self.length("c")

    def frames(self, noun: str) -> Frames:
        """Frames for the file header; ``noun`` names them in messages."""
        count = self.length("t")
        return Frames(count, noun) if count > 1 else Frames()


def check_sources(sources: Sequence[Source], layout: Layout) -> int:
    """Checks that all files have the bytes that the layout requires; each file holds an equal share.

    Returns:
        Number of bytes that follow the voxels.

    Raises:
        FormatError: There are too few bytes, or the shares are not whole numbers of voxels.
    """
    share = _share(sources, layout)
    return sum(check_length(source, share * layout.dtype.itemsize) for source in sources)


def read_values(sources: Sequence[Source], layout: Layout, frame: int | None) -> tuple[np.ndarray, bool]:
    """Reads the numbers, or only those of one frame if they are contiguous in the file.

    Returns:
        The numbers in native byte order, and whether they belong to the frame only.

    Raises:
        FormatError: There are too few numbers, they are damaged, or there is not enough memory.
    """
    total, start = layout.count, 0
    single_frame = frame is not None and len(sources) == 1 and layout.roles.rstrip("-").endswith("t")
    if single_frame and frame is not None:
        total //= layout.length("t")
        start = frame * total
    share = _share(sources, layout) if not single_frame else total
    step = share * layout.dtype.itemsize
    for source in sources:
        check_possible(source, step)
    values = allocate(total, layout.dtype)
    target = memoryview(values.view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers from Python 3.12 on
    for number, source in enumerate(sources):
        read_into(source, start * layout.dtype.itemsize, target[number * step : (number + 1) * step])
    return native(values), single_frame


def grid_of(layout: Layout, affine: np.ndarray) -> Grid:
    """Grid of a frame: of a volume if there is an axis k, else of a picture, which has only a spacing."""
    sizes = [layout.length(letter) for letter in _SPATIAL if letter in layout.roles]
    if len(sizes) == 3:
        return make_grid(tuple(sizes), affine)
    return picture_grid(sizes[1], sizes[0], (float(affine[1, 1]), float(affine[0, 0])))


def from_text(sources: Sequence[Source], layout: Layout, encoding: str) -> np.ndarray:
    """Reads numbers that are written as text ("text") or as hexadecimal digits of their bytes ("hex").

    Raises:
        FormatError: There are too few numbers, other text, or several files.
    """
    if len(sources) != 1:
        message = f"{len(sources)} files of numbers as {encoding}: expected one"
        raise FormatError(message)
    (source,) = sources
    size = size_of(source.path) - source.offset
    min_size = layout.bytes * 2 if encoding == "hex" else layout.count * 2 - 1
    if size < min_size:
        message = f"truncated: {source.prefix}{size:,} of at least {min_size:,} bytes of text"
        raise FormatError(message)
    with source.path.open("rb") as stream:
        stream.seek(source.offset)
        text = stream.read()
    try:
        if encoding == "hex":
            return native(np.frombuffer(bytes.fromhex(text.decode("ascii")), layout.dtype, layout.count).copy())
        words = text.replace(b",", b" ").split()
        dtype = layout.dtype.newbyteorder("=")
        number_type: Any = float if dtype.kind == "f" else int
        if len(words) < layout.count:
            message = f"truncated: {source.prefix}{len(words):,} of {layout.count:,} numbers"
            raise FormatError(message)
        return np.fromiter((number_type(word) for word in words), dtype, layout.count)
    except (ValueError, OverflowError) as error:
        if isinstance(error, FormatError):
            raise
        message = f"damaged: {source.prefix}voxels that are no numbers of type {layout.dtype.name}"
        raise FormatError(message) from error


def native(values: np.ndarray) -> np.ndarray:
    """Converts numbers to native byte order, in place."""
    if values.dtype.isnative:
        return values
    return values.byteswap(inplace=True).view(values.dtype.newbyteorder("="))


def arrange(values: np.ndarray, layout: Layout, frame: int | None, *, alone: bool = False) -> np.ndarray:
    """Array [C, i, j, k] or [C, row, column] (rows are j) of one frame, or of all frames as channels.

    Args:
        values: Numbers in the order of the file.
        layout: Their layout.
        frame: Number of the frame; None takes all frames.
        alone: Whether ``values`` belong to the frame only.
    """
    lengths = zip(layout.shape, layout.roles, strict=True)
    shape = tuple(1 if alone and axis_role == "t" else length for length, axis_role in lengths)
    array = values.reshape(shape, order="F")
    spatial = [layout.roles.index(letter) for letter in _SPATIAL if letter in layout.roles]
    spatial = spatial if len(spatial) == 3 else spatial[::-1]
    others = [[n for n, axis_role in enumerate(layout.roles) if axis_role == role] for role in "tc-"]
    array = array.transpose([*others[0], *others[1], *others[2], *spatial])
    size = array.shape[-len(spatial) :]
    frames = prod(array.shape[: len(others[0])])
    array = array.reshape(frames, -1, *size)[:, : layout.keep or None]
    if frame is not None and not alone:
        if not 0 <= frame < frames:
            message = f"frame {frame} of {frames}: there is none: index the scans again"
            raise FormatError(message)
        array = array[frame : frame + 1]
    return array.reshape(-1, *size)


def scaled(values: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Computes ``values * slope + inter`` in float64.

    Whole numbers with a slope of 1 and a whole ``inter`` stay whole numbers. Others become float32, or float64 if
    float32 is too coarse for the stored numbers or the scale. ``values`` is one-dimensional.
    """
    if slope == 1 and inter == 0:
        return values
    if slope == 1 and inter == round(inter) and values.dtype.kind in "iu" and values.size:
        lowest, highest = int(values.min()) + int(inter), int(values.max()) + int(inter)
        for dtype in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                return np.asarray((values.astype(np.int64) + int(inter)).astype(dtype))
    largest_slope = 1.0 if values.dtype.kind == "f" else 1e30
    narrow = values.dtype.str[1:] in _NARROW and 1e-30 < abs(slope) <= largest_slope and abs(inter) < 1e30
    out = np.empty_like(values, dtype=np.float32 if narrow else np.float64)
    for start in range(0, len(values), 1 << 20):
        piece = slice(start, start + (1 << 20))  # pieces: the float64 of a whole scan would double its memory
        out[piece] = values[piece].astype(np.float64) * slope + inter
    return out


def _share(sources: Sequence[Source], layout: Layout) -> int:
    if layout.count % len(sources):
        message = f"{layout.count:,} voxels in {len(sources)} files: expected an equal number in each"
        raise FormatError(message)
    return layout.count // len(sources)
