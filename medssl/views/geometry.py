"""Random geometry: draws one affine for each sample and view. ``resample.sample`` applies it.

An affine maps the voxels of a view to the voxels of the raw crop, in float64 on the CPU. From left to right it is:
translation to the drawn center, rotation, scale and mirroring about the center of the view. Rotation is in millimeters,
so that volumes with thick slices are rotated as the body is. Elastic deformation is not supported, since coordinates
would no longer be affine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medssl.ops import coordinates
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.ops.draws import Draws
    from medssl.types import ViewSpec

ROTATION_MARGIN = 1.5  # voxels that resampling plane by plane reads beyond the corners of a rotated view, at most


@dataclass(frozen=True)
class Parts:
    """The part of the scan in which each view must have its center, of equal parts along one axis.

    Coordinates are raw voxels along that axis.

    Attributes:
        axis: The axis.
        center: Desired center of the view.
        low: Start of the part; the center lies in the part for any size of the view.
        high: End of the part.
    """

    axis: int
    center: Float[Tensor, " B"]
    low: Float[Tensor, " B"]
    high: Float[Tensor, " B"]


@dataclass(frozen=True)
class Frame:
    """Limits for the places of views in a batch of raw crops.

    Attributes:
        size: Voxels of a raw crop per axis.
        low: First voxel of the crop, per axis, that lies inside the stored scan.
        high: Last such voxel (included); below ``low`` where the crop holds padding only.
        spacing_mm: Voxel size of the stored scan, mm.
        left_right: Axis of the array that runs from left to right.
        parts: Parts along the stratified axis in which views must lie; None without such parts.
        shown: Raw voxel that the view must contain; NaN for samples without one, None where no sample has one.
        centered: Whether a scan that is not larger than the view is centered in the view.
    """

    size: tuple[int, ...]
    low: Float[Tensor, "B n"]
    high: Float[Tensor, "B n"]
    spacing_mm: Float[Tensor, "B n"]
    left_right: Int[Tensor, " B"]
    parts: Parts | None = None
    shown: Float[Tensor, "B n"] | None = None
    centered: bool = False


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


def draw_geometry(
    spec: ViewSpec,
    draws: Draws,
    frame: Frame,
    *,
    parent: Float[Tensor, "B n+1 n+1"] | None = None,
    parent_size: Sequence[int] | None = None,
) -> Float[Tensor, "B n+1 n+1"]:
    """Draws the affine of each sample's view in its raw crop.

    The center is uniform over the places where the view reads only voxels of the scan. If the scan is smaller than the
    view, it is uniform over the places where the view contains the whole scan, or the middle of the scan
    (``frame.centered``). Along the axis of ``frame.parts`` it is the desired center, moved inwards within the part
    until the view fits; corners of rotated views may reach over the end. The voxel ``frame.shown`` lies in the middle
    half of the view, or closer to the border of the view if it is close to the border of the scan. With neither
    rotation nor scale the view lies on whole voxels. A nested view is shrunk if it does not fit into its parent.

    Args:
        spec: The view.
        draws: Random numbers keyed by sample and view.
        frame: Limits from the raw crops.
        parent: Affine of the view that must contain this one.
        parent_size: Voxels of the parent view per axis.

    Returns:
        Affine from view voxels to raw voxels, float64 on the CPU.
    """
    size = torch.tensor([float(extent) for extent in spec.size], dtype=torch.float64)
    n, batch = len(spec.size), len(frame.low)
    factors = _scales(spec, draws, n)
    turn = _turn(spec, draws, frame.spacing_mm.to(torch.float64))
    signs = _signs(spec, draws, frame.left_right)
    shares = draws.uniform(n).to(torch.float64)
    linear = turn @ torch.diag_embed(factors * signs)
    outer = coordinates.identity(batch, n) if parent is None else parent
    outer_size = frame.size if parent_size is None else tuple(parent_size)
    inward = coordinates.invert(outer)
    reach = ((inward[:, :n, :n] @ linear).abs() @ (size - 1)) / 2
    if parent is not None:
        widest = (torch.tensor([float(extent) for extent in outer_size], dtype=torch.float64) - 1) / 2
        shrink = (widest / reach.clamp_min(1e-9)).amin(dim=1).clamp(max=1.0)
        shrink = torch.where(shrink > 1 - 1e-9, torch.ones_like(shrink), shrink)
        linear, reach = linear * shrink[:, None, None], reach * shrink[:, None]
    is_rotated = any(rotation_limits(spec))
    margin = ROTATION_MARGIN * linear.abs().sum(dim=2) if parent is None and is_rotated else torch.zeros_like(reach)
    scan = _scan_in(frame, inward)
    first, last = _room_for_centers(scan, (reach, margin), outer_size)
    if frame.centered and parent is None:
        first, last = _center_small_scans(scan, reach, first, last)
    fixed_in_part = parent is None and frame.parts is not None
    if frame.parts is not None and fixed_in_part:
        _fix_in_part(frame, frame.parts, first, last, thick=((size - 1) * factors)[:, frame.parts.axis])
    shown = frame.shown if parent is None else None
    if shown is not None:
        first, last = _centers_around(shown, (size - 1) * factors / 4, first, last)
    fixed = _is_whole_voxel_spec(spec) & (_is_whole(outer) & _is_signed(linear))
    center = torch.where(fixed[:, None], _whole_center(first, last, shares, reach), first + shares * (last - first))
    if is_rotated and not fixed_in_part:
        nearest = torch.minimum(torch.maximum(scan[0], first), last)
        center = _move_into_sight(center, nearest, scan, inward[:, :n, :n] @ linear, size)
        if shown is not None:
            center = _move_to_show(center, shown, linear, size)
    center = coordinates.apply(outer, center[:, None])[:, 0]
    return coordinates.from_parts(linear, center - (linear @ ((size - 1) / 2)))


def largest_extent(spec: ViewSpec, spacing_mm: Sequence[float] | None = None) -> tuple[float, ...]:
    """Largest number of stored voxels per axis that a view can cover, over all scales and rotations it may draw.

    Args:
        spec: The view.
        spacing_mm: Spacing of the stored scan per axis, used for rotation; None takes equal spacing.
    """
    n = len(spec.size)
    spacing = torch.tensor([list(spacing_mm or [1.0] * n)], dtype=torch.float64)
    limits = rotation_limits(spec)
    steps = [torch.linspace(-limit, limit, 33, dtype=torch.float64) if limit else torch.zeros(1) for limit in limits]
    angles = torch.tensor(list(itertools.product(*(step.tolist() for step in steps))), dtype=torch.float64)
    turns = _in_voxels(angles, spacing)
    spare = ROTATION_MARGIN if any(limits) else 0.0
    half = torch.tensor([((extent - 1) / 2 + spare) * spec.scale[1] for extent in spec.size], dtype=torch.float64)
    reach = (turns.abs() @ half).amax(dim=0)
    return tuple(float(2 * extent + 1) for extent in reach)


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


def _scales(spec: ViewSpec, draws: Draws, n: int) -> Float[Tensor, "B n"]:
    """Scale factors, uniform in their logarithm: halving and doubling are equally likely."""
    low, high = math.log(spec.scale[0]), math.log(spec.scale[1])
    share = draws.uniform(n).to(torch.float64)
    if spec.geometry.isotropic:
        share = share[:, :1].expand(-1, n)
    return (low + share * (high - low)).exp()


def _turn(spec: ViewSpec, draws: Draws, spacing_mm: Float[Tensor, "B n"]) -> Float[Tensor, "B n n"]:
    limits = torch.tensor(rotation_limits(spec), dtype=torch.float64)
    angles = draws.uniform(len(limits), low=-1.0, high=1.0).to(torch.float64) * limits
    return _in_voxels(angles, spacing_mm)


def _in_voxels(angles: Float[Tensor, "B k"], spacing_mm: Float[Tensor, "B n"]) -> Float[Tensor, "B n n"]:
    """Rotation in millimeters as a matrix on voxels: voxels to millimeters, rotation, millimeters to voxels."""
    n = spacing_mm.shape[1]
    turn = coordinates.rotation(angles)[:, :n, :n]
    return turn * spacing_mm[:, None, :] / spacing_mm[:, :, None]


def _signs(spec: ViewSpec, draws: Draws, left_right: Int[Tensor, " B"]) -> Float[Tensor, "B n"]:
    """-1 for axes that are mirrored, else 1."""
    n = len(spec.size)
    flipped: Bool[Tensor, "B n"] = draws.bernoulli(0.5, n)
    if spec.geometry.flip == "none":
        flipped = torch.zeros_like(flipped)
    elif spec.geometry.flip == "safe":
        flipped = flipped & (torch.arange(n)[None] != left_right[:, None])
    return 1.0 - 2.0 * flipped.to(torch.float64)


def _scan_in(frame: Frame, inward: Float[Tensor, "B n+1 n+1"]) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Middle and half extent of each scan, in voxels of the crop or of the parent view."""
    low, high = frame.low.to(torch.float64), frame.high.to(torch.float64)
    middle = coordinates.apply(inward, ((low + high) / 2)[:, None])[:, 0]
    half = (inward[:, :-1, :-1].abs() @ ((high - low).clamp_min(0) / 2)[:, :, None])[:, :, 0]
    return middle, half


