"""A scan of the index: where it comes from, where it lies, who was scanned, and its labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["volume", "image", "slide"]
ValueDomain = Literal["hu", "mr", "gray", "rgb"]
StatusCode = Literal["ok", "rejected", "failed", "needs_spacing"]


@dataclass(frozen=True)
class Part:
    """One file (or one frame of it) of a scan; ``path`` is relative to the index root.

    ``states``: what the file and those that hold a part of it (a detached ``.raw``) were when they were indexed:
    path, size in bytes and modification time in nanoseconds of each.
    """

    path: str
    frame: int | None = None
    states: tuple[tuple[str, int, int], ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Source:
    """Where a scan comes from and how its values are to be understood."""

    dataset: str
    kind: Kind
    modality: str
    value_domain: ValueDomain
    parts: tuple[Part, ...]
    channels: tuple[str, ...] = ("",)
    reading: str = ""  # how files are read that do not say it themselves (arrays): JSON


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
    kind: str = "classes"  # "findings": each is there in a scan or not; "number": the value of that name


@dataclass(frozen=True)
class Labels:
    """Labels of one scan: a segmentation, scan-level values by name, and a mask of the voxels that no loss looks at."""

    mask: tuple[Part, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    excluded: tuple[Part, ...] = ()
    threshold: float | None = None  # values of the segmentation from here on are class 1, all others 0
    trust_grid: bool = False  # masks of equal shape lie on the image's grid, whatever their headers say
    classes: tuple[int, ...] = ()  # of each part of ``mask``, where these are segments (``frame``) of DICOM objects


@dataclass(frozen=True)
class Digests:
    """``source``: size, modification time and header of every part; ``pixels``: content, filled by the cache."""

    source: str
    pixels: str = ""


@dataclass(frozen=True)
class Status:
    """Whether a scan can be used, with the reason.

    ``ok``, ``rejected`` (no scan: a localizer, a report), ``failed`` (could not be read), or ``needs_spacing`` (a slide
    whose pixel size nothing states).
    """

    code: StatusCode = "ok"
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
