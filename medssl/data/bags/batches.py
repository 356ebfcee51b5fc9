"""Batches of bags without end: which bag, and which of its tiles, is a function of the seed and the sample number."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medssl.data.loading.order import BalancedOrder, Order, order_of_subjects
from medssl.ops.draws import keyed_generator
from medssl.types import BagBatch, Origin, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medssl.data.bags.files import Bag
    from medssl.data.bags.store import BagStore
    from medssl.types import Sampling


@dataclass(frozen=True)
class BagSampling:
    """How batches of bags are drawn.

    Attributes:
        bags: Numbers of the bags that take part.
        groups: Class of each of them, where classes are balanced; None elsewhere.
        batch_size: Bags of a micro-batch.
        seed: Seed of the run.
        tiles: Most tiles of a bag in a training sample; a larger bag gives other tiles each time.
        sampling: Balance and distinct subjects.
    """

    bags: tuple[int, ...]
    groups: tuple[int, ...] | None
    batch_size: int
    seed: int
    tiles: int
    sampling: Sampling


def bag_batches(
    store: BagStore, how: BagSampling, first: int, rank: int = 0, world_size: int = 1
) -> Iterator[BagBatch]:
    """Batches of one process from number ``first`` on, without end."""
    order = order_of(store, how, world_size)
    for number in itertools.count(first):
        start = (number * world_size + rank) * how.batch_size
        samples = range(start, start + how.batch_size)
        yield training_batch(store, [(sample, order(sample)) for sample in samples], how)


def order_of(store: BagStore, how: BagSampling, world_size: int) -> Order | BalancedOrder:
    """Which bag each sample is.

    Raises:
        UserError: Too few subjects for batches of different ones.
    """
    numbers = np.array(how.bags, np.int64)
    if how.sampling.balance != "none" and how.groups is not None:
        return BalancedOrder(how.seed, numbers, np.array(how.groups), root=how.sampling.balance == "root")
    if not how.sampling.distinct_subjects:
        return Order(how.seed, numbers)
    return order_of_subjects(  # type: ignore[return-value]  # a callable, too
        how.seed,
        numbers,
        subjects=store.subject_numbers(numbers),
        per_batch=how.batch_size * world_size,
        where_possible=how.sampling.distinct_subjects == "where_possible",
    )


def training_batch(store: BagStore, drawn: Sequence[tuple[int, int]], how: BagSampling) -> BagBatch:
    """Bags for pairs of a sample number and the number of a bag; large bags are drawn from."""
    parts = [drawn_tiles(store.bag(number), how.tiles, how.seed, sample) for sample, number in drawn]
    samples, numbers = zip(*drawn, strict=True)
    return padded_batch(store, parts, numbers, samples)


def whole_batch(store: BagStore, number: int) -> BagBatch:
    """One bag with all of its tiles."""
    bag = store.bag(number)
    return padded_batch(store, [(bag.features, bag.coords)], [number], [number])


def drawn_tiles(bag: Bag, tiles: int, seed: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and coordinates of at most so many tiles, drawn by the sample number."""
    if len(bag) <= tiles:
        return bag.features, bag.coords
    chosen = np.sort(keyed_generator(seed, sample, "tiles").choice(len(bag), tiles, replace=False))
    return bag.features[chosen], bag.coords[chosen]


def padded_batch(
    store: BagStore, parts: Sequence[tuple[np.ndarray, np.ndarray]], numbers: Sequence[int], samples: Sequence[int]
) -> BagBatch:
    """Bags of different sizes as one batch."""
    count, longest = len(parts), max(len(features) for features, _ in parts)
    kind = np.float16 if all(features.dtype == np.float16 for features, _ in parts) else np.float32
    features = np.zeros((count, longest, store.facts.features), kind)
    coords, mask = np.zeros((count, longest, 2), np.int64), np.zeros((count, longest), bool)
    for row, (values, places) in enumerate(parts):
        features[row, : len(values)], coords[row, : len(places)], mask[row, : len(values)] = values, places, True
    ids, subjects = tuple(map(store.scan_id, numbers)), store.subjects(numbers)
    nowhere = torch.zeros(count, 1)
    origin = Origin(ids, subjects, tuple(map(int, samples)), nowhere, nowhere[:, 0])
    labels = tuple(store.values(number) for number in numbers)
    tensors = [torch.from_numpy(array) for array in (features, mask, coords)]
    return BagBatch(tensors[0], tensors[1], tensors[2], origin, labels)


def refuse_no_tiles(tiles: int) -> None:
    """Refuses training samples without a tile.

    Raises:
        UserError: Says the number.
    """
    if tiles < 1:
        message = "a training sample needs a tile"
        raise UserError(message, key="data.view.size", got=tiles, expected="1 or more, such as 2048")
