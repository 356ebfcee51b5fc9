r"""PixPro: positions of two views that show the same place get similar features; dense pretraining.

Predicts: a teacher's features at the same place of the other view, from all similar positions (Xie et al. 2021).
Encoders: any.

With features x of each position i of the last map after a projection, a teacher's x', a linear map t, and pairs P of
positions of views u, v whose centers are nearer than 0.7 of the longer diagonal of their cells::

    y_i   = sum_j max(cos(x_i, x_j), 0)^2 t(x_j)                       (propagation within a view)
    loss  = mean over crops, mean over P of (error(y_i(u), x'_j(v)) + error(y_j(v), x'_i(u))) / 2,  error = 2 - 2 cos

Where a place lies in each view follows from the affines of the views, in mm, also after flips and rotations.

Reference: Xie et al., Propagate yourself: exploring pixel-level consistency for unsupervised visual representation
learning, CVPR 2021, arXiv 2011.10043. Differences: the error is 2 - 2 cos where the paper has -cos; positions of
padding, and those that must not be scored, have no pair; crops without a pair do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.nn.momentum import MomentumTeacher
from medssl.objectives.base import Objective
from medssl.ops.collectives import mean_over
from medssl.ops.limits import expect
from medssl.ops.regions import same_places
from medssl.ops.similarity import cosine
from medssl.ops.spreading import spread
from medssl.types import Loss, Sampling, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec

CHANCE = 2.0  # of directions without relation


class PixPro(MomentumTeacher, Objective):
    """PixPro: predicts a momentum teacher's features at the same place of the other view.

    Args:
        encoder: Any encoder; its last map is projected.
        view: Cropping and augmentation of both views. They must overlap.
        projection: Channels of the hidden layer and of the output.
        distance: Largest distance of a pair, in diagonals of the larger cell, above 0.
        sharpness: Power of the similarity in the propagation, above 0.
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
        distance: float = 0.7,
        sharpness: float = 2.0,
        momentum: tuple[float, float] = (0.99, 1.0),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(distance > 0, "distance", distance, "above 0")
        expect(sharpness > 0, "sharpness", sharpness, "above 0")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling())
        self.distance, self.sharpness = distance, sharpness
        self.projection = Projection((encoder.channels[-1], *projection), ndim=len(view.size))
        self.transform = Projection((projection[-1], projection[-1]), ndim=len(view.size))
        self.add_teacher(momentum, {"projection": "projection"}, batch_statistics=True)

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views with both networks, and compares positions that show the same place."""
        self.require(batch, step)
        images = torch.cat([view.image for view in batch.views])
        features = self.encoder(images)
        x = self.projection(features.maps[-1])
        y = self.propagated(x)
        with torch.no_grad():
            targets = self.teacher["projection"](self.teacher["encoder"](images).maps[-1]).flatten(2).mT
        rows = len(step.samples)
        pairs = self.pairs(batch)
        errors = torch.cat((2 - 2 * cosine(y[:rows], targets[rows:]), 2 - 2 * cosine(y[rows:], targets[:rows])))
        both = torch.cat((pairs, pairs.mT))
        number = both.sum((1, 2))
        means = torch.where(both, errors, 0.0).sum((1, 2)) / number.clamp(min=1)
        loss = mean_over(means.sum() / 2, (number > 0).sum() / 2, step.counts)
        terms = {"loss": loss.detach(), "chance": torch.full_like(loss.detach(), CHANCE)}
        terms["pairs"] = mean_over(pairs.sum(), rows).detach()
        terms["uniformity"] = spread(x[:rows].detach().flatten(2).mean(2))
        return Loss(loss, terms, embedding=features.pooled[:rows].detach())

    def propagated(self, x: Float[Tensor, "B D *cells"]) -> Float[Tensor, "B N D"]:
        """Each position as a sum over the positions of its view that are similar."""
        positions = x.flatten(2).mT
        similar = cosine(positions, positions).relu()
        similar = torch.where(similar > 0, similar.clamp(min=1e-6) ** self.sharpness, 0.0)
        moved: Tensor = self.transform(x).flatten(2).mT
        return similar @ moved.to(similar.dtype)

    def pairs(self, batch: Batch) -> Bool[Tensor, "B N N"]:
        """Positions of both views that show the same place."""
        first, second = batch.views
        cells = [side // stride for side, stride in zip(first.image.shape[2:], self.encoder.strides[-1], strict=True)]
        return same_places(first, second, cells, self.distance)

    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Number of crops with a pair."""
        return self.pairs(batch).flatten(1).any(1).sum()
