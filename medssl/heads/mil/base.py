"""Base class of heads for bags: tiles are pooled into one vector, from which an answer is computed.

Every head takes batches of bags with a mask. What stands at padding influences nothing. The order of tiles influences
nothing, either. The answer is that of the heads for whole scans, so classes, ordered classes, findings, numbers and
survival share their losses with them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import nn

from medssl.heads.base import UNLABELED, Head
from medssl.heads.classification import Linear, Ordinal
from medssl.heads.multi_label import MultiLabel
from medssl.heads.regression import Regression
from medssl.heads.survival import Cox
from medssl.ops.limits import expect
from medssl.types import Features, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import BagBatch, LabelSchema, Step

Answer = Literal["classes", "ordinal", "findings", "number", "survival"]
ClassWeights = tuple[float, ...] | Literal["balanced"] | None
ANSWERS: Mapping[str, type[Head]] = {
    "classes": Linear,
    "ordinal": Ordinal,
    "findings": MultiLabel,
    "number": Regression,
    "survival": Cox,
}
WEIGHTED = {"classes": "class_weights", "ordinal": "class_weights", "findings": "positive_weights"}


@dataclass(frozen=True)
class PooledBags:
    """What a head makes of bags before the answer.

    Attributes:
        embedding: One vector for each bag.
        attention: Weight of each tile in each branch: rows sum to 1 and are 0 at padding.
    """

    embedding: Float[Tensor, "B W"]
    attention: Float[Tensor, "B H N"]


class BagHead(Head):
    """Pools the tiles of a bag and answers.

    Args:
        width: Features of a pooled bag.
        schema: The classes, in the order of the outputs.
        answer: What is answered: "classes", "ordinal" (ordered classes), "findings", "number" or "survival".
        class_weights: Weight of each class or finding in the loss, or "balanced"; None takes 1.

    Raises:
        UserError: An answer that the head does not give, or weights without classes.
    """

    answers: ClassVar[tuple[str, ...]] = tuple(ANSWERS)

    def __init__(
        self, width: int, schema: LabelSchema, *, answer: Answer = "classes", class_weights: ClassWeights = None
    ) -> None:
        super().__init__()
        refuse_answer(type(self), answer)
        arguments: dict[str, Any] = {}
        if class_weights is not None:
            if answer not in WEIGHTED:
                message = f"a {answer} has no classes"
                raise UserError(message, key="head.class_weights", got=class_weights, hint="Leave it out")
            arguments[WEIGHTED[answer]] = class_weights
        described = cast("Encoder", SimpleNamespace(channels=(width,)))  # all that these heads read of an encoder
        made: Any = ANSWERS[answer]
        self.answer: Head = made(described, schema, **arguments)
        self.schema, self.kind = schema, self.answer.kind

    @classmethod
    def task_of(cls, arguments: Mapping[str, Any]) -> str:
        """The task of a head with these arguments (``Head.kind``).

        Raises:
            UserError: An answer that the head does not give.
        """
        answer = str(arguments.get("answer", "classes"))
        refuse_answer(cls, answer)
        return ANSWERS[answer].kind

    @abstractmethod
    def pool(self, bags: BagBatch) -> PooledBags:
        """Pools bags."""

    def forward(self, features: Any, size: Sequence[int] = ()) -> Float[Tensor, "B K"]:
        """Returns logits.

        Args:
            features: Bags (``BagBatch``).
            size: Not used.
        """
        return self.logits(self.pool(features))

    def logits(self, pooled: PooledBags) -> Float[Tensor, "B K"]:
        """The answer of pooled bags."""
        logits = self.answer(Features((), pooled.embedding), ())
        assert isinstance(logits, torch.Tensor)
        return logits

    def attention(self, bags: BagBatch) -> Float[Tensor, "B H N"]:
        """Weight of each tile in each branch of the head."""
        return self.pool(bags).attention

    def learn(
        self, bags: BagBatch, target: Tensor, step: Step, counts: Tensor | None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss of one micro-batch, and terms of it to log.

        Args:
            bags: Bags.
            target: As in ``loss``.
            step: The optimizer step, whose samples key the random draws.
            counts: Counts of the whole step (``counts``); None takes those of this micro-batch.
        """
        del step
        return self.loss(self(bags), target, counts), {}

    def loss(
        self, prediction: Tensor | tuple[Tensor, ...], target: Tensor, counts: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Loss of the answer."""
        return self.answer.loss(prediction, target, None if counts is None else counts[:-1])

    def counts(self, target: Tensor) -> Float[Tensor, "T"]:
        """Counts of the answer's loss, then the number of labeled bags."""
        return torch.cat((self.answer.counts(target), labeled(target).sum()[None].double()))

    def predictions(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """As the head of the answer converts them."""
        return self.answer.predictions(logits)

    def prepare(self, targets: Tensor) -> None:
        """Sets constants of the loss, such as class weights."""
        self.answer.prepare(targets)

    def after_step(self, step: Step) -> None:
        """Called once after each optimizer step: teachers and prototypes follow here."""


@torch.no_grad()
def answer_of(head: Head, bag: BagBatch) -> list[float]:
    """What a head answers for one bag."""
    logits = head(bag, ())
    assert isinstance(logits, torch.Tensor)
    answer: list[float] = head.predictions(logits.float())[0].tolist()
    return answer


def refuse_answer(head: type[BagHead], answer: str) -> None:
    """Refuses an answer that a head does not give.

    Raises:
        UserError: Names those that it gives.
    """
    if answer not in head.answers:
        message = f"{head.__name__} does not answer that"
        raise UserError(message, key="head.answer", got=answer, expected=", ".join(head.answers))


def labeled(target: Tensor) -> Bool[Tensor, "B"]:
    """Which bags have a label."""
    if target.is_floating_point():
        known = ~target.isnan()
        return known if known.ndim == 1 else known.all(1)
    known = target != UNLABELED
    return known if known.ndim == 1 else known.any(1)


def projection(features: int, width: int, dropout: float) -> nn.Sequential:
    """Linear layer, ReLU and dropout on each tile."""
    expect(width >= 1, "head.width", width, "at least 1")
    expect(0 <= dropout < 1, "head.dropout", dropout, "from 0 to below 1")
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout))


def tiles_of(bags: BagBatch, layer: nn.Module) -> Float[Tensor, "B N D"]:
    """Features in the type of a layer's weights, zero at padding: what stands there may be anything, even NaN."""
    weight = next(layer.parameters())
    return bags.features.to(weight.dtype).masked_fill(~bags.mask[..., None], 0)


def masked_softmax(scores: Float[Tensor, "B H N"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B H N"]:
    """Softmax over the tiles in at least float32, exactly 0 at padding."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~mask[:, None], -torch.inf).softmax(2)
