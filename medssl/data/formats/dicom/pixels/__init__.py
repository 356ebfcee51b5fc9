"""Pixels of a DICOM stack: read directly into one array if they are uncompressed, else decoded slice by slice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from medssl.data.formats.dicom.elements import PIXEL_TAGS, DicomError, damage, parse, quiet, reason_of
from medssl.data.formats.dicom.mosaic import is_mosaic, read_mosaic, tile_of
from medssl.data.formats.dicom.pixels.codecs import decode
from medssl.data.formats.dicom.pixels.colors import palette_of, ybr_to_rgb
from medssl.data.formats.dicom.pixels.encapsulated import frames_in, read_fragments, read_frame
from medssl.data.formats.dicom.pixels.extent import (
    Extent,
    check_claimed,
    check_syntax,
    frame_bits,
    frames_of,
    pixel_extent,
)
from medssl.data.formats.dicom.pixels.layout import Layout, check_fits, layout_of, unpack
from medssl.data.formats.dicom.pixels.stacking import StackBuilder
from medssl.data.formats.dicom.pixels.syntaxes import BIG_ENDIAN, DEFLATED, family_of, unread
from medssl.data.formats.dicom.pixels.values import value_transform_of
from medssl.types import Part


@dataclass(frozen=True)
class StackValues:
    """Values of a stack (slice, row, column, sample), and notes for the user."""

    array: np.ndarray
    notes: tuple[str, ...] = ()


def read_stack(root: Path, parts: Sequence[Part]) -> np.ndarray:
    """The array of ``read_values``."""
    return read_values(root, parts).array


def read_values(root: Path, parts: Sequence[Part]) -> StackValues:
    """Reads slices in the order of ``parts``.

    Returns:
        The values as the files define them: whole numbers if slopes and intercepts are whole numbers.

    Raises:
        DicomError: A file is truncated, has another shape than the first one, or cannot be decoded; names the file.
    """
    builder = StackBuilder(len(parts))
    layout: Layout | None = None
    file: PixelFile | None = None
    with quiet():
        try:
            for part in parts:
                path = root / part.path
                if file is None or file.path != path:
                    if file is not None:
                        file.close()
                    file = PixelFile(path)
                    file.open()
                layout = _add(file, part.frame or 0, layout, builder)
        except damage() as error:
            message = f"{path.name}: {reason_of(error)}"
            raise DicomError(message) from error
        finally:
            if file is not None:
                file.close()
    if layout is None:
        message = "a scan without files"
        raise DicomError(message)
    return StackValues(builder.finish(layout), tuple(builder.notes))


def same_pixels(root: Path, first: Part, second: Part) -> bool:
    """Whether two slices have equal values; False if one of them cannot be read."""
    try:
        return np.array_equal(read_stack(root, (first,)), read_stack(root, (second,)))
    except DicomError:
        return False


def _add(file: PixelFile, frame: int, first: Layout | None, builder: StackBuilder) -> Layout:
    """Reads one frame into the stack; returns its layout."""
    dataset = file.dataset
    layout = layout_of(dataset, file.extent.element)
    check_fits(layout, file.syntax)
    picture = layout
    if file.side > 1:  # the slices are tiles of one picture
        rows, columns, samples = layout.shape
        layout = replace(layout, shape=(rows // file.side, columns // file.side, samples))
    if first is not None and layout.shape != first.shape:
        rows, columns, samples = layout.shape
        message = (
            f"{rows} rows, {columns} columns, {samples} samples a pixel where the first slice has "
            f"{first.shape[0]}, {first.shape[1]}, {first.shape[2]}"
        )
        raise DicomError(message)
    notes: list[str] = []
    transform = value_transform_of(dataset, frame, layout, notes)
    palette = None
    if layout.photometric == "PALETTE COLOR":
        palette = palette_of(dataset, signed=layout.bits.signed)
    slot = builder.next_slot(layout, transform)
    if file.side > 1:
        slot[...] = tile_of(file.picture(picture, notes), frame, file.side)
    else:
        file.read_into(slot, frame, layout, notes)
    builder.add(slot, layout, transform, palette)
    builder.notes.extend(note for note in notes if note not in builder.notes)
    return layout


class PixelFile:
    """An open file; its header is parsed once for all of its frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: BinaryIO | None = None
        self.dataset: Any = None
        self.extent = Extent("PixelData", 0, 0)
        self.syntax = ""
        self.side = 1
        self._frames: list[Sequence[tuple[int, int]]] | None = None
        self._picture: np.ndarray | None = None

    def open(self) -> Self:
        """Reads the header and locates the pixels."""
        from medssl.data.formats.dicom.elements import syntax_of

        self.stream = self.path.open("rb")
        self.dataset = parse(self.stream, PIXEL_TAGS)
        self.syntax = syntax_of(self.dataset)
        problem = unread(self.syntax)
        if problem:
            raise DicomError(problem)
        extent = self._inflated() if self.syntax == DEFLATED else pixel_extent(self.dataset, self.stream)
        if extent is None:
            message = "truncated, or an object without pixels: no pixels after the header"
            raise DicomError(message)
        self.extent = extent
        check_syntax(self.dataset, extent)
        if extent.length is not None:
            check_claimed(self.dataset, extent)
        if is_mosaic(self.dataset):
            self.side = read_mosaic(self.stream).side
        return self

    def close(self) -> None:
        """Closes the file."""
        if self.stream is not None:
            self.stream.close()

    def _inflated(self) -> Extent | None:
        """Pixels of a data set that is deflated entirely."""
        import pydicom

        with self.path.open("rb") as stream:
            whole = pydicom.dcmread(stream, force=True)
        for element in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if element in whole:
                self.close()
                self.stream = io.BytesIO(whole[element].value)
                return Extent(element, 0, len(whole[element].value))
        return None

    def picture(self, layout: Layout, notes: list[str]) -> np.ndarray:
        """The only frame of the file, read once."""
        if self._picture is None:
            self._picture = np.empty(layout.shape, layout.bits.dtype)
            self.read_into(self._picture, 0, layout, notes)
        return self._picture

    def read_into(self, out: np.ndarray, frame: int, layout: Layout, notes: list[str]) -> None:
        """Reads one frame into ``out`` (row, column, sample); colors are converted to RGB."""
        frames = frames_of(self.dataset)
        if not 0 <= frame < frames or self.stream is None:
            message = f"frame {frame + 1} of {frames}: no such frame"
            raise DicomError(message)
        if self.extent.length is None:
            out[...] = decode(self._compressed(frame, frames), family_of(self.syntax), layout, notes)
            return
        bits = frame_bits(self.dataset)
        first, first_bit = divmod(bits * frame, 8)
        size = -(-(first_bit + bits) // 8)
        if self.extent.length > -(-bits * frames // 8) + 1:
            notes.append(f"{self.extent.length - bits * frames // 8:,} bytes after the pixels were left alone")
        if layout.simple and self.syntax != BIG_ENDIAN and np.little_endian:
            self.stream.seek(self.extent.start + first)
            if self.stream.readinto(out.reshape(-1).view(np.uint8).data) != out.nbytes:  # type: ignore[attr-defined]
                message = f"truncated: fewer than {out.nbytes:,} bytes of pixels"
                raise DicomError(message)
            return
        array = unpack(self._bytes(first, size), layout, first_bit=first_bit, big=self.syntax == BIG_ENDIAN)
        out[...] = ybr_to_rgb(array) if layout.photometric.startswith("YBR") else array

    def _bytes(self, first: int, size: int) -> bytes:
        """Bytes of the pixels; big-endian words of two 8-bit pixels are swapped."""
        assert self.stream is not None
        swapped = self.syntax == BIG_ENDIAN and self.extent.vr == "OW" and int(self.dataset.BitsAllocated) <= 8
        before = first % 2 if swapped else 0
        self.stream.seek(self.extent.start + first - before)
        data = self.stream.read(before + size + ((before + size) % 2 if swapped else 0))
        if len(data) < before + size:
            message = f"truncated: {max(0, len(data) - before):,} of {size:,} bytes of a frame"
            raise DicomError(message)
        if swapped:
            data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(">u2").tobytes() + data[len(data) // 2 * 2 :]
        return data[before : before + size]

    def _compressed(self, frame: int, frames: int) -> bytes:
        """Compressed bytes of one frame."""
        assert self.stream is not None
        if self._frames is None:
            table = self.dataset.get("ExtendedOffsetTable") or b""
            extended = [int(offset) for offset in np.frombuffer(table[: len(table) // 8 * 8], "<u8")]
            fragments = read_fragments(self.stream, self.extent.start, self.path.stat().st_size)
            self._frames = frames_in(self.stream, fragments, frames, extended)
        return read_frame(self.stream, self._frames[frame])
