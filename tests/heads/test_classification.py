"""Classification heads: loss against torch, what is ignored, attention, two processes."""

from __future__ import annotations

from dataclasses import replace

import ddp
import numpy as np
import pytest
import torch
from heads.made import image, network, targets
from torch.nn import functional as F

from medssl.heads.base import UNLABELED
from medssl.heads.classification import AttentivePool, Linear, Ordinal
from medssl.types import Features, UserError

HEADS = {"linear": (Linear, {}), "attentive": (AttentivePool, {"attention_heads": 2}), "ordinal": (Ordinal, {})}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_every_image_gets_an_answer_and_every_parameter_a_gradient(name, ndim):
    head, arguments = HEADS[name]
    whole = network(head, ndim, dropout=0.1, **arguments)
    logits = whole(image(ndim, rows=3))
    assert logits.shape == (3, 3)
    whole.head.loss(logits, torch.tensor([0, 2, UNLABELED])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 4.0)])
def test_the_loss_is_torchs_over_what_is_labeled(weights, smoothing):
    head = network(Linear, 2, class_weights=weights, label_smoothing=smoothing).head
    logits, target = torch.randn(20, 3), targets((20,), 3)
    known = target != UNLABELED
    assert 0 < int(known.sum()) < 20
    expected = F.cross_entropy(
        logits[known], target[known], None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    torch.testing.assert_close(head.loss(logits, target), expected)
    dirty = logits.masked_fill(~known[:, None], torch.nan).requires_grad_()
    loss = head.loss(dirty, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert (dirty.grad[~known] == 0).all()
    assert (dirty.grad[known] != 0).all()


def test_a_batch_without_labels_has_no_loss():
    whole = network(AttentivePool, 2)
    loss = whole.head.loss(whole(image(2)), torch.full((2,), UNLABELED))
    loss.backward()
    assert loss.detach() == 0
    assert all((p.grad == 0).all() for p in whole.parameters())


def test_half_precision_is_summed_in_float32():
    whole = network(AttentivePool, 2, class_weights=(1.0, 2.0, 3.0))
    with torch.autocast("cpu", torch.bfloat16):
        logits = whole(image(2))
        loss = whole.head.loss(logits, torch.tensor([0, 1]))
    assert logits.dtype == torch.bfloat16
    assert torch.equal(loss, whole.head.loss(logits.float(), torch.tensor([0, 1])))


def test_attention_is_a_weighted_mean_over_positions():
    """By hand: one head at a time, softmax of query times key, in the order of the formula."""
    whole = network(AttentivePool, 2, attention_heads=3).eval()
    head, features = whole.head, whole.encoder(image(2))
    with torch.no_grad():
        tokens = head.before(features.maps[-1].flatten(2).mT)
        weight, bias = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
        query, key, value = map(F.linear, (head.query, tokens, tokens), weight, bias)
        parts = [
            (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
            for q, k, v in zip(query.chunk(3, -1), key.chunk(3, -1), value.chunk(3, -1), strict=True)
        ]
        found = head.attention.out_proj(torch.cat(parts, -1))[:, 0]
        expected = head.linear(head.after(found))
        torch.testing.assert_close(head(features, (32, 48)), expected)
        # tokens come first where an encoder has them; their order does not matter
        shuffled = features.maps[-1].flatten(2).mT.flip(1)
        torch.testing.assert_close(head(replace(features, maps=(), tokens=shuffled), (32, 48)), expected)


def test_batch_norm_sets_the_scale_of_the_features():
    whole = network(Linear, 2, batch_norm=True)
    features = whole.encoder(image(2, rows=6))
    larger = replace(features, pooled=features.pooled * 1000)
    torch.testing.assert_close(whole.head(features, ()), whole.head(larger, ()), rtol=1e-2, atol=1e-2)
    assert any("running_mean" in key for key in whole.head.state_dict())


@pytest.mark.parametrize(
    ("head", "arguments", "match"),
    [
        (Linear, {"classes": 1}, r"fewer than two classes \(background\): a classification needs at least two"),
        (Linear, {"classes": 0}, r"fewer than two classes \(none\)"),
        (Linear, {"dropout": 1.0}, r"dropout 1\.0: expected a number from 0 to below 1"),
        (AttentivePool, {"label_smoothing": -0.1}, r"label_smoothing -0\.1: expected a number from 0"),
        (Linear, {"class_weights": (1.0, 2.0)}, r"class_weights \[1\.0, 2\.0\]: expected 3 numbers above 0"),
        (Linear, {"class_weights": (1.0, 0.0, 2.0)}, "expected 3 numbers above 0, one for each class"),
        (AttentivePool, {"attention_heads": 5}, "attention_heads 5 does not divide the encoder's 12 channels"),
    ],
)
def test_what_does_not_fit_is_refused(head, arguments, match):
    with pytest.raises(UserError, match=match):
        network(head, 2, **arguments)


# --- two processes

CASES = [
    (Linear, {"batch_norm": True, "class_weights": (1.0, 2.0, 5.0), "label_smoothing": 0.1}),
    (AttentivePool, {"attention_heads": 2}),
]


def loss_and_gradients(number: int, rows: tuple[int, ...]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of some of four images and its gradients, averaged over processes as data parallelism does."""
    head, arguments = CASES[number]
    whole = network(head, 2, **arguments).double()
    index = list(rows)
    loss = whole.head.loss(
        whole(image(2, rows=4).double()[index]), torch.tensor([2, UNLABELED, 0, 1], dtype=torch.int64)[index]
    )
    loss.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    if torch.distributed.is_initialized():
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
            gradient /= torch.distributed.get_world_size()
    return float(loss.detach()), gradients


def on_each_process():
    rows = ((0, 1), (2, 3))[torch.distributed.get_rank()]
    return [loss_and_gradients(number, rows) for number in range(len(CASES))]


@pytest.mark.ddp
def test_two_processes_equal_one():
    """Value and gradient, with unequal counts and weights of labeled images."""
    shared = ddp.run_two(on_each_process)
    for number in range(len(CASES)):
        loss, gradients = loss_and_gradients(number, (0, 1, 2, 3))
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for results in shared:
            assert results[number][0] == pytest.approx(loss, rel=1e-10)
            for name, gradient in gradients.items():
                torch.testing.assert_close(results[number][1][name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=name)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_an_order_is_one_number_and_thresholds(classes):
    """Reference: differences of sigmoids in float64."""
    made = network(Ordinal, 2, classes=classes).double()
    x = image(2, rows=5).double()
    with torch.no_grad():
        found = made(x)
        head = made.head
        steps = torch.nn.functional.softplus(head.steps)
        thresholds = [float(head.lowest) + float(steps[:n].sum()) for n in range(classes - 1)]
        place = (made.encoder(x).pooled @ head.linear.weight.T).flatten().numpy()
    beyond = 1 / (1 + np.exp(-(place[:, None] - np.array(thresholds))))
    bounds = np.concatenate([np.ones((5, 1)), beyond, np.zeros((5, 1))], 1)
    expected = bounds[:, :-1] - bounds[:, 1:]
    np.testing.assert_allclose(found.exp().numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(found.softmax(1).numpy(), expected, atol=1e-9)
    assert thresholds == sorted(thresholds)


def test_an_order_starts_with_equally_likely_classes_and_is_finite_far_away():
    head = network(Ordinal, 2, classes=4).head
    torch.nn.init.zeros_(head.linear.weight)
    features = Features(maps=(), pooled=torch.randn(3, head.linear.in_features))
    assert torch.allclose(head(features, ()).exp(), torch.full((3, 4), 0.25))
    torch.nn.init.ones_(head.linear.weight)
    features = Features(maps=(), pooled=torch.full((2, head.linear.in_features), 1e3) * torch.tensor([[1.0], [-1.0]]))
    answer = head(features, ())
    assert answer.isfinite().all()
    assert answer.argmax(1).tolist() == [3, 0]
    loss = head.loss(answer, torch.tensor([0, 3]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
