"""Keeps a least overlap between a view and the first view of its plan.

Views count as the boxes that they are before rotation, along the axes of the stored scan. With extents a and b of the
two boxes, the distance d of their centers and the share m, the boxes have at least m max(a, b) in common along an axis
if ``min(a, b) >= m max(a, b)`` and ``d <= (a + b) / 2 - m max(a, b)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from medssl.types import ViewPlan, ViewSpec


@dataclass(frozen=True)
class Partner:
    """The first views of the samples.

    Attributes:
        center: Their centers in voxels of the raw crop.
        extent: Raw voxels from edge to edge per axis, before rotation.
    """

    center: Float[Tensor, "B n"]
    extent: Float[Tensor, "B n"]


def partner_of(
    affine: Float[Tensor, "B n+1 n+1"], size: Float[Tensor, " n"], spacing_mm: Float[Tensor, "B n"]
) -> Partner:
    """Center and extent of views, from their affines to raw voxels."""
    n = len(size)
    linear = affine[:, :n, :n]
    center = linear @ ((size - 1) / 2) + affine[:, :n, n]
    steps_mm = (linear * spacing_mm[:, :, None]).norm(dim=1)  # a rotation in mm leaves lengths as they are
    return Partner(center, steps_mm / spacing_mm * size)


def matching_factors(factors: Float[Tensor, "B n"], spec: ViewSpec, partner: Partner) -> Float[Tensor, "B n"]:
    """Factors moved as little as needed so that both boxes are at least the share of the larger one."""
    share, size = spec.min_overlap, torch.tensor(list(spec.size), dtype=torch.float64)
    low, high = partner.extent * share / size, partner.extent / (share * size)
    if spec.geometry.isotropic:
        low, high = low.amax(dim=1, keepdim=True), high.amin(dim=1, keepdim=True)
    moved = torch.minimum(torch.maximum(factors, low), high)
    return torch.where((factors >= low * (1 - 1e-9)) & (factors <= high * (1 + 1e-9)), factors, moved)


def room_for_centers(
    first: Float[Tensor, "B n"],
    last: Float[Tensor, "B n"],
    extent: Float[Tensor, "B n"],
    spec: ViewSpec,
    partner: Partner,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """The range of centers, limited to those with the least overlap; its nearest end where there are none."""
    distance = (extent + partner.extent) / 2 - spec.min_overlap * torch.maximum(extent, partner.extent)
    low, high = partner.center - distance.clamp_min(0), partner.center + distance.clamp_min(0)
    return torch.minimum(torch.maximum(first, low), high), torch.maximum(torch.minimum(last, high), low)


def problem(spec: ViewSpec, number: int, plan: ViewPlan) -> str:
    """Why a view cannot have its least overlap with the first view; "" if it can."""
    share, first = spec.min_overlap, plan.views[0]
    if not 0 <= share <= 1:
        return f"min_overlap takes a share from 0 to 1: {share}"
    if share == 0 or number == 0:
        return ""
    if spec.nested_in is not None:
        return f"min_overlap {share} and nested_in {spec.nested_in} both say where the view lies: leave one of them out"
    if plan.sampling.labeled > 0:
        return f"min_overlap {share} and data.sampling.labeled {plan.sampling.labeled} cannot both place a view"
    if (spec.area is None) != (first.area is None):
        return f"min_overlap {share} compares views by scale or views by area, not one with the other"
    low, high = _range(spec)
    first_low, first_high = _range(first)
    ratios = [a / b for a, b in zip(first.size, spec.size, strict=True)]
    least = {  # share of the larger view that some pairs have in common at best, and along which axis
        high / (first_high * max(ratios)): ratios.index(max(ratios)),
        first_low * min(ratios) / low: ratios.index(min(ratios)),
    }
    if spec.geometry.isotropic:
        least[(min(ratios) / max(ratios)) ** 0.5] = ratios.index(min(ratios))
    common = min(least)
    if common >= share * (1 - 1e-9):
        return ""
    axis = least[common]
    return (
        f"min_overlap {share}: with sizes {list(first.size)} of the first view and {list(spec.size)} of this one, "
        f"{_named(first)} and {_named(spec)}, some pairs have at most {common:.2g} of the larger view in common along "
        f"axis {axis}; lower min_overlap, or bring the sizes closer together"
    )


def _named(spec: ViewSpec) -> str:
    """The key that sets how large a view is."""
    return f"scale {list(spec.scale)}" if spec.area is None else f"area {list(spec.area)}"


def _range(spec: ViewSpec) -> tuple[float, float]:
    """Smallest and largest factor of a view; for areas but for a factor that all views of a scan share."""
    if spec.area is None:
        low, high = spec.scale
        untouched = spec.geometry.probability < 1
        return (min(low, 1.0), max(high, 1.0)) if untouched else (low, high)
    n, voxels = len(spec.size), float(torch.tensor(list(spec.size), dtype=torch.float64).prod())
    return (spec.area[0] / voxels) ** (1 / n), (spec.area[1] / voxels) ** (1 / n)
