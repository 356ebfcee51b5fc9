"""The tag Orientation of EXIF and TIFF: rotation and mirroring of the stored picture for display."""

from __future__ import annotations

import struct

import numpy as np

TAG = 274
UPRIGHT = 1
_TURNS = {
    1: "as stored",
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored and turned by 90 degrees counterclockwise",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned by 90 degrees clockwise",
    8: "turned by 90 degrees counterclockwise",
}
_SIZES = {3: ("H", 2), 4: ("I", 4)}  # SHORT, LONG


def exif_orientation(block: bytes) -> int:
    """Orientation (1-8) of an EXIF block (a TIFF header with one directory); 1 if it states none."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return UPRIGHT
    first = struct.unpack_from(f"{order}I", block, 4)[0]
    if first + 2 > len(block):
        return UPRIGHT
    count = struct.unpack_from(f"{order}H", block, first)[0]
    for entry in range(first + 2, min(first + 2 + 12 * count, len(block) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", block, entry)
        if tag == TAG and kind in _SIZES:
            return usable(struct.unpack_from(f"{order}{_SIZES[kind][0]}", block, entry + 8)[0])
    return UPRIGHT


def usable(value: int) -> int:
    """The orientation, or 1 for a value that is not in the standard."""
    return value if value in _TURNS else UPRIGHT


def note(orientation: int) -> tuple[str, ...]:
    """Note about a picture that is reoriented; empty if it is not."""
    return () if orientation == UPRIGHT else (f"{_TURNS[orientation]}, as its tag Orientation says",)


def turned_pair(pair: tuple[float, float], orientation: int) -> tuple[float, float]:
    """Values of (rows, columns), such as the spacing, after the reorientation."""
    return pair if orientation < 5 else (pair[1], pair[0])


def turned_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) after the reorientation."""
    return shape if orientation < 5 else (shape[1], shape[0])


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Reorients an array [..., row, column] for display.

    The tag states on which sides of the displayed picture the first stored row and column lie (EXIF 2.32, 4.6.4 A;
    TIFF 6, page 36).
    """
    if orientation >= 5:
        array = array.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1]
    return np.ascontiguousarray(array)
