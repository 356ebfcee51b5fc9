"""The contrastive term by loops, and batches whose tags are known: the other road of the contrastive objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from medssl.objectives.base import Objective
from medssl.objectives.contract import example_batch
from medssl.types import Batch, Step


def by_loops(
    z: torch.Tensor,
    rows: Sequence[tuple],
    positive: Callable[[tuple, tuple], bool],
    negative: Callable[[tuple, tuple], bool],
    temperature: float,
) -> float:
    """Mean of -log(e^ap / (e^ap + sum_n e^an)) over ordered positive pairs of anchors that have negatives."""
    vectors = [[float(x) for x in row] for row in z.double()]
    lengths = [math.sqrt(sum(x * x for x in row)) for row in vectors]
    terms = []

    def similar(a: int, b: int) -> float:
        inner = sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))
        return math.exp(inner / lengths[a] / lengths[b] / temperature)

    for a, anchor in enumerate(rows):
        apart = [n for n, row in enumerate(rows) if negative(anchor, row)]
        for p, row in enumerate(rows):
            if apart and positive(anchor, row):
                near = similar(a, p)
                terms.append(-math.log(near / (near + sum(similar(a, n) for n in apart if n != p))))
    return sum(terms) / max(1, len(terms))


def batch_of(
    objective: Objective, *, scans: int = 3, names: Sequence[str] | None = None, views: str = "different"
) -> tuple[Batch, Step]:
    """An example batch whose views differ, with volumes by name."""
    batch, step = example_batch(objective.needs, objective.encoder.in_channels, scans=scans)
    if views == "different":
        changed = [
            replace(view, image=view.image + 0.3 * number * torch.randn(view.image.shape, generator=generator(number)))
            for number, view in enumerate(batch.views)
        ]
        batch = replace(batch, views=tuple(changed))
    if names is not None:
        batch = replace(batch, origin=replace(batch.origin, scan_ids=tuple(names)))
    return batch, step


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
