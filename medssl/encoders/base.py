"""The contract of every encoder: an image in, Features out; and the ways in which cells can be hidden from it.

=========  ============================================================================================================
mode       what becomes of hidden cells
=========  ============================================================================================================
"sparse"   maps are exactly 0 there, and no statistic counts them: ConvNets by masked twins (:mod:`medssl.nn.sparse`)
"drop"     they are left out: ``tokens`` are those of the visible cells, ``kept`` says which, there are no ``maps``;
           every sample hides equally many. With nothing hidden the tokens are those of the dense forward
"fill"     something learned or fixed stands in their places; maps, tokens and pooled features are complete
=========  ============================================================================================================

In every mode the values in hidden voxels influence nothing that is returned, and their gradient is exactly 0. Without a
mask ``tokens``, where an encoder has them, are one for each position of the last map, in C order, and ``kept`` is None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of
from medssl.types import Features, MaskMode, UserError

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
        step: Distance between neighboring tokens per axis, in the unit of the encoder's embedding of positions; None
            where it has none.
        unmasked_because: Why a mask mode is missing that one may expect, for messages.
    """

    ndims: frozenset[int]
    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    mask_modes: frozenset[MaskMode]
    mask_cell: tuple[int, ...]
    step: tuple[float, ...] | None = None
    unmasked_because: str = ""

    @abstractmethod
    def forward(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image; cells where ``hidden`` is True have no influence on any value that is returned.

        ``mode`` is one of ``mask_modes``; None means "sparse".
        """

    def layers(self) -> dict[str, int]:
        """Which layer each parameter belongs to, by its name: 0 at the image, one more for each block behind it.

        What fine-tuning with layer-wise decay goes by. A parameter that is left out goes with the head; an encoder that
        does not say is one layer.
        """
        return {name: 0 for name, _ in self.named_parameters()}

    def checked(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Float[Tensor, "B C *s"]:
        """The image with hidden voxels set to zero, after refusing what this encoder cannot take.

        Raises:
            UserError: Another number of axes or channels, a size that the strides do not divide, a mask that does not
                fit the image, or a mode that this encoder lacks.
        """
        name = type(self).__name__
        if image.ndim - 2 not in self.ndims or image.shape[1] != self.in_channels:
            axes = " or ".join(f"{ndim}D" for ndim in sorted(self.ndims))
            message = (
                f"{name} takes {axes} images with {self.in_channels} channel(s), got shape {tuple(image.shape)} "
                f"(B C *s): change the view or the encoder's in_channels"
            )
            raise UserError(message)
        cells_of(image.shape[2:], self.strides[-1], noun=f"image for {name}: size")
        if hidden is None:
            return image
        if (mode or "sparse") not in self.mask_modes:
            modes = ", ".join(sorted(self.mask_modes)) or "none"
            message = f'{name} cannot hide cells in mode "{mode or "sparse"}"; its modes are: {modes}'
            message += f" ({self.unmasked_because})" if self.unmasked_because else ""
            raise UserError(message)
        if len(hidden) != len(image):
            message = f"mask for {len(hidden)} samples, image of {len(image)}: give one mask per sample"
            raise UserError(message)
        hidden = at_resolution(hidden.to(image.device), image.shape[2:])
        return image.masked_fill(hidden.unsqueeze(1), 0)


class ContractError(AssertionError):
    """An encoder or an objective broke a clause of its contract; the message names the clause."""


def check_encoder(encoder: Encoder, size: Sequence[int] | None = None) -> None:
    """Checks an encoder against the contract: run it on your own class.

    The clauses are the functions of :mod:`medssl.encoders.contract.checks` and, on hidden cells, of
    :mod:`medssl.encoders.contract.masks`. The encoder itself is not changed.

    Args:
        encoder: Any encoder.
        size: Voxels per axis of the test images, which the total stride divides; None takes two to three strides per
            axis, and one along the last axis of volumes.

    Raises:
        ContractError: Names the first clause that does not hold.
    """
    from medssl.encoders.contract.checks import check

    check(encoder, size)
