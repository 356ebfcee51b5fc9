"""Every shipped head trains on encoders of both kinds, every shipped encoder carries a U-Net; files give both back."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml
from heads.made import image, schema, targets, tokens
from heads.mil.bags import bags, step
from objectives.small import CONFIGS, encoder

from medssl.encoders.precomputed import Precomputed
from medssl.heads.base import Head, Network
from medssl.heads.segmentation import UNet
from medssl.types import Features, UserError

ENCODERS = sorted((CONFIGS / "encoders").glob("*.yaml"))
FRAGMENTS = sorted((CONFIGS / "heads").glob("*.yaml"))
OF_BAGS = [path for path in FRAGMENTS if "class_path: medssl.heads.mil." in path.read_text()]
HEADS = [path for path in FRAGMENTS if path not in OF_BAGS]
SMALLER = {"convnext_small": "convnext_atto", "resnet50": "resnet18"}  # of one family, with the same strides


def build(path: Path, *leading, **changes):
    """The class of a fragment with its arguments."""
    fragment = yaml.safe_load(path.read_text())
    module, name = fragment["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(*leading, **(fragment["init_args"] | changes))


def tiny(path: Path):
    """The encoder of a fragment with fewer channels and blocks, or a small model of its family."""
    arguments = yaml.safe_load(path.read_text())["init_args"]
    if "model" in arguments:
        return build(path, model=SMALLER.get(arguments["model"], arguments["model"]))
    if "heads" in arguments:
        return build(path, width=24, heads=2, depth=4)
    if "patch" in arguments:
        return build(path, width=32, depth=4)
    stages = len(arguments["channels"])
    return build(path, channels=[4 + 2 * stage for stage in range(stages)], blocks=[1] * stages)


def trains(network: Network, x: torch.Tensor, target: torch.Tensor) -> None:
    """One step: a gradient for every parameter, and a loss that falls on the same batch."""
    torch.manual_seed(0)  # the same dropped paths before and after
    loss = network.head.loss(network(x), target)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-3 * parameter.grad / norm
        torch.manual_seed(0)
        assert network.head.loss(network(x), target) < loss


def test_the_names_that_recipes_use_are_there():
    assert {path.stem for path in HEADS} >= {
        *("unet", "linear", "attentive", "voxel_linear", "unetr", "feature_pyramid", "patch_decoder")
    }


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_every_head_trains_on_a_small_encoder(path, ndim):
    torch.manual_seed(0)
    small = tokens(ndim) if path.stem == "unetr" else encoder(ndim)
    changes = {"attention_heads": 2} if path.stem == "attentive" else {}
    head: Head = build(path, small, schema(1 if path.stem in ("regression", "survival") else 3), **changes)
    x = image(ndim)
    wanted = {
        "segmentation": targets((2, *x.shape[2:]), 3),
        "classification": torch.tensor([2, 0]),
        "multi_label": torch.tensor([[1, 0, -1], [0, -1, 1]]),
        "regression": torch.tensor([0.5, -2.0]),
        "survival": torch.tensor([[0.5, 1.0], [2.0, 0.0]]),
    }
    trains(Network(small, head), x, wanted[head.kind])


@pytest.mark.parametrize("path", OF_BAGS, ids=lambda path: path.stem)
def test_every_head_of_bags_learns_from_them(path):
    torch.manual_seed(0)
    head = build(path, Precomputed(12), schema(2)).eval()
    batch, target = bags((7, 1, 12)), torch.tensor([1, 0, 1])
    first = head.learn(batch, target, step(batch), None)[0]
    first.backward()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.requires_grad:
                parameter -= 1e-2 * parameter.grad
    assert head.learn(batch, target, step(batch), None)[0] < first
    with pytest.raises(UserError, match="Precomputed takes 1D images with 12 channel"):
        Precomputed(12)(torch.zeros(1, 3, 5))
    assert Precomputed(12)(batch.features.mT).tokens.shape == batch.features.shape


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_every_encoder_carries_a_u_net(path, deep):
    """At its own widths on maps without memory, then in small with real numbers."""
    with torch.device("meta"):
        large = build(path)
        head = UNet(large, schema(4), deep_supervision=deep)
        first, *others = large.strides[-1]
        size = (2 * first, *others)  # two positions of the coarsest map: statistics over one would not exist
        sizes = [tuple(n // s for n, s in zip(size, stride, strict=True)) for stride in large.strides]
        maps = tuple(torch.empty(2, c, *s) for c, s in zip(large.channels, sizes, strict=True))
        found = head(Features(maps=maps, pooled=torch.empty(2, large.channels[-1])), size)
    several = deep and len(head.decoder.widths) > 2  # of two steps (patches of 14: 2 x 7) the finest alone is trained
    assert (found[0] if several else found).shape == (2, 4, *size)
    if deep:
        return
    torch.manual_seed(0)
    small = tiny(path)
    assert small.strides == large.strides
    x = torch.randn(2, small.in_channels, *size)
    trains(Network(small, UNet(small, schema(3), convolutions=2)), x, targets((2, *size), 3))
