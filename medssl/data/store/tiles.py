"""Tiles of a slide: a grid at the resolution of the store, the share of tissue in each, places in pixels of level 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from medssl.types import TileRule


@dataclass(frozen=True)
class Tiles:
    """Tiles of one slide.

    Attributes:
        start: [N, 2] first row and column of each tile in the stored slide, that is, at the resolution of the store.
        share: [N] share of each tile that is tissue, 0 to 1.
        coords: [N, 2] column and row (x, y) of its upper left corner in pixels of level 0.
        size: Rows and columns of a tile at the resolution of the store.
        level0: Rows and columns that a tile covers in pixels of level 0, rounded.
    """

    start: Int[np.ndarray, "N 2"]
    share: Float[np.ndarray, "N"]
    coords: Int[np.ndarray, "N 2"]
    size: tuple[int, int]
    level0: tuple[int, int]

    def __len__(self) -> int:
        return len(self.start)


def check_rule(rule: TileRule) -> None:
    """Refuses a rule whose numbers are out of range.

    Raises:
        UserError: Names the key.
    """
    key = "preprocess.tiles"
    if rule.mpp is not None and not 0.05 <= rule.mpp <= 64:
        message = "is no resolution"
        raise UserError(message, key=f"{key}.mpp", got=rule.mpp, expected="0.05 to 64 micrometers a pixel")
    if rule.size < 16:
        message = "is too small for a tile"
        raise UserError(message, key=f"{key}.size", got=rule.size, expected="16 or more pixels")
    if not 0 <= rule.overlap < rule.size:
        message = f"must be 0 or more and below preprocess.tiles.size, which is {rule.size}"
        raise UserError(message, key=f"{key}.overlap", got=rule.overlap)
    if not 0 <= rule.smallest_tissue <= 1:
        message = "is no share"
        raise UserError(message, key=f"{key}.smallest_tissue", got=rule.smallest_tissue, expected="0 to 1")
    if not 50 <= rule.quality <= 100:
        message = "is no JPEG quality"
        raise UserError(message, key=f"{key}.quality", got=rule.quality, expected="50 to 100")


def grid_starts(shape: tuple[int, int], size: int, step: int) -> Int[np.ndarray, "N 2"]:
    """First row and column of each tile that lies inside a slide, row by row.

    There are floor((rows - size) / step + 1) * floor((columns - size) / step + 1) of them.

    Raises:
        UserError: A tile is larger than the slide.
    """
    if min(shape) < size:
        message = f"the slide has {shape[0]} x {shape[1]} pixels at this resolution, and a tile {size} x {size}"
        hint = "Take smaller tiles (preprocess.tiles.size) or a finer resolution (preprocess.tiles.mpp)"
        raise UserError(message, hint=hint)
    rows, columns = (np.arange(0, n - size + 1, step, dtype=np.int64) for n in shape)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def shares(
    mask: Bool[np.ndarray, "h w"],
    start: Float[np.ndarray, "N 2"],
    size: tuple[float, float],
) -> Float[np.ndarray, "N"]:
    """Share of True in rectangles of a mask, exact also where they begin and end within its pixels.

    Args:
        mask: The mask.
        start: First row and column of each rectangle in pixels of the mask.
        size: Rows and columns of all, in pixels of the mask; what lies outside of it is not True.
    """
    totals = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.float64)
    np.cumsum(np.cumsum(mask, 0, dtype=np.float64), 1, out=totals[1:, 1:])
    top, left = start[:, 0], start[:, 1]
    bottom, right = top + size[0], left + size[1]
    inside = _at(totals, bottom, right) - _at(totals, top, right) - _at(totals, bottom, left) + _at(totals, top, left)
    share: np.ndarray = np.clip(inside / (size[0] * size[1]), 0.0, 1.0)
    return share


def tissue_tiles(
    mask: Bool[np.ndarray, "h w"],
    mask_mm: tuple[float, float],
    grid: tuple[tuple[int, int], tuple[float, float], tuple[float, float]],
    rule: TileRule,
) -> Tiles:
    """The tiles of a slide that hold enough tissue.

    Args:
        mask: Tissue on a thumbnail whose first pixel's corner is that of the slide.
        mask_mm: Distance of its rows and columns in mm.
        grid: Shape of the stored slide, distance of its rows and columns in mm, and that of level 0.
        rule: Size, overlap, smallest share of tissue.

    Raises:
        UserError: A tile is larger than the slide.
    """
    shape, spacing_mm, level0_mm = grid
    start = grid_starts(shape, rule.size, rule.size - rule.overlap)
    factor = np.array(spacing_mm) / np.array(mask_mm)
    share = shares(mask, start * factor, (rule.size * factor[0], rule.size * factor[1]))
    enough = (share >= rule.smallest_tissue - 1e-9) & (share > 1e-9)
    return placed(start[enough], share[enough], (spacing_mm, level0_mm), rule.size)


def placed(
    start: Int[np.ndarray, "N 2"],
    share: Float[np.ndarray, "N"],
    spacings_mm: tuple[tuple[float, float], tuple[float, float]],
    size: int,
) -> Tiles:
    """Tiles with their places in pixels of level 0.

    Args:
        start: First row and column of each at the resolution of the store.
        share: Share of tissue of each.
        spacings_mm: Distance of rows and columns in the store, and at level 0.
        size: Rows and columns of a tile in the store.
    """
    factor = np.array(spacings_mm[0]) / np.array(spacings_mm[1])
    coords = np.rint(start * factor).astype(np.int64)[:, ::-1]
    level0 = (max(1, round(size * factor[0])), max(1, round(size * factor[1])))
    return Tiles(start.astype(np.int64), share.astype(np.float32), np.ascontiguousarray(coords), (size, size), level0)


def _at(totals: Float[np.ndarray, "h w"], rows: Float[np.ndarray, "N"], columns: Float[np.ndarray, "N"]) -> np.ndarray:
    """Summed areas at places between pixels: within a pixel they grow linearly along both axes."""
    rows, columns = np.clip(rows, 0, totals.shape[0] - 1), np.clip(columns, 0, totals.shape[1] - 1)
    row, column = (np.minimum(x.astype(np.int64), n - 2) for x, n in zip((rows, columns), totals.shape, strict=True))
    down, along = rows - row, columns - column
    upper = totals[row, column] * (1 - along) + totals[row, column + 1] * along
    lower = totals[row + 1, column] * (1 - along) + totals[row + 1, column + 1] * along
    at: np.ndarray = upper * (1 - down) + lower * down
    return at
