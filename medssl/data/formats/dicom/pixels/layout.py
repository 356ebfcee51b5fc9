"""Storage layout of the pixels of a DICOM file (PS3.3 C.7.6.3.1): bits, signs, samples and planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.dicom.elements import DicomError, shown
from medssl.data.formats.dicom.pixels.syntaxes import PLAIN

if TYPE_CHECKING:
    from pydicom import Dataset

_REAL = {"FloatPixelData": ("f4", 32), "DoubleFloatPixelData": ("f8", 64)}
_GRAY = ("MONOCHROME1", "MONOCHROME2")
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@dataclass(frozen=True)
class Bits:
    """Bits of a sample.

    Attributes:
        allocated: Bits of the container.
        stored: Bits in use.
        lowest: Number of the lowest stored bit.
        signed: Whether samples are signed.
        real: Whether samples are real numbers.
    """

    allocated: int
    stored: int
    lowest: int = 0
    signed: bool = False
    real: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Number type of the container, little endian."""
        kind = "f" if self.real else "i" if self.signed else "u"
        return np.dtype(f"<{kind}{max(1, self.allocated // 8)}")

    @property
    def spare(self) -> int:
        """Number of bits of the container that are not stored bits."""
        return self.dtype.itemsize * 8 - self.stored


@dataclass(frozen=True)
class Layout:
    """Storage layout of a frame.

    Attributes:
        shape: Rows, columns, samples of a pixel.
        bits: Bits of a sample.
        photometric: Photometric interpretation.
        planar: Whether each sample has a separate plane.
    """

    shape: tuple[int, int, int]
    bits: Bits
    photometric: str
    planar: bool = False

    @property
    def simple(self) -> bool:
        """Whether a pixel is one sample of whole bytes."""
        return self.shape[2] == 1 and self.bits.allocated >= 8 and self.photometric in _GRAY


def samples_of(dataset: Dataset) -> int:
    """Number of samples of a pixel after reading: three if it has a palette."""
    palette = str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR"
    return 3 if palette else int(dataset.get("SamplesPerPixel") or 1)


def layout_of(dataset: Dataset, element: str) -> Layout:
    """Reads the layout from the header.

    Args:
        dataset: The header.
        element: Name of the element that holds the pixels.

    Raises:
        DicomError: Attributes contradict each other, or the layout is not supported.
    """
    samples = int(dataset.get("SamplesPerPixel") or 1)
    photometric = str(dataset.get("PhotometricInterpretation", "") or ("RGB" if samples == 3 else "MONOCHROME2"))
    bits = _bits(dataset, element)
    problem = ""
    if photometric in (*_GRAY, "PALETTE COLOR"):
        if samples != 1:
            problem = f"Photometric Interpretation is {photometric}, Samples per Pixel {samples}: expected 1"
    elif photometric not in COLORS:
        problem = f"colors stored as {shown(photometric)} are not read: convert to RGB first"
    elif samples != 3:
        problem = f"Photometric Interpretation is {shown(photometric)}, Samples per Pixel {samples}: expected 3"
    elif bits.signed or bits.real or bits.stored != 8:
        problem = f"color of {bits.stored} bits{' with a sign' if bits.signed else ''}: expected 8 without a sign"
    if photometric == "MONOCHROME1" and bits.real:
        problem = "real numbers with Photometric Interpretation MONOCHROME1: expected MONOCHROME2"
    if problem:
        raise DicomError(problem)
    shape = (int(dataset.Rows), int(dataset.Columns), samples)
    return Layout(shape, bits, photometric, planar=int(dataset.get("PlanarConfiguration") or 0) == 1)


def _bits(dataset: Dataset, element: str) -> Bits:
    if element in _REAL:
        return Bits(_REAL[element][1], _REAL[element][1], real=True)
    allocated = int(dataset.BitsAllocated)
    if allocated not in (1, 8, 16, 32, 64):
        message = f"{allocated} bits a pixel: only 1, 8, 16, 32 and 64 are read"
        raise DicomError(message)
    stored = int(dataset.get("BitsStored") or allocated)
    high = dataset.get("HighBit")
    high = stored - 1 if high in (None, "") else int(high)
    representation = dataset.get("PixelRepresentation")
    if stored > allocated or not stored - 1 <= high < allocated:
        message = f"Bits Allocated {allocated}, Bits Stored {stored} and High Bit {high} contradict each other"
        raise DicomError(message)
    if representation not in (None, "", 0, 1):
        message = f"Pixel Representation is {shown(representation)}: expected 0 (unsigned) or 1 (signed)"
        raise DicomError(message)
    return Bits(allocated, stored, high + 1 - stored, bool(representation))


