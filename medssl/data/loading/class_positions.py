"""Where the classes of a scan's label lie: some voxels of each, read when a crop around one is first asked for."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from medssl.ops.draws import keyed_generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medssl.data.store.store import Store

PER_CLASS = 512  # voxels of a class of a scan that crops are centered on
KEPT = 64 << 20  # bytes of them that one process keeps


class Places:
    """Labeled voxels that crops are centered on; those of scans unused for longest are forgotten and read again.

    A class is any above the background, which is the first of the store's schema (0 where it has none). Voxels without
    a label and of the value to ignore are never taken.

    Args:
        store: Whose labels are read, each scan's whole and once.
        byte_limit: Bytes of positions that stay in memory.
    """

    def __init__(self, store: Store, byte_limit: int = KEPT) -> None:
        self.store, self.byte_limit, self.bytes = store, byte_limit, 0
        self._positions: OrderedDict[int, tuple[NDArray[np.unsignedinteger], ...]] = OrderedDict()

    def draw(self, seed: int, sample: int, number: int, share: float) -> tuple[int, ...] | None:
        """Draws the voxel that the crop of a sample is to lie around: an even choice of class, then of its voxels.

        Args:
            seed: Seed of the run.
            sample: Global sample number.
            number: The scan's number in the store.
            share: Share of samples that have such a voxel, spread evenly over their numbers.

        Returns:
            The voxel per stored axis; None for the other samples, and where the scan has no such class.
        """
        if not has_turn(sample, share):
            return None
        generator = keyed_generator(seed, sample, "labelled")
        classes = self.of(number)
        if not classes:
            return None
        voxels = classes[int(generator.integers(len(classes)))]
        place = np.unravel_index(int(voxels[int(generator.integers(len(voxels)))]), self.store.shape(number))
        return tuple(int(at) for at in place)

    def of(self, number: int) -> tuple[NDArray[np.unsignedinteger], ...]:
        """Places in the flat label of a scan, at most ``PER_CLASS`` for each class that it has."""
        positions = self._positions.get(number)
        if positions is None:
            positions = self._positions[number] = self._look(number)
            self.bytes += sum(voxels.nbytes for voxels in positions)
        self._positions.move_to_end(number)
        while self.bytes > self.byte_limit and len(self._positions) > 1:
            self.bytes -= sum(voxels.nbytes for voxels in self._positions.popitem(last=False)[1])
        return positions

    def _look(self, number: int) -> tuple[NDArray[np.unsignedinteger], ...]:
        dtype, schema = self.store.label_dtype(number), self.store.schema
        if dtype is None:
            return ()
        shape = self.store.shape(number)
        label = self.store.read_label(number, (0,) * len(shape), shape, np.empty((1, *shape), dtype)).ravel()
        if schema is None:
            values = [value for value in np.unique(label).tolist() if value > 0]
        else:
            values = [value for value, _ in schema.classes[1:] if value != schema.ignore]
        counted: NDArray[np.bool_] | np.bool_ = np.True_
        if self.store.excluded(number):  # no loss would look at what such crops are to show
            counted = self.store.scored(number, self.store.read(number, (0,) * len(shape), shape)).ravel()
        generator = keyed_generator(0, number, "places")  # of no run: whoever reads finds the same
        positions = (_spread(np.flatnonzero((label == value) & counted), generator) for value in values)
        return tuple(voxels.astype(np.min_scalar_type(label.size)) for voxels in positions if len(voxels))


def _spread(places: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """``PER_CLASS`` of the places, one from each of as many equal runs of them; all where there are not more."""
    if len(places) <= PER_CLASS:
        return places
    ranks = (np.arange(PER_CLASS) + generator.random(PER_CLASS)) * (len(places) / PER_CLASS)
    return places[np.minimum(ranks.astype(np.int64), len(places) - 1)]


def has_turn(sample: int, share: float) -> bool:
    """Whether a sample is one of the ``share`` of all, spread evenly: with 0.5 one of every two in a batch.

    >>> [sample for sample in range(8) if has_turn(sample, 0.25)]
    [3, 7]
    """
    return int((sample + 1) * share) > int(sample * share)
