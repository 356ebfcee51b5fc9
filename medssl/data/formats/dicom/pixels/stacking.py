"""Builds one array from the slices of a stack, of any stored types. Memory holds the stack and one slice."""

from __future__ import annotations

import numpy as np

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.pixels.colors import through_palette
from medssl.data.formats.dicom.pixels.layout import Layout, dropped_bits_note, stored_bits
from medssl.data.formats.dicom.pixels.values import AIR_HU, ValueTransform, padding_mask, smallest, values_of

_EXACT = 1 << 24
Palette = tuple[int, np.ndarray]


class StackBuilder:
    """Collects slices in order. Slices with equal storage are read directly into the array, and shifted at the end."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.array: np.ndarray | None = None
        self.done = 0
        self.notes: list[str] = []
        self._shift: int | None = None  # of all slices so far; None once they differ
        self._low: float | None = None
        self._high: float | None = None
        self._padding: dict[int, np.ndarray] = {}
        self._unit: str | None = None

    def next_slot(self, layout: Layout, transform: ValueTransform) -> np.ndarray:
        """Returns an array (row, column, sample) for the next slice."""
        if self._unit is not None and transform.unit != self._unit:
            message = f"its values are {transform.unit or 'without a unit'}, those of the first slice "
            message += self._unit or "without a unit"
            raise DicomError(message)
        self._unit = transform.unit
        if layout.simple and transform.shift is not None and not layout.bits.real:
            if self.array is None:
                self.array, self._shift = self._empty(layout.shape, layout.bits.dtype), transform.shift
            if self._shift == transform.shift and self.array.dtype == layout.bits.dtype:
                return np.asarray(self.array[self.done])
        return np.empty(layout.shape, layout.bits.dtype)

    def add(self, raw: np.ndarray, layout: Layout, transform: ValueTransform, palette: Palette | None = None) -> None:
        """Adds the slice that was read into the array from ``next_slot``."""
        direct = self._shift is not None and np.shares_memory(raw, self.array) if self.array is not None else False
        mask = padding_mask(raw, transform, layout.bits)
        if mask is None and (bits_note := dropped_bits_note(raw, layout.bits)):
            self._note(bits_note)
        stored = stored_bits(raw, layout.bits) if layout.shape[2] == 1 else raw.astype(np.uint8)
        if mask is not None:
            self._padding[self.done] = np.packbits(mask)
            stored[mask] = stored[~mask].min() if not mask.all() else 0
        if transform.covered and (stored.min() < transform.covered[0] or stored.max() > transform.covered[1]):
            self._note("stored numbers beyond those that the real world value mapping speaks of")
        blank = mask is not None and bool(mask.all())
        if direct:
            if not blank:
                self._widen(int(stored.min()) + (self._shift or 0), int(stored.max()) + (self._shift or 0))
        else:
            values = through_palette(stored, *palette) if palette else values_of(stored, transform, layout.bits)
            self._put(values, blank=blank)
        self.done += 1

    def finish(self, layout: Layout) -> np.ndarray:
        """Returns the array of values (slice, row, column, sample)."""
        if self.array is None:
            message = "a scan without files"
            raise DicomError(message)
        fill = self._fill()
        if self._shift is not None and self._low is not None and self._high is not None:
            self._settle(int(self._low), int(self._high))
        for number, packed in self._padding.items():
            mask = np.unpackbits(packed, count=layout.shape[0] * layout.shape[1]).view(bool)
            self.array[number][mask.reshape(*layout.shape[:2], 1)] = fill
        return self.array

    def _fill(self) -> float:
        """Value of padding: air for Hounsfield units, else the lowest value of the other voxels."""
        fill = AIR_HU if self._unit == "HU" else (self._low or 0)
        if self._padding:
            if self._low is not None and self._high is not None:
                self._widen(fill, fill)
            voxels = sum(int(np.unpackbits(packed).sum()) for packed in self._padding.values())
            where = "air, -1000 HU" if self._unit == "HU" else f"the lowest value of the rest, {fill:.6g}"
            where += "" if self._low is not None else " (no voxel is anything else)"
            self._note(f"{voxels:,} voxels of padding in {len(self._padding)} slices were set to {where}")
        return fill

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty((self.count, *shape), dtype=dtype)

    def _widen(self, low: float, high: float) -> None:
        self._low = low if self._low is None else min(self._low, low)
        self._high = high if self._high is None else max(self._high, high)

    def _settle(self, low: int, high: int) -> None:
        """Converts the stored numbers so far to values."""
        if self.array is None or self._shift is None:
            return
        shift, self._shift = self._shift, None
        limits = np.iinfo(self.array.dtype)
        if shift == 0 and limits.min <= low and high <= limits.max:
            return
        self.array = self.array.astype(smallest(low, high), copy=False)
        filled = self.array[: self.done]
        np.add(filled, np.array(shift).astype(self.array.dtype), out=filled)  # wraps twice, which is correct

    def _put(self, values: np.ndarray, *, blank: bool) -> None:
        """Writes the values of a slice; the array gets a wider number type if they need one."""
        if self._shift is not None:
            self._settle(int(self._low or 0), int(self._high or 0))
        if not blank:
            low, high = values.min().item(), values.max().item()
            if np.isfinite(low + high):  # values that are not finite are refused later
                self._widen(low, high)
        if self.array is None:
            self.array = self._empty(values.shape, values.dtype)
        elif self.array.dtype != values.dtype:
            dtype = self._common(self.array.dtype, values.dtype)
            self.array = self.array.astype(dtype, copy=False)
        self.array[self.done] = values

    def _common(self, dtype: np.dtype, new_dtype: np.dtype) -> np.dtype:
        """A number type that holds all values so far."""
        low, high = self._low or 0, self._high or 0
        if "f" not in (dtype.kind, new_dtype.kind):
            limits = np.iinfo(dtype)
            return dtype if limits.min <= low and high <= limits.max else smallest(int(low), int(high))
        whole = "f" not in dtype.kind + new_dtype.kind or (dtype.kind != new_dtype.kind and max(-low, high) > _EXACT)
        return np.dtype(np.float64 if whole or np.float64 in (dtype, new_dtype) else np.float32)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
