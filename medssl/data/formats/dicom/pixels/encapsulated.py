"""Encapsulated pixel data (DICOM PS3.5 A.4): the fragments in a file, and the fragments of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from medssl.data.formats.dicom.elements import DicomError

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_AT_ONCE = 64  # items looked at while indexing
_UNDEFINED = 0xFFFFFFFF
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")  # JPEG, JPEG 2000, JPEG 2000 in a JP2 file


@dataclass(frozen=True)
class Fragments:
    """Start and length of each fragment in the file, and ``offsets`` of the frames, relative to ``base``."""

    places: tuple[tuple[int, int], ...]
    base: int = 0
    offsets: tuple[int, ...] = ()


def check_fragments(stream: BinaryIO, start: int, size: int, frames: int) -> None:
    """Detects truncated files by item lengths, with two reads for a complete file and a few dozen at most.

    Raises:
        DicomError: The file is truncated, or has no valid fragments.
    """
    stream.seek(max(start, size - 8))
    if stream.read(8) == _END + b"\0\0\0\0":
        return
    offsets, place = _offset_table(stream, start, size)
    skipped = 0
    if offsets and len(offsets) == frames:
        place, skipped = place + offsets[-1], frames - 1
    for count in range(_AT_ONCE):
        if place == size and count + skipped >= frames:
            return  # all fragments are there; only the mark of the end is missing
        length = _next(stream, place, size)
        if length is None:
            return
        place += 8 + length


def read_fragments(stream: BinaryIO, start: int, size: int) -> Fragments:
    """Locates all fragments.

    Args:
        stream: The file.
        start: First byte of the value of Pixel Data.
        size: Size of the file in bytes.

    Raises:
        DicomError: The file is truncated, or has no valid fragments.
    """
    offsets, base = _offset_table(stream, start, size)
    places = []
    place = base
    while place < size:
        length = _next(stream, place, size)
        if length is None:
            break
        places.append((place + 8, length))
        place += 8 + length
    return Fragments(tuple(places), base, offsets)


def frames_in(
    stream: BinaryIO, fragments: Fragments, frames: int, extended: Sequence[int] = ()
) -> list[Sequence[tuple[int, int]]]:
    """Start and length of the fragments of each frame.

    Args:
        stream: The file.
        fragments: Result of ``read_fragments``.
        frames: Number of frames.
        extended: Extended Offset Table, if the file has one.

    Raises:
        DicomError: The fragments of each frame cannot be determined, or a frame is missing.
    """
    places = fragments.places
    offsets = tuple(extended) or fragments.offsets
    if not places:
        message = "truncated: no fragments in Pixel Data"
        raise DicomError(message)
    if frames == 1:
        return [places]
    if len(places) == frames:
        return [(place,) for place in places]
    if len(places) < frames:
        message = f"truncated: {len(places)} compressed frames, Number of Frames says {frames}"
        raise DicomError(message)
    if offsets:
        starts = [fragments.base + offset + 8 for offset in offsets]
    else:
        starts = [place for place, length in places if _read(stream, place, min(length, 8)).startswith(_STARTS)]
    number = {place: n for n, (place, _) in enumerate(places)}
    if len(starts) != frames or not number.keys() >= set(starts) or starts != sorted(starts):
        message = f"{len(places)} fragments and {frames} frames: no offset table says which fragments make a frame"
        raise DicomError(message)
    firsts = [number[start] for start in starts]
    return [places[start:end] for start, end in zip(firsts, [*firsts[1:], len(places)], strict=True)]


def read_frame(stream: BinaryIO, places: Sequence[tuple[int, int]]) -> bytes:
    """Reads the compressed bytes of a frame from the places of its fragments."""
    return b"".join(_read(stream, *place) for place in places)


def _read(stream: BinaryIO, place: int, length: int) -> bytes:
    stream.seek(place)
    return stream.read(length)


def _offset_table(stream: BinaryIO, start: int, size: int) -> tuple[tuple[int, ...], int]:
    """Offsets of the Basic Offset Table, and the position after it."""
    length = _next(stream, start, size)
    if length is None:
        return (), start
    table = stream.read(length)
    offsets = tuple(int.from_bytes(table[place : place + 4], "little") for place in range(0, length - 3, 4))
    return offsets, start + 8 + length


def _next(stream: BinaryIO, place: int, size: int) -> int | None:
    """Length of the item at ``place``; None at the end of the fragments."""
    stream.seek(place)
    head = stream.read(8)
    if head[:4] == _END:
        return None
    if len(head) < 8:
        message = f"truncated: the compressed pixels end after {size:,} bytes of the file, without their end mark"
        raise DicomError(message)
    length = int.from_bytes(head[4:8], "little")
    if head[:4] != _ITEM or length == _UNDEFINED:
        message = "damaged: the compressed pixels are not divided into fragments as the standard asks"
        raise DicomError(message)
    if place + 8 + length > size:
        message = f"truncated: {size - place - 8:,} of {length:,} bytes of a compressed fragment"
        raise DicomError(message)
    return length
