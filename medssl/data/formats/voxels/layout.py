"""Numbers of a file -> array [C, i, j, k] or [C, row, column], whatever the order of its axes."""

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
    """How numbers lie in a file.

    Attributes:
        dtype: Number type, with its byte order.
        shape: Lengths of the axes, fastest first.
        roles: One letter an axis: i, j, k space; c channels; t frames; - an axis of length 1 that is dropped.
        keep: Channels that are read; the rest (transparency) is left out.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    roles: str
    keep: int = 0

    @property
    def count(self) -> int:
        """Numbers in the file."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return self.count * self.dtype.itemsize

    def length(self, role: str) -> int:
        """Product of the lengths of the axes of a role."""
        return prod(length for length, axis_role in zip(self.shape, self.roles, strict=True) if axis_role == role)

    @property
    def channels(self) -> int:
        """Channels of one frame."""
        return self.keep or self.length("c")

    def frames(self, noun: str) -> Frames:
        """What the header says of its frames."""
        count = self.length("t")
        return Frames(count, noun) if count > 1 else Frames()


def check_sources(sources: Sequence[Source], layout: Layout) -> int:
    """Compare the bytes of all files with what the layout asks for; each file holds an equal share.

    Returns:
        Bytes that follow the voxels.

    Raises:
        FormatError: Fewer bytes, or shares that are no whole number of voxels.
    """
    share = _share(sources, layout)
    return sum(check_length(source, share * layout.dtype.itemsize) for source in sources)


def read_values(sources: Sequence[Source], layout: Layout, frame: int | None) -> tuple[np.ndarray, bool]:
    """Read the numbers, or those of one frame alone where it lies in one piece.

    Returns:
        The numbers in the machine's byte order, and whether they are those of the frame alone.

    Raises:
        FormatError: Too few, damaged, or too many for the memory.
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
    target = memoryview(values.view(np.uint8))  # type: ignore[arg-type]
    for number, source in enumerate(sources):
        read_into(source, start * layout.dtype.itemsize, target[number * step : (number + 1) * step])
    return native(values), single_frame


def grid_of(layout: Layout, affine: np.ndarray) -> Grid:
    """Grid of a frame: a volume where there is an axis k, else a picture, whose grid has its spacing alone."""
    sizes = [layout.length(letter) for letter in _SPATIAL if letter in layout.roles]
    if len(sizes) == 3:
        return make_grid(tuple(sizes), affine)
    return picture_grid(sizes[1], sizes[0], (float(affine[1, 1]), float(affine[0, 0])))


def from_text(sources: Sequence[Source], layout: Layout, encoding: str) -> np.ndarray:
    """Numbers written as text ("text") or as the hexadecimal digits of their bytes ("hex").

    Raises:
        FormatError: Too few, no numbers, or several files.
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
    """The same numbers in the machine's byte order, in the same memory."""
    if values.dtype.isnative:
        return values
    return values.byteswap(inplace=True).view(values.dtype.newbyteorder("="))


def arrange(values: np.ndarray, layout: Layout, frame: int | None, *, alone: bool = False) -> np.ndarray:
    """Array [C, i, j, k] or [C, row, column] (rows are j) of one frame, or of all frames as channels.

    Args:
        values: Numbers in the order of the file.
        layout: What they are.
        frame: Which frame; None takes all.
        alone: ``values`` are those of the frame alone.
    """
    shape = tuple(1 if alone and one == "t" else n for n, one in zip(layout.shape, layout.roles, strict=True))
    array = values.reshape(shape, order="F")
    spatial = [layout.roles.index(letter) for letter in _SPATIAL if letter in layout.roles]
    spatial = spatial if len(spatial) == 3 else spatial[::-1]
    others = [[n for n, one in enumerate(layout.roles) if one == role] for role in "tc-"]
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
    """``values * slope + inter``, computed in float64.

    A whole shift of whole numbers keeps them whole. Others become float32, or float64 where the stored numbers or the
    scale need more than it holds. ``values`` is one-dimensional.
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
