"""Tiles on the grid that their coordinates span."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

LARGEST = 2**22  # cells of a grid; beyond that gaps between tiles are closed


class GridPositions(nn.Module):
    """Adds depthwise convolutions of 7, 5 and 3 tiles on the grid; where no tile is there are zeros.

    Args:
        width: Features of a tile.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, tiles: Float[Tensor, "N W"], coords: Int[Tensor, "N 2"]) -> Float[Tensor, "N W"]:
        """Returns the tiles with their surroundings."""
        columns, rows = grid_places(coords).unbind(1)
        height, width = int(rows.max()) + 1, int(columns.max()) + 1
        cells = rows * width + columns
        grid = tiles.new_zeros(height * width, tiles.shape[1]).index_add(0, cells, tiles)
        image = grid.T.reshape(1, -1, height, width)
        around = sum(layer(image) for layer in self.convolutions)
        assert isinstance(around, torch.Tensor)
        added: Tensor = around.flatten(2)[0].T[cells]
        return tiles + added


def grid_places(coords: Int[Tensor, "N 2"]) -> Int[Tensor, "N 2"]:
    """Column and row of each tile, from 0: its distance from the first in units of the smallest distance per axis.

    Where tiles lie so far apart that the grid would be large, gaps are closed: only the order of columns and of rows
    stays.
    """
    places = torch.stack([steps_of(axis) for axis in coords.unbind(1)], 1)
    if int((places.amax(0) + 1).prod()) <= LARGEST:
        return places
    return torch.stack([torch.unique(axis, return_inverse=True)[1] for axis in coords.unbind(1)], 1)


def steps_of(axis: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """Number of the smallest distances that each coordinate is from the lowest."""
    distances = torch.unique(axis).diff()
    pitch = int(distances.min()) if len(distances) else 1
    return ((axis - axis.min()).double() / pitch).round().long()


def raster_order(coords: Int[Tensor, "N 2"]) -> Int[Tensor, "N"]:
    """Places of the tiles row by row, from left to right."""
    by_column = coords[:, 0].argsort(stable=True)
    return by_column[coords[by_column, 1].argsort(stable=True)]
