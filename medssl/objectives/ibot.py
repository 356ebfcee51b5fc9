r"""iBOT: DINO on masked views, and at every hidden position the teacher's assignment of that position.

Predicts: the teacher's assignment of another view, and of the hidden positions (Zhou et al. 2022).
Encoders: vision transformer.

With two global views u of each crop, of which boxes of cells :math:`M_u` are hidden from the student in about half of
them, and local views v; student f, teacher g; scores s of K prototypes, centers c and c'::

    pooled = mean over crops and pairs (u, v), u != v, of CE(q(g(u)), softmax(s(f(v)) / T_s));  f gets v masked
    patch  = mean over global views of the mean over M_u of CE(q'(g(u)_i), softmax(s(f(u, M_u)_i) / T_s))
    loss   = pooled + patch;      q = softmax((s - c) / T_t), and q' with c' for positions
    g     <- m g + (1 - m) f after each step; m rises to 1

A view without hidden positions counts as 0 in the mean of the patch loss, so that its share does not change the weight
of a position. One head serves whole images and positions, unless ``prototypes.separate``. The teacher's encoder is what
is saved.

Reference: Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022, arXiv 2111.07832. Differences:
left and right are not exchanged, positions on padding do not count, and which views are masked is drawn for each view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import PATCH, POOLED, SelfDistillation
from medssl.nn.teacher import Teaching
from medssl.objectives.base import Objective, join_views
from medssl.ops.draws import draws
from medssl.ops.masking import Masks, mask_cells
from medssl.ops.multi_crop import WHOLE, multi_crop
from medssl.types import Loss, MaskMode, ViewPlan

if TYPE_CHECKING:
    from torch import nn

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Step, ViewSpec


class IBOT(SelfDistillation, Objective):
    """iBOT: predicts a momentum teacher's assignment of other views and of hidden positions.

    Args:
        encoder: Encoder with the mask mode "fill".
        view: How the two global views are cut and changed.
        local_view: How the local views are cut and changed; None has none.
        local_views: Number of local views, 0 or more.
        masks: What is hidden from the student in global views.
        prototypes: The heads; one serves whole images and positions where ``separate`` is False.
        teaching: The teacher.

    Raises:
        UserError: The encoder cannot be masked, a view does not fit it, or a setting is out of range.
    """

    mode: MaskMode = "fill"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        local_view: ViewSpec | None = None,
        local_views: int = 0,
        masks: Masks = Masks((0.1, 0.5), 0.5),
        prototypes: Prototypes = Prototypes(separate=False),
        teaching: Teaching = Teaching(),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.masks_with(encoder, self.mode, type(self).__name__)
        self.needs = ViewPlan(multi_crop(view, local_view, local_views))
        for spec in self.needs.views:
            self.fits(encoder, spec)
        self.cells = mask_cells(view.size, masks.cell or encoder.mask_cell, encoder.strides, masks.ratio[1])
        self.masks, self.prototypes, self.teaching = masks, prototypes, teaching
        self.compares_samples = teaching.assignment == "sinkhorn"
        self.add_teacher((POOLED, PATCH), encoder.channels[-1])

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Masks the global views, and compares all views and the hidden positions with the teacher."""
        self.require(batch, step)
        whole = join_views(batch.views[:WHOLE])
        hidden = self.masks.draw(self.cells, draws(step, "ibot.mask"), WHOLE).to(whole.image.device)
        compared = self.compare_masked(whole, batch.views[WHOLE:], hidden, step)
        loss = compared.losses[POOLED] + compared.losses[PATCH]
        terms = self.terms(compared.losses, compared.targets) | {"loss": loss.detach(), "chance": compared.chance}
        return Loss(loss, terms, embedding=compared.features.pooled[: len(step.samples)].detach())

    def exported(self) -> dict[str, nn.Module]:
        """The teacher's encoder."""
        return {"encoder": self.teacher["encoder"]}
