"""Weights that nearly fit: made for another number of channels, of axes, or for another grid of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = range(6)  # class and register tokens that stand before the patches in a table of positions


def adapted(value: Tensor, wanted: Tensor, *, first: bool, name: str, axes: int) -> Tensor | None:
    """A weight in the shape that is wanted, or None where it cannot be made.

    Kernels of images become kernels of volumes by standing in every plane of the last axis, divided by their number
    (Carreira and Zisserman, Quo vadis, action recognition?, CVPR 2017): a volume of equal slices gets the response of
    the slice. Tables of positions are interpolated (Dosovitskiy et al., ICLR 2021) where all sides of their grids are
    equal: of other grids the number of rows does not tell the sides.

    Args:
        value: What the file holds.
        wanted: What the module holds.
        first: It belongs to the first layer, whose channels may differ.
        name: Key of the module.
        axes: Spatial axes of the images that the module takes.
    """
    if is_table(name, value, wanted):
        return positions(value, wanted.shape[1], axes)
    if wanted.ndim >= 4 and value.ndim == wanted.ndim - 1 and value.shape[2:] == wanted.shape[2:-1]:
        value = inflated(value, wanted.shape[-1])
    if first and value.ndim == wanted.ndim and value.shape[0] == wanted.shape[0]:
        value = channels(value, wanted.shape[1])
    return value if value.shape == wanted.shape else None


def channels(weight: Tensor, count: int) -> Tensor:
    """First-layer weights for another number of input channels: equal channels get the response they had."""
    if weight.shape[1] == count:
        return weight
    total = weight.sum(1, keepdim=True) / count
    return total.repeat_interleave(count, dim=1)


def inflated(weight: Tensor, depth: int) -> Tensor:
    """Kernels with one axis more, of ``depth`` equal planes."""
    return (weight[..., None] / depth).repeat_interleave(depth, dim=-1)


def positions(table: Tensor, count: int, axes: int) -> Tensor | None:
    """A table [1, N, C] for another square or cubic grid of patches; tokens that stand before the patches keep theirs.

    Squares are resampled bicubically, with a filter against aliasing; cubes linearly, and by means where they shrink.
    """
    for before in PREFIXES:
        old, new = _side(table.shape[1] - before, axes), _side(count - before, axes)
        if not (old and new):
            continue
        grid = table[:, before:].reshape(1, *(old,) * axes, -1).movedim(-1, 1).float()
        mode = "bicubic" if axes == 2 else "area" if new < old else "trilinear"
        resized = F.interpolate(grid, (new,) * axes, mode=mode, antialias=axes == 2).to(table.dtype)
        return torch.cat((table[:, :before], resized.flatten(2).mT), 1)
    return None


def is_table(name: str, value: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors of one key are tables of positions [1, N, C] of other numbers of patches."""
    alike = value.ndim == wanted.ndim == 3 and value.shape[::2] == wanted.shape[::2]
    return alike and "pos" in name.rpartition(".")[2]


def _side(count: int, axes: int) -> int:
    """Patches along each axis of a grid of equal sides; 0 where there is no such grid."""
    side = round(max(0, count) ** (1 / axes))
    return side if side**axes == count else 0
