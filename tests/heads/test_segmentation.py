"""The U-Net head: shapes on every encoder; its loss against NumPy and MONAI, what is ignored, two processes."""

from __future__ import annotations

import copy
from dataclasses import replace

import ddp
import numpy as np
import pytest
import torch
from heads.made import image, network, schema, targets
from objectives.small import SIZES, encoder

from medssl.heads.base import UNLABELED
from medssl.heads.segmentation import UNet, VoxelLinear, coarser, dice_loss
from medssl.types import UserError


def reference(logits: np.ndarray, target: np.ndarray, *, batch_dice: bool) -> float:
    """Dice loss and cross-entropy by loops over samples and classes, in float64."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    entropies, per_class = [], {}
    for p, t in zip(probabilities, target, strict=True):
        known = t != UNLABELED
        for number in range(p.shape[0]):
            entropies += list(-np.log(p[number][known & (t == number)]))
            if number and known.any():
                sums = np.array([2 * p[number][t == number].sum(), p[number][known].sum() + (t == number).sum()])
                per_class.setdefault(number, []).append(sums)
    dice = [1 - (a + 1e-5) / (b + 1e-5) for sums in per_class.values() for a, b in (
        [np.sum(sums, 0)] if batch_dice else sums
    )]  # fmt: skip
    return float(np.mean(entropies) + np.mean(dice))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_that_of_numpy(ndim, batch_dice):
    head = network(UNet, ndim, batch_dice=batch_dice).head
    logits = 3 * torch.randn(3, 3, *SIZES[ndim])
    target = targets((3, *SIZES[ndim]), 3)
    target[1] = UNLABELED  # a sample without any label
    target[2][target[2] == 2] = 0  # a class that one sample lacks
    expected = reference(logits.double().numpy(), target.numpy(), batch_dice=batch_dice)
    assert float(head.loss(logits, target)) == pytest.approx(expected, rel=1e-5)
    assert float(head.loss(logits.double(), target)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0)])
def test_the_loss_is_monais_where_nothing_is_ignored(weights, batch_dice):
    from monai.losses import DiceCELoss

    head = network(UNet, 2, classes=4, batch_dice=batch_dice, loss_weights=weights).head
    logits, target = 2 * torch.randn(3, 4, 16, 12), targets((3, 16, 12), 3, unlabeled=0.0)  # class 3 is absent
    theirs = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=batch_dice, lambda_dice=weights[0],
        lambda_ce=weights[1],
    )(logits, target[:, None])  # fmt: skip
    assert float(head.loss(logits, target)) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_no_gradient_flows_to_voxels_without_a_label(batch_dice, deep):
    head = network(UNet, 2, deep_supervision=deep, batch_dice=batch_dice).head
    target = targets((2, 16, 16), 3)
    leaves = [torch.randn(2, 3, side, side) for side in ((16, 8) if deep else (16,))]
    unknown = [(coarser(target, leaf.shape[2:]) == UNLABELED)[:, None].expand_as(leaf) for leaf in leaves]
    clean = [leaf.clone().requires_grad_() for leaf in leaves]
    loss = head.loss(tuple(clean), target)
    loss.backward()
    for leaf, away in zip(clean, unknown, strict=True):
        assert away.any()
        assert (leaf.grad[away] == 0).all()
        assert (leaf.grad[~away] != 0).all()
    # nor does what the network says there matter, were it not a number
    strange = [x.masked_fill(away, torch.nan).requires_grad_() for x, away in zip(leaves, unknown, strict=True)]
    same = head.loss(tuple(strange), target)
    same.backward()
    assert torch.equal(same, loss)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(strange, clean, strict=True))


@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_batch_without_labels_has_no_loss(batch_dice):
    whole = network(UNet, 3, deep_supervision=True, batch_dice=batch_dice)
    target = torch.full((2, *SIZES[3]), UNLABELED)
    loss = whole.head.loss(whole(image(3)), target)
    loss.backward()
    assert loss.detach() == 0
    assert all((p.grad == 0).all() for p in whole.parameters())


def test_absent_classes_give_finite_gradients():
    whole = network(UNet, 2, classes=4)
    loss = whole.head.loss(whole(image(2)), torch.zeros(2, *SIZES[2], dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in whole.parameters())


def test_a_perfect_answer_has_no_loss():
    target = targets((2, 8, 8), 3)
    logits = 60.0 * torch.nn.functional.one_hot(target.clamp(min=0), 3).movedim(-1, 1)
    assert float(network(UNet, 2).head.loss(logits, target)) == pytest.approx(0, abs=1e-6)
    wrong = logits.roll(1, 1).softmax(1).masked_fill((target == UNLABELED)[:, None], 0)
    assert float(dice_loss(wrong, target)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_voxel_gets_an_answer(ndim, norm):
    whole = network(UNet, ndim, norm=norm, convolutions=2)
    logits = whole(image(ndim))
    assert logits.shape == (2, 3, *SIZES[ndim])
    whole.head.loss(logits, targets(logits[:, 0].shape, 3)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())


def test_deep_supervision_answers_at_every_step_but_the_coarsest():
    torch.manual_seed(0)
    thick = encoder(3)
    assert thick.strides == ((1, 1, 1), (2, 2, 1), (4, 4, 2))
    whole = network(UNet, 2, deep_supervision=True)  # three steps
    shapes = [tuple(x.shape) for x in whole(image(2))]
    assert shapes == [(2, 3, 32, 48), (2, 3, 16, 24)]
    assert isinstance(network(UNet, 3, deep_supervision=True)(image(3)), torch.Tensor)  # two steps: one is left
    assert whole.eval()(image(2)).shape == (2, 3, 32, 48)


def test_the_weights_of_deep_supervision_halve_and_sum_to_one():
    head = network(UNet, 2, deep_supervision=True).head
    target = targets((2, 16, 16), 3)
    levels = tuple(torch.randn(2, 3, side, side) for side in (16, 8, 4))
    alone = [float(head.loss(level, coarser(target, level.shape[2:]))) for level in levels]
    assert float(head.loss(levels, target)) == pytest.approx((4 * alone[0] + 2 * alone[1] + alone[2]) / 7)


def test_coarser_targets_are_voxels_of_the_finer():
    target = torch.arange(48).reshape(1, 6, 8)
    assert torch.equal(coarser(target, (6, 4))[0], target[0][:, 1::2])
    assert torch.equal(coarser(target, (2, 8))[0], target[0][1::3])
    assert coarser(target, (6, 8)) is target
    assert set(coarser(torch.full((1, 4, 4), UNLABELED), (2, 2)).flatten().tolist()) == {UNLABELED}


def test_half_precision_is_summed_in_float32():
    whole = network(UNet, 3, deep_supervision=True)
    x, target = image(3), targets((2, *SIZES[3]), 3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = whole(x)
        loss = whole.head.loss(logits, target)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, whole.head.loss(logits.float(), target))
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in whole.parameters())


def test_the_network_learns():
    whole = network(UNet, 2)
    x = image(2)
    target = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    optimizer = torch.optim.AdamW(whole.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = whole.head.loss(whole(x), target)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"classes": 1}, r'"mask" has fewer than two classes \(background\): a segmentation needs the background'),
        ({"loss_weights": (-1.0, 1.0)}, r"loss_weights \[-1\.0, 1\.0\]: expected two numbers from 0 up"),
        ({"loss_weights": (0.0, 0.0)}, "one of them above 0"),
        ({"channels": [4]}, r"channels \[4\] with 1 convolutions: expected 3 numbers"),
        ({"norm": "weight"}, 'norm "weight" is unknown'),
    ],
)
def test_what_does_not_fit_is_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        network(UNet, 2, **arguments)


def test_an_encoder_that_lies_about_its_strides_is_found_out():
    whole = network(UNet, 2)
    with pytest.raises(ValueError, match=r"the decoder leads to \(32, 48\), the image has \(64, 48\)"):
        whole.head(whole.encoder(image(2)), (64, 48))


def test_features_without_other_maps_still_work():
    """One coarse map alone, as of a transformer."""
    whole = network(UNet, 2)
    small = copy.copy(whole.encoder)
    small.channels, small.strides = small.channels[-1:], small.strides[-1:]
    head = UNet(small, schema(2))
    features = whole.encoder(image(2))
    assert head(replace(features, maps=features.maps[-1:]), SIZES[2]).shape == (2, 2, *SIZES[2])


# --- two processes


def loss_and_gradients(ndim: int, rows: tuple[int, ...], arguments: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of some of four samples and its gradients, averaged over processes as data parallelism does."""
    whole = network(UNet, ndim, **arguments).double()
    x, target = image(ndim, rows=4).double(), targets((4, *SIZES[ndim]), 3, unlabeled=0.3)
    target[0, : SIZES[ndim][0] // 2] = UNLABELED
    target[3] = UNLABELED
    index = list(rows)
    loss = whole.head.loss(whole(x[index]), target[index])
    loss.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    if torch.distributed.is_initialized():
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
            gradient /= torch.distributed.get_world_size()
    return float(loss.detach()), gradients


CONFIGURATIONS = [
    (ndim, {"batch_dice": batch_dice, "deep_supervision": ndim == 2, "norm": "batch"})
    for ndim in (2, 3)
    for batch_dice in (False, True)
]


def on_each_process():
    rows = ((0, 1), (2, 3))[torch.distributed.get_rank()]
    return [loss_and_gradients(ndim, rows, arguments) for ndim, arguments in CONFIGURATIONS]


@pytest.mark.ddp
def test_two_processes_equal_one():
    """Value and gradient, with unequal counts of labeled voxels and samples, and batch norms in the decoder."""
    shared = ddp.run_two(on_each_process)
    for number, (ndim, arguments) in enumerate(CONFIGURATIONS):
        loss, gradients = loss_and_gradients(ndim, (0, 1, 2, 3), arguments)
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for results in shared:
            assert results[number][0] == pytest.approx(loss, rel=1e-10)
            for name, gradient in gradients.items():
                torch.testing.assert_close(results[number][1][name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=name)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_linear_probe_is_a_linear_map_of_standardized_maps(ndim):
    made = network(VoxelLinear, ndim)
    x = image(ndim)
    with torch.no_grad():
        features, found = made.encoder(x), made(x)  # training: statistics of this batch
        columns = []
        for x_level in features.maps:
            axes = (0, *range(2, x_level.ndim))
            mean, spread = x_level.mean(axes, keepdim=True), x_level.std(axes, keepdim=True, unbiased=False)
            level = (x_level - mean) / (spread**2 + 1e-5).sqrt()
            size, mode = x.shape[2:], "trilinear" if ndim == 3 else "bilinear"
            columns.append(torch.nn.functional.interpolate(level, size, mode=mode))
        weights = torch.cat([p.weight.flatten(1) for p in made.head.projections], 1)
        expected = torch.einsum("kc,bc...->bk...", weights, torch.cat(columns, 1))
        expected += made.head.projections[0].bias.reshape(-1, *(1,) * ndim)
    assert torch.allclose(found, expected, atol=1e-5)
    assert sum(p.numel() for p in made.head.parameters()) == 3 * (sum(made.encoder.channels) + 1)


def test_the_linear_probe_asks_for_classes():
    with pytest.raises(UserError, match="a segmentation needs the background and at least one class more"):
        network(VoxelLinear, 2, classes=1)
