"""Copies: slices of equal attributes, in one place, with equal pixels, whatever their identifiers say."""

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
    """The slices without those that repeat an earlier one.

    Args:
        slices: In the order in which the first of several copies is to stay.
        same_pixels: Asked only for slices of equal headers in one place.
    """
    groups: dict[Hashable, list[Slice]] = {}
    copies: Copies = {}
    for one in slices:
        alike = groups.setdefault(_key(one), [])
        first = next((other for other in alike if same_pixels(other, one)), None)
        if first is None:
            alike.append(one)
        else:
            copies.setdefault((first.path, first.frame), []).append(one.file_name)
    return [one for alike in groups.values() for one in alike], copies


def dropped_note(copies: Copies, slices: Iterable[Slice]) -> str:
    """How many copies of these slices were dropped, and of which files; nothing where none were."""
    dropped: Counter[str] = Counter()
    for one in slices:
        for _ in copies.get((one.path, one.frame), ()):
            dropped[one.file_name] += 1
    if not dropped:
        return ""
    total = sum(dropped.values())
    names = [f"{name} x{count}" if count > 1 else name for name, count in sorted(dropped.items())]
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{total} {'copy' if total == 1 else 'copies'} dropped ({shown})"


def _key(one: Slice) -> Hashable:
    """Equal for slices that may be copies: pictures without a place must share their identifier, too."""
    names = ("subject", "issuer", "study", "reference", "modality", "name")
    identifier = one.instance if one.pose is None else ""
    place = one.pose and tuple(round(value, 4) for value in one.pose)
    facts = tuple(one.about.get(name) for name in names)
    attributes = {name: value for name, value in one.attributes.items() if name not in DESCRIPTIONS}
    return one.shape, one.spacing_mm, place, identifier, facts, _frozen(attributes)


def _frozen(attributes: dict[str, Any]) -> Hashable:
    return tuple(sorted((name, str(value)) for name, value in attributes.items()))
