"""Overlap, surface distance, volume and lesions of a predicted segmentation and its label, class by class.

Dice is twice the common voxels over the voxels of both (Dice 1945). HD95 is the larger of the two directed 95th
percentiles of surface distances, as MONAI computes it: a voxel is surface where one of its face neighbors lies
outside the class (beyond the array counts as outside), each surface voxel is as far as the nearest surface voxel of the
other side (center to center), and percentiles interpolate linearly between the distances of one direction. Other
programs pool both directions before the percentile or measure from faces; their HD95 differs (Reinke et al. 2024).

What is measured beside these two stands in ``metrics.mask_measures``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medssl.data.store.coding import bounding_box
from medssl.heads.base import UNLABELED
from medssl.metrics.mask_measures import ClassScore, Masks, measure
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types import LabelSchema

PERCENTILE = 95.0
NSD_TOLERANCE_MM = 1.0


def score_case(
    prediction: Int[np.ndarray, "*s"],
    label: Int[np.ndarray, "*s"],
    schema: LabelSchema,
    spacing_mm: Sequence[float],
    *,
    nsd_tolerance_mm: float | None = None,
) -> dict[str, ClassScore]:
    """Scores every class but the first, which is the background.

    Voxels whose label is ``schema.ignore`` (or -1, padding) belong to no class in either array. Surfaces are those of
    what is left, so an ignored region that cuts a class makes a surface in both.

    Args:
        prediction: Stored values of the classes.
        label: Stored values of the classes.
        schema: The classes.
        spacing_mm: Millimeters per voxel along each axis of the arrays.
        nsd_tolerance_mm: How far off a surface may lie; given, the ``further`` measures are taken, too.

    Raises:
        UserError: Shapes or spacing do not fit together, a value is no class, there is no class to score, or a
            tolerance that is none.
    """
    _refuse_unfit(prediction, label, schema, spacing_mm)
    refuse_tolerance(nsd_tolerance_mm)
    background = schema.classes[0][0]
    box = _box((label != background) | (prediction != background))
    label, prediction = label[box], prediction[box]
    scored = ~_ignored(label, schema)
    _refuse_values("label", label[scored], schema)
    _refuse_values("prediction", prediction[scored], schema)
    return {
        name: _score((label == value) & scored, (prediction == value) & scored, spacing_mm, nsd_tolerance_mm)
        for value, name in schema.classes[1:]
        if value != schema.ignore
    }


def surface_distances(
    first: Bool[np.ndarray, "*s"], second: Bool[np.ndarray, "*s"], spacing_mm: Sequence[float]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "M"]]:
    """Millimeters from each surface voxel of ``first`` to the surface of ``second``, and the other way round.

    Neither may be empty.
    """
    from monai.metrics import get_mask_edges, get_surface_distance

    edges, others = get_mask_edges(first, second, crop=False)
    spacing = [float(mm) for mm in spacing_mm]
    return (
        get_surface_distance(edges, others, spacing=spacing),
        get_surface_distance(others, edges, spacing=spacing),
    )


def dice_scores(prediction: Int[Tensor, "*s"], target: Int[Tensor, "*s"], classes: int) -> list[float | None]:
    """Dice of each class but the first, which is the background; None for a class that is in neither.

    Not MONAI's, which copies the volume for each class (one-hot); a test compares both.

    Args:
        prediction: Class numbers, 0 to ``classes`` - 1.
        target: Class numbers; voxels that are ``UNLABELED`` are left out of both.
        classes: Number of classes, background included.

    Raises:
        ValueError: Shapes differ, or a number is no class.
    """
    if prediction.shape != target.shape:
        message = f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        raise ValueError(message)
    known = target != UNLABELED
    predicted, true = prediction[known].long(), target[known].long()
    if predicted.numel() and not all(0 <= x.min() and x.max() < classes for x in (predicted, true)):
        message = f"class numbers beyond 0 to {classes - 1}"
        raise ValueError(message)
    table = torch.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    both: list[int] = table.diagonal().tolist()
    voxels: list[int] = (table.sum(0) + table.sum(1)).tolist()
    return [2 * common / count if count else None for common, count in zip(both[1:], voxels[1:], strict=True)]


def refuse_tolerance(nsd_tolerance_mm: float | None) -> None:
    """Refuses a tolerance of surfaces that is none.

    Raises:
        UserError: It is negative, infinite or NaN.
    """
    if nsd_tolerance_mm is not None and not 0 <= nsd_tolerance_mm < np.inf:
        message = "must be a distance in mm of at least 0"
        raise UserError(message, key="nsd_tolerance_mm", got=nsd_tolerance_mm)


def _score(
    true: Bool[np.ndarray, "*s"],
    predicted: Bool[np.ndarray, "*s"],
    spacing_mm: Sequence[float],
    nsd_tolerance_mm: float | None,
) -> ClassScore:
    in_label, in_prediction = int(np.count_nonzero(true)), int(np.count_nonzero(predicted))
    measures_more = nsd_tolerance_mm is not None
    if not in_label and not in_prediction:
        return ClassScore(None, None, 0, 0, "absent", measure(None) if measures_more else None)
    box = _box(true | predicted)  # beyond it nothing belongs to the class, as beyond the array
    true, predicted = true[box], predicted[box]
    hd95, distances, note = None, None, "missed" if in_label else "invented"
    if in_label and in_prediction:
        both_ways = surface_distances(predicted, true, spacing_mm)
        hd95, note = max(float(np.percentile(d, PERCENTILE)) for d in both_ways), ""
        distances = np.concatenate(both_ways)
    dice = 2 * int(np.count_nonzero(true & predicted)) / (in_label + in_prediction)
    masks = Masks(true, predicted, tuple(spacing_mm), distances, nsd_tolerance_mm or 0.0)
    return ClassScore(dice, hd95, in_label, in_prediction, note, measure(masks) if measures_more else None)


def _box(mask: Bool[np.ndarray, "*s"]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(*bounding_box(mask), strict=True))


def _ignored(label: Int[np.ndarray, "*s"], schema: LabelSchema) -> Bool[np.ndarray, "*s"]:
    values = {UNLABELED} - {value for value, _ in schema.classes}
    if schema.ignore is not None:
        values.add(schema.ignore)
    return np.isin(label, sorted(values))


def _refuse_unfit(
    prediction: np.ndarray[Any, Any], label: np.ndarray[Any, Any], schema: LabelSchema, spacing_mm: Sequence[float]
) -> None:
    if prediction.shape != label.shape:
        message = (
            f"prediction of shape {_x(prediction.shape)}, label of shape {_x(label.shape)}: both must lie on the same "
            "grid; predict on the scan's own grid"
        )
        raise UserError(message)
    if len(spacing_mm) != label.ndim or not all(np.isfinite(mm) and mm > 0 for mm in spacing_mm):
        message = f"spacing {tuple(spacing_mm)} mm for {label.ndim} axes: expected a positive number for each axis"
        raise UserError(message)
    for role, array in (("prediction", prediction), ("label", label)):
        if array.dtype.kind not in "iub":
            message = f"{role} holds {array.dtype} numbers: expected whole numbers, the stored values of the classes"
            raise UserError(message)
    names = [name for value, name in schema.classes if value != schema.ignore]
    if len(set(names)) < len(names):
        message = f"label {schema.name} has classes of equal name ({', '.join(names)}): give each a name of its own"
        raise UserError(message)
    if len(names) < 2:
        message = f"label {schema.name} has no class beside the background: nothing to score; name its classes"
        raise UserError(message)


def _refuse_values(role: str, values: np.ndarray[Any, Any], schema: LabelSchema) -> None:
    known = [value for value, _ in schema.classes]
    unknown = values[~np.isin(values, known)]
    if unknown.size:
        shown = ", ".join(str(value) for value in np.unique(unknown)[:5])
        classes = ", ".join(f"{value}={name}" for value, name in schema.classes)
        message = (
            f"{role} holds {shown} ({unknown.size:,} voxels), which is not among the classes {classes}: name every "
            "value with label.class_names, or leave it out with label.ignore"
        )
        raise UserError(message)


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)
