r"""MoCo v2: embeddings of two views become similar, and dissimilar from a queue of embeddings of earlier batches.

Predicts: which of a teacher's embeddings shows the same crop, among a queue (Chen et al. 2020).
Encoders: any.

With student f, projection g, teacher :math:`f', g'`, views u, v of each crop, and a queue Q of K rows::

    q, k  = unit(g(f(u))), unit(g'(f'(v)))
    loss  = - mean over crops of log( exp(q . k / tau) / (exp(q . k / tau) + sum_{n in Q} exp(q . n / tau)) )
    f', g' <- m (f', g') + (1 - m) (f, g) after each step; then the k of the step enter Q and the oldest rows leave

The number of negatives does not depend on the batch. Rows of the present batch are no negatives.

References: He et al., Momentum contrast for unsupervised visual representation learning, CVPR 2020, arXiv 1911.05722;
Chen et al., Improved baselines with momentum contrastive learning, 2020, arXiv 2003.04297. Differences: the teacher's
batch norms use running statistics, in place of the paper's shuffling between devices, so that statistics do not tell
which rows belong together; the projection has a batch norm; the queue is that of all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.nn.momentum import MomentumTeacher
from medssl.nn.queue import Queue
from medssl.objectives.base import Objective
from medssl.ops.limits import expect
from medssl.ops.similarity import contrast_with_queue
from medssl.types import Loss, Sampling, ViewPlan

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class MoCoV2(MomentumTeacher, Objective):
    """MoCo v2: contrasts the student's view with the teacher's other view and a queue of its former embeddings.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        temperature: Divisor of the cosine similarity, above 0.
        projection: Channels of the hidden layer and of the output.
        queue: Number of rows in the queue, at least 1.
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
        sampling: How scans fill a batch; None takes one crop of each subject.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    progress = "alignment"  # the loss rises while the random rows of the queue leave

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        temperature: float = 0.2,
        projection: tuple[int, int] = (2048, 128),
        queue: int = 65536,
        momentum: tuple[float, float] = (0.999, 0.999),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.temperature = temperature
        self.projection = Projection((encoder.channels[-1], *projection))
        self.queue = Queue(queue, projection[-1])
        self.add_teacher(momentum, {"projection": "projection"})

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes the first view with the student and the second with the teacher, and contrasts them."""
        self.require(batch, step)
        query, key = (view.image for view in batch.views)
        features = self.encoder(query)
        q = self.projection(features.pooled)
        with torch.no_grad():
            k = self.teacher["projection"](self.teacher["encoder"](key).pooled)
        loss, terms = contrast_with_queue(q, k, self.queue.rows, temperature=self.temperature)
        self.queue.add(k, step.samples)
        return Loss(loss, terms, embedding=features.pooled.detach())

    def after_step(self, step: Step) -> None:
        """Moves the teacher and the queue."""
        super().after_step(step)
        self.queue.after_step()
