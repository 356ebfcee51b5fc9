"""Learning from labels with the engine of pretraining: a supervised objective, and how it reads a stored scan."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from medssl.data.labels.kinds.base import kind_of
from medssl.data.loading.crops import slice_axes
from medssl.heads.base import UNLABELED, Network, class_numbers
from medssl.objectives.base import Objective, evaluation_mode
from medssl.ops.draws import Draws
from medssl.training.label_targets import targets_of
from medssl.training.optim import FineTuning
from medssl.types import Loss, ViewPlan
from medssl.views.intensity import decode
from medssl.views.mixing import Mixed, Mixing, mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from medssl.data.store.store import Store
    from medssl.heads.base import Head
    from medssl.training.settings import Examples
    from medssl.types import Batch, Step


class Supervised(Objective):
    """The loss of a head on labeled views; weights are kept under ``encoder`` and ``head``.

    While the head moves alone (``optimizer.head_first``) the encoder has no dropout and no statistics that move.

    Args:
        network: Encoder and head.
        data: How views are cut out of scans, and how scans fill a batch.
        optimizer: How weights move.
        mixing: Whether the samples of a batch are mixed.
    """

    floor_score: Tensor
    below_floor: Tensor

    def __init__(
        self,
        network: Network,
        data: Examples,
        optimizer: FineTuning = FineTuning(),  # noqa: B008 (frozen)
        mixing: Mixing = Mixing(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.head: Head = network.head
        self.optimizer, self.mixing = optimizer, mixing
        averages = optimizer.average > 0 and optimizer.keep != "final"
        self.averaged = copy.deepcopy(network).requires_grad_(False).eval() if averages else None
        self.floor = copy.deepcopy(network).requires_grad_(False).eval() if optimizer.probe.floor else None
        if self.floor is not None:
            self.register_buffer("floor_score", torch.tensor(torch.inf, dtype=torch.float64))
            self.register_buffer("below_floor", torch.tensor(False))
        self.needs = ViewPlan((data.view,), data.sampling)

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Loss of one micro-batch: voxels that are padding, not scored or of the value to ignore do not count."""
        self.require(batch, step)
        mixed = self.mixed(batch, step)
        prediction = self.predict(mixed.image, step)
        losses = [
            weight * self.head.loss(prediction, target, count)
            for (weight, target), count in zip(mixed.targets, self.counts_of_step(step, mixed), strict=True)
        ]
        loss = torch.stack(losses).sum()
        return Loss(loss, {"loss": loss.detach()})

    def mixed(self, batch: Batch, step: Step) -> Mixed:
        """Images and targets of a batch, mixed; the draws are those of the step, so that all processes mix alike."""
        draws = Draws(step.seed, (step.index,), "mixing")
        return mix(batch.views[0].image, self.target(batch), self.mixing, draws)

    def predict(self, image: Tensor, step: Step) -> Tensor | tuple[Tensor, ...]:
        """What the head makes of images; while it is trained alone, the encoder is in evaluation mode."""
        with evaluation_mode(self.encoder) if step.progress < self.optimizer.head_first else nullcontext():
            features = self.encoder(image)
        prediction: Tensor | tuple[Tensor, ...] = self.head(features, image.shape[2:])
        return prediction

    def counts_of_step(self, step: Step, mixed: Mixed) -> Sequence[Tensor | None]:
        """Counts of the step for each target; for heads that count predictions the number of micro-batches follows."""
        if step.counts is None:
            return [None] * len(mixed.targets)
        if not self.head.counts_predictions:
            return list(step.counts)
        number = step.counts.new_full((1,), step.micro_batches)
        return [torch.cat((count, number)) for count in step.counts]

    @torch.no_grad()
    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Counts of the head's loss, a row for each target of mixed samples.

        Where the head counts predictions, this is a forward pass of its own. It leaves statistics as they are.
        """
        mixed = self.mixed(batch, step)
        counts = [self.head.counts(target) for _, target in mixed.targets]
        if not self.head.counts_predictions:
            return torch.stack(counts)
        buffers = [(buffer, buffer.clone()) for part in (self.encoder, self.head) for buffer in part.buffers()]
        prediction = self.predict(mixed.image, step)
        for buffer, former in buffers:
            buffer.copy_(former)
        sums = [self.head.prediction_counts(prediction, target) for _, target in mixed.targets]
        return torch.stack([torch.cat(pair) for pair in zip(counts, sums, strict=True)])

    @property
    def judged(self) -> Network:
        """The network that is validated: with averaged weights, or as it is."""
        return self.averaged or Network(self.encoder, self.head)

    @property
    def written(self) -> Network:
        """The network that is written: the frozen probe while the fine-tuned network validates worse."""
        return self.floor if self.floor is not None and bool(self.below_floor) else self.judged

    @torch.no_grad()
    def set_floor(self, score: float) -> None:
        """Makes the present network, which has this validation score (the lower the better), the floor."""
        assert self.floor is not None
        self.floor.load_state_dict(self.judged.state_dict())
        self.floor_score.fill_(score)

    def compare_with_floor(self, score: float) -> bool:
        """Whether the floor has a better validation score (the lower the better) than ``score``; says what to write."""
        if self.floor is None:
            return False
        self.below_floor.fill_(score > float(self.floor_score))
        return bool(self.below_floor)

    def restart_average(self) -> None:
        """Sets the averaged weights to the present ones."""
        if self.averaged is not None:
            self.averaged.load_state_dict(Network(self.encoder, self.head).state_dict())

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Moves the averaged weights towards those of the step; counts and statistics are those of the step."""
        if self.averaged is None:
            return
        share = min(self.optimizer.average, (1 + step.index) / (10 + step.index))
        now = Network(self.encoder, self.head)
        for mean, fresh in zip(self.averaged.parameters(), now.parameters(), strict=True):
            mean.lerp_(fresh, 1 - share)
        for former, current in zip(self.averaged.buffers(), now.buffers(), strict=True):
            former.copy_(current)

    def target(self, batch: Batch) -> Tensor:
        """What the head learns from (``Head.loss``)."""
        view, schema = batch.views[0], self.head.schema
        if not kind_of(self.head.schema).per_voxel:
            return targets_of(batch.values, schema).to(view.image.device)
        assert batch.targets is not None
        mask = class_numbers(batch.targets[0][:, 0], schema)
        return mask.masked_fill(~view.scored[:, 0], UNLABELED)

    def pictures(self, batch: Batch, step: Step) -> dict[str, Float[Tensor, "B C *s"]]:
        """Input, label and prediction of a segmentation; the input alone where ``captions`` tell the other two."""
        image = batch.views[0].image
        if not kind_of(self.head.schema).per_voxel:
            return {"input": image}
        with evaluation_mode(self):
            prediction = self.head(self.encoder(image), image.shape[2:])
        assert isinstance(prediction, torch.Tensor)
        shown = {"label": self.target(batch), "prediction": prediction.argmax(1)}
        return {"input": image} | {name: numbers[:, None].float() for name, numbers in shown.items()}

    def captions(self, batch: Batch) -> list[str]:
        """Label and prediction of each sample in words, where whole scans are answered for."""
        if kind_of(self.head.schema).per_voxel:
            return []
        image = batch.views[0].image
        with evaluation_mode(self):
            prediction = self.head(self.encoder(image), image.shape[2:])
        assert isinstance(prediction, torch.Tensor)
        answers = self.head.predictions(prediction).tolist()
        schema, kind = self.head.schema, kind_of(self.head.schema)
        return [kind.in_words(values, answer, schema) for values, answer in zip(batch.values, answers, strict=True)]


class StoredScan:
    """A stored scan as ``heads.sliding`` reads it: boxes of normalized values, along which axis, in which plane."""

    def __init__(self, store: Store, number: int, window: tuple[int, ...], axis: int) -> None:
        self.store = store
        self.number = number
        self.shape = store.shape(number)
        self.numbers = torch.from_numpy(store.intensity(number).copy())[None]
        sliced = len(self.shape) > len(window)
        self.axis = axis if sliced else int(np.argmax(self.shape))
        self.plane = slice_axes(store.affine(number), axis) if sliced else None

    def read(self, start: tuple[int, ...], size: tuple[int, ...]) -> Float[Tensor, "C *w"]:
        """A box, decoded; beyond the scan the lowest value."""
        return decode(torch.from_numpy(self.store.read(self.number, start, size))[None], self.numbers)[0]
