"""Which scan is drawn when: an endless order that is a pure function of (seed, number of the draw).

No state, so a run resumes anywhere at once, and the order does not know how many processes or workers there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medssl.ops.draws import keyed_generator
from medssl.types import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_ROUNDS = 6


def scan_at(seed: int, draw: int, population: int) -> int:
    """Returns the scan of a draw: every pass over the population visits each scan once, in an order of its own.

    A permutation without a table: a Feistel network on the next even power of two, walked until it lands inside the
    population (Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002). Constant memory; at most four
    steps on average.
    """
    round_number, place = divmod(draw, population)
    half = max(1, ((population - 1).bit_length() + 1) // 2)
    key = _mixed(_mixed(seed & _MASK) + round_number)
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + (number << 48) + right) >> (64 - half))
        place = (left << half) | right
        if place < population:
            return place


class Order:
    """The scans of every draw of a run.

    Args:
        seed: Seed of the run.
        scans: Numbers of the scans in the store that take part.
        subjects: Subject of each of them; with it, no subject comes twice in a global batch.
        per_batch: Scans in one global batch (over all processes).

    Raises:
        UserError: No scans, or fewer subjects than one batch needs.
    """

    def __init__(
        self, seed: int, scans: NDArray[np.int64], *, subjects: NDArray[np.int32] | None = None, per_batch: int = 1
    ) -> None:
        if not len(scans):
            message = "no scans to draw from: check the split and the index"
            raise UserError(message)
        self.seed, self.scans, self.per_batch = seed, scans, per_batch
        self.subjects = None if subjects is None else np.unique(subjects, return_inverse=True)[1]
        self._pass: tuple[int, NDArray[np.int64]] = (-1, scans)
        if self.subjects is not None:
            self.batches = _batches(np.bincount(self.subjects), per_batch)

    def __call__(self, draw: int) -> int:
        """Returns the scan's number in the store."""
        if self.subjects is None:
            return int(self.scans[scan_at(self.seed, draw, len(self.scans))])
        round_number, place = divmod(draw, self.batches * self.per_batch)
        if self._pass[0] != round_number:
            self._pass = (round_number, self._dealt(round_number))
        return int(self._pass[1][place])

    def _dealt(self, round_number: int) -> NDArray[np.int64]:
        """One pass, batch after batch, no batch with two scans of one subject.

        Scans are laid out subject by subject (both in a random order) and dealt out like cards, one to each batch: a
        subject with no more scans than there are batches never meets itself. What does not fill the last round of
        cards, and what a subject has beyond one scan a batch, waits for a later pass.
        """
        assert self.subjects is not None
        generator = keyed_generator(self.seed, round_number, "order")
        shuffled = generator.permutation(len(self.scans))
        rank = generator.permutation(int(self.subjects.max()) + 1)
        shuffled = shuffled[np.argsort(rank[self.subjects[shuffled]], kind="stable")]
        who = self.subjects[shuffled]
        first = np.flatnonzero(np.diff(who, prepend=-1))
        within = np.arange(len(who)) - np.repeat(first, np.diff(np.append(first, len(who))))
        shuffled = shuffled[within < self.batches][: self.batches * self.per_batch]
        dealt = self.scans[shuffled].reshape(self.per_batch, self.batches).T
        return np.ascontiguousarray(dealt[generator.permutation(self.batches)]).ravel()


class RepeatingOrder:
    """The scans of every draw of a run whose batches have more scans than there are subjects.

    A batch is as many whole rounds of all subjects as fit, then a round of some of them. So the scans that two subjects
    have in a batch differ by at most one, and only as many subjects repeat as must. Whole rounds, and rounds of some,
    each go through the scans in an ``Order`` of their own.

    Args:
        seed: Seed of the run.
        scans: Numbers of the scans in the store that take part.
        subjects: Subject of each of them.
        per_batch: Scans in one global batch (over all processes).
    """

    def __init__(self, seed: int, scans: NDArray[np.int64], *, subjects: NDArray[np.int32], per_batch: int) -> None:
        self.scans = scans
        count = len(np.unique(subjects))
        rounds, self.left = divmod(per_batch, count)
        self.per_batch, self.in_rounds = per_batch, rounds * count
        self.whole = Order(seed, scans, subjects=subjects, per_batch=count)
        other = _mixed(seed & _MASK)
        self.rest = Order(other, scans, subjects=subjects, per_batch=self.left) if self.left else None

    def __call__(self, draw: int) -> int:
        """Returns the scan's number in the store."""
        batch, place = divmod(draw, self.per_batch)
        if self.rest is None or place < self.in_rounds:
            return self.whole(batch * self.in_rounds + place)
        return self.rest(batch * self.left + place - self.in_rounds)


