"""Weights that nearly fit: made for another number of channels, of axes, or for another grid of patches."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = range(6)  # class and register tokens that stand before the patches in a table of positions


def adapted(value: Tensor, wanted: Tensor, *, first: bool, name: str) -> Tensor | None:
    """A weight in the shape that is wanted, or None where it cannot be made.

    Kernels of images become kernels of volumes by standing in every plane of the last axis, divided by their number
    (Carreira and Zisserman, Quo vadis, action recognition?, CVPR 2017): a volume of equal slices gets the response of
    the slice. Square tables of positions are interpolated (Dosovitskiy et al., ICLR 2021).

    Args:
        value: What the file holds.
        wanted: What the module holds.
        first: It belongs to the first layer, whose channels may differ.
        name: Key of the module.
    """
    if _is_table(name, value, wanted):
        return positions(value, wanted.shape[1])
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


def positions(table: Tensor, count: int) -> Tensor | None:
    """A table [1, N, C] for another square grid of patches; tokens that stand before the patches keep theirs."""
    for before in PREFIXES:
        old, new = isqrt(table.shape[1] - before), isqrt(count - before)
        if old * old == table.shape[1] - before and new * new == count - before and old and new:
            grid = table[:, before:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
            resized = F.interpolate(grid.float(), (new, new), mode="bicubic", antialias=True).to(table.dtype)
            patches = resized.permute(0, 2, 3, 1).reshape(1, count - before, -1)
            return torch.cat((table[:, :before], patches), 1)
    return None


def _is_table(name: str, value: Tensor, wanted: Tensor) -> bool:
    alike = value.ndim == wanted.ndim == 3 and value.shape[::2] == wanted.shape[::2]
    return alike and "pos" in name.rpartition(".")[2]
