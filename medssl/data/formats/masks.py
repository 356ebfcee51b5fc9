"""Checks of masks: whether a mask lies on the grid of its image, and whether its values are classes.

All functions are pure. The index calls ``compare`` with headers; the reader calls all functions with pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.base import times
from medssl.types import Grid, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medssl.types import LabelSchema

SAME_VOXELS = 0.1  # corners of a mask may lie this far from those of its image (voxels of the image): rounded headers
REPORTED_VOXELS = 0.01  # from here on a note reports it
WHOLE = 1e-6  # relative: a scaled value this close to a whole number is one (slopes are stored in float32)
LOSSY = (".jpg", ".jpeg")
_LOSSY_TOLERANCE = 24  # lossy compression keeps values of a binary mask this close to 0 and 255


class MaskError(UserError):
    """A mask that cannot be used; the message has one line."""


@dataclass(frozen=True)
class Reorientation:
    """Permutation and flips of axes that map the array of a mask to that of its image.

    Attributes:
        axes: For each axis of the image, the axis of the mask that runs along it.
        flips: For each axis of the image, whether the mask runs against it.
        offset_voxels: Largest distance of a corner from its place in the image, in voxels of the image; infinite where
            the sizes differ.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    offset_voxels: float

    @property
    def changes_array(self) -> bool:
        """Whether axes are permuted or flipped."""
        return any(self.flips) or self.axes != tuple(range(len(self.axes)))

    def apply(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Reorients an array [C, *mask axes] to [C, *image axes]."""
        permuted = array.transpose(0, *(axis + 1 for axis in self.axes))
        flipped = np.flip(permuted, tuple(axis + 1 for axis, flip in enumerate(self.flips) if flip))
        return np.ascontiguousarray(flipped) if self.changes_array else array


@dataclass(frozen=True)
class Match:
    """Result of a comparison of grids.

    Attributes:
        reorientation: How to reorient the mask.
        problem: Why the mask cannot be used; "" if it can.
        note: Note for the user; "" without one.
    """

    reorientation: Reorientation
    problem: str = ""
    note: str = ""


def compare(image: Grid, mask: Grid, *, trust: bool = False) -> Match:
    """Compares the grid of a mask with that of its image.

    Args:
        image: Grid of the image.
        mask: Grid of the mask.
        trust: Accept masks of equal shape at any position.

    Returns:
        The match. A ``problem`` starts with "shape differs" or "on another grid", and has the placeholder ``{name}``
        for the name of the mask.
    """
    reorientation = reorientation_of(image, mask)
    if reorientation.offset_voxels <= SAME_VOXELS:
        is_off = reorientation.offset_voxels > REPORTED_VOXELS
        return Match(
            reorientation,
            note=f"lies up to {reorientation.offset_voxels:.2g} voxels off its image (taken as rounding)"
            if is_off
            else "",
        )
    identity = Reorientation(tuple(range(len(image.shape))), (False,) * len(image.shape), reorientation.offset_voxels)
    if sorted(image.shape) != sorted(mask.shape) or len(image.shape) == 2:
        return Match(identity, f"shape differs: {{name}} has {times(mask.shape)}, its image {times(image.shape)}")
    if trust and image.shape == mask.shape:
        return Match(identity, note="is taken to lie on its image's grid, which its header does not say (grid trust)")
    distance = (
        f"corners up to {reorientation.offset_voxels:.3g} voxels apart"
        if np.isfinite(reorientation.offset_voxels)
        else "the axes do not fit"
    )
    advice = "resample it to its image"
    if image.shape == mask.shape:
        position = "its header gives no position: " if _has_default_affine(mask) else ""
        advice = f"{position}{advice}, or take equal shapes as equal grids with label.grid trust"
    return Match(
        identity, f"on another grid: {{name}} has {describe(mask)}, its image {describe(image)}; {distance}: {advice}"
    )


def reorientation_of(image: Grid, mask: Grid) -> Reorientation:
    """The reorientation that brings a mask closest to its image. For 2D images only the shape is compared."""
    count = len(image.shape)
    identity = Reorientation(tuple(range(count)), (False,) * count, np.inf)
    if len(mask.shape) != count:
        return identity
    if count == 2:
        return Reorientation(identity.axes, identity.flips, 0.0 if image.shape == mask.shape else np.inf)
    mask_to_image = np.linalg.solve(np.array(image.affine), np.array(mask.affine))  # mask voxel -> image voxel
    linear = mask_to_image[:count, :count]
    axes = tuple(int(axis) for axis in np.abs(linear).argmax(axis=1))
    if sorted(axes) != list(range(count)) or tuple(mask.shape[axis] for axis in axes) != tuple(image.shape):
        return identity
    flips = tuple(bool(linear[row, axis] < 0) for row, axis in enumerate(axes))
    exact = np.zeros((count, count + 1))
    for row, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        exact[row, axis] = -1.0 if flip else 1.0
        exact[row, count] = image.shape[row] - 1 if flip else 0
    last_voxel = np.array(mask.shape) - 1
    corners = np.stack(np.meshgrid(*((0, length) for length in last_voxel), indexing="ij")).reshape(count, -1)
    corner_offsets = (mask_to_image[:count, :count] - exact[:, :count]) @ corners + (
        mask_to_image[:count, count:] - exact[:, count:]
    )
    return Reorientation(axes, flips, float(np.abs(corner_offsets).max()))


def describe(grid: Grid) -> str:
    """A grid as text: "20x18x10 voxels (LAS) of 0.9x0.8x2.5 mm from 40, -30, 10"."""
    affine = np.array(grid.affine)
    if len(grid.shape) != 3:
        return f"{times(grid.shape)} pixels"
    rows = np.abs(affine[:3, :3]).argmax(axis=0)
    letters = "".join(("RAS" if affine[row, axis] > 0 else "LPI")[row] for axis, row in enumerate(rows))
    spacing = "x".join(f"{step:.4g}" for step in grid.spacing_mm)
    origin = ", ".join(f"{value:.4g}" for value in affine[:3, 3] + 0.0)
    return f"{times(grid.shape)} voxels ({letters}) of {spacing} mm from {origin}"


def one_channel(array: NDArray[np.generic], name: str, holds: str, notes: list[str]) -> NDArray[np.generic]:
    """Reduces a mask to one channel. Equal channels of a picture become one, which is noted in ``notes``.

    Raises:
        MaskError: The mask is a colored picture, or has one-hot or other channels.
    """
    if len(array) == 1:
        return array
    lossy = name.lower().endswith(LOSSY)
    if array.ndim == 3 and len(array) in (3, 4):
        colors = array[:3].astype(np.int64)
        if np.abs(colors - colors[:1]).max() <= (_LOSSY_TOLERANCE if lossy else 0):
            notes.append(f"{name} has three equal channels: the first is taken")
            return array[:1]
        count = len(np.unique(colors[0] * 2**32 + colors[1] * 2**16 + colors[2]))
        message = f"{name} is a colored picture ({count:,} colors): expected one channel, holding {holds}"
        raise MaskError(message)
    message = f"{name} has {len(array)} channels: expected one, holding {holds}"
    values = np.unique(array[..., :64])
    if len(values) == 2 and values[0] == 0:
        message += "; channels of two values look like one class each (one-hot): store the number of the class instead"
    raise MaskError(message)


def whole_numbers(label: NDArray[np.generic], name: str = "label") -> NDArray[np.generic]:
    """Converts a label to integers; values do not change, except for rounding of float32.

    Args:
        label: Values of any number type.
        name: Name of the label in messages.

    Raises:
        MaskError: Values are not whole numbers, or do not fit 32 bits.
    """
    if label.dtype.kind == "b":
        return label.astype(np.uint8)
    limits = np.iinfo(np.int32)
    if label.dtype.kind == "f" and (problem := _fractions(label)):
        pass
    elif label.size and not limits.min <= label.min() <= label.max() <= limits.max:
        problem = f"values from {label.min():.0f} to {label.max():.0f}: a class is a number of at most 32 bits"
    else:
        return np.rint(label).astype(np.int32) if label.dtype.kind == "f" else label
    message = f"{name} holds {problem}"
    raise MaskError(message)


def _fractions(label: NDArray[np.generic]) -> str:
    """Why real numbers cannot be classes; "" if they can."""
    values = label.astype(np.float64, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        return f"{int((~finite).sum()):,} voxels that are no number (NaN or infinite)"
    fractions = np.unique(values[np.abs(np.rint(values) - values) > WHOLE * np.maximum(1, np.abs(values))])
    if not len(fractions):
        return ""
    shown = ", ".join(f"{value:.7g}" for value in fractions[:3]) + (", ..." if len(fractions) > 3 else "")
    if len(fractions) > 3 and values.min() >= 0 and values.max() <= 1:
        cause = "probabilities become classes 0 and 1 with label.threshold 0.5"
    elif len(fractions) > 100:
        cause = "an image, or a mask resampled with interpolation: resample masks to the nearest voxel"
    else:
        cause = "a slope in its header (scl_slope) is the likely cause: store class numbers unscaled"
    return f"values that are not whole numbers ({shown}): {cause}"


def apply_threshold(label: NDArray[np.generic], threshold: float) -> NDArray[np.uint8]:
    """Classes 0 and 1: values of at least ``threshold`` are 1; NaN is 0."""
    return np.asarray(label >= threshold, np.uint8)  # type: ignore[operator]  # all label types are numbers


def refuse_lossy(label: NDArray[np.generic], name: str, *, advice: str) -> None:
    """Refuses a JPEG mask whose values were changed by compression.

    Raises:
        MaskError: The mask has other values than 0 and 255.
    """
    if not name.lower().endswith(LOSSY):
        return
    values = value_counts(label)
    count = len(values)
    if count > 2 or set(values) - {0, 255}:
        close_to_binary = np.minimum(label, 255 - label.astype(np.int16)) <= _LOSSY_TOLERANCE
        kind = "near 0 and 255" if close_to_binary.mean() > 0.95 else "of any size"
        message = f"{name} is a JPEG picture with {count} values {kind}: compression changes class numbers; {advice}"
        raise MaskError(message)


def value_counts(label: NDArray[np.generic]) -> dict[int, int]:
    """Values of a label of whole numbers with their counts, in ascending order."""
    if not label.size:
        return {}
    low, high = int(label.min()), int(label.max())
    if high - low > 1 << 20:
        values, counts = np.unique(label, return_counts=True)
    else:
        total = np.zeros(high - low + 1, np.int64)
        flat = label.ravel()
        for start in range(0, flat.size, 1 << 22):  # far faster than sorting, in little memory
            total += np.bincount(flat[start : start + (1 << 22)].astype(np.int64) - low, minlength=len(total))
        values = np.flatnonzero(total)
        values, counts = values + low, total[values]
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def check_label(label: NDArray[np.generic], schema: LabelSchema | None) -> None:
    """Compares the values of a label with the class map; without a class map, only negative values are refused.

    Raises:
        MaskError: Names the values that are neither a class nor the value to ignore, and their numbers of voxels.
    """
    counts = value_counts(label)
    if schema is None:
        allowed_values = {value for value in counts if value >= 0}
    else:
        allowed_values = {value for value, _ in schema.classes} | (
            {schema.ignore} if schema.ignore is not None else set()
        )
    unexpected = {value: count for value, count in counts.items() if value not in allowed_values}
    if not unexpected:
        return
    shown = ", ".join(f"{value} ({count:,} voxels)" for value, count in list(unexpected.items())[:5])
    shown += f" and {len(unexpected) - 5} more values" if len(unexpected) > 5 else ""
    if schema is None:
        advice = "name all values with label.class_names, and with label.ignore the one that no loss looks at"
        message = f"negative label value: {shown}; {advice}"
        raise MaskError(message)
    classes = ", ".join(f"{value}={name}" for value, name in schema.classes)
    advice = "name it with label.class_names or leave it out of the loss with label.ignore"
    names = dict(schema.classes)
    if set(unexpected) == {255} and set(counts) <= {0, 255} and set(names) == {0, 1}:
        advice = f"the mask holds 0 and 255 only: label.class_names 0={names[0]},255={names[1]}"
    elif len(unexpected) > 5 and set(names) <= {0, 1, 255}:
        advice = f"many values for {len(names)} classes: label.threshold 128 makes values from 128 on class 1"
    message = f"label value not in the class map {classes}: {shown}; {advice}"
    raise MaskError(message)


def _has_default_affine(grid: Grid) -> bool:
    """Whether an affine is the default of writers without position: unit steps from the origin."""
    affine = np.abs(np.array(grid.affine))
    return bool(np.allclose(affine, np.eye(len(affine))))
