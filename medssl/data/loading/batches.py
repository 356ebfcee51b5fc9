"""What a batch of crops is: a pure function of (seed, its number), whoever reads it.

Micro-batch m of process r of R holds the global samples m*R*B + r*B ... + B - 1, so the samples do not depend on how
many processes share a global batch, how many workers read, or where a run resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from medssl.data.loading.class_positions import Places
from medssl.data.loading.crops import place_along, region_at, slice_axes, slice_world, tile_center
from medssl.data.loading.order import BalancedOrder, Order, RepeatingOrder, order_of_subjects
from medssl.data.store.records import LABELS
from medssl.types import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medssl.data.store.store import Store
    from medssl.types import ViewPlan


class Options(TypedDict, total=False):
    """How batches are read.

    Attributes:
        workers: Processes that read beside the training; 0 reads in the training's own process.
        first_batch: Number of the first micro-batch: where a run resumes.
        rank: Number of this process.
        world_size: Number of processes.
        with_labels: Read the labels too.
        scans: Only these scans of the split (numbers in the store), as often as they are named; None takes all.
        groups: Class of each of ``scans``, for a sampling that balances them.
    """

    workers: int
    first_batch: int
    rank: int
    world_size: int
    with_labels: bool
    scans: tuple[int, ...] | None
    groups: tuple[int, ...] | None


@dataclass(frozen=True)
class Packet:
    """What is known of a batch beside its voxels: places by name, who the rows are, their scan-level labels."""

    arrays: dict[str, NDArray[Any]]
    origin: tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]
    values: tuple[dict[str, str], ...]


class BatchReader:
    """Reads micro-batches of one process into arrays that it is given.

    Attributes:
        image: Shape and dtype of the voxels of a batch, [B, C, *size].
        label: Shape and dtype of its labels, [B, 1, *size], or None.
        scored: Shape and dtype of what a loss may look at, [B, 1, *size]; None where no scan of the store has excluded
            voxels, so that all batches of a store are alike.
    """

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
        numbers = store.scans(split, axes=len(read_size))
        selected = options.get("scans")
        if selected is not None:
            numbers = np.sort(np.array(selected, np.int64)[np.isin(selected, numbers)])
        facts = store.records.facts[numbers]
        self.valued = bool(facts["text"].any())
        self.order = self._order(numbers)
        wide, narrow = facts["wide"].any(), [LABELS[name] for name in ("", "uint8", "int8", "int16")]
        self.image = (batch_size, int(facts["channels"][0]), *self.size), np.dtype(np.int16 if wide else np.uint8)
        self.label: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        if options.get("with_labels", False) and facts["label"].any():
            small = np.isin(facts["label"], narrow).all()
            self.label = (batch_size, 1, *self.size), np.dtype(np.int16 if small else np.int32)
        self.scored = ((batch_size, 1, *self.size), np.dtype(np.bool_)) if store.has_excluded else None
        if self.sampling.labeled > 0 and self.label is None:
            message = (
                f"data.sampling.labeled is {self.sampling.labeled}, but no masks are read here (pretraining, values "
                "of whole scans, or scans without masks): set it to 0"
            )
            raise UserError(message)
        self.places = Places(store)

    def packet(
        self, batch: int, images: NDArray[Any], labels: NDArray[Any] | None, scored: NDArray[np.bool_] | None = None
    ) -> Packet:
        """Reads a micro-batch into ``images``, ``labels`` and ``scored`` (of the reader's shapes and types)."""
        world, rank = self.options.get("world_size", 1), self.options.get("rank", 0)
        first = (batch * world + rank) * self.batch_size
        samples = tuple(range(first, first + self.batch_size))
        numbers = [self.order(sample // self.sampling.regions_per_scan) for sample in samples]
        places = [
            self.fill(sample, number, images[row], None if labels is None else labels[row])
            for row, (sample, number) in enumerate(zip(samples, numbers, strict=True))
        ]
        if scored is not None:
            for row, number in enumerate(numbers):
                scored[row] = self.store.scored(number, images[row])
        start, extent, spacing, world_affine, along, shown = (np.stack(column) for column in zip(*places, strict=True))
        arrays = {
            "start": start,
            "source_shape": extent,
            "spacing_mm": spacing.astype(np.float32),
            "world_affine": world_affine.astype(np.float32),
            "positions": ((start + np.array(self.size) / 2) / extent).clip(0, 1).astype(np.float32),
            "along": along.astype(np.float32),
            "intensity": np.stack([self.store.intensity(number) for number in numbers]),
        }
        if self.sampling.labeled > 0:
            arrays["shown"] = shown
        origin = (
            tuple(self.store.scan_id(number) for number in numbers),
            self.store.subjects(numbers),
            samples,
        )
        return Packet(arrays, origin, tuple(self.store.values(number) for number in numbers) if self.valued else ())

    def fill(
        self, sample: int, number: int, image: NDArray[Any], labels: NDArray[Any] | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], float, NDArray[np.float32]]:
        """Reads the crop of a global sample into ``image`` [C, *size] and ``labels`` [1, *size].

        Returns:
            First voxel, shape of the scan, spacing in mm (per axis of the crop), affine to the world, and where along
            the stratified axis the views of the crop are to lie, or else where a slice lies in its volume, as a share
            of the scan (0.5 where there is neither), and the labeled voxel that views are to show (NaN: any).
        """
        shape, world = self.store.shape(number), self.store.affine(number)
        sliced = len(shape) > len(self.size)
        axes = slice_axes(world, self.sampling.slice_axis) if sliced else tuple(range(len(shape)))
        size = [1] * len(shape)
        for axis, n in zip(axes, self.size, strict=True):
            size[axis] = n
        cells = self.store.cells(number) if self.sampling.foreground > 0 else None
        around = None
        if self.sampling.labeled > 0:
            around = self.places.draw(self.seed, sample, number, self.sampling.labeled)
        center = around
        if self.store.tier == "slides":  # crops lie over tissue
            center = tile_center(self.seed, sample, self.store.tile_table(number), self.store.preprocess.tiles.size)
        start = region_at(self.seed, sample, shape, tuple(size), self.sampling, cells=cells, around=center)
        for read, out in ((self.store.read, image), (self.store.read_label, labels)):
            if out is not None:
                _read_along(read, number, (start, tuple(size), axes), out)
        spacing = np.sqrt(np.square(world[:-1, :-1]).sum(0))
        crop_axes = np.array(axes)
        along, across = place_along(self.seed, sample, shape, tuple(size), self.sampling), self.sampling.slice_axis
        if along is None:
            along = (start[across] + 0.5) / shape[across] if sliced else 0.5
        return (
            np.array(start)[crop_axes], np.array(shape)[crop_axes], spacing[crop_axes],
            slice_world(world, (axes[0], axes[1]), start) if sliced else world, along,
            np.array(around or [np.nan] * len(shape), np.float32)[crop_axes],
        )  # fmt: skip

    def _order(self, numbers: NDArray[np.int64]) -> Order | RepeatingOrder | BalancedOrder:
        sampling, groups = self.sampling, self.options.get("groups")
        if sampling.balance != "none":
            if groups is None or sampling.distinct_subjects:
                why = "the scans have no classes here" if groups is None else "data.sampling.distinct_subjects is true"
                hint = "Set it to none"
                raise UserError(why, key="data.sampling.balance", got=sampling.balance, hint=hint)
            group_of = dict(zip(self.options.get("scans") or (), groups, strict=True))
            scan_groups = np.array([group_of[number] for number in numbers.tolist()])
            return BalancedOrder(self.seed, numbers, scan_groups, root=sampling.balance == "root")
        if not sampling.distinct_subjects:
            return Order(self.seed, numbers)
        together = self.batch_size * self.options.get("world_size", 1)
        if together % sampling.regions_per_scan:
            message = f"a global batch of {together} is not a multiple of {sampling.regions_per_scan} regions of a scan"
            hint = "Make the batch a multiple of that, or set data.sampling.distinct_subjects to false"
            raise UserError(message, key="data.sampling.regions_per_scan", hint=hint)
        subjects = self.store.subject_numbers(numbers)
        return order_of_subjects(
            self.seed,
            numbers,
            subjects=subjects,
            per_batch=together // sampling.regions_per_scan,
            where_possible=sampling.distinct_subjects == "where_possible",
        )


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
