"""The contract of every encoder: an image goes in, ``Features`` come out. Cells of the image can be hidden.

=========  ============================================================================================================
mode       what happens to hidden cells
=========  ============================================================================================================
"sparse"   Maps are exactly 0 there, and statistics skip them. ConvNets do this by masked twins
           (:mod:`medssl.nn.sparse`).
"drop"     They are left out. ``tokens`` holds the visible cells and ``visible_cells`` their numbers; there are no
           ``maps``. Every sample hides the same number of cells. With nothing hidden, tokens equal the dense forward.
"fill"     A learned or fixed value replaces them. Maps, tokens and pooled features are complete.
=========  ============================================================================================================

In every mode, values in hidden voxels influence no output, and their gradient is exactly 0. Without a mask, an encoder
with tokens returns one for each position of the last map, in C order, and ``visible_cells`` is None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of
from medssl.types import Features, MaskMode, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Encoder(nn.Module, ABC):
    """Base class of image encoders. Its attributes describe the encoder to objectives and heads.

    Attributes:
        ndims: Numbers of spatial axes that this instance accepts, {2} or {3}.
        in_channels: Channels of the image.
        channels: Channels of each map, fine to coarse.
        strides: Total stride of each map per axis in voxels, fine to coarse.
        mask_modes: Mask modes that the encoder supports.
        mask_cell: Recommended size of one cell of the mask, in voxels per axis.
        step: Distance between neighboring tokens per axis, in the unit of the position embedding; None without one.
        unmasked_because: Reason why an expected mask mode is missing; messages show it.
        stem_maps: Number of the finest maps that a stem computes, before the first block.
        recompute: Compute ``parts`` again in the backward pass instead of keeping what they put out: less memory, about
            a third more time.
        settings_of_tensors: Key and value of the configuration by which the encoder has a kind of tensors
            (``medssl.encoders.misfits.KINDS``) that a file of weights may have.
        aliases: Names of tensors in published weights, and the encoder's names for them.
    """

    ndims: frozenset[int]
    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    mask_modes: frozenset[MaskMode]
    mask_cell: tuple[int, ...]
    step: tuple[float, ...] | None = None
    unmasked_because: str = ""
    stem_maps: int = 0
    recompute: bool = False
    settings_of_tensors: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType({})
    aliases: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def forward(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image.

        Args:
            image: Images; each axis is a multiple of the last stride.
            hidden: True where a cell is hidden: it influences no output. None hides nothing.
            mode: One of ``mask_modes``; None means "sparse".

        Returns:
            Features with the maps that ``channels`` and ``strides`` describe.

        Raises:
            UserError: The image or the mask does not fit the encoder, see ``checked``.
        """

    def layers(self) -> dict[str, int]:
        """Number of the layer of each parameter, by its name: 0 next to the image, one more for each block after it.

        Layer-wise learning-rate decay uses these numbers. A parameter that is missing here counts as part of the head.
        By default the whole encoder is one layer.
        """
        return {name: 0 for name, _ in self.named_parameters()}

    def parts(self) -> list[nn.Module]:
        """Modules that run one after the other and are computed again with ``recompute``; none by default."""
        return []

    def computes_positions(self, table: Float[Tensor, "1 N C"]) -> bool:
        """Whether a table of positions of a file holds what this encoder computes without a table."""
        del table
        return False

    def checked(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Float[Tensor, "B C *s"]:
        """Checks the input of ``forward`` and returns the image with hidden voxels set to zero.

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
    """An encoder or an objective violates its contract; the message names the clause."""


def check_encoder(encoder: Encoder, size: Sequence[int] | None = None) -> None:
    """Checks that an encoder keeps the contract. Run it on your own class.

    The clauses are the functions of :mod:`medssl.encoders.contract.checks`. Those about hidden cells are in
    :mod:`medssl.encoders.contract.masks`. The encoder itself is not changed.

    Args:
        encoder: Any encoder.
        size: Voxels per axis of the test images, a multiple of the total stride. None takes two to three strides per
            axis, and one stride along the last axis of volumes.

    Raises:
        ContractError: Names the first clause that does not hold.
    """
    from medssl.encoders.contract.checks import check

    check(encoder, size)
