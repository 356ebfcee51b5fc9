"""What is done to a scan once, before it is stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medssl.types.scans import ValueDomain
from medssl.types.slides import TileRule, TissueRule


@dataclass(frozen=True)
class IntensityRule:
    """Numbers that turn stored values into the network's input: clip, then shift and divide.

    Attributes:
        clip: How to bound values: "none"; "range" takes ``low`` and ``high`` as values; "percentile" takes them as
            percentiles of the foreground of each scan; "collection" as percentiles of the foreground of all scans,
            which are measured once, when the store is made.
        low: Lower bound: a value, or a percentile from 0 to 100.
        high: Upper bound: a value, or a percentile from 0 to 100.
        normalize: How to scale values: "zscore" (mean 0, standard deviation 1 over the clipped foreground of each
            scan), "collection" (mean and deviation of the foreground of all scans), "fixed" (``mean`` and
            ``deviation``), "unit" (bounds to 0 and 1) or "none".
        mean: Mean that "fixed" subtracts.
        deviation: Standard deviation that "fixed" divides by, above 0.
    """

    clip: Literal["none", "range", "percentile", "collection"] = "none"
    low: float = 0.0
    high: float = 0.0
    normalize: Literal["zscore", "collection", "fixed", "unit", "none"] = "zscore"
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def is_resolved(self) -> bool:
        """Whether it names numbers, and nothing that is measured on a collection."""
        return "collection" not in (self.clip, self.normalize)


@dataclass(frozen=True)
class IntensityRules:
    """One rule for each value domain: CT in Hounsfield units, MR, other gray images, color images.

    Attributes:
        hu: Rule for Hounsfield units (CT).
        mr: Rule for magnetic resonance.
        gray: Rule for other gray images.
        rgb: Rule for color images.
    """

    hu: IntensityRule = field(default_factory=lambda: IntensityRule("range", -1000.0, 1000.0, "zscore"))
    mr: IntensityRule = field(default_factory=lambda: IntensityRule("percentile", 0.5, 99.5, "zscore"))
    gray: IntensityRule = field(default_factory=lambda: IntensityRule("percentile", 0.0, 99.9, "zscore"))
    rgb: IntensityRule = field(default_factory=lambda: IntensityRule("range", 0.0, 255.0, "unit"))


@dataclass(frozen=True)
class StainRule:
    """How the colors of histology are normalized before they are stored, fitted once a scan.

    Attributes:
        method: "none"; "macenko" (two stains and their amounts) or "reinhard" (mean and deviation of the colors of
            tissue). Random changes of stains in the views (``intensity.hed_jitter``) help more in most comparisons.
        reference: Numbers of the colors to bring scans to; None takes published ones. Macenko: optical density of
            hematoxylin in red, green and blue, the same of eosin, and the 99th percentile of both amounts. Reinhard:
            mean and deviation of l, alpha and beta.
    """

    method: Literal["none", "macenko", "reinhard"] = "none"
    reference: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Imported:
    """A class by import path with its arguments, as in a configuration file."""

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GridRules:
    """What grid scans are brought to, and which part of them is stored; see ``Preprocess``.

    Attributes:
        orientation: Axis codes of the stored volume, such as RAS; None keeps the axes of the file. Volumes only.
        spacing_mm: Target spacing in mm per stored axis, above 0; a 0 keeps the spacing of that axis, None keeps all.
            "median" takes the median of the volumes per axis, "nnunet" the same but for very thick slices: there the
            10th percentile across the slices. Volumes only.
        image_size: Height and width in pixels to resize images to (with antialiasing); None keeps the size. Images
            only.
        foreground_crop: Cut off the border that is background (air, black) in every channel.
        background: Highest value that counts as background; None takes a rule by value domain.
    """

    orientation: str | None = "RAS"
    spacing_mm: tuple[float, ...] | Literal["median", "nnunet"] | None = None
    image_size: tuple[int, int] | None = None
    foreground_crop: bool = True
    background: float | None = None


@dataclass(frozen=True)
class Preprocess(GridRules):
    """What is done to a scan once, before it is stored: one contract from pretraining to export.

    Attributes:
        intensity: Rules to clip and scale values, by value domain.
        transforms: MONAI dictionary transforms of your own (keys "image" and "label"), applied before storing.
        domains: Value domains that the rules are meant for; scans of other domains are refused. Empty accepts all.
        mirror: Axes that views with ``flip: data`` and mirrored predictions may mirror: "safe" (all but left-right; in
            images the horizontal axis), "all" (where left and right do not matter, as in histology) or "none".
        isotropic: Target spacing in mm of all axes, above 0, in place of ``spacing_mm``; None takes ``spacing_mm``.
            Volumes only.
        stain: Normalization of the stains of color images.
        tissue: What counts as tissue. Slides only.
        tiles: Resolution and size of the tiles that are taken from slides. Slides only.
    """

    intensity: IntensityRules = field(default_factory=IntensityRules)
    transforms: tuple[Imported, ...] = ()
    domains: tuple[ValueDomain, ...] = ()
    mirror: Literal["safe", "all", "none"] = "safe"
    isotropic: float | None = None
    stain: StainRule = field(default_factory=StainRule)
    tissue: TissueRule = field(default_factory=TissueRule)
    tiles: TileRule = field(default_factory=TileRule)

    @property
    def is_resolved(self) -> bool:
        """Whether all rules are numbers: nothing is left to measure on a collection."""
        rules = (self.intensity.hu, self.intensity.mr, self.intensity.gray, self.intensity.rgb)
        spacing_known = self.isotropic is None and not isinstance(self.spacing_mm, str)
        return spacing_known and all(rule.is_resolved for rule in rules)

    def digest(self) -> str:
        """Hexadecimal digest (16 characters) of the rules above: equal digests mean equal stored voxels."""
        rules = asdict(self)
        del rules["domains"], rules["mirror"]  # which scans are taken and how views mirror them: not what is stored
        if self.isotropic is None:
            del rules["isotropic"]
        if self.stain.method == "none":
            del rules["stain"]
        if self.tiles.mpp is None:  # rules without slides keep the digest of 0.1.0
            del rules["tissue"], rules["tiles"]
        for rule in rules["intensity"].values():
            if rule["normalize"] != "fixed":  # without effect, and unknown to 0.1.0
                del rule["mean"], rule["deviation"]
            rule["normalise"] = rule.pop("normalize")  # the key of 0.1.0: stores keep their digest
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]
