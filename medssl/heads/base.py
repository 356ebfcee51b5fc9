"""What every head is, and the network that an encoder and a head make together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, LabelSchema

UNLABELED = -1  # class number of voxels and scans that no loss looks at


class Head(nn.Module, ABC):
    """Turns the features of an encoder into one value for each class.

    A subclass takes the encoder and the classes as its first two arguments and keeps neither the encoder nor its maps.

    Attributes:
        kind: "segmentation" answers for every voxel, "classification" for the whole image; so do "multi_label", with
            any number of findings, and "regression", with a number (``TargetKind.task`` in ``data.labels.kinds``).
        schema: The classes in the order of the outputs.
    """

    kind: str
    schema: LabelSchema

    @abstractmethod
    def forward(self, features: Features, size: Sequence[int]) -> Tensor | tuple[Tensor, ...]:
        """Returns logits: [B, K, *size] of a segmentation, [B, K] of whole images.

        While training, a segmentation head with deep supervision returns several, the full resolution first.
        """

    @abstractmethod
    def counts(self, target: Tensor) -> Float[Tensor, "T"]:
        """How many terms each mean of ``loss`` is over, in this micro-batch of this process."""

    @abstractmethod
    def loss(
        self, prediction: Tensor | tuple[Tensor, ...], target: Tensor, counts: Float[Tensor, "T"] | None = None
    ) -> Float[Tensor, ""]:
        """Loss of what ``forward`` returned.

        Args:
            prediction: Logits.
            target: Class numbers (places in ``schema.classes``) [B, *s], ``UNLABELED`` where nothing is known; of
                "multi_label" 0, 1 or ``UNLABELED`` for each finding [B, K]; of "regression" numbers [B], NaN where
                nothing is known.
            counts: Those of the whole optimizer step, where it has several micro-batches (``Objective.counts``).
        """

    def predictions(self, logits: Float[Tensor, "B K *s"]) -> Float[Tensor, "B K *s"]:
        """What people are told of logits in float32: the probability of each class."""
        return logits.softmax(1)

    def prepare(self, targets: Tensor) -> None:
        """Takes what the loss needs from the labels of all scans that are learned from, once, before training.

        Args:
            targets: As of ``loss``, a row for each scan; heads for whole images only.
        """
        del targets


class Network(nn.Module):
    """An encoder with a head."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Float[Tensor, "B C *s"]) -> Tensor | tuple[Tensor, ...]:
        """Logits of an image whose size the encoder's total stride divides."""
        prediction: Tensor | tuple[Tensor, ...] = self.head(self.encoder(image), image.shape[2:])
        return prediction


def class_numbers(labels: Int[Tensor, "*s"], schema: LabelSchema) -> Int[Tensor, "*s"]:
    """Stored label values as class numbers; the value to ignore, named or not, and padding (-1) become ``UNLABELED``.

    Raises:
        UserError: A value that is no class; names it and the classes.
    """
    numbers = torch.full_like(labels, UNLABELED, dtype=torch.int64)
    is_known = labels == -1
    if schema.ignore is not None:
        is_known |= labels == schema.ignore
    for number, (value, _) in enumerate(schema.classes):
        if value == schema.ignore:
            continue
        is_class = labels == value
        numbers[is_class] = number
        is_known |= is_class
    if not bool(is_known.all()):
        unknown = sorted(set(labels[~is_known].tolist()))
        classes = ", ".join(f"{value}={name}" for value, name in schema.classes)
        message = (
            f"label values {unknown[:5]} are not among the classes {classes}: name them with --label.class_names of "
            "medssl index, or leave them out of the loss with --label.ignore"
        )
        raise UserError(message)
    return numbers


def require_classes(schema: LabelSchema, reason: str) -> None:
    """Refuses a schema with which nothing can be told apart.

    Raises:
        UserError: Fewer than two classes; names them and the reason.
    """
    if len(schema.classes) < 2:
        names = ", ".join(name for _, name in schema.classes) or "none"
        message = f'"{schema.name}" has fewer than two classes ({names}): {reason}'
        raise UserError(message)
