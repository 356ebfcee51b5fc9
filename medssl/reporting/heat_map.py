"""Heat maps of slides: the weight of each tile over a thumbnail, and as GeoJSON for QuPath."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

OPACITY = 0.55
COLORS = np.array([[49, 54, 149], [116, 173, 209], [255, 255, 191], [244, 109, 67], [165, 0, 38]], float)
# blue, through pale yellow, to red: told apart by people who see red and green alike


def ranks(weights: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Share of the tiles that weigh less, 0 to 1; equal weights have equal ranks, and one tile has 1.

    >>> ranks(np.array([0.1, 0.7, 0.2])).tolist()
    [0.0, 1.0, 0.5]
    """
    ordered = np.sort(weights)
    below = np.searchsorted(ordered, weights, "left").astype(float)
    highest = below.max()
    share: Float[np.ndarray, "N"] = below / highest if highest else np.ones_like(below)
    return share


def heat_map(
    thumbnail: UInt8[np.ndarray, "3 h w"],
    boxes: Float[np.ndarray, "N 4"],
    weights: Float[np.ndarray, "N"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Colors tiles by the rank of their weight, over a thumbnail.

    Args:
        thumbnail: The slide.
        boxes: First row, first column, rows and columns of each tile in pixels of the thumbnail.
        weights: Weight of each tile, such as the attention of a head.
    """
    total = np.zeros(thumbnail.shape[1:], float)
    count = np.zeros(thumbnail.shape[1:], float)
    for (row, column, rows, columns), rank in zip(boxes, ranks(weights), strict=True):
        last_row, last_column = max(int(row) + 1, round(row + rows)), max(int(column) + 1, round(column + columns))
        part = slice(int(row), last_row), slice(int(column), last_column)
        total[part] += rank
        count[part] += 1
    covered = count > 0
    mean = np.divide(total, count, out=np.zeros_like(total), where=covered)
    place = mean * (len(COLORS) - 1)
    low = np.minimum(place.astype(int), len(COLORS) - 2)
    share = (place - low)[..., None]
    color = COLORS[low] * (1 - share) + COLORS[low + 1] * share
    picture = thumbnail.transpose(1, 2, 0).astype(float)
    mixed = picture * (1 - OPACITY) + color * OPACITY
    drawn: UInt8[np.ndarray, "h w 3"] = np.where(covered[..., None], mixed, picture).round().astype(np.uint8)
    return drawn


def tiles_as_geojson(
    coords: Int[np.ndarray, "N 2"], size: tuple[int, int], weights: Float[np.ndarray, "N"], name: str = "attention"
) -> str:
    """Tiles as polygons in pixels of level 0, which QuPath opens as tiles with two measurements.

    Args:
        coords: x and y of the upper left corner of each tile.
        size: Rows and columns of a tile.
        weights: Weight of each tile.
        name: Of the weights.
    """
    features = []
    for (x, y), weight, rank in zip(coords.tolist(), weights.tolist(), ranks(weights).tolist(), strict=True):
        right, bottom = x + size[1], y + size[0]
        ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        measurements = {name: float(f"{weight:.6g}"), f"{name} rank": round(rank, 4)}
        properties = {"objectType": "tile", "measurements": measurements}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features})