def unpack(data: bytes | memoryview, layout: Layout, *, first_bit: int = 0, big: bool = False) -> np.ndarray:
    """Samples (row, column, sample) of one uncompressed frame.

    Args:
        data: Bytes of the frame.
        layout: Layout of the bytes.
        first_bit: For single bits only: first bit of the frame in the first byte.
        big: Whether numbers are big-endian.
    """
    rows, columns, samples = layout.shape
    count = rows * columns * samples
    if layout.bits.allocated == 1:
        single = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[first_bit : first_bit + count]
        return single.reshape(layout.shape)
    dtype = layout.bits.dtype.newbyteorder(">" if big else "<")
    if layout.photometric == "YBR_FULL_422":
        pairs = np.frombuffer(data, dtype, rows * columns * 2).reshape(rows, -1, 4)
        pixels = pairs[:, :, [[0, 2, 3], [1, 2, 3]]]  # two brightnesses, then the colors that they share
        return np.ascontiguousarray(pixels.reshape(layout.shape))
    array = np.frombuffer(data, dtype, count)
    array = array.reshape(samples, rows, columns).transpose(1, 2, 0) if layout.planar else array.reshape(layout.shape)
    return np.ascontiguousarray(array.astype(layout.bits.dtype, copy=False))


def check_fits(layout: Layout, syntax: str) -> None:
    """Refuses layouts that the transfer syntax does not allow.

    Raises:
        DicomError: Names the attribute that does not fit.
    """
    plain = syntax in PLAIN
    if not plain and layout.bits.lowest:
        message = f"compressed pixels that start at bit {layout.bits.lowest}: expected bit 0"
        raise DicomError(message)
    if plain and layout.photometric in ("YBR_ICT", "YBR_RCT"):
        message = f"Photometric Interpretation is {layout.photometric}, but the pixels are no JPEG 2000"
        raise DicomError(message)
    if plain and layout.photometric == "YBR_FULL_422" and layout.shape[1] % 2:
        message = f"YBR_FULL_422 with {layout.shape[1]} columns: expected an even number"
        raise DicomError(message)


def dropped_bits_note(raw: np.ndarray, bits: Bits) -> str:
    """Note about nonzero bits outside the stored ones; "" if there are none."""
    if bits.real or not bits.spare or bits.allocated == 1:
        return ""
    if bits.lowest:
        low = bool((raw & ((1 << bits.lowest) - 1)).any())
        return f"numbers in the {bits.lowest} bits below the stored ones (High Bit) were dropped" if low else ""
    lowest_value = -(1 << bits.stored - 1) if bits.signed else 0
    high = lowest_value + (1 << bits.stored)
    if bits.signed and not raw.min() < 0 and int(raw.max()) < (1 << bits.stored):
        return ""  # a sign that fills its own bits alone
    if lowest_value <= int(raw.min()) and int(raw.max()) < high:
        return ""
    return (
        f"numbers in the bits beyond Bits Stored {bits.stored} were dropped (an old overlay, or Bits Stored is wrong)"
    )


def stored_bits(raw: np.ndarray, bits: Bits) -> np.ndarray:
    """Removes bits outside the stored ones (such as old overlays) and extends the sign, in place."""
    if bits.real or not bits.spare or bits.allocated == 1:
        return raw
    low = -(1 << bits.stored - 1) if bits.signed else 0
    if not bits.lowest and int(raw.max()) <= low + (1 << bits.stored) - 1 and int(raw.min()) >= low:
        return raw
    np.left_shift(raw, bits.spare - bits.lowest, out=raw)
    np.right_shift(raw, bits.spare, out=raw)
    return raw
