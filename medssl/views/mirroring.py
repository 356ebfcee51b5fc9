"""Which axes may be mirrored: by the rule of a view, and by the rule that a store gives for its data.

A view with ``flip: data`` follows ``preprocess.mirror`` of the store. ``mirrored_axes`` gives the axes, for the random
flips of views and for predictions over mirrored copies of a scan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types import Geometry, ViewPlan

Mirror = Literal["safe", "all", "none"]


def left_right_axis(world_affine: Float[Tensor, "B n+1 n+1"]) -> Int[Tensor, " B"]:
    """Axis of the array that is closest to the patient's left-right axis.

    In 3D it follows from the directions of the axes in world space (RAS+: the first coordinate). In 2D it is the
    horizontal axis 1: projections and photographs are laid out in this way, and slices are cut in this way.
    """
    n = world_affine.shape[-1] - 1
    if n == 2:
        return torch.ones(len(world_affine), dtype=torch.long)
    columns = world_affine[:, :n, :n].detach().cpu().to(torch.float64)
    directions = columns / columns.norm(dim=1, keepdim=True).clamp_min(1e-12)
    axis: Tensor = directions[:, 0].abs().argmax(dim=1)
    return axis


def mirrored_axes(
    geometry: Geometry, world_affine: Float[Tensor, "B n+1 n+1"], rule: Mirror = "safe"
) -> Bool[Tensor, "B n"]:
    """Axes of the array that may be mirrored.

    Args:
        geometry: Geometry of the view that a network was trained on.
        world_affine: Array voxel -> world mm RAS+; two axes for images and for slices of volumes.
        rule: Rule of the data, ``preprocess.mirror`` of a store or a card; it decides where ``flip`` is "data".
    """
    return allowed_axes(
        rule if geometry.flip == "data" else geometry.flip,
        left_right_axis(world_affine),
        n_axes=world_affine.shape[-1] - 1,
    )


def allowed_axes(flip: str, left_right: Int[Tensor, " B"], *, n_axes: int) -> Bool[Tensor, "B n"]:
    """Axes that a rule allows to mirror, given the left-right axis of each array; "data" counts as "safe"."""
    axes = torch.arange(n_axes)[None].expand(len(left_right), -1)
    if flip == "none":
        return torch.zeros_like(axes, dtype=torch.bool)
    return torch.ones_like(axes, dtype=torch.bool) if flip == "all" else axes != left_right[:, None]


def with_rule(plan: ViewPlan, rule: Mirror) -> ViewPlan:
    """The plan in which views with ``flip: data`` follow the rule of a store."""
    views = tuple(
        replace(view, geometry=replace(view.geometry, flip=rule)) if view.geometry.flip == "data" else view
        for view in plan.views
    )
    return replace(plan, views=views)
