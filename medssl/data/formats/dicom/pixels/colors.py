"""Converts colors of DICOM pictures, YBR and palettes, to RGB (PS3.3 C.7.6.3.1.2, C.7.6.3.1.5, C.7.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.dicom.elements import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

_TO_RGB = np.array([[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]], np.float32)
# from ITU-R BT.601: Y = 0.299 R + 0.587 G + 0.114 B over the whole range of 8 bits


def ybr_to_rgb(array: np.ndarray) -> np.ndarray:
    """Converts YBR_FULL to RGB, 8 bits."""
    values = array.astype(np.float32)
    values[..., 1:] -= 128
    return np.asarray(np.clip(np.rint(values @ _TO_RGB.T), 0, 255).astype(np.uint8))


def palette_of(dataset: Dataset, *, signed: bool) -> tuple[int, np.ndarray]:
    """The palette of a PALETTE COLOR picture.

    Args:
        dataset: Header with the three palettes.
        signed: Whether the stored numbers are signed.

    Returns:
        The stored number of the first entry, and the entries (n, 3) of 8 bits.

    Raises:
        DicomError: A palette is missing, segmented, or shorter than its descriptor states.
    """
    tables = []
    first = 0
    for name in ("Red", "Green", "Blue"):
        described = dataset.get(f"{name}PaletteColorLookupTableDescriptor")
        if described is None or len(described) != 3:
            message = f"PALETTE COLOR without a {name.lower()} palette"
            raise DicomError(message)
        count, first, _ = (int(number) for number in described)
        first = (first + 0x8000) % 0x10000 - 0x8000 if signed else first % 0x10000
        data = dataset.get(f"{name}PaletteColorLookupTableData")
        if data is None and f"Segmented{name}PaletteColorLookupTableData" in dataset:
            message = "PALETTE COLOR with segmented palettes is not read: convert to RGB first"
            raise DicomError(message)
        count = count or 0x10000
        if len(data or b"") < count:
            message = f"PALETTE COLOR: the {name.lower()} palette has fewer entries than its descriptor says ({count})"
            raise DicomError(message)
        tables.append(_entries(data, count))
    if len({len(table) for table in tables}) > 1:
        message = "PALETTE COLOR: the palettes have different numbers of entries"
        raise DicomError(message)
    colors = np.stack(tables, axis=1)
    return first, (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)


def through_palette(places: np.ndarray, first: int, colors: np.ndarray) -> np.ndarray:
    """Converts stored numbers (row, column, 1) to RGB; numbers beyond the palette take its nearest entry."""
    return np.asarray(colors[np.clip(places[..., 0].astype(np.int64) - first, 0, len(colors) - 1)])


def _entries(data: bytes, count: int) -> np.ndarray:
    """Entries of 8 or 16 bits, determined by the length of the data, not by the descriptor."""
    if len(data) >= 2 * count:
        return np.frombuffer(data, "<u2", count)
    return np.frombuffer(data, np.uint8, count).astype(np.uint16)
