r"""CLAM: gated attention, and a second loss on the tiles that it attends to most and least.

Of a bag of class c with N tiles, the B = min(instances, N // 2) tiles of highest attention are taken for tiles of the
class, and the B of lowest attention for others. A linear layer for each class tells the two apart::

    loss = (1 - weight) cross-entropy(bag) + weight cross-entropy(these tiles)

With ``subtyping`` (classes exclude each other) the B tiles of highest attention are also taken for others by the layers
of all other classes, and the terms are averaged over the classes. Which tiles are taken has no gradient. The published
instance loss is a smooth SVM; this is a cross-entropy. Reference: Lu et al., Data-efficient and weakly supervised
computational pathology on whole-slide images, Nature Biomedical Engineering 2021, arXiv 2004.09666.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from medssl.heads.classification import Linear
from medssl.heads.mil.abmil import GatedAttention
from medssl.heads.mil.base import (
    Answer,
    BagHead,
    ClassWeights,
    PooledBags,
    labeled,
    masked_softmax,
    projection,
    tiles_of,
)
from medssl.ops.collectives import mean_over
from medssl.ops.limits import expect

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema, Step


class CLAM(BagHead):
    """Gated attention with one branch (SB) or one for each class (MB), and the loss of instances.

    Args:
        encoder: Its last map's channels are the features of a tile.
        schema: The classes.
        branches: "one" (CLAM-SB), or "per_class" (CLAM-MB: the answer of a class comes from its own branch).
        instances: Tiles of highest, and of lowest, attention that the second loss takes of a bag, at least 1; at most
            half of the tiles are taken.
        instance_weight: Share of the second loss, 0 to 1.
        subtyping: Whether classes exclude each other, so that tiles of one are none of another.
        dropout: Probability of dropping a feature behind the first layer, 0 to below 1.
        class_weights: Weight of each class in the loss, or "balanced"; None takes 1.
    """

    answers: ClassVar[tuple[str, ...]] = ("classes",)
    width, hidden = 512, 256

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        branches: Literal["one", "per_class"] = "one",
        instances: int = 8,
        instance_weight: float = 0.3,
        subtyping: bool = False,
        dropout: float = 0.25,
        class_weights: ClassWeights = None,
    ) -> None:
        answer: Answer = "classes"
        super().__init__(self.width, schema, answer=answer, class_weights=class_weights)
        expect(branches in ("one", "per_class"), "head.branches", branches, "one or per_class")
        expect(instances >= 1, "head.instances", instances, "at least 1")
        expect(0 <= instance_weight <= 1, "head.instance_weight", instance_weight, "from 0 to 1")
        self.instances, self.instance_weight, self.subtyping = instances, instance_weight, subtyping
        count = len(schema.classes)
        self.project = projection(encoder.channels[-1], self.width, dropout)
        self.attend = GatedAttention(self.width, self.hidden, count if branches == "per_class" else 1)
        self.of_instances = nn.Linear(self.width, 2 * count)

    def pool(self, bags: BagBatch) -> PooledBags:
        """Weighted mean of the tiles; of several branches one vector after the other."""
        tiles = self.project(tiles_of(bags, self.project))
        attention = masked_softmax(self.attend(tiles), bags.mask).to(tiles)
        return PooledBags((attention @ tiles).flatten(1), attention)

    def logits(self, pooled: PooledBags) -> Float[Tensor, "B K"]:
        """The answer; with several branches that of a class comes from its own."""
        if pooled.attention.shape[1] == 1:
            return super().logits(pooled)
        assert isinstance(self.answer, Linear)
        vectors = self.answer.dropout(pooled.embedding.view(len(pooled.embedding), -1, self.width))
        logits: Tensor = (vectors * self.answer.linear.weight).sum(2) + self.answer.linear.bias
        return logits

    def learn(
        self, bags: BagBatch, target: Tensor, step: Step, counts: Tensor | None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of the bags and of the instances."""
        tiles = self.project(tiles_of(bags, self.project))
        scores = self.attend(tiles)
        attention = masked_softmax(scores, bags.mask).to(tiles)
        pooled = PooledBags((attention @ tiles).flatten(1), attention)
        of_bags = self.loss(self.logits(pooled), target, counts)
        sums, known = self.instance_loss(tiles, scores.detach(), bags.mask, target)
        of_tiles = mean_over(sums.sum(), known.sum(), None if counts is None else counts[-1])
        loss = (1 - self.instance_weight) * of_bags + self.instance_weight * of_tiles
        return loss, {"bag_loss": of_bags.detach(), "instance_loss": of_tiles.detach()}

    def instance_loss(
        self,
        tiles: Float[Tensor, "B N W"],
        scores: Float[Tensor, "B H N"],
        mask: Bool[Tensor, "B N"],
        target: Int[Tensor, "B"],
    ) -> tuple[Float[Tensor, "B"], Bool[Tensor, "B"]]:
        """Cross-entropy of the instances of each bag, and which bags are labeled; 0 of bags of one tile."""
        known, rows = labeled(target), torch.arange(len(target), device=target.device)
        classes = target.clamp(min=0)
        own = scores[rows, classes if scores.shape[1] > 1 else torch.zeros_like(classes)]
        top, bottom, valid = self.chosen(own, mask)
        total = self.entropy(tiles, top, 1, classes, valid) + self.entropy(tiles, bottom, 0, classes, valid)
        total = total / 2
        if self.subtyping:
            count = len(self.schema.classes)
            for other in range(count):
                place = torch.full_like(classes, other)
                of_class = scores[:, other if scores.shape[1] > 1 else 0]
                others = self.entropy(tiles, self.chosen(of_class, mask)[0], 0, place, valid)
                total = total + torch.where(classes == other, 0.0, others)
            total = total / count
        return torch.where(known, total, 0.0), known

    def chosen(
        self, scores: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"]
    ) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
        """Places of the highest and of the lowest scores, and which of them count: half of the tiles at most."""
        each = (mask.sum(1) // 2).clamp(max=self.instances)
        most = min(self.instances, mask.shape[1])
        top = scores.masked_fill(~mask, -torch.inf).topk(most, 1).indices
        bottom = scores.masked_fill(~mask, torch.inf).topk(most, 1, largest=False).indices
        return top, bottom, torch.arange(most, device=mask.device) < each[:, None]

    def entropy(
        self,
        tiles: Float[Tensor, "B N W"],
        places: Int[Tensor, "B K"],
        truth: int,
        classes: Int[Tensor, "B"],
        valid: Bool[Tensor, "B K"],
    ) -> Float[Tensor, "B"]:
        """Mean cross-entropy of some tiles of each bag by the layer of a class."""
        rows = torch.arange(len(places), device=places.device)
        logits = self.of_instances(tiles[rows[:, None], places]).unflatten(2, (-1, 2))[rows, :, classes]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits.flatten(0, 1), torch.full_like(places, truth).flatten(), reduction="none")
        losses = torch.where(valid, losses.view_as(places), 0.0)
        return losses.sum(1) / valid.sum(1).clamp(min=1)
