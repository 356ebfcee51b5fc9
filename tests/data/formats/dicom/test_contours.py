"""Contours of structure sets, filled: against arithmetic, winding numbers and Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.formats.dicom.label_objects import contour, datasets_of, grid_of, structure_set
from data.make_scans import AXIAL, CORONAL, SAGITTAL, Series
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.label_objects.contours import inside, read_structures

OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
SHAPE = (40, 30, 6)
CLOSED = "CLOSED_PLANAR"


def disk(center: tuple[float, float], radius: float, count: int = 200) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)])


def box(low: float, high: float) -> np.ndarray:
    return np.array([[low, low], [high, low], [high, high], [low, high]])


def write(folder: Path, series: Series, regions: dict[str, Any]) -> Path:
    """Regions by name: contours of (geometric type, points in voxels, slice)."""
    grid = grid_of(series)
    placed = {name: [(kind, contour(grid, p, k)) for kind, p, k in contours] for name, contours in regions.items()}
    structure_set(datasets_of(series), placed).save_as(folder / "rs.dcm")
    return folder / "rs.dcm"


def winding(points: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Even-odd by angles: how often the polygon turns around each voxel, and the distance of its nearest edge."""
    voxels = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), axis=-1).astype(float)
    here = points - voxels[..., None, :]
    there = np.roll(points, -1, axis=0) - voxels[..., None, :]
    cross = here[..., 0] * there[..., 1] - here[..., 1] * there[..., 0]
    turns = np.arctan2(cross, (here * there).sum(-1)).sum(-1) / (2 * np.pi)
    length = np.linalg.norm(there - here, axis=-1)
    along = np.clip(-(here * (there - here)).sum(-1) / np.maximum(length, 1e-12) ** 2, 0, 1)
    distance = np.linalg.norm(here + along[..., None] * (there - here), axis=-1).min(-1)
    return np.rint(turns).astype(int) % 2 == 1, distance


@settings(max_examples=40, deadline=None)
@example(np.array([[0.0, 0.0], [5.0, 1e-310], [3.0, 7.0]]))
@given(
    st.lists(st.tuples(st.floats(-4, 24), st.floats(-4, 19)), min_size=3, max_size=9, unique=True).map(np.array),
)
def test_any_polygon_holds_the_voxels_that_it_turns_around(points):
    filled = inside(points, (20, 15))
    expected, distance = winding(points, (20, 15))
    clear = distance > 1e-6  # on an edge, either is right
    np.testing.assert_array_equal(filled[clear], expected[clear])


def test_polygons_agree_with_pillow():
    from PIL import Image, ImageDraw

    rng, scale = np.random.default_rng(0), 64
    for _ in range(5):
        angles, radii = np.sort(rng.random(12)) * 2 * np.pi, rng.uniform(10, 28, 12)
        points = np.column_stack([32 + radii * np.cos(angles), 32 + radii * np.sin(angles)])
        large = Image.new("1", (64 * scale, 64 * scale))
        ImageDraw.Draw(large).polygon([tuple(p) for p in points * scale], fill=1)
        expected = np.asarray(large)[::scale, ::scale].T  # the corner of each large voxel is the center of a small one
        assert (inside(points, (64, 64)) != expected).sum() <= 3


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
def test_a_disk_has_its_area_on_its_slice(tmp_path, orientation):
    series = Series((130, 120, 5), orientation, spacing_mm=(0.5, 0.5))
    file = write(tmp_path, series, {"disk": [(CLOSED, disk((60.3, 57.8), 50), k) for k in (2, 3)]})
    array = read_structures(file, {1: 5}, grid_of(series)).array
    assert set(np.unique(array)) == {0, 5}
    counts = (array == 5).sum(axis=(0, 1))
    assert counts[[0, 1, 4]].sum() == 0
    np.testing.assert_allclose(counts[2:4], np.pi * 50**2, rtol=0.01)
    i, j, k = np.nonzero(array)
    assert np.hypot(i - 60.3, j - 57.8).max() <= 50
    np.testing.assert_allclose([i.mean(), j.mean(), k.mean()], [60.3, 57.8, 2.5], atol=0.05)


def test_a_contour_in_another_is_a_hole_and_an_island_in_it_is_not(tmp_path):
    series = Series(SHAPE)
    boxes = [(CLOSED, box(low - 0.5, high + 0.5), 1) for low, high in ((2, 25), (6, 20), (10, 14))]
    array = read_structures(write(tmp_path, series, {"ring": boxes}), {1: 1}, grid_of(series)).array
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:26, 2:26, 1] = 1
    expected[6:21, 6:21, 1] = 0
    expected[10:15, 10:15, 1] = 1
    np.testing.assert_array_equal(array, expected)


