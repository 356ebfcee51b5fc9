"""Conversion of the stored numbers of a DICOM frame to values: tables, slopes, units, padding and inverted gray.

The order is that of PS3.3 C.11.1: the modality transform (table, or slope and intercept) converts a stored number to a
value. Windows, VOI tables and presentation tables concern the display only and change no value. See
docs/formats/dicom.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.dicom.elements import DicomError, is_capture, shown

if TYPE_CHECKING:
    from pydicom import Dataset

    from medssl.data.formats.dicom.pixels.layout import Bits, Layout

_UNSPECIFIED = ("", "US")  # Rescale Type: missing, "unspecified"
_EXACT = 1 << 24  # whole numbers up to here are exact in float32
_WHOLE = (np.int16, np.uint16, np.int32, np.uint32, np.int64)
AIR_HU = -1000


@dataclass(frozen=True)
class Table:
    """Lookup table of values for stored numbers.

    Numbers beyond a Modality LUT take its nearest entry. Numbers beyond a table of real world values have no value.

    Attributes:
        first: Stored number of the first entry.
        entries: Bytes of the entries.
        dtype: Number type of the entries.
        bits: Bits of an entry.
    """

    first: int
    entries: bytes
    dtype: str
    bits: int

    def look_up(self, stored: np.ndarray) -> np.ndarray:
        """Returns the values of an array of stored numbers."""
        entries = np.frombuffer(self.entries, self.dtype)
        low, high, last = int(stored.min()), int(stored.max()), self.first + len(entries) - 1
        if self.dtype == "<f8" and not self.first <= low <= high <= last:
            message = f"stored numbers from {low} to {high}, the real world value table covers {self.first} to {last}"
            raise DicomError(message)
        places = np.clip(stored.astype(np.int64) - self.first, 0, len(entries) - 1)
        return np.asarray(entries[places])


@dataclass(frozen=True)
class ValueTransform:
    """Conversion of stored numbers to values.

    Attributes:
        slope: Factor; ``table`` replaces slope and intercept.
        intercept: Value of the stored number 0.
        table: Modality LUT, or the table of a real world value mapping.
        inverted: Whether low values are bright, so that values are inverted.
        unit: Unit of the values; "" if it is not known.
        padding: Lowest and highest stored number of padding.
        covered: Lowest and highest stored number of a real world value mapping.
    """

    slope: float = 1.0
    intercept: float = 0.0
    table: Table | None = None
    inverted: bool = False
    unit: str = ""
    padding: tuple[float, float] | None = None
    covered: tuple[float, float] | None = None

    @property
    def shift(self) -> int | None:
        """The whole number to add to stored numbers to get values; None if the conversion needs more than that."""
        plain = self.table is None and not self.inverted and self.slope == 1
        return int(self.intercept) if plain and self.intercept == round(self.intercept) else None


def unit_of(dataset: Dataset, frame: int = 0) -> str:
    """Unit of the values after the modality transform; HU for CT without another unit."""
    modality = str(dataset.get("Modality", ""))
    if modality == "PT":
        return str(dataset.get("Units", "") or "")
    stated = ""
    for source in _groups(dataset, frame, "PixelValueTransformationSequence"):
        stated = stated or str(source.get("RescaleType", "") or "")
    tables = dataset.get("ModalityLUTSequence")
    if tables:
        stated = str(tables[0].get("ModalityLUTType", "") or "")
    if modality == "CT" and not (stated in _UNSPECIFIED and is_capture(str(dataset.get("SOPClassUID", "")))):
        return "HU" if stated in (*_UNSPECIFIED, "HU", "HU_MOD") else stated
    return "" if stated in _UNSPECIFIED else stated


def value_transform_of(dataset: Dataset, frame: int, layout: Layout, notes: list[str]) -> ValueTransform:
    """Reads the conversion of stored numbers to values of one frame from the header.

    Args:
        dataset: The header.
        frame: Number of the frame.
        layout: Storage layout of the frame.
        notes: Receives notes for the user.

    Raises:
        DicomError: A slope or a table is not valid.
    """
    if layout.shape[2] > 1 or layout.photometric == "PALETTE COLOR":
        return ValueTransform()
    slope, intercept, has_rescale = _rescale(dataset, frame)
    table = _modality_table(dataset, layout.bits)
    if table is not None and (slope, intercept) != (1.0, 0.0):
        message = f"both a Modality LUT and a rescale slope {slope:g} and intercept {intercept:g}: expected one"
        raise DicomError(message)
    modality = str(dataset.get("Modality", ""))
    quantity = modality in ("CT", "PT")
    transform = ValueTransform(
        slope, intercept, table, unit=unit_of(dataset, frame), padding=_padding(dataset, layout.bits)
    )
    transform = _real_world(dataset, frame, transform, layout.bits, notes)
    if layout.photometric == "MONOCHROME1":
        quantity = quantity or transform.unit != unit_of(dataset, frame)
        if quantity:
            notes.append("MONOCHROME1 concerns the display alone: the values are a quantity and were not inverted")
        transform = replace(transform, inverted=not quantity)
    elif str(dataset.get("PresentationLUTShape", "")) == "INVERSE":
        notes.append("Presentation LUT Shape INVERSE with MONOCHROME2 concerns the display alone: nothing was inverted")
    if modality == "CT" and transform.unit == "HU" and not has_rescale and table is None:
        notes.append("no rescale slope and intercept: stored numbers are taken for HU")
    return transform


def values_of(stored: np.ndarray, transform: ValueTransform, bits: Bits) -> np.ndarray:
    """Converts stored numbers to values.

    The result is whole numbers if slope and intercept are, else float32 (float64 if float32 is too coarse). Inverted
    gray is mirrored within the range of the stored bits (or of the entries of the table).
    """
    if transform.table is not None:
        values = transform.table.look_up(stored)
        top = np.array((1 << transform.table.bits) - 1).astype(values.dtype)
        return np.asarray(top - values) if transform.inverted else values
    if transform.inverted:
        stored = ~stored if bits.signed else np.array((1 << bits.stored) - 1).astype(stored.dtype) - stored
    slope, intercept = transform.slope, transform.intercept
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if not bits.real and slope == round(slope) and intercept == round(intercept):
        low, high = (int(edge) * int(slope) + int(intercept) for edge in (stored.min(), stored.max()))
        dtype = smallest(min(low, high), max(low, high))
        return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(dtype)
    size = bits.dtype.itemsize
    fine = (
        size == 8
        or not 1e-30 < abs(slope) < 1e30
        or (size == 4 and not bits.real and max(-int(stored.min()), int(stored.max())) > _EXACT)
    )
    if intercept == 0 and not fine:
        return np.asarray(np.multiply(stored, np.float32(slope), dtype=np.float32))
    values = stored.astype(np.float64) * slope + intercept
    return values if fine else values.astype(np.float32)


def smallest(low: int, high: int) -> np.dtype:
    """The smallest of int16, uint16, int32, uint32 and int64 that holds two whole numbers.

    Raises:
        DicomError: The numbers do not fit 64 bits.
    """
    for dtype in _WHOLE:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    message = f"values from {low} to {high} are beyond 64 bits"
    raise DicomError(message)


def padding_mask(raw: np.ndarray, transform: ValueTransform, bits: Bits) -> np.ndarray | None:
    """Mask of padding; None if there is none.

    A padding value that does not fit the stored bits (-2000 with 12 unsigned bits) is compared with the whole
    container, other values with the stored bits only.
    """
    if transform.padding is None:
        return None
    low, high = transform.padding
    if bits.spare and not bits.real and bits.allocated > 1:
        lowest_value = -(1 << bits.stored - 1) if bits.signed else 0
        if lowest_value <= low and high < lowest_value + (1 << bits.stored):
            raw = np.right_shift(np.left_shift(raw, bits.spare - bits.lowest), bits.spare)
    mask = raw == low if low == high else (raw >= low) & (raw <= high)
    return mask if mask.any() else None


def _groups(dataset: Dataset, frame: int, sequence: str) -> Iterator[Any]:
    """Items that may hold an attribute of a frame: its functional group, the shared one, the file."""
    groups, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for source in (groups[frame] if groups and frame < len(groups) else None, shared[0] if shared else None):
        if source is not None and source.get(sequence):
            yield source[sequence].value[0]
    yield dataset


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float, bool]:
    """Slope and intercept of one frame, and whether the file states them."""
    source = next(_groups(dataset, frame, "PixelValueTransformationSequence"))
    values = []
    for name, noun, default in (("RescaleSlope", "slope", 1.0), ("RescaleIntercept", "intercept", 0.0)):
        value = source.get(name)
        try:
            values.append(default if value in (None, "") else float(value))
        except (TypeError, ValueError):
            values.append(math.nan)
        if not math.isfinite(values[-1]) or (noun == "slope" and values[-1] == 0):
            message = f"rescale {noun} is {shown(value)}: no value follows from it"
            raise DicomError(message)
    is_stated = any(source.get(name) not in (None, "") for name in ("RescaleSlope", "RescaleIntercept"))
    return values[0], values[1], is_stated


def _modality_table(dataset: Dataset, bits: Bits) -> Table | None:
    """The Modality LUT (PS3.3 C.11.1.1.1)."""
    items = dataset.get("ModalityLUTSequence")
    if not items:
        return None
    count, first, depth = (int(number) for number in items[0].LUTDescriptor)
    count = count or 0x10000
    data = items[0].LUTData
    little = dataset.original_encoding[1] is not False
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.array(data, np.int64)).astype("<u2").tobytes()
        little = True
    if len(data) >= 2 * count:
        entries = np.frombuffer(data, "<u2" if little else ">u2", count).astype("<u2")
    elif depth <= 8 and len(data) >= count:
        packed = np.frombuffer(data, np.uint8)
        entries = (packed if little else packed.reshape(-1, 2)[:, ::-1].ravel())[:count].astype("<u2")
    else:
        message = f"the Modality LUT has {len(data):,} bytes, its descriptor says {count:,} entries of {depth} bits"
        raise DicomError(message)
    if not 1 <= depth <= 16:
        message = f"the Modality LUT has entries of {depth} bits: expected 8 or 16"
        raise DicomError(message)
    return Table(_with_sign(first, 16, bits.signed), entries.tobytes(), "<u2", depth)


def _real_world(
    dataset: Dataset, frame: int, transform: ValueTransform, bits: Bits, notes: list[str]
) -> ValueTransform:
    """Applies a real world value mapping (PS3.3 C.7.6.16.2.11) if there is no modality transform."""
    items: list[Any] = []
    for source in _mappings(dataset, frame):
        items = items or list(source)
    if not items:
        return transform
    item = items[0]
    unit = item.get("MeasurementUnitsCodeSequence")
    unit = str(unit[0].get("CodeValue", "") or "") if unit else ""
    linear = item.get("RealWorldValueSlope") is not None
    slope, intercept = float(item.get("RealWorldValueSlope") or 1), float(item.get("RealWorldValueIntercept") or 0)
    if transform.shift != 0 or transform.unit:
        if len(items) > 1 or not linear or (slope, intercept) != (transform.slope, transform.intercept):
            notes.append("a real world value mapping was left alone: the modality transform gives the values")
        return transform
    if len(items) > 1:
        notes.append(f"{len(items)} real world value mappings were left alone: stored numbers are taken")
        return transform
    covered = _covered(item, bits)
    if linear:
        if not (math.isfinite(slope) and slope and math.isfinite(intercept)):
            message = f"real world value mapping with slope {slope:g} and intercept {intercept:g}: no value follows"
            raise DicomError(message)
        return replace(transform, slope=slope, intercept=intercept, unit=unit or "real world value", covered=covered)
    data = item.get("RealWorldValueLUTData")
    if data is None or covered is None:
        message = "real world value mapping without slope and without table"
        raise DicomError(message)
    entries = np.atleast_1d(np.array(data, "<f8"))
    table = Table(int(covered[0]), entries.tobytes(), "<f8", 64)
    return replace(transform, table=table, unit=unit or "real world value", covered=covered)


def _covered(item: Any, bits: Bits) -> tuple[float, float] | None:
    ends = []
    for word in ("First", "Last"):
        real = item.get(f"DoubleFloatRealWorldValue{word}ValueMapped")
        whole = item.get(f"RealWorldValue{word}ValueMapped")
        if real is not None:
            ends.append(float(real))
        elif whole is not None and not isinstance(whole, (bytes, str)):
            ends.append(_with_sign(int(whole), 16, bits.signed))
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _mappings(dataset: Dataset, frame: int) -> Iterator[Any]:
    groups, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for source in (groups[frame] if groups and frame < len(groups) else None, shared[0] if shared else None, dataset):
        if source is not None and source.get("RealWorldValueMappingSequence"):
            yield source.RealWorldValueMappingSequence


def _padding(dataset: Dataset, bits: Bits) -> tuple[float, float] | None:
    """Lowest and highest padding value (PS3.3 C.7.5.1.1.2), converted to the number type of the pixels."""
    kind = {32: "Float", 64: "DoubleFloat"}[bits.allocated] if bits.real else ""
    value, limit = dataset.get(f"{kind}PixelPaddingValue"), dataset.get(f"{kind}PixelPaddingRangeLimit")
    if value is None or isinstance(value, str) or isinstance(limit, str):
        return None
    ends = [_padding_number(limit_value, bits) for limit_value in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _padding_number(value: Any, bits: Bits) -> float:
    if isinstance(value, bytes):
        value = int.from_bytes(value, "little")
    if bits.real:
        return float(value)
    return _with_sign(int(value), bits.dtype.itemsize * 8, bits.signed)


def _with_sign(value: int, bits: int, signed: bool) -> int:
    """The number with ``bits`` bits that has the same bit pattern."""
    value %= 1 << bits
    return value - (1 << bits) if signed and value >> bits - 1 else value
