"""Siemens mosaics: one picture with the slices of a volume as tiles, row by row.

The number of tiles and the direction from slice to slice are in private elements: (0019,xx0A) and the CSA image header
(0029,xx10). Nibabel documents its two layouts ("Siemens CSA header"). The position in such a file is the corner of a
picture of the size of the mosaic, centered on the first slice. It is therefore moved by half the difference of the
sizes (nibabel, "Siemens mosaic format").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medssl.data.formats.dicom.elements import DicomError, parse, shown

if TYPE_CHECKING:
    from pydicom import Dataset

    from medssl.data.formats.dicom.slices import Slice

_BLOCKS = range(0x10, 0x20)  # where private elements may lie: the creator says which block is whose
_CREATORS = {0x0019: "SIEMENS MR HEADER", 0x0029: "SIEMENS CSA HEADER"}
_NUMBER, _HEADER = (0x0019, 0x0A), (0x0029, 0x10)
_MAX_TAGS = 1000  # of a CSA header; real ones have about a hundred
_SAME_LINE = 1e-3
_EXPORT = "export the series from the scanner without mosaics, or convert it to NIfTI"


@dataclass(frozen=True)
class Mosaic:
    """Layout of a mosaic: number of tiles, tiles along one side, direction from slice to slice (LPS), step in mm."""

    count: int
    side: int
    normal: tuple[float, ...]
    step_mm: float


def is_mosaic(dataset: Dataset) -> bool:
    """Whether the picture of a header is a mosaic."""
    return "MOSAIC" in [str(word).upper() for word in (dataset.get("ImageType") or ())]


def tiles(slices: Sequence[Slice], stream: BinaryIO, digest: Callable[..., str]) -> list[Slice]:
    """The slices of a mosaic, from the slice of its whole picture."""
    mosaic = read_mosaic(stream)
    return [tile for slice_ in slices for tile in unpack(slice_, mosaic, digest)]


def read_mosaic(stream: BinaryIO) -> Mosaic:
    """Reads the private elements; the stream is then at the pixels again.

    Raises:
        DicomError: Values that determine the positions of the slices are missing or contradict each other.
    """
    stream.seek(0)
    tags: list[str | int] = ["SpacingBetweenSlices", "Rows", "Columns", "NumberOfFrames"]
    for group, element in (_NUMBER, _HEADER):
        tags += [group << 16 | block for block in _BLOCKS]
        tags += [group << 16 | block << 8 | element for block in _BLOCKS]
    dataset = parse(stream, tags)
    header = _private(dataset, *_HEADER)
    csa = parse_csa(header) if isinstance(header, bytes) else {}
    count = _count(_private(dataset, *_NUMBER), csa)
    side = int(np.ceil(np.sqrt(count)))
    if int(dataset.Rows) % side or int(dataset.Columns) % side or int(dataset.get("NumberOfFrames") or 1) > 1:
        size = f"{dataset.Rows} rows and {dataset.Columns} columns"
        message = f"Siemens mosaic of {count} slices: {size} do not fit {side} x {side} tiles; {_EXPORT}"
        raise DicomError(message)
    normal = _floats(csa.get("SliceNormalVector", []))
    if len(normal) != 3 or abs(float(np.linalg.norm(normal)) - 1) > _SAME_LINE:
        message = f"Siemens mosaic without slice normal (CSA header): the order of its slices is not known; {_EXPORT}"
        raise DicomError(message, rejected=True)
    if any(number > 1 for number in _floats(csa.get("ProtocolSliceNumber", []))):
        message = f"Siemens mosaic whose first tile is not the first slice (ProtocolSliceNumber): {_EXPORT}"
        raise DicomError(message, rejected=True)
    step = float(dataset.get("SpacingBetweenSlices") or 0)
    if not np.isfinite(step) or step <= 0:
        message = f"Siemens mosaic without SpacingBetweenSlices: the distance of its slices is not known; {_EXPORT}"
        raise DicomError(message, rejected=True)
    return Mosaic(count, side, normal, step)


def unpack(slice_: Slice, mosaic: Mosaic, digest: Callable[..., str]) -> list[Slice]:
    """Converts the slice of a whole mosaic to one slice for each tile; ``frame`` is the number of the tile.

    Raises:
        DicomError: Position, orientation or spacing is missing, or the normal is not perpendicular to the slices.
    """
    if slice_.pose is None or slice_.spacing_mm is None:
        message = f"Siemens mosaic without position, orientation or spacing: {_EXPORT}"
        raise DicomError(message)
    right, down, corner = (np.array(slice_.pose[start : start + 3]) for start in (0, 3, 6))
    across = np.cross(right, down)
    along = float(across @ np.array(mosaic.normal))
    if abs(abs(along) - 1) > _SAME_LINE:
        message = f"Siemens mosaic whose slice normal does not stand on its slices (cosine {along:.3f}): {_EXPORT}"
        raise DicomError(message)
    rows, columns = slice_.shape[0] // mosaic.side, slice_.shape[1] // mosaic.side
    between_rows, between_columns = slice_.spacing_mm
    first = corner + right * between_columns * (slice_.shape[1] - columns) / 2
    first = first + down * between_rows * (slice_.shape[0] - rows) / 2
    step = np.sign(along) * across / np.linalg.norm(across) * mosaic.step_mm
    slice_attributes = slice_.slice_attributes | {
        "mosaic": f"{slice_.slice_attributes.get('number', 0.0):012.2f} {slice_.instance}"
    }  # one file is one volume
    return [
        replace(
            slice_,
            frame=tile,
            instance=digest("tile", slice_.instance, str(tile)),
            shape=(rows, columns, slice_.shape[2]),
            pose=(*slice_.pose[:6], *(float(value) for value in first + tile * step)),
            slice_attributes=slice_attributes,
        )
        for tile in range(mosaic.count)
    ]


def tile_of(picture: np.ndarray, tile: int, side: int) -> np.ndarray:
    """One tile of a mosaic (row, column, sample)."""
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    row, column = divmod(tile, side)
    return picture[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def parse_csa(data: bytes) -> dict[str, list[str]]:
    """Parses a CSA header: its elements with their values as text.

    Raises:
        DicomError: The bytes are not a CSA header.
    """
    is_second_layout = data[:4] == b"SV10"
    place = 8 if is_second_layout else 0
    try:
        tags, place = _integers(data, place, 2)[0], place + 8
        if not 0 < tags <= _MAX_TAGS:
            message = f"CSA header with {tags} elements"
            raise DicomError(message)
        elements: dict[str, list[str]] = {}
        base = None  # the older layout writes lengths on top of the first element's number of values
        for _ in range(tags):
            name = data[place : place + 64].split(b"\0")[0].decode("latin-1")
            items = _integers(data, place + 76, 1)[0]
            base = items if base is None else base
            place += 84
            values = []
            for _ in range(items):
                lengths = _integers(data, place, 4)
                place += 16
                length = lengths[1] if is_second_layout else lengths[0] - base
                if not 0 <= length <= len(data) - place:
                    if not is_second_layout:
                        break
                    message = f"CSA header damaged: a value of {length} bytes at {place} of {len(data)}"
                    raise DicomError(message)
                values.append(data[place : place + length].split(b"\0")[0].decode("latin-1").strip())
                place += -(-length // 4) * 4
            elements[name] = [value for value in values if value]
    except struct.error as error:
        message = f"CSA header damaged: it ends early, at byte {len(data)}"
        raise DicomError(message) from error
    return elements


def _integers(data: bytes, place: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}i", data, place)


def _private(dataset: Dataset, group: int, element: int) -> bytes | int | None:
    """Value of a private element of Siemens, in the block that its creator has reserved."""
    for block in _BLOCKS:
        creator = dataset.get((group, block))
        if creator is None or str(creator.value).strip() != _CREATORS[group]:
            continue
        private_element = dataset.get((group, block << 8 | element))
        if private_element is not None and private_element.value is not None:
            value: bytes | int = private_element.value
            return value
    return None


def _count(number: bytes | int | None, csa: dict[str, list[str]]) -> int:
    """Number of slices; both elements must agree."""
    if isinstance(number, bytes):  # an unknown element under implicit types
        number = int.from_bytes(number[:2], "little")
    counts = {int(value) for value in (number, *_floats(csa.get("NumberOfImagesInMosaic", []))[:1]) if value}
    if len(counts) != 1 or not 0 < min(counts) <= 10_000:
        shown_counts = " and ".join(map(str, sorted(counts))) or "nothing"
        message = f"Siemens mosaic: its number of slices (0019,100A or CSA header) is {shown(shown_counts)}; {_EXPORT}"
        raise DicomError(message, rejected=True)
    return counts.pop()


def _floats(texts: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        return ()
    return numbers if np.isfinite(numbers).all() else ()
