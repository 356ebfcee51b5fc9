"""Decodes compressed frames. A codestream describes its content; a header that contradicts it is refused.

References: DICOM PS3.5 (2024e) chapter 8.2 and Annexes A.4, F (JPEG) and G (RLE).
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.pixels.codestreams import Codestream, describe, ends_early
from medssl.data.formats.dicom.pixels.colors import ybr_to_rgb
from medssl.data.formats.dicom.pixels.layout import Bits, Layout, unpack
from medssl.data.formats.dicom.pixels.syntaxes import DEFLATED_FRAMES, JPEG, JPEG_2000, JPEG_LS, RLE, UNCOMPRESSED

_FILLER = b"\x5a\xa5\x33\x0f" * 64  # bits that a decoder reads only if the codestream has too few bits


def decode(data: bytes, family: str, layout: Layout, notes: list[str]) -> np.ndarray:
    """Decodes one frame.

    Args:
        data: Compressed bytes of the frame.
        family: Family of the transfer syntax.
        layout: Layout by the header.
        notes: Receives notes for the user.

    Returns:
        Samples (row, column, sample) in the number type of the header; colors are RGB.

    Raises:
        DicomError: The frame is truncated or damaged, or its size, depth or kind contradicts the header.
    """
    if family in (RLE, UNCOMPRESSED, DEFLATED_FRAMES):
        array = _run_lengths(data, layout) if family == RLE else _uncompressed(data, family, layout)
        return array if layout.shape[2] == 1 or layout.photometric == "RGB" else ybr_to_rgb(array)
    facts, data = describe(data)
    if facts.family != family:
        message = f"the transfer syntax says {family}, but the pixels are a {facts.family} codestream"
        raise DicomError(message)
    _check_size(facts, layout)
    colors = _color_space(facts, layout, notes)
    try:
        array = _decode_codestream(data, facts, colors)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        message = f"damaged: the {family} codestream cannot be decoded"
        raise DicomError(message) from error
    if array.shape[:2] != layout.shape[:2]:
        array = array.transpose(1, 2, 0)  # planes first
    array = _in_container(array.reshape(layout.shape), facts, layout.bits)
    return ybr_to_rgb(array) if colors == "ybr" and not _by_decoder(facts) else array


def _check_size(facts: Codestream, layout: Layout) -> None:
    """Checks that rows, columns and components of the codestream are those of the header."""
    problem = ""
    if facts.shape != layout.shape:
        size = " x ".join(map(str, facts.shape))
        expected = " x ".join(map(str, layout.shape))
        problem = f"rows x columns x samples are {size} in the {facts.family} codestream and {expected} in the header"
    elif facts.family != JPEG and facts.halved:
        problem = f"the {facts.family} codestream has components of different sizes"
    elif layout.photometric == "PALETTE COLOR" and facts.lossy:
        problem = "PALETTE COLOR in a lossy codestream: places in a palette must be exact"
    elif layout.bits.allocated == 1 or layout.bits.real:
        problem = f"pixels of {layout.bits.allocated} bit in a {facts.family} codestream"
    if problem:
        raise DicomError(problem)


def _color_space(facts: Codestream, layout: Layout, notes: list[str]) -> str:
    """Color space of the three components, "rgb" or "ybr": by the codestream if it states one, else by the header."""
    if layout.shape[2] == 1:
        return ""
    photometric = layout.photometric
    named = "rgb" if photometric == "RGB" else "ybr"
    if facts.family == JPEG_2000:
        if photometric in ("YBR_FULL", "YBR_FULL_422") and not facts.colors:
            return "ybr"
        if photometric != "RGB" and (photometric not in ("YBR_ICT", "YBR_RCT") or not facts.colors):
            has = "a" if facts.colors else "no"
            message = (
                f"Photometric Interpretation is {photometric}, but the JPEG 2000 codestream has {has} color transform"
            )
            raise DicomError(message)
        return "rgb"
    if facts.family == JPEG_LS or not facts.lossy:
        return named
    actual = facts.colors or ("ybr" if facts.halved else named)
    if actual != named:
        notes.append(
            f"Photometric Interpretation is {photometric}, the JPEG codestream holds {actual.upper()}: that is taken"
        )
    return actual


def _by_decoder(facts: Codestream) -> bool:
    """Whether the decoder converts colors to RGB."""
    return facts.family == JPEG and facts.lossy


def _decode_codestream(data: bytes, facts: Codestream, colors: str) -> np.ndarray:
    import imagecodecs

    if facts.family == JPEG_2000:
        return np.asarray(imagecodecs.jpeg2k_decode(data))
    if facts.family == JPEG_LS:
        return np.asarray(imagecodecs.jpegls_decode(data))
    spaces: dict[str, Any] = {}
    if colors:
        spaces = {"colorspace": "YCBCR" if colors == "ybr" and facts.lossy else "RGB", "outcolorspace": "RGB"}
    array = np.asarray(imagecodecs.jpeg8_decode(data, **spaces))
    with_filler = np.asarray(imagecodecs.jpeg8_decode(data[:-2] + _FILLER + data[-2:], **spaces))
    if not np.array_equal(array, with_filler):  # the decoder silently fills in missing data
        raise ends_early(JPEG)
    return array


def _in_container(array: np.ndarray, facts: Codestream, bits: Bits) -> np.ndarray:
    """Samples in the number type of the header, whose bits must agree with those of the codestream."""
    low, high = int(array.min()), int(array.max())
    problem = ""
    if facts.bits > bits.allocated or facts.bits <= 8 < bits.stored:
        problem = f"{facts.bits} bits a sample, the header says {bits.stored} of {bits.allocated}"
    elif low < 0 and not bits.signed:
        problem = "signed numbers, the header says that they are unsigned"
    elif bits.signed and not facts.signed and facts.bits < bits.stored and high >> facts.bits - 1:
        problem = f"{facts.bits} bits a sample, the header says {bits.stored} with a sign: the sign bit is not known"
    elif facts.lossy and facts.bits > bits.stored and (high - min(low, 0)) >> bits.stored:
        problem = f"values from {low} to {high}, the header says {bits.stored} bits"
    if problem:
        message = f"the {facts.family} codestream has {problem}"
        raise DicomError(message)
    return np.ascontiguousarray(array).astype(bits.dtype)


def _run_lengths(data: bytes, layout: Layout) -> np.ndarray:
    """Decodes RLE (PS3.5 Annex G): each byte of a sample is a separate segment, the high byte first."""
    import imagecodecs

    size = max(1, layout.bits.allocated // 8)
    rows, columns, samples = layout.shape
    header = np.frombuffer(data[:64], "<u4") if len(data) >= 64 else np.zeros(16, "<u4")
    count = int(header[0])
    if layout.bits.allocated == 1 or count != size * samples or count > 15:
        message = f"the RLE frame has {count} segments: {samples} samples of {size} bytes need {size * samples}"
        raise DicomError(message)
    starts = [*map(int, header[1 : count + 1]), len(data)]
    planes = np.empty((samples, size, rows * columns), np.uint8)
    for number in range(count):
        if starts[number] > starts[number + 1]:
            raise ends_early(RLE)
        try:
            plane = imagecodecs.packbits_decode(data[starts[number] : starts[number + 1]])
        except (RuntimeError, ValueError) as error:
            message = "truncated or damaged: a segment of the RLE frame cannot be decoded"
            raise DicomError(message) from error
        if len(plane) < rows * columns:
            raise ends_early(RLE)
        planes[number // size, size - 1 - number % size] = np.frombuffer(plane, np.uint8, rows * columns)
    values = np.ascontiguousarray(planes.transpose(2, 0, 1)).view(layout.bits.dtype)
    return values.reshape(layout.shape)


def _uncompressed(data: bytes, family: str, layout: Layout) -> np.ndarray:
    """Decodes frames that are only split into fragments, or deflated one by one."""
    if family == DEFLATED_FRAMES:
        try:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            message = "truncated or damaged: a deflated frame cannot be decoded"
            raise DicomError(message) from error
    rows, columns, samples = layout.shape
    expected = -(-rows * columns * samples * layout.bits.allocated // 8)
    if layout.photometric == "YBR_FULL_422":
        expected = rows * columns * 2 * layout.bits.allocated // 8
    if len(data) < expected:
        message = f"truncated: {len(data):,} of {expected:,} bytes of a frame"
        raise DicomError(message)
    return unpack(data[:expected], layout)
