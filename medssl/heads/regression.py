r"""Regression head: one number for a scan, such as an age or a score.

With mean :math:`m` and standard deviation :math:`d` of the training labels, output :math:`z_i` and label :math:`y_i` of
scan i::

    loss = mean_i rho(z_i - (y_i - m) / d)       rho(e) = e^2 / 2; Huber beyond c: c (|e| - c / 2)

The prediction is :math:`m + d z_i`, in the unit of the label. Reference: Huber, Robust estimation of a location
parameter, 1964 (c = 1: one standard deviation of the labels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional as F

from medssl.heads.base import Head
from medssl.ops.collectives import mean_over
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, LabelSchema


class Regression(Head):
    """Pooled features and one linear layer with one output.

    Args:
        encoder: Its last map's channels are those of the pooled features.
        schema: One entry, the name of the number.
        dropout: Probability of dropping a feature, 0 to below 1.
        error: "huber" is robust to outliers among the labels; "squared" is the squared error.

    Raises:
        UserError: The schema has another number of entries than one, or an argument is out of range.
    """

    kind = "regression"
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        dropout: float = 0.0,
        error: Literal["huber", "squared"] = "huber",
    ) -> None:
        super().__init__()
        if len(schema.classes) != 1:
            message = f'"{schema.name}" has {len(schema.classes)} classes: a regression takes one number of a scan'
            raise UserError(message)
        if not 0 <= dropout < 1:
            message = f"dropout {dropout}: expected a number from 0 to below 1"
            raise UserError(message)
        if error not in ("huber", "squared"):
            message = f"error {error!r}: expected huber or squared"
            raise UserError(message)
        self.schema = schema
        self.error = error
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))  # saved: predictions need them
        self.register_buffer("deviation", torch.ones((), dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(encoder.channels[-1], 1)

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B 1"]:
        """Returns standardized numbers; ``size`` is not used."""
        standardized: Tensor = self.linear(self.dropout(features.pooled))
        return standardized

    def counts(self, target: Float[Tensor, "B"]) -> Float[Tensor, "1"]:
        """Number of labeled scans."""
        return (~target.isnan()).sum()[None].double()

    def loss(
        self,
        prediction: Tensor | tuple[Tensor, ...],
        target: Float[Tensor, "B"],
        counts: Float[Tensor, "1"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean error over the labeled scans of all processes, in at least float32; 0 if there are none.

        Args:
            prediction: Standardized numbers [B, 1].
            target: Numbers in the unit of the label; NaN for scans without a label.
            counts: As in :meth:`Head.loss`.
        """
        assert isinstance(prediction, torch.Tensor)
        is_known = ~target.isnan()
        outputs = prediction[:, 0].to(torch.promote_types(prediction.dtype, torch.float32))
        outputs = torch.where(is_known, outputs, 0.0)  # no gradient for scans without a label
        standardized_target = torch.where(
            is_known, (target - self.mean.to(target)) / self.deviation.to(target), 0.0
        ).to(outputs)
        if self.error == "huber":
            errors = F.huber_loss(outputs, standardized_target, reduction="none")
        else:
            errors = 0.5 * (outputs - standardized_target).square()
        return mean_over(errors.sum(), is_known.sum(), None if counts is None else counts[0])

    def predictions(self, logits: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """Converts standardized numbers to the unit of the label."""
        return (logits * self.deviation + self.mean).to(logits)

    def prepare(self, targets: Float[Tensor, "N"]) -> None:
        """Sets mean and standard deviation from the labels of all training scans.

        Raises:
            UserError: All labels are equal.
        """
        known_targets = targets[~targets.isnan()].to(self.mean)
        if not len(known_targets) or bool((known_targets == known_targets[0]).all()):
            count = len(known_targets)
            message = f"{self.schema.name} is the same in all {count} scans to learn from: take scans that differ"
            raise UserError(message)
        self.mean, self.deviation = known_targets.mean(), known_targets.std(correction=0)
