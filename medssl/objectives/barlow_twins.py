r"""Barlow Twins: the cross-correlation of the embeddings of two views becomes the identity; mixed images by option.

Predicts: each channel of the other view's embedding, and no other channel (Zbontar et al. 2021).
Encoders: any.

With embeddings :math:`Z, Z'` [N, D] of both views of the N crops of all processes, each channel with mean 0 and
deviation 1 over the batch::

    C    = Z^T Z' / N
    loss = sum_d (1 - C_dd)^2 + w sum_{d != e} C_de^2

Embeddings that share nothing cost D ("chance"). With ``mixed`` above 0, images :math:`M = a U + (1 - a) V_s` of one
view and of the other view of another crop s(i) are embedded, too. Were the embedding linear, its correlations would be
known, and the loss adds their squared error (mixed samples)::

    loss += mixed w ( |M^T Z - (a Z^T Z + (1 - a) Z'_s^T Z)|^2 + |M^T Z' - (a Z^T Z' + (1 - a) Z'_s^T Z')|^2 ) / N^2

References: Zbontar et al., Barlow Twins: self-supervised learning via redundancy reduction, ICML 2021, arXiv
2103.03230; Bandara et al., Guarding Barlow Twins against overfitting with mixed samples, 2023, arXiv 2312.02151. Both
views pass the network in one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.nn.heads import Projection
from medssl.objectives.base import Objective
from medssl.ops.collectives import gather, rank
from medssl.ops.draws import keyed_generator
from medssl.ops.limits import expect
from medssl.ops.similarity import cross_correlation
from medssl.ops.spreading import spread
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class BarlowTwins(Objective):
    """Barlow Twins: channels of the embeddings of two views agree, and different channels are not correlated.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        projection: Channels of the hidden layers and of the output.
        off_diagonal: Weight of the correlations of different channels, 0 or more.
        mixed: Weight of the loss on mixed images, relative to ``off_diagonal``, 0 or more; 0 leaves it out.
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
        off_diagonal: float = 0.0051,
        mixed: float = 0.0,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(off_diagonal >= 0, "off_diagonal", off_diagonal, "0 or more")
        expect(mixed >= 0, "mixed", mixed, "0 or more")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.off_diagonal, self.mixed = off_diagonal, mixed
        self.projection = Projection((encoder.channels[-1], *projection))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views in one batch, projects, and correlates channels over all processes."""
        self.require(batch, step)
        images = torch.cat([view.image for view in batch.views])
        features = self.encoder(images)
        z = self.projection(features.pooled)
        rows = len(step.samples)
        first, second = gather(z[:rows]), gather(z[rows:])
        if len(first) < 2:
            message = "Barlow Twins correlates over crops, and the batch has one: take a larger training.batch_size"
            raise UserError(message)
        correlation = cross_correlation(first, second)
        diagonal = correlation.diagonal()
        on = (1 - diagonal).square().sum()
        off = correlation.square().sum() - diagonal.square().sum()
        loss = on + self.off_diagonal * off
        terms = {"on_diagonal": on.detach(), "off_diagonal": off.detach()}
        if self.mixed > 0:
            error = self.mixture_error(images, first, second, step)
            loss = loss + self.mixed * self.off_diagonal * error
            terms["mixed"] = error.detach()
        terms |= {"loss": loss.detach(), "chance": torch.full_like(loss.detach(), len(diagonal))}
        terms["uniformity"] = spread(z[:rows].detach())
        return Loss(loss, terms, embedding=features.pooled[:rows].detach())

    def mixture_error(
        self, images: Float[Tensor, "2B C *s"], first: Float[Tensor, "N D"], second: Float[Tensor, "N D"], step: Step
    ) -> Float[Tensor, ""]:
        """Squared error of the correlations of mixed images, with those that a linear embedding would have."""
        rows = len(step.samples)
        samples = gather(torch.tensor(step.samples, device=images.device))
        partner, share = partners(samples, step.seed)
        start = int(gather(torch.tensor([rows], device=images.device))[: rank()].sum())
        others = gather(images[rows:])[partner[start : start + rows]]
        mixed = gather(self.projection(self.encoder(share * images[:rows] + (1 - share) * others).pooled))
        error = first.new_zeros((), dtype=torch.promote_types(first.dtype, torch.float32))
        for view in (first, second):
            linear = share * cross_correlation(first, view)
            linear = linear + (1 - share) * cross_correlation(second[partner], view)
            error = error + (cross_correlation(mixed, view) - linear).square().sum()
        return error


def partners(samples: Int[Tensor, "N"], seed: int) -> tuple[Int[Tensor, "N"], float]:
    """Which row each row is mixed with, and its share; a function of the seed and of the samples, in any order."""
    order = samples.argsort()
    generator = keyed_generator(seed, int(samples.min()), "barlow_twins.mixed")
    permuted = torch.from_numpy(generator.permutation(len(samples))).to(samples.device)
    partner = torch.empty_like(order)
    partner[order] = order[permuted]
    return partner, float(generator.uniform())
