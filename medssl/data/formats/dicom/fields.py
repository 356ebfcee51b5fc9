"""Values of DICOM elements, parsed from their bytes, to tolerate wrong value representations and unusual numbers.

Writers store ``PixelSpacing`` as text of several kinds (UT, LO, UN), as binary numbers (FD), with decimal commas, with
spaces, or longer than the standard allows. Identifiers may have letters that are not in their character set.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

_BINARY = {
    "FL": "f", "OF": "f", "FD": "d", "OD": "d", "US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q",
}  # fmt: skip


def numbers(source: Dataset, tag: int, count: int | None = None) -> tuple[float, ...] | None:
    """The values of an element as numbers.

    Args:
        source: Data set or item of a sequence.
        tag: Tag of the element.
        count: Required number of values; None accepts any number.

    Returns:
        The numbers; None if the element is missing or empty, or does not hold ``count`` numbers.
    """
    element = source.get_item(tag)
    if element is None or element.value is None:
        return None
    value: Any = element.value
    if isinstance(value, bytes):
        values = (
            _binary(element, tag, value) if _vr(element, tag) in _BINARY else _texts_to_numbers(_words(value), count)
        )
    elif isinstance(value, str):
        values = _texts_to_numbers(_split(value), count)
    else:
        values = _texts_to_numbers(
            [str(entry) for entry in value] if hasattr(value, "__iter__") else [str(value)], count
        )
    if not values or (count is not None and len(values) != count):
        return None
    return values


def number(source: Dataset, tag: int) -> float | None:
    """The first value of an element as a finite number; None if there is none."""
    values = numbers(source, tag)
    return values[0] if values and math.isfinite(values[0]) else None


def texts(source: Dataset, tag: int) -> list[str]:
    """The values of an element as texts without padding; letters beyond ASCII are decoded as Latin-1."""
    element = source.get_item(tag)
    if element is None or element.value is None:
        return []
    value: Any = element.value
    if isinstance(value, bytes):
        vr = _vr(element, tag)
        return [f"{entry:g}" for entry in _binary(element, tag, value)] if vr in _BINARY else _words(value)
    if isinstance(value, str):
        return _split(value)
    return [str(entry).strip() for entry in value] if hasattr(value, "__iter__") else [str(value)]


def text(source: Dataset, tag: int) -> str:
    """All values of an element as one text, separated by backslashes."""
    return "\\".join(texts(source, tag))


def items(source: Dataset, tag: int) -> list[Dataset]:
    """The items of a sequence; empty if the element is not a sequence."""
    value = source[tag].value if tag in source else None
    return [item for item in value if hasattr(item, "get_item")] if isinstance(value, Iterable) else []


def identifier(dataset: Dataset, tag: int) -> str:
    """An identifier of a person, decoded by its character set, or its raw bytes if they do not fit that set.

    Identifiers that differ only in letters that cannot be decoded remain different.
    """
    element = dataset.get_item(tag)
    raw = element.value if element is not None and isinstance(element.value, bytes) else b""
    try:
        decoded = str(dataset[tag].value or "").strip() if tag in dataset else ""
    except (LookupError, ValueError):
        decoded = "\ufffd"
    if "\ufffd" not in decoded or not raw:
        return decoded
    return raw.strip(b" \0").decode("utf-8", "surrogateescape")


def _vr(element: Any, tag: int) -> str:
    vr = getattr(element, "VR", None)
    if vr not in (None, "UN"):
        return str(vr)
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "LO"


def _binary(element: Any, tag: int, value: bytes) -> tuple[float, ...]:
    code = _BINARY[_vr(element, tag)]
    size = struct.calcsize(code)
    order = "<" if getattr(element, "is_little_endian", True) else ">"
    return tuple(
        float(entry)
        for entry in struct.unpack(f"{order}{len(value) // size}{code}", value[: len(value) // size * size])
    )


def _words(value: bytes) -> list[str]:
    return _split(value.decode("latin-1"))


def _split(value: str) -> list[str]:
    words = [word.strip(" \0\t\r\n") for word in value.split("\\")]
    return words if any(words) else []


def _texts_to_numbers(words: list[str], count: int | None) -> tuple[float, ...] | None:
    if len(words) == 1 and count not in (None, 1) and "." in words[0]:
        pieces = words[0].replace(";", ",").split(",")  # "0.8,0.6"
        words = pieces if len(pieces) == count else words[0].split()
    try:
        return tuple(float(word.replace(",", ".")) for word in words)
    except ValueError:
        return None
