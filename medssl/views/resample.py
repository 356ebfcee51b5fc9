"""Samples an array through an affine: exact if it only crops, flips and turns by quarters, else linear, cubic, nearest.

On an accelerator, one trilinear ``grid_sample`` processes the batch. On the CPU that kernel is not vectorized, so that
3D affines run as three bilinear passes (``planes``). These smooth slightly more than one trilinear pass; an image that
is linear in its coordinates is exact in both. Results are therefore not bit-equal between devices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from medssl.views.planes import cubic_neighbors, span, through_planes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped
    from torch import Tensor

    Matrix = np.ndarray[Any, np.dtype[np.float64]]
    Lattice = np.ndarray[Any, np.dtype[np.int64]]

Mode = Literal["linear", "cubic", "nearest"]

_EXACT = 1e-7  # voxels; affines are float64, so anything nearer than this to a whole number is one


def sample(
    image: Shaped[Tensor, "B C *s"], affine: Float[Tensor, "B n+1 n+1"], size: Sequence[int], mode: Mode = "linear"
) -> Shaped[Tensor, "B C *size"]:
    """Samples ``image`` at the voxels of a view; the value at the border continues beyond it.

    If the affine of a row only crops, flips and exchanges axes by whole voxels, the row is an exact copy.

    Args:
        image: The array, on any device.
        affine: From view voxels to voxels of ``image``; best float64 on the CPU, which selects the code path.
        size: Voxels of the view per axis.
        mode: "linear" gives float32, and so does "cubic", within the range of the image; "nearest" keeps the dtype
            (labels, masks).
    """
    matrices: Matrix = affine.detach().cpu().to(torch.float64).numpy()
    is_copy = [is_whole(matrix) for matrix in matrices]
    if mode != "nearest" and not all(is_copy):
        image = image.to(torch.float32)
        if image.device.type != "cpu" or image.ndim == 4:
            return _copy_or_interpolate(image, matrices, is_copy, tuple(size), cubic=mode == "cubic")
    rows = []
    for row, matrix, exact in zip(image, matrices, is_copy, strict=True):
        if exact:
            rows.append(_copy(row, matrix, size))
        elif mode == "nearest":
            rows.append(_nearest(row, matrix, size))
        else:
            view = through_planes(row, matrix, size, cubic=mode == "cubic")
            if view is None:
                view = (direct_cubic if mode == "cubic" else direct)(row[None], matrix[None], size)[0]
            rows.append(_in_range(view[None], row[None])[0] if mode == "cubic" else view)
    return rows[0][None] if len(rows) == 1 and not is_copy[0] else torch.stack(rows)


def is_whole(matrix: Matrix) -> bool:
    """Whether an affine only crops, flips and exchanges axes (quarter turns) by whole voxels."""
    n = len(matrix) - 1
    linear, offset = matrix[:n, :n], matrix[:n, n]
    whole = np.abs(np.rint(linear))
    one_each = (whole.sum(axis=0) == 1).all() and (whole.sum(axis=1) == 1).all()
    near = np.abs(np.abs(linear) - whole).max() < _EXACT / 10
    return bool(one_each and near and np.abs(offset - np.rint(offset)).max() < _EXACT)


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
        The mask, and for each row whether it is covered entirely (known without synchronizing with the device).
    """
    mask = torch.ones(len(affine), 1, *size, dtype=torch.bool, device=device)
    full: list[bool] = []
    steps = torch.arange(size[-1], device=device)  # whole lines are looked up: far faster than voxel by voxel
    after = steps >= torch.arange(size[-1] + 1, device=device)[:, None]
    before = steps <= torch.arange(-1, size[-1], device=device)[:, None]
    bounds = zip(affine.cpu().double().numpy(), low.cpu().double().numpy(), high.cpu().double().numpy(), strict=True)
    for row, (matrix, first, last) in enumerate(bounds):
        n = len(first)
        half = (np.array(size) - 1) / 2
        middle = matrix[:n, :n] @ half + matrix[:n, n]
        reach = np.abs(matrix[:n, :n]) @ half
        full.append(bool((middle - reach >= first - 0.5).all() and (middle + reach < last + 0.5).all()))
        if not full[-1]:
            line_start, line_end = (
                torch.from_numpy(bound).reshape(-1).to(device) for bound in _lines(matrix, first, last, size)
            )
            mask[row, 0] = (after.index_select(0, line_start) & before.index_select(0, line_end + 1)).reshape(*size)
    return mask, tuple(full)


