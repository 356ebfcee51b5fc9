"""The encoder of bags: features that were computed before pass through as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.encoders.base import Encoder
from medssl.ops.limits import expect
from medssl.types import Features, MaskMode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Precomputed(Encoder):
    """Stands in the place of an encoder where a head learns from bags. It has no weights.

    Args:
        in_channels: Number of features of a tile.
        source: Digest of the encoder that computed the features; heads take no others.
    """

    def __init__(self, in_channels: int, source: str = "") -> None:
        super().__init__()
        expect(in_channels >= 1, "encoder.in_channels", in_channels, "at least 1")
        self.in_channels, self.source = in_channels, source
        self.register_buffer("features", torch.tensor(in_channels))  # a file of weights holds something
        self.ndims = frozenset({1})
        self.channels, self.strides = (in_channels,), ((1,),)
        self.mask_modes, self.mask_cell = frozenset(), (1,)
        self.unmasked_because = "features of bags are not hidden"

    def forward(
        self,
        image: Float[Tensor, "B C N"],
        hidden: Bool[Tensor, "B N"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Returns the features as maps and tokens, and their mean over the tiles."""
        image = self.checked(image, hidden, mode)
        return Features((image,), image.mean(2), image.mT)
