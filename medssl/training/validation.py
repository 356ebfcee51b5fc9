"""Validation of a fine-tuning: which step is the best, and whether the frozen encoder was better."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed

from medssl.data.labels.kinds.base import kind_of
from medssl.heads.base import class_numbers
from medssl.heads.sliding import classify, slide
from medssl.metrics.scoring import scoring_of
from medssl.metrics.segmentation import dice_scores
from medssl.objectives.base import evaluation_mode
from medssl.training.events import Listener, Measures
from medssl.training.supervised import StoredScan, Supervised

if TYPE_CHECKING:
    from medssl.data.store.store import Store
    from medssl.heads.base import Network
    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop
    from medssl.training.settings import Examples
    from medssl.types import LabelSchema

log = logging.getLogger(__name__)


def supervised(loop: TrainingLoop) -> Supervised:
    """The objective of a fine-tuning."""
    assert isinstance(loop.objective, Supervised)
    return loop.objective


def floor_step(objective: Supervised, horizon: int) -> int:
    """The step after which the network is the frozen encoder with its trained head."""
    return round(objective.optimizer.head_first * horizon)


class Validation(Listener):
    """Judges the weights by labeled scans that are never learned from, every ``every`` steps and at the end.

    Of the weights that are written it says whether the frozen encoder was better (``optimizer.probe.floor``). The scans
    are shared out among the processes. Stands before the listener that writes checkpoints, so that each
    verdict is in the checkpoint of its step.
    """

    judges = True

    def __init__(self, store: Store, scans: tuple[int, ...], data: Examples, *, every: int, keep: str) -> None:
        self.store = store
        self.scans = scans
        self.window = tuple(data.view.size)
        self.axis = data.sampling.slice_axis
        self.every = every
        self.selects = keep == "best"
        self.best = self.last = ""

    def on_start(self, loop: TrainingLoop) -> None:
        """Remembers the best of a former process; measures the floor where it is the network of the start."""
        self.best = (
            f"best validation {1 - loop.progress.best:.4f}, of a step before this start: its weights are written"
        )
        objective = supervised(loop)
        if loop.progress.step == 0 and objective.floor is not None and floor_step(objective, loop.horizon) == 0:
            self.set_floor(loop, *self.measure(loop))

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> Measures | None:
        """Validates where it is time to."""
        objective = supervised(loop)
        is_floor = objective.floor is not None and record.step == floor_step(objective, loop.horizon)
        if record.step % self.every and record.step < loop.steps and not is_floor:
            return None
        name, value = self.measure(loop)
        if is_floor:
            self.set_floor(loop, name, value)
        below = objective.compare_with_floor(1 - value)
        said = f"validation {name} {value:.4f} at step {record.step}"
        if 1 - value < loop.progress.best:
            self.best = f"{said}, whose weights are written"
        self.last = f"{said}; its {'averaged ' if objective.averaged is not None else ''}weights are written"
        if below:
            floor = 1 - float(objective.floor_score)
            self.best = self.last = f"{said}, below {floor:.4f} of the frozen encoder: that network is written"
        return Measures({f"validation_{name}": value}, score=1 - value)

    def measure(self, loop: TrainingLoop) -> tuple[str, float]:
        """Name and value of the measure, over the scans of all processes."""
        objective = supervised(loop)
        mine = self.scans[loop.rank :: loop.world_size]
        with evaluation_mode(objective), loop.autocast():
            cases = self.judge(objective.judged.eval(), mine)
        if loop.world_size > 1:
            shares: list[Any] = [None] * loop.world_size
            distributed.all_gather_object(shares, cases)
            cases = [case for share in shares for case in share]
        return self.verdict(objective.head.schema, cases)

    def set_floor(self, loop: TrainingLoop, name: str, value: float) -> None:
        """Makes the present network the floor."""
        supervised(loop).set_floor(1 - value)
        if loop.rank == 0:
            log.info(f"frozen encoder: validation {name} {value:.4f}, the floor of this fine-tuning")

    def summary(self, step: int) -> str:
        """Says which weights are written."""
        return self.best if self.selects else self.last

    def judge(self, network: Network, scans: tuple[int, ...]) -> list[tuple[int, list[Any]]]:
        """For each scan its number with its Dice per class, or what the head answers."""
        segmentation = kind_of(network.head.schema).per_voxel
        cases = []
        for number in scans:
            scan = StoredScan(self.store, number, self.window, self.axis)
            if not segmentation:
                row = classify(
                    network, scan.read, scan.shape, window=self.window, axis=scan.axis, plane=scan.plane
                ).tolist()
                cases.append((number, row))
                continue
            blocks = slide(network, scan.read, scan.shape, window=self.window, axis=scan.axis, plane=scan.plane)
            prediction = torch.cat([block.argmax(0) for _, block in blocks], 0).movedim(0, scan.axis)
            label = self.store.read_label(number, (0,) * len(scan.shape), scan.shape)
            target = class_numbers(torch.from_numpy(label[0].astype(np.int64)), network.head.schema)
            cases.append((number, dice_scores(prediction, target, len(network.head.schema.classes))))
        return cases

    def verdict(self, schema: LabelSchema, cases: list[tuple[int, list[Any]]]) -> tuple[str, float]:
        """Name and value of the measure, of which more is better: mean Dice over subjects, AUROC, or R2."""
        scans = [number for number, _ in cases]
        values = [self.store.values(number) for number in scans]
        return scoring_of(schema).validate([result for _, result in cases], values, self.store.subjects(scans), schema)
