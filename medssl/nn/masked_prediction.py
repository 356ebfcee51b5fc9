"""From what an encoder makes of a masked image: the voxels of the image, and a feature vector at every position.

Both forms have one interface, for objectives that work with transformers and with ConvNets: ``forward(features, hidden,
size)`` returns the image as predicted, and a map at the encoder's stride that is filled at hidden positions, too.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import nn

from medssl.nn.decoders import Densify, LightDecoder, NormName, norm_layers, upsampling_path
from medssl.ops.patches import unpatchify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.types import Features

Predicted = tuple["Float[Tensor, 'B C *s']", "Float[Tensor, 'B D *cells']"]
ROUNDS = 3  # 3-wide convolutions that carry features to hidden positions: as many positions far


class FromTokens(nn.Module):
    """For encoders with the mask mode "fill": one linear layer from each position to its voxels, as in SimMIM.

    The map is the encoder's last one, which is filled already.

    Args:
        channels: Channels of the last map.
        patch: Its stride per axis, in voxels.
        image_channels: Channels of the image.
    """

    def __init__(self, channels: int, patch: Sequence[int], *, image_channels: int) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.predict = nn.Linear(channels, image_channels * prod(self.patch))
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)

    def forward(self, features: Features, hidden: Bool[Tensor, "B *cells"], size: Sequence[int]) -> Predicted:
        """Predicts every patch from its own feature vector."""
        del hidden
        filled = features.maps[-1]
        return unpatchify(self.predict(filled.flatten(2).mT), self.patch, size=size), filled


class FromSparseMaps(nn.Module):
    """For encoders with the mask mode "sparse": learned tokens at hidden positions and a light decoder, as in SparK.

    The map is the coarsest one with tokens at hidden positions, after three 3-wide residual convolutions that carry
    there what lies around, and a 1-wide convolution to the encoder's channels.

    Args:
        channels: Channels of the encoder's maps, fine to coarse.
        strides: Total stride of every map per axis, fine to coarse.
        image_channels: Channels of the image.
        width: Channels of the decoder at the coarsest map; None takes 48 (2D) or 16 (3D) at the last step, doubled for
            each step before it.
        fill: False leaves those convolutions out, for who predicts voxels alone: the map is the coarsest with tokens.
        first: Number of the finest map that the decoder gets, from 0.

    Raises:
        UserError: ``width`` cannot be halved as often as there are steps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        *,
        image_channels: int,
        width: int | None = None,
        fill: bool = True,
        first: int = 0,
    ) -> None:
        super().__init__()
        ndim = len(strides[-1])
        norm: NormName = "instance" if ndim == 3 else "batch"
        path = upsampling_path(strides, first=first)
        width = (16 if ndim == 3 else 48) * 2 ** (len(path) - 1) if width is None else width
        factors = [factor for factor, _ in path]
        self.decoder = LightDecoder(width, factors, out_channels=image_channels, norm=norm)
        entering = [(number, width) for (_, number), width in zip(path, self.decoder.widths, strict=True)]
        self.densify = Densify(channels, entering, norm=norm, ndim=ndim)
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        rounds = ROUNDS if fill else 0
        self.norms = norm_layers(norm, [width] * rounds, ndim=ndim)
        self.convolutions = nn.ModuleList(convolution(width, width, 3, padding=1) for _ in range(rounds))
        self.activation = nn.GELU()
        self.project = convolution(width, channels[-1], 1) if fill else nn.Identity()

    def forward(self, features: Features, hidden: Bool[Tensor, "B *cells"], size: Sequence[int]) -> Predicted:
        """Fills the maps, decodes them, and carries features to hidden positions of the coarsest."""
        del size
        dense = self.densify(features.maps, hidden)
        x = dense[0]
        assert x is not None  # a map is at the coarsest resolution
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + convolution(self.activation(norm(x)))
        return self.decoder(dense), self.project(x)
