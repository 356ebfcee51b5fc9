"""Crops of a store, batch after batch without end: every batch is a function of (seed, its number).

Micro-batch m of process r of R holds the global samples m*R*B + r*B ... + B - 1, so the samples do not depend on how
many processes share a global batch, how many workers read, or where a run resumed.
"""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from medssl.data.order import Order
from medssl.data.records import LABELS
from medssl.data.regions import region_at, slice_axes, slice_world
from medssl.types import Crops, Origin, Placement, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from medssl.data.store import Store
    from medssl.types import ViewPlan

PREFETCH = 2  # batches that a worker is ahead


class Options(TypedDict, total=False):
    """How batches are read.

    Attributes:
        workers: Processes that read beside the training; 0 reads in the training's own process.
        first_batch: Number of the first micro-batch: where a run resumes.
        rank: Number of this process.
        world_size: Number of processes.
        with_labels: Read the labels too.
    """

    workers: int
    first_batch: int
    rank: int
    world_size: int
    with_labels: bool


def make_loader(
    store: Store,
    *,
    plan: ViewPlan,
    read_size: tuple[int, ...],
    batch_size: int,
    seed: int,
    split: str | None = None,
    **options: Unpack[Options],
) -> CropLoader:
    """Returns an endless loader of ``Crops``.

    Args:
        store: Where scans are read from.
        plan: The objective's views and sampling.
        read_size: Voxels per axis of a raw crop; two axes on a store of volumes take slices.
        batch_size: Crops in a micro-batch of this process.
        seed: Seed of the run.
        split: Scans that take part; None takes all.
        **options: See ``Options``.

    Raises:
        UserError: No scan fits, or the plan asks for something that the store cannot give.
    """
    feed = Feed(store, plan, read_size, batch_size, seed, split, options)
    workers = options.get("workers", 2)
    return CropLoader(
        feed,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_one_thread if workers else None,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
    )


def population(store: Store, axes: int, split: str | None = None) -> NDArray[np.int64]:
    """Returns the numbers of the scans that crops of ``axes`` spatial axes can be taken from.

    Raises:
        UserError: There are none, or their numbers of channels differ.
    """
    facts = store.records.facts
    chosen = facts["ndim"] >= axes
    if split is not None:
        known = store.records.tables["split"]
        chosen = chosen & (facts["split"] == known.index(split)) if split in known else np.zeros_like(chosen)
    found = np.flatnonzero(chosen)
    if not len(found):
        counts = np.bincount(facts["split"], minlength=1)
        held = ", ".join(f"{n} {s!r}" for n, s in zip(counts, store.records.tables["split"], strict=False)) or "none"
        message = f"no scan with {axes} axes in split {split!r} of {store.path}; scans by split: {held}"
        raise UserError(message)
    channels = np.unique(facts["channels"][found])
    if len(channels) > 1:
        message = (
            f"scans of {store.path} have {' and '.join(map(str, channels))} channels and cannot share a batch: "
            "cache them into stores of their own with --where"
        )
        raise UserError(message)
    return found


def small_scans(store: Store, read_size: tuple[int, ...], *, split: str | None = None, slice_axis: int = 2) -> int:
    """Returns how many scans are smaller than a raw crop along some axis: those crops are padded."""
    numbers = population(store, len(read_size), split)
    shape = store.records.facts["shape"][numbers].astype(np.int64)
    flat = store.records.facts["ndim"][numbers] == len(read_size)
    if len(read_size) == 3:
        return int((shape < np.asarray(read_size)).any(axis=1).sum())
    count = int((shape[flat][:, :2] < np.asarray(read_size)).any(axis=1).sum())
    for number in numbers[~flat]:
        axes = slice_axes(store.records.world(number), slice_axis)
        count += any(store.records.shape(number)[a] < n for a, n in zip(axes, read_size, strict=True))
    return count


@dataclass(frozen=True)
class Packet:
    """A batch on its way between processes: the voxels lie in a slot of shared memory, the rest is small."""

    slot: tuple[int, int]
    arrays: dict[str, NDArray[Any]]
    origin: tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]
    values: tuple[dict[str, str], ...]


class CropLoader(DataLoader[Any]):
    """A DataLoader whose items are ``Crops``; what went wrong in a worker is raised here as one line.

    Workers write into slots of shared memory that are made once. A worker has ``PREFETCH`` batches in work while one of
    its batches is copied here, so with one slot more than that none is overwritten before it was copied.
    """

    dataset: Feed

    def __iter__(self) -> Iterator[Crops]:  # type: ignore[override]
        """Batches from ``first_batch`` on, without end."""
        pinned = torch.cuda.is_available()
        for item in super().__iter__():
            if isinstance(item, str):
                raise UserError(item)
            image, labels = (_copied(slots, item.slot, pinned) for slots in self.dataset.slots)
            assert image is not None
            tensors = {name: torch.from_numpy(array) for name, array in item.arrays.items()}
            intensity, positions = tensors.pop("intensity"), tensors.pop("positions")
            scan_ids, subject_ids, samples = item.origin
            origin = Origin(scan_ids, subject_ids, samples, positions)
            yield Crops(image, intensity, Placement(**tensors), origin, labels, values=item.values)


