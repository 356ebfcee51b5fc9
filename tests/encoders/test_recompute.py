"""What is computed again in the backward pass leaves values, gradients, statistics and random draws as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from commands.toys import ToyEncoder, ToyObjective

from medssl.encoders.resenc import ResEnc
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.objectives.simclr import SimCLR
from medssl.training.hardware import refuse_too_large, switch_recompute
from medssl.training.memory import count_activations, step_bytes
from medssl.training.settings import Training
from medssl.types import UserError, ViewSpec


def encoder(name: str):
    torch.manual_seed(0)
    if name == "resenc":
        return ResEnc(ndim=2, channels=(4, 8, 8), blocks=(1, 1, 1), norm="batch", dropout=0.2)
    if name == "vit":
        return ViT(patch=(8, 8), width=64, depth=3, drop_path=0.3)
    return Timm2d(name, in_channels=1, **({"drop_path": 0.3} if "convnext" in name else {}))


NAMES = ("resenc", "vit", "resnet18", "convnext_atto", "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_nothing_but_the_number_of_calls(name):
    plain, again = encoder(name), encoder(name)
    again.recompute = True
    calls = []
    for part in again.parts():
        part.register_forward_pre_hook(lambda *_: calls.append(1))
    mode = next(iter(sorted(plain.mask_modes)), None)
    hidden = torch.arange(4).reshape(1, 2, 2).expand(3, 2, 2) < 2 if mode else None
    image = torch.randn(3, 1, 64, 64)
    if name == "vit":
        hidden = hidden.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for network in (plain, again):
        torch.manual_seed(1)
        network.train()
        features = network(image, hidden, mode)
        (features.pooled.pow(2).sum() + sum(x.pow(2).mean() for x in features.maps)).backward()
    assert len(calls) >= 2 * len(again.parts()) > 2  # again in the backward pass
    for (key, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), key
        assert one.grad is None or torch.equal(one.grad, other.grad), key
    for (key, one), other in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(one, other[1]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_runs_on_its_own_weights(name):
    network = encoder(name).eval()
    network.recompute = True
    image = torch.randn(2, 1, 64, 64)
    network(image).pooled.sum().backward()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(image).pooled, network(image).pooled)
    assert not [name for name, module in network.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("name", ["resenc", "vit", "resnet18"])
def test_less_memory_is_counted(name):
    network = encoder(name)
    every = count_activations(network, (64, 64))
    network.recompute = True
    assert 0 < count_activations(network, (64, 64)) < 0.8 * every


def test_a_part_holds_its_output_and_the_largest_its_inside():
    """By hand: a transformer of 3 equal blocks holds 3 outputs, one whole block and what lies outside."""
    network = ViT(patch=(8, 8), width=64, depth=3)
    every = count_activations(network, (64, 64))
    network.recompute = True
    block = count_activations(ViT(patch=(8, 8), width=64, depth=4), (64, 64)) - every
    tokens = 64 * 64  # 64 tokens of 64 channels
    assert count_activations(network, (64, 64)) == (every - 3 * block) + 3 * tokens + block


def test_both_views_of_a_pair_are_counted():
    network = ResEnc(ndim=2, channels=(4, 8), blocks=(1, 1), norm="instance")
    pair = SimCLR(network, view=ViewSpec((16, 16)), projection=(8, 8))
    assert step_bytes(pair, half=False)[1] == 4 * 2 * count_activations(network, (16, 16))
    network.requires_grad_(False)
    assert step_bytes(pair, half=False)[1] == 4 * count_activations(network, (16, 16))


def test_an_encoder_without_parts_is_refused():
    toy = ToyObjective(ToyEncoder(), view=ViewSpec((8, 8, 8)))
    with pytest.raises(UserError, match=r"training\.recompute: ToyEncoder has no parts .* Set it to false and lower"):
        switch_recompute(toy, Training(recompute=True))
    switch_recompute(toy, Training())
    pair = SimCLR(encoder("resenc"), view=ViewSpec((16, 16)), projection=(8, 8))
    switch_recompute(pair, Training(recompute=True))
    assert pair.encoder.recompute


def test_a_full_memory_proposes_to_recompute(monkeypatch):
    pair = SimCLR(encoder("resenc"), view=ViewSpec((16, 16)), projection=(8, 8))
    fixed, sample = step_bytes(pair, half=False)
    monkeypatch.setattr("medssl.training.hardware.memory_limit", lambda _: float(fixed + 20 * sample))
    with pytest.raises(UserError, match=r"fits \(now 64\); training\.recompute true takes less memory"):
        refuse_too_large(pair, Training(batch_size=64, accelerator="cpu"))
