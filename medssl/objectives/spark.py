r"""SparK: masked image modeling for convolutional networks, on images and volumes.

Predicts: hidden cells of an image, with a convolutional encoder (Tian et al. 2023).
Encoders: residual encoder, timm ResNet and ConvNeXt.

With cells :math:`c` of the image, hidden set :math:`M` drawn per sample, encoder :math:`f`, decoder :math:`g`::

    z      = f(x visible)                       sparse: hidden positions are 0 at every scale
    d_i    = project_i(norm_i(z_i), token_i at hidden positions)                 coarse to fine
    y      = g(d_0, d_1, ...)
    t_cj   = (x_cj - mean_c) / sqrt(max(var_c, (0.01 std_x)^2) + 1e-6)           voxel j of cell c
    loss   = sum_{c in M, j scored} (y_cj - t_cj)^2  /  number of terms

Reference: Tian et al., Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling, ICLR 2023,
arXiv 2301.03580. ``docs/objectives/spark.md`` lists the differences from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medssl.nn.decoders import Densify, LightDecoder, NormName, upsampling_path
from medssl.objectives.base import Reconstruction

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, ViewSpec


class SparK(Reconstruction):
    """SparK: hides cells of one view from a convolutional encoder and reconstructs them from the visible ones.

    Args:
        encoder: Encoder with the mask mode "sparse".
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide, above 0 and below 1; None takes 0.6 (2D, as published) or 0.75 (3D).
        cell: Voxels of one cell per axis; None takes the encoder's ``mask_cell``.
        decoder_width: Channels of the decoder at the coarsest map. None takes 48 (2D) or 16 (3D) at the last step, and
            doubles it for each earlier step (768 for a stride of 32 in 2D, as published).
        normalize_target: Predict each cell relative to its own mean and deviation; False predicts the voxel values.
        norm: Normalization before the tokens and in the decoder. None takes "batch" in 2D, and "instance" in 3D, where
            batches are small. "layer" is for encoders with layer norms; the decoder then has batch norms.

    Raises:
        UserError: The encoder does not support "sparse", or the view does not fit it.
    """

    mode = "sparse"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float | None = None,
        cell: Sequence[int] | None = None,
        decoder_width: int | None = None,
        normalize_target: bool = True,
        norm: NormName | None = None,
    ) -> None:
        volume = len(view.size) == 3
        ratio = (0.75 if volume else 0.6) if mask_ratio is None else mask_ratio
        super().__init__(encoder, view=view, mask_ratio=ratio, cell=cell, normalize_target=normalize_target)
        norm = norm or ("instance" if volume else "batch")
        path = upsampling_path(encoder.strides)
        width = (16 if volume else 48) * 2 ** (len(path) - 1) if decoder_width is None else decoder_width
        self.decoder = LightDecoder(
            width,
            [factor for factor, _ in path],
            out_channels=encoder.in_channels,
            norm="instance" if norm == "instance" else "batch",
        )
        entering = [(number, width) for (_, number), width in zip(path, self.decoder.widths, strict=True)]
        self.densify = Densify(encoder.channels, entering, norm=norm, ndim=len(view.size))

    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Encodes the visible cells, fills the maps with tokens, and decodes."""
        features = self.encoder(image, hidden, mode="sparse")
        return self.decoder(self.densify(features.maps, hidden)), features
