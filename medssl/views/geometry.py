"""Random geometry: draws one affine for each sample and view. ``resample.sample`` applies it.

An affine maps the voxels of a view to the voxels of the raw crop, in float64 on the CPU. From left to right it is:
translation to the drawn center, rotation, scale, quarter turn and mirroring about the center of the view. Rotation is
in millimeters, so that volumes with thick slices are rotated as the body is; quarter turns are in voxels, and exact.
Elastic deformation is not supported, since coordinates would no longer be affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medssl.ops import coordinates
from medssl.views import overlap
from medssl.views.extents import MARGINS, factors_of, in_voxels, rotation_limits
from medssl.views.mirroring import allowed_axes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.ops.draws import Draws
    from medssl.types import ViewSpec
    from medssl.views.overlap import Partner


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
class RawCrop:
    """Where raw crops lie in their scans.

    Attributes:
        size: Voxels of a raw crop per axis.
        low: First voxel of the crop, per axis, that lies inside the stored scan.
        high: Last such voxel (included); below ``low`` where the crop holds padding only.
        spacing_mm: Voxel size of the stored scan, mm.
        left_right: Axis of the array that runs from left to right.
    """

    size: tuple[int, ...]
    low: Float[Tensor, "B n"]
    high: Float[Tensor, "B n"]
    spacing_mm: Float[Tensor, "B n"]
    left_right: Int[Tensor, " B"]


@dataclass(frozen=True)
class Frame(RawCrop):
    """Limits for the places of views in a batch of raw crops.

    Attributes:
        parts: Parts along the stratified axis in which views must lie; None without such parts.
        shown: Raw voxel that the view must contain; NaN for samples without one, None where no sample has one.
        centered: Whether a scan that is not larger than the view is centered in the view.
        shape: Voxels of the stored scan per axis, needed by views of a share of the scan.
    """

    parts: Parts | None = None
    shown: Float[Tensor, "B n"] | None = None
    centered: bool = False
    shape: Float[Tensor, "B n"] | None = None


def draw_geometry(
    spec: ViewSpec,
    draws: Draws,
    frame: Frame,
    *,
    parent: Float[Tensor, "B n+1 n+1"] | None = None,
    parent_size: Sequence[int] | None = None,
    partner: Partner | None = None,
) -> Float[Tensor, "B n+1 n+1"]:
    """Draws the affine of each sample's view in its raw crop.

    The center is uniform over the places where the view reads only voxels of the scan. If the scan is smaller than the
    view, it is uniform over the places where the view contains the whole scan, or the middle of the scan
    (``frame.centered``). Along the axis of ``frame.parts`` it is the desired center, moved inwards within the part
    until the view fits; corners of rotated views may reach over the end. The voxel ``frame.shown`` lies in the middle
    half of the view, or closer to the border of the view if it is close to the border of the scan. With neither
    rotation nor scale the view lies on whole voxels. A nested view is shrunk if it does not fit into its parent. With a
    least overlap, scale and center are limited to those that meet it; then corners of rotated views may reach over the
    end of the scan.

    Args:
        spec: The view.
        draws: Random numbers keyed by sample and view.
        frame: Limits from the raw crops.
        parent: Affine of the view that must contain this one.
        parent_size: Voxels of the parent view per axis.
        partner: The view that this one must overlap; None without a least overlap.

    Returns:
        Affine from view voxels to raw voxels, float64 on the CPU.
    """
    size = torch.tensor([float(extent) for extent in spec.size], dtype=torch.float64)
    n, batch = len(spec.size), len(frame.low)
    drawn = _draw(spec, draws, frame)
    factors = drawn.factors if partner is None else overlap.matching_factors(drawn.factors, spec, partner)
    linear = drawn.turn @ (factors[:, :, None] * drawn.quarters * drawn.signs[:, None, :])
    outer = coordinates.identity(batch, n) if parent is None else parent
    outer_size = frame.size if parent_size is None else tuple(parent_size)
    inward = coordinates.invert(outer)
    linear, reach = _fitted(linear, inward, size, None if parent is None else outer_size)
    spare = MARGINS[spec.geometry.interpolation] if parent is None else 0.0
    margin = spare * linear.abs().sum(dim=2) * drawn.is_rotated[:, None]
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
    if partner is not None:
        first, last = overlap.room_for_centers(first, last, factors * size, spec, partner)
    on_grid = ~drawn.is_changed & _is_whole(outer) & _is_signed(linear)
    if partner is not None:  # where no whole voxel is near enough, the view is interpolated
        on_grid &= (torch.ceil(first - reach - 1e-6) <= torch.floor(last - reach + 1e-6)).all(dim=1)
    between = first + drawn.shares * (last - first)
    center = torch.where(on_grid[:, None], _whole_center(first, last, drawn.shares, reach), between)
    if bool(drawn.is_rotated.any()) and not fixed_in_part:
        nearest = torch.minimum(torch.maximum(scan[0], first), last)
        moved = _move_into_sight(center, nearest, scan, inward[:, :n, :n] @ linear, size)
        if shown is not None:
            moved = _move_to_show(moved, shown, linear, size)
        center = torch.where(drawn.is_rotated[:, None], moved, center)
    center = coordinates.apply(outer, center[:, None])[:, 0]
    return coordinates.from_parts(linear, center - (linear @ ((size - 1) / 2)))


@dataclass(frozen=True)
class _Drawn:
    """What is drawn for the views of a batch.

    Attributes:
        factors: Stored voxels per voxel of the view and axis.
        turn: Rotation on voxels.
        is_rotated: Whether the view is rotated.
        is_changed: Whether it is rotated or scaled.
        signs: -1 for axes that are mirrored, else 1.
        quarters: Quarter turns; identity where there is none.
        shares: Place of the center in its range, 0 to 1.
    """

    factors: Float[Tensor, "B n"]
    turn: Float[Tensor, "B n n"]
    is_rotated: Bool[Tensor, " B"]
    is_changed: Bool[Tensor, " B"]
    signs: Float[Tensor, "B n"]
    quarters: Float[Tensor, "B n n"]
    shares: Float[Tensor, "B n"]


def _draw(spec: ViewSpec, draws: Draws, frame: Frame) -> _Drawn:
    """Draws scale, rotation, mirroring and place; the order of draws is that of 0.1.0, new ones come last."""
    n, batch, limits = len(spec.size), len(frame.low), rotation_limits(spec)
    factors = factors_of(spec, draws.uniform(n).to(torch.float64), frame.shape)
    angles = draws.uniform(len(limits), low=-1.0, high=1.0).to(torch.float64) * torch.tensor(
        limits, dtype=torch.float64
    )
    signs = _signs(spec, draws, frame.left_right)
    shares = draws.uniform(n).to(torch.float64)
    applied = torch.ones(batch, 2, dtype=torch.bool)
    if spec.geometry.probability < 1:
        applied = draws.bernoulli(spec.geometry.probability, 2)
    is_scaled = applied[:, 0] & (spec.area is not None or tuple(spec.scale) != (1.0, 1.0))
    is_rotated = applied[:, 1] & any(limits)
    factors = torch.where(applied[:, :1], factors, torch.ones_like(factors))
    turn = in_voxels(torch.where(applied[:, 1:], angles, torch.zeros_like(angles)), frame.spacing_mm.to(torch.float64))
    quarters = _quarter_turns(spec.geometry.quarter_turns, draws, n)
    return _Drawn(factors, turn, is_rotated, is_rotated | is_scaled, signs, quarters, shares)


def _quarter_turns(probability: float, draws: Draws, n: int) -> Float[Tensor, "B n n"]:
    """Turns by 0 to 3 quarters as matrices of 0, 1 and -1."""
    if probability == 0:
        return torch.eye(n, dtype=torch.float64).expand(len(draws), n, n)
    is_turned = draws.bernoulli(probability)
    quarters = torch.where(is_turned, draws.integers(0, 4), torch.zeros(len(draws), dtype=torch.long))
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    turns = torch.stack([torch.linalg.matrix_power(quarter, number) for number in range(4)])
    chosen: Tensor = turns[quarters]
    return chosen


def _signs(spec: ViewSpec, draws: Draws, left_right: Int[Tensor, " B"]) -> Float[Tensor, "B n"]:
    """-1 for axes that are mirrored, else 1."""
    n = len(spec.size)
    flipped: Bool[Tensor, "B n"] = draws.bernoulli(0.5, n)
    flipped = flipped & allowed_axes(spec.geometry.flip, left_right, n_axes=n)
    return 1.0 - 2.0 * flipped.to(torch.float64)


def _fitted(
    linear: Float[Tensor, "B n n"],
    inward: Float[Tensor, "B n+1 n+1"],
    size: Float[Tensor, " n"],
    parent_size: Sequence[int] | None,
) -> tuple[Float[Tensor, "B n n"], Float[Tensor, "B n"]]:
    """Steps of the view's axes, shrunk to fit into a parent view; half extents of the view in voxels around it."""
    n = len(size)
    reach = ((inward[:, :n, :n] @ linear).abs() @ (size - 1)) / 2
    if parent_size is None:
        return linear, reach
    widest = (torch.tensor([float(extent) for extent in parent_size], dtype=torch.float64) - 1) / 2
    shrink = (widest / reach.clamp_min(1e-9)).amin(dim=1).clamp(max=1.0)
    shrink = torch.where(shrink > 1 - 1e-9, torch.ones_like(shrink), shrink)
    return linear * shrink[:, None, None], reach * shrink[:, None]


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
            (``MARGINS``).
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


def _is_whole(affine: Float[Tensor, "B n+1 n+1"]) -> Bool[Tensor, " B"]:
    """Which affines only crop, flip and turn by quarters, by whole voxels."""
    offset = affine[:, :-1, -1]
    return _is_signed(affine[:, :-1, :-1]) & ((offset - offset.round()).abs() < 1e-9).all(dim=1)


def _is_signed(linear: Float[Tensor, "B n n"]) -> Bool[Tensor, " B"]:
    """Which matrices only exchange axes and change their signs."""
    size = linear.abs()
    is_whole = (size - size.round()).abs().amax(dim=(1, 2)) < 1e-9
    one_each = (size.round().sum(dim=1) == 1).all(dim=1) & (size.round().sum(dim=2) == 1).all(dim=1)
    return is_whole & one_each
