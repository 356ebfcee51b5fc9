"""Classification heads: one class for the whole image, from pooled features or by attention; also ordered classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional as F

from medssl.heads.base import UNLABELED, Head, require_classes
from medssl.nn.decoders import norm_layers
from medssl.ops.collectives import mean_over
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, LabelSchema

ClassWeights = tuple[float, ...] | Literal["balanced"] | None


class Classification(Head):
    """Base class of classification heads: cross-entropy over the labeled scans of all processes.

    Args:
        schema: Classes; two for a yes-or-no question.
        dropout: Probability of dropping a feature before the last layer, 0 to below 1.
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1 (Szegedy et al., CVPR 2016).
        class_weights: Weight of each class in the loss, above 0. "balanced" takes scans / (classes x scans of the
            class), so that rare classes count as much as frequent ones (King and Zeng, Logistic regression in rare
            events data, Political Analysis 2001). None takes 1.

    Raises:
        UserError: Fewer than two classes, or arguments out of range.
    """

    kind = "classification"
    class_weights: Tensor | None

    def __init__(
        self, schema: LabelSchema, *, dropout: float, label_smoothing: float, class_weights: ClassWeights
    ) -> None:
        super().__init__()
        require_classes(schema, "a classification needs at least two, as in no and yes")
        for name, value in {"dropout": dropout, "label_smoothing": label_smoothing}.items():
            if not 0 <= value < 1:
                message = f"{name} {value}: expected a number from 0 to below 1"
                raise UserError(message)
        count = len(schema.classes)
        self.balanced = class_weights == "balanced"
        stated_weights = None if class_weights is None or isinstance(class_weights, str) else list(class_weights)
        if (isinstance(class_weights, str) and not self.balanced) or (
            stated_weights is not None and (len(stated_weights) != count or min(stated_weights) <= 0)
        ):
            message = (
                f"class_weights {stated_weights or class_weights}: expected {count} numbers above 0, one for each "
            )
            message += "class, or balanced"
            raise UserError(message)
        self.schema = schema
        self.label_smoothing = label_smoothing
        weights = (
            torch.ones(count) if self.balanced else None if stated_weights is None else torch.tensor(stated_weights)
        )
        self.register_buffer("class_weights", weights, persistent=False)  # of the arguments and the training labels
        self.dropout = nn.Dropout(dropout)

    def prepare(self, targets: Int[Tensor, "N"]) -> None:
        """Sets balanced class weights from the class numbers of all training scans; a class without scans keeps 1."""
        if not self.balanced or self.class_weights is None:
            return
        counts = targets[targets != UNLABELED].bincount(minlength=len(self.schema.classes))
        balanced = counts.sum() / (len(counts) * counts.clamp(min=1))
        self.class_weights = torch.where(counts > 0, balanced, 1.0).to(self.class_weights)

    def counts(self, target: Int[Tensor, "B"]) -> Float[Tensor, "1"]:
        """Sum of the class weights of the labeled scans."""
        labeled = target != UNLABELED
        if self.class_weights is None:
            return labeled.sum()[None].double()
        return torch.where(labeled, self.class_weights[target.clamp(min=0)].double(), 0.0).sum()[None]

    def loss(
        self,
        prediction: Tensor | tuple[Tensor, ...],
        target: Int[Tensor, "B"],
        counts: Float[Tensor, "1"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy, weighted by class, in at least float32; 0 if no scan is labeled.

        Args:
            prediction: Logits [B, K].
            target: Class numbers, ``UNLABELED`` where the class is not known.
            counts: As in :meth:`Head.loss`.
        """
        assert isinstance(prediction, torch.Tensor)
        labeled = target != UNLABELED
        logits = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        logits = torch.where(labeled[:, None], logits, 0.0)
        weights = logits.new_ones(logits.shape[1]) if self.class_weights is None else self.class_weights.to(logits)
        total = F.cross_entropy(
            logits,
            target,
            weights,
            ignore_index=UNLABELED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        count = torch.where(labeled, weights[target.clamp(min=0)], 0.0).sum()
        return mean_over(total, count, None if counts is None else counts[0])


class Linear(Classification):
    """Pooled features and one linear layer.

    Args:
        encoder: Its last map's channels are those of the pooled features.
        schema: Classes; two for a yes-or-no question.
        dropout: Probability of dropping a feature, 0 to below 1.
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1.
        class_weights: Weight of each class in the loss, or "balanced"; None takes 1.
        batch_norm: First normalize the features by batch norm over all processes. Linear probes on frozen features
            need this, since no training has set the scale of the features (He et al., CVPR 2022).
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(schema, dropout=dropout, label_smoothing=label_smoothing, class_weights=class_weights)
        self.norms = norm_layers("batch", [encoder.channels[-1]] if batch_norm else [], ndim=2)
        self.linear = nn.Linear(encoder.channels[-1], len(schema.classes))

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K"]:
        """Returns logits; ``size`` is not used."""
        x = features.pooled
        for norm in self.norms:
            x = norm(x[..., None, None])[..., 0, 0]
        logits: Tensor = self.linear(self.dropout(x))
        return logits


class Ordinal(Classification):
    """Ordered classes, such as grades: one linear score of the pooled features, and thresholds between the classes.

    The probability of a class beyond threshold k is sigmoid(w x - t_k), with t_k rising in k. This is the proportional
    odds model (McCullagh, Regression models for ordinal data, 1980). All pairs of grades share the weights w, so that
    fewer labels are needed than with separate weights for each class. ``forward`` returns log-probabilities; their
    softmax gives the probabilities.

    Args:
        encoder: Its last map's channels are those of the pooled features.
        schema: Classes in their order; numeric values are in numeric order.
        dropout: Probability of dropping a feature, 0 to below 1.
        class_weights: Weight of each class in the loss, or "balanced"; None takes 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        dropout: float = 0.0,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(schema, dropout=dropout, label_smoothing=0.0, class_weights=class_weights)
        self.linear = nn.Linear(encoder.channels[-1], 1, bias=False)  # the thresholds are its biases
        count = len(schema.classes) - 1
        start = torch.logit(torch.arange(1, count + 1) / (count + 1))  # equally likely classes where w x is 0
        self.lowest = nn.Parameter(start[:1])
        self.steps = nn.Parameter(torch.log(torch.expm1(start.diff())))  # softplus keeps them above 0

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K"]:
        """Returns log-probabilities; ``size`` is not used."""
        gaps = F.softplus(self.steps)
        thresholds = torch.cat((self.lowest, self.lowest + gaps.cumsum(0)))
        score = self.linear(self.dropout(features.pooled))
        distances = (score - thresholds).to(torch.promote_types(score.dtype, torch.float32))
        beyond, before = F.logsigmoid(distances), F.logsigmoid(-distances)
        # between two thresholds s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)): no difference of small numbers
        between = beyond[:, :-1] + before[:, 1:] + torch.log(-torch.expm1(-gaps))
        return torch.cat((before[:, :1], between, beyond[:, -1:]), 1)


class AttentivePool(Classification):
    """Attention pooling: a learned query attends to all tokens or positions of the coarsest map; then a linear layer.

    It can detect small structures, whose signal a mean over positions would dilute. Bardes et al. (V-JEPA, TMLR 2024)
    and El-Nouby et al. (AIM, ICML 2024) evaluate frozen encoders with such a probe.

    Args:
        encoder: Its last map's channels are those of the positions.
        schema: Classes; two for a yes-or-no question.
        attention_heads: Number of attention heads; must divide the channels.
        dropout: Probability of dropping a feature, 0 to below 1.
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1.
        class_weights: Weight of each class in the loss, or "balanced"; None takes 1.

    Raises:
        UserError: ``attention_heads`` does not divide the encoder's channels; or as :class:`Classification`.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        attention_heads: int = 4,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(schema, dropout=dropout, label_smoothing=label_smoothing, class_weights=class_weights)
        width = encoder.channels[-1]
        if attention_heads < 1 or width % attention_heads:
            message = f"attention_heads {attention_heads} does not divide the encoder's {width} channels"
            raise UserError(message)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, attention_heads, batch_first=True)
        self.after = nn.LayerNorm(width)
        self.linear = nn.Linear(width, len(schema.classes))

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K"]:
        """Returns logits; ``size`` is not used."""
        tokens = features.maps[-1].flatten(2).mT if features.tokens is None else features.tokens
        tokens = self.before(tokens)
        attended, _ = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        logits: Tensor = self.linear(self.dropout(self.after(attended[:, 0])))
        return logits
