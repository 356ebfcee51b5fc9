"""Quarter turns: exact copies, true affines, every turn as likely, square views only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from views.made import coordinate_image, raw_crops, where_read

from medssl.ops import coordinates
from medssl.types import Geometry, UserError, ViewPlan, ViewSpec
from medssl.views.plan import make_batch, read_size
from medssl.views.resample import covered, is_whole, sample

TURNS = ViewSpec((12, 12), geometry=Geometry(flip="none", quarter_turns=1.0))


def views_of(spec, count=40, size=(30, 26), **more):
    image = coordinate_image(size).expand(count, -1, -1, -1)
    return make_batch(raw_crops(image, **more), ViewPlan((spec,)), seed=1, device="cpu").views[0]


def test_a_view_is_one_of_the_four_turns_of_stored_voxels_and_all_are_as_likely():
    view, counts = views_of(TURNS, 400), [0] * 4
    for image, affine in zip(view.image, view.affine, strict=True):
        assert np.array_equal(image.numpy(), where_read(affine, (12, 12)).numpy())  # voxels hold their own coordinates
        low = image.flatten(1).amin(1).int().tolist()
        upright = coordinate_image((30, 26))[0, :, low[0] : low[0] + 12, low[1] : low[1] + 12].numpy()
        same = [np.array_equal(np.rot90(upright, k, axes=(1, 2)), image.numpy()) for k in range(4)]
        assert sum(same) == 1
        counts[same.index(True)] += 1
    assert min(counts) > 70


def test_flips_and_turns_together_give_all_eight_positions():
    spec = ViewSpec((12, 12), geometry=Geometry(flip="all", quarter_turns=1.0))
    linear = views_of(spec, 400).affine[:, :2, :2]
    assert len({tuple(matrix.flatten().int().tolist()) for matrix in linear}) == 8
    assert bool((linear.det().abs() == 1).all())


def test_the_probability_is_that_of_a_turn():
    spec = ViewSpec((12, 12), geometry=Geometry(flip="none", quarter_turns=0.4))
    turned = views_of(spec, 1000).affine[:, 0, 0] != 1
    assert float(turned.float().mean()) == pytest.approx(0.4 * 3 / 4, abs=0.04)


def test_former_draws_stay():
    still = views_of(ViewSpec((12, 12), (0.7, 1.3), geometry=Geometry("all", (20.0,))))
    turned = views_of(ViewSpec((12, 12), (0.7, 1.3), geometry=Geometry("all", (20.0,), quarter_turns=1.0)))
    center = torch.tensor([5.5, 5.5, 1.0])
    assert torch.allclose(still.affine @ center, turned.affine @ center, atol=1e-4)
    assert torch.allclose(still.affine[:, :2, :2].det().abs(), turned.affine[:, :2, :2].det().abs(), atol=1e-5)


def test_the_affine_is_true_with_scale_and_rotation():
    spec = ViewSpec((12, 12), (0.7, 1.3), geometry=Geometry("all", (20.0,), quarter_turns=1.0))
    size = read_size(ViewPlan((spec,)))
    view = views_of(spec, size=size)
    inside = view.valid.expand(-1, 2, -1, -1)
    read = torch.stack([where_read(affine, (12, 12)) for affine in view.affine]).float()
    assert torch.allclose(view.image[inside], read[inside], atol=1e-3)
    assert bool(view.valid.all())


def test_nested_and_labeled_views_follow():
    plan = ViewPlan((TURNS, ViewSpec((6, 6), nested_in=0, geometry=Geometry(flip="none", quarter_turns=1.0))))
    image = coordinate_image((30, 26)).expand(20, -1, -1, -1)
    labels = image.sum(1, keepdim=True).int()
    batch = make_batch(raw_crops(image, labels=labels), plan, seed=1, device="cpu")
    for view, target in zip(batch.views, batch.targets, strict=True):
        assert torch.equal(view.image.sum(1, keepdim=True).int(), target)
        assert bool((view.image == view.image.round()).all())
    outer, inner = batch.views
    assert bool((inner.image.amin((2, 3)) >= outer.image.amin((2, 3))).all())
    assert bool((inner.image.amax((2, 3)) <= outer.image.amax((2, 3))).all())


@pytest.mark.parametrize("size", [(5, 7), (7, 5)])
def test_copies_that_exchange_axes_are_those_of_numpy(size):
    image = torch.randint(0, 255, (1, 3, 11, 13), dtype=torch.uint8)
    affine = torch.tensor([[[0.0, -1.0, 9.0], [1.0, 0.0, 2.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    assert is_whole(affine[0].numpy())
    expected = image.numpy()[0][:, 9 - size[1] + 1 : 10, 2 : 2 + size[0]][:, ::-1].transpose(0, 2, 1)
    assert np.array_equal(sample(image, affine, size)[0].numpy(), expected)
    assert np.array_equal(sample(image, affine, size, "nearest")[0].numpy(), expected)
    mask, (full,) = covered(
        affine, size, torch.tensor([[4.0, 3.0]]), torch.tensor([[20.0, 20.0]]), device=torch.device("cpu")
    )
    places = where_read(affine[0], size)
    assert np.array_equal(mask[0, 0].numpy(), ((places[0] >= 4) & (places[1] >= 3)).numpy())
    assert not full


def test_what_exchanges_no_whole_axes_is_no_copy():
    for linear in ([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]]):
        assert not is_whole(coordinates.from_parts(torch.tensor([linear]), torch.zeros(1, 2))[0].numpy())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            ViewSpec((12, 8), geometry=Geometry(quarter_turns=0.5)),
            r"a square 2D view, and size is \(12, 8\): set it to 0",
        ),
        (ViewSpec((8, 8, 8), geometry=Geometry(quarter_turns=0.5)), r"quarter_turns needs a square 2D view"),
        (ViewSpec((8, 8), geometry=Geometry(quarter_turns=1.5)), r"geometry\.quarter_turns takes a probability"),
        (
            ViewSpec((8, 8), geometry=Geometry(isotropic=False, quarter_turns=0.5)),
            r"exchanges the axes: set geometry\.isotropic to true",
        ),
    ],
)
def test_other_views_are_refused(spec, words):
    with pytest.raises(UserError, match=words):
        read_size(ViewPlan((spec,)))
