"""What every objective is: an ``nn.Module`` that turns a Batch into a Loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from medssl.encoders.base import Encoder
from medssl.types import Batch, Loss, Step, ViewPlan


class Objective(nn.Module, ABC):
    """A self-supervised objective around one encoder.

    A subclass takes the encoder as its first argument, keeps it as ``self.encoder`` and sets ``needs``.

    Attributes:
        encoder: The encoder that is pretrained.
        needs: The views and the sampling that ``forward`` expects.
    """

    encoder: Encoder
    needs: ViewPlan

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Loss:
        """Returns the loss of one micro-batch; with several processes its value is that of the whole batch."""

    def after_step(self, step: Step) -> None:
        """Called once after each optimizer step (a teacher moves here)."""

    def exported(self) -> dict[str, nn.Module]:
        """The modules worth keeping, by name: always "encoder", with the keys of the plain dense network."""
        return {"encoder": self.encoder}
