r"""MoCo v3: a student predicts which of a teacher's embeddings of the same batch shows the same crop; no queue.

Predicts: which of a teacher's embeddings in the batch shows the same crop (Chen et al. 2021).
Encoders: any; made for vision transformers.

With student f, projection g, predictor q, teacher :math:`f', g'`, and views u, v of the crops i of all processes::

    ctr(u, v) = - 2 tau mean_i log( exp(q_i(u) . k_i(v) / tau) / sum_j exp(q_i(u) . k_j(v) / tau) )
    loss      = ctr(u, v) + ctr(v, u),   q(u) = unit(q(g(f(u)))),   k(v) = unit(g'(f'(v)))
    f', g'   <- m (f', g') + (1 - m) (f, g) after each step; m rises to 1 along a cosine

The random projection of patches of a transformer is not trained, which the paper reports as more stable.

Reference: Chen, Xie and He, An empirical study of training self-supervised vision transformers, ICCV 2021, arXiv
2104.02057. Differences: batch norms at the end of the heads have learned scales; both views have the same changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.nn.heads import Projection
from medssl.nn.momentum import MomentumTeacher
from medssl.objectives.base import Objective
from medssl.ops.limits import expect
from medssl.ops.similarity import contrast
from medssl.ops.tags import tags
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class MoCoV3(MomentumTeacher, Objective):
    """MoCo v3: contrasts predictions of a student with a teacher's embeddings of the other views of the batch.

    Args:
        encoder: Any encoder; its pooled features are projected. The patch projection of a transformer is frozen.
        view: Cropping and augmentation of both views. The encoder learns to ignore what differs between them.
        temperature: Divisor of the cosine similarity, above 0.
        projection: Channels of the hidden layers and of the output; a batch norm follows each, also the last.
        prediction: Channels of the hidden layer of the predictor, at least 1.
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
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
        temperature: float = 0.2,
        projection: Sequence[int] = (4096, 4096, 256),
        prediction: int = 4096,
        momentum: tuple[float, float] = (0.99, 1.0),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True))
        self.temperature = temperature
        if isinstance(patches := getattr(encoder, "patch_embed", None), nn.Module):
            patches.requires_grad_(False)
        self.projection = Projection((encoder.channels[-1], *projection), norm_output=True)
        self.predictor = Projection((projection[-1], prediction, projection[-1]), norm_output=True)
        self.add_teacher(momentum, {"projection": "projection"}, batch_statistics=True)

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes both views with both networks, and contrasts predictions with the teacher's other views."""
        self.require(batch, step)
        images = torch.cat([view.image for view in batch.views])
        features = self.encoder(images)
        q = self.predictor(self.projection(features.pooled))
        with torch.no_grad():
            k = self.teacher["projection"](self.teacher["encoder"](images).pooled)
        row_tags = tags(batch, step, parts=1)
        all_tags = row_tags.gathered()
        if len(all_tags.crop) < 4:
            message = "MoCo v3 tells crops from each other, and the batch has one: take a larger training.batch_size"
            raise UserError(message)
        other_view = row_tags.view[:, None] != all_tags.view
        same = row_tags.same_crop(all_tags)
        loss, terms = contrast(
            q, same & other_view, other_view, distinct=~same, temperature=self.temperature, candidates=k
        )
        scale = 4 * self.temperature  # two directions, each times 2 tau
        terms |= {name: scale * terms[name] for name in ("loss", "chance")}
        return Loss(scale * loss, terms, embedding=features.pooled[: len(step.samples)].detach())
