"""What masked transformers learn in fifteen epochs of synthetic slices: the loss, neighbors and a linear probe."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from commands.small_runs import MARGIN, PARTS, slices
from objectives.organs import learned

from medssl.encoders.vit import ViT
from medssl.objectives.mae import MAE
from medssl.objectives.simmim import SimMIM
from medssl.types import ViewSpec


def parts(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices of 32 x 32 from four parts of a body, which differ in outline, organ and texture."""
    images = slices(count // PARTS, seed)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return images.flatten(0, 1), torch.arange(count) % PARTS


def mae(patch: int) -> MAE:
    small = ViT(patch=(patch, patch), width=96, depth=4)
    return MAE(small, view=ViewSpec(size=(8 * patch, 8 * patch)), decoder_width=96, decoder_depth=2)


def simmim(patch: int) -> SimMIM:
    small = ViT(patch=(patch, patch), width=96, depth=4)
    return SimMIM(small, view=ViewSpec(size=(8 * patch, 8 * patch)))


MISSED = pytest.param(simmim, 2, marks=pytest.mark.xfail(strict=True, reason="gains 3.5 points: 93.6 to 97.1 %"))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "seed"), [*((mae, seed) for seed in range(3)), (simmim, 0), (simmim, 1), MISSED])
def test_the_loss_falls_and_neighbors_gain(make, seed):
    """1875 steps: the loss ends below 0.85, of what a constant costs below 0.9; 20 neighbors gain 5 points."""
    found = learned(partial(make, 4), seed, epochs=15, data=parts)
    assert found.end < 0.85
    assert found.share < 0.9
    assert found.neighbors[1] >= found.neighbors[0] + 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [mae, simmim])
def test_the_loss_falls_on_turned_organs(make, seed):
    """Organs at any angle: the loss falls; that frozen features hardly gain there stands in the docs."""
    assert learned(partial(make, 8), seed, epochs=15).share < 0.85
