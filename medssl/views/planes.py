"""Affine resampling of volumes on the CPU in three passes, each in one plane.

An affine acts in a plane if it changes two axes and leaves the third one as it is. Then all voxels along the third axis
share their neighbors and weights. The pass is a weighted sum of four rows of a table, with one row for each place in
the plane and the third axis along the row. The embedding-bag kernel computes this at memory speed, while trilinear
``grid_sample`` gathers voxel by voxel. Between passes the axes are permuted so that the next third axis lies along the
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped
    from torch import Tensor

    Matrix = np.ndarray[Any, np.dtype[np.float64]]
    Lattice = np.ndarray[Any, np.dtype[np.int64]]

_SLANT = 0.5  # squared tangent of the largest turn that is split into planes (about 35 degrees)
_PLANES = ((2, 0), (1, 2), (0, 1))  # in the order the input is read; the last one leaves the array contiguous


def through_planes(
    image: Float[Tensor, "C d h w"], matrix: Matrix, size: Sequence[int], *, cubic: bool = False
) -> Float[Tensor, "C D H W"] | None:
    """Samples an image at the voxels of a view, in three passes that each act in one plane.

    Args:
        image: Image on the CPU; the value at the border continues beyond it.
        matrix: Affine (4, 4) from view voxels to image voxels.
        size: Voxels of the view per axis.
        cubic: Cubic convolution in place of linear interpolation.

    Returns:
        The view; None if the affine contains too large a rotation to be split.
    """
    factors = planar_factors(matrix[:3, :3])
    if factors is None:
        return None
    whole_shift = np.rint(matrix[:3, 3])  # whole voxels first: cutting the image does not move the places that are read
    fraction = np.linalg.solve(factors[0], matrix[:3, 3] - whole_shift)
    shifts = (whole_shift, np.array([0.0, fraction[1], fraction[2]]), np.array([fraction[0], 0.0, 0.0]))
    boxes = [(np.zeros(3, dtype=np.int64), np.array(size, dtype=np.int64) - 1)]
    for factor, shift in zip(factors[:0:-1], shifts[:0:-1], strict=True):
        box_center, half_size = (boxes[0][0] + boxes[0][1]) / 2, (boxes[0][1] - boxes[0][0]) / 2
        center, half_extent = factor @ box_center + shift, np.abs(factor) @ half_size
        more = int(cubic)  # a cubic reads one more neighbor on each side
        box_first = np.floor(center - half_extent + 1e-9).astype(int) - more
        boxes.insert(0, (box_first, np.ceil(center + half_extent - 1e-9).astype(int) + more))
    channels = list(image)
    cut_origin = np.zeros(3)
    for axes, factor, shift, (first, last) in zip(_PLANES, factors, shifts, boxes, strict=True):
        offset = shift - cut_origin
        if last is not boxes[-1][1]:  # no more layers than there are: the next pass continues the border
            limited_axes = [0, 1, 2] if _only_cuts(factor, offset) else [3 - sum(axes)]
            first_layer = np.rint(-offset[limited_axes]).astype(int)
            last_layer = first_layer + np.array(channels[0].shape)[limited_axes] - 1
            first[limited_axes], last[limited_axes] = (
                first[limited_axes].clip(first_layer, last_layer),
                last[limited_axes].clip(first_layer, last_layer),
            )
        channels = _pass(channels, axes, factor, offset, box=(first, last), cubic=cubic)
        cut_origin = first.astype(np.float64)
    return torch.stack(channels) if len(channels) > 1 else channels[0][None]


def span(image: Shaped[Tensor, "..."], axis: int, start: int, extent: int, source: int) -> Shaped[Tensor, "..."]:
    """Takes ``extent`` layers of an axis from ``start`` on; beyond the border, the border layer is repeated."""
    if start >= 0 and start + extent <= source:
        return image.narrow(axis, start, extent)
    layers = torch.arange(start, start + extent, device=image.device).clamp_(0, source - 1)
    return image.index_select(axis, layers)


def planar_factors(linear: Matrix) -> tuple[Matrix, Matrix, Matrix] | None:
    """Factors a 3x3 matrix into three matrices that act in the planes (2,0), (1,2) and (0,1).

    With a = A[(0,1),0], b = A[2,(1,2)] and M = A[(0,1),(1,2)] in the order of axes 2, 0, 1, the matrix M - q a b' has
    rank one for q = det M / (b' adj(M) a). Its two factors and a and b are the four free columns and rows. Each is
    scaled to unit length, so that a rotation in one plane is a rotation in the factor of that plane, and the other
    factors are diagonal.

    Returns:
        The factors; None if a rotation is too large to be split well.
    """
    order = [2, 0, 1]
    m = linear[np.ix_(order, order)]
    pairs = ((0, 1), (0, 2), (1, 2))
    tilted = [(i, j) for i, j in pairs if m[i, j] or m[j, i]]
    if len(tilted) > 1 and any(abs(m[i, j] * m[j, i]) > _SLANT * abs(m[i, i] * m[j, j]) for i, j in tilted):
        return None
    a, b, block = m[:2, 0], m[2, 1:], m[:2, 1:]
    adjugate = np.array([[block[1, 1], -block[0, 1]], [-block[1, 0], block[0, 0]]])
    pivot = b @ adjugate @ a
    if abs(pivot) < 1e-12:
        return None
    q = np.linalg.det(block) / pivot
    residual = block - q * np.outer(a, b)
    column, row = residual[:, 0] / residual[1, 0], residual[1]
    length_a, length_b, length_c = _signed(a), _signed(b[::-1]), _signed(column[::-1])
    first, second, third = np.eye(3), np.eye(3), np.eye(3)
    first[:2, 0], first[:2, 1] = a / length_a, column / length_c
    second[0, 0], second[0, 2] = length_a, q * length_a * length_b
    second[2, 0], second[2, 2] = m[2, 0], length_b
    third[1, 1:], third[2, 1:] = row * length_c, b / length_b
    if not np.allclose(first @ second @ third, m, rtol=0, atol=1e-9 * np.abs(m).max()):
        return None
    inverse_order = np.argsort(order)
    return (
        first[np.ix_(inverse_order, inverse_order)],
        second[np.ix_(inverse_order, inverse_order)],
        third[np.ix_(inverse_order, inverse_order)],
    )


def _pass(
    channels: list[Float[Tensor, "d h w"]],
    axes: tuple[int, int],
    factor: Matrix,
    offset: Matrix,
    *,
    box: tuple[Lattice, Lattice],
    cubic: bool,
) -> list[Float[Tensor, "D H W"]]:
    """Resamples two axes at the integer positions of ``box``, both ends included; the third axis is only cropped."""
    (p, q), (first, last) = axes, box
    third_axis = 3 - p - q
    extent = last - first + 1
    start = np.rint(first + offset).astype(int)
    only_cuts = _only_cuts(factor, offset)
    for axis in range(3) if only_cuts else (third_axis,):
        channels = [
            span(channel, axis, int(start[axis]), int(extent[axis]), channel.shape[axis]) for channel in channels
        ]
    if only_cuts:
        return channels
    shape = tuple(channels[0].shape)
    steps_p, steps_q = np.arange(first[p], last[p] + 1)[:, None], np.arange(first[q], last[q] + 1)[None]
    rows, weights = (_cubic_taps if cubic else _taps)(
        factor[p, p] * steps_p + factor[p, q] * steps_q + offset[p],
        factor[q, p] * steps_p + factor[q, q] * steps_q + offset[q],
        (shape[p], shape[q]),
        swap=channels[0].stride(p) < channels[0].stride(q),
    )
    outer = (q, p) if channels[0].stride(p) < channels[0].stride(q) else (p, q)
    order = [axes.index(axis) if axis in axes else 2 for axis in range(3)]
    results = []
    for channel in channels:
        table = channel.permute(*outer, third_axis).reshape(shape[p] * shape[q], -1)
        summed = functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
        results.append(summed.reshape(int(extent[p]), int(extent[q]), -1).permute(*order))
    return results


def _only_cuts(factor: Matrix, offset: Matrix) -> bool:
    """Whether a pass only crops."""
    return bool(np.array_equal(factor, np.eye(3)) and np.array_equal(offset, np.rint(offset)))


def _taps(
    at_p: Matrix, at_q: Matrix, shape: tuple[int, int], *, swap: bool
) -> tuple[Int[Tensor, "N 4"], Float[Tensor, "N 4"]]:
    """Table rows and weights of the four neighbors of each position; with ``swap``, rows run over axis q first."""
    below, share = [], []
    for position, extent in ((at_p, shape[0]), (at_q, shape[1])):
        position = np.clip(position, 0, extent - 1)
        below.append(np.minimum(position.astype(np.int32), max(extent - 2, 0)))
        share.append((position - below[-1]).astype(np.float32))
    step_p, step_q = (1, shape[0]) if swap else (shape[1], 1)
    next_p, next_q = (step if extent > 1 else 0 for step, extent in zip((step_p, step_q), shape, strict=True))
    corner = below[0] * np.int32(step_p) + below[1] * np.int32(step_q)
    rows = corner.reshape(-1, 1) + np.array([[0, next_q, next_p, next_p + next_q]], dtype=np.int32)
    weights = np.empty((*corner.shape, 4), dtype=np.float32)
    weights[..., 3] = share[0] * share[1]
    weights[..., 2] = share[0] - weights[..., 3]
    weights[..., 1] = share[1] - weights[..., 3]
    weights[..., 0] = 1 - share[0] - weights[..., 1]
    return torch.from_numpy(rows), torch.from_numpy(weights.reshape(-1, 4))


def _cubic_taps(
    at_p: Matrix, at_q: Matrix, shape: tuple[int, int], *, swap: bool
) -> tuple[Int[Tensor, "N 16"], Float[Tensor, "N 16"]]:
    """As ``_taps``, of the sixteen neighbors of a cubic convolution."""
    step_p, step_q = (1, shape[0]) if swap else (shape[1], 1)
    rows_p, weights_p = cubic_neighbors(at_p.ravel(), shape[0])
    rows_q, weights_q = cubic_neighbors(at_q.ravel(), shape[1])
    rows = rows_p[:, :, None] * step_p + rows_q[:, None] * step_q
    weights = weights_p[:, :, None] * weights_q[:, None]
    return (
        torch.from_numpy(rows.reshape(-1, 16).astype(np.int32)),
        torch.from_numpy(weights.reshape(-1, 16).astype(np.float32)),
    )


def cubic_neighbors(position: Matrix, extent: int) -> tuple[Lattice, Matrix]:
    """The four neighbors [N, 4] of each position along an axis, and their weights, for cubic convolution.

    The kernel is that of Keys, Cubic convolution interpolation for digital image processing, 1981, with a = -1/2, which
    is exact for quadratic functions. The value at the border continues beyond it.
    """
    position = np.clip(position, 0, extent - 1)
    below = np.floor(position)
    t = (position - below)[:, None]
    weights = np.concatenate(
        (
            -0.5 * t * (1 - t) ** 2,
            1 + t * t * (1.5 * t - 2.5),
            t * (0.5 + t * (2 - 1.5 * t)),
            0.5 * t * t * (t - 1),
        ),
        axis=1,
    )
    rows = np.clip(below[:, None] + np.arange(-1, 3), 0, extent - 1).astype(np.int64)
    return rows, weights


def _signed(vector: Matrix) -> float:
    """Length of a vector with the sign of its first entry, so that division by it makes that entry positive."""
    return float(np.copysign(np.linalg.norm(vector), vector[0]))
