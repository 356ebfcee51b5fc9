r"""Attention pooling with a gate (ABMIL).

With the features :math:`h_k` of tile k behind the first layer::

    a_k = softmax_k( w^T ( tanh(V h_k + b) * sigmoid(U h_k + c) ) )        z = sum_k a_k h_k

and an answer from z. The paper has no biases b and c; they change the weights of a tile little and are usual.
Reference: Ilse et al., Attention-based deep multiple instance learning, ICML 2018, arXiv 1802.04712.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.heads.mil.base import Answer, BagHead, ClassWeights, PooledBags, masked_softmax, projection, tiles_of
from medssl.ops.limits import expect

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema


class GatedAttention(nn.Module):
    """A score of each tile in each branch.

    Args:
        width: Features of a tile.
        hidden: Features between the two layers.
        branches: Number of scores.
        dropout: Probability of dropping a feature between the layers, 0 to below 1.
    """

    def __init__(self, width: int, hidden: int, branches: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        expect(hidden >= 1, "head.hidden", hidden, "at least 1")
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, branches, bias=False)  # a constant leaves the softmax as it is

    def forward(self, tiles: Float[Tensor, "B N W"]) -> Float[Tensor, "B H N"]:
        """Scores before the softmax."""
        hidden = self.dropout(torch.tanh(self.content(tiles)) * torch.sigmoid(self.gate(tiles)))
        scores: Tensor = self.score(hidden).mT
        return scores


class ABMIL(BagHead):
    """Gated attention over the tiles.

    Args:
        encoder: Its last map's channels are the features of a tile.
        schema: The classes.
        width: Features of a tile behind the first layer.
        hidden: Features of the attention.
        dropout: Probability of dropping a feature behind the first layer, 0 to below 1.
        answer: What is answered: "classes", "ordinal", "findings", "number" or "survival".
        class_weights: Weight of each class or finding in the loss, or "balanced"; None takes 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        width: int = 512,
        hidden: int = 256,
        dropout: float = 0.25,
        answer: Answer = "classes",
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(width, schema, answer=answer, class_weights=class_weights)
        self.project = projection(encoder.channels[-1], width, dropout)
        self.attend = GatedAttention(width, hidden)

    def pool(self, bags: BagBatch) -> PooledBags:
        """Weighted mean of the tiles."""
        tiles = self.project(tiles_of(bags, self.project))
        attention = masked_softmax(self.attend(tiles), bags.mask).to(tiles)
        return PooledBags((attention @ tiles)[:, 0], attention)
