"""The score of a class of a scan, and what is measured of its mask beside Dice and HD95: a table, one entry each.

NSD, normalized surface Dice (Nikolov et al. 2021), is the share of the surface voxels of both sides that lie within a
tolerance of the other side's surface, on the same surfaces as HD95, which is how MONAI counts it without subvoxels;
programs that weigh surface elements by their area differ.

Lesions are connected components, neighbors by a corner included (26 in volumes, 8 in images). As in the ISLES
challenge (Hernandez Petzsche et al. 2022), a true lesion is found where at least one of its voxels is predicted, and a
predicted component without a voxel in common with any true one is an invented lesion; a component over several true
lesions finds them all. F1 is 2 found / (2 found + missed + invented).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Bool, Float

    Values = Mapping[str, float | int | None]

ROUNDING_MM = 1e-3  # spacings are stored with seven digits: a voxel of 1.0000001 mm lies within 1 mm, too


@dataclass(frozen=True)
class ClassScore:
    """How well one class of one scan was found.

    Attributes:
        dice: 0 to 1; None where the class is in neither.
        hd95_mm: 95th percentile of the surface distance; None where the class is not in both.
        true_voxels: Voxels of the class in the label, without ignored ones.
        predicted_voxels: Voxels of the class in the prediction, without ignored ones.
        note: "" or where the class is lacking: "absent" from both, "missed" by the prediction, "invented" by it.
        further: The measures of ``MEASURES`` by name; None where they were not measured.
    """

    dice: float | None
    hd95_mm: float | None
    true_voxels: int
    predicted_voxels: int
    note: str = ""
    further: Mapping[str, float | int | None] | None = None

    def value(self, name: str) -> float | None:
        """The measure of that name, of this or of ``further``."""
        number: float | None = (self.further or {})[name] if name in MEASURES else getattr(self, name)
        return number


@dataclass(frozen=True)
class Masks:
    """Both masks of one class of one scan, of which at least one is not empty.

    Attributes:
        true: Voxels of the class in the label.
        predicted: Voxels of the class in the prediction.
        spacing_mm: Millimeters per voxel along each axis.
        distances_mm: From each surface voxel of one mask to the surface of the other, both ways; None where a mask is
            empty.
        tolerance_mm: How far off a surface may lie.
    """

    true: Bool[np.ndarray, "*s"]
    predicted: Bool[np.ndarray, "*s"]
    spacing_mm: tuple[float, ...]
    distances_mm: Float[np.ndarray, "N"] | None
    tolerance_mm: float

    @cached_property
    def lesions(self) -> tuple[int, int, int]:
        """Lesions found, missed and invented."""
        return count_lesions(self.true, self.predicted)


@dataclass(frozen=True)
class Measure:
    """One measure of a class, and how tables check and sum it.

    Attributes:
        value: Takes the masks and the measures that stand before this one in ``MEASURES``; None where not defined.
        low: Lowest value.
        high: Highest value.
        undefined: Notes of scores (``ClassScore.note``) that have no value; all scores of other notes have one.
        optional: Scores of other notes may lack a value, too.
        summed: How scores of several scans are summed up: "mean" over all classes and over each; "mean_of_class" over
            each alone, for measures with a sign, where too much of one class would make up for too little of another;
            "count", the sum over each, for whole numbers.
        derived: ``value`` takes no masks but the other measures alone, so that a table can be checked.
        leaves_out: What a note says of the classes that were invented, where that leaves the measure undefined.
    """

    value: Callable[[Masks | None, Values], float | int | None]
    low: float = 0.0
    high: float = math.inf
    undefined: tuple[str, ...] = ("absent",)
    optional: bool = False
    summed: Literal["mean", "mean_of_class", "count"] = "mean"
    derived: bool = False
    leaves_out: str = ""


def surface_dice(masks: Masks | None, other: Values) -> float | None:
    """NSD, 0 to 1; 0 where the class is in one mask only."""
    del other
    if masks is None or masks.distances_mm is None:
        return None if masks is None else 0.0
    return float((masks.distances_mm <= masks.tolerance_mm + ROUNDING_MM).mean())


def volume_error_ml(masks: Masks | None, other: Values) -> float | None:
    """Predicted less true volume in milliliters; None for images."""
    del other
    if masks is None or masks.true.ndim != 3:
        return None
    return _more(masks) * float(np.prod(masks.spacing_mm)) / 1000


def volume_error(masks: Masks | None, other: Values) -> float | None:
    """Predicted less true voxels as a share of the true ones, from -1; None where there are none."""
    del other
    true = 0 if masks is None else int(np.count_nonzero(masks.true))
    return None if masks is None or not true else _more(masks) / true


def lesions(place: int) -> Callable[[Masks | None, Values], int]:
    """The measure that counts the lesions found (0), missed (1) or invented (2)."""
    return lambda masks, other: 0 if masks is None else masks.lesions[place]


def lesion_f1(masks: Masks | None, other: Values) -> float | None:
    """F1 of lesions, 0 to 1; None where there is no lesion in either mask."""
    del masks
    found, missed, invented = (int(other[f"lesions_{what}"] or 0) for what in ("found", "missed", "invented"))
    wrong = missed + invented
    return 2 * found / (2 * found + wrong) if found + wrong else None


MEASURES: dict[str, Measure] = {
    "nsd": Measure(surface_dice, high=1.0),
    "volume_error_ml": Measure(volume_error_ml, low=-math.inf, optional=True, summed="mean_of_class"),
    "volume_error": Measure(
        volume_error,
        low=-1.0,
        undefined=("absent", "invented"),
        summed="mean_of_class",
        leaves_out="scores of a true volume of 0",
    ),
    "lesions_found": Measure(lesions(0), undefined=(), summed="count"),
    "lesions_missed": Measure(lesions(1), undefined=(), summed="count"),
    "lesions_invented": Measure(lesions(2), undefined=(), summed="count"),
    "lesion_f1": Measure(lesion_f1, high=1.0, derived=True),
}


def measure(masks: Masks | None) -> dict[str, float | int | None]:
    """All measures of a class; ``masks`` is None where the class is in neither label nor prediction."""
    values: dict[str, float | int | None] = {}
    for name, entry in MEASURES.items():
        values[name] = entry.value(masks, values)
    return values


def count_lesions(true: Bool[np.ndarray, "*s"], predicted: Bool[np.ndarray, "*s"]) -> tuple[int, int, int]:
    """True lesions that are found and that are missed, and predicted ones that are invented (rule: see above)."""
    from scipy import ndimage

    corners_too = np.ones((3,) * true.ndim)
    true_lesions, in_label = ndimage.label(true, corners_too)
    predicted_lesions, in_prediction = ndimage.label(predicted, corners_too)
    common = true & predicted
    detected = len(np.unique(true_lesions[common]))
    return detected, in_label - detected, in_prediction - len(np.unique(predicted_lesions[common]))


def _more(masks: Masks) -> int:
    return int(np.count_nonzero(masks.predicted)) - int(np.count_nonzero(masks.true))
