"""Global and local contrast against the formulas by loops, and the invariants of the paper."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from objectives.contrast import batch_of, by_loops, generator
from objectives.small import SIZES, encoder
from views.made import raw_crops

from medssl.objectives.contract import example_batch
from medssl.objectives.global_local import Cues, GlobalContrast, LocalContrast, Regions
from medssl.ops.regions import nearest_regions, region_corners, rows_at, tracked_points
from medssl.ops.tags import tags
from medssl.types import Geometry, Intensity, Step, UserError, View, ViewPlan, ViewSpec
from medssl.views.plan import make_batch, read_size

STILL = Geometry(flip="none")


def global_contrast(ndim: int = 2, **arguments) -> GlobalContrast:
    torch.manual_seed(0)
    view = arguments.pop("view", ViewSpec(SIZES[ndim]))
    return GlobalContrast(encoder(ndim), view=view, projection=(16, 8), **arguments)


def local_contrast(ndim: int = 2, **arguments) -> LocalContrast:
    torch.manual_seed(0)
    arguments = {"crops": "one"} | arguments
    return LocalContrast(encoder(ndim), view=ViewSpec(SIZES[ndim], geometry=STILL), steps=2, **arguments)


def precise(batch):
    return replace(batch, views=tuple(replace(view, image=view.image.double()) for view in batch.views))


STRATEGIES = {
    "G^R": ({"cues": Cues(parts=3, cross=False), "negatives": "all"}, False, False),
    "G^D-": ({"cues": Cues(parts=3, cross=False), "original": True}, False, True),
    "G^D": ({"cues": Cues(parts=3, cross=True)}, True, True),
    "mixed": ({"cues": Cues(parts=3, cross=True), "negatives": "all"}, True, False),
}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_global_loss_is_the_formula(name, balanced, ndim):
    arguments, cross, by_part = STRATEGIES[name]
    objective = global_contrast(ndim, balanced=balanced, **arguments).double()
    batch, step = batch_of(objective, scans=3)
    batch = precise(batch)
    found = objective(batch, step)
    loss = found.total
    with torch.no_grad():
        z = objective.projection(objective.encoder(torch.cat([view.image for view in batch.views])).pooled)
    rows = [(crop, crop // 3, crop % 3, view) for view in range(len(batch.views)) for crop in range(9)]

    def within(a, b):
        return a[0] == b[0] and a[3] != b[3]

    def across(a, b):
        return cross and a[2:] == b[2:] and a[1] != b[1]

    def either(a, b):
        return within(a, b) or across(a, b)

    def negative(a, b):
        return a[2] != b[2] if by_part else a[0] != b[0]

    kinds = ([within, across] if cross else [within]) if balanced else [either]
    wanted, alike = (
        sum(by_loops(vectors, rows, kind, negative, 0.1) for kind in kinds) / len(kinds)
        for vectors in (z, torch.ones_like(z))
    )
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-10)
    assert float(found.terms["chance"]) == pytest.approx(alike, rel=1e-6)


def test_positives_across_volumes_weigh_as_much_as_those_within_one():
    """As in the published pairs of two volumes (x, x'), (x, y), (y, y'), (x', y'): two of four are across.

    Every volume more adds pairs across, and their total weight stays a half: the slope of the loss with respect to the
    embeddings of a part is that of the two means.
    """
    for volumes in (2, 5):
        objective = global_contrast(cues=Cues(parts=2, cross=True)).double()
        batch, step = batch_of(objective, scans=volumes)
        loss = objective(precise(batch), step)
        one_kind = []
        for cross in (False, True):
            objective.cues, objective.balanced = Cues(parts=2, cross=cross), False
            one_kind.append(objective(precise(batch), step).total.item())
        pairs_within, pairs_across = 1, volumes - 1  # of each anchor
        across = (one_kind[1] * (pairs_within + pairs_across) - one_kind[0] * pairs_within) / pairs_across
        assert loss.total.item() == pytest.approx((one_kind[0] + across) / 2, rel=1e-9)


def test_one_volume_and_one_part():
    """With one volume G^D is G^D-; with one part there is nothing to tell apart, and the loss is exactly 0."""
    values = []
    for cross in (False, True):
        objective = global_contrast(cues=Cues(parts=4, cross=cross))
        batch, step = batch_of(objective, scans=1)
        values.append(float(objective(batch, step).total.detach()))
    assert values[0] == values[1] > 0
    objective = global_contrast(cues=Cues(parts=1, cross=True))
    batch, step = batch_of(objective, scans=3)
    loss = objective(batch, step).total
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in objective.projection.parameters())


def test_the_same_part_of_another_volume_is_no_negative():
    """G^D-: crops of one part, each of another volume, have nothing to be told from; another part is."""
    objective = global_contrast(cues=Cues(parts=2, cross=False))
    batch, step = batch_of(objective, scans=2, names=("a", "b", "c", "d"))

    def loss(along: list[float]) -> float:
        origin = replace(batch.origin, along=torch.tensor(along))
        return float(objective(replace(batch, origin=origin), step).total.detach())

    assert loss([0.25, 0.25, 0.25, 0.25]) == 0
    assert loss([0.25, 0.25, 0.25, 0.75]) > 0


def test_parts_come_from_the_place_along_the_axis():
    objective = global_contrast(cues=Cues(parts=4))
    batch, step = batch_of(objective, scans=2)
    along = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.99, 1.0])
    found = tags(replace(batch, origin=replace(batch.origin, along=along)), step, 4)
    assert found.part[:8].tolist() == [0, 0, 1, 2, 2, 3, 3, 3]
    assert objective.needs.sampling.regions_per_scan == 4
    assert objective.needs.sampling.stratified_axis == 2
    assert objective.needs.sampling.distinct_subjects


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("cross", [False, True])
def test_the_local_loss_is_the_formula(ndim, cross):
    objective = local_contrast(ndim, cues=Cues(parts=2, cross=cross)).double()
    batch, step = batch_of(objective, scans=2)
    batch = precise(batch)
    found = objective(batch, step)
    with torch.no_grad():
        features = objective.encoder.eval()(torch.cat([view.image for view in batch.views]))
        maps = objective.projection(objective.decoder(features.maps)[-1])
    corners = [tuple(corner) for corner in region_corners(maps.shape[2:], 3)]  # places are tested on their own below
    z, rows = [], []
    for row in range(8):
        crop, view = row % 4, batch.views[row // 4]
        strides = [extent // cells for extent, cells in zip(view.image.shape[2:], maps.shape[2:], strict=True)]
        for number, corner in enumerate(corners):
            box = tuple(slice(first, first + 3) for first in corner)
            below = tuple(slice(n * first, n * (first + 3)) for n, first in zip(strides, corner, strict=True))
            usable = (view.valid & view.scored)[(crop, 0, *below)].double().mean() >= 0.5
            z.append(maps[(row, slice(None), *box)].flatten())
            rows.append((crop, crop // 2, crop % 2, row // 4, number, bool(usable)))
    assert 0 < sum(row[5] for row in rows) < len(rows)

    def nearest(number):
        order = sorted(
            (n for n in range(len(corners)) if n != number), key=lambda n: (math.dist(corners[n], corners[number]), n)
        )
        return order[:5]

    def positive(a, b):
        same = a[0] == b[0] and a[3] != b[3]
        return a[5] and b[5] and a[4] == b[4] and (same or (cross and a[2:4] == b[2:4] and a[1] != b[1]))

    def negative(a, b):
        return a[5] and b[5] and a[0] == b[0] and b[4] in nearest(a[4])

    assert float(found.total.detach()) == pytest.approx(
        by_loops(torch.stack(z), rows, positive, negative, 0.1), rel=1e-9
    )
    alike = by_loops(torch.ones(len(rows), 3), rows, positive, negative, 0.1)
    assert float(found.terms["chance"]) == pytest.approx(alike, rel=1e-6)


MOVED = Geometry(flip="safe", rotation_degrees=(15.0,))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_local_loss_of_two_crops_is_the_formula(ndim):
    """Regions by loops over places: the stored place of each voxel, looked up in the map of the other crop."""
    view = ViewSpec(SIZES[ndim], scale=(0.6, 1.0), geometry=MOVED)
    torch.manual_seed(0)
    objective = LocalContrast(encoder(ndim), view=view, steps=2, cues=Cues(parts=2)).double()
    assert objective.needs.views[1].min_overlap == 0.25
    crops = raw_crops(torch.rand(3, 1, *read_size(objective.needs), generator=generator(0)))
    batch = precise(make_batch(crops, objective.needs, seed=3, device="cpu"))
    step = Step(0, 10, 0, batch.origin.samples)
    found = objective(batch, step)
    with torch.no_grad():
        features = objective.encoder.eval()(torch.cat([view.image for view in batch.views]))
        maps = objective.projection(objective.decoder(features.maps)[-1])
    size = torch.tensor(maps.shape[2:])
    stride = torch.tensor(SIZES[ndim]) / size
    corners = region_corners(maps.shape[2:], 3)
    near = nearest_regions(corners, 5)
    z, rows = [], []
    for number, view in enumerate(batch.views):
        for crop in range(3):
            to_view = torch.linalg.inv(view.affine[crop].double()) @ batch.views[0].affine[crop].double()
            usable = torch.nn.functional.interpolate(
                (view.valid & view.scored)[crop : crop + 1].double(), tuple(size), mode="area"
            )[0]
            for region, corner in enumerate(corners):
                values, shares = [], []
                for offset in itertools.product(range(3), repeat=ndim):
                    place = (torch.tensor(corner) + torch.tensor(offset) + 0.5) * stride - 0.5
                    place = (to_view @ torch.cat((place.double(), torch.ones(1))))[:ndim]
                    place = (place + 0.5) / stride - 0.5
                    values.append(interpolated(maps[3 * number + crop], place.clamp(min=0).minimum(size - 1.0)))
                    shares.append(float(interpolated(usable, place)))
                z.append(torch.stack(values, 1).flatten())
                rows.append((crop, number, region, sum(shares) / len(shares) >= 0.5))
    assert 0 < sum(row[3] for row in rows) < len(rows)

    def positive(a, b):
        return a[3] and b[3] and a[0] == b[0] and a[1] != b[1] and a[2] == b[2]

    def negative(a, b):
        return a[3] and b[3] and a[0] == b[0] and a[1] != b[1] and bool(near[a[2], b[2]])

    wanted, alike = (
        by_loops(vectors, rows, positive, negative, 0.1) for vectors in (torch.stack(z), torch.ones(len(rows), 3))
    )
    assert float(found.total.detach()) == pytest.approx(wanted, rel=1e-6)
    assert float(found.terms["chance"]) == pytest.approx(alike, rel=1e-6)


def interpolated(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of a map [C, *s] at a place, by a loop over the corners around it; 0 beyond the map."""
    low = place.floor()
    total = torch.zeros(len(values), dtype=torch.float64)
    for corner in itertools.product((0, 1), repeat=len(place)):
        at = low + torch.tensor(corner)
        weight = (1 - (place - at).abs()).clamp(min=0).prod()
        if all(0 <= n < side for n, side in zip(at.tolist(), values.shape[1:], strict=True)):
            total += weight * values[(slice(None), *at.long().tolist())]
    return total


