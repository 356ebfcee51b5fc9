r"""SimMIM: a learned token replaces hidden cells, and one linear layer predicts their voxels.

Predicts: voxels of cells replaced by a token (Xie et al. 2022).
Encoders: vision transformer.

With cells :math:`c` of the image, hidden set :math:`M` drawn per sample, encoder :math:`f`::

    z      = f(x_c, or a learned token in hidden cells, with position embeddings)       as many tokens as patches
    y      = W z + b                            the voxels of a patch from its token
    loss   = sum_{c in M, j scored} |y_cj - x_cj|  /  number of terms                    voxel j of cell c

Reference: Xie et al., SimMIM: A Simple Framework for Masked Image Modeling, CVPR 2022, arXiv 2111.09886.
``docs/objectives/simmim.md`` lists the differences from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from torch import nn

from medssl.objectives.base import Reconstruction
from medssl.ops.patches import unpatchify

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, ViewSpec


class SimMIM(Reconstruction):
    """SimMIM: replaces hidden cells of one view by a token and predicts their voxels.

    Args:
        encoder: Encoder with the mask mode "fill".
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide, above 0 and below 1.
        cell: Voxels of one cell per axis, one or more patches; None takes the encoder's ``mask_cell``.
        normalize_target: Predict each cell relative to its own mean and deviation; False predicts the voxel values.

    Raises:
        UserError: The encoder does not support "fill", or the view does not fit it.
    """

    mode = "fill"
    distance = "absolute"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float = 0.6,
        cell: Sequence[int] | None = None,
        normalize_target: bool = False,
    ) -> None:
        super().__init__(encoder, view=view, mask_ratio=mask_ratio, cell=cell, normalize_target=normalize_target)
        self.patch = encoder.strides[-1]
        self.predict = nn.Linear(encoder.channels[-1], encoder.in_channels * prod(self.patch))
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)

    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Encodes the image with tokens in hidden cells, and predicts every patch from its feature vector."""
        features = self.encoder(image, hidden, mode="fill")
        patches = self.predict(features.maps[-1].flatten(2).mT)
        return unpatchify(patches, self.patch, size=image.shape[2:]), features
