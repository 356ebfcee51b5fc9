r"""Survival head: a risk for a scan, by the partial likelihood of Cox's proportional hazards.

With risk :math:`r_i`, time :math:`t_i` and the scans E whose event was seen::

    loss = - 1 / |E| sum_(i in E) [ r_i - log sum_(j: t_j >= t_i) exp r_j ]

Equal times are at risk together (Breslow). The sum in the logarithm goes over the scans of a micro-batch in all
processes, so that ``training.accumulate`` does not make risk sets larger; batches of 8 or more are advised. References:
Cox, Regression models and life-tables, 1972; Breslow, Covariance analysis of censored survival data, 1974; Katzman et
al., DeepSurv, 2018 (with a network).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.heads.base import Head
from medssl.ops.collectives import gather
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, LabelSchema


class Cox(Head):
    """Pooled features and one linear layer without bias: the logarithm of the hazard, up to a constant.

    Args:
        encoder: Its last map's channels are those of the pooled features.
        schema: One entry, the risk.
        dropout: Probability of dropping a feature, 0 to below 1.

    Raises:
        UserError: The schema has another number of entries than one, or an argument is out of range.
    """

    kind = "survival"

    def __init__(self, encoder: Encoder, schema: LabelSchema, *, dropout: float = 0.0) -> None:
        super().__init__()
        if len(schema.classes) != 1:
            message = f'"{schema.name}" has {len(schema.classes)} classes: a survival head takes a time and an event'
            raise UserError(message)
        if not 0 <= dropout < 1:
            message = f"dropout {dropout}: expected a number from 0 to below 1"
            raise UserError(message)
        self.schema = schema
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(encoder.channels[-1], 1, bias=False)  # a constant leaves the loss as it is

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B 1"]:
        """Returns risks; ``size`` is not used."""
        risk: Tensor = self.linear(self.dropout(features.pooled))
        return risk

    def counts(self, target: Float[Tensor, "B 2"]) -> Float[Tensor, "1"]:
        """Number of events."""
        return (target[:, 1] == 1).sum()[None].double()

    def loss(
        self,
        prediction: Tensor | tuple[Tensor, ...],
        target: Float[Tensor, "B 2"],
        counts: Float[Tensor, "1"] | None = None,
    ) -> Float[Tensor, ""]:
        """Negative partial log-likelihood per event, in at least float32; 0 without an event.

        Args:
            prediction: Risks [B, 1].
            target: Time, and 1 where the event was seen; NaN where nothing is known.
            counts: As in :meth:`Head.loss`.
        """
        assert isinstance(prediction, torch.Tensor)
        risk = gather(prediction[:, 0].to(torch.promote_types(prediction.dtype, torch.float32)))
        time, event = gather(target.to(risk)).unbind(1)
        total = negative_partial_likelihood(risk, time, event)
        number = (event == 1).sum() if counts is None else counts[0].to(risk)
        return torch.where(number > 0, total / number.clamp(min=1e-12), 0.0 * total)

    def predictions(self, logits: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """Risks as they are: higher means an earlier event."""
        return logits


def negative_partial_likelihood(
    risk: Float[Tensor, "B"], time: Float[Tensor, "B"], event: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """Sum over the events of the negative log-probability that this scan had it, among those at risk then.

    Args:
        risk: Logarithm of the hazard.
        time: Of the event, or when the subject was last seen; NaN leaves a scan out.
        event: 1 where the event was seen.
    """
    is_known = ~(time.isnan() | event.isnan())
    seen = is_known & (event == 1)
    at_risk = is_known[None] & (time[None] >= time[:, None])
    hidden = torch.where(is_known, risk, 0.0)  # no gradient for scans without a label
    among = hidden[None].expand_as(at_risk).masked_fill(~at_risk, -torch.inf)
    terms = hidden - among[seen].logsumexp(1).new_zeros(len(risk)).masked_scatter(seen, among[seen].logsumexp(1))
    return -torch.where(seen, terms, 0.0).sum()
