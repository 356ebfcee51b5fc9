"""What objectives with a momentum teacher of prototypes share: heads, teacher, targets, and the hooks of a step.

References: Caron et al., DINO, ICCV 2021, arXiv 2104.14294; Zhou et al., iBOT, ICLR 2022, arXiv 2111.07832; Oquab et
al., DINOv2, TMLR 2024, arXiv 2304.07193.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medssl.nn.teacher import Teacher, TeacherTargets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.nn.prototype_head import PrototypeHead, Prototypes
    from medssl.nn.teacher import Teaching
    from medssl.types import Step


class SelfDistillation(nn.Module):
    """Mixin of objectives whose student is compared with a teacher by prototypes.

    It stands before ``Objective`` among the base classes. The constructor sets ``encoder``, ``prototypes`` and
    ``teaching`` and then calls :meth:`add_teacher`. The mixin freezes the prototypes at first, updates the teacher and
    its centers after each step, and copies loaded weights into the teacher.

    Attributes:
        encoder: The student's.
        prototypes: Sizes of the heads.
        teaching: Schedules of the teacher.
        heads: The student's heads, by name.
        targets: Centers of the teacher's scores, by name of the loss that they belong to.
        teacher: Copies of the encoder ("encoder") and of the heads.
        frozen_encoder: Share of the training, 0 to 1, in which only the heads are trained.
    """

    encoder: Any  # an Encoder, which this floor does not know
    prototypes: Prototypes
    teaching: Teaching
    heads: nn.ModuleDict
    targets: nn.ModuleDict
    teacher: Teacher
    frozen_encoder: float = 0.0

    def add_teacher(self, names: Sequence[str], channels: int, *, shared: bool = False) -> None:
        """Makes the heads, the teacher and its targets.

        Args:
            names: One name for each loss.
            channels: Channels of the features that enter the heads.
            shared: Whether one head, that of the first name, serves all losses. Targets are always separate.
        """
        self._head_of = {name: names[0] if shared else name for name in names}
        self.heads = nn.ModuleDict({name: self.prototypes.head(channels) for name in names[: 1 if shared else None]})
        assignment, count = self.teaching.assignment, self.prototypes.count
        self.targets = nn.ModuleDict({name: TeacherTargets(count, assignment) for name in names})
        self.teacher = Teacher(self.students())

    def students(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {"encoder": self.encoder, **self.heads}

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

    def before_step(self, step: Step) -> None:
        """Holds the prototypes in the first steps, and the encoder where only the heads are trained at first."""
        if step.progress < self.prototypes.frozen:
            for head in self.heads.values():
                hold(head)
        if step.progress < self.frozen_encoder:
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


def hold(head: nn.Module) -> None:
    """Holds the prototypes of a head."""
    prototype_head: PrototypeHead = head  # type: ignore[assignment]
    prototype_head.hold_prototypes()
