"""Base class of heads, and the network of an encoder with a head."""

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

UNLABELED = -1  # class number of voxels and scans without a label: the loss skips them


class Head(nn.Module, ABC):
    """Computes one value for each class from the features of an encoder.

    The first two arguments of a subclass are the encoder and the classes. The subclass stores neither the encoder nor
    its maps.

    Attributes:
        kind: "segmentation" (a class for every voxel), "classification" (a class for the image), "multi_label" (any
            number of findings for the image) or "regression" (a number for the image). It is the ``TargetKind.task`` of
            ``data.labels.kinds``.
        schema: The classes, in the order of the outputs.
        counts_predictions: Whether the loss of an optimizer step is no mean over its micro-batches, so that it needs
            ``prediction_counts``: another forward pass where there are several.
    """

    kind: str
    schema: LabelSchema
    counts_predictions: bool = False

    @abstractmethod
    def forward(self, features: Features, size: Sequence[int]) -> Tensor | tuple[Tensor, ...]:
        """Returns logits: [B, K, *size] for a segmentation, [B, K] for whole images.

        While training, a segmentation head with deep supervision returns several tensors, the full resolution first.

        Args:
            features: Features of the encoder.
            size: Voxels per axis of the image.
        """

    @abstractmethod
    def counts(self, target: Tensor) -> Float[Tensor, "T"]:
        """Number of terms of each mean in ``loss``, in this micro-batch of this process."""

    def prediction_counts(self, prediction: Tensor | tuple[Tensor, ...], target: Tensor) -> Float[Tensor, "S"]:
        """Sums over this micro-batch of this process that ``loss`` needs of the whole optimizer step.

        They follow those of ``counts`` in the argument of ``loss``. Called where ``counts_predictions`` is set, with
        a prediction without gradient.
        """
        del prediction, target
        return torch.zeros(0)

    @abstractmethod
    def loss(
        self, prediction: Tensor | tuple[Tensor, ...], target: Tensor, counts: Float[Tensor, "T"] | None = None
    ) -> Float[Tensor, ""]:
        """Computes the loss of the output of ``forward``.

        Args:
            prediction: Logits.
            target: Segmentation and classification: class numbers (positions in ``schema.classes``) [B, *s] or [B],
                ``UNLABELED`` where there is no label. Multi-label: 0, 1 or ``UNLABELED`` for each finding [B, K].
                Regression: numbers [B], NaN where there is no label.
            counts: Counts of the whole optimizer step, if it has several micro-batches (``Objective.counts``), as a
                mean over these. Where ``counts_predictions`` is set, their number follows.
        """

    def predictions(self, logits: Float[Tensor, "B K *s"]) -> Float[Tensor, "B K *s"]:
        """Converts logits (float32) to predictions: the probability of each class."""
        return logits.softmax(1)

    def prepare(self, targets: Tensor) -> None:
        """Fits constants of the loss, such as class weights, to the labels of all training scans, before training.

        Only heads for whole images use this.

        Args:
            targets: As in ``loss``, one row for each scan.
        """
        del targets


class Network(nn.Module):
    """An encoder with a head."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Float[Tensor, "B C *s"]) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits of an image; each axis is a multiple of the encoder's total stride."""
        prediction: Tensor | tuple[Tensor, ...] = self.head(self.encoder(image), image.shape[2:])
        return prediction


def class_numbers(labels: Int[Tensor, "*s"], schema: LabelSchema) -> Int[Tensor, "*s"]:
    """Converts stored label values to class numbers; the value to ignore and padding (-1) become ``UNLABELED``.

    Raises:
        UserError: A value is not a class; names the value and the classes.
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
            f"label values {unknown[:5]} are not among the classes {classes}: name them with label.class_names of "
            "the index, or leave them out of the loss with label.ignore"
        )
        raise UserError(message)
    return numbers


def require_classes(schema: LabelSchema, reason: str) -> None:
    """Refuses a schema with fewer than two classes.

    Raises:
        UserError: Fewer than two classes; names them and the reason.
    """
    if len(schema.classes) < 2:
        names = ", ".join(name for _, name in schema.classes) or "none"
        message = f'"{schema.name}" has fewer than two classes ({names}): {reason}'
        raise UserError(message)
