"""How large views are: factors from voxels of the view to stored voxels, and the largest extent of a plan's views."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from medssl.ops import coordinates
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.types import ViewSpec

MARGINS = {"linear": 1.5, "cubic": 4.5}  # voxels read beyond the corners of a rotated view, plane by plane, at most


def rotation_limits(spec: ViewSpec) -> tuple[float, ...]:
    """Largest rotation in radians: one number in 2D, one per axis of rotation in 3D.

    Raises:
        UserError: The number of angles is neither 1 nor the number of rotation axes.
    """
    planes = 1 if len(spec.size) == 2 else 3
    degrees = spec.geometry.rotation_degrees
    if len(degrees) not in (1, planes):
        message = f"geometry.rotation_degrees takes 1{' or 3 numbers' if planes == 3 else ' number in 2D'}: {degrees}"
        raise UserError(message)
    return tuple(math.radians(angle) for angle in (degrees * planes if len(degrees) == 1 else degrees))


def factors_of(spec: ViewSpec, share: Float[Tensor, "B n"], shape: Float[Tensor, "B n"] | None) -> Float[Tensor, "B n"]:
    """Stored voxels per voxel of the view and axis.

    With ``scale``, factors are uniform in their logarithm: halving and doubling are equally likely. With ``area``, the
    share of the scan is uniform.

    Args:
        spec: The view.
        share: Uniform numbers from 0 to 1.
        shape: Voxels of each stored scan per axis, needed with ``area``.

    Raises:
        ValueError: The view has an area and there is no shape.
    """
    n = len(spec.size)
    if spec.area is not None:
        if shape is None:
            message = "a view of a share of the scan needs the shapes of the scans"
            raise ValueError(message)
        area = spec.area[0] + share[:, 0] * (spec.area[1] - spec.area[0])
        return factor_of_area(area, shape, spec.size)[:, None].expand(-1, n)
    low, high = math.log(spec.scale[0]), math.log(spec.scale[1])
    if spec.geometry.isotropic:
        share = share[:, :1].expand(-1, n)
    return (low + share * (high - low)).exp()


def factor_of_area(area: Float[Tensor, " B"], shape: Float[Tensor, "B n"], size: Sequence[int]) -> Float[Tensor, " B"]:
    """Factor by which a view shows a share of its scan.

    With the factor f, the view shows at most ``min(f size_k, shape_k)`` voxels of axis k. The product over the axes is
    the share times the voxels of the scan. A view of the whole scan reaches over it where their proportions differ.

    Args:
        area: Shares of the scan, above 0 to 1.
        shape: Voxels of each scan per axis.
        size: Voxels of the view per axis.
    """
    ratios = (shape.to(torch.float64) / torch.tensor(list(size), dtype=torch.float64)).sort(dim=1).values
    n = len(size)
    factor = torch.full_like(ratios[:, 0], math.nan)
    for filled in range(n):  # axes of the scan that the view covers from end to end
        candidate = (area * ratios[:, filled:].prod(dim=1)) ** (1 / (n - filled))
        fits = factor.isnan() & ((candidate <= ratios[:, filled]) | (filled == n - 1))
        factor = torch.where(fits, candidate, factor)
    return factor


def largest_extent(
    spec: ViewSpec, spacing_mm: Sequence[float] | None = None, shapes: Int[Tensor, "N n"] | None = None
) -> tuple[float, ...]:
    """Largest number of stored voxels per axis that a view can cover, over all scales and rotations it may draw.

    Args:
        spec: The view.
        spacing_mm: Spacing of the stored scan per axis, used for rotation; None takes equal spacing.
        shapes: Shapes of the stored scans, needed for a view with an area.

    Raises:
        ValueError: The view has an area and there are no shapes.
    """
    n = len(spec.size)
    spacing = torch.tensor([list(spacing_mm or [1.0] * n)], dtype=torch.float64)
    limits = rotation_limits(spec)
    steps = [torch.linspace(-limit, limit, 33, dtype=torch.float64) if limit else torch.zeros(1) for limit in limits]
    angles = torch.tensor(list(itertools.product(*(step.tolist() for step in steps))), dtype=torch.float64)
    turns = in_voxels(angles, spacing)
    spare = MARGINS[spec.geometry.interpolation] if any(limits) else 0.0
    factor = largest_factor(spec, shapes)
    half = torch.tensor([((extent - 1) / 2 + spare) * factor for extent in spec.size], dtype=torch.float64)
    reach = (turns.abs() @ half).amax(dim=0)
    return tuple(float(2 * extent + 1) for extent in reach)


def largest_factor(spec: ViewSpec, shapes: Int[Tensor, "N n"] | None) -> float:
    """Most stored voxels per voxel of a view, over all that it may draw."""
    untouched = 1.0 if spec.geometry.probability < 1 else 0.0
    if spec.area is None:
        return max(spec.scale[1], untouched)
    if shapes is None:
        message = "a view of a share of the scan needs the shapes of the scans"
        raise ValueError(message)
    area = torch.full((len(shapes),), spec.area[1], dtype=torch.float64)
    return max(float(factor_of_area(area, shapes, spec.size).max()), untouched)


def in_voxels(angles: Float[Tensor, "B k"], spacing_mm: Float[Tensor, "B n"]) -> Float[Tensor, "B n n"]:
    """Rotation in millimeters as a matrix on voxels: voxels to millimeters, rotation, millimeters to voxels."""
    n = spacing_mm.shape[1]
    turn = coordinates.rotation(angles)[:, :n, :n]
    return turn * spacing_mm[:, None, :] / spacing_mm[:, :, None]
