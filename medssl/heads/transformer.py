"""Segmentation heads for encoders whose maps all have one stride: UNETR and the simple feature pyramid.

Both make maps of several strides out of the encoder's (:mod:`medssl.nn.token_decoders`), which the U-Net decoder then
fuses from coarse to fine, up to the voxels. The plain U-Net head takes such encoders too, by their last map alone.
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
    """Maps of several depths, the shallower the finer, in a U-Net decoder (Hatamizadeh et al., UNETR, WACV 2022).

    The published network also joins convolutions of the image at full resolution; a head sees features only.

    Args:
        encoder: Its maps all have one stride.
        schema: Classes, the background first.
        channels: Channels at full resolution; twice as many at each coarser step.
        convolutions: Convolutions of each step.
        norm: "instance", "batch" or "layer".
        deep_supervision: Train the coarser steps too, except the coarsest: weights halve with each and sum to 1.
        loss_weights: Weights of the Dice loss and of the cross-entropy.
        batch_dice: Take the Dice over the voxels of the whole batch, of all processes, rather than per sample.

    Raises:
        UserError: An encoder with maps of several strides or one map alone, or what every segmentation head refuses.
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
    """The last map at several strides (Li et al., ECCV 2022), in a light U-Net decoder.

    Takes any encoder; of a ConvNet the finer maps are left out, which the head ``unet`` would use.

    Args:
        encoder: Its last map is used.
        schema: Classes, the background first.
        channels: Channels of each map of the pyramid; half as many at each step beyond its finest.
        convolutions: Convolutions of each step.
        norm: "instance", "batch" or "layer": of the decoder; the pyramid has layer norms.
        deep_supervision: Train the coarser steps too, except the coarsest: weights halve with each and sum to 1.
        loss_weights: Weights of the Dice loss and of the cross-entropy.
        batch_dice: Take the Dice over the voxels of the whole batch, of all processes, rather than per sample.

    Raises:
        UserError: An encoder whose last map is as fine as the image, or what every segmentation head refuses.
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