def _room_for_centers(
    scan: tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]],
    extent: tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]],
    outer_size: Sequence[int],
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Lowest and highest center per axis, in the voxels of the crop or of the parent view.

    Args:
        scan: Middle and half extent of the scan.
        extent: Half extent of the view, and the margin that a rotated view keeps from the border
            (``ROTATION_MARGIN``).
        outer_size: Voxels of the crop or of the parent view per axis.
    """
    (middle, half), (reach, margin) = scan, extent
    last_voxel = torch.tensor([float(extent - 1) for extent in outer_size], dtype=torch.float64)
    scan_start = torch.minimum((middle - half).clamp_min(0), last_voxel)
    scan_end = torch.maximum(torch.minimum(middle + half, last_voxel), scan_start)
    first, last = (
        torch.minimum(scan_start + reach, scan_end - reach),
        torch.maximum(scan_start + reach, scan_end - reach),
    )
    fits = last_voxel - 2 * (reach + margin) >= -1e-9
    lowest = torch.where(fits, reach + margin, last_voxel / 2)
    highest = torch.where(fits, last_voxel - reach - margin, last_voxel / 2)
    return torch.minimum(torch.maximum(first, lowest), highest), torch.maximum(torch.minimum(last, highest), lowest)


def _center_small_scans(
    scan: tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]],
    reach: Float[Tensor, "B n"],
    first: Float[Tensor, "B n"],
    last: Float[Tensor, "B n"],
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Narrows the range of centers to the middle of the scan, along axes where the view contains the whole scan."""
    middle, half = scan
    middle_center, view_holds_scan = torch.minimum(torch.maximum(middle, first), last), half <= reach + 1e-9
    return torch.where(view_holds_scan, middle_center, first), torch.where(view_holds_scan, middle_center, last)


