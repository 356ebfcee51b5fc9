"""Mixup and cutmix: what is mixed with what, by how much, and the same in every process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.ops.draws import Draws
from medssl.types import UserError
from medssl.views.mixing import Mixing, mix


def batch(ndim=2, rows=3):
    size = (12, 10, 8)[:ndim]
    image = torch.arange(1.0, rows + 1).reshape(-1, 1, *(1,) * ndim).expand(rows, 2, *size).clone()
    return image, torch.arange(rows), torch.arange(rows).reshape(-1, *(1,) * ndim).expand(rows, *size).clone()


@given(st.integers(0, 10_000))
def test_mixup_is_a_weighted_mean_of_images_and_losses(step):
    image, classes, _ = batch()
    mixed = mix(image, classes, Mixing(mixup=0.4), Draws(0, (step,), "mixing"))
    (share, first), (rest, second) = mixed.targets
    assert share + rest == pytest.approx(1)
    assert 0 <= share <= 1
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [2, 0, 1]
    expected = [share * value + rest * other for value, other in ((1, 3), (2, 1), (3, 2))]
    assert mixed.image.amin((1, 2, 3)).tolist() == pytest.approx(expected, rel=1e-5)
    assert mixed.image.amax((1, 2, 3)).tolist() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.sampled_from([2, 3]))
def test_cutmix_moves_a_box_and_counts_its_voxels(step, ndim):
    image, classes, voxels = batch(ndim)
    draws = [Draws(0, (step,), "mixing") for _ in range(2)]
    mixed, segmented = (mix(image, t, Mixing(cutmix=1.0), d) for t, d in zip((classes, voxels), draws, strict=True))
    assert torch.equal(mixed.image, segmented.image)
    (share, _), (rest, _) = mixed.targets
    moved = mixed.image[0, 0] == 3
    assert rest == pytest.approx(float(moved.float().mean()), abs=1e-6)
    assert share + rest == pytest.approx(1)
    for axis in range(ndim):  # a box: along each axis the voxels that hold some of it follow one another
        held = moved.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        assert moved.sum() == 0 or len(held) == held.max() - held.min() + 1
    assert int(moved.sum()) == torch.tensor([
        int(moved.movedim(axis, 0).flatten(1).any(1).sum()) for axis in range(ndim)
    ]).prod()  # fmt: skip
    # voxels keep their own class: the image tells whose they are
    ((whole, target),) = segmented.targets
    assert whole == 1
    assert torch.equal(target + 1, segmented.image[:, 0].long())


def test_findings_of_images_are_mixed_like_classes():
    """[B, K] is no label map: cutmix weighs both rows of findings instead of cutting a box out of them."""
    image, classes, _ = batch()
    findings = torch.tensor([[1, 0, -1], [0, 1, 1], [-1, -1, 0]])
    for mixing in (Mixing(cutmix=1.0), Mixing(mixup=0.4)):
        one, other = (mix(image, target, mixing, Draws(0, (3,), "mixing")) for target in (findings, classes))
        assert [share for share, _ in one.targets] == [share for share, _ in other.targets]
        assert torch.equal(one.targets[0][1], findings)
        assert torch.equal(one.targets[1][1], findings[[2, 0, 1]])


def test_shares_follow_the_beta_distribution():
    image, classes, _ = batch()
    shares = [mix(image, classes, Mixing(mixup=0.2), Draws(0, (step,), "mixing")).targets[0][0] for step in range(1500)]
    exact = torch.distributions.Beta(0.2, 0.2)
    assert torch.tensor(shares).mean() == pytest.approx(0.5, abs=0.04)
    assert torch.tensor(shares).var() == pytest.approx(float(exact.variance), abs=0.015)


def test_both_take_turns_and_a_share_of_the_steps_mixes():
    image, classes, _ = batch()
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for step in range(600):
        mixed = mix(image, classes, Mixing(0.5, 1.0, share=0.5), Draws(0, (step,), "mixing"))
        whole = bool((mixed.image == mixed.image.round()).all())
        counts["none" if len(mixed.targets) == 1 else "cutmix" if whole else "mixup"] += 1
    assert counts["none"] == pytest.approx(300, abs=50)
    assert counts["mixup"] == pytest.approx(150, abs=40)
    assert counts["cutmix"] == pytest.approx(150, abs=40)


def test_nothing_is_mixed_where_nothing_is_wanted_or_one_sample_is_alone():
    image, classes, _ = batch()
    for mixing, rows in ((Mixing(), 3), (Mixing(mixup=1.0, share=0.0), 3), (Mixing(mixup=1.0), 1)):
        mixed = mix(image[:rows], classes[:rows], mixing, Draws(0, (0,), "mixing"))
        assert torch.equal(mixed.image, image[:rows])
        assert [weight for weight, _ in mixed.targets] == [1.0]
    assert not Mixing().enabled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup": -1.0}, r"mixing\.mixup: must be at least 0 \(got -1\.0\)"),
        ({"share": 1.5}, r"mixing\.share: must be from 0 to 1 \(got 1\.5\)"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Mixing(**arguments)
