"""A folder of bags, open for reading: bags are read when they are needed, and checked once."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.bags.description import FOLDER, is_bags, read_facts, read_records
from medssl.data.bags.files import Bag, read_bag
from medssl.data.formats.base import FormatError
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from medssl.types import LabelSchema

HELD_BYTES = 512 << 20  # bags that stay in memory beside the one that was read last
AXES = 1  # a bag is a list of tiles
PLAIN = re.compile(r"[\w.+-]+")


class BagStore:
    """The bags of a folder by number: their place in the order of their identifiers.

    It has the methods of ``LabeledScans``, so that splits, labels and few labeled subjects are those of scans.

    Attributes:
        path: Its folder.
        facts: What all bags have in common.
        records: One for each bag.
        schema: None: bags have no masks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = read_facts(path)
        self.records = read_records(path)
        self.schema: LabelSchema | None = None
        self._held: OrderedDict[int, Bag] = OrderedDict()
        self._checked: set[int] = set()
        names = sorted({record.subject_id for record in self.records})
        self._subject_numbers = {name: number for number, name in enumerate(names)}
        self._refuse_strange()

    @classmethod
    def open(cls, path: Path) -> BagStore:
        """Opens a folder of bags.

        Raises:
            UserError: It is none, or holds no bag, or a subject is in two splits.
        """
        path = Path(path)
        if not is_bags(path):
            message = "no folder of bags: it has no bags.json"
            raise UserError(message, key="store", got=str(path))
        store = cls(path)
        if not len(store):
            message = f"{path} holds no bag: making them was stopped before the first was finished"
            raise UserError(message, key="store", hint="Run the command that makes them again")
        store.refuse_split_subjects()
        return store

    def __len__(self) -> int:
        return len(self.records)

    # --- of one bag

    def bag(self, number: int) -> Bag:
        """The features and coordinates of a bag; those that were read lately are in memory.

        Raises:
            FormatError: The file is damaged, or is not the one that was written.
        """
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        record = self.records[number]
        bag = read_bag(self.path / FOLDER / record.file, f"bag {record.scan_id}", self.facts.features)
        if number not in self._checked and content_of(bag) != record.content:
            message = f"bag {record.scan_id}: its bytes are not those that were written: delete {record.file} and make "
            message += "the bags again"
            raise FormatError(message)
        self._checked.add(number)
        self._held[number] = bag
        size = sum(held.features.nbytes for held in self._held.values())
        while size > HELD_BYTES and len(self._held) > 1:
            size -= self._held.popitem(last=False)[1].features.nbytes
        return bag

    def scan_id(self, number: int) -> str:
        """Identifier of a slide."""
        return self.records[number].scan_id

    def tiles(self, number: int) -> int:
        """Number of tiles of a bag."""
        return self.records[number].tiles

    def values(self, number: int) -> dict[str, str]:
        """Labels of a whole slide by name."""
        return dict(self.records[number].values)

    def has_mask(self, number: int) -> bool:
        """False: bags have labels of whole slides only."""
        del number
        return False

    def subject(self, number: int) -> str:
        """Keyed digest of the subject of a slide."""
        return self.records[number].subject_id

    # --- of some bags

    def scans(self, split: str | None = None, *, axes: int = AXES) -> NDArray[np.int64]:
        """Numbers of the bags of a split (None: of all); ``axes`` is 1.

        Raises:
            UserError: There are none, or crops of more axes are asked for.
        """
        if axes != AXES:
            message = f"has {axes} axes, and a bag has one: the number of tiles in a training sample"
            raise UserError(message, key="data.view.size", expected="one number, such as 2048")
        numbers = [n for n, record in enumerate(self.records) if split is None or record.split == split]
        if not numbers:
            splits = ", ".join(f"{count} {name!r}" for name, count in self.splits.items()) or "none"
            message = f"no bag in split {split!r} of {self.path}; bags by split: {splits}"
            raise UserError(message)
        return np.array(numbers, np.int64)

    def subjects(self, scans: Iterable[int]) -> tuple[str, ...]:
        """Keyed digest of the subject of each slide, in the order of the slides."""
        return tuple(map(self.subject, scans))

    def subject_numbers(self, scans: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """A number for the subject of each slide, the same for slides of one subject."""
        return np.array([self._subject_numbers[self.subject(int(number))] for number in scans], np.int32)

    def distinct_subjects(self, scans: Iterable[int]) -> tuple[str, ...]:
        """Keyed digests of the subjects of some slides: each once, sorted."""
        return tuple(sorted(set(self.subjects(scans))))

    def subjects_of_split(self, split: str | None) -> tuple[str, ...]:
        """Keyed digests of the subjects of a split (None: of all slides): each once, sorted."""
        return tuple(sorted({r.subject_id for r in self.records if split is None or r.split == split}))

    # --- of all bags

    @property
    def splits(self) -> dict[str, int]:
        """Number of bags of each split."""
        names = sorted({record.split for record in self.records})
        return {name: sum(record.split == name for record in self.records) for name in names}

    @property
    def has_masks(self) -> bool:
        """False: bags have labels of whole slides only."""
        return False

    @property
    def scans_with_values(self) -> tuple[int, ...]:
        """Numbers of the bags that have labels."""
        return tuple(number for number, record in enumerate(self.records) if record.values)

    @property
    def digest(self) -> str:
        """Digest of the encoder, of the bags with their contents, and of their splits."""
        state = hashlib.blake2b(self.facts.encoder.digest.encode(), digest_size=8)
        for record in self.records:
            state.update(f"{record.scan_id} {record.content} {record.split};".encode())
        return state.hexdigest()

    def refuse_split_subjects(self) -> None:
        """Refuses slides of one subject in two splits.

        Raises:
            UserError: Counts the subjects and names the splits of the first.
        """
        splits: dict[str, set[str]] = {}
        for record in self.records:
            splits.setdefault(record.subject_id, set()).add(record.split)
        shared = [sorted(names) for names in splits.values() if len(names) > 1]
        if shared:
            message = (
                f"{len(shared)} of {len(splits)} subjects have slides in two splits (first: {' and '.join(shared[0])})"
            )
            hint = "Give all slides of a subject one split, and make the bags again"
            raise UserError(message, key="store", hint=hint)

    def _refuse_strange(self) -> None:
        """Refuses file names that medssl does not write: they could lie outside the folder."""
        for record in self.records:
            if not PLAIN.fullmatch(record.file) or record.file.startswith("."):
                message = f"the table of {self.path} names a file {record.file!r}, which medssl does not write"
                raise UserError(message, key="store", hint="Make the bags again")


def content_of(bag: Bag) -> str:
    """Checksum of the features and coordinates of a bag."""
    features, coords = (np.ascontiguousarray(part).data for part in (bag.features, bag.coords))
    return f"{zlib.crc32(coords, zlib.crc32(features)):08x}{zlib.adler32(features):08x}"
