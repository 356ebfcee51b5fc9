"""From raw crops to a Batch: size of the crops that a plan needs, and computation of its views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from medssl.ops import coordinates
from medssl.ops.draws import Draws
from medssl.types import Batch, UserError, View
from medssl.views import geometry, intensity, overlap, stain
from medssl.views.checks import check_plan
from medssl.views.extents import largest_extent
from medssl.views.mirroring import left_right_axis
from medssl.views.resample import covered, is_whole, sample, window

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types import Crops, Placement, ViewPlan, ViewSpec

_GRID = 16  # the store's crops begin on blocks of this many voxels; views move freely within


def read_size(
    plan: ViewPlan, spacing_mm: Sequence[float] | None = None, shapes: Int[Tensor, "N n"] | None = None
) -> tuple[int, ...]:
    """Voxels per axis that a raw crop must have so that it contains every view of the plan.

    This includes the largest scale, every rotation and the distance to the store's grid of 16 voxels. Nested views lie
    in their parents and need nothing more. With the shapes of the scans, no crop is larger than the largest scan or
    the largest view that shows a share of its scan.

    Args:
        plan: The views.
        spacing_mm: Spacing of the stored scans per axis: rotated thick slices cover many voxels in plane. None takes
            equal spacing; voxels that a crop then lacks are padding, marked as not valid.
        shapes: Shapes of the scans, for views of a share of the scan (``needs_shapes``).

    Raises:
        UserError: The plan is not valid, see ``check_plan``.
        ValueError: A view shows a share of the scan, and there are no shapes.
    """
    check_plan(plan)
    own = [spec for spec in plan.views if spec.nested_in is None]
    extents = [largest_extent(spec, spacing_mm, shapes) for spec in own]
    size = [math.ceil(max(axis) - 1e-6) + _GRID - 1 for axis in zip(*extents, strict=True)]
    if shapes is None or not needs_shapes(plan):
        return tuple(size)
    largest = [max(int(edge), *(spec.size[axis] for spec in own)) for axis, edge in enumerate(shapes.amax(dim=0))]
    return tuple(min(pair) for pair in zip(size, largest, strict=True))


def needs_shapes(plan: ViewPlan) -> bool:
    """Whether the size of raw crops depends on the shapes of the scans: a view shows a share of its scan."""
    return any(spec.area is not None for spec in plan.views)


def make_batch(crops: Crops, plan: ViewPlan, *, seed: int, device: torch.device | str, alone: bool = False) -> Batch:
    """Computes every view of a plan from raw crops, on the device.

    Geometry is drawn from ``Draws(seed, samples, "view<k>.geometry")``, intensity from ``"view<k>.intensity"``, stains
    from ``"view<k>.stain"``. A sample's view therefore does not depend on its batch, unless it takes the style of
    another sample (``intensity.stain_exchange``): then all processes make their batches together. Views that only
    crop, flip and turn by quarters are exact copies of the stored voxels. Voxels outside the scan or the crop have the
    lowest value, and are neither ``valid`` nor ``scored``. Labels are -1 where a view is not ``scored``. A missing
    channel is 0 everywhere.

    Args:
        crops: Raw crops from the loader.
        plan: The views.
        seed: Seed of the run.
        device: Device that computes and holds the views.
        alone: Whether the other processes make no batch now: styles are then exchanged within this one.

    Raises:
        UserError: The plan is not valid, its views have another number of axes than the crops, or change stains of
            images that are not in color.
    """
    check_plan(plan)
    n = crops.image.ndim - 2
    if len(plan.views[0].size) != n:
        message = f"the views have {len(plan.views[0].size)} axes ({plan.views[0].size}), the crops {n}: see slice_axis"
        raise UserError(message)
    device = torch.device(device)
    frame = _frame(crops, plan)
    crops_on_device = _to_device(crops, device)
    styles = None
    if any(spec.intensity.stain_exchange > 0 for spec in plan.views):
        styles = stain.styles_of(crops_on_device.raw, crops_on_device.numbers, crops.origin.samples, alone=alone)
    views: list[View] = []
    targets: list[Tensor] = []
    affines: list[Tensor] = []
    for number, spec in enumerate(plan.views):
        parent = None if spec.nested_in is None else affines[spec.nested_in]
        partner = None
        if number and spec.min_overlap > 0:
            first_size = torch.tensor([float(extent) for extent in plan.views[0].size], dtype=torch.float64)
            partner = overlap.partner_of(affines[0], first_size, frame.spacing_mm)
        affines.append(
            geometry.draw_geometry(
                spec,
                Draws(seed, crops.origin.samples, f"view{number}.geometry"),
                frame,
                parent=parent,
                parent_size=None if spec.nested_in is None else plan.views[spec.nested_in].size,
                partner=partner,
            )
        )
        draws = [Draws(seed, crops.origin.samples, f"view{number}.{purpose}") for purpose in ("intensity", "stain")]
        channels, changes = crops.image.shape[1], spec.intensity
        drawn = _Changes(
            seed,
            intensity.draw_intensity(changes, draws[0], channels=channels, n=n),
            stain.draw_stain(changes, draws[1], channels=channels, styles=styles if changes.stain_exchange else None),
        )
        views.append(_view(crops_on_device, spec, affines[-1], frame, drawn))
        if crops_on_device.labels is not None:
            labels = sample(crops_on_device.labels, affines[-1], spec.size, "nearest")
            targets.append(torch.where(views[-1].scored, labels, labels.new_full((), -1)))
    origin = crops.origin
    origin = replace(origin, positions=origin.positions.to(device), along=origin.along.to(device))
    return Batch(tuple(views), origin, tuple(targets) if crops_on_device.labels is not None else None, crops.values)


@dataclass(frozen=True)
class _DeviceCrops:
    """Raw crops on the device; ``numbers`` and ``placement`` stay on the CPU, where they select the code path."""

    raw: Tensor
    numbers: Float[Tensor, "B C 6"]
    placement: Placement
    present: Bool[Tensor, "B C"]
    all_present: bool
    labels: Int[Tensor, "B 1 *s"] | None
    scored: Bool[Tensor, "B 1 *s"] | None


@dataclass(frozen=True)
class _Changes:
    """Parameters of the changes of a view: of intensities, and of stains (None without changes of stains)."""

    seed: int
    intensity: intensity.IntensityDraw
    stain: stain.StainDraw | None

    def rows(self, rows: slice) -> _Changes:
        return _Changes(self.seed, self.intensity.rows(rows), None if self.stain is None else self.stain.rows(rows))


def _to_device(crops: Crops, device: torch.device) -> _DeviceCrops:
    present = torch.ones(crops.image.shape[:2], dtype=torch.bool) if crops.present is None else crops.present.cpu()
    return _DeviceCrops(
        raw=crops.image.to(device, non_blocking=True),
        numbers=crops.intensity.cpu(),
        placement=crops.placement,
        present=present.to(device),
        all_present=bool(present.all()),
        labels=None if crops.labels is None else crops.labels.to(device, non_blocking=True),
        scored=None if crops.scored is None else crops.scored.to(device, non_blocking=True),
    )


def _frame(crops: Crops, plan: ViewPlan) -> geometry.Frame:
    """The part of each raw crop inside its scan, and the parts along the stratified axis for its views."""
    placement = crops.placement
    size = torch.tensor(crops.image.shape[2:], dtype=torch.float64)
    start = placement.start.cpu().to(torch.float64)
    low = (-start).clamp_min(0)
    high = torch.minimum(size, placement.source_shape.cpu().to(torch.float64) - start) - 1
    return geometry.Frame(
        size=tuple(crops.image.shape[2:]),
        low=low,
        high=high,
        spacing_mm=placement.spacing_mm.cpu().to(torch.float64),
        left_right=left_right_axis(placement.world_affine),
        parts=_parts(crops, plan),
        shown=None if placement.shown is None else placement.shown.cpu().to(torch.float64) - start,
        centered=plan.centered,
        shape=placement.source_shape.cpu().to(torch.float64),
    )


def _parts(crops: Crops, plan: ViewPlan) -> geometry.Parts | None:
    """The part of the scan for which each raw crop was read; None if crops are not stratified over parts."""
    axis, count = plan.sampling.stratified_axis, plan.sampling.regions_per_scan
    if axis is None or count == 1 or len(plan.views[0].size) != 3:
        return None
    placement = crops.placement
    along = crops.origin.along.cpu().to(torch.float64)
    extent, start = (x.cpu().to(torch.float64)[:, axis] for x in (placement.source_shape, placement.start))
    part = coordinates.part_along(along, count)
    low, center, high = (share * extent - 0.5 - start for share in (part / count, along, (part + 1) / count))
    return geometry.Parts(axis, center, low, high)


def _view(
    crops_on_device: _DeviceCrops,
    spec: ViewSpec,
    affine: Float[Tensor, "B n+1 n+1"],
    frame: geometry.Frame,
    drawn: _Changes,
) -> View:
    device = crops_on_device.raw.device
    valid, full = covered(affine, spec.size, frame.low, frame.high, device=device)
    image = _pixels(crops_on_device, spec, affine, (valid, full), drawn)
    scored = valid.clone()
    if crops_on_device.scored is not None:
        scored &= sample(crops_on_device.scored, affine, spec.size, "nearest")
    placement = crops_on_device.placement
    to_stored = coordinates.translation(placement.start.cpu().to(torch.float64)) @ affine
    world = placement.world_affine.cpu().to(torch.float64) @ to_stored
    n = len(spec.size)
    return View(
        image=image,
        affine=to_stored.to(device, torch.float32),
        world_affine=world.to(device, torch.float32),
        spacing_mm=world[:, :n, :n].norm(dim=1).to(device, torch.float32),
        source_shape=placement.source_shape.to(device),
        valid=valid,
        scored=scored,
        present=crops_on_device.present,
    )


def _pixels(
    crops_on_device: _DeviceCrops,
    spec: ViewSpec,
    affine: Float[Tensor, "B n+1 n+1"],
    coverage: tuple[Bool[Tensor, "B 1 *s"], tuple[bool, ...]],
    drawn: _Changes,
) -> Float[Tensor, "B C *s"]:
    """The image of a view: on an accelerator all rows at once; on the CPU row by row, since a row fits the cache."""
    batch, channels = crops_on_device.raw.shape[:2]
    valid, fully_covered = coverage
    if crops_on_device.raw.device.type != "cpu":
        return _apply_changes_and_fill(_values(crops_on_device, affine, spec), crops_on_device, drawn, valid)
    image = torch.empty(batch, channels, *spec.size)
    for row in range(batch):
        row_slice = slice(row, row + 1)
        row_crops = replace(
            crops_on_device,
            raw=crops_on_device.raw[row_slice],
            numbers=crops_on_device.numbers[row_slice],
            present=crops_on_device.present[row_slice],
        )
        values = _values(row_crops, affine[row_slice], spec)
        image[row_slice] = _apply_changes_and_fill(
            values, row_crops, drawn.rows(row_slice), None if fully_covered[row] else valid[row_slice]
        )
    return image


def _values(
    crops_on_device: _DeviceCrops, affine: Float[Tensor, "B n+1 n+1"], spec: ViewSpec
) -> Float[Tensor, "B C *s"]:
    """Samples and decodes; crops first: to the view if nothing is interpolated, else (for one row) to what it reads."""
    raw, size = crops_on_device.raw, spec.size
    if all(is_whole(matrix) for matrix in affine.numpy()):
        return intensity.decode(sample(raw, affine, size), crops_on_device.numbers)
    if len(raw) == 1:
        raw, affine = window(raw, affine, size, spec.geometry.interpolation)
    return sample(intensity.decode(raw, crops_on_device.numbers), affine, size, spec.geometry.interpolation)


def _apply_changes_and_fill(
    image: Float[Tensor, "B C *s"],
    crops_on_device: _DeviceCrops,
    drawn: _Changes,
    valid: Bool[Tensor, "B 1 *s"] | None,
) -> Float[Tensor, "B C *s"]:
    """Applies changes of stains and intensity, then sets padding and missing channels, which no change may affect."""
    fill = None if valid is None else intensity.lowest_value(crops_on_device.numbers, image)
    if drawn.stain is not None:
        image = stain.apply_stain(image, drawn.stain, crops_on_device.numbers)
    image = intensity.apply_intensity(image, drawn.intensity, seed=drawn.seed, valid=valid)
    if valid is not None and fill is not None:
        image = torch.where(valid, image, fill)
    if not crops_on_device.all_present:
        is_present = crops_on_device.present.reshape(*crops_on_device.present.shape, *[1] * (image.ndim - 2))
        image = torch.where(is_present, image, image.new_zeros(()))
    return image
