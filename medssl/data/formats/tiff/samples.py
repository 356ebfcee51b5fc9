"""Meaning of the samples of a TIFF page (TIFF 6, sections 4-6, 18-23): colors, transparency, palettes, MinIsWhite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.picture.base import TRANSPARENCY, wide_colors
from medssl.types import ValueDomain

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, MASK, CMYK, YCBCR = range(7)
_JPEG = frozenset((6, 7, 33007, 34892))
_REFUSED = {
    MASK: "a transparency mask", CMYK: "CMYK colors", 8: "CIELab colors", 9: "ICCLab colors", 10: "ITULab colors",
    32803: "a color filter array", 32844: "LogL values", 32845: "LogLuv colors", 34892: "raw camera data",
}  # fmt: skip
_ALPHA = (1, 2)  # of the tag ExtraSamples: transparency, associated or not
_PREMULTIPLIED = f"{TRANSPARENCY} (colors were already multiplied by it)"


@dataclass(frozen=True)
class Samples:
    """Conversion of the samples of a page to channels.

    Attributes:
        value_domain: Colors of 8 bits, or gray values.
        channels: Channels of the page after palette and transparency.
        dtype: Number type of the channels.
        sample_count: Number of leading samples that are read.
        white: Value that replaces 0 if 0 is white; None if 0 is black.
        palette: Colors [entries, 3] of 8 bits, or None.
        bilevel: Whether a pixel has one bit.
        notes: Notes for the user.
    """

    value_domain: ValueDomain
    channels: int
    dtype: np.dtype[Any]
    sample_count: int
    white: int | None = None
    palette: np.ndarray | None = None
    bilevel: bool = False
    notes: tuple[str, ...] = ()


def samples_of(page: Any) -> Samples:
    """Conversion for a page whose tags tifffile has read.

    Raises:
        FormatError: Colors or number types are not supported; names them.
    """
    dtype = _number_type(page)
    photometric, stored_count = int(page.photometric), int(page.samplesperpixel)
    extra = tuple(int(kind) for kind in page.extrasamples)
    if photometric in _REFUSED or photometric > 6 or (photometric == YCBCR and int(page.compression) not in _JPEG):
        colors = _REFUSED.get(photometric, "YCbCr colors" if photometric == YCBCR else f"colors of kind {photometric}")
        message = f"{colors}: only gray and RGB pictures are read: save it as RGB"
        raise FormatError(message)
    alpha = extra[-1:] in ((1,), (2,))
    sample_count = stored_count - alpha
    notes = () if not alpha else (_PREMULTIPLIED,) if extra[-1] == 1 else (TRANSPARENCY,)
    if photometric == PALETTE:
        return Samples("rgb", 3, np.dtype(np.uint8), sample_count, palette=_palette(page, sample_count), notes=notes)
    if photometric in (RGB, YCBCR):
        return _colors(dtype, sample_count, notes)
    white = _white(page, dtype, sample_count) if photometric == MIN_IS_WHITE else None
    if white is not None:
        notes = (*notes, "0 is white (MinIsWhite): values turned round")
    bilevel = int(page.bitspersample) == 1
    return Samples(
        "gray", sample_count, np.dtype(np.uint8) if bilevel else dtype, sample_count, white, None, bilevel, notes
    )


def channels_of(array: np.ndarray, samples: Samples, *, label: bool) -> np.ndarray:
    """Converts the decoded samples [S, row, column] of a page to channels [C, row, column].

    Raises:
        FormatError: An index lies beyond the palette, or 0 is white in a mask.
    """
    array = array[: samples.sample_count]
    if samples.palette is not None:
        if label:
            return array
        if array.size and int(array.max()) >= len(samples.palette):
            message = f"damaged: place {int(array.max())} of a palette of {len(samples.palette)} colors"
            raise FormatError(message)
        return np.asarray(samples.palette.T[:, array[0]])
    array = array.astype(np.uint8) if array.dtype == bool else array
    if samples.white is not None:
        if label:
            message = (
                "a mask in which 0 is white (MinIsWhite): whether 0 or the highest value is background is not certain; "
                "save it with 0 as black"
            )
            raise FormatError(message)
        array = ~array if samples.white == -1 else array.dtype.type(samples.white) - array
    return array * np.uint8(255) if samples.bilevel and not label else array


def _number_type(page: Any) -> np.dtype[Any]:
    """Number type of the samples.

    Raises:
        FormatError: The type is not known, or is complex.
    """
    dtype = page.dtype
    if dtype is None or np.dtype(dtype).kind not in "iufb":
        bits = page.bitspersample
        bits = ", ".join(map(str, bits)) if isinstance(bits, tuple) else str(bits) if isinstance(bits, int) else "?"
        kind = "complex numbers" if dtype is not None and np.dtype(dtype).kind == "c" else "samples"
        message = f"{kind} of {bits} bits, sample format {int(page.sampleformat)}: only whole and real numbers are read"
        raise FormatError(message)
    number_type: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return number_type


def _colors(dtype: np.dtype[Any], sample_count: int, notes: tuple[str, ...]) -> Samples:
    """RGB and further samples; only three channels of 8 bits have the value domain of colors."""
    if sample_count < 3:
        message = f"RGB colors of {sample_count} samples: expected three"
        raise FormatError(message)
    if sample_count > 3:
        notes = (*notes, f"{sample_count} samples where red, green and blue are three: kept as channels of gray values")
        return Samples("gray", sample_count, dtype, sample_count, notes=notes)
    if dtype != np.uint8:
        notes = (*notes, wide_colors(8 * dtype.itemsize))
        return Samples("gray", 3, dtype, 3, notes=notes)
    return Samples("rgb", 3, dtype, 3, notes=notes)


def _palette(page: Any, sample_count: int) -> np.ndarray:
    """Colors [entries, 3] of 8 bits; some programs write 8 bits where the standard requires 16."""
    table = page.colormap
    if table is None or np.ndim(table) != 2 or len(table) != 3 or sample_count != 1:
        message = "damaged: a picture with a palette, but without a table of its colors"
        raise FormatError(message)
    table = np.asarray(table)
    return np.asarray((table if table.max() < 256 else table >> 8).astype(np.uint8).T)


def _white(page: Any, dtype: np.dtype[Any], sample_count: int) -> int:
    """The value of black if 0 is white; -1 for signed numbers, whose bits are all inverted."""
    if sample_count != 1 or dtype.kind == "f":
        message = "0 is white (MinIsWhite) in several samples or in real numbers, which has no meaning: not read"
        raise FormatError(message)
    return -1 if dtype.kind == "i" else 2 ** int(page.bitspersample) - 1