def share_of_chance(ndim: int, crops: str, steps: int) -> float:
    """Loss of the last quarter of a short training on constant images, as a share of that of equal embeddings."""
    torch.manual_seed(0)
    moved = {"scale": (0.5, 1.0), "geometry": MOVED} if crops == "two" else {"geometry": STILL}
    view = ViewSpec((64, 64) if ndim == 2 else (32, 32, 8), **moved)
    norm = "batch" if ndim == 2 else "instance"
    objective = LocalContrast(encoder(ndim, norm="instance"), view=view, steps=2, crops=crops, norm=norm).train()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    shares = []
    for number in range(steps):
        raw = raw_crops(torch.ones(8, 1, *read_size(objective.needs)))
        batch = make_batch(raw, objective.needs, seed=number, device="cpu")
        constant = torch.ones_like(batch.views[0].image)
        batch = replace(batch, views=tuple(replace(view, image=constant) for view in batch.views))
        loss = objective(batch, Step(number, steps, 0, batch.origin.samples))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        shares.append(float(loss.total.detach() / loss.terms["chance"]))
    share = sum(shares[-steps // 4 :]) / len(shares[-steps // 4 :])
    print(f"{ndim}D, {crops} crops: {share:.3f} of chance")
    return share


@pytest.mark.parametrize(
    ("ndim", "crops", "low", "high"),
    [
        (2, "two", 0.93, 1.1),
        (2, "one", 0.0, 0.3),
        pytest.param(3, "two", 0.93, 1.1, marks=pytest.mark.slow),
        pytest.param(3, "one", 0.0, 0.3, marks=pytest.mark.slow),
    ],
)
def test_a_network_that_knows_padding_alone_is_at_chance(ndim, crops, low, high):
    """Constant images: nothing but the padding of the convolutions distinguishes regions.

    60 steps solve the task of one crop. With two crops the loss is that of equal embeddings.
    """
    assert low <= share_of_chance(ndim, crops, steps=60) <= high


def with_usable(batch, *, valid=True, scored=True):
    """The batch with every voxel of every view valid and scored, or not."""
    views = [
        replace(v, valid=torch.full_like(v.valid, valid), scored=torch.full_like(v.scored, scored)) for v in batch.views
    ]
    return replace(batch, views=tuple(views))


@pytest.mark.parametrize("which", ["valid", "scored"])
@pytest.mark.parametrize("cross", [False, True])
def test_a_batch_of_padding_costs_nothing(which, cross):
    objective = local_contrast(cues=Cues(parts=2, cross=cross))
    batch, step = batch_of(objective, scans=2)
    loss = objective(with_usable(batch, **{which: False}), step)
    loss.total.backward()
    assert float(loss.total.detach()) == float(loss.terms["chance"]) == 0
    assert all(bool(term.isfinite()) for term in loss.terms.values())
    gradients = [p.grad for p in objective.parameters() if p.requires_grad]
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients)
    whole = objective(with_usable(batch), step)
    assert float(whole.total.detach()) > 0


def test_views_much_larger_than_their_scans_are_refused():
    objective = local_contrast()
    batch, step = batch_of(objective, scans=2)
    batch = with_usable(batch)
    for view in batch.views:
        view.valid[:, :, 20:] = False
        view.valid[..., 30:] = False
    small = tuple(
        replace(view, source_shape=torch.tensor((20, 30)).expand(len(view.image), -1)) for view in batch.views
    )
    assert objective(replace(batch, views=small), step).total > 0  # some regions are inside
    for view in batch.views:
        view.valid[:, :, 2:] = False
    message = (
        "every region is mostly padding: views have [32, 48] voxels, the largest scan of this batch [20, 30]: make the "
        "objective's view.size smaller"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        objective(replace(batch, views=small), step)


@pytest.mark.parametrize(("places", "takes_part"), [(slice(0, 3), False), (slice(3, None), True)])
def test_regions_mostly_in_padding_take_no_part(places, takes_part):
    """Their features may be anything; those of regions inside may not."""
    objective = local_contrast().eval()
    batch, step = batch_of(objective, scans=2)
    batch = with_usable(batch)
    for view in batch.views:
        view.valid[:, :, :, :4] = False  # 2 columns of the map: 2/3 of the first regions, nothing of the others
    before = objective(batch, step).total
    shift = torch.zeros(1, 8, 16, 24)
    shift[..., places] = torch.randn(shift[..., places].shape, generator=generator(0))
    objective.projection.register_forward_hook(lambda *call: call[2] + shift)
    assert torch.equal(before, objective(batch, step).total) != takes_part


def test_constant_maps_cost_the_logarithm_of_the_regions():
    objective = local_contrast()
    for parameter in objective.projection.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(objective.projection.layers[-1].bias)
    batch, step = batch_of(objective, scans=2)
    loss = objective(with_usable(batch), step)
    assert float(loss.total.detach()) == pytest.approx(math.log(11))
    assert float(loss.terms["chance"]) == pytest.approx(math.log(11))
    assert float(loss.terms["alignment"]) == pytest.approx(0, abs=1e-6)


def test_swapping_the_views_changes_nothing():
    objective = local_contrast()
    batch, step = batch_of(objective, scans=2)
    swapped = replace(batch, views=batch.views[::-1])
    assert float(objective(batch, step).total.detach()) == pytest.approx(
        float(objective(swapped, step).total.detach()), rel=1e-5
    )


def test_the_encoder_stays_as_it_is_bit_for_bit():
    objective = local_contrast().train()  # its encoder has batch norms
    before = {name: value.clone() for name, value in objective.encoder.state_dict().items()}
    batch, step = batch_of(objective, scans=2)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        objective(batch, step).total.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in objective.encoder.state_dict().items())
    assert set(objective.exported()) == {"encoder", "decoder"}


def test_thirteen_regions_that_fit_and_their_neighbors():
    corners = region_corners((24, 20), 3)
    assert len(corners) == len(set(corners)) == 13
    assert {(0, 0), (0, 17), (21, 0), (21, 17), (10, 8)} <= set(corners)
    assert all(0 <= u <= 21 and 0 <= v <= 17 for u, v in corners)
    assert len(region_corners((12, 12, 12), 3)) == 27 + 8
    near = nearest_regions(corners, 5)
    assert near.sum(1).tolist() == [5] * 13
    assert not near.diagonal().any()


def views_of(linear: tuple[float, float], offset: tuple[float, float] = (0, 0)) -> list[View]:
    """Two views of 32 x 48 voxels; the second scales, mirrors and moves the first."""
    batch, _ = example_batch(ViewPlan((ViewSpec((32, 48)),)), 1, scans=1)
    view = batch.views[0]
    matrix = torch.tensor([[linear[0], 0, offset[0]], [0, linear[1], offset[1]], [0, 0, 1]], dtype=torch.float32)[None]
    return [view, replace(view, affine=matrix)]


def test_regions_of_the_same_view_are_its_voxels():
    maps = torch.arange(16 * 24).reshape(1, 1, 16, 24).double()
    points = tracked_points(views_of((1, 1)), [(2, 4)], 3, (16, 24))
    for of_view in points:
        rows = rows_at(maps, of_view)[0, 0]
        assert rows.tolist() == pytest.approx([52, 53, 54, 76, 77, 78, 100, 101, 102])


@pytest.mark.parametrize(("linear", "offset"), [((1, 1), (4, -4)), ((0.5, 0.5), (10, 8)), ((-1, 1), (31, 3))])
def test_regions_are_tracked_to_the_other_view(linear, offset):
    """A map whose values are stored places shows, in both views, the stored places of the regions."""
    views, size = views_of(linear, offset), (16, 24)
    places = []
    for view in views:  # stored place of each voxel of the map, by loops
        rows = [[2 * y + 0.5, 2 * x + 0.5, 1.0] for y in range(16) for x in range(24)]
        stored = torch.tensor(rows, dtype=torch.float64) @ view.affine[0].double().T
        places.append(stored[:, :2].T.reshape(1, 2, *size))
    corners = [(6, 10), (7, 9)]
    own, other = tracked_points(views, corners, 3, size)
    shown = ((other >= 0) & (other <= torch.tensor(size) - 1)).all(-1)
    assert shown.any()
    wanted, found = (rows_at(maps, points).view(1, 2, 2, 9) for maps, points in zip(places, (own, other), strict=True))
    torch.testing.assert_close(found.mT[shown], wanted.mT[shown])


def test_both_views_are_the_same_crop():
    objective = local_contrast()
    crops = raw_crops(torch.rand(4, 1, 64, 80, generator=generator(0)))
    batch = make_batch(crops, objective.needs, seed=3, device="cpu")
    assert torch.equal(batch.views[0].affine, batch.views[1].affine)
    assert torch.equal(batch.views[0].image, batch.views[1].image)


BAD = [
    (
        {"view": ViewSpec((32, 48)), "crops": "one"},
        r"geometry must be flip none.*got safe, \[0\.0\] and \[1\.0, 1\.0\]",
    ),
    (
        {"view": ViewSpec((32, 48), scale=(0.8, 1.0), geometry=STILL), "crops": "one"},
        r"got none, \[0\.0\] and \[0\.8, 1\.0\]",
    ),
    ({"view": ViewSpec((32, 48)), "crops": "three"}, r"objective\.crops: .*got 'three'; expected two or one"),
    (
        {"view": ViewSpec((32, 48)), "cues": Cues(cross=True)},
        r"objective\.crops: regions of other volumes are compared by their place .*expected one, or cues\.cross false",
    ),
    ({"view": ViewSpec((32, 48), geometry=STILL), "steps": 9}, r"9 steps: expected 1 to 3, which leads to full"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LocalContrast(encoder(2), **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"side": 0}, r"regions.side: must be at least 1 \(got 0\)"),
        ({"side": -1}, r"regions.side: must be at least 1 \(got -1\)"),
        ({"nearest": 0}, r"regions.nearest: must be at least 1 \(got 0\)"),
        ({"nearest": -2}, r"regions.nearest: must be at least 1 \(got -2\)"),
    ],
)
def test_regions_need_voxels_and_neighbors(arguments, match):
    with pytest.raises(UserError, match=match):
        Regions(**arguments)


