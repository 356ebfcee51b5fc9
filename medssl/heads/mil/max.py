"""Max pooling: of each feature the largest value of all tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.heads.mil.base import Answer, BagHead, ClassWeights, PooledBags, projection, tiles_of

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema


class MaxPool(BagHead):
    """Maximum over the tiles, feature by feature. The weight of a tile is the share of the features that it gives.

    Args:
        encoder: Its last map's channels are the features of a tile.
        schema: The classes.
        width: Features of a tile behind the first layer.
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
        dropout: float = 0.25,
        answer: Answer = "classes",
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(width, schema, answer=answer, class_weights=class_weights)
        self.project = projection(encoder.channels[-1], width, dropout)

    def pool(self, bags: BagBatch) -> PooledBags:
        """Maximum of the tiles."""
        tiles = self.project(tiles_of(bags, self.project)).masked_fill(~bags.mask[..., None], -torch.inf)
        largest = tiles.amax(1)
        ties = (tiles == largest[:, None]) & bags.mask[..., None]  # shared, so that the order of tiles is irrelevant
        shares = (ties / ties.sum(1, keepdim=True)).mean(2)
        return PooledBags(largest, shares.to(largest)[:, None])
