"""Random fields keyed by sample: smooth fields from a few control points, white noise from a pool.

Every row of a result depends on its key only. A sample is therefore the same in any batch and process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from medssl.ops.draws import Draws, keyed_generator

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_MIN_POOL = 1 << 20


def smooth_field(control: Float[Tensor, "B *c"], size: Sequence[int]) -> Float[Tensor, "B 1 *size"]:
    """A smooth field from a coarse grid of control points (uniform cubic B-spline).

    Each value is a weighted mean of control points and stays in their range. First and second derivatives are
    continuous (de Boor, A Practical Guide to Splines, 1978).

    Args:
        control: Values of at least 4 control points per axis, spread from edge to edge.
        size: Voxels of the field per axis.

    Raises:
        ValueError: There are fewer than 4 control points along an axis.
    """
    if min(control.shape[1:]) < 4:
        message = f"a smooth field needs at least 4 control points per axis, got {tuple(control.shape[1:])}"
        raise ValueError(message)
    field = control
    for axis, extent in enumerate(size):
        weights = _spline_weights(control.shape[axis + 1], extent).to(control.device, control.dtype)
        field = torch.tensordot(field, weights, dims=([1], [1]))  # the axis in work comes first and leaves last
    return field[:, None]


def draw_control(draws: Draws, n: int, *, points: int = 4) -> Float[Tensor, "B *c"]:
    """Control points between -1 and 1 for ``smooth_field`` in ``n`` dimensions."""
    return draws.uniform(*[points] * n, low=-1.0, high=1.0)


def draw_offsets(draws: Draws, channels: int) -> Int[Tensor, "B C 2"]:
    """Offsets of each channel in the noise pool; ``add_noise`` wraps them to the length of the pool."""
    return draws.integers(0, 1 << 40, channels, 2)


def add_noise(
    image: Float[Tensor, "B C *s"], deviation: Float[Tensor, " B"], offsets: Int[Tensor, "B C 2"], *, seed: int
) -> Float[Tensor, "B C *s"]:
    """Adds Gaussian noise.

    New normal numbers would cost more than all of the geometry. They are read from a pool that is computed once for a
    seed. Each channel takes the sum of two segments, one from each half of the pool, at separate offsets. The noise of
    every voxel is exactly normal, and neighbors are independent. The noise of two channels is correlated (by 1/2) only
    for voxels that read the same entry of one half of the pool.

    Args:
        image: Values; they are not changed.
        deviation: Standard deviation for each sample; 0 adds nothing.
        offsets: From ``draw_offsets``.
        seed: Seed of the run, which determines the pool.
    """
    voxels = image[0, 0].numel()
    pool = _pool(int(seed), max(_MIN_POOL, 1 << (2 * voxels - 1).bit_length()), image.device)
    starts = offsets % (pool.shape[1] - voxels + 1)
    noisy = torch.empty(image.shape, dtype=image.dtype, device=image.device)
    for row, width in enumerate(deviation.tolist()):
        for channel in range(image.shape[1]):
            first, second = starts[row, channel].tolist()
            flat = noisy[row, channel].view(-1)
            amplitude = width * 0.5**0.5
            torch.add(image[row, channel].reshape(-1), pool[0, first : first + voxels], alpha=amplitude, out=flat)
            flat.add_(pool[1, second : second + voxels], alpha=amplitude)
    return noisy


@lru_cache(maxsize=4)
def _pool(seed: int, length: int, device: torch.device) -> Float[Tensor, "2 length"]:
    """Normal numbers of a seed, cached since every step uses them."""
    normal = keyed_generator(seed, 0, "noise pool").standard_normal((2, length), dtype="float32")
    return torch.from_numpy(normal).to(device)


@lru_cache(maxsize=64)
def _spline_weights(points: int, extent: int) -> Float[Tensor, "extent points"]:
    """Weight of each control point at each voxel; voxel centers are spread over the inner spline intervals."""
    spans = points - 3
    position = (torch.arange(extent, dtype=torch.float64) + 0.5) / extent * spans
    span = position.floor().clamp_(max=spans - 1)
    t = position - span
    basis = torch.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3],
        dim=1,
    )
    weights = torch.zeros(extent, points, dtype=torch.float64)
    weights.scatter_(1, span.long()[:, None] + torch.arange(4)[None], basis / 6)
    return weights.to(torch.float32)
