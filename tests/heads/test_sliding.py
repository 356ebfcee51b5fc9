"""Sliding windows against a full accumulation, against MONAI, and where a window must not matter."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from heads.made import network, schema
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medssl.encoders.base import Encoder
from medssl.heads.classification import Linear
from medssl.heads.segmentation import UNet
from medssl.heads.sliding import _starts, classify, encode, gaussian, slide
from medssl.types import Features, UserError


class Toy(nn.Module):
    """Three classes by a convolution: 1-wide answers by position alone, wider ones see the window's borders."""

    def __init__(self, ndim: int, kernel: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.layer = convolution(1, 3, kernel, padding=kernel // 2)
        self.head = nn.Identity()
        self.head.schema = schema(3)
        self.head.predictions = lambda logits: logits.softmax(1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        return 3 * self.layer(image)


def reader(scan: torch.Tensor):
    """Boxes of a scan [C, *s]; beyond it the lowest value."""

    def read(start, size):
        box = torch.full((len(scan), *size), float(scan.min()))
        low = [max(0, a) for a in start]
        high = [min(n, a + k) for n, a, k in zip(scan.shape[1:], start, size, strict=True)]
        there = tuple(slice(b - a, c - a) for a, b, c in zip(start, low, high, strict=True))
        box[(slice(None), *there)] = scan[(slice(None), *map(slice, low, high))]
        return box

    return read


def scan_of(*shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))


def whole(blocks, axis: int, length: int) -> torch.Tensor:
    """Blocks put together, after checking that they come in order and without gaps."""
    parts, expected = [], 0
    for first, block in blocks:
        assert first == expected
        assert block.dtype == torch.float32
        expected += block.shape[1]
        parts.append(block)
    assert expected == length
    return torch.cat(parts, 1).movedim(1, axis + 1)


def reference(toy, scan, window, overlap) -> torch.Tensor:
    """The same by one array over the padded scan."""
    shape = scan.shape[1:]
    before = [max(0, w - n) // 2 for n, w in zip(shape, window, strict=True)]
    size = [max(n, w) for n, w in zip(shape, window, strict=True)]
    inside = (slice(None), *(slice(a, a + n) for a, n in zip(before, shape, strict=True)))
    padded = torch.full((1, *size), float(scan.min()))
    padded[inside] = scan
    grids = torch.meshgrid(*(torch.arange(w).double() for w in window), indexing="ij")
    distance = sum(((g - (w - 1) / 2) / (w / 8)) ** 2 for g, w in zip(grids, window, strict=True))
    weight = torch.exp(-distance / 2).clamp(min=1e-3)
    sums, total = torch.zeros(3, *size).double(), torch.zeros(*size).double()
    for start in product(*(_starts(n, w, overlap) for n, w in zip(size, window, strict=True))):
        where = tuple(slice(a, a + w) for a, w in zip(start, window, strict=True))
        with torch.no_grad():
            sums[(slice(None), *where)] += toy(padded[(slice(None), *where)][None])[0].softmax(0) * weight
        total[where] += weight
    return (sums / total)[inside].float()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 24), st.floats(0, 0.95))
def test_windows_cover_every_voxel(size, window, overlap):
    starts = _starts(size, window, overlap)
    if size <= window:
        assert starts == [-((window - size) // 2)]
        return
    assert starts[0] == 0
    assert starts[-1] + window == size
    steps = [b - a for a, b in pairwise(starts)]
    assert all(1 <= step <= window for step in steps)
    assert max(steps) - min(steps) <= 1
    assert sum(steps) / len(steps) <= max(1, window * (1 - overlap)) + 1e-3


CASES = [
    ((13, 9, 17), (8, 6, 5), 0.5),
    ((13, 9, 17), (8, 6, 5), 0.0),
    ((7, 21, 5), (8, 8, 8), 0.7),
    ((3, 4, 2), (8, 6, 5), 0.5),
    ((8, 6, 20), (8, 6, 5), 0.25),
    ((19, 14), (8, 6), 0.5),
    ((5, 30), (8, 8), 0.6),
]


@pytest.mark.parametrize(("shape", "window", "overlap"), CASES)
def test_planes_are_those_of_a_full_accumulation(shape, window, overlap):
    toy, scan = Toy(len(shape), 3), scan_of(*shape)
    expected = reference(toy, scan, window, overlap)
    for axis, batch_size in product(range(len(shape)), (1, 3)):
        blocks = slide(toy, reader(scan), shape, window=window, axis=axis, overlap=overlap, batch_size=batch_size)
        torch.testing.assert_close(whole(blocks, axis, shape[axis]), expected, rtol=0, atol=1e-5)
    assert all(rows[0] <= 3 for rows in toy.shapes)


@pytest.mark.parametrize(("shape", "window", "overlap"), CASES)
def test_a_network_without_a_neighborhood_does_not_notice_windows(shape, window, overlap):
    toy, scan = Toy(len(shape), 1), scan_of(*shape)
    with torch.no_grad():
        dense = toy(scan[None])[0].softmax(0)
    found = whole(slide(toy, reader(scan), shape, window=window, axis=0, overlap=overlap), 0, shape[0])
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-6)


@pytest.mark.parametrize("plane", [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)])
def test_slices_of_a_volume_are_images_of_their_own(plane):
    shape = (9, 13, 11)
    (axis,) = {0, 1, 2} - set(plane)
    toy, scan = Toy(2, 3), scan_of(*shape)
    blocks = slide(toy, reader(scan), shape, window=(8, 6), axis=axis, plane=plane, batch_size=3)
    found = whole(blocks, axis, shape[axis])
    straight = plane[0] < plane[1]
    for number in range(0, shape[axis], 4):
        image, answer = (x.select(axis + 1, number) for x in (scan, found))
        expected = reference(toy, image.clone() if straight else image.mT.clone(), (8, 6), 0.5)
        torch.testing.assert_close(answer if straight else answer.mT, expected, rtol=0, atol=1e-5)
    in_order = whole(slide(toy, reader(scan), shape, window=(8, 6), axis=axis), axis, shape[axis])
    assert torch.allclose(found, in_order, atol=1e-5) == straight


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # MONAI 1.5.2
def test_the_result_is_monais():
    from monai.inferers import sliding_window_inference

    toy, scan = Toy(3, 3), scan_of(20, 16, 12)  # steps of half a window: both place their windows alike
    theirs = sliding_window_inference(
        scan[None], (8, 8, 4), 2, lambda x: toy(x).softmax(1), overlap=0.5, mode="gaussian", sigma_scale=0.125
    )[0]
    found = whole(slide(toy, reader(scan), (20, 16, 12), window=(8, 8, 4), axis=2), 2, 12)
    torch.testing.assert_close(found, theirs.detach(), rtol=0, atol=1e-5)


def test_the_weight_is_a_gaussian_with_a_rim_above_zero():
    weight = gaussian((17, 16))
    assert weight.shape == (17, 16)
    assert weight.min() == pytest.approx(1e-3)
    profile = weight[:, 8] / weight[8, 8]
    assert profile[8] == 1
    assert float(profile[8 + 2]) == pytest.approx(math.exp(-0.5 * (2 / (17 / 8)) ** 2), rel=1e-5)
    assert torch.equal(weight, weight.flip(0))


def test_planes_come_as_soon_as_no_window_reaches_them():
    """So that neither the scan nor the answer is ever held whole."""
    toy, scan = Toy(3, 3), scan_of(64, 8, 8)
    asked = []

    def read(start, size):
        asked.append(start[0])
        return reader(scan)(start, size)

    furthest = []
    for first, block in slide(toy, read, (64, 8, 8), window=(8, 8, 8), axis=0, batch_size=1):
        assert block.shape[1] <= 8
        furthest.append(max(asked) - first)
    assert len(furthest) == 15
    assert max(furthest) == 4  # the next window, which tells that the planes before it are done
    assert len(asked) == 15


def test_blocks_are_the_callers_own():
    toy, scan = Toy(2, 3), scan_of(20, 8)
    blocks = list(slide(toy, reader(scan), (20, 8), window=(8, 8), axis=0))
    before = [block.clone() for _, block in blocks]
    for _, block in blocks:
        assert not block.requires_grad
        block.mul_(2)  # neither inference tensors nor views of what is still in work
    again = slide(toy, reader(scan), (20, 8), window=(8, 8), axis=0)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, again, strict=True))
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_real_network_answers_for_every_voxel(ndim):
    model = network(UNet, ndim, deep_supervision=True).eval()
    shape, window = ((37, 50), (32, 32)) if ndim == 2 else ((10, 21, 13), (8, 16, 8))
    found = whole(slide(model, reader(scan_of(*shape)), shape, window=window, axis=1), 1, shape[1])
    assert found.shape == (3, *shape)
    torch.testing.assert_close(found.sum(0), torch.ones(shape))


