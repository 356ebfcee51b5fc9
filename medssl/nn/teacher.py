"""The teacher of self-distillation: copies of a student's networks that follow its weights slowly.

References: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017; Grill et al., Bootstrap your own
latent (BYOL), NeurIPS 2020 (momentum that rises to 1 along a cosine).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from typing import Self


class Teacher(nn.ModuleDict):
    """Copies of networks, by name; ``teacher["encoder"](image)`` runs one of them, under ``torch.no_grad``.

    The copies have no gradient and stay in evaluation mode whatever mode the objective is in: no dropout, no drop-path,
    and batch norms use the running statistics, which are the student's. Keys of the state dict are the name of the
    network and the network's own key. An objective that keeps it as ``self.teacher`` calls :meth:`follow` in
    ``after_step``, once per optimizer step, and :meth:`copy_from` in ``after_load``.

    Args:
        students: The networks to copy, by name.
    """

    def __init__(self, students: Mapping[str, nn.Module]) -> None:
        super().__init__({name: copy.deepcopy(student) for name, student in students.items()})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def follow(self, students: Mapping[str, nn.Module], momentum: float) -> None:
        """Moves every parameter by the share ``1 - momentum`` towards the student's, and copies buffers.

        Buffers (running statistics, counters) are means over time already, and integers have no mean.

        Args:
            students: The networks that were copied, by the same names.
            momentum: 1 leaves the parameters where they are, 0 copies them.

        Raises:
            ValueError: Other names than those that were copied.
        """
        if set(students) != set(self):
            message = f"the teacher holds {sorted(self)}, got students {sorted(students)}: give the same networks"
            raise ValueError(message)
        for name, student in students.items():
            for parameter, source in zip(self[name].parameters(), student.parameters(), strict=True):
                parameter.lerp_(source, 1.0 - momentum)
            for buffer, current in zip(self[name].buffers(), student.buffers(), strict=True):
                buffer.copy_(current)

    def copy_from(self, students: Mapping[str, nn.Module]) -> None:
        """Takes over the students' weights and buffers as they are."""
        self.follow(students, 0.0)
