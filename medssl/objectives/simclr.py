r"""SimCLR: embeddings of two random views of a crop become similar to each other and dissimilar from all others.

Predicts: which two views show the same crop (Chen et al. 2020).
Encoders: any.

With encoder :math:`f`, projection :math:`g`, views :math:`x_1 \dots x_B` and :math:`x_{B+1} \dots x_{2B}` of the same B
crops, and j(i) the other view of i::

    z_i  = g(f(x_i)) / |g(f(x_i))|
    loss = - mean_i log( exp(z_i . z_j(i) / tau) / sum_{k != i} exp(z_i . z_k / tau) )

Reference: Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020,
arXiv 2002.05709. ``docs/objectives/simclr.md`` lists the differences from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.objectives.base import Objective
from medssl.ops.limits import expect
from medssl.ops.similarity import contrast
from medssl.ops.tags import tags
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class SimCLR(Objective):
    """SimCLR: contrasts the two views of a crop with the views of all other crops of all processes.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        temperature: Divisor of the cosine similarity, above 0.
        projection: Channels of the hidden layers and of the output; the first is often the encoder's width.
        sampling: How scans fill a batch. None takes one crop of each subject, since crops of one scan are similar and
            would be contrasted with each other.

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
        projection: Sequence[int] = (128, 128),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.temperature = temperature
        self.projection = Projection((encoder.channels[-1], *projection))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views in one batch, projects, and contrasts with the rows of all processes."""
        self.require(batch, step)
        features = self.encoder(torch.cat([view.image for view in batch.views]))
        z = self.projection(features.pooled)
        row_tags = tags(batch, step, parts=1)
        all_tags = row_tags.gathered()
        if len(all_tags.crop) < 4:
            message = "SimCLR tells crops from each other, and the batch has one: take a larger training.batch_size"
            raise UserError(message)
        distinct = ~row_tags.same_view(all_tags)
        loss, terms = contrast(
            z, row_tags.same_crop(all_tags) & distinct, distinct, distinct=distinct, temperature=self.temperature
        )
        return Loss(loss, terms, embedding=features.pooled[: len(step.samples)].detach())
