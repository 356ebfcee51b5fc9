"""Slices of a DICOM series, the stacks that they make, and the form in which the index stores them.

All identifiers are hashed: nothing here names a patient.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from medssl.types import Grid, Kind, Status, ValueDomain

_STACKED = ("CT", "MR", "PT", "NM")


@dataclass(frozen=True)
class Slice:
    """One slice (or one picture) of a DICOM series; all identifiers are hashed.

    Attributes:
        instance: Digest of the SOP instance and the frame.
        shape: Rows, columns, samples a pixel.
        spacing_mm: Distance between rows and between columns, mm; None if it is not known.
        pose: Direction of a row (3), direction of a column (3) and position of the first pixel (3), LPS mm; None if it
            is not known.
        slice_attributes: Attributes of this slice alone that may separate the volumes of a series, by keyword; "number"
            is InstanceNumber.
        facts: Facts of the file, safe to list; "apart" holds more attributes, see ``attributes``.
    """

    path: str
    frame: int | None
    instance: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float] | None
    pose: tuple[float, ...] | None
    slice_attributes: dict[str, Any]
    facts: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        """All attributes that may separate the volumes of the series."""
        shared: dict[str, Any] = self.facts.get("apart", {})
        return shared | self.slice_attributes

    @property
    def kind(self) -> Kind:
        """Slices of CT, MR, PET and all slices with a pose belong to volumes; others are images."""
        located = self.pose is not None or self.facts["modality"] in _STACKED
        return "volume" if located and "frames" not in self.slice_attributes else "image"

    @property
    def value_domain(self) -> ValueDomain:
        """Value domain, by modality and number of samples."""
        if self.shape[2] == 3:
            return "rgb"
        if self.facts.get("capture"):
            return "gray"  # a derived picture: its values need not be those of its modality
        if self.facts["modality"] == "CT":
            return "hu" if self.facts.get("unit", "HU") == "HU" else "gray"
        return "mr" if self.facts["modality"] == "MR" else "gray"

    @property
    def is_film(self) -> bool:
        """Whether this slice stands for all frames of a film."""
        return "frames" in self.slice_attributes

    @property
    def file_name(self) -> str:
        """Name of the file, without its folders."""
        return PurePath(self.path).name


@dataclass(frozen=True)
class Stack:
    """Slices of one scan.

    Attributes:
        slices: The slices, in order.
        status: Whether the scan can be used, and notes.
        name: Name of the stack, unique in its series.
        grid: Grid of the scan; None if it cannot be used.
        volume: Number of the volume, and number of volumes with its grid.
    """

    slices: tuple[Slice, ...]
    status: Status
    name: str = "0"
    grid: Grid | None = None
    volume: tuple[int, int] = (1, 1)


def to_json(slices: Sequence[Slice]) -> tuple[str, str]:
    """The slices of one file as JSON: the values of each slice, and the facts that they share."""
    rows = [
        [slice_.frame, slice_.instance, slice_.shape, slice_.spacing_mm, slice_.pose, slice_.slice_attributes]
        for slice_ in slices
    ]
    return json.dumps(rows, separators=(",", ":")), json.dumps(slices[0].facts, separators=(",", ":"))


def from_json(rows: str, facts: str, path: str) -> list[Slice]:
    """Inverse of ``to_json``."""
    shared = json.loads(facts)
    return [
        Slice(
            path=path,
            frame=frame,
            instance=instance,
            shape=tuple(shape),
            spacing_mm=tuple(spacing_mm) if spacing_mm else None,
            pose=tuple(pose) if pose else None,
            slice_attributes=slice_attributes,
            facts=shared,
        )
        for frame, instance, shape, spacing_mm, pose, slice_attributes in json.loads(rows)
    ]
