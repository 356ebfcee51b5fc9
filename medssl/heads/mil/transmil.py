r"""TransMIL: a transformer over the tiles of a bag, with positions from a convolution on their grid.

Two layers of attention surround one position layer. A class token gives the answer. The position layer adds depthwise
convolutions of the tiles, laid out where their coordinates say. The published layer lays them out in the order of
their rows, so that the answer depends on that order. Attention is exact up to ``exact`` tiles and Nystrom's
approximation above: with landmarks Q', K' (means of ``landmarks`` segments of the tiles in raster order)::

    softmax(Q K^T) V  ~  softmax(Q K'^T) softmax(Q' K'^T)^+ softmax(Q' K^T) V

References: Shao et al., TransMIL, NeurIPS 2021, arXiv 2106.00908; Xiong et al., Nystromformer, AAAI 2021, arXiv
2102.03902 (landmarks, and six steps of an iteration for the pseudo-inverse).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.heads.mil.base import Answer, BagHead, ClassWeights, PooledBags, projection, tiles_of
from medssl.heads.mil.grid import GridPositions, raster_order
from medssl.nn.nystrom import NystromAttention
from medssl.ops.limits import expect

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema


class TransMIL(BagHead):
    """Transformer over the tiles. Bags are computed one after the other, so that padding costs nothing.

    Args:
        encoder: Its last map's channels are the features of a tile.
        schema: The classes.
        width: Features of a token; a multiple of 8, the number of attention heads.
        landmarks: Landmarks of the approximation, at least 1.
        exact: Tiles up to which attention is exact.
        dropout: Probability of dropping a feature behind each attention, 0 to below 1.
        answer: What is answered: "classes", "ordinal", "findings", "number" or "survival".
        class_weights: Weight of each class or finding in the loss, or "balanced"; None takes 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        width: int = 512,
        landmarks: int = 256,
        exact: int = 8192,
        dropout: float = 0.1,
        answer: Answer = "classes",
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(width, schema, answer=answer, class_weights=class_weights)
        expect(width % 8 == 0, "head.width", width, "a multiple of 8")
        self.project = projection(encoder.channels[-1], width, 0.0)
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width), std=0.02))
        self.layers = nn.ModuleList(
            NystromAttention(width, heads=8, landmarks=landmarks, exact=exact, dropout=dropout) for _ in range(2)
        )
        self.positions = GridPositions(width)
        self.norm = nn.LayerNorm(width)

    def pool(self, bags: BagBatch) -> PooledBags:
        """Embedding of the class token, and its attention in the second layer, as a mean over the heads."""
        tiles, count = self.project(tiles_of(bags, self.project)), bags.mask.shape[1]
        embeddings, rows = [], []
        for values, coords, mask in zip(tiles, bags.coords, bags.mask, strict=True):
            present = mask.nonzero()[:, 0]
            present = present[raster_order(coords[present])]
            embedding, weights = self.one(values[present], coords[present])
            embeddings.append(embedding)
            rows.append(weights.new_zeros(count).index_copy(0, present, weights))
        return PooledBags(torch.stack(embeddings), torch.stack(rows)[:, None])

    def one(self, tiles: Float[Tensor, "N W"], coords: Tensor) -> tuple[Float[Tensor, "W"], Float[Tensor, "N"]]:
        """Embedding and attention of one bag, whose tiles are in raster order."""
        first, second = self.layers
        assert isinstance(second, NystromAttention)
        tokens = torch.cat((self.token.to(tiles), tiles))
        tokens = tokens + first(tokens)
        tokens = torch.cat((tokens[:1], self.positions(tokens[1:], coords)))
        attention = second.of_first(tokens)[1:]
        embedding: Tensor = self.norm(tokens[0] + second(tokens)[0])
        return embedding, attention / attention.sum()