# --- classification


def test_a_classification_is_the_mean_over_windows_that_cover_the_scan():
    model = network(Linear, 2).eval()
    scan = scan_of(40, 33)
    windows = [(a, b) for a in (0, 8) for b in (0, 1)]
    with torch.no_grad():
        rows = [model(scan[:, a : a + 32, b : b + 32][None])[0].softmax(0) for a, b in windows]
    found = classify(model, reader(scan), (40, 33), window=(32, 32), axis=0, batch_size=3)
    torch.testing.assert_close(found, torch.stack(rows).mean(0))
    # a scan that is smaller than the window lies in its middle
    with torch.no_grad():
        padded = reader(scan[:, :20, :30])((-6, -1), (32, 32))
        alone = model(padded[None])[0].softmax(0)
    torch.testing.assert_close(classify(model, reader(scan[:, :20, :30]), (20, 30), window=(32, 32), axis=0), alone)


def test_slices_of_a_volume_are_classified_together():
    model = network(Linear, 2).eval()
    scan = scan_of(32, 5, 48)
    with torch.no_grad():
        rows = [model(scan[:, :, number].mT[None])[0].softmax(0) for number in range(5)]
    found = classify(model, reader(scan), (32, 5, 48), window=(48, 32), axis=1, plane=(2, 0))
    torch.testing.assert_close(found, torch.stack(rows).mean(0))


