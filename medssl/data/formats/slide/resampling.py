"""Resampling of image rows and columns by the share of area that old pixels have in new ones."""

from __future__ import annotations

import numpy as np


def area_average(
    image: np.ndarray, offset: tuple[float, float], step: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    """Mean color of the rectangle that each new pixel covers, uint8 [rows, columns, C] -> uint8 [*size, C].

    Exact for every step: a step of 2 gives the mean of 2 x 2 pixels, a step of 1 with a fractional offset gives linear
    interpolation. Steps below 1 (finer than the image) are linear interpolation between the centers of pixels.

    Args:
        image: Pixels.
        offset: Row and column in ``image``, in its pixels, at which the first new pixel begins.
        step: Pixels of ``image`` in one new pixel, for rows and columns, above 0.
        size: New rows and columns.
    """
    if step == (1.0, 1.0) and all(place == int(place) for place in offset):
        row, column = int(offset[0]), int(offset[1])
        return np.ascontiguousarray(image[row : row + size[0], column : column + size[1]])
    rows = _along(image, offset[0], step[0], size[0])
    # a transposed copy lets both passes walk along whole rows of memory
    columns = _along(np.ascontiguousarray(rows.transpose(1, 0, 2)), offset[1], step[1], size[1])
    values = columns.transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def _along(image: np.ndarray, offset: float, step: float, count: int) -> np.ndarray:
    """Averages the first axis: [n, ...] -> float32 [count, ...]."""
    places, weights = taps(offset, step, count, len(image))
    result = np.zeros((count, *image.shape[1:]), np.float32)
    for tap in range(places.shape[0]):
        weight = weights[tap]
        if weight.any():
            result += image[places[tap]] * weight[:, None, None]
    return result


def taps(offset: float, step: float, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights [taps, count] of old pixels in new ones; weights of a new pixel add up to 1.

    Args:
        offset: Where the first new pixel begins, in old pixels.
        step: Old pixels in one new pixel.
        count: Number of new pixels.
        length: Number of old pixels.
    """
    first = offset + step * np.arange(count, dtype=np.float64)
    middle, width = first + step / 2, max(step, 1.0)
    low, high = middle - width / 2, middle + width / 2
    low, high = _near_whole(low), _near_whole(high)
    start = np.floor(low).astype(np.int64)
    most = int(np.max(np.ceil(high).astype(np.int64) - start, initial=1))
    places = start + np.arange(most)[:, None]
    weights = np.minimum(places + 1, high) - np.maximum(places, low)
    weights = np.clip(weights, 0, None)
    weights /= weights.sum(0)
    return np.clip(places, 0, length - 1), weights.astype(np.float32)


def _near_whole(values: np.ndarray) -> np.ndarray:
    """Values within 1e-6 of a whole number become it, so that rounding adds no tap of a weight of nearly 0."""
    whole = np.rint(values)
    return np.where(np.abs(values - whole) < 1e-6, whole, values)
