"""The contract of every encoder: an image in, Features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

from medssl.types import Features, MaskMode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Encoder(nn.Module, ABC):
    """An image encoder that describes itself, so that no other room looks inside.

    Attributes:
        ndims: Numbers of spatial axes that this instance accepts, {2} or {3}.
        in_channels: Channels of the image.
        channels: Channels of each map, fine to coarse.
        strides: Total stride of each map per axis, fine to coarse.
        mask_modes: How cells can be hidden.
        mask_cell: Recommended size in voxels per axis of one cell of the mask.
    """

    ndims: frozenset[int]
    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    mask_modes: frozenset[MaskMode]
    mask_cell: tuple[int, ...]

    @abstractmethod
    def forward(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image; cells where ``hidden`` is True have no influence on any value that is returned."""
