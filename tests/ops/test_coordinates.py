"""Affine algebra against matrices and loops written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.ops import coordinates as co

NUMBERS = st.floats(-50, 50, allow_nan=False)


@st.composite
def affines(draw, n=None):
    n = n or draw(st.sampled_from([2, 3]))
    vector = st.lists(NUMBERS, min_size=n, max_size=n)
    angles = draw(st.lists(st.floats(-3, 3), min_size=1 if n == 2 else 3, max_size=1 if n == 2 else 3))
    factors = draw(st.lists(st.floats(0.2, 4), min_size=n, max_size=n))
    to = [torch.tensor([values], dtype=torch.float64) for values in (draw(vector), angles, factors)]
    return co.compose(co.translation(to[0]), co.rotation(to[1]), co.scaling(to[2]))


def points(n, seed=0, count=7):
    return torch.randn(1, count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 20


@settings(max_examples=50, deadline=None)
@given(affines())
def test_inverse_undoes(affine):
    x = points(affine.shape[-1] - 1)
    assert torch.allclose(co.apply(co.invert(affine), co.apply(affine, x)), x, atol=1e-9)
    assert torch.equal(co.invert(affine)[:, -1], affine[:, -1])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([2, 3]).flatmap(lambda n: st.tuples(affines(n), affines(n), affines(n))))
def test_compose_applies_the_last_one_first(three):
    a, b, c = three
    x = points(a.shape[-1] - 1)
    assert torch.allclose(co.apply(co.compose(a, b, c), x), co.apply(a, co.apply(b, co.apply(c, x))), atol=1e-8)
    assert np.allclose(co.compose(a, b, c)[0].numpy(), a[0].numpy() @ b[0].numpy() @ c[0].numpy())


def test_known_turns():
    quarter = torch.tensor([[math.pi / 2]], dtype=torch.float64)
    turned = co.apply(co.rotation(quarter), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64))
    assert torch.allclose(turned, torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64))
    for axis, (first, second) in enumerate([(1, 2), (2, 0), (0, 1)]):
        angles = torch.zeros(1, 3, dtype=torch.float64)
        angles[0, axis] = math.pi / 2
        eye = torch.eye(3, dtype=torch.float64)
        moved = co.apply(co.rotation(angles), eye[None])[0]
        assert torch.allclose(moved[axis], eye[axis])
        assert torch.allclose(moved[first], eye[second])


def test_the_order_of_turns_is_0_then_1_then_2():
    angles = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)
    single = [torch.where(torch.arange(3) == axis, angles, 0 * angles) for axis in range(3)]
    expected = co.compose(*[co.rotation(one) for one in reversed(single)])
    assert torch.allclose(co.rotation(angles), expected)


@settings(max_examples=25, deadline=None)
@given(affines(3), st.lists(NUMBERS, min_size=3, max_size=3))
def test_a_center_stays(affine, center):
    c = torch.tensor([center], dtype=torch.float64)
    angles = torch.tensor([[0.4, 0.2, -0.9]], dtype=torch.float64)
    for moved in (co.rotation(angles, c), co.scaling(torch.tensor([[2.0, 3.0, 0.5]], dtype=torch.float64), c)):
        assert torch.allclose(co.apply(moved, c[:, None])[:, 0], c, atol=1e-9)


def test_flip_reverses_the_chosen_axes():
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    affine = co.flip(torch.tensor([[True, False, True]]), array.shape)
    voxels = torch.from_numpy(np.stack(np.unravel_index(np.arange(60), array.shape), axis=1)).double()
    there = co.apply(affine, voxels[None])[0].long().numpy()
    assert np.array_equal(array[tuple(there.T)].reshape(3, 4, 5), array[::-1, :, ::-1])
    assert torch.equal(co.compose(affine, affine), co.identity(1, 3))


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="cannot be inverted"):
        co.invert(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="takes 1 angle"):
        co.rotation(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least one affine"):
        co.compose()


def test_dtype_is_kept():
    affine = co.translation(torch.ones(2, 3, dtype=torch.float32))
    assert affine.dtype == co.invert(affine).dtype == torch.float32
    assert co.identity(2, 3).dtype == torch.float64


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=2, max_size=3))
def test_cell_centers_are_means_of_their_voxels(axes):
    shape = [voxels * cells for voxels, cells in axes]
    cells = [count for _, count in axes]
    centers = co.cell_centers(shape, cells).reshape(*cells, len(cells))
    for number in np.ndindex(*cells):
        for axis, (voxels, _) in enumerate(axes):
            members = range(number[axis] * voxels, (number[axis] + 1) * voxels)
            assert float(centers[number][axis]) == pytest.approx(sum(members) / voxels)


@settings(max_examples=30, deadline=None)
@given(affines(), st.integers(2, 6))
def test_box_is_that_of_the_corners(affine, extent):
    n = affine.shape[-1] - 1
    shape = [extent + axis for axis in range(n)]
    for edges, margin in ((True, 0.5), (False, 0.0)):
        corners = torch.tensor(list(np.ndindex(*[2] * n)), dtype=torch.float64)
        corners = corners * torch.tensor([s - 1 + 2 * margin for s in shape], dtype=torch.float64) - margin
        there = co.apply(affine, corners[None])[0]
        low, high = co.box(affine, shape, edges=edges)
        assert torch.allclose(low[0], there.amin(dim=0), atol=1e-9)
        assert torch.allclose(high[0], there.amax(dim=0), atol=1e-9)


def test_overlap_of_straight_views():
    a = co.translation(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
    b = co.translation(torch.tensor([[5.0, 0.0, -8.0], [10.0, 0.0, 0.0]], dtype=torch.float64))
    assert co.overlap_share(a, (10, 10, 10), b, (10, 10, 10)).tolist() == pytest.approx([0.5 * 1 * 0.2, 0.0])
    low, high = co.overlap_box(a, (10, 10, 10), b, (10, 10, 10))
    assert low[0].tolist() == [4.5, -0.5, -0.5]
    assert high[0].tolist() == [9.5, 9.5, 1.5]
    assert bool((high >= low).all())


def test_inside_a_turned_view():
    affine = co.rotation(torch.tensor([[math.pi / 4]], dtype=torch.float64), torch.tensor([[4.5, 4.5]]).double())
    corner = torch.tensor([[[-0.5, -0.5], [4.5, -2.4], [4.5, -2.7], [4.5, 4.5]]], dtype=torch.float64)
    assert co.inside(affine, (10, 10), corner).tolist() == [[False, True, False, True]]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3]).flatmap(lambda n: st.tuples(affines(n), affines(n))), st.floats(1, 60))
def test_nearest_cells_against_brute_force(pair, radius):
    a, b = pair
    n = a.shape[-1] - 1
    centers_a, centers_b = co.cell_centers([8, 6, 12][:n], [4, 3, 2][:n]), co.cell_centers([9, 8, 6][:n], [3, 2, 3][:n])
    index, near = co.match_cells(a, centers_a, b, centers_b, radius=radius)
    there_a = [a[0, :n, :n].numpy() @ c + a[0, :n, n].numpy() for c in centers_a.numpy()]
    there_b = [b[0, :n, :n].numpy() @ c + b[0, :n, n].numpy() for c in centers_b.numpy()]
    for row, point in enumerate(there_a):
        distances = [math.dist(point, other) for other in there_b]
        assert distances[int(index[0, row])] == pytest.approx(min(distances), abs=1e-9)
        if abs(min(distances) - radius) > 1e-6:
            assert bool(near[0, row]) == (min(distances) < radius)


def test_cells_of_the_same_view_match_themselves():
    affine = co.rotation(torch.tensor([[0.2, 0.1, -0.4]], dtype=torch.float64)).repeat(2, 1, 1).float()
    centers = co.cell_centers((40, 40, 40), (12, 11, 10))  # more rows than are compared at once
    index, near = co.match_cells(affine, centers, affine, centers, radius=0.0)
    assert torch.equal(index, torch.arange(1320).expand(2, -1))
    assert bool(near.all())


def test_gradients_pass():
    offset = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    co.apply(co.translation(offset), torch.ones(1, 3, 2, dtype=torch.float64)).sum().backward()
    assert offset.grad is not None
    assert offset.grad.tolist() == [[3.0, 3.0]]
