"""Encoders whose features are known beforehand."""

from __future__ import annotations

import torch
from commands.fitted import Plain

from medssl.types import Features


class Halves(Plain):
    """Pooled: the brightness of the left and of the right half of the columns."""

    def forward(self, image, hidden=None, mode=None):
        halves = image.tensor_split(2, -1)
        pooled = [half.flatten(2).mean(2) * self.weight for half in halves]
        return Features(maps=(image,), pooled=torch.cat(pooled, 1))


class Broken(Plain):
    """Gives NaN where the image is bright."""

    def forward(self, image, hidden=None, mode=None):
        features = super().forward(image, hidden, mode)
        bright = image.flatten(1).amax(1) > 3
        return Features(features.maps, features.pooled.masked_fill(bright[:, None], torch.nan))


class Shade(Plain):
    """Random weights change what comes out: a twin differs."""

    def __init__(self, ndim: int = 2, in_channels: int = 1) -> None:
        super().__init__(ndim, in_channels)
        self.weight = torch.nn.Parameter(torch.randn(3))

    def forward(self, image, hidden=None, mode=None):
        mean = image.flatten(2).mean(2)
        return Features(maps=(image,), pooled=mean * self.weight)
