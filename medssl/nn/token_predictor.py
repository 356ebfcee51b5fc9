"""Narrow transformer that predicts the tokens of some cells from the tokens of others.

Reference: Assran et al., Self-supervised learning from images with a joint-embedding predictive architecture (I-JEPA),
CVPR 2023, arXiv 2301.08243.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.nn.transformer import gather_tokens, sincos_positions, transformer_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

HEAD_WIDTH = 32  # channels of an attention head


class TokenPredictor(nn.Module):
    """Transformer over tokens of visible cells and a learned token at each cell to predict.

    Args:
        channels: Channels of the tokens that enter and that are predicted.
        width: Channels inside, a multiple of 32.
        depth: Number of blocks.
    """

    def __init__(self, channels: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = transformer_blocks(width, depth, max(1, width // HEAD_WIDTH))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, channels)
        for layer in (self.embed, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: Float[Tensor, "B K C"],
        visible_cells: Int[Tensor, "B K"],
        targets: Int[Tensor, "B T"],
        cells: Sequence[int],
        *,
        step: Sequence[float] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Predicts the tokens of cells.

        Args:
            tokens: Tokens of the visible cells.
            visible_cells: Number of the cell of each of them.
            targets: Numbers of the cells to predict.
            cells: Cells per axis.
            step: Distance between the centers of neighboring cells per axis; None takes 1.
        """
        table = sincos_positions(cells, self.mask_token.shape[2], step=step, like=self.mask_token)
        positions = table.expand(len(tokens), -1, -1)
        context = self.embed(tokens) + gather_tokens(positions, visible_cells)
        wanted = self.mask_token + gather_tokens(positions, targets)
        predicted = self.blocks(torch.cat((context, wanted.to(context.dtype)), 1))[:, context.shape[1] :]
        result: Tensor = self.predict(self.norm(predicted))
        return result
