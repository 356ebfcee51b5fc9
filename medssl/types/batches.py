"""Crops as the loader sends them, the views that are wanted of them, and the batch that an objective gets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
        flip: Axes to flip at random, each with probability 0.5: "data" (those that the rule ``preprocess.mirror`` of
            the store allows), "safe" (all but the left-right axis, by the world affine; in images the horizontal
            axis), "all" or "none".
        rotation_degrees: Largest rotation in degrees, 0 to 180: one number for all planes or, in 3D, one per axis of
            rotation.
        isotropic: Draw one scale for all axes, not one per axis.
        probability: Probability of a rotation, and separately of a change of scale, 0 to 1. Crops with neither are the
            stored voxels, without interpolation. nnU-Net and nnssl use 0.2.
        interpolation: How other crops are sampled: "linear", or "cubic", which keeps more of the finest detail.
        quarter_turns: Probability, 0 to 1, of a turn by 0, 90, 180 or 270 degrees (equally likely), which interpolates
            nothing. For square 2D views of images without a fixed direction, such as histology.
    """

    flip: Literal["data", "safe", "all", "none"] = "safe"
    rotation_degrees: tuple[float, ...] = (0.0,)
    isotropic: bool = True
    probability: float = 1.0
    interpolation: Literal["linear", "cubic"] = "linear"
    quarter_turns: float = 0.0


@dataclass(frozen=True)
class CommonIntensity:
    """Random intensity changes that most views use; see ``Intensity``.

    Attributes:
        noise: Gaussian noise: probability (0 to 1), largest standard deviation. nnU-Net: 0.1, 0.1.
        blur: Gaussian blur: probability (0 to 1), largest standard deviation in voxels. nnU-Net: 0.2, 1.0.
        brightness: Shift of all values: probability (0 to 1), largest shift. nnU-Net multiplies instead, see
            ``brightness_factor``.
        contrast: Factor on the distance from the mean: probability (0 to 1), lowest and highest factor. nnU-Net: 0.15,
            0.75, 1.25.
        gamma: Gamma on the range of the view: probability (0 to 1), lowest and highest exponent. nnU-Net: 0.3, 0.7,
            1.5.
        bias_field: Smooth multiplicative field: probability (0 to 1), largest log-amplitude. nnU-Net has none.
    """

    noise: tuple[float, float] = (0.0, 0.0)
    blur: tuple[float, float] = (0.0, 0.0)
    brightness: tuple[float, float] = (0.0, 0.0)
    contrast: tuple[float, float, float] = (0.0, 1.0, 1.0)
    gamma: tuple[float, float, float] = (0.0, 1.0, 1.0)
    bias_field: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Intensity(CommonIntensity):
    """Random intensity changes of a view, on normalized values; a probability of 0 leaves a change out.

    Attributes:
        brightness_factor: Factor on all values: probability (0 to 1), lowest and highest factor. nnU-Net: 0.15, 0.75,
            1.25.
        inverted_gamma: Gamma on the inverted range of the view, which changes bright values most: probability (0 to
            1), lowest and highest exponent. nnU-Net: 0.1, 0.7, 1.5.
        reduced_resolution: Larger voxels, sampled to fewer voxels and back: probability (0 to 1), lowest and highest
            share of the voxels per axis, above 0 to 1. nnU-Net: 0.25, 0.5, 1.0.
        hed_jitter: Changes the amounts of hematoxylin, eosin and DAB in color images: probability (0 to 1), largest
            change of an amount as a share of it (below 1), largest shift of an amount in units of optical density.
            Light: 0.5, 0.05, 0.01. Strong: 0.8, 0.2, 0.02.
        stain_exchange: Probability (0 to 1) that a color image takes mean and deviation of the optical density, in each
            color, from a random sample of the batch.
        grayscale: Probability (0 to 1) that a color image becomes gray: the brightness in each of its colors. It
            removes the stain, so keep it at 0.05 or less in histology.
    """

    brightness_factor: tuple[float, float, float] = (0.0, 1.0, 1.0)
    inverted_gamma: tuple[float, float, float] = (0.0, 1.0, 1.0)
    reduced_resolution: tuple[float, float, float] = (0.0, 1.0, 1.0)
    hed_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stain_exchange: float = 0.0
    grayscale: float = 0.0


@dataclass(frozen=True)
class ViewSpec:
    """How one view is cut out of a raw crop.

    Attributes:
        size: Voxels of the view per axis: two or three numbers.
        scale: Smallest and largest extent in stored voxels, as multiples of ``size``, above 0.
        kind: Role of the view in the objective: "global", "local" or "context".
        geometry: Random flips, rotations and scales.
        intensity: Random changes of intensity, on normalized values.
        nested_in: Number of the view that this one must lie inside, 0 or more; None for no such view.
        area: Smallest and largest share of the stored scan (its area or volume) that the view shows, above 0 to 1, in
            place of ``scale``; None takes ``scale``.
        min_overlap: Share, per axis, that this view and the first view of the plan have in common, of the larger of
            the two before rotation: 0 to 1. The first view itself ignores it.
    """

    size: tuple[int, ...]
    scale: tuple[float, float] = (1.0, 1.0)
    kind: Literal["global", "local", "context"] = "global"
    geometry: Geometry = field(default_factory=Geometry)
    intensity: Intensity = field(default_factory=Intensity)
    nested_in: int | None = None
    area: tuple[float, float] | None = None
    min_overlap: float = 0.0

    def plain(self) -> ViewSpec:
        """The same view at its largest extent, with neither random geometry nor changes of intensity."""
        area = None if self.area is None else (self.area[1],) * 2
        still = Geometry(flip="none", interpolation=self.geometry.interpolation)
        return replace(self, scale=(self.scale[1],) * 2, area=area, geometry=still, intensity=Intensity())


@dataclass(frozen=True)
class Sampling:
    """How scans and regions fill a batch.

    Attributes:
        regions_per_scan: Crops per reading of a scan, at least 1 (consecutive global sample numbers).
        distinct_subjects: Draw no subject twice in one global batch. True refuses too few subjects, "where_possible"
            repeats them as evenly as possible.
        stratified_axis: Stored axis along which the crops of a scan are spread evenly, 0 to 2; None spreads none.
        slice_axis: Stored axis across which 2D views cut slices from volumes, 0 to 2.
        foreground: Share of crops with their center in the foreground, 0 to 1.
        balance: How often each scan-level class is drawn: by its scans ("none"), equally often ("equal"), or by the
            square root of its scans ("root").
        labeled: Share of crops around a labeled voxel, 0 to 1; classes above background are drawn evenly. Together with
            ``foreground`` at most 1.
    """

    regions_per_scan: int = 1
    distinct_subjects: bool | Literal["where_possible"] = False
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
