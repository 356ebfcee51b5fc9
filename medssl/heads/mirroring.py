"""Mirrored inference: the mean of the predictions for an image and for its mirror images."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch

from medssl.heads.base import Head, Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.types import Features


class MirroredNetwork(Network):
    """A network whose output is the mean prediction over all combinations of mirrored axes.

    Predictions per voxel are mirrored back before the mean. Each axis doubles the number of forward passes.

    Args:
        network: Network in evaluation mode.
        axes: Axes of the image to mirror, from 0; channels and samples are not counted.
    """

    def __init__(self, network: Network, axes: Sequence[int]) -> None:
        super().__init__(network.encoder, _PredictingHead(network.head))
        self.mirrored = [
            tuple(axis + 2 for axis in chosen) for n in range(len(axes) + 1) for chosen in combinations(axes, n)
        ]

    def forward(self, image: Float[Tensor, "B C *s"]) -> Tensor:
        """Returns predictions (probabilities or numbers) in place of logits."""
        total = None
        for axes in self.mirrored:
            prediction = super().forward(image.flip(axes))
            assert isinstance(prediction, torch.Tensor), "the network is in training mode"
            prediction = prediction.flip(axes) if prediction.ndim > 2 else prediction
            total = prediction if total is None else total + prediction
        assert total is not None
        return total / len(self.mirrored)


class _PredictingHead(Head):
    """A head whose output is its predictions already, so that their mean can be taken."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.schema, self.kind = head, head.schema, head.kind

    def forward(self, features: Features, size: Sequence[int]) -> Tensor:
        logits = self.head(features, size)
        assert isinstance(logits, torch.Tensor), "the network is in training mode"
        return self.head.predictions(logits.float())

    def predictions(self, logits: Tensor) -> Tensor:
        return logits

    def counts(self, target: Tensor) -> Tensor:
        return self.head.counts(target)

    def loss(self, prediction: Tensor | tuple[Tensor, ...], target: Tensor, counts: Tensor | None = None) -> Tensor:
        raise NotImplementedError
