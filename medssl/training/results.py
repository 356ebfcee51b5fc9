"""What a run of training, with labels or without, returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssl.reporting.curves import Point, Series, line_chart
from medssl.reporting.parts import METRICS, read_log

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class TrainingResult:
    """A run of pretraining or of fine-tuning, as it ended. A notebook shows the curve of its loss.

    Attributes:
        run: Its folder, with ``encoder.safetensors`` and ``card.json``; after fine-tuning also ``head.safetensors``.
        steps: Optimizer steps that are done.
        loss: Smoothed loss of the last step; None before the first.
        stopped_by: What ended the run early: the name of a signal, or "loss not finite"; else empty.
        exit_code: 0; 1 where the loss was not finite; 128 + the signal's number where a signal stopped it.
    """

    run: Path
    steps: int
    loss: float | None
    stopped_by: str = ""
    exit_code: int = 0

    @property
    def losses(self) -> tuple[tuple[float, float], ...]:
        """Pairs of step and loss, as the run logged them."""
        return read_log(self.run / METRICS).values("loss")

    def chart(self) -> str:
        """The loss over the steps, as SVG; "" where nothing was logged."""
        points = tuple(Point(step, loss) for step, loss in self.losses)
        if not points:
            return ""
        return line_chart([Series("loss", points)], title=self.run.name, x_label="step", y_label="loss")

    def _repr_svg_(self) -> str | None:
        return self.chart() or None
