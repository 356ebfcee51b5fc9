"""What objectives with a momentum teacher and no prototypes share: the teacher's networks and the hooks of a step.

References: He et al., Momentum contrast (MoCo), CVPR 2020; Grill et al., Bootstrap your own latent (BYOL), NeurIPS
2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from medssl.nn.teacher import Teacher
from medssl.ops.limits import expect
from medssl.ops.schedules import cosine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medssl.types import Step


class MomentumTeacher(nn.Module):
    """Mixin of objectives that compare the features of a student with those of a slowly moving copy.

    It stands before ``Objective`` among the base classes. The constructor sets ``encoder`` and then calls
    :meth:`add_teacher`. The mixin moves the teacher after each step and copies loaded weights into it.

    Attributes:
        encoder: The student's.
        teacher: Copies of the encoder ("encoder") and of the modules that were named.
        momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
    """

    encoder: Any  # an Encoder, which this floor does not know
    teacher: Teacher
    momentum: tuple[float, float]

    def add_teacher(
        self, momentum: tuple[float, float], followed: Mapping[str, str], *, batch_statistics: bool = False
    ) -> None:
        """Makes the teacher.

        Args:
            momentum: Share of the teacher's weights that stays in a step, first and last, along a cosine.
            followed: Names of further networks in the teacher, and of the attributes that hold the student's.
            batch_statistics: Whether the teacher's batch norms take the statistics of the batch in training.

        Raises:
            UserError: The momentum is not from 0 to 1.
        """
        expect(all(0 <= share <= 1 for share in momentum), "momentum", tuple(momentum), "from 0 to 1")
        self.momentum = (momentum[0], momentum[1])
        self._followed = dict(followed)
        self.teacher = Teacher(self.students(), batch_statistics=batch_statistics)

    def students(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {"encoder": self.encoder, **{name: getattr(self, held) for name, held in self._followed.items()}}

    def after_step(self, step: Step) -> None:
        """Moves the teacher."""
        self.teacher.follow(self.students(), cosine(step.progress, *self.momentum))

    def after_load(self) -> None:
        """Copies the student's weights into the teacher."""
        self.teacher.copy_from(self.students())
