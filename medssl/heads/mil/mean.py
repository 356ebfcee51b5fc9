"""Mean pooling: every tile counts alike. The baseline that attention has to beat where few tiles decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medssl.heads.mil.base import Answer, BagHead, ClassWeights, PooledBags, projection, tiles_of

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema


class MeanPool(BagHead):
    """Mean over the tiles.

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
        """Mean of the tiles."""
        tiles = self.project(tiles_of(bags, self.project))
        attention = (bags.mask / bags.mask.sum(1, keepdim=True)).to(tiles)
        return PooledBags((attention[:, None] @ tiles)[:, 0], attention[:, None])
