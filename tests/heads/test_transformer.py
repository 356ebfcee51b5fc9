"""Heads on transformers: every patch leads back to the voxels, every weight learns, what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from heads.made import image, schema, targets, tokens
from objectives.small import SIZES, encoder

from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.heads.base import Network
from medssl.heads.classification import AttentivePool, Linear
from medssl.heads.patch_decoder import PatchDecoder, step_widths
from medssl.heads.segmentation import UNet, VoxelLinear
from medssl.heads.transformer import UNETR, FeaturePyramid
from medssl.nn.token_decoders import LiftedMaps
from medssl.types import UserError

HEADS = [UNETR, FeaturePyramid, PatchDecoder, UNet, VoxelLinear]
PATCHES = [(1, 8, 8), (2, 16, 16), (8, 8, 8), (4, 6, 3), (16, 16), (8, 4), (2, 2)]


def small(patch: tuple[int, ...], **changes) -> ViT:
    torch.manual_seed(0)
    return ViT(**({"patch": patch, "width": 24, "depth": 4} | changes))


def answers(whole: Network, size: tuple[int, ...], rows: int = 1):
    return whole(torch.randn(rows, whole.encoder.in_channels, *size, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_every_patch_leads_back_to_the_voxels(head, patch):
    """On odd numbers of patches too, and one patch on an axis."""
    made = small(patch)
    whole = Network(made, head(made, schema(3))).eval()
    with torch.no_grad():
        for cells in ((3, 2, 1), (1, 2, 3)):
            size = tuple(n * side for n, side in zip(cells, patch, strict=False))
            assert answers(whole, size).shape == (1, 3, *size)


def test_the_decoder_of_primus_uses_the_last_map_alone():
    """Widths by hand: 396 channels to 2 classes in three steps, each a factor of (396 / 4)^(1/3) = 4.63."""
    assert step_widths(396, 2, 3) == [396, 88, 16, 2]
    made = small((8, 8, 8))
    head = PatchDecoder(made, schema(3)).eval()
    assert [step[0].weight.shape[1] for step in head.decode[:-1]] == step_widths(24, 3, 3)[1:-1]
    with torch.no_grad():
        features = made(torch.randn(1, 1, 16, 16, 8))
        before = head(features, (16, 16, 8))
        for number in range(4):
            maps = list(features.maps)
            maps[number] = maps[number] + 1
            assert torch.equal(head(replace(features, maps=tuple(maps)), (16, 16, 8)), before) == (number < 3)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("head", [UNETR, FeaturePyramid])
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_weight_learns(head, ndim, deep):
    torch.manual_seed(0)
    made = tokens(ndim, registers=1, patch=(8, 8, 4)[:ndim])  # three steps
    whole = Network(made, head(made, schema(3), deep_supervision=deep))
    found = whole(image(ndim))
    assert isinstance(found, tuple) == deep
    assert (found[0] if deep else found).shape == (2, 3, *SIZES[ndim])
    whole.head.loss(found, targets((2, *SIZES[ndim]), 3)).backward()
    assert [name for name, p in whole.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [name for name, p in whole.head.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("head", [UNETR, FeaturePyramid])
def test_deep_supervision_answers_at_every_step_but_the_coarsest(head):
    made = small((16, 16))
    whole = Network(made, head(made, schema(2), deep_supervision=True))
    assert [tuple(x.shape[2:]) for x in answers(whole, (32, 48))] == [(32, 48), (16, 24), (8, 12)]
    assert answers(whole.eval(), (32, 48)).shape == (1, 2, 32, 48)


def test_the_maps_that_unetr_lifts():
    """As published for patches of 16: three maps at 2, 4 and 8 voxels, the shallower the finer."""
    lifted = LiftedMaps((768,) * 4, ((16, 16, 16),) * 4, width=16)
    assert lifted.strides == ((2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16))
    assert lifted.channels == (32, 64, 128, 768)
    assert lifted.numbers == (2, 1, 0)
    fine = LiftedMaps((192,) * 4, ((8, 8, 8),) * 4, width=16)
    assert fine.strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    many = LiftedMaps((24,) * 12, ((1, 4, 4),) * 12, width=2)  # more maps than steps: equally spaced ones
    assert many.strides == ((1, 1, 1), (1, 2, 2), (1, 4, 4))
    assert many.numbers == (7, 3)


@pytest.mark.parametrize("head", [UNETR, FeaturePyramid])
def test_the_answer_depends_on_the_maps_that_it_says(head):
    made = small((8, 8))
    whole = Network(made, head(made, schema(2))).eval()
    with torch.no_grad():
        features = made(torch.randn(1, 1, 32, 32))
        before = whole.head(features, (32, 32))
        for number in range(4):
            maps = list(features.maps)
            maps[number] = maps[number] + torch.randn_like(maps[number])
            changed = not torch.equal(whole.head(replace(features, maps=tuple(maps)), (32, 32)), before)
            assert changed == (head is UNETR or number == 3)


def test_the_pyramid_takes_convnets_and_unetr_does_not():
    made = encoder(2)
    whole = Network(made, FeaturePyramid(made, schema(2))).eval()
    assert answers(whole, (16, 24)).shape == (1, 2, 16, 24)
    with pytest.raises(UserError, match=r"UNETR takes encoders with several maps of one stride.*use the head unet"):
        UNETR(made, schema(2))
    with pytest.raises(UserError, match=r"got 1 map\(s\) of strides \[\(8, 8\)\]"):
        UNETR(small((8, 8), depth=1), schema(2))


def test_what_does_not_fit_is_refused():
    made = small((8, 8))
    for head, words in (
        (UNETR, r"UNETR: channels at full resolution: must be at least 1 \(got 0\)"),
        (FeaturePyramid, r"feature pyramid: channels: must be at least 1 \(got 0\)"),
    ):
        with pytest.raises(UserError, match=words):
            head(made, schema(2), channels=0)
        with pytest.raises(UserError, match="a segmentation needs the background"):
            head(made, schema(1))
    made.strides = ((1, 1),) * 4
    for head in (UNETR, FeaturePyramid):
        with pytest.raises(UserError, match="no map is coarser than the image"):
            head(made, schema(2))


@pytest.mark.parametrize("pool", ["mean", "class"])
@pytest.mark.parametrize("head", [AttentivePool, Linear])
def test_heads_for_whole_scans_train_on_tokens(head, pool):
    torch.manual_seed(0)
    made = tokens(3, pool=pool)
    whole = Network(made, head(made, schema(3)))
    whole.head.loss(whole(image(3)), torch.tensor([2, 0])).backward()
    assert [name for name, p in whole.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_attentive_head_looks_at_every_token():
    made = tokens(2).eval()
    head = AttentivePool(made, schema(2)).eval()
    with torch.no_grad():
        features = made(image(2, rows=1))
        before = head(features, (32, 48))
        for number in range(features.tokens.shape[1]):
            changed = features.tokens.clone()
            changed[:, number] = torch.randn(24)
            assert not torch.equal(head(replace(features, tokens=changed), (32, 48)), before)


def test_a_vision_transformer_of_timm_carries_both_heads():
    torch.manual_seed(0)
    made = Timm2d("vit_tiny_patch16_224", in_channels=1)
    for head in (UNETR, FeaturePyramid):
        whole = Network(made, head(made, schema(2))).eval()
        assert answers(whole, (32, 48)).shape == (1, 2, 32, 48)


@pytest.mark.parametrize("head", [UNETR, FeaturePyramid])
def test_half_precision(head):
    torch.manual_seed(0)
    made = tokens(3)
    whole = Network(made, head(made, schema(3), deep_supervision=True))
    with torch.autocast("cpu", torch.bfloat16):
        loss = whole.head.loss(whole(image(3)), targets((2, *SIZES[3]), 3))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in whole.parameters())


@pytest.mark.parametrize("head", [UNETR, FeaturePyramid])
def test_the_network_learns(head):
    torch.manual_seed(0)
    made = small((4, 4))
    whole = Network(made, head(made, schema(2)))
    x = torch.randn(2, 1, 16, 24)
    target = (torch.nn.functional.avg_pool2d(x, 3, 1, 1)[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(whole.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = whole.head.loss(whole(x), target)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
