"""Classes on the grid of a scan, filled segment by segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medssl.types import Grid


@dataclass
class ClassMap:
    """Classes on the grid of a scan [i, j, k], filled segment by segment."""

    array: np.ndarray
    notes: list[str]
    overlap: int = 0  # voxels that two classes claim
    outside: int = 0  # labeled voxels outside of the scan

    @classmethod
    def empty(cls, grid: Grid, classes: Mapping[int, int]) -> ClassMap:
        """A map of background; 8 bits if every class fits, else 32 bits."""
        small = all(0 <= value < 256 for value in classes.values())
        return cls(np.zeros(grid.shape, np.uint8 if small else np.int32), [])

    def put(self, voxels: np.ndarray, values: np.ndarray | int) -> None:
        """Sets the class of ``voxels`` [N, 3]; counts voxels that already have another class, and those outside."""
        inside = ((voxels >= 0) & (voxels < self.array.shape)).all(axis=1)
        self.outside += int((~inside).sum())
        index = tuple(voxels[inside].T)
        new_values = values[inside] if isinstance(values, np.ndarray) else values
        old_values = self.array[index]
        self.overlap += int(((old_values != 0) & (old_values != new_values)).sum())
        self.array[index] = new_values
