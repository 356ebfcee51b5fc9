"""Copies: slices with equal attributes, places and pixels, also if their identifiers differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from medssl.data.formats.dicom.attributes import DESCRIPTIONS
from medssl.data.formats.dicom.slices import Slice

SamePixels = Callable[[Slice, Slice], bool]
Copies = dict[tuple[str, int | None], list[str]]  # file and frame of a slice -> names of the files that repeat it
_SHOWN = 5


def without_copies(slices: Sequence[Slice], same_pixels: SamePixels) -> tuple[list[Slice], Copies]:
    """Removes slices that are copies of an earlier one.

    Args:
        slices: Slices; of several copies the first is kept.
        same_pixels: Whether two slices have equal pixels; called only for slices with equal headers in one place.

    Returns:
        The remaining slices, and the names of the removed files by remaining slice.
    """
    groups: dict[Hashable, list[Slice]] = {}
    copies: Copies = {}
    for slice_ in slices:
        group = groups.setdefault(_key(slice_), [])
        first = next((earlier for earlier in group if same_pixels(earlier, slice_)), None)
        if first is None:
            group.append(slice_)
        else:
            copies.setdefault((first.path, first.frame), []).append(slice_.file_name)
    return [slice_ for group in groups.values() for slice_ in group], copies


def dropped_note(copies: Copies, slices: Iterable[Slice]) -> str:
    """Note about the number of removed copies of these slices, and their files; "" if there are none."""
    dropped: Counter[str] = Counter()
    for slice_ in slices:
        for _ in copies.get((slice_.path, slice_.frame), ()):
            dropped[slice_.file_name] += 1
    if not dropped:
        return ""
    total = sum(dropped.values())
    names = [f"{name} x{count}" if count > 1 else name for name, count in sorted(dropped.items())]
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{total} {'copy' if total == 1 else 'copies'} dropped ({shown})"


def _key(slice_: Slice) -> Hashable:
    """Key that is equal for slices that may be copies; pictures without a place must also share their identifier."""
    names = ("subject", "issuer", "study", "reference", "modality", "name")
    identifier = slice_.instance if slice_.pose is None else ""
    pose = slice_.pose and tuple(round(value, 4) for value in slice_.pose)
    facts = tuple(slice_.facts.get(name) for name in names)
    attributes = {name: value for name, value in slice_.attributes.items() if name not in DESCRIPTIONS}
    return slice_.shape, slice_.spacing_mm, pose, identifier, facts, _hashable(attributes)


def _hashable(attributes: dict[str, Any]) -> Hashable:
    return tuple(sorted((name, str(value)) for name, value in attributes.items()))
