"""Parses headers of NIfTI-1, NIfTI-2 and Analyze 7.5."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from medssl.data.formats.base import FormatError, times

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 and Analyze have 348
_NIFTI1 = {
    "sizeof_hdr": ("i", 0), "dim": ("8h", 40), "intent": ("h", 68), "datatype": ("h", 70), "pixdim": ("8f", 76),
    "vox_offset": ("f", 108), "scl": ("2f", 112), "units": ("B", 123), "codes": ("2h", 252), "quaternion": ("3f", 256),
    "offset": ("3f", 268), "sform": ("12f", 280),
}  # fmt: skip
_NIFTI2 = {
    "sizeof_hdr": ("i", 0), "dim": ("8q", 16), "intent": ("i", 504), "datatype": ("h", 12), "pixdim": ("8d", 104),
    "vox_offset": ("q", 168), "scl": ("2d", 176), "units": ("i", 500), "codes": ("2i", 344), "quaternion": ("3d", 352),
    "offset": ("3d", 376), "sform": ("12d", 400),
}  # fmt: skip
_ANALYZE = {
    "sizeof_hdr": ("i", 0), "dim": ("8h", 40), "units": ("4s", 56), "datatype": ("h", 70), "pixdim": ("8f", 76),
    "vox_offset": ("f", 108), "scl": ("2f", 112), "orient": ("B", 252), "origin": ("3h", 253),
}  # fmt: skip
TYPES = {
    2: ("u1", 1), 4: ("i2", 1), 8: ("i4", 1), 16: ("f4", 1), 64: ("f8", 1), 128: ("u1", 3), 256: ("i1", 1),
    512: ("u2", 1), 768: ("u4", 1), 1024: ("i8", 1), 1280: ("u8", 1), 2304: ("u1", 4),
}  # fmt: skip
_UNREAD_TYPES = {
    1: "single bits", 32: "complex numbers", 1536: "numbers of 128 bits", 1792: "complex numbers",
    2048: "complex numbers",
}  # fmt: skip
_PLANES = {1: "coronal", 2: "sagittal", 3: "transverse, flipped", 4: "coronal, flipped", 5: "sagittal, flipped"}


@dataclass(frozen=True)
class NiftiHeader:
    """Fields of a header.

    Attributes:
        kind: "nifti" or "analyze".
        fields: Values by name: "pixdim", "codes", "quaternion", "offset", "sform", "units", "intent", "origin".
        shape: Seven lengths.
        dtype: Number type, with its byte order.
        samples: Numbers in one voxel: 3 or 4 for colors.
        start: First byte of the voxels in their file.
        separate: Whether the voxels are in another file (``.img``).
        notes: Notes for the user.
    """

    kind: str
    fields: dict[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    samples: int
    start: int
    separate: bool
    notes: tuple[str, ...]

    @property
    def scale(self) -> tuple[float, float]:
        """Slope and intercept; (1, 0) if the header defines none."""
        slope, inter = self.fields["scl"]
        if self.samples > 1 or slope == 0 or np.isnan(slope):
            return 1.0, 0.0
        return float(slope), float(inter)


def parse(raw: bytes) -> NiftiHeader:
    """Parses the first bytes of a file.

    Args:
        raw: The first 540 bytes, or the whole file if it is shorter.

    Raises:
        FormatError: There is no such header, or it is not valid.
    """
    first, second = raw[344:348], raw[4:8]
    if second in (b"n+2\0", b"ni2\0"):
        if len(raw) < HEADER_BYTES:
            message = f"truncated: {len(raw):,} of {HEADER_BYTES} bytes of a NIfTI-2 header"
            raise FormatError(message)
        if raw[8:12] != b"\r\n\x1a\n":
            message = "not readable as NIfTI: line ends were converted (transferred as text); copy the file again"
            raise FormatError(message)
        return _nifti(raw, _NIFTI2, HEADER_BYTES, separate=second == b"ni2\0")
    if len(raw) < 348:
        message = f"truncated: {len(raw):,} of 348 bytes of a NIfTI header"
        raise FormatError(message)
    if first in (b"n+1\0", b"ni1\0"):
        return _nifti(raw, _NIFTI1, 348, separate=first == b"ni1\0")
    if raw[:4] in (struct.pack("<i", 348), struct.pack(">i", 348)) and not first.strip(b"\0 "):
        return _analyze(raw)
    message = "not readable as NIfTI: its first bytes are no NIfTI or Analyze header"
    raise FormatError(message)


def _nifti(raw: bytes, table: dict[str, tuple[str, int]], size: int, *, separate: bool) -> NiftiHeader:
    fields = _fields(raw, table, size)
    notes = list(fields["notes"])
    start = _start(fields["vox_offset"], separate, size)
    if not separate and start == 0:
        start = size + 4
        notes.append(f"vox_offset is 0: {start} assumed")
    dtype, samples = _type(fields)
    slope, inter = fields["scl"]
    if np.isinf(slope) or (slope != 0 and not np.isnan(slope) and not np.isfinite(inter)):
        message = f"scale unusable: scl_slope {slope:g}, scl_inter {inter:g}: expected finite numbers"
        raise FormatError(message)
    if slope == 0 and inter != 0 and np.isfinite(inter):
        notes.append(f"scl_inter {inter:g} not applied, as scl_slope is 0")
    return NiftiHeader("nifti", fields, _shape(fields["dim"], notes), dtype, samples, start, separate, tuple(notes))


def _analyze(raw: bytes) -> NiftiHeader:
    """Analyze 7.5, with the scale and the origin that SPM writes into unused fields."""
    fields = _fields(raw, _ANALYZE, 348)
    if fields["orient"] in _PLANES:
        plane = _PLANES[fields["orient"]]
        message = (
            f"Analyze file with orient code {fields['orient']} ({plane}): only transverse is read; convert to NIfTI"
        )
        raise FormatError(message)
    dtype, samples = _type(fields)
    if samples > 1:
        message = "Analyze file with colors: their order is not defined; convert it to NIfTI"
        raise FormatError(message)
    slope, inter = fields["scl"]
    slope, inter = (slope, inter if np.isfinite(inter) else 0.0) if np.isfinite(slope) and slope else (1.0, 0.0)
    fields |= {"scl": (slope, inter), "codes": (0, 0), "intent": 0}
    notes = ["Analyze 7.5 does not state where left is: its orientation is a guess (first axis to the left)"]
    if (slope, inter) != (1.0, 0.0):
        notes.append(f"values scaled by the SPM fields of the Analyze header (slope {slope:g}, intercept {inter:g})")
    shape = _shape(fields["dim"], [])
    start = _start(abs(fields["vox_offset"]), True, 348)
    return NiftiHeader("analyze", fields, shape, dtype, samples, start, True, tuple(notes))


def _fields(raw: bytes, table: dict[str, tuple[str, int]], size: int) -> dict[str, Any]:
    """All fields of a table; dim[0] determines the byte order."""
    form, offset = table["dim"]
    orders = [order for order in "<>" if 1 <= struct.unpack_from(order + form, raw, offset)[0] <= 7]
    if not orders:
        count = struct.unpack_from("<" + form, raw, offset)[0]
        message = f"not readable as NIfTI: {count} axes (dim[0]): expected 1 to 7"
        raise FormatError(message)
    order = orders[0]
    fields: dict[str, Any] = {"order": order, "notes": []}
    for name, (form, offset) in table.items():
        values = struct.unpack_from(order + form, raw, offset)
        fields[name] = values[0] if len(values) == 1 else values
    if fields["sizeof_hdr"] != size:
        fields["notes"].append(f"sizeof_hdr is {fields['sizeof_hdr']}, {size} taken")
    return fields


def _shape(dim: tuple[int, ...], notes: list[str]) -> tuple[int, ...]:
    lengths = [dim[axis] if axis <= dim[0] else 1 for axis in range(1, 8)]
    if any(length < 0 for length in lengths):
        message = f"not readable as NIfTI: negative length in shape {times(lengths)}"
        raise FormatError(message)
    if 0 in lengths[:3]:
        message = f"zero-size: shape {times(lengths[:3])}"
        raise FormatError(message)
    if dim[0] == 1 and all(length == 1 for length in lengths[1:]):
        message = f"one axis of {lengths[0]} values: no picture and no volume"
        raise FormatError(message)
    if 0 in lengths[3:]:
        notes.append("length 0 of an axis after the third: 1 taken")
    return tuple(max(1, length) for length in lengths)


def _type(fields: dict[str, Any]) -> tuple[np.dtype[Any], int]:
    code = fields["datatype"]
    if code not in TYPES:
        what = _UNREAD_TYPES.get(code, "a type that NIfTI does not define")
        message = (
            f"not readable as NIfTI: voxels of datatype {code} ({what}): expected whole or real numbers, or RGB colors"
        )
        raise FormatError(message)
    form, samples = TYPES[code]
    return np.dtype(form).newbyteorder(fields["order"]), samples


def _start(value: float, separate: bool, size: int) -> int:
    """First byte of the voxels; 0 if the header does not state it."""
    if not np.isfinite(value) or value != int(value) or value < 0:
        message = f"not readable as NIfTI: vox_offset {value:g}: expected a whole number of bytes"
        raise FormatError(message)
    if not separate and 0 < value < size:
        message = f"not readable as NIfTI: vox_offset {value:g} lies inside the header of {size} bytes"
        raise FormatError(message)
    return int(value)
