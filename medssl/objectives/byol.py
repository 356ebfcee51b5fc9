r"""BYOL: from one view of a crop a student predicts what a slowly moving teacher makes of the other view.

Predicts: a teacher's embedding of the other view (Grill et al. 2020).
Encoders: any.

With student encoder, projection and predictor :math:`f, g, q`, teacher :math:`f', g'`, and views u, v of each crop::

    error(u, v) = | unit(q(g(f(u)))) - unit(g'(f'(v))) |^2 = 2 - 2 cos
    loss        = mean over crops of (error(u, v) + error(v, u)) / 2
    f', g'     <- m (f', g') + (1 - m) (f, g) after each step; m rises to 1 along a cosine

No crop is compared with another one, so that small batches work. The predictor and the slow teacher keep embeddings
from becoming all alike; a loss near 0 with a uniformity near 0 means that they have.

Reference: Grill et al., Bootstrap your own latent: a new approach to self-supervised learning, NeurIPS 2020, arXiv
2006.07733. Differences: the loss is the mean of both directions and not their sum, both views have the same changes,
both pass the network in one batch, and batch norms are over all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.nn.momentum import MomentumTeacher
from medssl.objectives.base import Objective
from medssl.ops.collectives import mean_over
from medssl.ops.similarity import cosine_error
from medssl.ops.spreading import spread
from medssl.types import Loss, Sampling, ViewPlan

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec

CHANCE = 2.0  # of directions without relation


class BYOL(MomentumTeacher, Objective):
    """BYOL: predicts a momentum teacher's embedding of the other view, without negatives.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        projection: Channels of the hidden layer and of the output.
        prediction: Channels of the hidden layer of the predictor, at least 1.
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
        sampling: How scans fill a batch; None takes any.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        projection: tuple[int, int] = (4096, 256),
        prediction: int = 4096,
        momentum: tuple[float, float] = (0.996, 1.0),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling())
        self.projection = Projection((encoder.channels[-1], *projection))
        self.predictor = Projection((projection[-1], prediction, projection[-1]))
        self.add_teacher(momentum, {"projection": "projection"}, batch_statistics=True)

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views with both networks, and compares each prediction with the teacher's other view."""
        self.require(batch, step)
        images = torch.cat([view.image for view in batch.views])
        features = self.encoder(images)
        z = self.projection(features.pooled)
        predicted = self.predictor(z)
        with torch.no_grad():
            targets = self.teacher["projection"](self.teacher["encoder"](images).pooled)
        rows = len(step.samples)
        errors = cosine_error(predicted, targets.roll(rows, 0))
        loss = mean_over(errors.sum(), len(errors))
        terms = {"loss": loss.detach(), "chance": torch.full_like(loss.detach(), CHANCE)}
        terms["uniformity"] = spread(z[:rows].detach())
        return Loss(loss, terms, embedding=features.pooled[:rows].detach())