def order_of_subjects(
    seed: int,
    scans: NDArray[np.int64],
    *,
    subjects: NDArray[np.int32],
    per_batch: int,
    where_possible: bool = False,
) -> Order | RepeatingOrder:
    """Returns an order with no subject twice in a batch; ``where_possible`` repeats them where there are too few.

    Raises:
        UserError: No scans, or too few subjects and not ``where_possible``.
    """
    count = len(np.unique(subjects))
    if where_possible and 0 < count < per_batch:
        return RepeatingOrder(seed, scans, subjects=subjects, per_batch=per_batch)
    return Order(seed, scans, subjects=subjects, per_batch=per_batch)


def repeated(count: int, per_batch: int) -> str:
    """Says how many subjects repeat in batches of more scans than subjects; "" where none does.

    Args:
        count: Subjects to draw from.
        per_batch: Scans in one global batch.
    """
    if not 0 < count < per_batch:
        return ""
    least, more = divmod(per_batch, count)
    times = f"{least} scans" if not more else f"{least} or {least + 1} scans"
    who = f"all {count} subjects" if least > 1 or not more else f"{more} of {count} subjects"
    return (
        f"a batch takes {per_batch} scans, and there are {count} subjects: {who} repeat in every batch ({times} of "
        "each); more subjects or a smaller training.batch_size avoid that"
    )


class BalancedOrder:
    """The scans of every draw of a run in which classes come more evenly than there are scans of them.

    A pass has so many slots of each class ("equal": one; "root": in proportion to the square root of its scans, as many
    in all as there are scans) and takes them in an order of its own; the scans of a class fill its slots in passes of
    their own, so that each of them comes equally often. "equal" and "root" are the class-balanced and the square-root
    sampling of Kang et al., Decoupling representation and classifier for long-tailed recognition, ICLR 2020.

    Args:
        seed: Seed of the run.
        scans: Numbers of the scans in the store that take part.
        groups: Class of each of them.
        root: "root" rather than "equal".
    """

    def __init__(self, seed: int, scans: NDArray[np.int64], groups: NDArray[np.int64], *, root: bool) -> None:
        self.seed = seed
        self.scans = scans
        self.members = [scans[groups == group] for group in np.unique(groups)]
        shares = np.sqrt([len(scans_of_group) for scans_of_group in self.members])
        slots = np.maximum(1, np.rint(len(scans) * shares / shares.sum())) if root else np.ones(len(shares))
        self.slots = slots.astype(np.int64)
        self.ends = np.cumsum(self.slots)

    def __call__(self, draw: int) -> int:
        """Returns the scan's number in the store."""
        round_number = draw // int(self.ends[-1])
        slot = scan_at(self.seed, draw, int(self.ends[-1]))
        group = int(np.searchsorted(self.ends, slot, "right"))
        scans_of_group, slots = self.members[group], int(self.slots[group])
        turn = round_number * slots + slot - int(self.ends[group]) + slots  # slots of the class before this one
        return int(scans_of_group[scan_at(_mixed((self.seed + group + 1) & _MASK), turn, len(scans_of_group))])


def _batches(counts: NDArray[np.int64], per_batch: int) -> int:
    """Most batches of one pass such that each can have ``per_batch`` different subjects."""
    if len(counts) < per_batch:
        message = (
            f"a batch takes {per_batch} scans of different subjects, but there are only {len(counts)} subjects: "
            f"make the batch smaller ({len(counts)} scans at most), or set data.sampling.distinct_subjects to "
            "where_possible or false"
        )
        raise UserError(message)
    low, high = 1, int(counts.sum()) // per_batch
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) >= middle * per_batch:
            low = middle
        else:
            high = middle - 1
    return low


def _mixed(number: int) -> int:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): a bijection of 64 bits in which every bit depends on all."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)
