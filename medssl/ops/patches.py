"""Cut images into the cells of a regular grid, and put them back together; any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch

from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def cells_of(size: Sequence[int], cell: Sequence[int], *, noun: str = "size") -> tuple[int, ...]:
    """Number of cells per axis of an image of ``size`` voxels cut into cells of ``cell`` voxels.

    >>> cells_of((96, 64), (32, 16))
    (3, 4)

    Args:
        size: Voxels per axis.
        cell: Voxels of one cell per axis.
        noun: Name of ``size`` in messages.

    Raises:
        UserError: The numbers of axes differ, or an axis is not a multiple of its cell; names the nearest valid sizes.
    """
    size, cell = tuple(size), tuple(cell)
    if len(size) != len(cell):
        message = f"{noun} {size} has {len(size)} axes but cells {cell} have {len(cell)}: give one number per axis"
        raise UserError(message)
    if min((*size, *cell)) < 1:
        message = f"{noun} {size} and cells {cell} must be at least 1 voxel on every axis"
        raise UserError(message)
    if any(voxels % side for voxels, side in zip(size, cell, strict=True)):
        lower = tuple(max(voxels // side, 1) * side for voxels, side in zip(size, cell, strict=True))
        upper = tuple(-(-voxels // side) * side for voxels, side in zip(size, cell, strict=True))
        nearest = f"{lower}" if lower == upper else f"{lower} or {upper}"
        message = f"{noun} {size} is not a multiple of {cell}: nearest sizes that work are {nearest}"
        raise UserError(message)
    return tuple(voxels // side for voxels, side in zip(size, cell, strict=True))


def patchify(image: Float[Tensor, "B C *s"], cell: Sequence[int]) -> Float[Tensor, "B N P"]:
    """Cuts an image into cells, one row for each cell.

    Args:
        image: Image.
        cell: Voxels of one cell per spatial axis.

    Returns:
        N cells in row-major order; P = C * prod(cell) values, channels outermost, then the cell's voxels row-major.
    """
    cells = cells_of(image.shape[2:], cell)
    ndim = len(cells)
    split = image.reshape(*image.shape[:2], *(side for pair in zip(cells, cell, strict=True) for side in pair))
    grid, inside = range(2, 2 + 2 * ndim, 2), range(3, 3 + 2 * ndim, 2)
    return split.permute(0, *grid, 1, *inside).reshape(len(image), prod(cells), image.shape[1] * prod(cell))


def unpatchify(patches: Float[Tensor, "B N P"], cell: Sequence[int], *, size: Sequence[int]) -> Float[Tensor, "B C *s"]:
    """Puts the rows of :func:`patchify` back together.

    Args:
        patches: Rows in the order of ``patchify``.
        cell: Voxels of one cell per spatial axis.
        size: Voxels of the image per spatial axis.

    Raises:
        UserError: The shape of ``patches`` does not fit an image of that size.
    """
    cells = cells_of(size, cell)
    ndim, volume = len(cells), prod(cell)
    if patches.shape[1] != prod(cells) or patches.shape[2] % volume:
        message = (
            f"patches of shape {tuple(patches.shape)} do not fit size {tuple(size)} in cells {tuple(cell)}: "
            f"expected {prod(cells)} rows of a multiple of {volume} values"
        )
        raise UserError(message)
    channels = patches.shape[2] // volume
    split = patches.reshape(len(patches), *cells, channels, *cell)
    pairs = (axis for pair in zip(range(1, 1 + ndim), range(2 + ndim, 2 + 2 * ndim), strict=True) for axis in pair)
    return split.permute(0, 1 + ndim, *pairs).reshape(len(patches), channels, *size)


def patch_moments(
    patches: Float[Tensor, "*b P"], counted: Bool[Tensor, "*b P"]
) -> tuple[Float[Tensor, "*b 1"], Float[Tensor, "*b 1"]]:
    """Mean and unbiased variance of each row over its counted values.

    Both are 0 for a row without counted values, and the variance of a single value is 0.
    """
    count = counted.sum(-1, keepdim=True)
    mean = torch.where(counted, patches, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(counted, (patches - mean).square(), 0.0).sum(-1, keepdim=True)
    return mean, squares / (count - 1).clamp(min=1)
