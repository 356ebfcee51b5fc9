"""Batches of crops without end, read by worker processes, sent as integers.

Workers decode straight into memory that they share with the training process; it is copied once, into memory that is
used again as soon as the batch that held it is gone. So neither allocation nor page faults grow with the batch.
"""

from __future__ import annotations

import itertools
import mmap
import weakref
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from medssl.data.loading.batches import BatchReader, Options, Packet
from medssl.data.loading.crops import slice_axes
from medssl.types import Crops, Origin, Placement, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from medssl.data.store.store import Store
    from medssl.types import ViewPlan

    Layout = tuple[tuple[int, ...], np.dtype[Any]]

PREFETCH = 2  # batches that a worker is ahead
POOLED = 4  # buffers of batches that are gone, kept for the next


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
    reader = BatchReader(store, plan, read_size, batch_size, seed, split, options)
    workers = options.get("workers", 2)
    return CropLoader(
        BatchStream(reader, workers),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_one_thread if workers else None,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
    )


def small_scans(store: Store, read_size: tuple[int, ...], *, split: str | None = None, slice_axis: int = 2) -> int:
    """Returns how many scans are smaller than a raw crop along some axis: those crops are padded."""
    shapes = scan_shapes(store, len(read_size), split=split, slice_axis=slice_axis)
    return int((shapes < np.asarray(read_size)).any(axis=1).sum())


def scan_shapes(
    store: Store,
    axes: int,
    *,
    split: str | None = None,
    slice_axis: int = 2,
    scans: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Returns the shapes [N, axes] of the scans that a loader reads; of slices where it reads slices of volumes.

    Args:
        store: Where the scans are.
        axes: Axes of the crops: 2 or 3.
        split: Scans of this split; None takes all.
        slice_axis: Axis across which slices lie.
        scans: Only these scans of the split; None takes all.
    """
    numbers = store.scans(split, axes=axes)
    if scans is not None:
        numbers = numbers[np.isin(numbers, scans)]
    shape = store.records.facts["shape"][numbers].astype(np.int64)
    is_volume = store.records.facts["ndim"][numbers] == 3
    if axes == 3:
        return shape
    planes = [[store.shape(n)[axis] for axis in slice_axes(store.affine(n), slice_axis)] for n in numbers[is_volume]]
    shapes = shape[:, :2].copy()
    shapes[is_volume] = np.array(planes, np.int64).reshape(-1, 2)
    return shapes


class CropLoader(DataLoader[Any]):
    """A DataLoader whose items are ``Crops``; what went wrong in a worker is raised here as one line.

    A worker has ``PREFETCH`` batches in work while one of its batches is copied here, so with one slot more than that
    none is overwritten before it was copied.
    """

    dataset: BatchStream

    def __iter__(self) -> Iterator[Crops]:  # type: ignore[override]  # batches, where DataLoader names its own iterator
        """Batches from ``first_batch`` on, without end."""
        source, reader = self.dataset, self.dataset.reader
        buffers = [None if layout is None else _Buffers(*layout) for layout in _layouts(reader)]
        if not self.num_workers:
            for batch in itertools.count(reader.options.get("first_batch", 0)):
                slots = [None if buffer is None else buffer.take() for buffer in buffers]
                yield _crops(_read(reader, batch, slots), slots)
        for item in super().__iter__():
            if isinstance(item, str):
                raise UserError(item)
            packet, slot = item
            pairs = zip(buffers, source.shared, strict=True)
            yield _crops(packet, [None if b is None or s is None else b.take().copy_(s[slot]) for b, s in pairs])


class BatchStream(IterableDataset[Any]):
    """The workers' side: worker w of W reads every W-th micro-batch into its slots of shared memory."""

    def __init__(self, reader: BatchReader, workers: int) -> None:
        self.reader = reader
        slots = (workers, PREFETCH + 1)
        self.shared = [_shared(slots, *layout) if workers and layout else None for layout in _layouts(reader)]

    def __iter__(self) -> Iterator[tuple[Packet, tuple[int, int]] | str]:
        """Batches of this worker; a text instead of a batch says what went wrong and is the last item."""
        worker = get_worker_info()
        assert worker is not None
        first = self.reader.options.get("first_batch", 0) + worker.id
        for turn, batch in enumerate(itertools.count(first, worker.num_workers)):
            slot = (worker.id, turn % (PREFETCH + 1))
            try:
                yield _read(self.reader, batch, [None if whole is None else whole[slot] for whole in self.shared]), slot
            except UserError as error:
                yield str(error)
                return


class _Buffers:
    """Tensors of one shape whose memory comes back here when nothing refers to it any more."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.free: list[NDArray[Any]] = []
        self.pinned = torch.cuda.is_available()

    def take(self) -> torch.Tensor:
        """A tensor with arbitrary content (page-locked where there is a CUDA device: torch keeps a pool of those)."""
        if self.pinned:
            return torch.empty(self.shape, dtype=_torch_type(self.dtype), pin_memory=True)
        memory = self.free.pop() if self.free else np.empty(self.shape, self.dtype)
        lent = memory[:]
        weakref.finalize(lent, self._back, memory).atexit = False
        return torch.from_numpy(lent)

    def _back(self, memory: NDArray[Any]) -> None:
        if len(self.free) < POOLED:
            self.free.append(memory)


def _layouts(reader: BatchReader) -> tuple[Layout | None, ...]:
    """Shape and dtype of images, labels and what is scored: the order in which they go through this module."""
    return reader.image, reader.label, reader.scored


def _read(reader: BatchReader, batch: int, tensors: Sequence[torch.Tensor | None]) -> Packet:
    """Reads a micro-batch into tensors of the reader's layouts."""
    images, labels, scored = (None if tensor is None else tensor.numpy() for tensor in tensors)
    assert images is not None
    return reader.packet(batch, images, labels, scored)


def _crops(packet: Packet, read: Sequence[torch.Tensor | None]) -> Crops:
    image, labels, scored = read
    assert image is not None
    tensors = {name: torch.from_numpy(array) for name, array in packet.arrays.items()}
    intensity, positions, along = (tensors.pop(name) for name in ("intensity", "positions", "along"))
    scan_ids, subject_ids, samples = packet.origin
    origin = Origin(scan_ids, subject_ids, samples, positions, along)
    return Crops(image, intensity, Placement(**tensors), origin, labels, scored, values=packet.values)


def _shared(slots: tuple[int, int], shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    """Memory that worker processes share: a mapping that they inherit, so that a small /dev/shm does not matter."""
    whole = (*slots, *shape)
    if torch.multiprocessing.get_start_method() != "fork":
        empty = torch.empty(whole, dtype=_torch_type(dtype))
        return empty.share_memory_()  # type: ignore[no-any-return, no-untyped-call]  # torch has no types here
    mapped = mmap.mmap(-1, int(np.prod(whole)) * dtype.itemsize)
    return torch.frombuffer(mapped, dtype=_torch_type(dtype)).reshape(whole)


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _as_it_is(item: Any) -> Any:
    return item


def _one_thread(worker: int) -> None:
    import signal

    import blosc2

    # a signal to the whole job (Ctrl-C, scancel) is for the training, which still needs crops to finish its step
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))

    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
