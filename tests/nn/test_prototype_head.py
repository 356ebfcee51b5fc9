"""Prototype head: cosines by another road, scale-free, float32 under autocast, gradients that can be held."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medssl.nn.prototype_head import PrototypeHead, Prototypes
from medssl.types import UserError


def head(**arguments):
    torch.manual_seed(0)
    return PrototypeHead(12, 7, **{"hidden": 16, "width": 8} | arguments)


def test_scores_are_cosines_between_the_bottleneck_and_each_prototype():
    module, rows = head(), torch.randn(5, 12)
    first, second, third = module.layers
    hidden = F.gelu(rows @ first.weight.T + first.bias)
    bottleneck = F.gelu(hidden @ second.weight.T + second.bias) @ third.weight.T + third.bias
    want = F.cosine_similarity(bottleneck[:, None], module.prototypes[None], dim=-1)
    torch.testing.assert_close(module(rows), want)
    assert module(rows).abs().max() <= 1 + 1e-6


def test_only_the_direction_of_a_prototype_counts():
    module, rows = head(), torch.randn(5, 12)
    want = module(rows)
    with torch.no_grad():
        module.prototypes.mul_(torch.arange(1.0, 8.0)[:, None])
    torch.testing.assert_close(module(rows), want)
    module(rows).square().sum().backward()
    radial = (module.prototypes.grad * module.prototypes).sum(1)  # no gradient along the prototype itself
    torch.testing.assert_close(radial, torch.zeros(7), rtol=0, atol=1e-5)


def test_held_prototypes_have_a_gradient_of_zero():
    module = head()
    module.hold_prototypes()  # nothing to hold before the first backward pass
    module(torch.randn(5, 12)).square().sum().backward()
    kept = module.layers[0].weight.grad.clone()
    assert module.prototypes.grad.abs().max() > 0
    module.hold_prototypes()
    assert module.prototypes.grad is not None
    assert (module.prototypes.grad == 0).all()
    assert torch.equal(module.layers[0].weight.grad, kept)


def test_scores_are_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head()(torch.randn(5, 12)).dtype == torch.float32


def test_no_row_gives_no_score_and_a_gradient_of_zero():
    module = head()
    scores = module(torch.randn(0, 12))
    assert scores.shape == (0, 7)
    scores.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"hidden": 0}, r"prototypes: channels: must be at least 1 each"),
        ({"width": 0}, r"prototypes: channels: must be at least 1 each"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        head(**arguments)
    with pytest.raises(UserError, match="prototypes: must be at least 2"):
        PrototypeHead(12, 1)


def test_lengths_of_prototypes_scale_their_scores():
    module, rows = head(norm_last_layer=False), torch.randn(5, 12)
    want = head()(rows)
    torch.testing.assert_close(module(rows), want)
    with torch.no_grad():
        module.lengths.copy_(torch.arange(1.0, 8.0))
    torch.testing.assert_close(module(rows), want * torch.arange(1.0, 8.0))
    module(rows).square().sum().backward()
    module.hold_prototypes()
    assert not module.lengths.grad.any()
    assert module.layers[0].weight.grad.any()


def test_a_share_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"prototypes\.frozen: must be from 0 to 1 \(got 1\.5\)"):
        Prototypes(frozen=1.5)
