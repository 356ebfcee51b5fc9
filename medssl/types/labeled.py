"""What choosing labeled scans needs to know of a collection: a store of scans, or a folder of bags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medssl.types.scans import LabelSchema


class LabeledScans(Protocol):
    """Scans by number, with subjects, splits and labels.

    Attributes:
        path: Folder of the collection.
        schema: Classes of the masks; None where there are none.
    """

    path: Path
    schema: LabelSchema | None

    @property
    def scans_with_values(self) -> tuple[int, ...]:
        """Numbers of the scans that have labels of whole scans."""

    @property
    def has_masks(self) -> bool:
        """Whether some scan has a mask."""

    def has_mask(self, number: int) -> bool:
        """Whether a scan has a mask."""

    def scan_id(self, number: int) -> str:
        """Identifier of a scan."""

    def values(self, number: int) -> dict[str, str]:
        """Labels of a whole scan by name; {} where it has none."""

    def scans(self, split: str | None = None, *, axes: int) -> NDArray[np.int64]:
        """Numbers of the scans of a split (None: of all) with so many axes.

        Raises:
            UserError: There are none.
        """

    def subject(self, number: int) -> str:
        """Keyed digest of the subject of a scan."""

    def subjects(self, scans: Iterable[int]) -> tuple[str, ...]:
        """Keyed digest of the subject of each scan, in the order of the scans."""

    def subject_numbers(self, scans: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """A number for the subject of each scan, the same for scans of one subject."""

    def distinct_subjects(self, scans: Iterable[int]) -> tuple[str, ...]:
        """Keyed digests of the subjects of some scans: each once, sorted."""

    def subjects_of_split(self, split: str | None) -> tuple[str, ...]:
        """Keyed digests of the subjects of a split (None: of all scans): each once, sorted."""
