"""Crops as the loader sends them, the views that are wanted of them, and the batch that an objective gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """Who the rows of a batch are: identifiers, global sample numbers, crop center as a share (0..1) of the scan."""

    scan_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    samples: tuple[int, ...]
    positions: Float[Tensor, "B n"]
    along: Float[Tensor, "B"]  # share along the axis of slices, or of spread regions: where views lie; else 0.5


@dataclass(frozen=True)
class Placement:
    """Where raw crops lie in their stored scans, and where those lie in the world.

    ``start`` is the first voxel, ``source_shape`` the stored shape, ``shown`` a voxel that views must show (NaN: any),
    ``world_affine`` voxel -> world mm RAS+. 2D crops of a volume keep the in-plane axes, that nearer left-right last.
    """

    start: Int[Tensor, "B n"]
    source_shape: Int[Tensor, "B n"]
    spacing_mm: Float[Tensor, "B n"]
    world_affine: Float[Tensor, "B n+1 n+1"]
    shown: Float[Tensor, "B n"] | None = None


@dataclass(frozen=True)
class Crops:
    """A batch of raw crops as the loader sends it: integers where the store has integers.

    ``intensity`` holds, per sample and channel, (scale, offset, low, high, shift, divisor): the network's input is
    ``(clip(raw * scale + offset, low, high) - shift) / divisor``. Outside the scan is the code of the lowest value, and
    ``labels`` are -1; ``scored`` (None: all) is False at excluded voxels; ``values`` are scan-level labels by name.
    """

    image: Shaped[Tensor, "B C *s"]
    intensity: Float[Tensor, "B C 6"]
    placement: Placement
    origin: Origin
    labels: Int[Tensor, "B 1 *s"] | None = None
    scored: Bool[Tensor, "B 1 *s"] | None = None
    present: Bool[Tensor, "B C"] | None = None
    values: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Geometry:
    """Random geometry of a view.

    Attributes:
        flip: "safe" (not the left-right axis: read off the world affine, in images the horizontal one), "all", "none".
        rotation_degrees: Largest rotation: one number for every plane or, in 3D, one per axis of rotation.
        isotropic: Draw one scale for all axes rather than one per axis.
    """

    flip: Literal["safe", "all", "none"] = "safe"
    rotation_degrees: tuple[float, ...] = (0.0,)
    isotropic: bool = True


@dataclass(frozen=True)
class Intensity:
    """Random intensity changes of a view, on normalized values; a probability of 0 leaves a change out."""

    noise: tuple[float, float] = (0.0, 0.0)  # (probability, largest standard deviation)
    blur: tuple[float, float] = (0.0, 0.0)  # (probability, largest standard deviation in voxels)
    brightness: tuple[float, float] = (0.0, 0.0)  # (probability, largest shift)
    contrast: tuple[float, float, float] = (0.0, 1.0, 1.0)  # (probability, lowest factor, highest factor)
    gamma: tuple[float, float, float] = (0.0, 1.0, 1.0)  # (probability, lowest, highest), on the view's own range
    bias_field: tuple[float, float] = (0.0, 0.0)  # (probability, largest log-amplitude) of a smooth factor


@dataclass(frozen=True)
class ViewSpec:
    """How one view is cut out of a raw crop.

    Attributes:
        size: Voxels of the view per axis; two or three.
        scale: Lowest and highest extent in stored voxels, as a multiple of ``size``.
        nested_in: Number of the view that this one must lie inside, or None.
    """

    size: tuple[int, ...]
    scale: tuple[float, float] = (1.0, 1.0)
    kind: Literal["global", "local", "context"] = "global"
    geometry: Geometry = field(default_factory=Geometry)
    intensity: Intensity = field(default_factory=Intensity)
    nested_in: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How scans and regions fill a batch.

    Attributes:
        regions_per_scan: Crops taken from one reading of a scan (consecutive global sample numbers).
        distinct_subjects: No subject twice in one global batch (refused where there are too few subjects).
        stratified_axis: Stored axis along which the regions of a scan are spread evenly, or None.
        slice_axis: Stored axis that 2D plans take slices across when scans are volumes.
        foreground: Share of crops whose center must be foreground.
        balance: "none"; "equal" draws each scan-level class equally often, "root" as the square root of its scans.
        labeled: Share of crops around a labeled voxel: classes above background evenly. With foreground at most 1.
    """

    regions_per_scan: int = 1
    distinct_subjects: bool = False
    stratified_axis: int | None = None
    slice_axis: int = 2
    foreground: float = 0.0
    balance: Literal["none", "equal", "root"] = "none"
    labeled: float = 0.0


@dataclass(frozen=True)
class ViewPlan:
    """What an objective needs: views, how to sample them, and what must be true of their coordinates and places."""

    views: tuple[ViewSpec, ...]
    sampling: Sampling = field(default_factory=Sampling)
    true_coordinates: bool = False
    centered: bool = False  # a scan that is no larger than a view lies in its middle, rather than anywhere in it


@dataclass(frozen=True)
class View:
    """One view of every sample of a batch.

    ``affine`` maps view voxel -> stored voxel, ``world_affine`` view voxel -> world mm. ``valid`` is False on padding,
    ``scored`` is False where the loss must not look (defaced, annotated away), ``present`` False for a missing channel.
    """

    image: Float[Tensor, "B C *s"]
    affine: Float[Tensor, "B n+1 n+1"]
    world_affine: Float[Tensor, "B n+1 n+1"]
    spacing_mm: Float[Tensor, "B n"]
    source_shape: Int[Tensor, "B n"]
    valid: Bool[Tensor, "B 1 *s"]
    scored: Bool[Tensor, "B 1 *s"]
    present: Bool[Tensor, "B C"]


@dataclass(frozen=True)
class Batch:
    """What an objective gets: its views in the order of its plan; ``targets`` holds one label map per view, or None."""

    views: tuple[View, ...]
    origin: Origin
    targets: tuple[Int[Tensor, "B 1 *s"], ...] | None = None
    values: tuple[dict[str, str], ...] = ()
