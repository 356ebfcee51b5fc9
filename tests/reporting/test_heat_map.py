"""Heat maps: colors follow ranks, tiles lie where they belong, and QuPath's format is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medssl.reporting.heat_map import COLORS, OPACITY, heat_map, ranks, tiles_as_geojson


def test_ranks_by_hand():
    assert ranks(np.array([5.0, 1.0, 1.0, 3.0])).tolist() == [1.0, 0.0, 0.0, 2 / 3]
    assert ranks(np.array([2.0])).tolist() == [1.0]
    assert ranks(np.full(4, 0.25)).tolist() == [1.0] * 4


def test_tiles_are_colored_where_they_lie_and_nothing_else_changes():
    thumbnail = np.full((3, 40, 60), 200, np.uint8)
    boxes = np.array([[0.0, 0.0, 10, 10], [20.0, 30.0, 10, 10], [30.0, 30.0, 10, 10]])
    drawn = heat_map(thumbnail, boxes, np.array([0.1, 0.7, 0.2])).astype(float)
    for (row, column, rows, columns), color in zip(boxes.astype(int), COLORS[[0, 4, 2]], strict=True):
        part = drawn[row : row + rows, column : column + columns]
        assert np.abs(part - (200 * (1 - OPACITY) + color * OPACITY)).max() <= 0.5
        drawn[row : row + rows, column : column + columns] = 200
    assert (drawn == 200).all()


def test_tiles_that_overlap_show_their_mean():
    drawn = heat_map(
        np.zeros((3, 20, 30), np.uint8), np.array([[0, 0, 20, 20], [0, 10, 20, 20]], float), np.array([0.0, 1.0])
    )
    assert np.abs(drawn[5, 15] - COLORS[2] * OPACITY).max() <= 0.5
    assert np.abs(drawn[5, 5] - COLORS[0] * OPACITY).max() <= 0.5


def test_polygons_in_pixels_of_level_0():
    text = tiles_as_geojson(np.array([[100, 20], [300, 40]]), (64, 32), np.array([0.25, 0.75]))
    first, second = json.loads(text)["features"]
    assert first["geometry"] == {
        "type": "Polygon", "coordinates": [[[100, 20], [132, 20], [132, 84], [100, 84], [100, 20]]],
    }  # fmt: skip
    assert first["properties"] == {"objectType": "tile", "measurements": {"attention": 0.25, "attention rank": 0.0}}
    assert second["properties"]["measurements"] == {"attention": 0.75, "attention rank": 1.0}


@pytest.mark.parametrize("scale", [0.01, 0.3])
def test_tiles_smaller_than_a_pixel_are_seen(scale):
    boxes = np.array([[i * 10, j * 10, 10, 10] for i in range(4) for j in range(4)], float) * scale
    drawn = heat_map(np.full((3, 40, 40), 255, np.uint8), boxes, np.linspace(0, 1, 16))
    assert (drawn != 255).any()
