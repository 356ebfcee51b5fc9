"""Adapt weights that were trained with another number of channels or axes, or on another grid of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.transformer import resampled

if TYPE_CHECKING:
    from torch import Tensor

EXTRA_TOKENS = range(6)  # class and register tokens that stand before the patches in a table of positions


def adapt_weight(
    value: Tensor, target: Tensor, *, is_first_layer: bool, name: str, axes: tuple[int, int]
) -> Tensor | None:
    """Converts a weight to the shape of the module's weight.

    Kernels, 2D to 3D: the kernel is repeated in every plane of the last axis and divided by the number of planes
    (Carreira and Zisserman, Quo vadis, action recognition?, CVPR 2017). Rows and columns are exchanged, since images
    are [row, column] with columns along left-right, and volumes are stored with axis 0 nearest to left-right and
    slices across axis 2. A volume of equal slices then has, far from its ends, the response of the slice as
    ``data.loading.crops.slice_axes`` cuts it. This does not hold for other orders of axes
    (``Preprocess.orientation``).

    Tables of positions are interpolated (Dosovitskiy et al., ICLR 2021). A table whose number of rows is a square or a
    cube is assumed to be a grid of equal sides (512 rows are 8 x 8 x 8, but could be 16 x 16 x 2). From 2D to 3D they
    are repeated as kernels are, without division.

    Args:
        value: Weight in the file.
        target: Weight of the module.
        is_first_layer: The weight belongs to the first layer, whose input channels may differ.
        name: Key of the weight in the module.
        axes: Number of spatial axes of the file's network, and of the module.

    Returns:
        The weight in the target's shape (``value`` itself where it has that shape); None where it cannot be converted.
    """
    if is_position_table(name, value, target) and (value.shape != target.shape or axes[0] != axes[1]):
        return resize_positions(value, target.shape[1], axes)
    if (value.ndim, target.ndim) == (4, 5) and value.mT.shape[2:] == target.shape[2:-1]:
        value = in_planes(value / target.shape[-1], target.shape[-1])
    if is_first_layer and value.ndim == target.ndim and value.shape[0] == target.shape[0]:
        value = adapt_channels(value, target.shape[1])
    return value if value.shape == target.shape else None


def adapt_channels(weight: Tensor, count: int) -> Tensor:
    """Converts first-layer weights to ``count`` input channels; an image of equal channels keeps its response."""
    if weight.shape[1] == count:
        return weight
    total = weight.sum(1, keepdim=True) / count
    return total.repeat_interleave(count, dim=1)


def in_planes(image: Tensor, depth: int) -> Tensor:
    """Repeats an array of an image [..., row, column] in ``depth`` planes of a volume [..., column, row, plane]."""
    return image.mT[..., None].repeat_interleave(depth, dim=-1)


def resize_positions(table: Tensor, count: int, axes: tuple[int, int]) -> Tensor | None:
    """Resamples a table of positions [1, N, C] to ``count`` rows of another square or cubic grid of patches.

    Rows of class and register tokens, which come first, are kept. Squares are resampled bicubically with
    anti-aliasing; cubes trilinearly, or by means where they shrink. None where no square or cubic grid fits.
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
        resized = resampled(grid, (target_side,) * source_axes).to(table.dtype)
        resized = in_planes(resized, target_side) if source_axes < target_axes else resized
        return torch.cat((table[:, :extra_tokens], resized.flatten(2).mT), 1)
    return None


def assumed_grid(axes: int) -> str:
    """Note about a resampled table: its number of rows does not determine the sides of its grid."""
    return f"positions: assuming a {'square' if axes == 2 else 'cubic'} grid of patches"


def is_position_table(name: str, value: Tensor, target: Tensor) -> bool:
    """Whether two tensors of one key are tables of positions [1, N, C]."""
    same_layout = value.ndim == target.ndim == 3 and value.shape[::2] == target.shape[::2]
    return same_layout and "pos" in name.rpartition(".")[2]


def _side(count: int, axes: int) -> int:
    """Number of patches along each axis of a grid of equal sides; 0 where there is no such grid."""
    side = round(max(0, count) ** (1 / axes))
    return side if side**axes == count else 0
