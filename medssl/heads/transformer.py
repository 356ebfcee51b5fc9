"""Segmentation heads for encoders whose maps all have one stride: UNETR and the simple feature pyramid.

Both compute maps of several strides from the encoder's maps (:mod:`medssl.nn.token_decoders`). The U-Net decoder then
fuses them from coarse to fine, up to full resolution. The plain U-Net head accepts such encoders, too, but uses only
their last map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from medssl.heads.segmentation import UNet
from medssl.nn.token_decoders import LiftedMaps, PyramidMaps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.nn.decoders import NormName
    from medssl.types import Features, LabelSchema


class UNETR(UNet):
    """UNETR (Hatamizadeh et al., WACV 2022): maps of several depths, shallower ones finer, in a U-Net decoder.

    The published network also uses convolutions of the image at full resolution. A head receives features only.

    Args:
        encoder: Encoder with several maps of one stride.
        schema: Classes, the background first.
        channels: Channels at full resolution; twice as many at each coarser step.
        convolutions: Convolutions of each step.
        norm: "instance", "batch" or "layer".
        deep_supervision: Also train the coarser steps, except the coarsest one. Weights halve from step to step.
        loss_weights: Weights of the Dice loss and of the cross-entropy.
        batch_dice: Compute the Dice over the voxels of the whole optimizer step, of all micro-batches and processes,
            instead of per sample.

    Raises:
        UserError: The encoder has maps of several strides or only one map; or as :class:`SegmentationHead`.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        channels: int = 16,
        convolutions: int = 2,
        norm: NormName = "instance",
        deep_supervision: bool = False,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        batch_dice: bool = False,
    ) -> None:
        lifted = LiftedMaps(encoder.channels, encoder.strides, width=channels, norm=norm)
        super().__init__(
            lifted,
            schema,
            convolutions=convolutions,
            norm=norm,
            deep_supervision=deep_supervision,
            loss_weights=loss_weights,
            batch_dice=batch_dice,
        )
        self.lifted = lifted

    def forward(
        self, features: Features, size: Sequence[int]
    ) -> Float[Tensor, "B K *s"] | tuple[Float[Tensor, "B K *sl"], ...]:
        """Returns logits as :meth:`UNet.forward`."""
        return super().forward(replace(features, maps=self.lifted(features.maps)), size)


class FeaturePyramid(UNet):
    """Simple feature pyramid (Li et al., ECCV 2022): the last map at several strides, in a light U-Net decoder.

    Accepts any encoder. For a ConvNet, prefer the head ``unet``, which also uses the finer maps.

    Args:
        encoder: Any encoder; its last map is used.
        schema: Classes, the background first.
        channels: Channels of each map of the pyramid; half as many at each finer step of the decoder.
        convolutions: Convolutions of each step.
        norm: Normalization of the decoder: "instance", "batch" or "layer". The pyramid has layer norms.
        deep_supervision: Also train the coarser steps, except the coarsest one. Weights halve from step to step.
        loss_weights: Weights of the Dice loss and of the cross-entropy.
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
        channels: int = 64,
        convolutions: int = 1,
        norm: NormName = "instance",
        deep_supervision: bool = False,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        batch_dice: bool = False,
    ) -> None:
        pyramid = PyramidMaps(encoder.channels[-1], encoder.strides[-1], width=channels)
        super().__init__(
            pyramid,
            schema,
            convolutions=convolutions,
            norm=norm,
            deep_supervision=deep_supervision,
            loss_weights=loss_weights,
            batch_dice=batch_dice,
        )
        self.pyramid = pyramid

    def forward(
        self, features: Features, size: Sequence[int]
    ) -> Float[Tensor, "B K *s"] | tuple[Float[Tensor, "B K *sl"], ...]:
        """Returns logits as :meth:`UNet.forward`."""
        return super().forward(replace(features, maps=self.pyramid(features.maps)), size)