class Feed(IterableDataset[Any]):
    """Makes micro-batches; worker w of W makes every W-th."""

    def __init__(
        self,
        store: Store,
        plan: ViewPlan,
        read_size: tuple[int, ...],
        batch_size: int,
        seed: int,
        split: str | None,
        options: Options,
    ) -> None:
        self.store, self.sampling, self.size = store, plan.sampling, tuple(read_size)
        self.batch_size, self.seed, self.options = batch_size, seed, options
        numbers = population(store, len(read_size), split)
        facts = store.records.facts[numbers]
        self.channels = int(facts["channels"][0])
        self.dtype = torch.int16 if bool(facts["wide"].any()) else torch.uint8
        self.labelled = options.get("with_labels", False) and bool(facts["label"].any())
        self.valued = bool(facts["text"].any())
        self.order = self._order(numbers)
        count = max(1, options.get("workers", 2)), PREFETCH + 1 if options.get("workers", 2) else 1, batch_size
        image = _slots((*count, self.channels, *self.size), self.dtype)
        self.slots = image, _slots((*count, 1, *self.size), self._label_dtype(facts)) if self.labelled else None

    def __iter__(self) -> Iterator[Packet | str]:
        """Micro-batches of this worker; a text instead of a batch says what went wrong and is the last item."""
        worker = get_worker_info()
        own, step = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self.options.get("first_batch", 0) + own
        for turn, batch in enumerate(itertools.count(first, step)):
            try:
                yield self.packet(batch, (own, turn % self.slots[0].shape[1]))
            except UserError as error:
                yield str(error)
                return

    def packet(self, batch: int, slot: tuple[int, int]) -> Packet:
        """Reads one micro-batch into a slot."""
        world, rank = self.options.get("world_size", 1), self.options.get("rank", 0)
        first = (batch * world + rank) * self.batch_size
        samples = tuple(range(first, first + self.batch_size))
        numbers = [self.order(sample // self.sampling.regions_per_scan) for sample in samples]
        images, labels = (None if slots is None else slots[slot].numpy() for slots in self.slots)
        assert images is not None
        rows = [
            self.fill(sample, number, images[row], None if labels is None else labels[row])
            for row, (sample, number) in enumerate(zip(samples, numbers, strict=True))
        ]
        held = self.store.records
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        arrays["intensity"] = np.stack([held.intensity(number) for number in numbers])
        origin = (
            tuple(self.store.scan_id(number) for number in numbers),
            tuple(held.tables["subject"][held.subject[number]] for number in numbers),
            samples,
        )
        values = tuple(held.values(number) for number in numbers) if self.valued else ()
        return Packet(slot, arrays, origin, values)

    def fill(
        self, sample: int, number: int, image: NDArray[Any], labels: NDArray[Any] | None
    ) -> dict[str, NDArray[Any]]:
        """Reads the crop of a global sample into ``image`` [C, *size] and ``labels``; returns where it lies."""
        held = self.store.records
        shape, world = held.shape(number), held.world(number)
        axes = tuple(range(len(shape)))
        if len(shape) > len(self.size):
            axes = slice_axes(world, self.sampling.slice_axis)
        size = [1] * len(shape)
        for axis, n in zip(axes, self.size, strict=True):
            size[axis] = n
        cells = held.cells(number) if self.sampling.foreground > 0 else None
        start = region_at(self.seed, sample, shape, tuple(size), self.sampling, cells=cells)
        for read, out in ((self.store.read, image), (self.store.read_label, labels)):
            if out is not None:
                _read_along(read, number, (start, tuple(size), axes), out)
        kept = list(axes)
        extent, place = np.array(shape)[kept], np.array(start)[kept]
        return {
            "start": place,
            "source_shape": extent,
            "spacing_mm": np.linalg.norm(world[:-1, kept], axis=0).astype(np.float32),
            "world_affine": (slice_world(world, (axes[0], axes[1])) if len(shape) > len(axes) else world).astype("f4"),
            "positions": np.clip((place + np.array(self.size) / 2) / extent, 0, 1).astype(np.float32),
        }

    def _label_dtype(self, facts: NDArray[np.void]) -> torch.dtype:
        narrow = [code for name, code in LABELS.items() if name in ("", "uint8", "int8", "int16")]
        return torch.int16 if np.isin(facts["label"], narrow).all() else torch.int32

    def _order(self, numbers: NDArray[np.int64]) -> Order:
        sampling = self.sampling
        if not sampling.distinct_subjects:
            return Order(self.seed, numbers)
        together = self.batch_size * self.options.get("world_size", 1)
        if together % sampling.regions_per_scan:
            message = (
                f"a global batch of {together} does not hold whole scans of {sampling.regions_per_scan} regions: "
                "make the batch a multiple of sampling.regions_per_scan, or set sampling.distinct_subjects to false"
            )
            raise UserError(message)
        subjects = self.store.records.subject[numbers]
        return Order(self.seed, numbers, subjects=subjects, per_batch=together // sampling.regions_per_scan)


def _read_along(
    read: Any, number: int, box: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], out: NDArray[Any]
) -> None:
    """Reads a box into ``out`` [C, *axes]; a slice of a volume loses its thin axis, its rows and columns in order."""
    start, size, axes = box
    if len(axes) == len(size):
        read(number, start, size, out)
        return
    thin = next(axis for axis in range(3) if axis not in axes)
    flat = read(number, start, size, np.empty((len(out), *size), out.dtype)).squeeze(thin + 1)
    out[...] = flat if axes[0] < axes[1] else flat.swapaxes(1, 2)


def _slots(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that worker processes share: a mapping that they inherit, so that a small /dev/shm does not matter."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    if torch.multiprocessing.get_start_method() != "fork":
        return torch.empty(shape, dtype=dtype).share_memory_()  # type: ignore[no-any-return, no-untyped-call]
    return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=dtype).reshape(shape)


def _copied(slots: torch.Tensor | None, slot: tuple[int, int], pinned: bool) -> torch.Tensor | None:
    if slots is None:
        return None
    return torch.empty(slots[slot].shape, dtype=slots.dtype, pin_memory=pinned).copy_(slots[slot])


def _one_thread(worker: int) -> None:
    import signal

    import blosc2

    # a signal to the whole job (Ctrl-C, scancel) is for the training, which still needs crops to finish its step
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))

    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
