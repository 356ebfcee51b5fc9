"""Tissue of a slide, found on a thumbnail: a threshold on saturation, darkness or optical density, then areas in mm2.

Otsu's threshold (Otsu, IEEE Trans. SMC 1979) always divides a histogram in two, also where a slide is blank or full of
tissue. So a lowest value that can be tissue bounds it from below, and it is taken again below itself as long as what
lies there is too colorful or too dark to be glass. The limit lies halfway between it and the mean of the glass.
Everything depends on the histogram and on symmetric neighborhoods: a thumbnail turned by 90 degrees has the mask turned
by 90 degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.store import ink
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped, UInt8

    from medssl.types import TissueRule

# method: lowest value that can be tissue, largest mean of what can be glass, upper end of the scale
SCALES = {"saturation": (12.0, 14.0, 255.0), "gray": (20.0, 26.0, 255.0), "optical_density": (0.10, 0.12, 5.545)}
WORDS = {"saturation": "saturation", "gray": "darkness", "optical_density": "optical density"}
BINS = 512
ROUNDS = 4  # thresholds below thresholds


@dataclass(frozen=True)
class Tissue:
    """Tissue of a thumbnail.

    Attributes:
        mask: [h, w], True for tissue.
        reason: Why there is none, in words; "" where there is some.
        threshold: Lowest value that was taken as tissue, on the scale of the method.
        pen_mm2: Area that was left out as marks of pens.
        black_mm2: Area that was left out as black.
    """

    mask: Bool[np.ndarray, "h w"]
    reason: str = ""
    threshold: float = 0.0
    pen_mm2: float = 0.0
    black_mm2: float = 0.0


def check_rule(rule: TissueRule) -> None:
    """Refuses a rule whose numbers are out of range.

    Raises:
        UserError: Names the key.
    """
    key, top = "preprocess.tissue", SCALES[rule.method][2]
    if rule.threshold is not None and not 0 < rule.threshold < top:
        message = f"is no {WORDS[rule.method]}"
        raise UserError(message, key=f"{key}.threshold", got=rule.threshold, expected=f"above 0, below {top:g}")
    if not 1 <= rule.mpp <= 64:
        message = "is no resolution of a thumbnail"
        raise UserError(message, key=f"{key}.mpp", got=rule.mpp, expected="1 to 64 micrometers a pixel")
    for name in ("smallest_mm2", "largest_hole_mm2", "smooth_um"):
        if not 0 <= getattr(rule, name) < np.inf:
            message = "must be a number from 0 on"
            raise UserError(message, key=f"{key}.{name}", got=getattr(rule, name))


def tissue_mask(rgb: UInt8[np.ndarray, "3 h w"], spacing_mm: tuple[float, float], rule: TissueRule) -> Tissue:
    """Finds the tissue on a thumbnail of a slide.

    Args:
        rgb: Thumbnail.
        spacing_mm: Distance of its rows and of its columns in mm.
        rule: What counts as tissue.

    Returns:
        The mask, and why it is empty where it is.
    """
    pixel_mm2 = spacing_mm[0] * spacing_mm[1]
    values = values_of(rgb, rule.method)
    pen, black = ink.marks(rgb, spacing_mm)
    left_out = (pen if rule.exclude_pen else False) | (black if rule.exclude_black else np.zeros_like(pen))
    threshold = rule.threshold if rule.threshold is not None else threshold_of(values[~left_out], rule.method)
    raw = (values >= threshold) & ~left_out
    mask = cleaned(raw, spacing_mm, rule) & ~left_out
    pen_mm2, black_mm2 = float(pen.sum()) * pixel_mm2, float(black.sum()) * pixel_mm2
    reason = "" if mask.any() else _reason(raw, (threshold, left_out), pixel_mm2, rule)
    return Tissue(
        mask, reason, float(threshold), pen_mm2 if rule.exclude_pen else 0.0, black_mm2 if rule.exclude_black else 0.0
    )


def values_of(rgb: UInt8[np.ndarray, "3 h w"], method: str) -> Float[np.ndarray, "h w"]:
    """Saturation (0 to 255), darkness (0 to 255) or largest optical density of three colors (0 to 5.5) of pixels.

    Darkness and density count from the brightest pixels, which are glass on most slides: lamps differ.
    """
    high, low = rgb.max(0).astype(np.float32), rgb.min(0).astype(np.float32)
    if method == "gray":
        weights = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601
        gray = np.tensordot(weights, rgb.astype(np.float32), 1)
        darkness: np.ndarray = np.maximum(_brightest(gray) - gray, 0.0)
        return darkness
    if method == "optical_density":
        density: np.ndarray = np.maximum(np.log((_brightest(low) + 1.0) / (low + 1.0)), 0.0)
        return density
    saturation: Float[np.ndarray, "h w"] = 255.0 * (high - low) / np.maximum(high, 1.0)
    saturation[high < 16] = 0.0  # colors of nearly black pixels are noise
    return saturation


def _brightest(values: Float[np.ndarray, "h w"]) -> float:
    """Brightness of the glass, 215 to 255: a slide full of tissue has none."""
    return float(np.clip(np.percentile(values, 99.0), 215.0, 255.0))


def threshold_of(values: Float[np.ndarray, "N"], method: str) -> float:
    """Otsu's threshold, bounded: never below what can be tissue, and never so high that tissue counts as glass."""
    lowest, glass, top = SCALES[method]
    threshold = top
    for _ in range(ROUNDS):
        below = values[values < threshold]
        if not below.size:
            return lowest
        threshold = otsu(below, threshold)
        rest = values[values < threshold]
        if threshold <= lowest or not rest.size or float(rest.mean()) <= glass:
            break
    else:
        return lowest
    rest = values[values < threshold]
    if not rest.size or float(rest.mean()) > glass:
        return lowest
    return max((threshold + float(rest.mean())) / 2, lowest)  # halfway to the glass: pale tissue beside dark is tissue


