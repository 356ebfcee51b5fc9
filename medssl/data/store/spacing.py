"""The spacing of a collection: its median per stored axis, nnU-Net's rule for thick slices, and its spread.

Spacings are those of the volumes of an index, along the axes of the store, that is, after reorientation. Images count
for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medssl.data.store import grid
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from medssl.types import Scan

ANISOTROPY = 3.0  # ratio from which nnU-Net takes slices to be very thick
PERCENTILE = 10.0  # of the spacing across very thick slices
SPREAD = 1.25  # ratio of spacings from which a spread is worth a note
DIGITS = 6  # significant digits of a measured number: what is printed is what is used


class Spacings:
    """Spacings and shapes of the volumes of a collection, per stored axis.

    Attributes:
        mm: Spacings [N, 3] in mm.
        shapes: Shapes [N, 3] in voxels.
    """

    def __init__(self, scans: Iterable[Scan], orientation: str | None) -> None:
        rows = [_stored(scan, orientation) for scan in scans if len(scan.grid.shape) == 3]
        self.mm: NDArray[np.float64] = np.array([row[0] for row in rows], float).reshape(-1, 3)
        self.shapes: NDArray[np.float64] = np.array([row[1] for row in rows], float).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.mm)

    def target(self, rule: str) -> tuple[float, ...]:
        """The spacing that a rule gives: "median", or "nnunet".

        nnU-Net (Isensee et al., Nature Methods 2021) takes the median per axis. If the largest median is more than
        three times the others, and the volumes have less than a third of the voxels along that axis, it takes the 10th
        percentile along it, but not less than the others. It measures shapes after cropping; here they are those of the
        index.

        Raises:
            UserError: There is no volume.
        """
        if not len(self):
            message = "no volume among the selected scans, whose spacing could be measured"
            hint = "Give three distances in mm, or leave it out: it does not concern images"
            raise UserError(message, key="preprocess.spacing_mm", got=rule, hint=hint)
        target, shape = np.median(self.mm, axis=0), np.median(self.shapes, axis=0)
        if rule == "nnunet":
            worst = int(np.argmax(target))
            others = [axis for axis in range(3) if axis != worst]
            coarsest = float(target[others].max())
            is_thick = target[worst] > ANISOTROPY * coarsest and shape[worst] * ANISOTROPY < shape[others].min()
            if is_thick:
                target[worst] = max(float(np.percentile(self.mm[:, worst], PERCENTILE)), coarsest)
        return tuple(significant(mm) for mm in target)

    def described(self) -> str:
        """Lowest and highest spacing per axis in words."""
        pairs = zip(self.mm.min(axis=0), self.mm.max(axis=0), strict=True)
        return " x ".join(
            f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}" for low, high in pairs
        )

    def spread_note(self) -> str:
        """One line where volumes that keep their spacing differ much in it; "" else."""
        if not len(self) or (self.mm.max(axis=0) <= SPREAD * self.mm.min(axis=0)).all():
            return ""
        median = " x ".join(f"{mm:.3g}" for mm in np.median(self.mm, axis=0))
        return (
            f"spacing as stored: {self.described()} mm in {len(self)} volumes, median {median} mm; one view then shows "
            "structures of different sizes: preprocess.spacing_mm median brings them to one spacing"
        )


def significant(value: float) -> float:
    """A number with six significant digits.

    >>> significant(0.70312499)
    0.703125
    """
    return float(f"{value:.{DIGITS}g}")


def _stored(scan: Scan, orientation: str | None) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Spacing and shape of a volume along the axes of the store."""
    affine, shape = np.array(scan.grid.affine, float), scan.grid.shape
    if orientation:
        volume, affine = grid.orient(np.zeros((1, 1, 2, 3), np.uint8), affine, orientation)  # sizes name the axes
        shape = tuple(shape[size - 1] for size in volume.shape[1:])
    return grid.spacing_of(affine), shape