def _fix_in_part(
    frame: Frame, parts: Parts, first: Float[Tensor, "B n"], last: Float[Tensor, "B n"], *, thick: Float[Tensor, " B"]
) -> None:
    """Sets the range of centers to the desired center; ``thick`` is the extent from first to last voxel of the view."""
    half = thick / 2
    low, high = frame.low[:, parts.axis] + half, frame.high[:, parts.axis] - half
    inside = torch.where(low <= high, torch.minimum(torch.maximum(parts.center, low), high), (low + high) / 2)
    first[:, parts.axis] = last[:, parts.axis] = torch.minimum(torch.maximum(inside, parts.low), parts.high)


def _move_into_sight(
    center: Float[Tensor, "B n"],
    nearest: Float[Tensor, "B n"],
    scan: tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]],
    linear: Float[Tensor, "B n n"],
    size: Float[Tensor, " n"],
) -> Float[Tensor, "B n"]:
    """Moves centers of rotated views towards the scan, so that the view does not miss it.

    The bounding box of a rotated view has corners that the view does not reach; a small scan could lie there. The
    center moves until, in the axes of the view, the scan's box contains the view or lies inside it. A view that fits
    into its scan is not moved.

    Args:
        center: Drawn centers.
        nearest: Allowed center that is closest to the middle of the scan.
        scan: Middle and half extent of the scan.
        linear: Steps of the view's axes.
        size: Voxels of the view per axis.
    """
    (middle, half), inverse = scan, torch.linalg.inv(linear)
    nearest_offset, direction = (
        torch.einsum("bij,bj->bi", inverse, move) for move in (nearest - middle, center - nearest)
    )
    bound = (torch.einsum("bij,bj->bi", inverse.abs(), half) - (size - 1) / 2).abs()
    bound = torch.maximum(bound, nearest_offset.abs())
    is_fixed = direction.abs() < 1e-9
    share = (torch.where(direction > 0, bound, -bound) - nearest_offset) / torch.where(
        is_fixed, torch.ones_like(direction), direction
    )
    share = torch.where(is_fixed | (share > 1 - 1e-9), torch.ones_like(share), share).amin(dim=1, keepdim=True)
    return torch.where(share < 1, nearest + share * (center - nearest), center)


