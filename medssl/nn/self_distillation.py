"""What objectives with a momentum teacher of prototypes share: heads, teacher, targets, losses, and hooks of a step.

References: Caron et al., DINO, ICCV 2021, arXiv 2104.14294; Zhou et al., iBOT, ICLR 2022, arXiv 2111.07832; Oquab et
al., DINOv2, TMLR 2024, arXiv 2304.07193.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medssl.nn.teacher import Teacher, TeacherTargets, teacher_terms
from medssl.ops.assignment import cross_entropy, cross_view, entropies
from medssl.ops.collectives import mean_over
from medssl.ops.multi_crop import pooled_of
from medssl.ops.reconstruction import hidden_positions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.nn.prototype_head import PrototypeHead, Prototypes
    from medssl.nn.teacher import Teaching
    from medssl.types import Features, Step, View

POOLED, PATCH = "pooled", "patch"  # losses of whole images and of positions


@dataclass(frozen=True)
class Compared:
    """A student on masked views beside its teacher on the same views, whole.

    Attributes:
        losses: Mean of each loss: "pooled" and "patch".
        features: The student's, of the two global views.
        whole: The teacher's, of the same views.
        targets: The teacher's targets, by name of the loss.
        chance: Sum of the losses of a student that knows nothing.
    """

    losses: dict[str, Float[Tensor, ""]]
    features: Features
    whole: Features
    targets: dict[str, Float[Tensor, "N K"]]
    chance: Float[Tensor, ""]


class SelfDistillation(nn.Module):
    """Mixin of objectives whose student is compared with a teacher by prototypes.

    It stands before ``Objective`` among the base classes. The constructor sets ``encoder``, ``prototypes`` and
    ``teaching`` and then calls :meth:`add_teacher`. The mixin freezes the prototypes at first, updates the teacher and
    its centers after each step, and copies loaded weights into the teacher.

    Attributes:
        encoder: The student's.
        prototypes: Sizes of the heads.
        teaching: Schedules of the teacher.
        heads: The student's heads, by name of the loss.
        targets: Centers of the teacher's scores, by name of the loss.
        teacher: Copies of the encoder ("encoder") and of the heads.
    """

    encoder: Any  # an Encoder, which this floor does not know
    prototypes: Prototypes
    teaching: Teaching
    heads: nn.ModuleDict
    targets: nn.ModuleDict
    teacher: Teacher
    progress = "unexplained"

    def add_teacher(self, names: Sequence[str], channels: int) -> None:
        """Makes the heads, the teacher and its targets.

        Args:
            names: One name for each loss. Where heads are shared, that of the first name serves all; targets are
                always separate.
            channels: Channels of the features that enter the heads.
        """
        separate, teaching, count = self.prototypes.separate, self.teaching, self.prototypes.count
        self._head_of = {name: name if separate else names[0] for name in names}
        own = dict.fromkeys(self._head_of.values())
        self.heads = nn.ModuleDict({name: self.prototypes.head(channels) for name in own})
        self.targets = nn.ModuleDict({name: TeacherTargets(count, teaching.assignment) for name in names})
        self.teacher = Teacher(self.students())

    def students(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {"encoder": self.encoder, **self.heads}

    # --- losses

    def scores(self, name: str, rows: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """The student's scores of the prototypes, for one of the losses."""
        scores: Tensor = self.heads[self._head_of[name]](rows)
        return scores

    @torch.no_grad()
    def teacher_targets(self, rows: Mapping[str, Float[Tensor, "N C"]], step: Step) -> dict[str, Float[Tensor, "N K"]]:
        """The teacher's targets of features that its encoder computed, by name of the loss."""
        temperature = self.teaching.temperature_at(step.progress)
        heads = {name: self.teacher[self._head_of[name]] for name in rows}
        return {name: self.targets[name](heads[name](part), temperature) for name, part in rows.items()}

    def view_loss(
        self, pooled: Float[Tensor, "VB C"], targets: Float[Tensor, "GB K"], samples: int
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over all pairs of a view of the student and another global view of the teacher.

        Args:
            pooled: The student's features of V views of each of B samples; the rows of the first view first.
            targets: The teacher's targets of the first G views.
            samples: Number of samples B.
        """
        scores = self.scores(POOLED, pooled)
        scores, whole = (x.reshape(-1, samples, x.shape[1]) for x in (scores, targets))
        pairs = len(whole) * (len(scores) - 1)
        errors = cross_view(scores, whole, self.teaching.student_temperature)
        return mean_over(errors.sum(), pairs * samples)

    def patch_loss(
        self, rows: Float[Tensor, "N C"], targets: Float[Tensor, "N K"], positions: Bool[Tensor, "I P"]
    ) -> Float[Tensor, ""]:
        """Mean over images of the mean cross-entropy over their hidden positions; an image without any counts as 0.

        Args:
            rows: The student's features of the hidden positions of all images.
            targets: The teacher's targets of the same positions.
            positions: Which positions of which image they are.
        """
        errors = cross_entropy(self.scores(PATCH, rows), targets, self.teaching.student_temperature)
        shares = 1 / positions.sum(1, keepdim=True).clamp(min=1).to(errors.dtype)
        return mean_over((errors * shares.expand(positions.shape)[positions]).sum(), len(positions))

    def compare_masked(
        self, whole: View, local: Sequence[View], hidden: Bool[Tensor, "I *cells"], step: Step
    ) -> Compared:
        """Compares the student on masked global views and on local ones with the teacher on whole global views.

        Args:
            whole: The global views, the rows of the first one first.
            local: The local views.
            hidden: What is hidden from the student in the global views.
            step: The step.
        """
        samples = len(step.samples)
        positions = hidden_positions(whole, hidden, self.encoder.strides[-1])
        features = self.encoder(whole.image, hidden, mode="fill")
        parts = [features.pooled, pooled_of(lambda images: self.encoder(images).pooled, local)] if local else []
        with torch.no_grad():
            whole_features = self.teacher["encoder"](whole.image)
        rows = {POOLED: whole_features.pooled, PATCH: whole_features.maps[-1].flatten(2).mT[positions]}
        targets = self.teacher_targets(rows, step)
        pooled = torch.cat(parts) if parts else features.pooled
        losses = {
            POOLED: self.view_loss(pooled, targets[POOLED], samples),
            PATCH: self.patch_loss(features.maps[-1].flatten(2).mT[positions], targets[PATCH], positions),
        }
        masked = mean_over(positions.any(1).sum(), len(positions))
        return Compared(losses, features, whole_features, targets, math.log(self.prototypes.count) * (1 + masked))

    @staticmethod
    def terms(
        losses: Mapping[str, Float[Tensor, ""]], targets: Mapping[str, Float[Tensor, "N K"]]
    ) -> dict[str, Tensor]:
        """Terms of the log: each loss by its name, those of the teacher, and "unexplained".

        "unexplained" is the divergence of the student's predictions of whole images from their targets, as a share of
        that of the mean target: 1 if the student knows no more than how often each prototype is named, 0 if it predicts
        every target. It falls while the student learns, also where the loss rises since targets become sharper.
        """
        entropy, of_mean = entropies(targets[POOLED])
        unexplained = (losses[POOLED].detach() - entropy) / (of_mean - entropy).clamp(min=1e-6)
        parts = {name: loss.detach() for name, loss in losses.items()}
        return parts | teacher_terms(targets) | {"unexplained": unexplained}

    # --- hooks of a step

    def before_step(self, step: Step) -> None:
        """Holds the prototypes in the first steps, and the encoder where only the heads are trained at first."""
        if step.progress < self.prototypes.frozen:
            for head in self.heads.values():
                _hold(head)
        if step.progress < self.prototypes.head_first:
            for parameter in self.encoder.parameters():
                parameter.grad = None  # a gradient of zero would leave the weights to weight decay

    def after_step(self, step: Step) -> None:
        """Moves the teacher and the centers."""
        self.teacher.follow(self.students(), self.teaching.momentum_at(step.progress))
        for targets in self.targets.values():
            assert isinstance(targets, TeacherTargets)
            targets.after_step()

    def after_load(self) -> None:
        """Copies the student's weights into the teacher."""
        self.teacher.copy_from(self.students())


def _hold(head: nn.Module) -> None:
    """Holds the prototypes of a head."""
    prototype_head: PrototypeHead = head  # type: ignore[assignment]
    prototype_head.hold_prototypes()
