"""Classes, targets and small networks for the tests of heads."""

from __future__ import annotations

import torch
from objectives.small import SIZES, encoder

from medssl.encoders.resenc import ResEnc
from medssl.encoders.vit import ViT
from medssl.heads.base import UNLABELED, Head, Network
from medssl.types import LabelSchema

NAMES = ("background", "liver", "tumour", "vessel")


def schema(count: int) -> LabelSchema:
    return LabelSchema("mask", tuple((10 * number, name) for number, name in enumerate(NAMES[:count])))


def network(head: type[Head], ndim: int, *, classes: int = 3, seed: int = 0, **arguments) -> Network:
    """A head on a small encoder: stride 8 in 2D; 4, 4 and 2 in 3D."""
    torch.manual_seed(seed)
    small = encoder(ndim)
    return Network(small, head(small, schema(classes), **arguments))


def deeper(ndim: int) -> ResEnc:
    """One stage more than ``encoder``, so that two scales of its decoder are supervised in 3D, three in 2D."""
    strides = [(1, 1), (2, 2), (2, 2), (2, 2), (1, 2)] if ndim == 2 else [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1)]
    channels, blocks = (6, 8, 10, 12, 14)[: len(strides)], [1] * len(strides)
    return ResEnc(1, ndim=ndim, channels=channels, strides=strides, blocks=blocks, norm="instance")


def tokens(ndim: int, **changes) -> ViT:
    """A small transformer: stride 8 in 2D; 4, 4 and 2 in 3D."""
    return ViT(**({"patch": (8, 8) if ndim == 2 else (4, 4, 2), "width": 24, "depth": 4} | changes))


def image(ndim: int, *, rows: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 1, *SIZES[ndim], generator=torch.Generator().manual_seed(seed))


def targets(shape, classes: int, *, unlabeled: float = 0.3, seed: int = 2) -> torch.Tensor:
    """Class numbers at random, a share of them UNLABELED."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, classes, tuple(shape), generator=generator)
    return torch.where(torch.rand(numbers.shape, generator=generator) < unlabeled, UNLABELED, numbers)
