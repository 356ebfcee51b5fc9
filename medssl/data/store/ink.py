"""Marks of pens and black regions on the thumbnail of a slide.

Inks are told from stains by hue and saturation. Stained tissue lies between the hues of hematoxylin (about 240 to 290
degrees), eosin (310 to 350) and DAB (15 to 40). Inks are purer: green and cyan occur in no such stain, blue ink has
more green than red (hematoxylin has not), and red ink is more saturated than eosin, DAB and blood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

# name: lowest and highest hue in degrees (across 360 where the first is larger), lowest saturation, lowest value
INKS = {"green": (75.0, 190.0, 0.22, 30), "blue": (190.0, 232.0, 0.30, 40), "red": (344.0, 10.0, 0.75, 90)}
BLACK = 50  # largest value of any color of a black pixel
GRAY = 22  # largest difference between its colors
SMALLEST_MM2 = 0.03  # smaller spots of such colors are no marks
MARGIN_MM = 0.024  # around marks, where ink and glass mix


def marks(
    rgb: UInt8[np.ndarray, "3 h w"], spacing_mm: tuple[float, float]
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Pixels of pen marks and pixels of black regions, each with the margin around them.

    A black pen is among the black regions: on a thumbnail nothing tells them apart.
    """
    hue, saturation = hue_and_saturation(rgb)
    value = rgb.max(0)
    pen = np.zeros(value.shape, bool)
    for low, high, purity, brightness in INKS.values():
        inside = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
        pen |= _large(inside & (saturation >= purity) & (value >= brightness), spacing_mm)
    black = _large((value <= BLACK) & (value - rgb.min(0) <= GRAY), spacing_mm)
    return _with_margin(pen, spacing_mm), _with_margin(black, spacing_mm)


def hue_and_saturation(
    rgb: UInt8[np.ndarray, "3 h w"],
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Hue in degrees [0, 360) and saturation [0, 1] of the hexagonal model (HSV); 0 for gray pixels."""
    red, green, blue = rgb.astype(np.float32)
    high, low = rgb.max(0).astype(np.float32), rgb.min(0).astype(np.float32)
    spread = high - low
    safe = np.maximum(spread, 1.0)
    hue = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.where(spread > 0, hue * 60.0, 0.0), spread / np.maximum(high, 1.0)


def _large(mask: Bool[np.ndarray, "h w"], spacing_mm: tuple[float, float]) -> Bool[np.ndarray, "h w"]:
    """Pieces of at least the smallest area of a mark."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return mask
    large = np.bincount(labels.ravel()) * (spacing_mm[0] * spacing_mm[1]) >= SMALLEST_MM2
    large[0] = False
    kept: Bool[np.ndarray, "h w"] = large[labels]
    return kept


def _with_margin(mask: Bool[np.ndarray, "h w"], spacing_mm: tuple[float, float]) -> Bool[np.ndarray, "h w"]:
    """A mask and all pixels nearer to it than the margin."""
    from scipy import ndimage

    if not mask.any():
        return mask
    near: Bool[np.ndarray, "h w"] = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= MARGIN_MM
    return near
