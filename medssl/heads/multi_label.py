r"""Multi-label head: several findings of a scan, each present, absent or unknown, with one sigmoid for each.

With logit :math:`z_{ik}` of scan i and finding k, label :math:`y_{ik}`, weight :math:`w_k` and the known entries K::

    loss = - 1 / |K| sum_(i,k) in K  w_k y_ik log s(z_ik) + (1 - y_ik) log s(-z_ik)

Unknown entries do not enter the loss. Reference: Rajpurkar et al., CheXNet, 2017 (findings of chest X-rays by binary
cross-entropies).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional as F

from medssl.heads.base import UNLABELED, Head
from medssl.ops.collectives import mean_over
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, LabelSchema

PositiveWeights = tuple[float, ...] | Literal["balanced"] | None


class MultiLabel(Head):
    """Pooled features and one linear layer with one output for each finding.

    Args:
        encoder: Its last map's channels are those of the pooled features.
        schema: The findings.
        dropout: Probability of dropping a feature, 0 to below 1.
        positive_weights: For each finding, the weight of scans that have it, above 0. "balanced" takes the number of
            training scans without the finding over those with it, so that both count equally. None takes 1.

    Raises:
        UserError: The schema has no findings, or an argument is out of range.
    """

    kind = "multi_label"
    positive_weights: Tensor

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        dropout: float = 0.0,
        positive_weights: PositiveWeights = None,
    ) -> None:
        super().__init__()
        count = len(schema.classes)
        if not count:
            message = f'"{schema.name}" has no findings: name some with data.target'
            raise UserError(message)
        if not 0 <= dropout < 1:
            message = f"dropout {dropout}: expected a number from 0 to below 1"
            raise UserError(message)
        self.balanced = positive_weights == "balanced"
        weights = [1.0] * count
        if positive_weights is not None and not isinstance(positive_weights, str):
            weights = [float(weight) for weight in positive_weights]
        if (isinstance(positive_weights, str) and not self.balanced) or len(weights) != count or min(weights) <= 0:
            message = f"positive_weights {positive_weights}: expected {count} numbers above 0, one for each finding, "
            message += "or balanced"
            raise UserError(message)
        self.schema = schema
        # of the arguments and the training labels
        self.register_buffer("positive_weights", torch.tensor(weights), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(encoder.channels[-1], count)

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K"]:
        """Returns logits; ``size`` is not used."""
        logits: Tensor = self.linear(self.dropout(features.pooled))
        return logits

    def counts(self, target: Int[Tensor, "B K"]) -> Float[Tensor, "1"]:
        """Number of known entries."""
        return (target != UNLABELED).sum()[None].double()

    def loss(
        self,
        prediction: Tensor | tuple[Tensor, ...],
        target: Int[Tensor, "B K"],
        counts: Float[Tensor, "1"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean weighted cross-entropy over the known entries of all processes, in at least float32; 0 without any.

        Args:
            prediction: Logits [B, K].
            target: 1 where the finding is present, 0 where it is absent, ``UNLABELED`` where it is unknown.
            counts: As in :meth:`Head.loss`.
        """
        assert isinstance(prediction, torch.Tensor)
        is_known = target != UNLABELED
        logits = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        logits = torch.where(is_known, logits, 0.0)  # no gradient for unknown entries
        entropy = F.binary_cross_entropy_with_logits(
            logits, (target == 1).to(logits), pos_weight=self.positive_weights.to(logits), reduction="none"
        )
        count = None if counts is None else counts[0]
        return mean_over(torch.where(is_known, entropy, 0.0).sum(), is_known.sum(), count)

    def predictions(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Converts logits to the probability of each finding."""
        return logits.sigmoid()

    def prepare(self, targets: Int[Tensor, "N K"]) -> None:
        """Sets balanced weights from all training scans; a finding that is always present or always absent keeps 1."""
        if not self.balanced:
            return
        positive, negative = (targets == 1).sum(0), (targets == 0).sum(0)
        has_both = (positive > 0) & (negative > 0)
        weights = torch.where(has_both, negative / positive.clamp(min=1), 1.0)
        self.positive_weights = weights.to(self.positive_weights)
