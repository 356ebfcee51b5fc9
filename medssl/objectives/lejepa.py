r"""LeJEPA: views of a crop have one embedding, and embeddings of all crops are normally distributed; no teacher.

Predicts: the mean embedding of the global views, from every view; embeddings stay normal (Balestriero and LeCun 2025).
Encoders: any.

With encoder f, projector h, global views u and local views v of each crop, :math:`z = h(f(\cdot))` with D channels, and
random unit vectors :math:`a_1 \dots a_S` that are drawn anew in each step::

    prediction = mean over crops, views v and channels of (z_v - mean_u z_u)^2
    SIGReg     = mean over views and directions of EP(a_s . z_v), over the crops of all processes
    loss       = (1 - lambda) prediction + lambda SIGReg

EP is the statistic of Epps and Pulley: the squared distance of the characteristic functions of the projections and of a
standard normal distribution, times the number of crops. Embeddings that collapse, or use few directions, are far from
normal, so that neither a teacher nor a stopped gradient is needed.

Reference: Balestriero and LeCun, LeJEPA: Provable and scalable self-supervised learning without the heuristics, 2025,
arXiv 2511.08544; implemented from its description. Differences: left and right are not exchanged, and brightness and
contrast change instead of colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.objectives.base import Objective
from medssl.ops.collectives import mean_over
from medssl.ops.limits import expect
from medssl.ops.multi_crop import WHOLE, multi_crop, pooled_of
from medssl.ops.normality import NULL, epps_pulley, random_directions
from medssl.types import Loss, ViewPlan

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class LeJEPA(Objective):
    """LeJEPA: predicts the mean embedding of the global views, and keeps embeddings normally distributed (SIGReg).

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: How the two global views are cut and changed.
        local_view: How the local views are cut and changed; None has none.
        local_views: Number of local views, 0 or more.
        projection: Channels of the hidden layers and of the embeddings; a batch norm follows each hidden layer.
        slices: Number of random directions in a step, at least 1.
        weight: Weight lambda of SIGReg, above 0 and below 1; that of the prediction is 1 - lambda.

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
        projection: Sequence[int] = (2048, 2048, 64),
        slices: int = 1024,
        weight: float = 0.05,
    ) -> None:
        super().__init__()
        expect(slices >= 1, "slices", slices, "at least 1")
        expect(0 < weight < 1, "weight", weight, "above 0 and below 1")
        self.encoder = encoder
        self.needs = ViewPlan(multi_crop(view, local_view, local_views))
        for spec in self.needs.views:
            self.fits(encoder, spec)
        self.projection = Projection((encoder.channels[-1], *projection))
        self.width, self.slices, self.weight = projection[-1], slices, weight

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Embeds all views, compares them with the mean of the global ones, and judges their distribution."""
        self.require(batch, step)
        samples = len(step.samples)
        pooled = pooled_of(lambda images: self.encoder(images).pooled, batch.views)
        z = self.projection(pooled)
        z = z.to(torch.promote_types(z.dtype, torch.float32)).reshape(len(batch.views), samples, self.width)
        errors = (z - z[:WHOLE].mean(0)).square()
        prediction = mean_over(errors.sum(), errors.numel())
        directions = random_directions(self.width, self.slices, step.seed, step.index).to(z.device)
        sigreg = epps_pulley(z, directions).mean()
        loss = (1 - self.weight) * prediction + self.weight * sigreg
        terms = {"loss": loss.detach(), "prediction": prediction.detach(), "sigreg": sigreg.detach()}
        terms["sigreg_normal"] = sigreg.new_tensor(NULL)
        return Loss(loss, terms, embedding=pooled[:samples].detach())
