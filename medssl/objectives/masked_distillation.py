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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from medssl.nn.masked_prediction import FromSparseMaps, FromTokens
from medssl.nn.prototype_head import PrototypeHead
from medssl.nn.teacher import Teacher, TeacherTargets, teacher_terms
from medssl.objectives.base import Reconstruction, join_views
from medssl.ops.assignment import cross_entropy
from medssl.ops.collectives import mean_over
from medssl.ops.draws import draws
from medssl.ops.limits import expect
from medssl.ops.masking import varied_hidden
from medssl.ops.patches import patchify
from medssl.ops.reconstruction import compare, counted_voxels, hidden_positions, pixel_target
from medssl.ops.schedules import cosine, linear
from medssl.types import Loss, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Features, Step, View, ViewSpec


@dataclass(frozen=True)
class Masks:
    """What is hidden from the student: boxes of cells, drawn for each sample and view.

    Attributes:
        ratio: Lowest and highest share of cells.
        unmasked: Share of the views that stay whole.
        cell: Voxels of one cell per axis; None takes the encoder's ``mask_cell``.
        boxes: False hides single cells.
    """

    ratio: tuple[float, float] = (0.5, 0.75)
    unmasked: float = 0.0
    cell: tuple[int, ...] | None = None
    boxes: bool = True

    def __post_init__(self) -> None:
        expect(0 <= self.ratio[0] <= self.ratio[1] <= 1, "masks.ratio", self.ratio, "two shares, the lower first")
        expect(0 <= self.unmasked <= 1, "masks.unmasked", self.unmasked, "from 0 to 1")


@dataclass(frozen=True)
class Prototypes:
    """Both heads.

    Attributes:
        count: Number of prototypes, at least 2.
        width: Channels that are compared with the prototypes, at least 1.
        hidden: Channels of the hidden layers before them, at least 1.
        frozen: Share of the training, 0 to 1, in which the prototypes stay as they are.
    """

    count: int = 4096
    width: int = 256
    hidden: int = 2048
    frozen: float = 0.01


@dataclass(frozen=True)
class Teaching:
    """How the teacher follows and what it says.

    Attributes:
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
        temperature: The teacher's, first and from ``warmup`` on.
        warmup: Share of the training in which the temperature changes.
        student_temperature: The student's.
        assignment: "center", or "sinkhorn" for batches with more rows than prototypes.
    """

    momentum: tuple[float, float] = (0.996, 1.0)
    temperature: tuple[float, float] = (0.04, 0.07)
    warmup: float = 0.1
    student_temperature: float = 0.1
    assignment: Literal["center", "sinkhorn"] = "center"

    def __post_init__(self) -> None:
        expect(min(self.temperature) > 0, "teaching.temperature", self.temperature, "above 0")
        expect(self.student_temperature > 0, "teaching.student_temperature", self.student_temperature, "above 0")
        expect(all(0 <= m <= 1 for m in self.momentum), "teaching.momentum", self.momentum, "from 0 to 1")
        expect(0 <= self.warmup <= 1, "teaching.warmup", self.warmup, "from 0 to 1")


class MaskedDistillation(Reconstruction):
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
        self.predict: nn.Module = FromTokens(channels[-1], strides[-1], image_channels=values)
        if self.mode == "sparse":
            width, fill, stem = decoder_width, patch_weight > 0, encoder.stem_maps
            self.predict = FromSparseMaps(channels, strides, image_channels=values, width=width, fill=fill, first=stem)
        self.weights = {name: w for name, w in (("patch", patch_weight), ("pooled", pooled_weight)) if w > 0}
        self.heads, self.targets = nn.ModuleDict(), nn.ModuleDict()
        k, sizes = prototypes.count, {"hidden": prototypes.hidden, "width": prototypes.width}
        for name in self.weights:
            self.heads[name] = PrototypeHead(channels[-1], k, **sizes)
            self.targets[name] = TeacherTargets(k, teaching.assignment)
        self.teacher = Teacher(self.students())

    def students(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {"encoder": self.encoder, **self.heads}

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
            scores = self.heads[name](rows[name])
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
        progress = step.progress / self.teaching.warmup if self.teaching.warmup > 0 else 1.0
        temperature = linear(progress, *self.teaching.temperature)
        rows = {"patch": whole.maps[-1].flatten(2).mT[positions], "pooled": whole.pooled.roll(len(step.samples), 0)}
        return {name: self.targets[name](self.teacher[name](rows[name]), temperature) for name in self.weights}

    def hidden(self, view: View, step: Step) -> Bool[Tensor, "B *cells"]:
        """Which cells of each view are hidden; the views of a sample have masks of their own."""
        source = draws(step, "maskeddistillation.mask")
        ratio, unmasked, boxes = self.masks.ratio, self.masks.unmasked, self.masks.boxes
        count = len(view.image) // len(step.samples)
        masks = [varied_hidden(self.cells, ratio, source, unmasked=unmasked, blocks=boxes) for _ in range(count)]
        return torch.cat(masks).to(view.image.device)

    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Hidden scored voxels, and hidden positions."""
        view = join_views(batch.views)
        hidden = self.hidden(view, step)
        voxels = (counted_voxels(view, self.cell) & hidden.flatten(1)[..., None]).sum()
        return torch.stack((voxels, hidden_positions(view, hidden, self.encoder.strides[-1]).sum()))

    def before_step(self, step: Step) -> None:
        """Holds the prototypes in the first steps."""
        if step.progress < self.prototypes.frozen:
            for head in self.heads.values():
                assert isinstance(head, PrototypeHead)
                head.hold_prototypes()

    def after_step(self, step: Step) -> None:
        """Moves the teacher and the centers."""
        self.teacher.follow(self.students(), cosine(step.progress, *self.teaching.momentum))
        for targets in self.targets.values():
            assert isinstance(targets, TeacherTargets)
            targets.after_step()

    def after_load(self) -> None:
        """The teacher starts as the student does."""
        self.teacher.copy_from(self.students())