def _lines(matrix: Matrix, first: Matrix, last: Matrix, size: Sequence[int]) -> tuple[Lattice, Lattice]:
    """First (0 to length) and last (-1 to length - 1) voxel inside the box, for each line along a view's last axis."""
    *outer, length = size
    first_inside, last_inside = np.zeros(outer), np.full(outer, length - 1.0)
    for axis in range(len(size)):
        position = np.full(outer, matrix[axis, -1])
        for view_axis, steps in enumerate(np.ogrid[tuple(slice(extent) for extent in outer)]):
            position = position + matrix[axis, view_axis] * steps
        to_low, to_high = first[axis] - 0.5 - position, np.nextafter(last[axis] + 0.5 - position, -np.inf)
        slope = matrix[axis, len(size) - 1]
        if slope == 0:
            last_inside = np.where((to_low <= 0) & (to_high >= 0), last_inside, -1.0)
        else:
            with np.errstate(over="ignore"):  # next to no slope: the line meets the bound at infinity
                crossings = to_low / slope, to_high / slope
            first_inside, last_inside = (
                np.maximum(first_inside, np.minimum(*crossings)),
                np.minimum(last_inside, np.maximum(*crossings)),
            )
    return np.ceil(first_inside).clip(0, length).astype(np.int32), np.floor(last_inside).clip(-1, length - 1).astype(
        np.int32
    )


def window(
    image: Shaped[Tensor, "1 C *s"], affine: Float[Tensor, "1 n+1 n+1"], size: Sequence[int], mode: Mode = "linear"
) -> tuple[Shaped[Tensor, "1 C *r"], Float[Tensor, "1 n+1 n+1"]]:
    """The part of one image that a view reads, and the affine to that part; sampling it gives the same values."""
    n = len(size)
    half = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    middle = affine[0, :n, :n] @ half + affine[0, :n, n]
    more = int(mode == "cubic")  # a cubic reads one more neighbor on each side
    reach = affine[0, :n, :n].abs() @ (half + 1 + more) + 2 + more  # a voxel more on every side, and all neighbors
    shifted = affine.clone()
    for axis, (center, width) in enumerate(zip(middle.tolist(), reach.tolist(), strict=True)):
        extent = image.shape[axis + 2]
        start = min(max(math.floor(center - width), 0), extent - 1)
        stop = min(max(math.ceil(center + width) + 1, start + 1), extent)
        image = image.narrow(axis + 2, start, stop - start)
        shifted[0, axis, n] -= start
    return image, shifted


def _copy_or_interpolate(
    image: Float[Tensor, "B C *s"],
    matrices: Matrix,
    is_copy: Sequence[bool],
    size: tuple[int, ...],
    *,
    cubic: bool = False,
) -> Float[Tensor, "B C *size"]:
    """Copies rows that need no interpolation; samples the others in one call."""

    def sampled(part: Float[Tensor, "K C *s"], rows: Matrix) -> Float[Tensor, "K C *size"]:
        return _in_range(direct_cubic(part, rows, size), part) if cubic else direct(part, rows, size)

    out = image.new_empty(image.shape[0], image.shape[1], *size)
    interpolated = [row for row, exact in enumerate(is_copy) if not exact]
    for row, exact in enumerate(is_copy):
        if exact:
            out[row] = _copy(image[row], matrices[row], size)
    if len(interpolated) == len(is_copy):
        return sampled(image, matrices)
    out[interpolated] = sampled(image[interpolated], matrices[interpolated])
    return out


def direct(image: Float[Tensor, "B C *s"], matrices: Matrix, size: Sequence[int]) -> Float[Tensor, "B C *size"]:
    """One bilinear or trilinear ``grid_sample`` for the whole batch: the reference for ``planes``."""
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


