"""DICOM data elements: parsing of files, and description of errors."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

from medssl.data.formats.base import DAMAGE, printable
from medssl.types import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

_SHOWN = 32  # letters
PIXEL_TAGS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "RescaleType",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "Modality", "Units", "ModalityLUTSequence",
    "RealWorldValueMappingSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit",
    "PresentationLUTShape", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ImageType", "SOPClassUID",
)  # fmt: skip


class DicomError(UserError):
    """A DICOM file that cannot be used.

    Attributes:
        rejected: True: the file holds no scan. False: it is damaged.
        series: Digest of the series, if it is known.
        slices: Slices of the header, if only the pixels are damaged.
        label_object: Description of a label object, as JSON.
    """

    def __init__(
        self,
        message: str,
        *,
        rejected: bool = False,
        series: str = "",
        slices: Sequence[Any] = (),
        label_object: str = "",
    ) -> None:
        super().__init__(printable(message))
        self.rejected = rejected
        self.series = series
        self.slices = slices
        self.label_object = label_object


def damage() -> tuple[type[Exception], ...]:
    """Errors that pydicom raises on damaged files. Elements are decoded on access, so that they may occur anywhere."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (BytesLengthException, InvalidDicomError, OSError, MemoryError, *DAMAGE)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings about unusual header values, which are common; relevant values are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse(stream: BinaryIO, tags: Sequence[str | int]) -> Dataset:
    """Reads the elements ``tags``; the stream is then at the pixel data."""
    import pydicom

    try:
        wanted_tags: list[Any] = _as_tags(tuple(tags))
        return pydicom.dcmread(stream, specific_tags=wanted_tags, stop_before_pixels=True, force=True)
    except damage() as error:
        message = f"not readable as DICOM: {reason_of(error)}"
        raise DicomError(message) from error


@cache
def _as_tags(tags: tuple[str | int, ...]) -> list[Any]:
    """Converts keywords to tags, cached since pydicom would do it for every file."""
    from pydicom.tag import Tag

    return [Tag(tag) for tag in tags]


def syntax_of(dataset: Dataset) -> str:
    """Transfer syntax of a file; without meta information, that of its elements."""
    meta = getattr(dataset, "file_meta", None)
    stated = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    implicit, little = dataset.original_encoding
    return stated or ("1.2.840.10008.1.2" + ("" if implicit else ".1" if little is not False else ".2"))


def is_capture(sop: str) -> bool:
    """Whether a SOP class is one of secondary captures."""
    return sop.startswith("1.2.840.10008.5.1.4.1.1.7") and not sop.startswith("1.2.840.10008.5.1.4.1.1.77")


def shown(value: object) -> str:
    """A header value for messages, shortened: a damaged value may run into the next one, such as a patient's name."""
    text = re.split(r"\?|\\x", printable(str(value)))[0].lstrip("['")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def reason_of(error: BaseException) -> str:
    """Reason of an error, without the text of a library."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    if isinstance(error, (EOFError, struct.error)):
        return "header ends early"
    if isinstance(error, zlib.error):
        return "truncated or damaged: the deflated elements cannot be unpacked"
    if isinstance(error, MemoryError):
        return "an element claims more bytes than there is memory for"
    if isinstance(error, AttributeError) and error.name:
        return f"header not understood: {error.name} is missing"
    return "header not understood: an element has a value of the wrong kind"
