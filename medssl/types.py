"""The types that the rooms of medssl hand to each other.

Axis letters: B batch, C channels, N tokens, ``*s`` the spatial axes (H W or D H W, in the order of the stored array's
axes), n their number. Affines map voxel indices (the centre of a voxel is an integer) to what their name says.
``hidden=True`` always means: the network must not see it. Sizes are in voxels; distances end in ``_mm``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from medssl.seen import Seen

if TYPE_CHECKING:  # the index and the command line's help must not pay for torch
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

Kind = Literal["volume", "image", "slide"]
ValueDomain = Literal["hu", "mr", "gray", "rgb"]
MaskMode = Literal["fill", "drop", "sparse"]
LabelKind = Literal["classes", "findings", "number"]


class UserError(ValueError):
    """Something the user can put right: the command line prints it as one line and exits with 2."""


# --- scans, and what is done to them before they are stored
@dataclass(frozen=True)
class Part:
    """One file (or one frame of it) of a scan; ``path`` is relative to the index root."""

    path: str
    frame: int | None = None


@dataclass(frozen=True)
class Source:
    """Where a scan comes from and how its values are to be understood."""

    dataset: str
    kind: Kind
    modality: str
    value_domain: ValueDomain
    parts: tuple[Part, ...]
    channels: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Grid:
    """Geometry of a scan as it lies on disk.

    ``shape`` in voxels and ``spacing_mm`` follow the array's axes; ``affine`` (n+1, n+1) maps voxel index to world mm
    RAS+ (volumes), or to mm from the first pixel (images; 1 mm where nothing says).
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Subject:
    """Who was scanned: keyed hashes, never raw identifiers, and the split that follows from the subject."""

    subject_id: str
    study_id: str = ""
    split: str = ""
    known: bool = True  # False: nothing told subjects apart, the scan stands for its subject


@dataclass(frozen=True)
class LabelSchema:
    """What a label says: ``classes`` pairs a stored value with its name; losses leave ``ignore`` out."""

    name: str  # "mask", or the name of a scan-level value
    classes: tuple[tuple[int, str], ...]
    ignore: int | None = None
    kind: LabelKind = "classes"  # "findings": each is there in a scan or not; "number": the value of that name


