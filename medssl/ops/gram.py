r"""Distance between the similarities of positions in two feature maps (Gram matrices).

With unit feature vectors :math:`x_i` and :math:`y_i` of N positions of an image::

    distance = mean over images, i and j of (x_i . x_j - y_i . y_j)^2

Features may rotate as they like; what stays is which positions are alike.

Reference: Simeoni et al., DINOv3, 2025, arXiv 2508.10104.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from medssl.ops.collectives import mean_over
from medssl.ops.similarity import unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor


def gram_distance(
    x: Float[Tensor, "B N C"], y: Float[Tensor, "B N D"], counted: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared difference of the cosines between positions, over the images of all processes.

    Args:
        x: Features of the positions; the gradient flows here.
        y: Features of the same positions, of any width.
        counted: False where a position is left out; None counts all. An image without positions counts as 0.
    """
    with torch.autocast(x.device.type, enabled=False):
        a, b = unit(x), unit(y.detach())
        squares = (a @ a.mT - b @ b.mT).square()
        if counted is None:
            return mean_over(squares.mean((1, 2)).sum(), len(squares))
        pairs = counted[:, :, None] & counted[:, None]
        sums = torch.where(pairs, squares, 0.0).sum((1, 2))
        return mean_over((sums / pairs.sum((1, 2)).clamp(min=1)).sum(), len(squares))


def to_grid(maps: Float[Tensor, "B C *s"], cells: Sequence[int]) -> Float[Tensor, "B C *cells"]:
    """Averages maps of a finer grid to ``cells``; maps of that grid stay as they are."""
    if tuple(maps.shape[2:]) == tuple(cells):
        return maps
    return F.interpolate(maps, tuple(cells), mode="area")


def enlarged(image: Float[Tensor, "B C *s"], factor: int) -> Float[Tensor, "B C *t"]:
    """Images with ``factor`` times as many voxels per axis, interpolated linearly."""
    if factor == 1:
        return image
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    return F.interpolate(image, scale_factor=factor, mode=mode, align_corners=False)
