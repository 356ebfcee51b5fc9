r"""NNCLR: the nearest neighbor of one view, among earlier embeddings, is the positive of the other view.

Predicts: which crop has a view whose nearest neighbor in a queue is given (Dwibedi et al. 2021).
Encoders: any.

With encoder f, projection g, predictor q, a queue Q of earlier embeddings, and views u, v of the crops i of all
processes::

    z(u)  = unit(g(f(u))),  p(u) = unit(q(z(u))),  n(u) = the row of Q that is nearest to z(u)
    loss  = - mean_i log( exp(n_i(u) . p_i(v) / tau) / sum_j exp(n_i(u) . p_j(v) / tau) ), and with u and v exchanged

Positives are other scans that look alike, so that more than the changes of views is learned to be ignored.

Reference: Dwibedi et al., With a little help from my friends: nearest-neighbor contrastive learning of visual
representations, ICCV 2021, arXiv 2104.14548. Differences: the loss is the mean of both directions; the queue is that
of all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.nn.queue import Queue
from medssl.objectives.base import Objective
from medssl.ops.limits import expect
from medssl.ops.similarity import contrast, cosine
from medssl.ops.tags import tags
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class NNCLR(Objective):
    """NNCLR: contrasts the nearest neighbors of one view's embeddings with the predictions of the other view.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        temperature: Divisor of the cosine similarity, above 0.
        projection: Channels of the hidden layers and of the output; a batch norm follows each, also the last.
        prediction: Channels of the hidden layer of the predictor, at least 1.
        queue: Number of rows in the queue, at least 1.
        sampling: How scans fill a batch; None takes one crop of each subject.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        temperature: float = 0.1,
        projection: Sequence[int] = (2048, 2048, 256),
        prediction: int = 4096,
        queue: int = 98304,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.temperature = temperature
        self.projection = Projection((encoder.channels[-1], *projection), norm_output=True)
        self.predictor = Projection((projection[-1], prediction, projection[-1]))
        self.queue = Queue(queue, projection[-1])

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views, replaces embeddings by their neighbors, and contrasts them with predictions."""
        self.require(batch, step)
        features = self.encoder(torch.cat([view.image for view in batch.views]))
        z = self.projection(features.pooled)
        predicted = self.predictor(z)
        neighbors = self.queue.rows[cosine(z.detach(), self.queue.rows).argmax(1)].to(z.dtype)
        row_tags = tags(batch, step, parts=1)
        all_tags = row_tags.gathered()
        if len(all_tags.crop) < 4:
            message = "NNCLR tells crops from each other, and the batch has one: take a larger training.batch_size"
            raise UserError(message)
        other_view = row_tags.view[:, None] != all_tags.view
        same = row_tags.same_crop(all_tags)
        loss, terms = contrast(
            neighbors, same & other_view, other_view, distinct=~same, temperature=self.temperature, candidates=predicted
        )
        self.queue.add(z[: len(step.samples)], step.samples)
        return Loss(loss, terms, embedding=features.pooled[: len(step.samples)].detach())

    def after_step(self, step: Step) -> None:
        """Moves the queue."""
        self.queue.after_step()
