r"""SimSiam: from one view of a crop a network predicts its own embedding of the other view, with the gradient stopped.

Predicts: its own embedding of the other view (Chen and He 2021).
Encoders: any.

With encoder :math:`f`, projection :math:`g`, predictor q, and views u, v of each crop::

    z, p  = g(f(x)), q(z)
    loss  = mean over crops of (error(p_u, stop(z_v)) + error(p_v, stop(z_u))) / 2,  error = 2 - 2 cos

No teacher, no negatives: the cheapest of the objectives on pairs of views. Without the stopped gradient or without the
predictor all embeddings become alike; a loss near 0 with a uniformity near 0 means that they have.

Reference: Chen and He, Exploring simple Siamese representation learning, CVPR 2021, arXiv 2011.10566. Differences: the
error is 2 - 2 cos where the paper has -cos, so that 0 is the least; the predictor's learning rate follows the schedule
of the others (the paper holds it by option; ``optimizer.rates`` changes its share); batch norms are over all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.objectives.base import Objective
from medssl.ops.collectives import mean_over
from medssl.ops.similarity import cosine_error
from medssl.ops.spreading import spread
from medssl.types import Loss, Sampling, ViewPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec

CHANCE = 2.0  # of directions without relation


class SimSiam(Objective):
    """SimSiam: predicts its own embedding of the other view, without negatives and without a teacher.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        projection: Channels of the hidden layers and of the output; a batch norm follows each, also the last.
        prediction: Channels of the hidden layer of the predictor, at least 1; a quarter of the output in the paper.
        sampling: How scans fill a batch; None takes any.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        projection: Sequence[int] = (2048, 2048, 2048),
        prediction: int = 512,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling())
        self.projection = Projection((encoder.channels[-1], *projection), norm_output=True)
        self.predictor = Projection((projection[-1], prediction, projection[-1]))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views, and compares each prediction with the embedding of the other view."""
        self.require(batch, step)
        features = self.encoder(torch.cat([view.image for view in batch.views]))
        z = self.projection(features.pooled)
        rows = len(step.samples)
        errors = cosine_error(self.predictor(z), z.detach().roll(rows, 0))
        loss = mean_over(errors.sum(), len(errors))
        terms = {"loss": loss.detach(), "chance": torch.full_like(loss.detach(), CHANCE)}
        terms["uniformity"] = spread(z[:rows].detach())
        return Loss(loss, terms, embedding=features.pooled[:rows].detach())
