"""Weights that nearly fit: made for another number of channels, of axes, or for another grid of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

EXTRA_TOKENS = range(6)  # class and register tokens that stand before the patches in a table of positions


def adapt_weight(
    value: Tensor, target: Tensor, *, is_first_layer: bool, name: str, axes: tuple[int, int]
) -> Tensor | None:
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
        target: What the module holds.
        is_first_layer: It belongs to the first layer, whose channels may differ.
        name: Key of the module.
        axes: Spatial axes of the images that the file's network takes, and of those that the module takes.
    """
    if is_position_table(name, value, target) and (value.shape != target.shape or axes[0] != axes[1]):
        return resize_positions(value, target.shape[1], axes)
    if (value.ndim, target.ndim) == (4, 5) and value.mT.shape[2:] == target.shape[2:-1]:
        value = in_planes(value / target.shape[-1], target.shape[-1])
    if is_first_layer and value.ndim == target.ndim and value.shape[0] == target.shape[0]:
        value = adapt_channels(value, target.shape[1])
    return value if value.shape == target.shape else None


def adapt_channels(weight: Tensor, count: int) -> Tensor:
    """First-layer weights for another number of input channels: equal channels get the response they had."""
    if weight.shape[1] == count:
        return weight
    total = weight.sum(1, keepdim=True) / count
    return total.repeat_interleave(count, dim=1)


def in_planes(image: Tensor, depth: int) -> Tensor:
    """Something of an image [..., row, column] in each of ``depth`` planes of a volume [..., column, row, plane]."""
    return image.mT[..., None].repeat_interleave(depth, dim=-1)


def resize_positions(table: Tensor, count: int, axes: tuple[int, int]) -> Tensor | None:
    """A table [1, N, C] for another square or cubic grid of patches; tokens that stand before the patches keep theirs.

    Squares are resampled bicubically, with a filter against aliasing; cubes linearly, and by means where they shrink.
    """
    source_axes, target_axes = axes
    for extra_tokens in EXTRA_TOKENS if source_axes <= target_axes else ():
        source_side, target_side = (
            _side(table.shape[1] - extra_tokens, source_axes),
            _side(count - extra_tokens, target_axes),
        )
        if not (source_side and target_side):
            continue
        grid = table[:, extra_tokens:].reshape(1, *(source_side,) * source_axes, -1).movedim(-1, 1).float()
        mode = "bicubic" if source_axes == 2 else "area" if target_side < source_side else "trilinear"
        resized = F.interpolate(grid, (target_side,) * source_axes, mode=mode, antialias=source_axes == 2).to(
            table.dtype
        )
        resized = in_planes(resized, target_side) if source_axes < target_axes else resized
        return torch.cat((table[:, :extra_tokens], resized.flatten(2).mT), 1)
    return None


def assumed_grid(axes: int) -> str:
    """What a table that was made to fit was taken for: its number of rows does not tell the sides of its grid."""
    return f"positions: assuming a {'square' if axes == 2 else 'cubic'} grid of patches"


def is_position_table(name: str, value: Tensor, target: Tensor) -> bool:
    """Whether two tensors of one key are tables of positions [1, N, C]."""
    same_layout = value.ndim == target.ndim == 3 and value.shape[::2] == target.shape[::2]
    return same_layout and "pos" in name.rpartition(".")[2]


def _side(count: int, axes: int) -> int:
    """Patches along each axis of a grid of equal sides; 0 where there is no such grid."""
    side = round(max(0, count) ** (1 / axes))
    return side if side**axes == count else 0
