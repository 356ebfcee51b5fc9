"""The decoder of Primus: transposed convolutions lead from the last tokens of a transformer to the voxels, alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from medssl.heads.segmentation import SegmentationHead
from medssl.nn.decoders import upsampling_path
from medssl.nn.sparse import ChannelNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, LabelSchema


class PatchDecoder(SegmentationHead):
    """The light decoder of Primus (Wald et al., 2025, arXiv 2503.01835): no context but that of the transformer.

    Each step is a transposed convolution whose kernel equals its factor, a layer norm and a GELU; the last one gives
    the logits. Channels fall evenly in logarithms, from the encoder's to twice the number of classes, and are multiples
    of 8. For cubic patches of a power of two, the keys and shapes are those of dynamic-network-architectures.

    Args:
        encoder: Any encoder; its last map is used.
        schema: Classes, the background first.
        loss_weights: Weights of the Dice loss and of the cross-entropy, 0 or more.
        batch_dice: Compute the Dice over the voxels of the whole optimizer step, of all micro-batches and processes,
            instead of per sample.

    Raises:
        UserError: The encoder's last map is as fine as the image; or as :class:`SegmentationHead`.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        batch_dice: bool = False,
    ) -> None:
        stride = encoder.strides[-1]
        super().__init__(schema, axes=len(stride), loss_weights=loss_weights, batch_dice=batch_dice)
        factors = [factor for factor, _ in upsampling_path([stride])]
        widths = step_widths(encoder.channels[-1], len(schema.classes), len(factors))
        transposed = nn.ConvTranspose3d if len(stride) == 3 else nn.ConvTranspose2d
        layers = [
            transposed(before, after, factor, stride=factor)  # type: ignore[arg-type]
            for (before, after), factor in zip(pairwise(widths), factors, strict=True)
        ]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, a=1e-2)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        steps = [
            nn.Sequential(layer, ChannelNorm(width, eps=1e-6), nn.GELU())
            for layer, width in zip(layers[:-1], widths[1:-1], strict=True)
        ]
        self.decode = nn.Sequential(*steps, layers[-1])

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K *s"]:
        """Returns logits at full resolution."""
        del size
        logits: Tensor = self.decode(features.maps[-1])
        return logits


def step_widths(channels: int, classes: int, steps: int) -> list[int]:
    """Channels before, between and after the steps.

    >>> step_widths(396, 2, 3)
    [396, 88, 16, 2]
    """
    share = (channels / (2 * classes)) ** (1 / steps)
    inner = [max(8, round(channels / share**step / 8 + 1e-7) * 8) for step in range(1, steps)]
    return [channels, *inner, classes]
