"""Affine algebra, overlap of two views, and matching of cells: the only code for correspondence of places.

An affine is a matrix (n+1, n+1) in homogeneous coordinates, n = 2 or 3, in the order of the stored array's axes. It
maps voxel indices to the space in its name; the center of a voxel is an integer. Functions take batches and are
differentiable. Results have the dtype of the input; inverses and distances are computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_ROWS = 1024  # rows of a distance matrix that are held at once


def identity(batch: int, n: int, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "B n+1 n+1"]:
    """The identity affine of ``n`` coordinates, ``batch`` times."""
    return torch.eye(n + 1, dtype=dtype).repeat(batch, 1, 1)


def from_parts(linear: Float[Tensor, "B n n"], offset: Float[Tensor, "B n"]) -> Float[Tensor, "B n+1 n+1"]:
    """The affine ``x -> linear x + offset``."""
    batch, n = offset.shape
    affine = torch.zeros(batch, n + 1, n + 1, dtype=linear.dtype, device=linear.device)
    affine[:, :n, :n] = linear
    affine[:, :n, n] = offset
    affine[:, n, n] = 1
    return affine


def translation(offset: Float[Tensor, "B n"]) -> Float[Tensor, "B n+1 n+1"]:
    """Moves points by ``offset``."""
    eye = torch.eye(offset.shape[1], dtype=offset.dtype, device=offset.device)
    return from_parts(eye.expand(len(offset), -1, -1), offset)


def scaling(factors: Float[Tensor, "B n"], center: Float[Tensor, "B n"] | None = None) -> Float[Tensor, "B n+1 n+1"]:
    """Multiplies each coordinate by its factor, about ``center`` (default: the origin)."""
    return _about(torch.diag_embed(factors), center)


def rotation(angles: Float[Tensor, "B k"], center: Float[Tensor, "B n"] | None = None) -> Float[Tensor, "B n+1 n+1"]:
    """Rotates by ``angles`` (radians) about ``center`` (default: the origin).

    Args:
        angles: One angle in 2D (axis 0 turns towards axis 1); three in 3D, about axis 0 first, then 1, then 2.
        center: The fixed point.

    Raises:
        ValueError: The number of angles is neither 1 nor 3.
    """
    if angles.shape[1] == 1:
        return _about(_planar_rotation(angles[:, 0], 0, 1, 2), center)
    if angles.shape[1] != 3:
        message = f"a rotation takes 1 angle (2D) or 3 (3D), got {angles.shape[1]}"
        raise ValueError(message)
    about_0 = _planar_rotation(angles[:, 0], 1, 2, 3)
    about_1 = _planar_rotation(angles[:, 1], 2, 0, 3)
    about_2 = _planar_rotation(angles[:, 2], 0, 1, 3)
    return _about(about_2 @ about_1 @ about_0, center)


def flip(axes: Bool[Tensor, "B n"], size: Sequence[int]) -> Float[Tensor, "B n+1 n+1"]:
    """Mirrors the chosen axes of an array of ``size``: voxel i becomes voxel size - 1 - i (float64)."""
    last = torch.tensor([float(extent - 1) for extent in size], dtype=torch.float64, device=axes.device)
    mirrored = axes.to(torch.float64)
    return from_parts(torch.diag_embed(1 - 2 * mirrored), mirrored * last)


def compose(*affines: Float[Tensor, "B n+1 n+1"]) -> Float[Tensor, "B n+1 n+1"]:
    """The product of affines: the last one is applied first.

    Raises:
        ValueError: There is no affine.
    """
    if not affines:
        message = "compose takes at least one affine"
        raise ValueError(message)
    product = affines[0]
    for affine in affines[1:]:
        product = product @ affine
    return product


def invert(affine: Float[Tensor, "B n+1 n+1"]) -> Float[Tensor, "B n+1 n+1"]:
    """The inverse, computed in float64, with an exact last row.

    Raises:
        ValueError: An affine is singular.
    """
    exact = affine.to(torch.float64)
    n = affine.shape[-1] - 1
    inverse, info = torch.linalg.inv_ex(exact[..., :n, :n])
    if bool((info != 0).any()) or not bool(torch.isfinite(inverse).all()):
        message = f"an affine cannot be inverted: {exact[int((info != 0).int().argmax())].tolist()}"
        raise ValueError(message)
    offset = -(inverse @ exact[..., :n, n:])[..., 0]
    return from_parts(inverse, offset).to(affine.dtype)


def apply(affine: Float[Tensor, "B n+1 n+1"], points: Float[Tensor, "B N n"]) -> Float[Tensor, "B N n"]:
    """Maps points; one list of points [1, N, n] is used for every affine of the batch."""
    n = affine.shape[-1] - 1
    return points @ affine[:, :n, :n].transpose(1, 2) + affine[:, None, :n, n]


def cell_centers(shape: Sequence[int], cells: Sequence[int]) -> Float[Tensor, "N n"]:
    """Centers of the cells of a regular grid laid over an array, in voxels of that array (float64).

    Args:
        shape: Voxels per axis.
        cells: Cells per axis; a cell may be any number of voxels wide, also a fraction.

    Returns:
        The centers in row-major order of the cells.
    """
    centers = [
        (torch.arange(count, dtype=torch.float64) + 0.5) * (extent / count) - 0.5
        for extent, count in zip(shape, cells, strict=True)
    ]
    return torch.stack(torch.meshgrid(*centers, indexing="ij"), dim=-1).reshape(-1, len(centers))


def box(
    affine: Float[Tensor, "B n+1 n+1"], shape: Sequence[int], *, edges: bool = True
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Lowest and highest coordinates of an array of ``shape`` under its affine.

    Args:
        affine: From the array's voxels to the space of the box.
        shape: Voxels per axis.
        edges: Measure from the outer edges of the first and last voxels; otherwise from their centers.
    """
    n = len(shape)
    extent = torch.tensor([float(size - 1) for size in shape], dtype=affine.dtype, device=affine.device)
    half = extent / 2 + (0.5 if edges else 0.0)
    middle = apply(affine, (extent / 2).expand(len(affine), 1, n))[:, 0]
    reach = affine[:, :n, :n].abs() @ half
    return middle - reach, middle + reach