def direct_cubic(image: Float[Tensor, "B C *s"], matrices: Matrix, size: Sequence[int]) -> Float[Tensor, "B C *size"]:
    """Cubic convolution by one gather for each neighbor of a voxel: 16 in 2D, 64 in 3D."""
    out = image.new_zeros(*image.shape[:2], *size)
    source = image.shape[2:]
    grid = np.stack(np.meshgrid(*(np.arange(extent) for extent in size), indexing="ij"), axis=-1).reshape(-1, len(size))
    for row, matrix in enumerate(matrices):
        places = grid @ matrix[:-1, :-1].T + matrix[:-1, -1]
        near = [cubic_neighbors(places[:, axis], extent) for axis, extent in enumerate(source)]
        rows = [torch.from_numpy(each[0]).to(image.device) for each in near]
        weights = [torch.from_numpy(each[1].astype(np.float32)).to(image.device) for each in near]
        flat, total = image[row].flatten(1), out[row].view(image.shape[1], -1)
        for taps in itertools.product(range(4), repeat=len(source)):
            index, weight = rows[0][:, taps[0]], weights[0][:, taps[0]]
            for axis in range(1, len(source)):
                index = index * source[axis] + rows[axis][:, taps[axis]]
                weight = weight * weights[axis][:, taps[axis]]
            total += flat[:, index] * weight
    return out


def _in_range(view: Float[Tensor, "B C *v"], image: Float[Tensor, "B C *s"]) -> Float[Tensor, "B C *v"]:
    """Bounds each channel to the range of its image, which a cubic passes at edges."""
    low, high = image.flatten(2).aminmax(dim=2)
    shape = (*low.shape, *[1] * (view.ndim - 2))
    return torch.minimum(torch.maximum(view, low.reshape(shape)), high.reshape(shape))


def _copy(image: Shaped[Tensor, "C *s"], matrix: Matrix, size: Sequence[int]) -> Shaped[Tensor, "C *size"]:
    """Crops, flips and exchanges axes by whole voxels."""
    n = len(size)
    sources = np.abs(matrix[:n, :n]).argmax(axis=0).tolist()  # axis of the image that each axis of the view runs along
    mirrored: list[int] = []
    for axis, (source, extent) in enumerate(zip(sources, size, strict=True)):
        start = round(float(matrix[source, n]))
        if matrix[source, axis] < 0:
            mirrored.append(axis + 1)
            start -= extent - 1
        image = span(image, source + 1, start, extent, image.shape[source + 1])
    if sources != list(range(n)):
        image = image.permute(0, *(source + 1 for source in sources))
    return image.flip(mirrored) if mirrored else image


def _positions(matrix: Matrix, size: Sequence[int], device: torch.device) -> list[Float[Tensor, "..."]]:
    """Nearest source voxel of every view voxel, per axis, as integer-valued floats that broadcast to ``size``."""
    n = len(size)
    positions = []
    for axis in range(n):
        total = torch.full([1] * n, float(matrix[axis, n]) + 0.5, device=device)
        for view_axis, extent in enumerate(size):
            if matrix[axis, view_axis] != 0.0:
                shape = [extent if k == view_axis else 1 for k in range(n)]
                steps = torch.arange(extent, dtype=torch.float32, device=device) * float(matrix[axis, view_axis])
                total = total + steps.reshape(shape)
        positions.append(total.floor_())
    return positions


def _nearest(image: Shaped[Tensor, "C *s"], matrix: Matrix, size: Sequence[int]) -> Shaped[Tensor, "C *size"]:
    """Samples the nearest voxels by one gather over flat indices."""
    shape = image.shape[1:]
    exact = torch.float32 if image[0].numel() < 1 << 24 else torch.float64  # holds every flat index
    flat = torch.zeros((), dtype=exact, device=image.device)
    for position, extent in zip(_positions(matrix, size, image.device), shape, strict=True):
        flat = flat * extent + position.clamp_(0, extent - 1)
    index = flat.to(torch.long).expand(*size).reshape(-1)
    return torch.stack([channel.reshape(-1)[index] for channel in image]).reshape(len(image), *size)
