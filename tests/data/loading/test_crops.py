"""Regions: inside the scan, on the grid, spread, around the foreground; slices that lie like pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.loading.crops import place_along, region_at, slice_axes, slice_world
from medssl.data.store.coding import cell_side, foreground_cells
from medssl.ops import coordinates
from medssl.ops.coordinates import part_along
from medssl.types import Sampling

FREE = Sampling()


@settings(max_examples=150, deadline=None)
@given(
    sample=st.integers(0, 10**9),
    shape=st.tuples(*[st.integers(1, 200)] * 3),
    size=st.tuples(*[st.integers(2, 120)] * 3),
    share=st.sampled_from([0.0, 1.0]),
)
def test_starts_lie_on_the_grid_and_in_the_scan(sample, shape, size, share):
    sampling = Sampling(foreground=share)
    cells = np.ones(int(np.prod([-(-n // cell_side(shape)) for n in shape])), bool)
    start = region_at(3, sample, shape, size, sampling, cells=cells)
    for a, n, k in zip(start, shape, size, strict=True):
        if n >= k:
            assert 0 <= a <= n - k
            assert a % 16 == 0 or a == n - k
        else:
            assert a == -((k - n) // 2)
            assert a <= 0
            assert a + k >= n
    assert region_at(3, sample, shape, size, sampling, cells=cells) == start


def test_every_start_is_drawn_and_every_voxel_seen():
    starts = [region_at(0, i, (70, 40), (32, 33), FREE) for i in range(2000)]
    assert {s[0] for s in starts} == {0, 16, 32, 38}
    assert {s[1] for s in starts} == {0, 7}
    rows = np.bincount([s[0] for s in starts])
    expected = 2000 * np.array([8.5, 16, 11, 3.5]) / 39  # how many starts are nearest to each
    assert np.abs(rows[[0, 16, 32, 38]] - expected).max() < 5 * np.sqrt(expected.max())


def test_slices_are_drawn_one_by_one():
    starts = {region_at(0, i, (64, 64, 9), (32, 32, 1), FREE)[2] for i in range(400)}
    assert starts == set(range(9))


def test_regions_of_one_scan_are_spread_along_the_stratified_axis():
    sampling = Sampling(regions_per_scan=4, stratified_axis=2)
    for draw in range(30):
        places = [place_along(1, draw * 4 + k, (64, 64, 416), (32, 32, 32), sampling) for k in range(4)]
        assert sorted(int(4 * place) for place in places) == [0, 1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 6))
def test_slices_of_a_volume_are_one_from_each_part(draw, depth, parts):
    sampling = Sampling(regions_per_scan=parts, stratified_axis=2)
    shape, size = (20, 20, depth), (8, 8, 1)
    places = [place_along(3, draw * parts + k, shape, size, sampling) for k in range(parts)]
    starts = [region_at(3, draw * parts + k, shape, size, sampling)[2] for k in range(parts)]
    assert starts == [round(place * depth - 0.5) for place in places]
    found = [int((2 * z + 1) * parts // (2 * depth)) for z in starts]  # the part of the middle of a slice
    assert part_along(torch.tensor(places), parts).tolist() == found
    if depth >= parts:
        assert sorted(found) == list(range(parts))


def test_every_slice_of_a_part_is_drawn_equally_often():
    sampling = Sampling(regions_per_scan=4, stratified_axis=2)
    starts = [region_at(0, k, (20, 20, 10), (8, 8, 1), sampling)[2] for k in range(8000)]
    expected = 2000 / np.array([2, 2, 3, 3, 3, 2, 2, 3, 3, 3])  # middles of slices 0-1, 2-4, 5-6 and 7-9
    assert np.abs(np.bincount(starts) - expected).max() < 5 * np.sqrt(expected.max())


def test_volumes_are_read_around_the_place_that_is_wanted():
    sampling = Sampling(regions_per_scan=4, stratified_axis=2)
    for k in range(200):
        place = place_along(1, k, (64, 64, 416), (32, 32, 47), sampling)
        start = region_at(1, k, (64, 64, 416), (32, 32, 47), sampling)[2]
        assert start % 16 == 0 or start == 416 - 47
        middle = min(max(place * 416 - 0.5, 15.5), 416 - 16.5)  # of a view of 32
        assert start <= middle - 15
        assert middle + 15 <= start + 46


def test_foreground_is_hit_as_often_as_asked():
    mask = np.zeros((256, 256, 160), bool)
    mask[192:224, 0:32, 128:160] = True
    cells = foreground_cells(mask)
    size = (32, 32, 32)

    def share_of_hits(share):
        hits = 0
        for i in range(300):
            start = region_at(0, i, mask.shape, size, Sampling(foreground=share), cells=cells)
            center = tuple(a + 16 for a in start)
            hits += mask[tuple(slice(max(0, c - 9), c + 9) for c in center)].any()  # a start is snapped by 8 at most
        return hits / 300

    assert share_of_hits(1.0) == 1.0
    assert 0.35 < share_of_hits(0.5) < 0.65
    assert share_of_hits(0.0) < 0.1


def test_foreground_and_strata_together():
    mask = np.zeros((128, 128, 128), bool)
    mask[32:64] = True  # foreground along the whole stratified axis
    sampling = Sampling(regions_per_scan=4, stratified_axis=2, foreground=1.0)
    starts = [region_at(0, k, mask.shape, (16, 16, 16), sampling, cells=foreground_cells(mask)) for k in range(4)]
    assert len({s[2] // 29 for s in starts}) >= 3
    assert all(16 <= s[0] <= 64 for s in starts)


@pytest.mark.parametrize(
    ("affine", "axis", "axes", "left_right_is_column"),
    [
        (np.eye(4), 2, (1, 0), True),  # axial of RAS: columns run left to right
        (np.eye(4), 1, (2, 0), True),  # coronal
        (np.eye(4), 0, (1, 2), False),  # sagittal: no such axis
        (np.eye(4)[[1, 0, 2, 3]], 2, (0, 1), True),  # first axis runs to the front, second to the right
    ],
)
def test_slices_lie_like_pictures(affine, axis, axes, left_right_is_column):
    assert slice_axes(affine, axis) == axes
    assert (abs(affine[0, axes[1]]) > 0.5) == left_right_is_column


def test_world_of_a_slice_measures_the_same_distances():
    affine = np.diag([1.5, 2.5, 8.0, 1.0])
    affine[:3, 3] = [10, 20, 30]
    world = slice_world(affine, slice_axes(affine, 2), (0, 0, 3))
    np.testing.assert_allclose(world, [[2.5, 0, 20], [0, 1.5, 10], [0, 0, 1]])
    coronal = slice_world(affine, slice_axes(affine, 1), (0, 2, 0))
    np.testing.assert_allclose(coronal, [[8, 0, 30], [0, 1.5, 10], [0, 0, 1]])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [(30, 15, 0), (40, -25, 60)])
def test_oblique_slices_measure_the_same_distances(axis, degrees):
    affine = np.eye(4)
    turn = coordinates.rotation(torch.deg2rad(torch.tensor([degrees], dtype=torch.float64)))[0].numpy()
    affine[:3, :3] = turn[:3, :3] @ np.diag([0.5, 0.6, 5.0])
    affine[:3, 3] = [10, 20, 30]
    row, column = slice_axes(affine, axis)
    assert abs(turn[0, column]) >= abs(turn[0, row])  # the direction counts, not the size of the voxels
    world = slice_world(affine, (row, column), (7, 8, 9))
    sides = affine[:3, [row, column]]
    np.testing.assert_allclose(world[:2, :2].T @ world[:2, :2], sides.T @ sides, atol=1e-12)


def test_slices_of_a_tilted_stack_keep_their_shift():
    affine = np.eye(4)
    affine[1, 2] = 0.5  # gantry tilt: each slice lies half a millimeter further to the front
    shifts = [slice_world(affine, (1, 0), (0, 0, k))[:2, 2] for k in (0, 4)]
    np.testing.assert_allclose(shifts, [[0, 0], [2, 0]], atol=1e-12)
