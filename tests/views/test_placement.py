"""Views left as they are, views of a share of the scan, pairs that overlap, and which axes may be mirrored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from views.made import coordinate_image, raw_crops, where_read

from medssl.data.loading.crops import region_at
from medssl.types import Crops, Geometry, Intensity, Sampling, UserError, ViewPlan, ViewSpec
from medssl.views.mirroring import mirrored_axes, with_rule
from medssl.views.plan import make_batch, read_size

TURNED = Geometry("all", (20.0,), probability=0.2)


def whole_scans(plan: ViewPlan, shape: tuple[int, ...], count: int, *, spacing=None, image=None) -> Crops:
    """Raw crops of one scan as the loader reads them, one start each."""
    spacing = spacing or (1.0,) * len(shape)
    size = read_size(plan, spacing, torch.tensor([shape]))
    starts = np.array([region_at(5, k, shape, size, Sampling()) for k in range(count)])
    world = torch.diag(torch.tensor([*spacing, 1.0]))
    crops = raw_crops(torch.zeros(count, 1, *size, dtype=torch.int16), spacing=spacing, source=list(shape), world=world)
    crops = replace(crops, placement=replace(crops.placement, start=torch.from_numpy(starts)))
    if image is None:
        return crops
    padded = np.pad(image, [(n, n) for n in size])
    cut = [
        padded[tuple(slice(n + a, n + a + n) for n, a in zip(size, start, strict=True))] for start in starts.tolist()
    ]
    return replace(crops, image=torch.from_numpy(np.stack(cut))[:, None])


# --- probability


@pytest.mark.parametrize("n", [2, 3])
def test_crops_without_rotation_and_scale_are_the_stored_voxels(n):
    shape, spacing = (40, 36, 44)[:n], (1.0, 1.3, 4.0)[:n]
    image = np.random.default_rng(0).integers(-2000, 2000, shape).astype(np.int16)
    spec = ViewSpec((12, 14, 9)[:n], (0.7, 1.4), geometry=TURNED)
    plan = ViewPlan((spec,))
    view = make_batch(whole_scans(plan, shape, 300, spacing=spacing, image=image), plan, seed=2, device="cpu").views[0]
    untouched = 0
    for row in range(300):
        place = where_read(view.affine[row], spec.size)
        if torch.equal(place, place.round()):
            untouched += 1
            voxels = image[tuple(place.long().numpy())]
            assert np.array_equal(view.image[row, 0].numpy(), voxels.astype(np.float32))
        else:
            assert not np.array_equal(view.image[row, 0].numpy(), view.image[row, 0].round().numpy())
    assert untouched / 300 == pytest.approx(0.8 * 0.8, abs=0.09)


def test_rotation_and_scale_are_drawn_apart():
    plan = ViewPlan((ViewSpec((12, 12), (0.5, 0.8), geometry=Geometry("none", (30.0,), probability=0.5)),))
    affine = make_batch(whole_scans(plan, (60, 60), 600), plan, seed=0, device="cpu").views[0].affine
    rotated = affine[:, 0, 1].abs() > 1e-6
    scaled = (affine[:, :2, :2].norm(dim=1) - 1).abs().amax(dim=1) > 1e-6
    for first in (True, False):
        for second in (True, False):
            assert float(((rotated == first) & (scaled == second)).float().mean()) == pytest.approx(0.25, abs=0.06)


def test_whole_voxels_reach_both_ends_of_the_scan():
    spec = ViewSpec((8, 8), (0.9, 1.1), geometry=Geometry("none", (10.0,), probability=0.0))
    plan = ViewPlan((spec,))
    view = make_batch(raw_crops(coordinate_image((12, 11)).repeat(400, 1, 1, 1)), plan, seed=0, device="cpu").views[0]
    offsets, counts = torch.unique(view.affine[:, :2, 2], dim=0, return_counts=True)
    assert sorted(map(tuple, offsets.tolist())) == [(float(a), float(b)) for a in range(5) for b in range(4)]
    assert int(counts.min()) > 400 / 20 / 3


def test_a_crop_holds_untouched_views_of_plans_that_scale_down():
    small = ViewSpec((20, 20), (0.4, 0.6), geometry=Geometry(probability=0.5))
    assert read_size(ViewPlan((small,))) == (20 + 15, 20 + 15)


# --- area


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 3), st.lists(st.integers(6, 60), min_size=3, max_size=3), st.sampled_from([0.05, 0.2, 0.6, 1.0]),
    st.integers(0, 1000),
)  # fmt: skip
def test_a_view_shows_its_share_of_the_scan(n, shape, most, seed):
    shape, size = tuple(shape[:n]), (24, 16, 20)[:n]
    plan = ViewPlan((ViewSpec(size, area=(most / 2, most), geometry=Geometry("none")),))
    crops = whole_scans(plan, shape, 8)
    assert all(have <= max(need, edge) for have, need, edge in zip(crops.image.shape[2:], shape, size, strict=True))
    view = make_batch(crops, plan, seed=seed, device="cpu").views[0]
    steps = view.affine[:, :n, :n].diagonal(dim1=1, dim2=2)
    assert torch.allclose(steps, steps[:, :1].expand(-1, n), rtol=1e-5)  # one scale for all axes
    for row in range(8):
        shown = 1.0
        place = where_read(view.affine[row], size)
        for axis in range(n):  # voxels of the scan between the outer edges of the view's voxels
            half = float(steps[row, axis]) / 2
            low, high = float(place[axis].min()) - half, float(place[axis].max()) + half
            length = high - low
            inside = min(high, shape[axis] - 0.5) - max(low, -0.5)
            edge = abs(half - 0.5)  # views begin and end with the middle of a voxel inside the scan
            assert inside >= min(length, shape[axis]) - 2 * edge - 1e-3
            shown *= min(length, shape[axis]) / shape[axis]
        assert most / 2 - 1e-4 < shown < most + 1e-4


def test_areas_are_uniform_and_do_not_depend_on_the_stored_size():
    spec = ViewSpec((32, 32), area=(0.2, 1.0), geometry=Geometry("none"))
    for shape in ((256, 256), (512, 512)):
        view = make_batch(whole_scans(ViewPlan((spec,)), shape, 400), ViewPlan((spec,)), seed=1, device="cpu").views[0]
        areas = (view.affine[:, 0, 0] * 32 / shape[0]).square().sort().values
        assert torch.allclose(areas, torch.linspace(0.2, 1.0, 400), atol=0.06)


def test_the_crop_of_a_share_is_as_large_as_the_largest_scan_needs():
    spec = ViewSpec((32, 32), area=(0.1, 0.25), geometry=Geometry("none"))
    assert read_size(ViewPlan((spec,)), None, torch.tensor([[64, 64], [256, 256]])) == (125 + 15,) * 2
    wide = replace(spec, area=(0.5, 1.0))
    assert read_size(ViewPlan((wide,)), None, torch.tensor([[64, 80], [96, 64]])) == (96, 80)
    with pytest.raises(ValueError, match="needs the shapes of the scans"):
        read_size(ViewPlan((spec,)))


# --- overlap

SPACINGS = [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (3.0, 0.7, 0.7)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SPACINGS), st.lists(st.integers(5, 70), min_size=3, max_size=3),
    st.sampled_from([(0.0,), (15.0,), (10.0, 0.0, 40.0)]), st.sampled_from([0.25, 0.5, 0.9, 1.0]),
    st.sampled_from([(0.7, 1.3), (1.0, 1.0), (0.4, 2.0)]), st.sampled_from([0.2, 1.0]), st.booleans(),
    st.integers(0, 1000),
)  # fmt: skip
def test_pairs_overlap_along_every_axis(spacing, shape, degrees, share, scale, probability, isotropic, seed):
    geometry = Geometry("all", degrees, isotropic, probability)
    spec = ViewSpec((16, 12, 20), scale, geometry=geometry, min_overlap=share)
    plan = ViewPlan((spec, spec))
    first, second = make_batch(whole_scans(plan, tuple(shape), 6, spacing=spacing), plan, seed=seed, device="cpu").views
    boxes = []
    for view in (first, second):  # boxes before rotation, from the centers that are read and the voxel sizes in mm
        extent = view.spacing_mm.double() / torch.tensor(spacing) * torch.tensor(spec.size)
        center = torch.stack([where_read(affine, spec.size).flatten(1).mean(dim=1) for affine in view.affine])
        boxes.append((center - extent / 2, center + extent / 2, extent))
    (low, high, extent), (other_low, other_high, other_extent) = boxes
    common = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    assert bool((common / torch.maximum(extent, other_extent) > share - 1e-4).all())


def test_pairs_of_shares_overlap_as_well():
    spec = ViewSpec((16, 16), area=(0.05, 0.6), geometry=Geometry("none"), min_overlap=0.5)
    plan = ViewPlan((spec, spec))
    first, second = make_batch(whole_scans(plan, (90, 40), 200), plan, seed=0, device="cpu").views
    ends = [(view.affine[:, :2, 2], view.affine[:, :2, 2] + 15 * view.affine[:, :1, 0]) for view in (first, second)]
    steps = [view.affine[:, :1, 0] for view in (first, second)]
    common = torch.minimum(ends[0][1], ends[1][1]) - torch.maximum(ends[0][0], ends[1][0]) + torch.minimum(*steps)
    assert bool((common >= 0.5 * 16 * torch.maximum(*steps) * 0.95).all())


def test_a_pair_without_a_least_overlap_is_drawn_as_before():
    spec = ViewSpec((16, 16), (0.7, 1.3), geometry=Geometry("safe", (15.0,)))
    crops = whole_scans(ViewPlan((spec, spec)), (90, 90), 100)
    free = make_batch(crops, ViewPlan((spec, spec)), seed=3, device="cpu").views
    near = replace(spec, min_overlap=0.5)
    kept = make_batch(crops, ViewPlan((near, near)), seed=3, device="cpu").views
    assert torch.equal(free[0].affine, kept[0].affine)
    assert not torch.equal(free[1].affine, kept[1].affine)


def test_views_of_other_sizes_are_scaled_until_they_can_overlap():
    flips = Geometry("none")
    local = ViewSpec((12, 12), (0.4, 2.4), geometry=flips, min_overlap=0.5)
    plan = ViewPlan((ViewSpec((16, 16), (0.5, 2.0), geometry=flips), local))
    first, second = make_batch(whole_scans(plan, (90, 40), 300), plan, seed=0, device="cpu").views
    ratios = (second.affine[:, 0, 0] * 12) / (first.affine[:, 0, 0] * 16)
    assert float(ratios.min()) == pytest.approx(0.5, abs=1e-5)
    assert float(ratios.max()) == pytest.approx(2.0, abs=1e-5)
    assert 0.5 < float(((ratios > 0.5 + 1e-5) & (ratios < 2.0 - 1e-5)).float().mean()) < 1


# --- mirroring


def test_views_follow_the_rule_of_the_data():
    image = torch.arange(6.0).expand(1, 1, 6, 6).repeat(60, 1, 1, 1)
    plan = ViewPlan((ViewSpec((6, 6), geometry=Geometry("data")),))
    for rule, axes in (("safe", [True, False]), ("all", [True, True]), ("none", [False, False])):
        view = make_batch(raw_crops(image), with_rule(plan, rule), seed=0, device="cpu").views[0]
        assert (view.affine[:, :2, :2].diagonal(dim1=1, dim2=2) < 0).any(dim=0).tolist() == axes
        assert mirrored_axes(Geometry("data"), view.world_affine, rule)[0].tolist() == axes
    kept = ViewPlan((ViewSpec((6, 6), geometry=Geometry("none")),))
    assert with_rule(kept, "all") == kept


def test_mirrored_axes_of_volumes_leave_out_left_and_right():
    turned = torch.tensor([[[0.0, 0.7, 0, 0], [0, 0, 2.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]]])
    assert mirrored_axes(Geometry("safe"), turned).tolist() == [[True, False, True]]
    assert mirrored_axes(Geometry("data"), turned, "all").tolist() == [[True, True, True]]
    assert mirrored_axes(Geometry("none"), turned, "all").tolist() == [[False, False, False]]


# --- refused

PAIR = ViewSpec((96, 96, 96), (0.7, 1.3))
BAD = {
    "probability above 1": (
        [ViewSpec((8, 8), geometry=Geometry(probability=1.5))],
        r"geometry.probability takes a number from 0 to 1: 1.5",
    ),
    "probability below 0": ([ViewSpec((8, 8), geometry=Geometry(probability=-0.1))], "from 0 to 1: -0.1"),
    "probability of a resolution": ([ViewSpec((8, 8), intensity=Intensity(reduced_resolution=(1.2, 0.5, 1.0)))],
        "intensity.reduced_resolution takes a probability",
    ),
    "resolution above 1": ([ViewSpec((8, 8), intensity=Intensity(reduced_resolution=(0.2, 0.5, 1.5)))],
        "shares of the voxels up to 1",
    ),
    "area beyond 1": ([ViewSpec((8, 8), area=(0.5, 1.2))], r"area takes two shares of the scan, above 0 to 1.*1.2"),
    "area of 0": ([ViewSpec((8, 8), area=(0.0, 0.5))], "area takes two shares"),
    "area turned round": ([ViewSpec((8, 8), area=(0.8, 0.5))], "the lower one first"),
    "area and scale": ([ViewSpec((8, 8), (0.8, 1.2), area=(0.5, 1.0))], "set area to null to use scale"),
    "area by axis": ([ViewSpec((8, 8), area=(0.5, 1.0), geometry=Geometry(isotropic=False))], "geometry.isotropic"),
    "area nested": ([ViewSpec((8, 8)), ViewSpec((8, 8), area=(0.1, 0.2), nested_in=0)], "nested_in 0"),
    "overlap above 1": ([PAIR, replace(PAIR, min_overlap=1.5)], "min_overlap takes a share from 0 to 1: 1.5"),
    "overlap of a small view": (
        [PAIR, ViewSpec((32, 32, 32), (0.7, 1.3), min_overlap=0.5)],
        r"view 1: min_overlap 0.5: with sizes \[96, 96, 96\] .* at most 0.33 of the larger view",
    ),
    "overlap of a large view": (
        [ViewSpec((32, 32)), ViewSpec((32, 32), (2.5, 3.0), min_overlap=0.5)],
        r"scale \[2.5, 3.0\], some pairs have at most 0.4 of the larger view in common along axis 0",
    ),
    "overlap of other proportions": (
        [ViewSpec((32, 64)), ViewSpec((64, 32), (0.1, 9.0), min_overlap=0.6)],
        "at most 0.5 of the larger",
    ),
    "overlap of an area and a scale": (
        [ViewSpec((32, 32), area=(0.2, 1.0)), ViewSpec((32, 32), min_overlap=0.5)],
        "views by scale or views by area",
    ),
    "overlap and nested": ([PAIR, replace(PAIR, nested_in=0, min_overlap=0.5)], "both say where the view lies"),
}  # fmt: skip


@pytest.mark.parametrize(("views", "words"), BAD.values(), ids=BAD)
def test_views_that_cannot_be_are_refused(views, words):
    with pytest.raises(UserError, match=words):
        read_size(ViewPlan(tuple(views)))


def test_overlap_and_crops_around_labels_are_refused():
    plan = ViewPlan((PAIR, replace(PAIR, min_overlap=0.5)), Sampling(labeled=0.3))
    with pytest.raises(UserError, match=r"labeled 0.3 cannot both place a view"):
        read_size(plan)
