"""What the scans of a store are, without their voxels: splits, subjects, shapes, values of whole scans, digests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.store import records
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from medssl.data.store.records import Records


class Contents:
    """The scans of a store by number: their place in the order of their identifiers.

    Attributes:
        path: Folder of the store.
        records: What is known of all scans, as arrays. Other rooms ask the methods of the store instead.
    """

    path: Path
    records: Records

    def __len__(self) -> int:
        return len(self.records)

    # --- of one scan

    def scan_id(self, number: int) -> str:
        """Identifier of a scan."""
        return str(self.records.scan_id[number].decode())

    def number(self, scan_id: str) -> int:
        """Place of a scan in the records.

        Raises:
            UserError: It is not in the store.
        """
        wanted = np.bytes_(scan_id.encode())
        place = int(np.searchsorted(self.records.scan_id, wanted))
        if place == len(self) or self.records.scan_id[place] != wanted:
            message = f"scan {scan_id} is not in the store {self.path}"
            raise UserError(message)
        return place

    def key(self, number: int) -> str:
        """Digest of everything that decides a scan's stored bytes: what its file is named after."""
        return str(self.records.key[number].decode())

    def content(self, number: int) -> int:
        """Digest of the stored voxels and label of a scan, 64 bits, whatever file they came from, and when."""
        return int(self.records.facts["content"][number])

    def shape(self, number: int) -> tuple[int, ...]:
        """Voxels of a stored scan per spatial axis, 2 or 3 axes."""
        return self.records.shape(number)

    def affine(self, number: int) -> NDArray[np.float64]:
        """Affine [n+1, n+1] from stored voxels to the world in mm."""
        return self.records.world(number)

    def intensity(self, number: int) -> NDArray[np.float32]:
        """[C, 6] numbers that turn a scan's codes into values, as in ``Crops``."""
        return self.records.intensity(number)

    def values(self, number: int) -> dict[str, str]:
        """Labels of a whole scan by name; {} where it has none."""
        return self.records.values(number) if self.records.facts[number]["text"] else {}

    def dtype(self, number: int) -> np.dtype[Any]:
        """Integer type of a stored scan: uint8 or int16."""
        return np.dtype(np.int16 if self.records.facts[number]["wide"] else np.uint8)

    def label_dtype(self, number: int) -> np.dtype[Any] | None:
        """Integer type of a stored mask, or None where the scan has none."""
        name = list(records.LABELS)[int(self.records.facts[number]["label"])]
        return np.dtype(name) if name else None

    def has_mask(self, number: int) -> bool:
        """Whether a scan has a mask."""
        return bool(self.records.facts[number]["label"])

    def cells(self, number: int) -> NDArray[np.bool_]:
        """Foreground of a scan, one bool a cell in C order (padded to full bytes)."""
        return self.records.cells(number)

    def excluded(self, number: int) -> bool:
        """Whether some voxels of a scan must not enter a loss."""
        return bool(self.records.facts[number]["excluded"])

    # --- of some scans

    def scans(self, split: str | None = None, *, axes: int) -> NDArray[np.int64]:
        """Numbers of the scans of a split (None: of all) that crops of ``axes`` spatial axes can be taken from.

        Raises:
            UserError: There are none, or their numbers of channels differ.
        """
        facts = self.records.facts
        numbers = np.flatnonzero((facts["ndim"] >= axes) & self._in_split(split))
        if not len(numbers):
            splits = ", ".join(f"{count} {name!r}" for name, count in self.splits.items()) or "none"
            message = f"no scan with {axes} axes in split {split!r} of {self.path}; scans by split: {splits}"
            raise UserError(message)
        channels = np.unique(facts["channels"][numbers])
        if len(channels) > 1:
            message = (
                f"scans of {self.path} have {' and '.join(map(str, channels))} channels and cannot share a batch: "
                "cache them into stores of their own (where)"
            )
            raise UserError(message)
        return numbers

    def domains(self, scans: Iterable[int]) -> set[str]:
        """Value domains of scans, such as "hu" or "rgb"."""
        codes = np.unique(self.records.facts["domain"][np.fromiter(scans, np.int64)])
        return {self.records.tables["domain"][code] for code in codes}

    def split(self, number: int) -> str:
        """Split of the subject of a scan; "" where it has none."""
        return str(self.records.tables["split"][self.records.facts[number]["split"]])

    def subject(self, number: int) -> str:
        """Keyed digest of the subject of a scan."""
        return str(self.records.tables["subject"][self.records.subject[number]])

    def subjects(self, scans: Iterable[int]) -> tuple[str, ...]:
        """Keyed digest of the subject of each scan, in the order of the scans."""
        return tuple(map(self.subject, scans))

    def subject_numbers(self, scans: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """A number for the subject of each scan, the same for scans of one subject."""
        return self.records.subject[np.asarray(scans, np.int64)]

    def distinct_subjects(self, scans: Iterable[int]) -> tuple[str, ...]:
        """Keyed digests of the subjects of some scans: each once, sorted."""
        return tuple(sorted(set(self.subjects(scans))))

    def subjects_of_split(self, split: str | None) -> tuple[str, ...]:
        """Keyed digests of the subjects of a split (None: of all scans): each once, sorted."""
        return self.distinct_subjects(np.flatnonzero(self._in_split(split)).tolist())

    def _in_split(self, split: str | None) -> NDArray[np.bool_]:
        names, codes = self.records.tables["split"], self.records.facts["split"]
        if split is None:
            return np.ones(len(self), bool)
        in_split: NDArray[np.bool_] = codes == names.index(split) if split in names else np.zeros(len(self), bool)
        return in_split

    # --- of all scans

    @property
    def splits(self) -> dict[str, int]:
        """Number of scans of each split."""
        counts = np.bincount(self.records.facts["split"], minlength=1).tolist()
        return dict(zip(self.records.tables["split"], counts, strict=False))

    @property
    def channels(self) -> int:
        """Channels of the scans.

        Raises:
            UserError: The store holds no scan.
        """
        if not len(self):
            message = f"{self.path} holds no scan: cache the index again, which lists what it skips"
            raise UserError(message)
        return int(self.records.facts["channels"][0])

    @property
    def axes(self) -> frozenset[int]:
        """Numbers of spatial axes of the scans: 2, 3 or both."""
        return frozenset(map(int, np.unique(self.records.facts["ndim"])))

    @property
    def has_masks(self) -> bool:
        """Whether some scan has a mask."""
        return bool(self.records.facts["label"].any())

    @property
    def has_excluded(self) -> bool:
        """Whether some scan has voxels that must not enter a loss."""
        return bool(self.records.facts["excluded"].any())

    @property
    def scans_with_values(self) -> tuple[int, ...]:
        """Numbers of the scans that have labels of whole scans."""
        return tuple(np.flatnonzero(self.records.facts["text"]).tolist())

    @property
    def digest(self) -> str:
        """Digest of which scans the store holds, of their voxels and labels, and of their splits.

        Files that were copied or touched and then cached again, to the same voxels, leave it as it is.
        """
        records = self.records
        digest = hashlib.blake2b(digest_size=8)
        for part in (records.scan_id, records.facts["content"], records.affine, records.facts["split"]):
            digest.update(part.tobytes())
        digest.update(repr(records.tables["split"]).encode())
        return digest.hexdigest()

    def spacing(self, axes: int) -> tuple[float, ...] | None:
        """Median spacing of the volumes per stored axis in mm; None for 2D crops or without a volume.

        Tilted views of thick slices reach further into their neighbors.
        """
        volumes = self.records.affine[self.records.facts["ndim"] == 3]
        if axes != 3 or not len(volumes):
            return None
        columns = volumes.reshape(-1, 3, 4)[:, :, :3]
        return tuple(np.median(np.linalg.norm(columns, axis=1), axis=0).tolist())
