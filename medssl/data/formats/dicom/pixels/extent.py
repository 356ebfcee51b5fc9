"""Location of the pixels in a DICOM file, and checks of its length. No pixel is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

from medssl.data.formats.dicom.elements import DicomError, syntax_of
from medssl.data.formats.dicom.pixels.encapsulated import check_fragments
from medssl.data.formats.dicom.pixels.syntaxes import BIG_ENDIAN, DEFLATED, PLAIN, family_of, unread

if TYPE_CHECKING:
    from pydicom import Dataset

ELEMENTS = {0x10: "PixelData", 0x08: "FloatPixelData", 0x09: "DoubleFloatPixelData"}
_WORDS = {
    "PixelData": "Pixel Data",
    "FloatPixelData": "Float Pixel Data",
    "DoubleFloatPixelData": "Double Float Pixel Data",
}
_HALF = ("YBR_FULL_422", "YBR_PARTIAL_422")  # two pixels share their colors: 2 bytes a pixel where these are plain


@dataclass(frozen=True)
class Extent:
    """The element that holds the pixels.

    Attributes:
        element: Name of the element.
        start: First byte of its value.
        length: Bytes of its value; None if the pixels are encapsulated.
        vr: Value representation.
    """

    element: str
    start: int
    length: int | None
    vr: str = "OW"


def check_length(dataset: Dataset, stream: BinaryIO, size: int) -> None:
    """Refuses truncated files, and transfer syntaxes and numbers of frames that do not fit the bytes.

    Raises:
        DicomError: Names the values and what is expected.
    """
    if "Rows" not in dataset or "Columns" not in dataset:
        message = (
            "not DICOM, or truncated in the header" if len(dataset) < 4 else "truncated in the header, or no picture"
        )
        raise DicomError(message)
    if min(int(dataset.Rows), int(dataset.Columns)) < 1:
        message = f"zero-size or negative: {dataset.Rows} rows, {dataset.Columns} columns"
        raise DicomError(message)
    syntax = syntax_of(dataset)
    problem = unread(syntax)
    if problem:
        raise DicomError(problem, rejected=problem.endswith(("video", "(SMPTE)")))
    if syntax == DEFLATED:
        return  # where the pixels end is known once all is inflated
    extent = pixel_extent(dataset, stream)
    if extent is None:
        message = f"truncated, or an object without pixels: no pixels after the header ({size:,} bytes)"
        raise DicomError(message)
    check_syntax(dataset, extent)
    if extent.length is None:
        check_fragments(stream, extent.start, size, frames_of(dataset))
        return
    expected = check_claimed(dataset, extent)
    if size - extent.start < expected:
        message = f"truncated: {size - extent.start:,} of {expected:,} bytes of pixels"
        raise DicomError(message)


def check_syntax(dataset: Dataset, extent: Extent) -> None:
    """Refuses encapsulated pixels if the transfer syntax is uncompressed, and vice versa."""
    syntax = syntax_of(dataset)
    if syntax in PLAIN and extent.length is None:
        message = (
            "the transfer syntax says that pixels are not compressed, but Pixel Data holds compressed fragments: "
            "name the right Transfer Syntax UID in the file"
        )
    elif family_of(syntax) and extent.length is not None:
        message = (
            f"the transfer syntax says {family_of(syntax)}, but Pixel Data holds no compressed fragments: "
            "name the right Transfer Syntax UID in the file"
        )
    else:
        return
    raise DicomError(message)


def check_claimed(dataset: Dataset, extent: Extent) -> int:
    """Number of bytes that the header requires; checks the stated length of the element.

    Raises:
        DicomError: The element has fewer bytes, or those of more frames.
    """
    frames, bits = frames_of(dataset), frame_bits(dataset)
    expected = -(-bits * frames // 8)
    length = extent.length or 0
    size = f"{dataset.Rows} rows x {dataset.Columns} columns"
    if length < expected:
        message = f"{_WORDS[extent.element]} has {length:,} bytes: {frames} x {size} need {expected:,}"
        raise DicomError(message)
    stored_frames = length * 8 // bits
    if stored_frames > frames and length * 8 - stored_frames * bits < 16 and length > expected + 1:
        message = (
            f"{_WORDS[extent.element]} has the bytes of {stored_frames} frames of {size}, the header says {frames}: "
            "Number of Frames, Bits Allocated or Samples per Pixel is wrong"
        )
        raise DicomError(message)
    return expected


def pixel_extent(dataset: Dataset, stream: BinaryIO) -> Extent | None:
    """The element at which ``parse`` stopped; None if the file has no pixels."""
    place = stream.tell()
    head = stream.read(12)
    implicit, little = dataset.original_encoding
    order: Literal["little", "big"] = "big" if little is False or syntax_of(dataset) == BIG_ENDIAN else "little"
    element = ELEMENTS.get(int.from_bytes(head[2:4], order))
    if len(head) < 8 or int.from_bytes(head[:2], order) != 0x7FE0 or element is None:
        return None
    if implicit:
        vr = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(element, "OW")
        start, length = place + 8, int.from_bytes(head[4:8], order)
    else:
        start, length = place + 12, int.from_bytes(head[8:12], order)
        vr = head[4:6].decode("latin-1")
    return Extent(element, start, None if length == 0xFFFFFFFF else length, vr)


def frames_of(dataset: Dataset) -> int:
    """Number of frames; 1 if the header does not state it."""
    return int(dataset.get("NumberOfFrames") or 1)


def frame_bits(dataset: Dataset) -> int:
    """Number of bits of one uncompressed frame."""
    pixels = int(dataset.Rows) * int(dataset.Columns)
    if "BitsAllocated" not in dataset:
        message = "Bits Allocated is missing: the number of bits of a pixel is not known"
        raise DicomError(message)
    if str(dataset.get("PhotometricInterpretation", "")) in _HALF and syntax_of(dataset) in PLAIN:
        return pixels * 2 * int(dataset.BitsAllocated)
    return pixels * int(dataset.get("SamplesPerPixel") or 1) * int(dataset.BitsAllocated)
