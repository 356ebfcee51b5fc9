"""Where the micro-batches of a training come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medssl.data.loading.loader import make_loader, scan_shapes
from medssl.data.loading.order import repeated
from medssl.training.distributed import layout
from medssl.types import UserError
from medssl.views.mirroring import with_rule
from medssl.views.plan import make_batch, needs_shapes, read_size
from medssl.views.stain import refuse_other_domains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from medssl.data.store.store import Store
    from medssl.training.settings import Training
    from medssl.types import Batch, Crops, ViewPlan


@dataclass(frozen=True)
class BatchSource:
    """Where the micro-batches of a training come from.

    Attributes:
        crops: Given the first micro-batch, the rank and the number of processes: endless micro-batches of raw crops; a
            fourth number sets how many processes read.
        batch: Turns raw crops into views on a device; ``alone`` says that the other processes do not do so now.
        accumulate: Micro-batches of one step.
        seed: Seed of the whole run.
    """

    crops: Callable[..., Iterable[Crops]]
    batch: Callable[..., Batch]
    accumulate: int
    seed: int


def batches_of_store(
    store: Store,
    plan: ViewPlan,
    training: Training,
    *,
    workers: int,
    split: str | None,
    scans: tuple[int, ...] | None = None,
    groups: tuple[int, ...] | None = None,
    with_labels: bool = False,
) -> BatchSource:
    """Crops of a store in the order of the run, and the plan's views of them.

    Args:
        store: Where the scans are.
        plan: The views, and how scans and regions fill a batch.
        training: Its batch size and seed.
        workers: Processes that read, unless ``BatchSource.crops`` gets another number.
        split: Only scans of this split; None takes all.
        scans: Only these scans of the split, by their number in the store; None takes all.
        groups: Class of each of ``scans``, where the plan's sampling balances them.
        with_labels: Read the voxels of the masks too.

    Raises:
        UserError: A view changes stains, and some scans are not in color; or shows a share of a whole slide.
    """
    numbers = store.scans(split, axes=len(plan.views[0].size))
    refuse_other_domains(plan, store.domains(numbers if scans is None else numbers[np.isin(numbers, scans)]))
    if store.tier == "slides" and any(spec.area is not None for spec in plan.views):
        message = "is a share of a whole slide"
        hint = "Set it to null, and scale to a range in stored pixels, as the presets for tiles do"
        raise UserError(message, key="objective.view.area", hint=hint)
    plan, usual = with_rule(plan, store.preprocess.mirror), workers
    size = crop_size(store, plan, split=split, scans=scans)

    def crops(first: int, rank: int, world_size: int, workers: int = usual) -> Iterable[Crops]:
        return make_loader(
            store,
            plan=plan,
            read_size=size,
            batch_size=training.batch_size,
            seed=training.seed,
            split=split,
            workers=workers,
            first_batch=first,
            rank=rank,
            world_size=world_size,
            with_labels=with_labels,
            scans=scans,
            groups=groups,
        )

    def batch(raw: Crops, device: torch.device, *, alone: bool = False) -> Batch:
        return make_batch(raw, plan, seed=training.seed, device=device, alone=alone)

    return BatchSource(crops, batch, training.accumulate, training.seed)


def crop_size(
    store: Store, plan: ViewPlan, *, split: str | None = None, scans: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Voxels per axis of the raw crops that a plan's views are cut out of."""
    axes, shapes = len(plan.views[0].size), None
    if needs_shapes(plan):
        found = scan_shapes(store, axes, split=split, slice_axis=plan.sampling.slice_axis, scans=scans)
        shapes = torch.from_numpy(np.unique(found, axis=0) if len(found) else np.array([plan.views[0].size]))
    return read_size(plan, store.spacing(axes), shapes)


def repeated_subjects(store: Store, plan: ViewPlan, training: Training, split: str | None) -> list[str]:
    """A note where a batch has more scans than there are subjects, and ``distinct_subjects`` is "where_possible"."""
    sampling = plan.sampling
    if sampling.distinct_subjects != "where_possible":
        return []
    subjects = store.distinct_subjects(store.scans(split, axes=len(plan.views[0].size)).tolist())
    together = training.batch_size * layout().world_size // sampling.regions_per_scan
    text = repeated(len(subjects), together)
    return [text] if text else []
