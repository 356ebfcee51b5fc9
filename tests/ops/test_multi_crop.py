"""Views of two sizes: their order, batches by size, refusals; all pairs of views by loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from views.made import raw_crops

from medssl.ops.assignment import cross_view
from medssl.ops.multi_crop import by_size, multi_crop, pooled_of
from medssl.types import Geometry, UserError, ViewPlan, ViewSpec
from medssl.views.plan import make_batch, read_size

SIZES = {2: ((24, 32), (8, 16)), 3: ((16, 12, 8), (8, 4, 4))}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_plan_gives_two_large_views_and_several_small_ones(ndim):
    large, small = (ViewSpec(size, geometry=Geometry(flip="none")) for size in SIZES[ndim])
    plan = ViewPlan(multi_crop(large, replace(small, kind="local", scale=(0.5, 1.0)), 3))
    crops = raw_crops(torch.randn(2, 1, *read_size(plan)), source=read_size(plan))
    views = make_batch(crops, plan, seed=0, device="cpu").views
    assert [tuple(view.image.shape[2:]) for view in views] == [*SIZES[ndim][:1] * 2, *SIZES[ndim][1:] * 3]
    assert not torch.equal(views[2].affine, views[3].affine)
    batches = by_size(views)
    assert [len(images) for images in batches] == [4, 6]
    assert torch.equal(batches[1][2:4], views[3].image)
    means = pooled_of(lambda images: images.flatten(1).mean(1, keepdim=True), views)
    want = torch.cat([view.image.flatten(1).mean(1) for view in views])
    torch.testing.assert_close(means[:, 0], want)


@pytest.mark.parametrize(
    ("local", "count", "match"),
    [
        (None, 2, r"local_views: there is no local_view to make them of \(got 2\)\. Give local_view, or set"),
        ((8, 8), -1, r"local_views: must be at least 0 \(got -1\)"),
        ((8, 8, 8), 1, r"local_view\.size: has another number of axes than view"),
    ],
)
def test_views_that_cannot_be_are_refused(local, count, match):
    with pytest.raises(UserError, match=match):
        multi_crop(ViewSpec((16, 16)), local and ViewSpec(local), count)


def test_without_local_views_there_are_two():
    assert multi_crop(ViewSpec((8, 8)), None, 0) == multi_crop(ViewSpec((8, 8)), ViewSpec((4, 4)), 0)
    assert len(multi_crop(ViewSpec((8, 8)), None, 0)) == 2


def test_every_view_is_compared_with_the_targets_of_all_others():
    torch.manual_seed(0)
    scores, targets = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64).softmax(-1)
    found = cross_view(scores, targets, 0.5)
    for view in range(4):
        for sample in range(3):
            weights = [math.exp(float(s) / 0.5) for s in scores[view, sample]]
            logs = [math.log(w / sum(weights)) for w in weights]
            want = -sum(
                float(q) * log
                for whole in range(2) if whole != view
                for q, log in zip(targets[whole, sample], logs, strict=True)
            )  # fmt: skip
            assert found[view, sample].item() == pytest.approx(want, rel=1e-12)
