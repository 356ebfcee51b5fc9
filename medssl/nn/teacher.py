"""The teacher of self-distillation: copies of a student's networks that follow its weights slowly, and its targets.

References: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017; Grill et al., Bootstrap your own
latent (BYOL), NeurIPS 2020 (momentum that rises to 1 along a cosine); Caron et al., DINO, ICCV 2021 (centering).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.ops.assignment import centered_targets, entropies, moved_center, sinkhorn
from medssl.ops.collectives import world_size
from medssl.ops.limits import expect
from medssl.ops.schedules import cosine, linear

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float
    from torch import Tensor

ENOUGH = 8  # rows of all processes from which on their mean says whether targets differ


@dataclass(frozen=True)
class Teaching:
    """How the teacher follows and how sharp its targets are.

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

    def temperature_at(self, progress: float) -> float:
        """The teacher's temperature after a share of the training: a straight line, then constant.

        >>> Teaching(temperature=(0.04, 0.08), warmup=0.5).temperature_at(0.25)
        0.06
        """
        return linear(progress / self.warmup if self.warmup > 0 else 1.0, *self.temperature)

    def momentum_at(self, progress: float) -> float:
        """Share of the teacher's weights that stays in a step, after a share of the training."""
        return cosine(progress, *self.momentum)


class Teacher(nn.ModuleDict):
    """Copies of networks, by name; ``teacher["encoder"](image)`` runs one of them, under ``torch.no_grad``.

    The copies have no gradient and stay in evaluation mode whatever mode the objective is in: no dropout, no drop-path,
    and batch norms use the running statistics, which are the student's, unless ``batch_statistics`` is set. Keys
    of the state dict are the name of the network and the network's own key. An objective that keeps it as
    ``self.teacher`` calls :meth:`follow` in ``after_step``, once per optimizer step, and :meth:`copy_from` in
    ``after_load``.

    Args:
        students: The networks to copy, by name.
        batch_statistics: Whether batch norms take the statistics of the batch while the objective is in training mode,
            as in BYOL.
    """

    def __init__(self, students: Mapping[str, nn.Module], *, batch_statistics: bool = False) -> None:
        super().__init__({name: copy.deepcopy(student) for name, student in students.items()})
        self.batch_statistics = batch_statistics
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, but for batch norms with statistics of the batch."""
        super().train(False)
        if self.batch_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.train(mode)
        return self

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


class TeacherTargets(nn.Module):
    """Turns scores of a teacher's prototypes into targets that do not name one prototype for everything.

    In evaluation mode nothing is remembered.

    Args:
        prototypes: Number of prototypes K.
        assignment: "center" (by the mean of the scores of former steps) or "sinkhorn" (equal shares within the batch of
            all processes).
        momentum: Share of the center that stays in a step.

    Attributes:
        center: Mean score of each prototype lately; 0 at first.
    """

    center: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self, prototypes: int, assignment: Literal["center", "sinkhorn"] = "center", *, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.assignment = assignment
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))
        self.register_buffer("total", torch.zeros(prototypes), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def forward(self, scores: Float[Tensor, "N K"], temperature: float) -> Float[Tensor, "N K"]:
        """Targets for each row; the order of rows is irrelevant."""
        if self.assignment == "sinkhorn":
            return sinkhorn(scores, temperature)
        if self.training:
            self.total += scores.sum(0)
            self.count += len(scores)
        return centered_targets(scores, self.center, temperature)

    def after_step(self) -> None:
        """Moves the center by the scores of all micro-batches and processes since the last call."""
        if self.assignment == "center":
            self.center.copy_(moved_center(self.center, self.total, self.count, self.momentum))
            self.total.zero_()
            self.count.zero_()


def teacher_terms(targets: Mapping[str, Float[Tensor, "N K"]]) -> dict[str, Tensor]:
    """Terms by which health judges a teacher, the worse of several heads; nothing where there is no head.

    Args:
        targets: What the teacher names for the rows of each head, of this process.

    Returns:
        "teacher_entropy", the largest mean entropy of rows in nats. "teacher_mean_entropy", the entropy of the mean
        row: 0 if all rows name one prototype; and "teacher_information", by how much it is above the former: 0 if all
        rows get the same target, sharp or not; both the smallest of heads with eight rows or more. "teacher_chance",
        log K, which all are at most.
    """
    if not targets:
        return {}
    found = {name: entropies(rows) for name, rows in targets.items()}
    chance = max(math.log(rows.shape[1]) for rows in targets.values())
    entropy = torch.stack([rows for rows, _ in found.values()]).amax()
    terms = {"teacher_entropy": entropy, "teacher_chance": torch.full_like(entropy, chance)}
    enough = [name for name, rows in targets.items() if len(rows) * world_size() >= ENOUGH]
    if not enough:
        return terms
    information = torch.stack([found[name][1] - found[name][0] for name in enough])
    means = torch.stack([found[name][1] for name in enough])
    return terms | {"teacher_information": information.amin(), "teacher_mean_entropy": means.amin()}