# --- what is refused


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_overlaps_out_of_range_are_refused(overlap):
    with pytest.raises(UserError, match=f"overlap {overlap}: expected a number from 0 to below 1"):
        slide(Toy(2, 1), reader(scan_of(8, 8)), (8, 8), window=(4, 4), axis=0, overlap=overlap)


@pytest.mark.parametrize(("shape", "window"), [((8, 8), (4, 4, 4)), ((8, 8, 8), (4,)), ((8, 8), (4,))])
def test_windows_of_another_dimension_are_refused(shape, window):
    match = rf"has {len(window)} axes, the scan has {len(shape)}: images take windows of 2 axes"
    with pytest.raises(UserError, match=match):
        slide(Toy(2, 1), reader(scan_of(*shape)), shape, window=window, axis=0)
    with pytest.raises(UserError, match=match):
        classify(Toy(2, 1), reader(scan_of(*shape)), shape, window=window, axis=0)


def test_planes_that_hold_the_axis_across_are_refused():
    with pytest.raises(ValueError, match=r"plane \(0, 1\): expected the axes \(1, 2\) in either order"):
        slide(Toy(2, 1), reader(scan_of(8, 8, 8)), (8, 8, 8), window=(4, 4), axis=0, plane=(0, 1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(value):
    scan = scan_of(8, 8)
    scan[0, 5, 5] = value
    with pytest.raises(UserError, match="the network's scores are not finite: its training diverged, or the scan"):
        list(slide(Toy(2, 1), reader(scan), (8, 8), window=(4, 4), axis=0))
    with pytest.raises(UserError, match="scores are not finite"):
        classify(network(Linear, 2).eval(), reader(scan), (8, 8), window=(8, 8), axis=0)


class Marked(Encoder):
    """One map: the image itself; pooled: its first and its last voxel."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndims, self.in_channels, self.channels, self.strides = frozenset({ndim}), 1, (1,), ((1,) * ndim,)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image, hidden=None, mode=None):
        flat = image.flatten(1)
        return Features((image,), torch.stack([flat[:, 0], flat[:, -1]], 1))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("shape", "window", "axis", "plane"), [
    ((13, 9, 5), (8, 6, 8), 0, None), ((13, 9, 4), (8, 6), 2, (1, 0)), ((13, 9), (8, 8), 0, None),
])  # fmt: skip
def test_features_come_with_their_window(shape, window, axis, plane, batch_size):
    """Each window's features are those of the box that its start and order name; together they see every voxel."""
    scan = scan_of(*shape)
    seen = torch.zeros(shape, dtype=torch.bool)
    options = {"window": window, "axis": axis, "plane": plane, "batch_size": batch_size}
    for start, order, found in encode(Marked(len(window)), reader(scan), shape, **options):
        box = [1] * len(shape)
        for place, size in zip(order, window, strict=True):
            box[place] = size
        across = [a for a in range(len(shape)) if a not in order]
        image = reader(scan)(start, box)[0].permute(*order, *across).reshape(window)
        assert torch.equal(found.maps[0][0, 0], image)
        assert torch.equal(found.pooled[0], torch.stack([image.flatten()[0], image.flatten()[-1]]))
        seen[tuple(slice(max(0, a), a + k) for a, k in zip(start, box, strict=True))] = True
    assert seen.all()