def test_a_map_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=r"the decoder's map has \(16, 24\) voxels, too few for regions of 13"):
        local_contrast(regions=Regions(side=13))


def test_regions_of_a_thin_slab_lie_in_its_middle():
    corners = region_corners((20, 28, 5), 3)
    assert len(corners) == len(set(corners)) == 13
    assert {corner[2] for corner in corners} == {1}
    assert len(region_corners((20, 28, 7), 3)) == 35


@pytest.mark.parametrize(("axis", "refused"), [(0, True), (1, True), (2, False)])
def test_slabs_want_whole_volumes_but_along_their_axis(axis, refused):
    objective = local_contrast(3, cues=Cues(parts=4, axis=2, cross=True))
    batch, step = batch_of(objective, scans=2)
    more = torch.eye(3, dtype=torch.long)[axis]
    batch = replace(batch, views=tuple(replace(view, source_shape=view.source_shape + more) for view in batch.views))
    if not refused:
        objective(batch, step)
        return
    with pytest.raises(UserError, match=r"^cues\.cross compares regions of different volumes by their place in"):
        objective(batch, step)


def test_the_global_projection_has_no_norm():
    assert len(global_contrast().projection.norms) == 0


@pytest.mark.parametrize(
    "made",
    [
        lambda: global_contrast(cues=Cues(parts=4, cross=False)),
        lambda: global_contrast(cues=Cues(parts=4, cross=True), negatives="all"),
        lambda: local_contrast(cues=Cues(parts=4, cross=True)),
    ],
    ids=["G^D-", "mixed", "L^D"],
)
@pytest.mark.parametrize("flat", [1, 2])
def test_volumes_whose_crops_all_lie_in_one_part_are_refused(made, flat):
    objective = made()
    batch, step = batch_of(objective, scans=2)
    objective(batch, step)
    along = batch.origin.along.clone()
    along[: 4 * flat] = 0.4
    message = (
        "all crops of a volume lie in the same of its 4 parts: volumes need 4 voxels or more along axis 2, which flat "
        "images lack; choose the objective's cues.parts and cues.axis, or other scans"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        objective(replace(batch, origin=replace(batch.origin, along=along)), step)


def test_flat_images_are_told_apart_where_their_place_says_nothing():
    for objective in (global_contrast(cues=Cues(parts=4), negatives="all"), local_contrast(cues=Cues(parts=4))):
        batch, step = batch_of(objective, scans=2)
        origin = replace(batch.origin, along=torch.full((len(step.samples),), 0.4))
        assert objective(replace(batch, origin=origin), step).total > 0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("cross", [False, True])
def test_where_volumes_are_compared_by_place_small_scans_lie_in_the_middle(ndim, cross):
    objective = local_contrast(ndim, cues=Cues(parts=2, axis=2, cross=cross))
    size = objective.needs.views[0].size
    flat = [axis for axis in range(ndim) if axis != 2]
    read = read_size(objective.needs)
    places = set()
    for inside in (1, 6, 11):
        shape = torch.tensor([side - inside if axis in flat else 20 for axis, side in enumerate(size)])
        crops = raw_crops(torch.zeros(40, 1, *read))
        start = -((torch.tensor(read) - shape) // 2)
        placement = replace(crops.placement, start=start.expand(40, -1), source_shape=shape.expand(40, -1))
        origin = replace(crops.origin, along=torch.tensor([0.25, 0.75] * 20))
        batch = make_batch(replace(crops, placement=placement, origin=origin), objective.needs, seed=3, device="cpu")
        for view in batch.views:
            before = -view.affine[:, flat, -1]  # voxels of the view before the scan's first
            after = torch.tensor([size[axis] for axis in flat]) - shape[flat] - before
            assert (before >= 0).all()
            assert (after >= 0).all()
            places |= {(inside, int(place)) for place in before.flatten()}
            if cross:
                assert ((before - after).abs() <= 1).all()
    assert len(places) == 3 if cross else len(places) > 10


def test_the_original_is_plain_and_shows_the_most():
    view = ViewSpec(
        size=(32, 48), scale=(0.6, 1.7), geometry=Geometry(flip="all", rotation_degrees=(20.0,)),
        intensity=Intensity(noise=(1.0, 0.3), gamma=(1.0, 0.5, 2.0)),
    )  # fmt: skip
    *changed, original = global_contrast(view=view, original=True).needs.views
    assert changed == [view, view]
    assert original == ViewSpec(size=(32, 48), scale=(1.7, 1.7), geometry=Geometry(flip="none"))


def test_regions_of_different_volumes_want_whole_slices():
    objective = local_contrast(cues=Cues(parts=4, cross=True))
    batch, step = batch_of(objective, scans=2)
    objective(batch, step)
    larger = tuple(replace(view, source_shape=view.source_shape + 1) for view in batch.views)
    with pytest.raises(UserError, match=r"which must hold whole slices: .* the largest scan of this batch \[33, 49\]"):
        objective(replace(batch, views=larger), step)