def test_a_keyhole_contour_is_a_ring(tmp_path):
    series = Series(SHAPE)
    outer, inner = box(1.5, 25.5), box(5.5, 20.5)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner[3:], inner[:3], inner[3:], outer[:1]])
    array = read_structures(write(tmp_path, series, {"ring": [(CLOSED, keyhole, 1)]}), {1: 1}, grid_of(series)).array
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:26, 2:26, 1] = 1
    expected[6:21, 6:21, 1] = 0
    np.testing.assert_array_equal(array, expected)


def test_the_class_with_the_higher_value_is_taken_where_regions_overlap(tmp_path):
    series = Series(SHAPE)
    regions = {"lesion": [(CLOSED, box(8.5, 12.5), 1)], "organ": [(CLOSED, box(1.5, 20.5), 1)]}
    result = read_structures(write(tmp_path, series, regions), {1: 2, 2: 1}, grid_of(series))
    assert (result.array == 2).sum() == 16
    assert (result.array == 1).sum() == 19 * 19 - 16
    assert result.notes == ["regions overlap at 16 voxels: the class with the higher value is taken"]


def test_contours_near_a_slice_are_put_on_it_and_counted(tmp_path):
    series = Series(SHAPE)
    file = write(tmp_path, series, {"a": [(CLOSED, box(1.5, 5.5), 1.3), (CLOSED, box(1.5, 5.5), 2)]})
    result = read_structures(file, {1: 1}, grid_of(series))
    assert [int(count) for count in result.array.sum(axis=(0, 1))] == [0, 16, 16, 0, 0, 0]
    assert result.notes == ["region 1: 1 contours lie up to 0.30 steps off the slice they are put on"]


def test_points_and_open_contours_are_left_out_and_counted(tmp_path):
    series = Series(SHAPE)
    contours = [(CLOSED, box(1.5, 5.5), 1), ("POINT", np.array([[3, 3]]), 2), ("OPEN_PLANAR", box(1, 5), 3)]
    regions = {"a": contours, "isocenter": [("POINT", np.array([[3, 3]]), 2)]}
    result = read_structures(write(tmp_path, series, regions), {1: 1, 2: 2}, grid_of(series))
    assert result.array.sum() == 16
    assert result.notes == [
        "region 1: 2 contours that enclose nothing left out (OPEN_PLANAR, POINT)",
        "region 2: 1 contours that enclose nothing left out (POINT)",
        "region 2 has no closed contour",
    ]


def test_slices_without_a_contour_between_others_are_said(tmp_path):
    series = Series(SHAPE)
    file = write(tmp_path, series, {"a": [(CLOSED, box(1.5, 5.5), k) for k in (0, 1, 4)]})
    assert read_structures(file, {1: 1}, grid_of(series)).notes == [
        "region 1: 2 slices without a contour between others"
    ]


@pytest.mark.parametrize(
    ("contours", "reason"),
    [
        ([(CLOSED, box(1.5, 5.5), 1.5)], "between slices, 0.50 steps off"),
        ([(CLOSED, box(1.5, 5.5), 7)], "outside of the scan, 7.0 steps"),
        ([(CLOSED, box(1.5, 5.5), k) for k in (0, 2, 4)], "every 2th slice only"),
        ([(CLOSED, box(1.5, 5.5), 1.2), (CLOSED, box(7.5, 9.5), 0.8)], "several planes of one slice"),
        ([(CLOSED, box(1.5, 5.5), 1), (CLOSED, box(3.5, 9.5), 1)], "across each other on slice 1"),
        ([(CLOSED, box(1.5, 5.5), 1), (CLOSED, box(1.5, 5.5), 1)], "contours twice on slice 1"),
        ([(CLOSED, np.array([[1, 1], [5, 5]]), 1)], "a contour of 6 numbers"),
    ],
)
def test_contours_that_are_not_on_slices_are_refused(tmp_path, contours, reason):
    series = Series(SHAPE)
    with pytest.raises(DicomError, match=reason):
        read_structures(write(tmp_path, series, {"a": contours}), {1: 1}, grid_of(series))


def test_contours_of_another_direction_are_refused(tmp_path):
    file = write(tmp_path, Series(SHAPE, CORONAL), {"a": [(CLOSED, box(1.5, 5.5), 1)]})
    with pytest.raises(DicomError, match=r"contour across .* slices: contours must lie in slices"):
        read_structures(file, {1: 1}, grid_of(Series(SHAPE, AXIAL)))
