r"""DINO: from any view of a crop a student predicts which prototypes a teacher assigns to another view of it.

Predicts: the teacher's assignment of another view, also from small views (Caron et al. 2021).
Encoders: any.

With two global views and several local views :math:`v` of each crop, student f, and teacher g, which follows f and gets
global views u alone; scores :math:`s` are cosines with K prototypes, c the mean score lately::

    q(u) = softmax((s_g(u) - c) / T_t)                              or equal shares within the batch (Sinkhorn)
    loss = mean over crops and pairs (u, v), u != v, of  - sum_k q(u)_k log softmax(s_f(v) / T_s)_k
    g   <- m g + (1 - m) f after each step; m rises to 1

The teacher's encoder is what is saved.

Reference: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, arXiv 2104.14294. For
endoscopy: Jaspers et al., Scaling up self-supervised learning for improved surgical foundation models (SurgeNetXL),
2025, arXiv 2501.09436. Differences: left and right are not exchanged, brightness and contrast change instead of colors,
and the share of the training, not the number of epochs, sets the schedules.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import POOLED, SelfDistillation
from medssl.nn.teacher import Teaching
from medssl.objectives.base import Objective
from medssl.ops.multi_crop import WHOLE, multi_crop, pooled_of
from medssl.types import Loss, ViewPlan

if TYPE_CHECKING:
    from torch import nn

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class DINO(SelfDistillation, Objective):
    """DINO: a student on global and local views predicts a momentum teacher's assignment of the global views.

    Args:
        encoder: Any encoder; its pooled features are compared.
        view: How the two global views are cut and changed.
        local_view: How the local views are cut and changed; None has none.
        local_views: Number of local views, 0 or more.
        prototypes: The head.
        teaching: The teacher.

    Raises:
        UserError: A view does not fit the encoder, or a setting is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        local_view: ViewSpec | None = None,
        local_views: int = 0,
        prototypes: Prototypes = Prototypes(),
        teaching: Teaching = Teaching(),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.needs = ViewPlan(multi_crop(view, local_view, local_views))
        for spec in self.needs.views:
            self.fits(encoder, spec)
        self.prototypes, self.teaching = prototypes, teaching
        self.compares_samples = teaching.assignment == "sinkhorn"
        self.add_teacher((POOLED,), encoder.channels[-1])

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes all views, and the global ones with the teacher, and compares."""
        self.require(batch, step)
        samples = len(step.samples)
        pooled = pooled_of(lambda images: self.encoder(images).pooled, batch.views)
        with torch.no_grad():
            whole = pooled_of(lambda images: self.teacher["encoder"](images).pooled, batch.views[:WHOLE])
        targets = self.teacher_targets({POOLED: whole}, step)
        loss = self.view_loss(pooled, targets[POOLED], samples)
        terms = self.terms({POOLED: loss}, targets) | {"loss": loss.detach()}
        terms["chance"] = torch.full_like(terms["loss"], math.log(self.prototypes.count))
        return Loss(loss, terms, embedding=pooled[:samples].detach())

    def exported(self) -> dict[str, nn.Module]:
        """The teacher's encoder."""
        return {"encoder": self.teacher["encoder"]}
