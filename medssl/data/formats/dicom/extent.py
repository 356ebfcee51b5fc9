"""Where the pixels of a DICOM file lie, and whether the file is long enough for them: no pixel is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Literal

from medssl.data.formats.dicom.elements import DicomError, plain, syntax_of

if TYPE_CHECKING:
    from pydicom import Dataset


def check_length(dataset: Dataset, stream: BinaryIO, size: int) -> None:
    """Truncation is seen from lengths alone, without reading pixels."""
    if "Rows" not in dataset or "Columns" not in dataset:
        message = (
            "not DICOM, or truncated in the header" if len(dataset) < 4 else "truncated in the header, or no picture"
        )
        raise DicomError(message)
    if 0 in (int(dataset.Rows), int(dataset.Columns)):
        message = f"zero-size: {dataset.Rows} rows, {dataset.Columns} columns"
        raise DicomError(message)
    start, length = pixel_place(dataset, stream)
    if start is None:
        message = f"truncated: no pixels after the header ({size:,} bytes)"
        raise DicomError(message)
    if length is None:
        return
    if not plain(dataset) and syntax_of(dataset) != "1.2.840.10008.1.2.2":
        return
    expected = frame_bytes(dataset) * int(dataset.get("NumberOfFrames") or 1)
    if size - start < expected:
        message = f"truncated: {size - start:,} of {expected:,} bytes of pixels"
        raise DicomError(message)


def pixel_place(dataset: Dataset, stream: BinaryIO) -> tuple[int | None, int | None]:
    """Where the pixels start and how many bytes they claim (None: encapsulated); (None, None) without pixels."""
    place = stream.tell()
    head = stream.read(12)
    little = syntax_of(dataset) != "1.2.840.10008.1.2.2"
    order: Literal["little", "big"] = "little" if little else "big"
    if len(head) < 8 or int.from_bytes(head[:2], order) != 0x7FE0:
        return (place, None) if syntax_of(dataset) == "1.2.840.10008.1.2.1.99" else (None, None)  # deflated: unknown
    explicit = head[4:6] in (b"OW", b"OB", b"OF", b"OD", b"OV")
    start = place + (12 if explicit else 8)
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    return start, None if length == 0xFFFFFFFF else length


def frame_bytes(dataset: Dataset) -> int:
    """Bytes of one frame, uncompressed."""
    return (
        int(dataset.Rows)
        * int(dataset.Columns)
        * int(dataset.get("SamplesPerPixel") or 1)
        * int(dataset.BitsAllocated)
        // 8
    )
