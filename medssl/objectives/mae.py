r"""Masked autoencoders: most of an image is hidden, the encoder sees the rest, and a decoder predicts the hidden part.

Predicts: hidden patches from visible patches (He et al. 2022; volumes as Wald et al. 2025).
Encoders: vision transformer; any encoder in a U-Net (``mae_resenc_3d``).

With cells :math:`c` of the image, hidden set :math:`M` drawn per sample, encoder :math:`f`, decoder :math:`g`::

    z      = f(x_c + pos_c, c visible)          hidden patches are left out: the encoder sees a quarter of the tokens
    y      = g(z_c for visible c, a learned token for hidden c, all with position embeddings)
    t_cj   = (x_cj - mean_c) / sqrt(max(var_c, (0.01 std_x)^2) + 1e-6)           voxel j of cell c
    loss   = sum_{c in M, j scored} (y_cj - t_cj)^2  /  number of terms

A convolutional network cannot leave cells out. There f sees zeros in hidden cells, and g is the decoder of a U-Net.

References: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377; Xiao et al.,
Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, WACV 2023, arXiv 2210.12843; Wald et
al., An OpenMind for 3D medical vision self-supervised learning, ICCV 2025, arXiv 2412.17041 (volumes, ConvNets).
``docs/objectives/mae.md`` lists the differences from the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.nn.transformer import sincos_positions, transformer_blocks
from medssl.nn.unet import UNetDecoder
from medssl.objectives.base import Reconstruction
from medssl.ops.limits import expect
from medssl.ops.masking import at_resolution
from medssl.ops.patches import unpatchify

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.nn.decoders import NormName
    from medssl.types import Features, ViewSpec

HEAD_WIDTH = 32  # channels of an attention head of the published decoder: 512 in 16 heads


class MAE(Reconstruction):
    """Masked autoencoder for transformers: leaves patches of one view out and predicts them from the others.

    Args:
        encoder: Encoder with the mask mode "drop".
        view: The view; its size must be a multiple of the encoder's patch.
        mask_ratio: Share of patches to hide, above 0 and below 1.
        normalize_target: Predict each patch relative to its own mean and deviation; False predicts the voxel values.
        decoder_width: Channels of a token in the decoder, a multiple of 32. Each attention head has 32 channels.
        decoder_depth: Number of blocks of the decoder.

    Raises:
        UserError: The encoder does not support "drop", the view does not fit it, or a setting is out of range.
    """

    mode = "drop"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float = 0.75,
        normalize_target: bool = True,
        decoder_width: int = 512,
        decoder_depth: int = 8,
    ) -> None:
        patch = encoder.strides[-1]
        super().__init__(encoder, view=view, mask_ratio=mask_ratio, cell=patch, normalize_target=normalize_target)
        expect(decoder_width >= 1, "decoder_width", decoder_width, f"a multiple of {HEAD_WIDTH}")
        values = encoder.in_channels * prod(patch)
        self.decoder = TokenDecoder(encoder.channels[-1], values, width=decoder_width, depth=decoder_depth)

    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Encodes the visible patches and decodes all patches."""
        features = self.encoder(image, hidden, mode="drop")
        assert features.tokens is not None  # the contract of the mode
        assert features.visible_cells is not None
        patches = self.decoder(features.tokens, features.visible_cells, self.cells, step=self.encoder.step)
        return unpatchify(patches, self.cell, size=image.shape[2:]), features


class TokenDecoder(nn.Module):
    """Transformer that predicts the voxels of all patches from the tokens of some of them.

    Args:
        channels: Channels of the input tokens.
        values: Number of values to predict for each patch.
        width: Channels of a token in the decoder.
        depth: Number of blocks.
    """

    def __init__(self, channels: int, values: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = transformer_blocks(width, depth, max(1, width // HEAD_WIDTH))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, values)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)  # starts near zero, the mean of a normalized target
        for layer in (self.embed, self.predict):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: Float[Tensor, "B K C"],
        visible_cells: Int[Tensor, "B K"],
        cells: Sequence[int],
        *,
        step: Sequence[float] | None = None,
    ) -> Float[Tensor, "B N P"]:
        """Predicts the values of all patches.

        Args:
            tokens: Tokens of the visible patches.
            visible_cells: Number of each token's patch, in C order.
            cells: Patches of the image per axis, N in total.
            step: Distance between patches per axis, in the unit of the encoder's position embedding; None takes 1.

        Returns:
            Values of the N patches, in C order.
        """
        tokens = self.embed(tokens).to(self.mask_token.dtype)  # the residual stream stays precise under autocast
        all_tokens = self.mask_token.expand(len(tokens), prod(cells), -1)
        all_tokens = all_tokens.scatter(1, visible_cells[..., None].expand_as(tokens), tokens)
        positions = sincos_positions(cells, tokens.shape[2], step=step, like=self.mask_token)
        patches: Tensor = self.predict(self.norm(self.blocks(all_tokens + positions)))
        return patches


class UNetMAE(Reconstruction):
    """Masked autoencoder for any encoder: sets cells of one view to zero; a dense U-Net predicts them.

    Args:
        encoder: Any encoder with maps; it needs no mask mode.
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide, above 0 and below 1.
        cell: Voxels of one cell per axis; None takes the encoder's ``mask_cell``.
        normalize_target: Predict each cell relative to its own mean and deviation; False predicts the voxel values.
        norm: Normalization of the decoder. Fine-tuning can continue with this decoder if the U-Net head has the same.

    Raises:
        UserError: The view does not fit the encoder or the cells.
    """

    mode = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float = 0.75,
        cell: Sequence[int] | None = None,
        normalize_target: bool = False,
        norm: NormName = "instance",
    ) -> None:
        super().__init__(encoder, view=view, mask_ratio=mask_ratio, cell=cell, normalize_target=normalize_target)
        self.decoder = UNetDecoder(encoder.channels, encoder.strides, norm=norm)
        convolution = nn.Conv3d if len(view.size) == 3 else nn.Conv2d
        self.predict = convolution(self.decoder.widths[-1], encoder.in_channels, 1)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)

    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Encodes the image with zeros in hidden cells, and decodes."""
        covered = at_resolution(hidden, image.shape[2:])[:, None]
        features = self.encoder(image.masked_fill(covered, 0))
        return self.predict(self.decoder(features.maps)[-1]), features

    def exported(self) -> dict[str, nn.Module]:
        """The encoder, and the decoder, which a U-Net head can start from."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def filled_modules(self) -> tuple[nn.Module, ...]:
        """Encoder and decoder."""
        return self.encoder, self.decoder

    def encode_whole(self, image: Float[Tensor, "B C *s"]) -> None:
        """Encodes and decodes whole images."""
        self.decoder(self.encoder(image).maps)
