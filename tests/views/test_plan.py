"""From crops to views: affines are true to the voxel, labels follow, padding is marked, samples stand alone."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from views.made import coordinate_image, raw_crops, where_read

from medssl.types import Geometry, Intensity, Sampling, UserError, ViewPlan, ViewSpec
from medssl.views import geometry
from medssl.views.plan import make_batch, read_size

LOUD = Intensity((1.0, 0.2), (1.0, 1.0), (1.0, 0.3), (1.0, 0.7, 1.4), (1.0, 0.7, 1.5), (1.0, 0.4))


@st.composite
def specs(draw, n=None):
    n = n or draw(st.sampled_from([2, 3]))
    low = draw(st.sampled_from([0.6, 0.9, 1.0]))
    degrees = draw(
        st.sampled_from([(0.0,), (12.0,), (25.0,)] + ([(5.0, 0.0, 20.0), (0.0, 0.0, 60.0)] if n == 3 else []))
    )
    return ViewSpec(
        size=tuple(draw(st.lists(st.integers(5, 13), min_size=n, max_size=n))),
        scale=(low, draw(st.sampled_from([1.0, 1.4]))),
        geometry=Geometry(draw(st.sampled_from(["safe", "all", "none"])), degrees, draw(st.booleans())),
    )


@settings(max_examples=50, deadline=None)
@given(specs(), st.integers(0, 10**6), st.data())
def test_the_affine_is_true_to_the_voxel(spec, seed, data):
    n = len(spec.size)
    spacing = data.draw(st.sampled_from([(1.0, 1.0, 1.0), (0.8, 0.8, 4.0), (6.0, 1.5, 1.5)]))[:n]
    start = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    plan = ViewPlan((spec,))
    size = read_size(plan, spacing)
    source = [a + b + 3 for a, b in zip(start, size, strict=True)]
    world = torch.eye(n + 1).double()
    world[:n, :n] = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double())[0]
    world[:n, :n] *= torch.tensor(spacing)
    world[:n, n] = torch.tensor([-30.0, 12.0, 7.0][:n])
    codes = torch.arange(int(np.prod(source)), dtype=torch.int32).reshape(1, 1, *source)
    cut = tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))
    crops = raw_crops(
        coordinate_image(size, start).repeat(2, 1, *[1] * n),
        start=start,
        source=source,
        spacing=spacing,
        world=world,
        labels=codes[(slice(None), slice(None), *cut)].repeat(2, 1, *[1] * n),
    )
    batch = make_batch(crops, plan, seed=seed, device="cpu")
    view = batch.views[0]
    assert view.image.dtype == torch.float32
    assert bool(view.valid.all())
    assert batch.targets is not None
    for row in range(2):
        place = where_read(view.affine[row], spec.size)
        assert float((view.image[row] - place).abs().max()) < 1e-3
        assert torch.allclose(view.world_affine[row], (world @ view.affine[row].double()).float(), atol=1e-3)
        sides = [float(np.linalg.norm(view.world_affine[row, :n, axis].numpy())) for axis in range(n)]
        assert view.spacing_mm[row].tolist() == pytest.approx(sides, rel=1e-4)
        decided = ((place - place.floor() - 0.5).abs() > 1e-3).all(dim=0)
        nearest = np.ravel_multi_index([(axis + 0.5).floor().long().numpy() for axis in place], source)
        assert np.array_equal(batch.targets[0][row, 0].numpy()[decided], nearest[decided])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3), st.sampled_from(["safe", "all", "none"]))
def test_without_turn_and_scale_the_voxels_are_the_stored_ones(seed, n, flip):
    spec = ViewSpec((6, 5, 7)[:n], geometry=Geometry(flip=flip))
    raw = torch.randint(-(2**15), 2**15, (2, 1, *[22] * n), dtype=torch.int16)
    crops = raw_crops(raw, start=[16, 32, 0][:n], numbers=(1.0, 0.0, -1000.0, 1000.0, 30.0, 400.0))
    view = make_batch(crops, ViewPlan((spec,)), seed=seed, device="cpu").views[0]
    for row in range(2):
        place = where_read(view.affine[row], spec.size) - torch.tensor([16, 32, 0][:n]).reshape(n, *[1] * n)
        assert torch.equal(place, place.round())
        codes = raw[row, 0][tuple(place.long())]
        expected = (codes.double().clamp(-1000, 1000) - 30) / 400
        assert torch.allclose(view.image[row, 0].double(), expected, atol=1e-6)


def test_every_whole_offset_occurs_and_is_as_likely():
    spec = ViewSpec((4, 4), geometry=Geometry(flip="none"))
    crops = raw_crops(coordinate_image((8, 6)).repeat(2000, 1, 1, 1))
    view = make_batch(crops, ViewPlan((spec,)), seed=0, device="cpu").views[0]
    offsets, counts = torch.unique(view.affine[:, :2, 2], dim=0, return_counts=True)
    assert sorted(map(tuple, offsets.tolist())) == [(float(a), float(b)) for a in range(5) for b in range(3)]
    assert int(counts.min()) > 2000 / 15 * 0.65
    assert int(counts.max()) < 2000 / 15 * 1.35


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL", "SRP", "PIR", "ILA"])
def test_left_stays_left(codes):
    world = torch.eye(4).double()
    axes = nibabel.orientations.axcodes2ornt(tuple(codes))
    world[:3, :3] = 0
    for axis, (to, sign) in enumerate(axes):
        world[int(to), axis] = sign
    across = codes.index("L") if "L" in codes else codes.index("R")
    shape = (6, 7, 8)
    ramp = torch.arange(shape[across], dtype=torch.float32).reshape([-1 if axis == across else 1 for axis in range(3)])
    image = ramp.expand(1, 1, *shape).repeat(24, 1, 1, 1, 1)
    for flip, mirrored in (("safe", False), ("all", True)):
        spec = ViewSpec(shape, geometry=Geometry(flip=flip))
        view = make_batch(raw_crops(image, world=world), ViewPlan((spec,)), seed=1, device="cpu").views[0]
        assert torch.equal(view.image, image) != mirrored
        turned = (view.affine[:, :3, :3].diagonal(dim1=1, dim2=2) < 0).any(dim=0)
        assert turned.tolist() == [mirrored or axis != across for axis in range(3)]


def test_an_image_keeps_its_horizontal_axis():
    image = torch.randn(1, 1, 6, 6).repeat(40, 1, 1, 1)
    view = make_batch(raw_crops(image), ViewPlan((ViewSpec((6, 6)),)), seed=0, device="cpu").views[0]
    assert bool((view.affine[:, 0, 0] < 0).any())
    assert bool((view.affine[:, 1, 1] > 0).all())


@settings(max_examples=30, deadline=None)
@given(specs(), st.integers(0, 1000), st.lists(st.integers(3, 9), min_size=3, max_size=3))
def test_a_scan_smaller_than_the_crop(spec, seed, source):
    n = len(spec.size)
    size = read_size(ViewPlan((spec,)))
    source = source[:n]
    start = [
        -((have - need) // -2) if have >= need else -((need - have) // 2)
        for have, need in zip(source, size, strict=False)
    ]
    image = torch.randint(0, 500, (2, 1, *size), dtype=torch.int16)
    inside = torch.zeros(size, dtype=torch.bool)
    inside[tuple(slice(max(0, -a), max(0, -a) + s) for a, s in zip(start, source, strict=False))] = True
    image = torch.where(inside, image, torch.full((), -2000, dtype=torch.int16))
    labels = torch.where(inside, torch.ones((), dtype=torch.int32), torch.full((), -1, dtype=torch.int32))
    crops = raw_crops(
        image, start=start, source=source, numbers=(1.0, 0.0, -1000.0, 1000.0, 0.0, 100.0), labels=labels[None, None]
    )
    crops = replace(crops, labels=labels.expand(2, 1, *size))
    batch = make_batch(crops, ViewPlan((replace(spec, intensity=LOUD),)), seed=seed, device="cpu")
    view = batch.views[0]
    assert bool((view.image[~view.valid] == -10.0).all())
    assert bool(view.valid.flatten(1).any(dim=1).all())
    assert not bool((view.scored & ~view.valid).any())
    assert batch.targets is not None
    assert torch.equal(batch.targets[0] == -1, ~view.valid)


TURNED = ViewSpec((9, 5, 5), scale=(0.6, 1.4), geometry=Geometry(flip="safe", rotation_degrees=(25.0,)))


def test_a_turned_view_does_not_lose_a_small_scan():
    """The box around a turned view has corners that the view does not reach; seed 407 once put the scan there."""
    crops = raw_crops(torch.zeros(400, 1, 35, 33, 33, dtype=torch.int16), start=[-16, -15, -15], source=[3, 3, 3])
    for seed in (0, 407):
        view = make_batch(crops, ViewPlan((TURNED,)), seed=seed, device="cpu").views[0]
        assert int(view.valid.flatten(1).sum(dim=1).min()) >= 8


def test_a_turned_view_that_fits_into_its_scan_stays_where_it_was_drawn(monkeypatch):
    crops = raw_crops(torch.zeros(100, 1, 35, 33, 33, dtype=torch.int16))
    found = make_batch(crops, ViewPlan((TURNED,)), seed=0, device="cpu").views[0]
    monkeypatch.setattr(geometry, "_move_into_sight", lambda center, *_: center)
    assert torch.equal(found.affine, make_batch(crops, ViewPlan((TURNED,)), seed=0, device="cpu").views[0].affine)


def test_a_view_larger_than_the_scan_holds_all_of_it():
    spec = ViewSpec((12, 12, 12))
    crops = raw_crops(torch.zeros(6, 1, 27, 27, 27, dtype=torch.int16), start=[-8, -10, -9], source=[11, 7, 9])
    view = make_batch(crops, ViewPlan((spec,)), seed=0, device="cpu").views[0]
    assert view.valid.flatten(1).sum(dim=1).tolist() == [11 * 7 * 9] * 6
    assert len({tuple(offset) for offset in view.affine[:, :3, 3].tolist()}) > 1


def everything(samples, seed=3, n=3, **changes):
    """A batch with every option in use, made of crops that depend on their sample alone."""
    size = (24, 26, 22)[:n]
    rows = [torch.randint(-900, 900, (2, *size), generator=torch.Generator().manual_seed(s)) for s in samples]
    crops = raw_crops(
        torch.stack(rows).to(torch.int16),
        start=[-2, 0, 3][:n],
        source=[60, 25, 60][:n],
        numbers=(0.5, 1.0, -300.0, 300.0, 2.0, 90.0),
        samples=samples,
        labels=torch.stack([(row[:1] > 0).to(torch.int32) for row in rows]),
        scored=torch.stack([row[1:] > -800 for row in rows]),
    )
    wide = ViewSpec((12,) * n, scale=(0.7, 1.2), geometry=Geometry("all", (15.0,)), intensity=LOUD)
    some = replace(LOUD, gamma=(0.5, 0.7, 1.4), blur=(0.5, 1.0), noise=(0.5, 0.1))
    local = ViewSpec((8,) * n, scale=(0.4, 0.9), kind="local", nested_in=0, intensity=some)
    exact = ViewSpec((9,) * n)
    crops = replace(crops, **changes)
    return make_batch(crops, ViewPlan((wide, local, exact)), seed=seed, device="cpu"), crops


@pytest.mark.parametrize("n", [2, 3])
def test_a_sample_is_the_same_in_any_batch(n):
    together, _ = everything([4, 7, 9, 2], n=n)
    apart, _ = everything([9, 4], n=n)
    for one, two in zip(together.views, apart.views, strict=True):
        for name in ("image", "affine", "world_affine", "spacing_mm", "valid", "scored"):
            assert torch.equal(getattr(one, name)[[2, 0]], getattr(two, name)), name
    for one, two in zip(together.targets, apart.targets, strict=True):
        assert torch.equal(one[[2, 0]], two)
    other, _ = everything([4, 7, 9, 2], seed=4, n=n)
    assert not torch.equal(other.views[0].affine, together.views[0].affine)


def test_crops_are_left_as_they_were():
    _, crops = everything([1, 2])
    image, labels, scored = crops.image.clone(), crops.labels.clone(), crops.scored.clone()
    batch = make_batch(crops, ViewPlan((ViewSpec((24, 26, 22), intensity=LOUD),)), seed=0, device="cpu")
    batch.views[0].scored.zero_()
    batch.targets[0].zero_()
    assert torch.equal(crops.image, image)
    assert torch.equal(crops.labels, labels)
    assert torch.equal(crops.scored, scored)


def test_scored_follows_the_geometry():
    batch, crops = everything([1, 2, 3])
    for view in batch.views:
        for row in range(3):
            place = where_read(view.affine[row], view.image.shape[2:]) - torch.tensor([-2, 0, 3]).reshape(3, 1, 1, 1)
            decided = ((place - place.floor() - 0.5).abs() > 1e-3).all(dim=0) & view.valid[row, 0]
            index = [
                (axis + 0.5).floor().long().clamp(0, extent - 1)
                for axis, extent in zip(place, (24, 26, 22), strict=False)
            ]
            expected = crops.scored[row, 0][tuple(index)]
            assert torch.equal(view.scored[row, 0][decided], expected[decided])


def test_a_missing_channel_stays_zero():
    present = torch.tensor([[True, False], [True, True]])
    numbers = torch.tensor([[[1.0, 0, -9e9, 9e9, 0, 100]] * 2] * 2)
    numbers[0, 1] = 0  # what nobody knows is nothing: no division by it may show
    batch, _ = everything([1, 2], present=present, intensity=numbers)
    for view in batch.views:
        assert bool((view.image[0, 1] == 0).all())
        assert bool(torch.isfinite(view.image).all())
        assert float(view.image[1, 1].std()) > 0.1
        assert torch.equal(view.present, present)


@settings(max_examples=40, deadline=None)
@given(specs(3), st.floats(0.3, 1.2), st.integers(0, 1000), st.sampled_from([0.0, 20.0]))
def test_a_nested_view_lies_inside_its_parent(parent, scale, seed, degrees):
    child = ViewSpec((5, 4, 6), (0.3, max(0.3, scale)), "local", Geometry("all", (degrees,)), nested_in=0)
    plan = ViewPlan((parent, child))
    crops = raw_crops(torch.zeros(3, 1, *read_size(plan), dtype=torch.uint8), start=[5, -3, 0], source=[90, 90, 90])
    outer, inner = make_batch(crops, plan, seed=seed, device="cpu").views
    for row in range(3):
        into = torch.linalg.inv(outer.affine[row].double()) @ inner.affine[row].double()
        place = where_read(into, child.size)
        assert float(place.min()) > -1e-3
        assert bool((place.flatten(1).amax(dim=1) < torch.tensor(parent.size) - 1 + 1e-3).all())


def test_nested_whole_views_are_exact():
    plan = ViewPlan((ViewSpec((12, 12, 12)), ViewSpec((6, 6, 6), nested_in=0)))
    crops = raw_crops(coordinate_image((27, 27, 27)).repeat(8, 1, 1, 1, 1))
    inner = make_batch(crops, plan, seed=0, device="cpu").views[1]
    assert torch.equal(inner.image, inner.image.round())
    assert len({tuple(offset) for offset in inner.affine[:, :3, 3].tolist()}) > 1


def test_thick_slices_turn_in_millimeters():
    spacing = (1.5, 1.5, 8.0)
    spec = ViewSpec((16, 16, 6), geometry=Geometry("none", (15.0, 15.0, 0.0)))
    plan = ViewPlan((spec,))
    crops = raw_crops(torch.zeros(4, 1, *read_size(plan, spacing), dtype=torch.int16), spacing=spacing)
    view = make_batch(crops, plan, seed=0, device="cpu").views[0]
    directions = view.world_affine[:, :3, :3].double()
    gram = directions.transpose(1, 2) @ directions
    assert torch.allclose(gram, torch.diag(torch.tensor(spacing).double() ** 2).expand(4, -1, -1), atol=1e-3)
    assert view.spacing_mm[2].tolist() == pytest.approx(spacing, rel=1e-4)
    assert bool((view.affine[:, 0, 2].abs() > 0.05).any())


def test_read_size_by_hand():
    assert read_size(ViewPlan((ViewSpec((96, 96, 96)),))) == (111, 111, 111)
    assert read_size(ViewPlan((ViewSpec((10, 20), (0.5, 2.0)),))) == (19 + 15, 39 + 15)
    local = ViewSpec((64, 64), (1.0, 3.0), nested_in=0)
    assert read_size(ViewPlan((ViewSpec((32, 32)), local))) == (47, 47)
    turned = ViewSpec((11, 11), geometry=Geometry(rotation_degrees=(45.0,)))
    assert read_size(ViewPlan((turned,))) == (np.ceil(2 * 6.5 * 2**0.5 + 1) + 15,) * 2
    thick = ViewSpec((40, 40, 8), geometry=Geometry(rotation_degrees=(10.0,)))
    flat, tall = read_size(ViewPlan((thick,))), read_size(ViewPlan((thick,)), (1.0, 1.0, 8.0))
    assert tall[0] > flat[0]
    assert tall[2] < flat[2]


BAD = {
    "no view": (ViewPlan(()), "at least one view"),
    "axes differ": (ViewPlan((ViewSpec((8, 8)), ViewSpec((8, 8, 8)))), "view 1: size takes"),
    "empty size": (ViewPlan((ViewSpec((8, 0)),)), "view 0: size takes"),
    "scale turned round": (ViewPlan((ViewSpec((8, 8), (1.2, 0.8)),)), "scale takes two positive numbers"),
    "scale of zero": (ViewPlan((ViewSpec((8, 8), (0.0, 0.8)),)), "scale takes two positive numbers"),
    "nested in itself": (ViewPlan((ViewSpec((8, 8), nested_in=0),)), "nested_in takes the number of an earlier view"),
    "angles": (ViewPlan((ViewSpec((8, 8), geometry=Geometry("none", (1.0, 2.0))),)), "rotation_degrees takes 1 number"),
    "two angles": (ViewPlan((ViewSpec((8,) * 3, geometry=Geometry("none", (1.0, 2.0))),)), "takes 1 or 3 numbers"),
    "probability": (ViewPlan((ViewSpec((8, 8), intensity=Intensity(noise=(2.0, 0.1))),)), "intensity.noise takes"),
    "gamma": (ViewPlan((ViewSpec((8, 8), intensity=Intensity(gamma=(0.5, 0.0, 1.0))),)), "intensity.gamma takes"),
}


@pytest.mark.parametrize(("plan", "words"), BAD.values(), ids=BAD)
def test_a_plan_that_cannot_be_is_refused(plan, words):
    with pytest.raises(UserError, match=words):
        read_size(plan)


@pytest.mark.parametrize(
    ("name", "value"),
    [("regions_per_scan", 0), ("stratified_axis", 3), ("slice_axis", -1), ("foreground", 1.5), ("labeled", -0.1)],
)
def test_a_sampling_that_cannot_be_is_refused(name, value):
    with pytest.raises(UserError, match=f"sampling.{name} is out of range: {value}"):
        read_size(ViewPlan((ViewSpec((8, 8, 8)),), Sampling(**{name: value})))


def test_views_and_crops_have_as_many_axes():
    with pytest.raises(UserError, match=r"views have 3 axes .* the crops 2"):
        make_batch(raw_crops(torch.zeros(1, 1, 9, 9)), ViewPlan((ViewSpec((8, 8, 8)),)), seed=0, device="cpu")


def test_crops_smaller_than_a_view_are_centered_and_marked():
    spec = ViewSpec((12, 12, 12), (1.2, 1.2), geometry=Geometry("none"))
    crops = raw_crops(torch.ones(1, 1, 12, 12, 12, dtype=torch.int16), start=[16, 16, 16], source=[99, 99, 99])
    view = make_batch(crops, ViewPlan((spec,)), seed=0, device="cpu").views[0]
    assert view.valid.sum() == 10**3
    assert bool(view.valid[0, 0, 1:-1, 1:-1, 1:-1].all())
