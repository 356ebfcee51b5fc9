"""Reading through an affine: exact copies, linear images come out exact, planes against one trilinear pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from views.made import coordinate_image, where_read

from medssl.ops import coordinates as co
from medssl.views.planes import planar_factors
from medssl.views.resample import covered, direct, is_whole, sample, window


def centered(linear, size, source, shift=0.0):
    """An affine with a linear part [n, n] that maps the center of a view to the center of its source."""
    linear = torch.as_tensor(linear, dtype=torch.float64)
    middle = (torch.tensor(source, dtype=torch.float64) - 1) / 2 + shift
    half = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    return co.from_parts(linear[None], (middle - linear @ half)[None])


def turned(degrees, spacing=(1.0, 1.0, 1.0), scale=1.0):
    angles = torch.tensor([degrees], dtype=torch.float64) * math.pi / 180
    s = torch.tensor(spacing, dtype=torch.float64)
    return (co.rotation(angles)[0, :3, :3] * s[None] / s[:, None]) * scale


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whole_voxels_are_copied_as_numpy_cuts(data):
    n = data.draw(st.sampled_from([2, 3]))
    source = data.draw(st.lists(st.integers(1, 7), min_size=n, max_size=n))
    size = data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    start = data.draw(st.lists(st.integers(-4, 9), min_size=n, max_size=n))
    flips = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    image = torch.randint(-3000, 3000, (1, 2, *source), dtype=torch.int16)
    affine = co.translation(torch.tensor([start], dtype=torch.float64)) @ co.flip(torch.tensor([flips]), size)
    assert is_whole(affine[0].numpy())
    for mode in ("linear", "nearest"):
        view = sample(image, affine, size, mode)
        layers = [
            np.arange(a, a + e).clip(0, s - 1)[:: -1 if f else 1]
            for a, e, s, f in zip(start, size, source, flips, strict=False)
        ]
        assert view.dtype == torch.int16
        assert np.array_equal(view[0].numpy(), image[0].numpy()[np.ix_(range(2), *layers)])


def test_a_copy_is_no_window_onto_the_source():
    image = torch.zeros(1, 1, 4, 4)
    sample(image, co.identity(1, 2), (4, 4)).add_(1)
    assert float(image.sum()) == 0


CASES = {
    "tilt": (turned((7, -12, 9)), True),
    "tilt of thick slices": (turned((6, 8, -10), (1.5, 1.5, 8.0)), True),
    "tilt and shrink": (turned((12, 3, -4), scale=0.7), True),
    "tilt and mirror": (turned((7, -12, 9)) @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]).double()), True),
    "in plane 01, any angle": (turned((0, 0, 130)), True),
    "in plane 12, any angle": (turned((85, 0, 0)), True),
    "scales only": (torch.diag(torch.tensor([0.8, 1.3, 1.05]).double()), True),
    "mirrored scales": (torch.diag(torch.tensor([-0.8, 1.3, -1.05]).double()), True),
    "too far for planes": (turned((50, 60, -40)), False),
}


@pytest.mark.parametrize(("linear", "splits"), CASES.values(), ids=CASES)
def test_coordinates_come_out_exact(linear, splits):
    source, size = (70, 64, 60), (24, 20, 22)
    affine = centered(linear, size, source, shift=0.37)
    assert (planar_factors(affine[0, :3, :3].numpy()) is not None) == splits
    image = coordinate_image(source)
    expected = where_read(affine[0], size)
    limits = torch.tensor(source).reshape(3, 1, 1, 1) - 3
    inner = ((expected > 2) & (expected < limits)).all(dim=0)
    assert float(inner.float().mean()) > 0.6
    for view in (sample(image, affine, size), direct(image, affine.numpy(), size)):
        assert float((view[0] - expected)[:, inner].abs().max()) < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30), min_size=3, max_size=3),
    st.lists(st.floats(0.5, 8), min_size=3, max_size=3),
    st.lists(st.floats(0.5, 2), min_size=3, max_size=3),
)
def test_planar_factors_multiply_to_the_matrix(degrees, spacing, scales):
    linear = (turned(degrees, spacing) @ torch.diag(torch.tensor(scales, dtype=torch.float64))).numpy()
    factors = planar_factors(linear)
    if factors is None:
        return
    assert np.allclose(factors[0] @ factors[1] @ factors[2], linear, atol=1e-9 * np.abs(linear).max())
    for factor, still in zip(factors, (1, 0, 2), strict=True):
        assert np.array_equal(factor[still], np.eye(3)[still])
        assert np.array_equal(factor[:, still], np.eye(3)[:, still])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turn_in_one_plane_needs_no_shear(axis):
    degrees = [0.0, 0.0, 0.0]
    degrees[axis] = 20.0
    linear = turned(degrees).numpy()
    factors = planar_factors(linear)
    assert factors is not None
    for factor in factors:
        assert np.allclose(factor, linear, atol=1e-12) or np.allclose(factor, np.eye(3), atol=1e-12)


def test_planes_agree_with_one_trilinear_pass_on_a_smooth_image():
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.standard_normal((48, 50, 46)), 3)
    image = torch.from_numpy(smooth / smooth.std()).float()[None, None]
    affine = centered(turned((8, -10, 12), scale=1.05), (28, 28, 28), (48, 50, 46), 0.3)
    planes, once = sample(image, affine, (28, 28, 28)), direct(image, affine.numpy(), (28, 28, 28))
    assert not torch.equal(planes, once)
    assert float((planes - once).abs().mean()) < 0.02  # deviations of the image
    assert float((planes - once).abs().max()) < 0.15


def test_linear_in_2d_is_scipys():
    generator = np.random.default_rng(1)
    image = generator.standard_normal((2, 20, 23)).astype(np.float32)
    affine = centered(co.rotation(torch.tensor([[0.4]], dtype=torch.float64))[0, :2, :2] * 0.8, (13, 11), (20, 23), 0.2)
    ours = sample(torch.from_numpy(image)[None], affine, (13, 11))[0].numpy()
    matrix = affine[0].numpy()
    for channel in range(2):
        theirs = ndimage.affine_transform(
            image[channel], matrix[:2, :2], matrix[:2, 2], (13, 11), order=1, mode="nearest"
        )
        assert np.allclose(ours[channel], theirs, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=3, max_size=3), st.floats(0.5, 1.6), st.booleans())
def test_nearest_reads_the_nearest_voxel(degrees, scale, flat):
    source, size = (19, 17, 15), (9, 8, 7)
    linear = turned(degrees, scale=scale)
    n = 2 if flat else 3
    affine = centered(linear[:n, :n], size[:n], source[:n], 0.21)
    codes = torch.arange(math.prod(source[:n]), dtype=torch.int32).reshape(1, 1, *source[:n])
    view = sample(codes, affine, size[:n], "nearest")
    assert view.dtype == torch.int32
    place = where_read(affine[0], size[:n]).numpy()
    decided = (np.abs(place - np.floor(place) - 0.5) > 1e-3).all(axis=0)
    index = [np.floor(axis + 0.5).clip(0, extent - 1).astype(int) for axis, extent in zip(place, source, strict=False)]
    expected = np.ravel_multi_index(index, source[:n])
    assert np.array_equal(view[0, 0].numpy()[decided], expected[decided])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=3, max_size=3), st.floats(0.5, 1.6), st.booleans(), st.booleans())
@example(degrees=[0.0, 2.2250738585072014e-308, 0.0], scale=1.0, flat=False, straight=False)
def test_covered_means_that_the_nearest_voxel_is_in_the_box(degrees, scale, flat, straight):
    n = 2 if flat else 3
    size, source = (9, 8, 7)[:n], (12, 10, 9)[:n]
    linear = torch.eye(n).double() * scale if straight else turned(degrees, scale=scale)[:n, :n]
    affine = centered(linear, size, source, 0.23)
    low, high = torch.tensor([[2.0, 1.0, 0.0][:n]]), torch.tensor([[9.0, 9.0, 5.0][:n]])
    mask, full = covered(affine, size, low, high, device=torch.device("cpu"))
    place = np.floor(where_read(affine[0], size).numpy() + 0.5)
    bounds = [values[0].numpy().reshape(n, *[1] * n) for values in (low, high)]
    expected = ((place >= bounds[0]) & (place <= bounds[1])).all(axis=0)
    assert np.array_equal(mask[0, 0].numpy(), expected)
    assert full == (bool(expected.all()),)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-14, 14), min_size=3, max_size=3),
    st.floats(0.7, 1.3),
    st.lists(st.floats(-12, 12), min_size=3, max_size=3),
)
def test_a_window_holds_all_that_is_read(degrees, scale, shift):
    source, size = (40, 38, 36), (12, 10, 11)
    image = torch.randn(1, 1, *source, generator=torch.Generator().manual_seed(0))
    affine = centered(turned(degrees, (1.0, 1.0, 3.0), scale), size, source, torch.tensor(shift, dtype=torch.float64))
    part, shifted = window(image, affine, size)
    inner = where_read(affine[0], size)
    inner = ((inner >= 3) & (inner <= torch.tensor(source).reshape(3, 1, 1, 1) - 4)).all(dim=0)
    ours, whole = sample(part, shifted, size), sample(image, affine, size)
    assert torch.allclose(ours[0, 0][inner], whole[0, 0][inner], atol=1e-4)
    assert part.numel() < 0.6 * image.numel()


def test_rows_do_not_depend_on_each_other():
    image = torch.randn(3, 1, 20, 20, 20)
    affines = torch.cat(
        [
            centered(turned((5, 6, 7)), (8, 8, 8), (20, 20, 20)),
            centered(torch.eye(3), (8, 8, 8), (20, 20, 20)),
            centered(turned((50, 60, 70)), (8, 8, 8), (20, 20, 20)),
        ]
    )
    together = sample(image, affines, (8, 8, 8))
    for row in range(3):
        assert torch.equal(sample(image[row : row + 1], affines[row : row + 1], (8, 8, 8)), together[row : row + 1])


def test_one_voxel_wide():
    image = torch.arange(12.0).reshape(1, 1, 1, 3, 4)
    affine = centered(torch.diag(torch.tensor([1.0, 0.5, 0.5])), (1, 3, 4), (1, 3, 4), 0.1)
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), affine[0, :3, :3].numpy(), affine[0, :3, 3].numpy(), (1, 3, 4), order=1, mode="nearest"
    )
    assert np.allclose(sample(image, affine, (1, 3, 4))[0, 0].numpy(), expected, atol=1e-5)


def quadratic(places):
    """A quadratic function of the coordinates [n, ...]."""
    n = len(places)
    weights = torch.tensor([0.3, -0.2, 0.5][:n], dtype=torch.float64).reshape(n, *[1] * (places.ndim - 1))
    return (weights * places**2).sum(0) + 0.1 * places[0] * places[1] - places[n - 1]


@pytest.mark.parametrize(
    ("n", "degrees"),
    [(2, (20.0,)), (3, (4.0, -7.0, 10.0)), (3, (50.0, 30.0, -40.0))],
    ids=["image", "planes", "direct"],
)
def test_a_quadratic_image_is_exact_in_a_cubic(n, degrees):
    source, size = (44, 40, 42)[:n], (10, 12, 9)[:n]
    linear = turned(degrees, scale=1.2) if n == 3 else co.rotation(torch.tensor([degrees]).double() / 57.3)[0, :2, :2]
    affine = centered(linear, size, source, 0.3)
    image = quadratic(coordinate_image(source)[0].double()).float()[None, None]
    image /= image.abs().max()
    expected = quadratic(where_read(affine[0], size)) / quadratic(coordinate_image(source)[0].double()).abs().max()
    view = sample(image, affine, size, "cubic")
    assert torch.allclose(view[0, 0].double(), expected, atol=2e-6)
    assert not torch.allclose(sample(image, affine, size)[0, 0].double(), expected, atol=2e-5)
    part, shifted = window(image, affine, size, "cubic")
    assert torch.allclose(sample(part, shifted, size, "cubic")[0, 0].double(), expected, atol=2e-6)


def test_a_cubic_keeps_to_the_range_of_the_image_and_copies_whole_voxels():
    image = torch.zeros(1, 1, 12, 12, 12)
    image[..., 6:] = 100.0
    edge = sample(image, centered(turned((3.0, 4.0, 5.0)), (8, 8, 8), (12, 12, 12)), (8, 8, 8), "cubic")
    assert 0.0 <= float(edge.min()) <= float(edge.max()) <= 100.0
    codes = torch.randint(-99, 99, (1, 1, 9, 9), dtype=torch.int16)
    assert torch.equal(sample(codes, co.identity(1, 2), (9, 9), "cubic"), codes)


def test_a_cubic_keeps_more_of_fine_detail():
    wave = torch.sin(torch.arange(64) * 2 * math.pi * 0.3).expand(1, 1, 64, 64).contiguous()
    affine = co.translation(torch.tensor([[8.5, 8.5]], dtype=torch.float64))
    linear, cubic = (sample(wave, affine, (40, 40), mode).square().mean() for mode in ("linear", "cubic"))
    assert float(linear) < 0.6 * float(cubic)  # of 0.5: 0.17 and 0.30
