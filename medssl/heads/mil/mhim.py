r"""MHIM-MIL: attention pooling trained without the tiles that a teacher attends to most.

A momentum teacher scores the tiles. The student learns from the bag without the ceil(hard N) tiles of highest score, so
that it has to learn harder ones. Of the rest it keeps a random share ``kept``; what is left out is merged by attention
into ``merged`` tokens, whose queries are running means of the merged tokens. Bags are predicted whole::

    loss = loss of the student + alpha cross-entropy( softmax(z_t / tau), softmax(z_s) )

with the pooled vectors :math:`z_t` of the whole bag by the teacher and :math:`z_s` by the student. Where most of the
witnesses of a bag are among its hardest tiles, removing them leaves a wrong label: keep ``hard`` below their share.

The published teacher starts from a network that was trained before. Here nothing is removed in the first ``warmup`` of
the steps, in which the teacher follows a plain attention pooling (our choice). References: Tang et al., Multiple
instance learning framework with masked hard instance mining, ICCV 2023, arXiv 2307.15254; its version 2, 2025, arXiv
2509.11526 (merging).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from medssl.heads.mil.abmil import ABMIL, GatedAttention
from medssl.heads.mil.base import ClassWeights, PooledBags, labeled, masked_softmax, tiles_of
from medssl.nn.teacher import Teacher
from medssl.ops.collectives import mean_over, reduce_sum
from medssl.ops.draws import draws
from medssl.ops.limits import expect

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn

    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masking:
    """Which tiles the student does not see.

    Attributes:
        hard: Share of the tiles with the highest score that is removed, 0 to below 1.
        kept: Share of the rest that stays, above 0 to 1.
        merged: Tokens into which what is left out at random is merged; 0 drops it.
        warmup: Share of the training in which nothing is removed, 0 to 1.
        witnesses: Tiles of a positive bag that are expected to show it; a warning says where as many are removed. None
            expects nothing.
    """

    hard: float = 0.02
    kept: float = 1.0
    merged: int = 0
    warmup: float = 0.2
    witnesses: int | None = None

    def __post_init__(self) -> None:
        expect(0 <= self.hard < 1, "head.hard", self.hard, "from 0 to below 1")
        expect(0 < self.kept <= 1, "head.kept", self.kept, "above 0 to 1")
        expect(self.merged >= 0, "head.merged", self.merged, "0 or more")
        expect(0 <= self.warmup <= 1, "head.warmup", self.warmup, "from 0 to 1")


class MHIM(ABMIL):
    """Gated attention whose training hides the tiles that its teacher attends to most.

    Args:
        encoder: Its last map's channels are the features of a tile.
        schema: The classes.
        hard: Share of the tiles with the highest score that the student does not see, 0 to below 1.
        kept: Share of the rest that the student sees, above 0 to 1.
        merged: Tokens into which the tiles left out at random are merged; 0 drops them.
        warmup: Share of the training in which the student sees all tiles, 0 to 1.
        witnesses: Expected tiles of a positive bag that show it; a warning says where as many are removed.
        class_weights: Weight of each class in the loss, or "balanced"; None takes 1.
    """

    answers: ClassVar[tuple[str, ...]] = ("classes",)
    alpha, temperature, momentum, memory = 0.5, 0.1, 0.9997, 0.9999
    queries: Tensor
    sums: Tensor

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        hard: float = 0.02,
        kept: float = 1.0,
        merged: int = 0,
        warmup: float = 0.2,
        witnesses: int | None = None,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(encoder, schema, class_weights=class_weights)
        self.masking = Masking(hard, kept, merged, warmup, witnesses)
        self.teacher = Teacher(self.students())
        width = self.attend.content.in_features
        self.register_buffer("queries", torch.randn(merged, width) / math.sqrt(width))
        self.register_buffer("sums", torch.zeros(merged + 1, width), persistent=False)
        self.warned = False

    def students(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {"project": self.project, "attend": self.attend, "answer": self.answer}

    def learn(
        self, bags: BagBatch, target: Tensor, step: Step, counts: Tensor | None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of the student on what it sees, and its distance from the teacher."""
        teaching, scores = self.taught(bags)
        tiles, mask = self.project(tiles_of(bags, self.project)), bags.mask
        if step.progress >= self.masking.warmup:
            hidden = self.hardest(scores, bags.mask)
            tiles, mask = self.remaining(tiles, bags.mask, hidden, step)
            self.warn(hidden)
        attention = masked_softmax(self.attend(tiles), mask).to(tiles)
        embedding = (attention @ tiles)[:, 0]
        answered = self.loss(self.logits(PooledBags(embedding, attention)), target, counts)
        known = labeled(target)
        distances = soft_cross_entropy(teaching / self.temperature, embedding)
        distance = mean_over(
            torch.where(known, distances, 0.0).sum(), known.sum(), None if counts is None else counts[-1]
        )
        loss = answered + self.alpha * distance if self.alpha else answered
        seen = mask.sum().float() / bags.mask.sum()
        return loss, {"bag_loss": answered.detach(), "teacher_loss": distance.detach(), "seen_share": seen.detach()}

    @torch.no_grad()
    def taught(self, bags: BagBatch) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B N"]]:
        """The teacher's pooled vectors, and its score of each tile: the largest share that it has of any class.

        With attention a and the layer W of the answer, tile k has the logits W (a_k h_k) + b; their softmax over the
        tiles is its share of a class.
        """
        project, attend, answer = self.teacher["project"], self.teacher["attend"], self.teacher["answer"]
        tiles = project(tiles_of(bags, project))
        assert isinstance(attend, GatedAttention)
        attention = masked_softmax(attend(tiles), bags.mask).to(tiles)
        weighted = attention[:, 0, :, None] * tiles
        logits = answer.linear(weighted).mT  # type: ignore[operator]  # a Linear head
        return weighted.sum(1), masked_softmax(logits, bags.mask).amax(1)

    def hardest(self, scores: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """The ceil(hard N) tiles of highest score of each bag; one tile is always left."""
        each = torch.minimum((mask.sum(1) * self.masking.hard).ceil().long(), mask.sum(1) - 1)
        rank = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
        return (rank < each[:, None]) & mask

    def remaining(
        self, tiles: Float[Tensor, "B N W"], mask: Bool[Tensor, "B N"], hidden: Bool[Tensor, "B N"], step: Step
    ) -> tuple[Float[Tensor, "B M W"], Bool[Tensor, "B M"]]:
        """What the student sees: a random share of the tiles that are not hidden, and merged ones."""
        rest = mask & ~hidden
        each = (rest.sum(1) * self.masking.kept).floor().long().clamp(min=1)
        if self.masking.kept == 1:
            return tiles, rest
        order = torch.stack([torch.from_numpy(g.random(mask.shape[1])) for g in draws(step, "mhim").numpy()])
        rank = order.to(mask.device).masked_fill(~rest, torch.inf).argsort(1).argsort(1)
        keep = rest & (rank < each[:, None])
        if not self.masking.merged:
            return tiles, keep
        left = rest & ~keep
        tokens = self.merge(tiles, left)
        present = left.any(1)[:, None].expand(-1, self.masking.merged)
        return torch.cat((tiles, tokens), 1), torch.cat((keep, present), 1)

    def merge(self, tiles: Float[Tensor, "B N W"], left: Bool[Tensor, "B N"]) -> Float[Tensor, "B K W"]:
        """Tokens that attend to the tiles that are left out; zeros where there are none."""
        scores = (self.queries.to(tiles) @ tiles.mT / math.sqrt(tiles.shape[2])).to(torch.float32)
        weights = scores.masked_fill(~left[:, None], torch.finfo(torch.float32).min).softmax(2)
        tokens: Tensor = torch.where(left.any(1)[:, None, None], weights.to(tiles) @ tiles, 0.0)
        if self.training:
            present = left.any(1).sum()
            self.sums[:-1] += tokens.detach().sum(0)
            self.sums[-1] += present
        return tokens

    def warn(self, hidden: Bool[Tensor, "B N"]) -> None:
        """Warns once where as many tiles are removed as a bag has witnesses."""
        expected, removed = self.masking.witnesses, int(hidden.sum(1).amax())
        if self.warned or expected is None or removed < expected:
            return
        self.warned = True
        log.warning(
            f"warning: head.hard {self.masking.hard} removes {removed} tiles of a bag, and {expected} are expected to "
            "show its label: it may be removed with them. Lower head.hard, or take the head abmil"
        )

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Moves the teacher towards the student, quickly at first, and the queries towards the merged tokens."""
        self.teacher.follow(self.students(), min(self.momentum, (1 + step.index) / (10 + step.index)))
        if self.masking.merged:
            sums = reduce_sum(self.sums)
            if float(sums[-1, 0]) > 0:
                self.queries.lerp_(sums[:-1] / sums[-1:], 1 - self.memory)
            self.sums.zero_()


def soft_cross_entropy(target: Float[Tensor, "B W"], scores: Float[Tensor, "B W"]) -> Float[Tensor, "B"]:
    """Cross-entropy of the softmax of scores against that of a target: at least the entropy of the target."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return -(target.to(wide).softmax(1) * F.log_softmax(scores.to(wide), 1)).sum(1)