@dataclass(frozen=True)
class Labels:
    """Labels of one scan: a segmentation, scan-level values by name, and a mask of the voxels that no loss looks at."""

    mask: tuple[Part, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    excluded: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Digests:
    """``source``: size, modification time and header of every part; ``pixels``: content, filled by the cache."""

    source: str
    pixels: str = ""


@dataclass(frozen=True)
class Status:
    """``ok``, ``rejected`` (no scan: a localiser, a report) or ``failed`` (could not be read), with the reason."""

    code: Literal["ok", "rejected", "failed"] = "ok"
    reason: str = ""


@dataclass(frozen=True)
class Scan:
    """One scan of the index."""

    scan_id: str
    subject: Subject
    source: Source
    grid: Grid
    digests: Digests
    labels: Labels = field(default_factory=Labels)
    status: Status = field(default_factory=Status)


@dataclass(frozen=True)
class IntensityRule:
    """Numbers that turn stored values into the network's input: clip, then shift and divide.

    Attributes:
        clip: "none"; "range" takes ``low`` and ``high`` as values; "percentile" as percentiles (0-100) of foreground.
        normalise: "zscore" (mean 0, deviation 1 of the clipped foreground), "unit" (bounds to 0..1) or "none".
    """

    clip: Literal["none", "range", "percentile"] = "none"
    low: float = 0.0
    high: float = 0.0
    normalise: Literal["zscore", "unit", "none"] = "zscore"


@dataclass(frozen=True)
class IntensityRules:
    """One rule for each value domain: CT in Hounsfield units, MR, other gray images, colour images."""

    hu: IntensityRule = field(default_factory=lambda: IntensityRule("range", -1000.0, 1000.0, "zscore"))
    mr: IntensityRule = field(default_factory=lambda: IntensityRule("percentile", 0.5, 99.5, "zscore"))
    gray: IntensityRule = field(default_factory=lambda: IntensityRule("percentile", 0.0, 99.9, "zscore"))
    rgb: IntensityRule = field(default_factory=lambda: IntensityRule("range", 0.0, 255.0, "unit"))


@dataclass(frozen=True)
class Imported:
    """A class by import path with its arguments, as in a configuration file."""

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocess:
    """What is done to a scan once, before it is stored: one contract from pretraining to export.

    Attributes:
        orientation: Axis codes of the stored volume (for example "RAS"); None keeps the file's axes. Volumes only.
        spacing_mm: Target spacing per stored axis; a 0 keeps that axis's own; None keeps all. Volumes only.
        image_size: Height and width that images are resized to (antialiased); None keeps them. Images only.
        foreground_crop: Cut away the border that is background (air, black) in every channel.
        background: Highest value that counts as background; None takes a rule by value domain.
        intensity: Rules by value domain, applied after reading as numbers.
        transforms: A user's own MONAI dictionary transforms (keys "image", "label"), applied before storing.
    """

    orientation: str | None = "RAS"
    spacing_mm: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    foreground_crop: bool = True
    background: float | None = None
    intensity: IntensityRules = field(default_factory=IntensityRules)
    transforms: tuple[Imported, ...] = ()

    def digest(self) -> str:
        """Hexadecimal digest (16 characters) of every rule above: equal digests mean equal stored voxels."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


# --- crops and views
@dataclass(frozen=True)
class Origin:
    """Who the rows of a batch are: identifiers, global sample numbers, crop centre as a share (0..1) of the scan."""

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
    """Random intensity changes of a view, on normalised values; a probability of 0 leaves a change out."""

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
        foreground: Share of crops whose centre must be foreground.
        balance: "none"; "equal" draws each scan-level class equally often, "root" as the square root of its scans.
        labelled: Share of crops around a labelled voxel: classes above background evenly. With foreground at most 1.
    """

    regions_per_scan: int = 1
    distinct_subjects: bool = False
    stratified_axis: int | None = None
    slice_axis: int = 2
    foreground: float = 0.0
    balance: Literal["none", "equal", "root"] = "none"
    labelled: float = 0.0


@dataclass(frozen=True)
class ViewPlan:
    """What an objective needs: views, how to sample them, and what must be true of their coordinates and places."""

    views: tuple[ViewSpec, ...]
    sampling: Sampling = field(default_factory=Sampling)
    true_coordinates: bool = False
    centred: bool = False  # a scan that is no larger than a view lies in its middle, rather than anywhere in it


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


# --- training
@dataclass(frozen=True)
class Features:
    """What an encoder returns: ``maps`` from fine to coarse; ``kept`` says which cells the tokens are."""

    maps: tuple[Float[Tensor, "B Cl *sl"], ...]
    pooled: Float[Tensor, "B C"]
    tokens: Float[Tensor, "B N C"] | None = None
    kept: Int[Tensor, "B N"] | None = None


@dataclass(frozen=True)
class Step:
    """Where training stands: ``index`` counts optimizer steps, ``samples`` numbers this micro-batch globally."""

    index: int
    total: int
    seed: int
    samples: tuple[int, ...]

    @property
    def progress(self) -> float:
        """Share of the training done, 0 to 1."""
        return min(1.0, self.index / max(1, self.total))


@dataclass(frozen=True)
class Loss:
    """``total`` is minimised; ``terms`` are detached scalars for the log; ``embedding`` is for health measures."""

    total: Float[Tensor, ""]
    terms: dict[str, Tensor] = field(default_factory=dict)
    embedding: Float[Tensor, "B C"] | None = None


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning put on an encoder.

    ``head`` is its import path with arguments, ``schema`` its outputs in order, ``window`` the voxels per stored axis
    of its crops (two: images, or slices across ``slice_axis``), ``subjects`` digests of those trained or validated on.
    """

    head: Imported
    schema: LabelSchema
    window: tuple[int, ...]
    slice_axis: int
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """What the encoder's weights are: JSON beside the safetensors.

    ``encoder`` and ``objective`` are import paths with arguments; ``subjects`` are those seen in pretraining; ``step``
    counts optimizer steps; ``tuned`` waits for a head.
    """

    encoder: Imported
    preprocess: Preprocess
    objective: Imported | None
    index_digest: str
    subjects: Seen
    step: int
    versions: dict[str, str]
    tuned: Tuned | None = None
