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
    """One slice (or one picture) of a DICOM series, all identifiers hashed.

    Attributes:
        instance: Digest of the SOP instance and the frame.
        shape: Rows, columns, samples a pixel.
        spacing_mm: Between rows, between columns; None where nothing says.
        pose: Direction of a row (3), direction of a column (3), position of the first pixel (3), LPS; None without.
        turn: Attributes of this slice alone that may tell volumes of one series apart, by keyword; "number" is
            InstanceNumber.
        about: Facts of the file, safe to list; "apart" holds more attributes, see ``attributes``.
    """

    path: str
    frame: int | None
    instance: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float] | None
    pose: tuple[float, ...] | None
    turn: dict[str, Any]
    about: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        """What may tell this slice's volume from others of its series."""
        shared: dict[str, Any] = self.about.get("apart", {})
        return shared | self.turn

    @property
    def kind(self) -> Kind:
        """Slices of CT, MR, PET and all else that has a place in space belong to volumes; the rest are images."""
        located = self.pose is not None or self.about["modality"] in _STACKED
        return "volume" if located and "frames" not in self.turn else "image"

    @property
    def value_domain(self) -> ValueDomain:
        """What the values mean, by modality and samples."""
        if self.shape[2] == 3:
            return "rgb"
        if self.about.get("capture"):
            return "gray"  # a derived picture: its values need not be those of its modality
        if self.about["modality"] == "CT":
            return "hu" if self.about.get("unit", "HU") == "HU" else "gray"
        return "mr" if self.about["modality"] == "MR" else "gray"

    @property
    def is_film(self) -> bool:
        """Whether this slice stands for all frames of a film."""
        return "frames" in self.turn

    @property
    def file_name(self) -> str:
        """Name of the file, without its folders."""
        return PurePath(self.path).name


@dataclass(frozen=True)
class Stack:
    """Slices that make one scan; ``name`` tells it from the others of its series; ``volume`` is number and count."""

    slices: tuple[Slice, ...]
    status: Status
    name: str = "0"
    grid: Grid | None = None
    volume: tuple[int, int] = (1, 1)


def to_json(slices: Sequence[Slice]) -> tuple[str, str]:
    """The slices of one file as JSON: what is each one's own, and what they share with their whole series."""
    own = [[one.frame, one.instance, one.shape, one.spacing_mm, one.pose, one.turn] for one in slices]
    return json.dumps(own, separators=(",", ":")), json.dumps(slices[0].about, separators=(",", ":"))


def from_json(own: str, about: str, path: str) -> list[Slice]:
    """The opposite of ``to_json``."""
    shared = json.loads(about)
    return [
        Slice(
            path=path,
            frame=frame,
            instance=instance,
            shape=tuple(shape),
            spacing_mm=tuple(spacing_mm) if spacing_mm else None,
            pose=tuple(pose) if pose else None,
            turn=turn,
            about=shared,
        )
        for frame, instance, shape, spacing_mm, pose, turn in json.loads(own)
    ]
