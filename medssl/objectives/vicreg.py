r"""VICReg: two views of a crop get equal embeddings, whose channels vary over the batch and are not correlated.

Predicts: equal embeddings of two views, with varied and uncorrelated channels (Bardes et al. 2022).
Encoders: any.

With embeddings :math:`Z, Z'` [N, D] of both views of the N crops of all processes::

    invariance = mean over rows and channels of (Z - Z')^2
    v(Z)       = mean over channels d of max(0, 1 - sqrt(var(Z_d) + 1e-4))
    c(Z)       = sum over d != e of cov(Z_d, Z_e)^2 / D
    loss       = 25 invariance + 25 (v(Z) + v(Z')) / 2 + 1 (c(Z) + c(Z'))

Embeddings that are all alike cost 25 times almost 1 ("chance"). There is no teacher and there are no negatives.

Reference: Bardes, Ponce and LeCun, VICReg: variance-invariance-covariance regularization for self-supervised learning,
ICLR 2022, arXiv 2105.04906. As in the authors' code the variance is the mean over both views. Both views pass the
network in one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.objectives.base import Objective
from medssl.ops.collectives import gather, mean_over
from medssl.ops.limits import expect
from medssl.ops.similarity import covariance_term, variance_term
from medssl.ops.spreading import spread
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class VICReg(Objective):
    """VICReg: equal embeddings of two views; variance and covariance over the batch keep them from being all alike.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        projection: Channels of the hidden layers and of the output.
        weights: Of invariance, variance and covariance, 0 or more each.
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
        projection: Sequence[int] = (8192, 8192, 8192),
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(min(weights) >= 0, "weights", tuple(weights), "0 or more each")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.weights = tuple(weights)
        self.projection = Projection((encoder.channels[-1], *projection))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views in one batch, projects, and compares rows and channels over all processes."""
        self.require(batch, step)
        features = self.encoder(torch.cat([view.image for view in batch.views]))
        z = self.projection(features.pooled)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        rows = len(step.samples)
        views = [gather(part) for part in (z[:rows], z[rows:])]
        if len(views[0]) < 2:
            message = "VICReg takes the variance over crops, and the batch has one: take a larger training.batch_size"
            raise UserError(message)
        parts = {
            "invariance": mean_over((z[:rows] - z[rows:]).square().mean(1).sum(), rows),
            "variance": torch.stack([variance_term(view) for view in views]).mean(),
            "covariance": torch.stack([covariance_term(view) for view in views]).sum(),
        }
        loss = torch.stack([weight * part for weight, part in zip(self.weights, parts.values(), strict=True)]).sum()
        terms = {name: part.detach() for name, part in parts.items()} | {"loss": loss.detach()}
        terms["chance"] = self.weights[1] * variance_term(torch.zeros_like(views[0].detach()))
        terms["uniformity"] = spread(z[:rows].detach())
        return Loss(loss, terms, embedding=features.pooled[:rows].detach())
