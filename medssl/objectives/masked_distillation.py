r"""Masked self-distillation: from parts of two views a student predicts their voxels and what a teacher makes of them.

Predicts: hidden voxels, and what a teacher makes of hidden positions and of the other view (SMIT, Jiang et al. 2022).
Encoders: vision transformer, residual encoder, timm ResNet and ConvNeXt.

With views u, v of one crop, hidden cells :math:`M`, student f, and teacher g, which follows f and sees whole views;
heads p of positions and h of pooled features, with K prototypes each; q the teacher's centered softmax::

    reconstruction = mean over M of (y_cj - t_cj)^2, t the voxels of cell c relative to the cell's mean and deviation
    patch          = mean over hidden positions of CE(q(p_g(g(u))_c), softmax(p_f(f(u, M_u))_c / T_s)), and so for v
    pooled         = mean of CE(q(h_g(g(v))), softmax(h_f(f(u, M_u)) / T_s)), and with u and v exchanged
    loss           = reconstruction + 0.1 patch + 0.1 pooled
    g             <- m g + (1 - m) f after each step; m rises to 1

A transformer puts a token in hidden places and predicts from there. A ConvNet leaves hidden positions empty (sparse),
and a few convolutions carry features to them.

References: Jiang et al., Self-supervised 3D anatomy segmentation using self-distilled masked image transformer (SMIT),
MICCAI 2022, arXiv 2205.10342; Zhou et al., iBOT, ICLR 2022, arXiv 2111.07832; Caron et al., DINO, ICCV 2021,
arXiv 2104.14294. Where this differs, ``docs/objectives/masked_distillation.md`` says why.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medssl.nn.masked_prediction import FromSparseMaps, FromTokens
from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import SelfDistillation
from medssl.nn.teacher import Teaching, teacher_terms
from medssl.objectives.base import Reconstruction, join_views
from medssl.ops.assignment import cross_entropy
from medssl.ops.collectives import mean_over
from medssl.ops.draws import draws
from medssl.ops.limits import expect
from medssl.ops.masking import Masks
from medssl.ops.patches import patchify
from medssl.ops.reconstruction import compare, counted_voxels, hidden_positions, pixel_target
from medssl.types import Loss, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Features, Step, View, ViewSpec


class MaskedDistillation(SelfDistillation, Reconstruction):
    """Predicts from two masked views their voxels, and what a teacher that sees everything makes of them.

    Args:
        encoder: Encoder with the mask mode "fill" or "sparse".
        view: How both views are cut and changed.
        masks: What is hidden.
        prototypes: The heads.
        teaching: The teacher.
        patch_weight: Weight of the distillation of hidden positions; 0 leaves it out.
        pooled_weight: Weight of the distillation of pooled features; 0 leaves it out.
        decoder_width: Channels of the decoder of a ConvNet at the coarsest map; None takes those of SparK.

    Raises:
        UserError: The encoder cannot be masked, the view does not fit it, or a setting is out of range.
    """

    progress = "reconstruction"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        masks: Masks = Masks(),
        prototypes: Prototypes = Prototypes(),
        teaching: Teaching = Teaching(),
        patch_weight: float = 0.1,
        pooled_weight: float = 0.1,
        decoder_width: int | None = None,
    ) -> None:
        self.mode = "fill" if "fill" in encoder.mask_modes else "sparse"
        super().__init__(encoder, view=view, mask_ratio=masks.ratio[1], cell=masks.cell)
        expect(patch_weight >= 0, "patch_weight", patch_weight, "0 or more")
        expect(pooled_weight >= 0, "pooled_weight", pooled_weight, "0 or more")
        self.needs = ViewPlan((view, view))
        self.masks, self.prototypes, self.teaching = masks, prototypes, teaching
        self.compares_samples = teaching.assignment == "sinkhorn"
        channels, strides, values = encoder.channels, encoder.strides, encoder.in_channels
        self.predict: FromTokens | FromSparseMaps = FromTokens(channels[-1], strides[-1], image_channels=values)
        if self.mode == "sparse":
            width, fill, stem = decoder_width, patch_weight > 0, encoder.stem_maps
            self.predict = FromSparseMaps(channels, strides, image_channels=values, width=width, fill=fill, first=stem)
        self.weights = {name: w for name, w in (("patch", patch_weight), ("pooled", pooled_weight)) if w > 0}
        self.add_teacher(tuple(self.weights), channels[-1])

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Masks both views, reconstructs, and compares with what the teacher makes of them."""
        self.require(batch, step)
        view = join_views(batch.views)
        hidden = self.hidden(view, step)
        prediction, filled, features = self.predicted(view.image, hidden)
        counts = (None, None) if step.counts is None else step.counts.unbind()
        target = pixel_target(view, self.cell)
        patches = patchify(prediction, self.cell).to(target.values.dtype)
        loss, terms = compare(patches, target, hidden, step_count=counts[0])
        terms["reconstruction"] = terms.pop("loss")
        positions = hidden_positions(view, hidden, self.encoder.strides[-1])
        rows = {"patch": filled.flatten(2).mT[positions], "pooled": features.pooled}
        goals = self.goals(view, positions, step) if self.weights else {}
        for name, weight in self.weights.items():
            scores = self.scores(name, rows[name])
            errors = cross_entropy(scores, goals[name], self.teaching.student_temperature)
            mean = mean_over(errors.sum(), len(errors), counts[1] if name == "patch" else None)
            loss = loss + weight * mean
            terms[name] = mean.detach()
            terms["chance"] = terms["chance"] + weight * math.log(self.prototypes.count)
        terms |= teacher_terms(goals) | {"loss": loss.detach()}
        return Loss(loss, terms, embedding=features.pooled[: len(step.samples)].detach())

    def predicted(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Float[Tensor, "B D *cells"], Features]:
        """What the student makes of a masked image: voxels, features of all positions, and the encoder's own."""
        features = self.encoder(image, hidden, mode=self.mode)
        return *self.predict(features, hidden, image.shape[2:]), features

    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """The voxels alone; for pictures."""
        prediction, _, features = self.predicted(image, hidden)
        return prediction, features

    @torch.no_grad()
    def goals(self, view: View, positions: Bool[Tensor, "B N"], step: Step) -> dict[str, Float[Tensor, "N K"]]:
        """Targets of hidden positions, from the same view, and of pooled features, from the other view."""
        whole = self.teacher["encoder"](view.image)
        rows = {"patch": whole.maps[-1].flatten(2).mT[positions], "pooled": whole.pooled.roll(len(step.samples), 0)}
        return self.teacher_targets({name: rows[name] for name in self.weights}, step)

    def hidden(self, view: View, step: Step) -> Bool[Tensor, "B *cells"]:
        """Which cells of each view are hidden; the views of a sample have masks of their own."""
        views = len(view.image) // len(step.samples)
        hidden = self.masks.draw(self.cells, draws(step, "maskeddistillation.mask"), views)
        return hidden.to(view.image.device)

    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Hidden scored voxels, and hidden positions."""
        view = join_views(batch.views)
        hidden = self.hidden(view, step)
        voxels = (counted_voxels(view, self.cell) & hidden.flatten(1)[..., None]).sum()
        return torch.stack((voxels, hidden_positions(view, hidden, self.encoder.strides[-1]).sum()))
