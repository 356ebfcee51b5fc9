"""Reads an array through an affine: exact where the affine only crops and flips, linear or nearest elsewhere.

On an accelerator the batch goes through one trilinear ``grid_sample``. On the CPU that kernel is scalar, so an affine in
3D is split into three maps that each act in one plane; every such map is a weighted sum of four rows of a table whose rows
are contiguous, which the embedding-bag kernel does at the speed of memory. Three bilinear passes smooth slightly more
than one trilinear pass (an image linear in its coordinates comes out exact either way): the same family of augmentation,
not equal bit for bit between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

    Matrix = np.ndarray[Any, np.dtype[np.float64]]
    Lattice = np.ndarray[Any, np.dtype[np.int64]]

Mode = Literal["linear", "nearest"]

_EXACT = 1e-7  # voxels; affines are float64, so anything nearer than this to a whole number is one
_SLANT = 0.5  # squared tangent of the largest turn that is split into planes (about 35 degrees)
_PLANES = ((2, 0), (1, 2), (0, 1))  # in the order the input is read; the last one leaves the array contiguous


def sample(
    image: Shaped[Tensor, "B C *s"], affine: Float[Tensor, "B n+1 n+1"], size: Sequence[int], mode: Mode = "linear"
) -> Shaped[Tensor, "B C *size"]:
    """Reads ``image`` at the voxels of a view of ``size``; beyond the border the border's value continues.

    A row whose affine only crops and flips by whole voxels is copied, bit for bit and in its own dtype.

    Args:
        image: The array, on any device.
        affine: View voxel -> voxel of ``image``, best float64 on the CPU: which road a row takes is decided there.
        size: Voxels of the view per axis.
        mode: "linear" gives float32; "nearest" keeps the dtype (labels, masks).
    """
    matrices: Matrix = affine.detach().cpu().to(torch.float64).numpy()
    whole = [is_whole(matrix) for matrix in matrices]
    if mode == "linear" and not all(whole):
        image = image.to(torch.float32)
        if image.device.type != "cpu" or image.ndim == 4:
            return _mixed(image, matrices, whole, tuple(size))
    rows = []
    for row, matrix, exact in zip(image, matrices, whole, strict=True):
        if exact:
            rows.append(_copy(row, matrix, size))
        elif mode == "nearest":
            rows.append(_nearest(row, matrix, size))
        else:
            rows.append(_planar(row, matrix, size))
    return torch.stack(rows)


def is_whole(matrix: Matrix) -> bool:
    """Whether an affine only crops and flips by whole voxels."""
    n = len(matrix) - 1
    linear, offset = matrix[:n, :n], matrix[:n, n]
    straight = np.abs(linear - np.diag(np.sign(np.diag(linear)))).max() < _EXACT / 10
    return bool(straight and np.abs(np.diag(linear)).min() > 0.5 and np.abs(offset - np.rint(offset)).max() < _EXACT)


def covered(
    affine: Float[Tensor, "B n+1 n+1"],
    size: Sequence[int],
    low: Float[Tensor, "B n"],
    high: Float[Tensor, "B n"],
    *,
    device: torch.device,
) -> tuple[Bool[Tensor, "B 1 *size"], tuple[bool, ...]]:
    """Which voxels of a view have their nearest source voxel between ``low`` and ``high`` (both included).

    Returns:
        The mask, and for each row whether all of it is covered (known without asking the device).
    """
    mask = torch.ones(len(affine), 1, *size, dtype=torch.bool, device=device)
    full: list[bool] = []
    bounds = zip(affine.cpu().double().numpy(), low.cpu().double().numpy(), high.cpu().double().numpy(), strict=True)
    for row, (matrix, first, last) in enumerate(bounds):
        n = len(first)
        half = (np.array(size) - 1) / 2
        middle = matrix[:n, :n] @ half + matrix[:n, n]
        reach = np.abs(matrix[:n, :n]) @ half + 1e-4  # the device rounds to float32
        full.append(bool((middle - reach >= first - 0.5).all() and (middle + reach < last + 0.5).all()))
        if not full[-1]:
            for axis, position in enumerate(_positions(matrix, size, device)):
                mask[row] &= (position >= float(first[axis])) & (position <= float(last[axis]))
    return mask, tuple(full)


def planar_factors(linear: Matrix) -> tuple[Matrix, Matrix, Matrix] | None:
    """Splits a 3x3 matrix into a product of three that act in the planes (2,0), (1,2) and (0,1) alone.

    With a = A[(0,1),0], b = A[2,(1,2)] and M = A[(0,1),(1,2)] in the order of axes 2, 0, 1, the matrix M - q a b' has
    rank one for q = det M / (b' adj(M) a); its two factors and a and b are the four free columns and rows. Each is
    scaled to unit length, so that a turn in one plane is a turn in that plane's factor and the others are diagonal.

    Returns:
        The factors, or None where a turn is too large to be split well.
    """
    order = [2, 0, 1]
    m = linear[np.ix_(order, order)]
    pairs = ((0, 1), (0, 2), (1, 2))
    if any(abs(m[i, j] * m[j, i]) > _SLANT * abs(m[i, i] * m[j, j]) for i, j in pairs):
        return None
    a, b, block = m[:2, 0], m[2, 1:], m[:2, 1:]
    adjugate = np.array([[block[1, 1], -block[0, 1]], [-block[1, 0], block[0, 0]]])
    pivot = b @ adjugate @ a
    if abs(pivot) < 1e-12:
        return None
    q = np.linalg.det(block) / pivot
    rest = block - q * np.outer(a, b)
    column, row = rest[:, 0] / rest[1, 0], rest[1]
    length_a, length_b, length_c = _signed(a), _signed(b[::-1]), _signed(column[::-1])
    first, second, third = np.eye(3), np.eye(3), np.eye(3)
    first[:2, 0], first[:2, 1] = a / length_a, column / length_c
    second[0, 0], second[0, 2] = length_a, q * length_a * length_b
    second[2, 0], second[2, 2] = m[2, 0], length_b
    third[1, 1:], third[2, 1:] = row * length_c, b / length_b
    if not np.allclose(first @ second @ third, m, rtol=0, atol=1e-9 * np.abs(m).max()):
        return None
    back = np.argsort(order)
    return first[np.ix_(back, back)], second[np.ix_(back, back)], third[np.ix_(back, back)]


def _signed(vector: Matrix) -> float:
    """Length of a vector, with the sign of its first entry: dividing by it leaves that entry positive."""
    return float(np.copysign(np.linalg.norm(vector), vector[0]))


def _mixed(
    image: Float[Tensor, "B C *s"], matrices: Matrix, whole: Sequence[bool], size: tuple[int, ...]
) -> Float[Tensor, "B C *size"]:
    """Whole rows copied, the others through one ``grid_sample``."""
    out = image.new_empty(image.shape[0], image.shape[1], *size)
    slanted = [row for row, exact in enumerate(whole) if not exact]
    for row, exact in enumerate(whole):
        if exact:
            out[row] = _copy(image[row], matrices[row], size)
    if len(slanted) == len(whole):
        return direct(image, matrices, size)
    out[slanted] = direct(image[slanted], matrices[slanted], size)
    return out


def direct(image: Float[Tensor, "B C *s"], matrices: Matrix, size: Sequence[int]) -> Float[Tensor, "B C *size"]:
    """One bilinear or trilinear ``grid_sample`` for the whole batch: the reference of the road by planes."""
    n = len(size)
    source = np.array(image.shape[2:], dtype=np.float64)
    half_source, half_view = np.maximum(source - 1, 1) / 2, (np.array(size) - 1) / 2
    linear = matrices[:, :n, :n] * half_view / half_source[:, None]
    middle = matrices[:, :n, :n] @ half_view + matrices[:, :n, n] - (source - 1) / 2
    theta = np.concatenate((linear[:, ::-1, ::-1], (middle / half_source)[:, ::-1, None]), axis=2)
    grid = functional.affine_grid(
        torch.from_numpy(theta).to(image.device, torch.float32), [len(matrices), 1, *size], align_corners=True
    )
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _copy(image: Shaped[Tensor, "C *s"], matrix: Matrix, size: Sequence[int]) -> Shaped[Tensor, "C *size"]:
    """Crop and flip by whole voxels."""
    n = len(size)
    mirrored: list[int] = []
    for axis, extent in enumerate(size):
        start, source = round(float(matrix[axis, n])), image.shape[axis + 1]
        if matrix[axis, axis] < 0:
            mirrored.append(axis + 1)
            start -= extent - 1
        image = _span(image, axis + 1, start, extent, source)
    return image.flip(mirrored) if mirrored else image


def _span(image: Shaped[Tensor, "..."], axis: int, start: int, extent: int, source: int) -> Shaped[Tensor, "..."]:
    """``extent`` layers from ``start`` on; beyond the border the border's layer is repeated."""
    if start >= 0 and start + extent <= source:
        return image.narrow(axis, start, extent)
    layers = torch.arange(start, start + extent, device=image.device).clamp_(0, source - 1)
    return image.index_select(axis, layers)


def _positions(matrix: Matrix, size: Sequence[int], device: torch.device) -> list[Float[Tensor, "..."]]:
    """Nearest source voxel of every view voxel, per axis, as whole floats that broadcast to ``size``."""
    n = len(size)
    positions = []
    for axis in range(n):
        total = torch.full([1] * n, float(matrix[axis, n]) + 0.5, device=device)
        for other, extent in enumerate(size):
            if matrix[axis, other] != 0.0:
                shape = [extent if k == other else 1 for k in range(n)]
                steps = torch.arange(extent, dtype=torch.float32, device=device) * float(matrix[axis, other])
                total = total + steps.reshape(shape)
        positions.append(total.floor_())
    return positions


def _nearest(image: Shaped[Tensor, "C *s"], matrix: Matrix, size: Sequence[int]) -> Shaped[Tensor, "C *size"]:
    """Nearest voxel: one gather over flat indices."""
    shape = image.shape[1:]
    flat = torch.zeros((), dtype=torch.long, device=image.device)
    for position, extent in zip(_positions(matrix, size, image.device), shape, strict=True):
        flat = flat * extent + position.clamp_(0, extent - 1).long()
    flat = flat.expand(*size).reshape(-1)
    return image.reshape(len(image), -1)[:, flat].reshape(len(image), *size)


def _planar(image: Float[Tensor, "C d h w"], matrix: Matrix, size: Sequence[int]) -> Float[Tensor, "C D H W"]:
    """Three passes, each in one plane; falls back on ``direct`` where the affine cannot be split well."""
    factors = planar_factors(matrix[:3, :3])
    if factors is None:
        return direct(image[None], matrix[None], size)[0]
    rest = np.linalg.solve(factors[0], matrix[:3, 3])
    shifts = (np.zeros(3), np.array([0.0, rest[1], rest[2]]), np.array([rest[0], 0.0, 0.0]))
    boxes = [(np.zeros(3, dtype=np.int64), np.array(size, dtype=np.int64) - 1)]
    for factor, shift in zip(factors[:0:-1], shifts[:0:-1], strict=True):
        middle, half = (boxes[0][0] + boxes[0][1]) / 2, (boxes[0][1] - boxes[0][0]) / 2
        centre, reach = factor @ middle + shift, np.abs(factor) @ half
        boxes.insert(0, (np.floor(centre - reach + 1e-9).astype(int), np.ceil(centre + reach - 1e-9).astype(int)))
    channels = list(image)
    low = np.zeros(3)
    for axes, factor, shift, (first, last) in zip(_PLANES, factors, shifts, boxes, strict=True):
        if last is not boxes[-1][1]:  # no more layers than there are: the next pass continues the border
            kept = 3 - sum(axes)
            end = low[kept] + channels[0].shape[kept] - 1
            first[kept], last[kept] = np.clip((first[kept], last[kept]), low[kept], end)
        channels = _pass(channels, axes, factor, shift - low, first=first, last=last)
        low = first.astype(np.float64)
    return torch.stack(channels)


def _pass(
    channels: list[Float[Tensor, "d h w"]],
    axes: tuple[int, int],
    factor: Matrix,
    offset: Matrix,
    *,
    first: Lattice,
    last: Lattice,
) -> list[Float[Tensor, "D H W"]]:
    """Resamples two axes, evaluated at the whole positions from ``first`` to ``last``; the third is only cut to these."""
    p, q = axes
    rest = 3 - p - q
    extent = last - first + 1
    shape = tuple(channels[0].shape)
    start = round(float(first[rest] + offset[rest]))
    channels = [_span(channel, rest, start, int(extent[rest]), shape[rest]) for channel in channels]
    steps_p, steps_q = np.arange(first[p], last[p] + 1)[:, None], np.arange(first[q], last[q] + 1)[None]
    rows, weights = _taps(
        factor[p, p] * steps_p + factor[p, q] * steps_q + offset[p],
        factor[q, p] * steps_p + factor[q, q] * steps_q + offset[q],
        (shape[p], shape[q]),
        swap=channels[0].stride(p) < channels[0].stride(q),
    )
    outer = (q, p) if channels[0].stride(p) < channels[0].stride(q) else (p, q)
    order = [axes.index(axis) if axis in axes else 2 for axis in range(3)]
    results = []
    for channel in channels:
        table = channel.permute(*outer, rest).reshape(shape[p] * shape[q], -1)
        summed = functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
        results.append(summed.reshape(int(extent[p]), int(extent[q]), -1).permute(*order))
    return results


def _taps(
    at_p: Matrix, at_q: Matrix, shape: tuple[int, int], *, swap: bool
) -> tuple[Int[Tensor, "N 4"], Float[Tensor, "N 4"]]:
    """Rows of the table and weights of the four neighbours of each position; ``swap``: rows run over q first."""
    near, far, share = [], [], []
    for position, extent in ((at_p, shape[0]), (at_q, shape[1])):
        position = np.clip(position, 0, extent - 1)
        below = np.minimum(position.astype(np.int32), max(extent - 2, 0))
        near.append(below)
        far.append(np.minimum(below + 1, extent - 1))
        share.append((position - below).astype(np.float32))
    step_p, step_q = (1, shape[0]) if swap else (shape[1], 1)
    rows = np.stack([p * step_p + q * step_q for p in (near[0], far[0]) for q in (near[1], far[1])], axis=-1)
    weights = np.stack([p * q for p in (1 - share[0], share[0]) for q in (1 - share[1], share[1])], axis=-1)
    return torch.from_numpy(rows.reshape(-1, 4)), torch.from_numpy(weights.reshape(-1, 4))