def overlap_box(
    affine_a: Float[Tensor, "B n+1 n+1"],
    shape_a: Sequence[int],
    affine_b: Float[Tensor, "B n+1 n+1"],
    shape_b: Sequence[int],
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """The intersection of the boxes of two views, in the space of both affines; empty if ``high`` equals ``low``.

    It is exact for views that are not rotated in that space; of a rotated view the bounding box is used. ``inside`` is
    exact for any view.
    """
    low_a, high_a = box(affine_a, shape_a)
    low_b, high_b = box(affine_b, shape_b)
    low = torch.maximum(low_a, low_b)
    return low, torch.maximum(low, torch.minimum(high_a, high_b))


def overlap_share(
    affine_a: Float[Tensor, "B n+1 n+1"],
    shape_a: Sequence[int],
    affine_b: Float[Tensor, "B n+1 n+1"],
    shape_b: Sequence[int],
) -> Float[Tensor, " B"]:
    """Volume of ``overlap_box`` as a share (0 to 1) of the box of the first view."""
    low, high = overlap_box(affine_a, shape_a, affine_b, shape_b)
    low_a, high_a = box(affine_a, shape_a)
    return ((high - low) / (high_a - low_a)).prod(dim=1)


def inside(
    affine: Float[Tensor, "B n+1 n+1"], shape: Sequence[int], points: Float[Tensor, "B N n"]
) -> Bool[Tensor, "B N"]:
    """Which points (in the space of the affine) lie within the outer edges of a view."""
    voxels = apply(invert(affine.to(torch.float64)), points.to(torch.float64))
    extent = torch.tensor([float(size) for size in shape], dtype=torch.float64, device=voxels.device)
    slack = 1e-9 * extent
    return ((voxels >= -0.5 - slack) & (voxels <= extent - 0.5 + slack)).all(dim=-1)


def match_cells(
    affine_a: Float[Tensor, "B n+1 n+1"],
    centers_a: Float[Tensor, "N n"],
    affine_b: Float[Tensor, "B n+1 n+1"],
    centers_b: Float[Tensor, "M n"],
    *,
    radius: float,
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """For each cell of view a: the nearest cell of view b, and whether it lies within ``radius``.

    World affines measure in millimeters, affines to stored voxels in voxels.

    Args:
        affine_a: From view a's voxels to the shared space.
        centers_a: Cell centers in view a's voxels, as from ``cell_centers``.
        affine_b: From view b's voxels to the shared space.
        centers_b: Cell centers in view b's voxels.
        radius: Largest distance between two centers that still match, in units of the shared space.

    Returns:
        The number of the nearest cell of b, and True where it lies within the radius.
    """
    index, distance = nearest_cells(affine_a, centers_a, affine_b, centers_b)
    return index, distance <= radius * (1 + 1e-9)


def nearest_cells(
    affine_a: Float[Tensor, "B n+1 n+1"],
    centers_a: Float[Tensor, "N n"],
    affine_b: Float[Tensor, "B n+1 n+1"],
    centers_b: Float[Tensor, "M n"],
) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N"]]:
    """For each cell of view a: number of the nearest cell of view b, and its distance; see ``match_cells``."""
    device = affine_a.device
    points_a = apply(affine_a.to(torch.float64), centers_a.to(device, torch.float64)[None])
    points_b = apply(affine_b.to(torch.float64), centers_b.to(device, torch.float64)[None])
    nearest: list[Tensor] = []
    for start in range(0, points_a.shape[1], _ROWS):
        part = points_a[:, start : start + _ROWS]
        distances = torch.cdist(part, points_b, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(torch.stack(tuple(distances.min(dim=2)), dim=-1))
    distance, index = torch.cat(nearest, dim=1).unbind(dim=-1)
    return index.long(), distance


def part_along(share: Float[Tensor, " B"], parts: int) -> Int[Tensor, " B"]:
    """Number of the equal part of an axis that a place lies in, from 0; a border belongs to the part above it.

    Args:
        share: Places as shares of the axis, 0 to 1, in float32 precision.
        parts: Number of parts.
    """
    return (share * parts + 1e-4).long().clamp(0, parts - 1)


def _about(linear: Float[Tensor, "B n n"], center: Float[Tensor, "B n"] | None) -> Float[Tensor, "B n+1 n+1"]:
    if center is None:
        return from_parts(linear, torch.zeros_like(linear[:, :, 0]))
    return from_parts(linear, center - (linear @ center[:, :, None])[:, :, 0])


def _planar_rotation(angle: Float[Tensor, " B"], p: int, q: int, n: int) -> Float[Tensor, "B n n"]:
    """Rotation of axis p towards axis q."""
    linear = torch.eye(n, dtype=angle.dtype, device=angle.device).repeat(len(angle), 1, 1)
    linear[:, p, p] = linear[:, q, q] = angle.cos()
    linear[:, q, p] = angle.sin()
    linear[:, p, q] = -angle.sin()
    return linear