def _centers_around(
    shown: Float[Tensor, "B n"], quarter: Float[Tensor, "B n"], first: Float[Tensor, "B n"], last: Float[Tensor, "B n"]
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Narrows the range of centers to a quarter of the view around the voxel that must be shown.

    Where the range does not reach so far, its nearest value is taken. Rows of NaN keep their range.
    """
    low, high = (torch.minimum(torch.maximum(shown + offset, first), last) for offset in (-quarter, quarter))
    anywhere = shown.isnan()
    return torch.where(anywhere, first, low), torch.where(anywhere, last, high)


def _move_to_show(
    center: Float[Tensor, "B n"], shown: Float[Tensor, "B n"], linear: Float[Tensor, "B n n"], size: Float[Tensor, " n"]
) -> Float[Tensor, "B n"]:
    """Moves centers of rotated views towards the voxel that must be shown until the view contains it."""
    distance = torch.einsum("bij,bj->bi", torch.linalg.inv(linear), center - shown).abs()
    share = ((size - 1) / 2 / distance.clamp_min(1e-9)).amin(dim=1, keepdim=True)
    return torch.where(share < 1 - 1e-9, shown + share * (center - shown), center)  # rows of NaN are not moved


def _whole_center(
    first: Float[Tensor, "B n"], last: Float[Tensor, "B n"], share: Float[Tensor, "B n"], reach: Float[Tensor, "B n"]
) -> Float[Tensor, "B n"]:
    """A center between ``first`` and ``last`` that puts the view on whole voxels, all of them equally likely."""
    low, high = torch.ceil(first - reach - 1e-6), torch.floor(last - reach + 1e-6)
    start = torch.minimum(low + torch.floor(share * (high - low + 1)), high)
    return start + reach


def _is_whole_voxel_spec(spec: ViewSpec) -> bool:
    """Whether a view draws neither rotation nor scale."""
    return tuple(spec.scale) == (1.0, 1.0) and not any(rotation_limits(spec))


def _is_whole(affine: Float[Tensor, "B n+1 n+1"]) -> Bool[Tensor, " B"]:
    """Which affines only crop and flip by whole voxels."""
    offset = affine[:, :-1, -1]
    return _is_signed(affine[:, :-1, :-1]) & ((offset - offset.round()).abs() < 1e-9).all(dim=1)


def _is_signed(linear: Float[Tensor, "B n n"]) -> Bool[Tensor, " B"]:
    return (linear.abs() - torch.eye(linear.shape[-1], dtype=linear.dtype)).abs().amax(dim=(1, 2)) < 1e-9
