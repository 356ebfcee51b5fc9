"""Values: what is foreground, the integers that are stored, and the numbers that turn them into network input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from medssl.types import IntensityRule, ValueDomain

EXCLUDED = -32768  # code of voxels that no loss looks at, in scans that have such voxels and nowhere else
SAMPLE = 1 << 20  # voxels that statistics look at
CELLS = 512  # cells at most in the map of the foreground


@dataclass(frozen=True)
class Coding:
    """How stored integers stand for values.

    Attributes:
        intensity: [C, 6] float32 (scale, offset, low, high, shift, divisor), as in ``Crops``.
        fill: [C] code of the lowest value, for voxels outside the scan.
        error: Largest difference between a stored value and the prepared one, in the scan's own unit; 0 is exact.
        clipped: Voxels beyond the clip bounds of the intensity rule that were stored as the bound.
        excluded: Voxels of the grid that hold ``EXCLUDED``.
    """

    intensity: NDArray[np.float32]
    fill: NDArray[np.int32]
    error: float = 0.0
    clipped: int = 0
    excluded: int = 0


def refuse_unusable(image: NDArray[Any]) -> None:
    """Refuses an empty array and one with NaN or infinite voxels [C, *s]: nothing is replaced in silence.

    Raises:
        UserError: Names the shape, or how many voxels are not finite.
    """
    if image.size == 0:
        message = f"the scan has no voxels: its shape is {tuple(image.shape[1:])}"
        raise UserError(message)
    if not np.issubdtype(image.dtype, np.floating):
        return
    rows = (row for channel in image for row in channel)  # plane by plane: no second volume in memory
    bad = sum(int(row.size - np.count_nonzero(np.isfinite(row))) for row in rows)
    if bad:
        message = f"{bad} of {image.size} voxels are NaN or infinite: repair or remove the scan"
        raise UserError(message)


def blanked(image: NDArray[Any], included: NDArray[np.bool_]) -> NDArray[Any]:
    """Returns a copy of [C, *s]: voxels that are not included [*s] get the lowest included value of their channel."""
    image = image.copy()
    for channel in image:
        channel[~included] = channel[included].min()
    return image


def thresholds(
    image: NDArray[Any], domain: ValueDomain, background: float | None, included: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Returns per channel the highest value that counts as background; only included voxels [*s] have a say.

    Without a rule of the user's: -500 HU in CT; 10 of 255 in color; elsewhere a quarter of the way from the dark to
    Otsu's threshold (Otsu 1979), low enough to keep dim tissue and high enough to drop the noise of air.
    """
    if background is None and domain == "hu":
        background = -500.0
    if background is None and domain == "rgb":
        background = 10.0
    if background is not None:
        return np.full(len(image), background)
    return np.array([_towards_otsu(_sampled_of(channel, included)) for channel in image])


