"""Rules for whole slides: where their tissue is, and which tiles are taken from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TissueRule:
    """What counts as tissue on a slide. It is found on a thumbnail, and areas do not depend on its resolution.

    Attributes:
        method: "saturation" (Otsu's threshold on the saturation: hematoxylin and eosin), "gray" (on the darkness) or
            "optical_density" (on the largest optical density of the three colors: immunohistochemistry, pale stains).
        threshold: Lowest value that is tissue, on the scale of the method: saturation or darkness from 0 to 255, or
            optical density (0 to 5.5). None takes it from the histogram: halfway between glass and Otsu's threshold.
        mpp: Resolution of the thumbnail in micrometers a pixel, 1 to 64. 8 to 16 is usual.
        smallest_mm2: Smallest area of connected tissue in mm2, 0 or more; smaller pieces are left out.
        largest_hole_mm2: Holes in the tissue up to this area in mm2 count as tissue, 0 or more.
        smooth_um: Details up to this width in micrometers are smoothed away, 0 or more.
        exclude_pen: Leave out marks of blue, green, red and black pens.
        exclude_black: Leave out black regions, such as the black border that some scanners write.
    """

    method: Literal["saturation", "gray", "optical_density"] = "saturation"
    threshold: float | None = None
    mpp: float = 8.0
    smallest_mm2: float = 0.05
    largest_hole_mm2: float = 0.05
    smooth_um: float = 24.0
    exclude_pen: bool = True
    exclude_black: bool = True


@dataclass(frozen=True)
class TileRule:
    """Which tiles are taken from a slide.

    Attributes:
        mpp: Micrometers a pixel at which slides are read, the same along rows and columns. None: rules without slides.
        size: Rows and columns of a tile in pixels, at least 16.
        overlap: Pixels that neighboring tiles share, 0 to below ``size``.
        smallest_tissue: Smallest share of a tile that is tissue, 0 to 1; with 0 any tissue is enough.
        quality: JPEG quality of packed tiles, 50 to 100.
    """

    mpp: float | None = None
    size: int = 256
    overlap: int = 0
    smallest_tissue: float = 0.25
    quality: int = 90
