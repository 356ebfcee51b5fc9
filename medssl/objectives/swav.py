r"""SwAV: the prototypes that one view is assigned to are predicted from all other views, also from small ones.

Predicts: to which prototypes another view is assigned, also from small views (Caron et al. 2020).
Encoders: any.

With encoder f, projection g, K prototypes c, two large views and any number of small views v of each crop::

    s(v)  = unit(g(f(v))) . unit(c_k)
    q(v)  = Sinkhorn(s / epsilon) over the batch, and over a queue of earlier embeddings: equal shares; no gradient
    loss  = mean over the large views u, over the other views v, and over crops of CE(q(u), softmax(s(v) / tau))

Equal shares keep the assignment from naming one prototype for everything. Batches with fewer crops than prototypes
need the queue: its rows take part in the assignment, with the prototypes of now, and have no loss.

Reference: Caron et al., Unsupervised learning of visual features by contrasting cluster assignments, NeurIPS 2020,
arXiv 2006.09882. Differences: prototypes are compared by direction in place of being normalized before each step,
Sinkhorn starts from rows that sum to 1, and assignment and queue are over all processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.nn.heads import Projection
from medssl.nn.queue import Queue
from medssl.nn.teacher import teacher_terms
from medssl.objectives.base import Objective
from medssl.ops.assignment import cross_view, sinkhorn
from medssl.ops.collectives import mean_over, rank, world_size
from medssl.ops.limits import expect
from medssl.ops.multi_crop import WHOLE, multi_crop, pooled_of
from medssl.ops.similarity import cosine
from medssl.types import Loss, Sampling, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


@dataclass(frozen=True)
class Clusters:
    """Prototypes and how views are assigned to them.

    Attributes:
        count: Number of prototypes, at least 2.
        temperature: Of predictions, above 0.
        epsilon: Of assignments, above 0; the lower, the sharper.
        iterations: Of Sinkhorn-Knopp, at least 1.
        frozen: Share of the training, 0 to 1, in which the prototypes stay as they are.
        queue: Earlier embeddings of each large view that take part in the assignment; 0 has none.
        queue_from: Share of the training, 0 to 1, from which on the queue is used, once it is full.
    """

    count: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    frozen: float = 0.01
    queue: int = 0
    queue_from: float = 0.15

    def __post_init__(self) -> None:
        expect(self.count >= 2, "clusters.count", self.count, "at least 2")
        expect(self.temperature > 0, "clusters.temperature", self.temperature, "above 0")
        expect(self.epsilon > 0, "clusters.epsilon", self.epsilon, "above 0")
        expect(self.iterations >= 1, "clusters.iterations", self.iterations, "at least 1")
        expect(0 <= self.frozen <= 1, "clusters.frozen", self.frozen, "from 0 to 1")
        expect(self.queue >= 0, "clusters.queue", self.queue, "0 or more")
        expect(0 <= self.queue_from <= 1, "clusters.queue_from", self.queue_from, "from 0 to 1")


class SwAV(Objective):
    """SwAV: predicts from each view the prototypes that the large views are assigned to.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: How both large views are cut and changed.
        local_view: How the small views are cut and changed; None has none.
        local_views: Number of small views, at least 0.
        clusters: The prototypes.
        projection: Channels of the hidden layer and of the output.
        sampling: How scans fill a batch; None takes any.

    Raises:
        UserError: A view does not fit the encoder, or a setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        local_view: ViewSpec | None = None,
        local_views: int = 0,
        clusters: Clusters = Clusters(),
        projection: tuple[int, int] = (2048, 128),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.clusters = encoder, clusters
        self.needs = ViewPlan(multi_crop(view, local_view, local_views), sampling or Sampling())
        for spec in self.needs.views:
            self.fits(encoder, spec)
        self.projection = Projection((encoder.channels[-1], *projection))
        self.prototypes = nn.Parameter(torch.randn(clusters.count, projection[-1]))
        self.queues = nn.ModuleList(
            Queue(clusters.queue, projection[-1]) for _ in range(WHOLE if clusters.queue else 0)
        )

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes all views, assigns the large ones, and compares."""
        self.require(batch, step)
        samples = len(step.samples)
        pooled = pooled_of(lambda images: self.encoder(images).pooled, batch.views)
        z = self.projection(pooled).unflatten(0, (-1, samples))
        scores = cosine(z, self.prototypes)
        targets = torch.stack([self.assigned(number, scores[number].detach(), step) for number in range(WHOLE)])
        errors = cross_view(scores, targets, self.clusters.temperature) / (WHOLE * (len(scores) - 1))
        loss = mean_over(errors.sum(), samples)
        for number, queue in enumerate(self.queues):
            assert isinstance(queue, Queue)
            queue.add(z[number], step.samples)
        terms = teacher_terms({"assigned": targets.flatten(0, 1)}) | {"loss": loss.detach()}
        terms["chance"] = torch.full_like(terms["loss"], math.log(self.clusters.count))
        return Loss(loss, terms, embedding=pooled[:samples].detach())

    @torch.no_grad()
    def assigned(self, number: int, scores: Float[Tensor, "B K"], step: Step) -> Float[Tensor, "B K"]:
        """Assignment of one large view of the batch, together with the rows of its queue."""
        rows = len(scores)
        if self.queues and step.progress >= self.clusters.queue_from:
            queue = self.queues[number]
            assert isinstance(queue, Queue)
            if queue.full:  # each process takes its share of the rows, since all hold the same queue
                scores = torch.cat((scores, cosine(queue.rows[rank() :: world_size()], self.prototypes)))
        return sinkhorn(scores, self.clusters.epsilon, iterations=self.clusters.iterations)[:rows]

    def before_step(self, step: Step) -> None:
        """Holds the prototypes in the first steps."""
        if step.progress < self.clusters.frozen and self.prototypes.grad is not None:
            self.prototypes.grad.zero_()

    def after_step(self, step: Step) -> None:
        """Moves the queues."""
        for queue in self.queues:
            assert isinstance(queue, Queue)
            queue.after_step()
