r"""DenseCL: MoCo v2 of whole views, and of positions of two views that show the same place; dense pretraining.

Predicts: which of a teacher's embeddings shows the same crop, and the same place (Wang et al. 2021).
Encoders: any.

With pooled embeddings q, k and embeddings of positions r, s of a student and a teacher, queues Q of k and S of the mean
s of earlier crops, and the position m(i) of the other view that matches position i::

    nce(a, b, N) = - log( exp(a . b / tau) / (exp(a . b / tau) + sum_{n in N} exp(a . n / tau)) )
    loss         = (1 - w) mean nce(q, k, Q) + w mean_i nce(r_i, s_m(i), S)

m(i) is the nearest position in mm, after the affines of the views, among positions not farther than a cell's diagonal;
by option the position whose features are most similar, as published.

Reference: Wang et al., Dense contrastive learning for self-supervised visual pre-training, CVPR 2021, arXiv 2011.09157.
Differences: matches by place; the teacher's batch norms use running statistics in place of shuffling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from medssl.nn.heads import Projection
from medssl.nn.momentum import MomentumTeacher
from medssl.nn.queue import Queue
from medssl.objectives.base import Objective
from medssl.ops.limits import expect
from medssl.ops.regions import nearest_places
from medssl.ops.similarity import contrast_with_queue, cosine
from medssl.types import Loss, Sampling, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec

DENSE_WEIGHT = 0.5  # as published
DIAGONALS = 1.0  # farther positions do not match


class DenseCL(MomentumTeacher, Objective):
    """DenseCL: contrasts views and positions with those of a momentum teacher and of two queues.

    Args:
        encoder: Any encoder; its pooled features and its last map are projected.
        view: Cropping and augmentation of both views. They must overlap.
        temperature: Divisor of the cosine similarity, above 0.
        projection: Channels of the hidden layer and of the output, of both projections.
        queue: Number of rows in each queue, at least 1.
        matching: "places" (by the affines of the views) or "features" (most similar, as published).
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
        sampling: How scans fill a batch; None takes one crop of each subject.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    progress = "alignment"  # the loss rises while the random rows of the queues leave

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        temperature: float = 0.2,
        projection: tuple[int, int] = (2048, 128),
        queue: int = 65536,
        matching: Literal["places", "features"] = "places",
        momentum: tuple[float, float] = (0.999, 0.999),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.temperature, self.matching = temperature, matching
        self.projection = Projection((encoder.channels[-1], *projection))
        self.dense_projection = Projection((encoder.channels[-1], *projection), ndim=len(view.size))
        self.queue, self.dense_queue = Queue(queue, projection[-1]), Queue(queue, projection[-1])
        self.add_teacher(momentum, {"projection": "projection", "dense_projection": "dense_projection"})

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes the first view with the student and the second with the teacher, and contrasts both levels."""
        self.require(batch, step)
        features = self.encoder(batch.views[0].image)
        q, r = self.projection(features.pooled), self.dense_projection(features.maps[-1]).flatten(2).mT
        with torch.no_grad():
            other = self.teacher["encoder"](batch.views[1].image)
            k = self.teacher["projection"](other.pooled)
            s = self.teacher["dense_projection"](other.maps[-1]).flatten(2).mT
            if self.matching == "places":
                match, matched = self.matches(batch)
            else:
                match = cosine(features.maps[-1].flatten(2).mT, other.maps[-1].flatten(2).mT).argmax(2)
                matched = torch.ones_like(match, dtype=torch.bool)
        keys = s.gather(1, match[:, :, None].expand(-1, -1, s.shape[2]))
        whole, terms = contrast_with_queue(q, k, self.queue.rows, temperature=self.temperature)
        dense, dense_terms = contrast_with_queue(
            r[matched], keys[matched], self.dense_queue.rows, temperature=self.temperature, step_count=step.counts
        )
        loss = (1 - DENSE_WEIGHT) * whole + DENSE_WEIGHT * dense
        self.queue.add(k, step.samples)
        self.dense_queue.add(s.mean(1), step.samples)
        terms |= {"loss": loss.detach(), "whole": terms["loss"], "dense": dense_terms["loss"]}
        return Loss(loss, terms, embedding=features.pooled.detach())

    def matches(self, batch: Batch) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """Nearest position of the second view for each of the first, and whether it is near enough."""
        first, second = batch.views
        cells = [side // stride for side, stride in zip(first.image.shape[2:], self.encoder.strides[-1], strict=True)]
        return nearest_places(first, second, cells, DIAGONALS)

    def counts(self, batch: Batch, step: Step) -> Tensor | None:
        """Number of matched positions."""
        return self.matches(batch)[1].sum() if self.matching == "places" else None

    def after_step(self, step: Step) -> None:
        """Moves the teacher and the queues."""
        super().after_step(step)
        self.queue.after_step()
        self.dense_queue.after_step()