def foreground_mask(image: NDArray[Any], limits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns the voxels [*s] that exceed the background in any channel of [C, *s]."""
    mask: NDArray[np.bool_] = image[0] > limits[0]
    for channel, limit in zip(image[1:], limits[1:], strict=True):
        mask |= channel > limit
    return mask


def bounding_box(mask: NDArray[np.bool_]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns start and stop of the smallest box around True; the whole array where nothing is True."""
    start, stop = [], []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(hit):
            return (0,) * mask.ndim, mask.shape
        start.append(int(hit[0]))
        stop.append(int(hit[-1]) + 1)
    return tuple(start), tuple(stop)


def cell_side(shape: tuple[int, ...]) -> int:
    """Returns the side in voxels of one cell of the foreground map: 16, doubled until there are at most 512 cells."""
    side = 16
    while np.prod([-(-n // side) for n in shape]) > CELLS:
        side *= 2
    return side


def foreground_cells(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns for each cell (in C order) whether half of it is foreground; where none is so full, the fullest."""
    share: NDArray[Any] = mask
    side = cell_side(mask.shape)
    for axis, size in enumerate(mask.shape):
        first = np.arange(0, size, side)
        share = np.add.reduceat(share, first, axis=axis, dtype=np.float32)
        inside = np.diff(np.append(first, size)).astype(np.float32)
        share /= inside.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
    cells: NDArray[np.bool_] = (share >= min(0.5, float(share.max()))) & (share > 0)
    return cells.ravel()


def encode(
    image: NDArray[Any],
    rule: IntensityRule,
    mask: NDArray[np.bool_],
    *,
    whole: bool = False,
    included: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.uint8] | NDArray[np.int16], Coding]:
    """Turns values into the integers that are stored.

    8-bit values stay uint8. Whole numbers that span less than 65536 become int16 exactly (with an offset where they do
    not fit). Everything else is spread over all int16 codes between the bounds of the rule: the error is at most the
    range / 131070, and voxels beyond the bounds are counted.

    With excluded voxels all values become int16 and one code is theirs: the lowest value gets the next one, so that
    ``EXCLUDED`` decodes to one step below it, and to the lower bound where values are clipped. Whole numbers are exact
    that span less than 65535; the error of everything else is at most the range / 131068.

    Args:
        image: Prepared values [C, *s].
        rule: The intensity rule of the scan's value domain.
        mask: Foreground [*s]: percentiles, mean and deviation are taken over it (sub-sampled in large scans).
        whole: Round to whole units first (resampled HU and resampled 8-bit images), which is counted as error.
        included: False at excluded voxels [*s], whatever they hold; None where there are none.

    Returns:
        Codes [C, *s] and the numbers that decode them.
    """
    eight = image.dtype == np.uint8 and included is None
    codes: NDArray[Any] = np.empty(image.shape, np.uint8 if eight else np.int16)
    image = image if included is None else blanked(image, included)
    rows = [
        _encode_channel(values, rule, _foreground_values(values, mask, included), out, whole, included)
        for values, out in zip(image, codes, strict=True)
    ]
    coding = Coding(
        intensity=np.array([row[0] for row in rows], np.float32),
        fill=np.array([int(channel.min()) for channel in codes], np.int32),
        error=max(row[1] for row in rows),
        clipped=sum(row[2] for row in rows),
        excluded=0 if included is None else int(included.size - np.count_nonzero(included)),
    )
    if included is not None:
        codes[:, ~included] = EXCLUDED
    return codes, coding


def decode(codes: NDArray[Any], intensity: NDArray[np.float32], *, normalize: bool = True) -> NDArray[np.float32]:
    """Returns values [C, *s] of stored codes; with ``normalize`` as the network sees them."""
    columns = intensity.reshape(len(codes), 6, *([1] * (codes.ndim - 1)))
    scale, offset, low, high, shift, divisor = (columns[:, i] for i in range(6))
    values: NDArray[np.float32] = codes.astype(np.float32) * scale + offset
    return (np.clip(values, low, high) - shift) / divisor if normalize else values


def _encode_channel(
    values: NDArray[Any],
    rule: IntensityRule,
    sample: NDArray[np.float64],
    out: NDArray[Any],
    whole: bool,
    included: NDArray[np.bool_] | None,
) -> tuple[tuple[float, ...], float, int]:
    """Writes the codes of one channel; returns (its six numbers, error, clipped voxels)."""
    first_code = -32768 if included is None else EXCLUDED + 1
    steps = 32767 - first_code
    lowest, highest = float(values.min()), float(values.max())
    low, high = _bounds(rule, sample, lowest, highest)
    error, clipped = 0.0, 0
    if out.dtype == np.uint8:
        scale, offset = 1.0, 0.0
        out[...] = values
    elif highest - lowest <= steps and (whole or _is_whole(values)):
        scale = 1.0
        fits = included is None and -32768 <= np.rint(lowest) and np.rint(highest) <= 32767
        offset = 0.0 if fits else float(np.rint(lowest)) - first_code
        error = 0.5 if whole and not _is_whole(values) else 0.0
        largest = max(abs(lowest), abs(highest))
        error += float(np.spacing(np.float32(largest))) if largest > 1 << 24 else 0.0  # values come back in float32
        if np.issubdtype(values.dtype, np.integer) and offset == 0.0:
            out[...] = values
        else:
            _by_plane(values, out, lambda plane: np.rint(plane - offset))
    else:
        first, last = max(lowest, min(low, highest)), min(highest, max(high, lowest))
        scale = (last - first) / steps or 1.0
        offset = first - first_code * scale
        error = scale / 2 + float(np.spacing(np.float32(max(abs(first), abs(last)))))
        beyond = (values < first) | (values > last)
        clipped = int(np.count_nonzero(beyond if included is None else beyond & included))
        _by_plane(values, out, lambda plane: np.clip(np.rint((plane - offset) / scale), first_code, 32767))
    shift, divisor = _normalization(rule, np.clip(sample, low, high), low, high)
    return (scale, offset, low, high, shift, divisor), error, clipped


def _bounds(rule: IntensityRule, sample: NDArray[np.float64], lowest: float, highest: float) -> tuple[float, float]:
    if rule.clip == "range":
        return rule.low, rule.high
    if rule.clip == "percentile":
        low, high = np.percentile(sample, [rule.low, rule.high])
        return float(low), float(high)
    return lowest, highest


def _normalization(rule: IntensityRule, sample: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Returns shift and divisor; a scan that is constant, but for rounding, divides by 1.

    What counts as rounding is relative to the values: those of a PET scan may be near 1e-8.
    """
    if rule.normalize == "none":
        return 0.0, 1.0
    if rule.normalize == "fixed":
        return rule.mean, rule.deviation
    shift, divisor = (low, high - low) if rule.normalize == "unit" else (float(sample.mean()), float(sample.std()))
    return shift, divisor if divisor > 1e-6 * abs(shift) else 1.0


def _by_plane(
    values: NDArray[Any], out: NDArray[Any], change: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    for plane, target in zip(values, out, strict=True):
        target[...] = change(plane.astype(np.float64))


def _is_whole(values: NDArray[Any]) -> bool:
    if not np.issubdtype(values.dtype, np.floating):
        return True
    return all(bool((plane == np.rint(plane)).all()) for plane in values)


def _sampled(values: NDArray[Any]) -> NDArray[Any]:
    """Every n-th voxel along each axis, about a million in all: the same ones at every run."""
    step = max(1, int(np.ceil((values.size / SAMPLE) ** (1 / values.ndim))))
    return values[(slice(None, None, step),) * values.ndim]


def _sampled_of(values: NDArray[Any], included: NDArray[np.bool_] | None) -> NDArray[Any]:
    """A sample of the included voxels; all of them where the sample meets none."""
    if included is None:
        return _sampled(values)
    sample = _sampled(values)[_sampled(included)]
    return sample if sample.size else values[included]


def _foreground_values(
    values: NDArray[Any], mask: NDArray[np.bool_], included: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    inside = _sampled(values)[_sampled(mask)]
    return (inside if inside.size else _sampled_of(values, included).ravel()).astype(np.float64)


def _towards_otsu(values: NDArray[Any]) -> float:
    """A quarter of the way from the first percentile to the threshold that parts the histogram best (Otsu 1979)."""
    dark, bright = (float(x) for x in np.percentile(values, [1.0, 99.9]))
    if bright - dark <= 256 * np.spacing(max(abs(bright), abs(dark))):  # a bin would be finer than such numbers are
        return float(values.min())
    counts, edges = np.histogram(values, bins=256, range=(dark, bright))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    otsu = float(centers[int(np.nanargmax(between))])
    return dark + (otsu - dark) / 4
