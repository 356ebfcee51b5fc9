"""Weights that nearly fit: made for another number of channels, of axes, or for another grid of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = range(6)  # class and register tokens that stand before the patches in a table of positions


def adapted(value: Tensor, wanted: Tensor, *, first: bool, name: str, axes: tuple[int, int]) -> Tensor | None:
    """A weight in the shape that is wanted, itself where it has it, or None where it cannot be made.

    Kernels of images become kernels of volumes by standing in every plane of the last axis, divided by their number
    (Carreira and Zisserman, Quo vadis, action recognition?, CVPR 2017), and with rows and columns exchanged: an image
    is [row, column], its columns lie along left-right; a volume is stored with axis 0 nearest to left-right and slices
    across axis 2. So a volume of equal slices gets, far from its ends, the response of the slice as
    ``data.regions.slice_axes`` cuts it; other orders of axes (``Preprocess.orientation``) do not. Tables of positions
    are interpolated (Dosovitskiy et al., ICLR 2021) where a grid of equal sides has as many rows, which is then assumed
    (512 rows are 8 x 8 x 8, or 16 x 16 x 2), and go from images to volumes as kernels do, undivided.

    Args:
        value: What the file holds.
        wanted: What the module holds.
        first: It belongs to the first layer, whose channels may differ.
        name: Key of the module.
        axes: Spatial axes of the images that the file's network takes, and of those that the module takes.
    """
    if is_table(name, value, wanted) and (value.shape != wanted.shape or axes[0] != axes[1]):
        return positions(value, wanted.shape[1], axes)
    if (value.ndim, wanted.ndim) == (4, 5) and value.mT.shape[2:] == wanted.shape[2:-1]:
        value = in_planes(value / wanted.shape[-1], wanted.shape[-1])
    if first and value.ndim == wanted.ndim and value.shape[0] == wanted.shape[0]:
        value = channels(value, wanted.shape[1])
    return value if value.shape == wanted.shape else None


def channels(weight: Tensor, count: int) -> Tensor:
    """First-layer weights for another number of input channels: equal channels get the response they had."""
    if weight.shape[1] == count:
        return weight
    total = weight.sum(1, keepdim=True) / count
    return total.repeat_interleave(count, dim=1)


def in_planes(image: Tensor, depth: int) -> Tensor:
    """Something of an image [..., row, column] in each of ``depth`` planes of a volume [..., column, row, plane]."""
    return image.mT[..., None].repeat_interleave(depth, dim=-1)


def positions(table: Tensor, count: int, axes: tuple[int, int]) -> Tensor | None:
    """A table [1, N, C] for another square or cubic grid of patches; tokens that stand before the patches keep theirs.

    Squares are resampled bicubically, with a filter against aliasing; cubes linearly, and by means where they shrink.
    """
    own, wanted = axes
    for before in PREFIXES if own <= wanted else ():
        old, new = _side(table.shape[1] - before, own), _side(count - before, wanted)
        if not (old and new):
            continue
        grid = table[:, before:].reshape(1, *(old,) * own, -1).movedim(-1, 1).float()
        mode = "bicubic" if own == 2 else "area" if new < old else "trilinear"
        resized = F.interpolate(grid, (new,) * own, mode=mode, antialias=own == 2).to(table.dtype)
        resized = in_planes(resized, new) if own < wanted else resized
        return torch.cat((table[:, :before], resized.flatten(2).mT), 1)
    return None


def assumed(axes: int) -> str:
    """What a table that was made to fit was taken for: its number of rows does not tell the sides of its grid."""
    return f"positions: assuming a {'square' if axes == 2 else 'cubic'} grid of patches"


def is_table(name: str, value: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors of one key are tables of positions [1, N, C]."""
    alike = value.ndim == wanted.ndim == 3 and value.shape[::2] == wanted.shape[::2]
    return alike and "pos" in name.rpartition(".")[2]


def _side(count: int, axes: int) -> int:
    """Patches along each axis of a grid of equal sides; 0 where there is no such grid."""
    side = round(max(0, count) ** (1 / axes))
    return side if side**axes == count else 0
