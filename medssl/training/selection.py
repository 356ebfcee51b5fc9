"""The training selection: which labeled subjects are learned from, and which validate."""

from __future__ import annotations

from dataclasses import dataclass

from medssl.data.labels.selection import few, labeled_scans
from medssl.data.split import overlap
from medssl.training.settings import Examples
from medssl.types import LabeledScans, LabelSchema, UserError


@dataclass(frozen=True)
class TrainingSelection:
    """Numbers in the store of the scans that are learned from by their own labels, and of those that judge.

    ``drawn``, where it is not empty, holds those that are learned from together with scans that a network labeled.
    """

    learned: tuple[int, ...]
    validated: tuple[int, ...]
    drawn: tuple[int, ...] = ()


def select_scans(
    store: LabeledScans, schema: LabelSchema, data: Examples, labels: float | None, seed: int
) -> TrainingSelection:
    """Picks the labeled subjects.

    Raises:
        UserError: A split has no labeled scan or too few subjects, only one class, or two splits share a subject.
    """
    axes, seed = len(data.view.size), seed if data.label_seed is None else data.label_seed
    pools = {split: labeled_scans(store, axes, split, schema) for split in (data.train, data.validation)}
    learned = few(store, pools[data.train], schema, subjects=labels, seed=seed)
    try:
        validated = few(store, pools[data.validation], schema, subjects=data.validation_labels, seed=seed)
    except UserError as error:
        where = f"split {data.validation!r}, which validates"
        key = "data.validation_labels" if error.key == "labels" else error.key
        raise error.changed(message=f"{where}: {error.message}", key=key) from error
    names = store.distinct_subjects(learned)
    for split, others in {
        data.validation: store.distinct_subjects(validated),
        "test": store.subjects_of_split("test"),
    }.items():
        shared = overlap(names, others) if split != data.train else ()
        if shared:
            message = (
                f"{len(shared)} of the {len(names)} subjects to learn from are in split {split!r} too: give each "
                "subject one split when indexing (label.split), and cache again"
            )
            raise UserError(message)
    return TrainingSelection(learned, validated)
