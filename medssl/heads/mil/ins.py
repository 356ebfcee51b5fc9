r"""INS: a classifier of single tiles, from labels of bags, by prototypes and contrast (rethinking instances).

Each tile has candidate labels: a tile of a negative bag is negative, one of a positive bag may be either. A teacher's
probabilities p_t and the nearer of two prototypes mu give pseudo-labels, and the classifier learns them::

    c    = phi p_t + (1 - phi) onehot( argmax_k candidates_k exp(q mu_k) )         negative bags: c = (1, 0)
    loss = - mean sum_k c_k log p_k + contrast L_con + bag_weight cross-entropy(score of the bag)

L_con draws a tile's projection q to that of the teacher and to tiles of the same predicted class; in the first
``warmup`` of the steps only to the teacher's. Prototypes are running means of q by predicted class, of unit length. The
score of a bag is the mean probability of its highest tiles: 5 % of them, one at least.

The published method remembers c of every tile between its visits and mixes it with phi. Bags of a run are sampled, so
here the teacher's weights are what remembers. The contrast is within the batch, not with a queue of 8,192.
Reference: Qu et al., Rethinking multiple instance learning for whole slide image classification, 2023,
arXiv 2307.02249.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from medssl.heads.classification import Classification
from medssl.heads.mil.base import BagHead, ClassWeights, PooledBags, labeled, projection, tiles_of
from medssl.nn.teacher import Teacher
from medssl.ops.collectives import gather, mean_over, rank, reduce_sum, world_size
from medssl.ops.draws import draws
from medssl.ops.limits import expect
from medssl.ops.schedules import linear
from medssl.types import Features, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema, Step


class BagScore(Classification):
    """Turns the score of a bag into logits of two classes; it has no weights."""

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K"]:
        """Logarithms of 1 - s and s; their softmax gives both back."""
        score = features.pooled[:, 0].to(torch.promote_types(features.pooled.dtype, torch.float32))
        score = score.clamp(1e-6, 1 - 1e-6)
        return torch.stack((torch.log1p(-score), score.log()), 1)


class INS(BagHead):
    """Classifier of tiles. Labels have two classes, of which the second is positive.

    Args:
        encoder: Its last map's channels are the features of a tile.
        schema: Two classes.
        tiles: Tiles of a bag that learn from one another in a step, drawn at random, at least 1.
        warmup: Share of the training in which tiles are drawn to the teacher alone, 0 to 1.
        phi: Weight of the teacher's probabilities, first and last, 0 to 1.
        contrast: Weight of the contrast, 0 or more.
        bag_weight: Weight of the cross-entropy of bags, 0 or more.
        class_weights: Weight of each class of bags in the loss, or "balanced"; None takes 1.

    Raises:
        UserError: Another number of classes than two, or an argument is out of range.
    """

    answers: ClassVar[tuple[str, ...]] = ("classes",)
    width, projected, temperature, momentum, memory, share = 512, 128, 0.07, 0.999, 0.9, 0.05
    prototypes: Tensor
    sums: Tensor

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        tiles: int = 128,
        warmup: float = 0.2,
        phi: tuple[float, float] = (0.95, 0.8),
        contrast: float = 0.5,
        bag_weight: float = 0.5,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(1, schema, class_weights=None)
        if len(schema.classes) != 2:
            message = f"{schema.name!r} has {len(schema.classes)} classes: tiles are positive or negative"
            raise UserError(message, key="head", expected="a target of two classes", hint="Take the head clam or abmil")
        phi = (float(phi[0]), float(phi[1]))
        expect(tiles >= 1, "head.tiles", tiles, "at least 1")
        expect(all(0 <= value <= 1 for value in phi), "head.phi", phi, "from 0 to 1")
        expect(min(contrast, bag_weight) >= 0, "head.contrast and head.bag_weight", (contrast, bag_weight), "0 or more")
        self.tiles, self.warmup, self.phi = tiles, warmup, phi
        self.contrast, self.bag_weight = contrast, bag_weight
        self.answer = BagScore(schema, dropout=0.0, label_smoothing=0.0, class_weights=class_weights)
        self.project = projection(encoder.channels[-1], self.width, 0.25)
        self.classify = nn.Linear(self.width, 2)
        self.embed = nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, self.projected))
        self.teacher = Teacher(self.students())
        self.register_buffer("prototypes", F.normalize(torch.randn(2, self.projected), dim=1))
        self.register_buffer("sums", torch.zeros(2, self.projected + 1), persistent=False)

    def students(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {"project": self.project, "classify": self.classify, "embed": self.embed}

    def pool(self, bags: BagBatch) -> PooledBags:
        """Score of each bag; the weight of a tile is its probability as a share of all."""
        positive = self.classify(self.project(tiles_of(bags, self.project))).softmax(2)[..., 1]
        positive = positive.masked_fill(~bags.mask, 0)
        weights = positive / positive.sum(1, keepdim=True).clamp(min=1e-30)
        return PooledBags(self.score(positive, bags.mask)[:, None], weights[:, None])

    def score(self, positive: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B"]:
        """Mean of the highest probabilities of each bag: 5 % of its tiles, one at least."""
        each = (mask.sum(1) * self.share).ceil().long().clamp(min=1)
        highest = positive.masked_fill(~mask, -torch.inf).sort(1, descending=True).values
        counted = torch.arange(mask.shape[1], device=mask.device) < each[:, None]
        return torch.where(counted, highest, 0.0).sum(1) / each

    def learn(
        self, bags: BagBatch, target: Tensor, step: Step, counts: Tensor | None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of the tiles' pseudo-labels, of the contrast and of the bags."""
        known, mask = labeled(target), bags.mask
        inputs = tiles_of(bags, self.project)
        tiles = self.project(inputs)
        logits = self.classify(tiles).to(torch.promote_types(tiles.dtype, torch.float32))
        candidates = candidates_of(target, mask.shape[1])
        with torch.no_grad():
            former = self.teacher["project"](inputs)
            taught = (self.teacher["classify"](former).softmax(2) * candidates).to(logits)
            taught = taught / taught.sum(2, keepdim=True)
        queries = F.normalize(self.embed(tiles).to(logits.dtype), dim=2)
        nearest = (queries.detach() @ self.prototypes.T).softmax(2) * candidates
        labels = mixed_labels(taught, nearest.argmax(2), linear(step.progress, *self.phi))
        entropy = -(labels * F.log_softmax(logits, 2)).sum(2)
        used = mask & known[:, None]
        of_tiles = torch.where(used, entropy, 0.0).sum(1) / mask.sum(1)
        count = None if counts is None else counts[-1]
        tile_loss = mean_over(torch.where(known, of_tiles, 0.0).sum(), known.sum(), count)
        positive = logits.softmax(2)[..., 1]
        pooled = PooledBags(self.score(positive, mask)[:, None], positive[:, None])
        bag_loss = self.loss(self.logits(pooled), target, counts)
        predicted = (logits.detach().softmax(2) * candidates).argmax(2)
        contrast = self.contrast_of(queries, former, predicted, used, step)
        self.remember(queries.detach(), predicted, used)
        loss = tile_loss + self.contrast * contrast + self.bag_weight * bag_loss
        terms = {"bag_loss": bag_loss, "tile_loss": tile_loss, "contrast_loss": contrast}
        return loss, {name: value.detach() for name, value in terms.items()}

    def contrast_of(
        self,
        queries: Float[Tensor, "B N E"],
        former: Float[Tensor, "B N W"],
        predicted: Int[Tensor, "B N"],
        used: Bool[Tensor, "B N"],
        step: Step,
    ) -> Float[Tensor, ""]:
        """Contrast of a few tiles of each bag with the teacher's of all processes."""
        order = torch.stack([torch.from_numpy(g.random(used.shape[1])) for g in draws(step, "ins").numpy()])
        place = order.to(used.device).masked_fill(~used, torch.inf).argsort(1).argsort(1)
        chosen = used & (place < self.tiles)
        with torch.no_grad():
            keys = F.normalize(self.teacher["embed"](former[chosen]).to(queries.dtype), dim=1)
            number = torch.tensor([len(keys)], device=keys.device)
            before = int(gather(number)[: rank()].sum()) if world_size() > 1 else 0
            all_keys, all_labels = gather(keys), gather(predicted[chosen])
        own = torch.arange(before, before + len(keys), device=keys.device)
        is_same = predicted[chosen][:, None] == all_labels[None]
        if step.progress < self.warmup:
            is_same = torch.zeros_like(is_same)
        is_same[torch.arange(len(own), device=own.device), own] = True
        losses = supervised_contrast(queries[chosen], all_keys, is_same, self.temperature)
        return mean_over(losses.sum(), len(losses))

    @torch.no_grad()
    def remember(
        self, queries: Float[Tensor, "B N E"], predicted: Int[Tensor, "B N"], used: Bool[Tensor, "B N"]
    ) -> None:
        """Adds up the projections of each class until the step is over."""
        if not self.training:
            return
        rows = torch.cat((queries[used], queries.new_ones(int(used.sum()), 1)), 1)
        self.sums.index_add_(0, predicted[used], rows.to(self.sums))

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Moves the teacher and the prototypes."""
        self.teacher.follow(self.students(), min(self.momentum, (1 + step.index) / (10 + step.index)))
        sums = reduce_sum(self.sums)
        means = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        moved = F.normalize(self.memory * self.prototypes + (1 - self.memory) * means, dim=1)
        self.prototypes.copy_(torch.where(sums[:, -1:] > 0, moved, self.prototypes))
        self.sums.zero_()


def candidates_of(target: Int[Tensor, "B"], tiles: int) -> Float[Tensor, "B N 2"]:
    """1 where a tile may have a class: in negative bags only the first, else both."""
    negative = torch.tensor([1.0, 0.0], device=target.device)
    of_bags = torch.where((target == 0)[:, None], negative, torch.ones_like(negative))
    return of_bags[:, None].expand(-1, tiles, -1)


def mixed_labels(former: Float[Tensor, "B N 2"], nearest: Int[Tensor, "B N"], phi: float) -> Float[Tensor, "B N 2"]:
    """Pseudo-labels: ``phi`` of the former ones and the rest of the nearest prototype's class."""
    return phi * former + (1 - phi) * F.one_hot(nearest, 2).to(former)


def supervised_contrast(
    queries: Float[Tensor, "M E"], keys: Float[Tensor, "K E"], is_same: Bool[Tensor, "M K"], temperature: float
) -> Float[Tensor, "M"]:
    """Mean over the keys of the same class of the negative log-softmax (Khosla et al., NeurIPS 2020)."""
    log_shares = F.log_softmax(queries @ keys.T / temperature, 1)
    return -torch.where(is_same, log_shares, 0.0).sum(1) / is_same.sum(1)
