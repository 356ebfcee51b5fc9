"""Patches: a round trip for any number of axes, errors that name sizes that work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.ops.patches import cells_of, patch_moments, patchify, unpatchify
from medssl.types import UserError

SIDES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(sides=SIDES, channels=st.integers(1, 3))
def test_unpatchify_inverts_patchify(sides, channels):
    cells, cell = zip(*sides, strict=True)
    size = tuple(n * side for n, side in sides)
    image = torch.randn(2, channels, *size)
    patches = patchify(image, cell)
    assert patches.shape == (2, int(np.prod(cells)), channels * int(np.prod(cell)))
    assert torch.equal(unpatchify(patches, cell, size=size), image)


@settings(max_examples=40, deadline=None)
@given(sides=SIDES, data=st.data())
def test_each_row_is_one_cell_of_the_image(sides, data):
    cells, cell = zip(*sides, strict=True)
    image = torch.randn(1, 2, *(n * side for n, side in sides))
    row = data.draw(st.integers(0, int(np.prod(cells)) - 1))
    box = tuple(slice(i * side, (i + 1) * side) for i, side in zip(np.unravel_index(row, cells), cell, strict=True))
    assert torch.equal(patchify(image, cell)[0, row].reshape(2, *cell), image[0][:, *box])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 32)), min_size=1, max_size=3))
def test_cells_divide_or_the_nearest_sizes_are_named(pairs):
    size, cell = (tuple(x) for x in zip(*pairs, strict=True))
    if all(n % side == 0 for n, side in pairs):
        assert cells_of(size, cell) == tuple(n // side for n, side in pairs)
        return
    with pytest.raises(UserError, match="nearest sizes that work") as caught:
        cells_of(size, cell)
    named = str(caught.value).split("nearest sizes that work are ")[1]
    for text in named.split(" or "):
        works = tuple(int(part) for part in text.strip("()").split(",") if part.strip())
        assert all(w % side == 0 and w > 0 and abs(w - n) < side for w, n, side in zip(works, size, cell, strict=True))


@pytest.mark.parametrize(
    ("size", "cell", "match"),
    [
        ((100, 64), (16, 16), r"view \(100, 64\) is not a multiple of \(16, 16\).*\(96, 64\) or \(112, 64\)"),
        ((8, 64), (16, 16), r"nearest sizes that work are \(16, 64\)$"),
        ((64,), (16, 16), "1 axes but cells .* have 2"),
        ((0, 16), (16, 16), "at least 1 voxel"),
    ],
)
def test_sizes_that_do_not_work(size, cell, match):
    with pytest.raises(UserError, match=match):
        cells_of(size, cell, noun="view")


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3)])
def test_patches_of_another_image_are_refused(shape):
    with pytest.raises(UserError, match=r"do not fit size \(4, 4\) in cells \(2, 2\): expected 4 rows"):
        unpatchify(torch.zeros(shape), (2, 2), size=(4, 4))


def test_moments_are_those_of_the_counted_values():
    rng = np.random.default_rng(0)
    values, counted = rng.normal(size=(3, 5, 7)), rng.random((3, 5, 7)) < 0.6
    counted[0, 0], counted[1, 1] = False, np.arange(7) == 2
    values[~counted] = np.nan
    mean, variance = patch_moments(torch.from_numpy(values), torch.from_numpy(counted))
    for index in np.ndindex(3, 5):
        row = values[index][counted[index]]
        assert mean[index].item() == pytest.approx(row.mean() if len(row) else 0.0)
        assert variance[index].item() == pytest.approx(row.var(ddof=1) if len(row) > 1 else 0.0)