def otsu(values: Float[np.ndarray, "N"], top: float) -> float:
    """Threshold in (0, top] that divides values with the largest variance between the two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=BINS, range=(0.0, top))
    below = np.cumsum(counts)[:-1]
    above = len(values) - below
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    if not np.isfinite(between).any():
        return top
    best = np.flatnonzero(between >= np.nanmax(between) * (1 - 1e-9))
    return float(edges[1:-1][best].mean())  # the middle of a gap, where there is one


def cleaned(
    mask: Bool[np.ndarray, "h w"], spacing_mm: tuple[float, float], rule: TissueRule
) -> Bool[np.ndarray, "h w"]:
    """A mask without small pieces, small holes and fine details. Cleaning twice changes nothing."""
    from scipy import ndimage

    pixel_mm2 = spacing_mm[0] * spacing_mm[1]
    ball = _ball(spacing_mm, rule.smooth_um / 2000.0)
    for _ in range(8):  # holes that are filled can connect pieces; two rounds nearly always do
        before = mask
        if ball.size > 1:
            edge = tuple(n // 2 for n in ball.shape)
            wide = np.pad(mask, [(n, n) for n in edge], mode="edge")
            wide = ndimage.binary_closing(ndimage.binary_opening(wide, ball), ball)
            mask = wide[edge[0] : wide.shape[0] - edge[0], edge[1] : wide.shape[1] - edge[1]]
        mask = _without_small(mask, rule.smallest_mm2 / pixel_mm2, diagonal=True)
        mask = ~_without_small(~mask, rule.largest_hole_mm2 / pixel_mm2, diagonal=False, inclusive=True)
        if np.array_equal(before, mask):
            break
    return mask


def area_mm2(mask: Shaped[np.ndarray, "h w"], spacing_mm: tuple[float, float]) -> float:
    """Area of a mask in mm2."""
    return float(np.count_nonzero(mask)) * spacing_mm[0] * spacing_mm[1]


def _ball(spacing_mm: tuple[float, float], radius_mm: float) -> Bool[np.ndarray, "p q"]:
    """Pixels within a radius of the middle pixel."""
    reach = [int(radius_mm / mm + 1e-6) for mm in spacing_mm]
    rows, columns = (np.arange(-n, n + 1) * mm for n, mm in zip(reach, spacing_mm, strict=True))
    inside: Bool[np.ndarray, "p q"] = rows[:, None] ** 2 + columns[None] ** 2 <= (radius_mm * (1 + 1e-6)) ** 2
    return inside


def _without_small(
    mask: Bool[np.ndarray, "h w"], smallest: float, *, diagonal: bool, inclusive: bool = False
) -> Bool[np.ndarray, "h w"]:
    """A mask without pieces of fewer than ``smallest`` pixels; ``inclusive``: also those of just as many, inside only.

    Holes (``inclusive``) are pieces that do not reach the edge; others stay, whatever their size.
    """
    from scipy import ndimage

    structure: Any = np.ones((3, 3), bool) if diagonal else None
    labels, count = ndimage.label(mask, structure)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    small = sizes <= smallest + 1e-6 if inclusive else sizes < smallest - 1e-6
    if inclusive:
        rim = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
        small[np.unique(np.concatenate([part.ravel() for part in rim]))] = False
    small[0] = False
    large: np.ndarray = mask & ~small[labels]
    return large


def _reason(
    raw: Bool[np.ndarray, "h w"],
    limits: tuple[float, Bool[np.ndarray, "h w"]],
    pixel_mm2: float,
    rule: TissueRule,
) -> str:
    """Why no tissue is left."""
    from scipy import ndimage

    threshold, left_out = limits
    if left_out.all():
        return "no tissue: the whole slide is black or marked by pens"
    what = f"{WORDS[rule.method]} {threshold:.3g}"
    if not raw.any():
        share = float(left_out.mean())
        marks = f"; {share:.0%} of it are pen marks or black" if share > 0.001 else ""
        return f"no tissue: no pixel reaches the {what}: the slide is blank{marks}"
    labels, _ = ndimage.label(raw, np.ones((3, 3)))
    largest = float(np.bincount(labels.ravel())[1:].max()) * pixel_mm2
    return (
        f"no tissue: the largest piece above {what} has {largest:.3g} mm2 before it is smoothed, and "
        f"preprocess.tissue.smallest_mm2 is {rule.smallest_mm2:g}"
    )
