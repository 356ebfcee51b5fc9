"""Batch-norm statistics of whole images, for modules that learned from images with hidden cells filled in.

In training a batch norm uses the statistics of its batch. Afterwards it uses running ones, which are then those of
images that are mostly zeros. For probes and for the weights that are written they are measured anew: the first batches
of the run are passed through the modules without masks, each layer normalizes by the statistics of the batch, and the
layer is given mean and variance over all positions of all batches (Wu and Johnson, Rethinking "Batch" in BatchNorm,
arXiv 2105.07576, 2021). Weights, training and checkpoints do not change, and no label is read.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.objectives.base import evaluation_mode
from medssl.ops.collectives import reduce_sum, world_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from medssl.objectives.base import Objective
    from medssl.training.batch_source import BatchSource
    from medssl.training.loop import TrainingLoop
    from medssl.types import Card

Buffers = list[tuple["Tensor", "Tensor"]]  # mean and variance of each layer


class WholeImageStatistics:
    """Measures the batch-norm statistics of whole images, and lends them to the modules that are written.

    Args:
        objective: Says which modules need it (``Objective.filled_modules``).
        source: Where batches come from. The first ones of the run are taken, whatever its step, so that a run that was
            stopped measures what an uninterrupted one does.
        batches: Number of micro-batches.
    """

    def __init__(self, objective: Objective, source: BatchSource, batches: int) -> None:
        self.source = source
        self.batches = batches
        self.layers: list[_BatchNorm] = [
            layer
            for module in objective.filled_modules()
            for layer in module.modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        self.measured: tuple[int, Buffers] | None = None  # of which step

    @property
    def needed(self) -> bool:
        """Whether there is a layer to measure for."""
        return self.batches > 0 and len(self.layers) > 0

    @property
    def notes(self) -> list[str]:
        """What the first line of a run says."""
        if self.needed:
            return [f"batch norm is written with statistics of {self.batches} micro-batches of whole images"]
        if self.layers:
            return ["batch norm is written with statistics of images with hidden cells"]
        return []

    def noted_in(self, card: Card) -> Card:
        """The card of weights that are written with these statistics."""
        if not self.needed or card.objective is None:
            return card
        return replace(card, objective=replace(card.objective, whole_image_batches=self.batches))

    @contextmanager
    def applied(self, loop: TrainingLoop) -> Iterator[None]:
        """Sets the statistics of whole images for the block; to be entered in every process.

        They are measured once for a step.
        """
        step, former = loop.progress.step, buffers_of(self.layers)
        try:
            if self.measured is None or self.measured[0] != step:
                self.measured = step, self.measure(loop)
            self.set(self.measured[1])
            yield
        finally:
            self.set(former)

    @torch.no_grad()
    def measure(self, loop: TrainingLoop) -> Buffers:
        """Mean and variance of each layer over all positions of the batches of all processes."""
        sums = [(torch.zeros_like(mean, dtype=torch.float64),) * 2 for mean, _ in buffers_of(self.layers)]
        with evaluation_mode(loop.objective), following_one_batch(self.layers):
            for image in self.images(loop):
                with loop.autocast():
                    loop.objective.encode_whole(image)
                sums = [
                    (first + mean.double(), second + variance.double() + mean.double().square())
                    for (first, second), (mean, variance) in zip(sums, buffers_of(self.layers), strict=True)
                ]
        count = self.batches * len(loop.objective.needs.views) * world_size()
        means = [reduce_sum(first) / count for first, _ in sums]
        squares = [reduce_sum(second) / count for _, second in sums]
        return [(mean, (square - mean.square()).clamp(min=0)) for mean, square in zip(means, squares, strict=True)]

    def images(self, loop: TrainingLoop) -> Iterator[Tensor]:
        """Images of every view of the first micro-batches of the run, of the samples of this process."""
        crops = iter(self.source.crops(0, loop.rank, loop.world_size))
        try:
            for _ in range(self.batches):
                for view in self.source.batch(next(crops), loop.device).views:
                    yield view.image
        finally:
            getattr(crops, "close", lambda: None)()

    @torch.no_grad()
    def set(self, buffers: Buffers) -> None:
        """Gives each layer its statistics."""
        for layer, (mean, variance) in zip(self.layers, buffers, strict=True):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)


def buffers_of(layers: Sequence[_BatchNorm]) -> Buffers:
    """Copies of the running statistics."""
    copies = []
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        copies.append((layer.running_mean.clone(), layer.running_var.clone()))
    return copies


@contextmanager
def following_one_batch(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Lets running statistics be those of the last batch for the block."""
    former = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer, (_, tracked) in zip(layers, former, strict=True):
            layer.train()
            layer.momentum = 1.0
            layer.num_batches_tracked = None if tracked is None else tracked.clone()
        yield
    finally:
        for layer, (momentum, tracked) in zip(layers, former, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked
