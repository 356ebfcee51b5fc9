"""Pseudo-labels in training: which subjects their teacher was trained on, and how often scans with them are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.base import kind_of
from medssl.data.store.store import Store
from medssl.io.documents import read_json
from medssl.ops.draws import keyed_generator
from medssl.types import UserError
from medssl.types.provenance import Provenance, TrainingSubjects, facts_of_json

if TYPE_CHECKING:
    from medssl.types import LabelSchema

FACTS = "pseudolabels.json"
TEACHER = "the teacher of the pseudo-labels"  # in messages
IGNORED = -1  # value of labels where the class is not known


@dataclass(frozen=True)
class PseudoLabels:
    """Labels that a network predicted, to train on together with manual labels.

    The self-training that Chaitanya et al. (Contrastive learning of global and local features for medical image
    segmentation with limited annotations, NeurIPS 2020) add to contrastive pretraining; the idea is Lee's
    (Pseudo-label, ICML workshops 2013). Repeat it by labeling again with the network that learned from both.

    Attributes:
        labels: Folder that holds pseudo-labels and ``pseudolabels.json``; None uses no pseudo-labels.
        share: Share of samples from scans with manual labels, above 0 to below 1. Scans are repeated to reach it.
    """

    labels: Path | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            message = "must be above 0 and below 1"
            raise UserError(message, key="pseudo.share", got=self.share)


def teacher_subjects(pseudo: PseudoLabels) -> TrainingSubjects:
    """Subjects that the teacher of pseudo-labels was trained on; not known of a folder that does not list them.

    Raises:
        UserError: No readable facts.
    """
    if pseudo.labels is None:
        return TrainingSubjects()
    facts = facts_of(pseudo.labels)
    pretrained = facts_of_json(facts.get("pretrained"))
    provenance = Provenance(tuple(pretrained["known"]), pretrained["complete"])
    return TrainingSubjects(tuple(facts.get("labelled", ())), provenance)


def label_type(schema: LabelSchema) -> np.dtype[Any]:
    """Integer type that holds all classes and ``IGNORED``."""
    values = [value for value, _ in schema.classes]
    return np.result_type(np.int16, np.min_scalar_type(max(values)), np.min_scalar_type(min(values)))


def label_file(folder: Path, store: Store, number: int) -> Path:
    """File of a scan's label, named by the digest of the scan and its rules."""
    return folder / f"{store.key(number)}.b2nd"


def with_pseudo_labels(
    store: Store, learned: tuple[int, ...], split: str, pseudo: PseudoLabels, schema: LabelSchema, seed: int
) -> tuple[Store, tuple[int, ...]]:
    """The store with a teacher's labels, and the scans to draw from so that manual labels have their share.

    Args:
        store: The store that the labels were made for.
        learned: Scans with manual labels to train on; they keep these, as do all scans of their subjects.
        split: Split that the others are taken from.
        pseudo: Where the labels are.
        schema: Classes of the target.
        seed: As of ``in_share``.

    Returns:
        A store in which the other scans carry the teacher's labels, and the numbers of all scans to draw from, as often
        as the share of ``learned`` requires. Without pseudo-labels the store itself, and none.

    Raises:
        UserError: No labels, or labels of other classes or another store.
    """
    folder = pseudo.labels
    if folder is None:
        return store, ()
    facts = facts_of(folder)
    if not kind_of(schema).per_voxel or facts["classes"] != [list(pair) for pair in schema.classes]:
        message = f"the pseudo-labels have the classes {facts['classes']}, the target {schema.name!r} has others"
        raise UserError(message, key="pseudo.labels")
    if facts["store"] != store.digest:
        message = "the pseudo-labels were made for another store, or this store has changed"
        raise UserError(message, key="pseudo.labels", hint="Make them again")
    scans = store.scans(split, axes=facts["axes"])
    same_subject = np.isin(store.subject_numbers(scans), store.subject_numbers(learned))
    others = scans[~same_subject].tolist()
    files = {number: label_file(folder, store, number) for number in others}
    if not files:
        message = f"all {len(scans)} scans of split {split!r} are of subjects with manual labels in training"
        hint = "Leave it out, or train on fewer labeled subjects"
        raise UserError(message, key="pseudo.labels", hint=hint)
    missing = sum(not file.exists() for file in files.values())
    if missing:
        message = f"{missing} of the {len(files)} other scans of split {split!r} have no pseudo-label"
        raise UserError(message, key="pseudo.labels", hint="Label all scans of this split first")
    return store.with_labels(files, label_type(schema)), in_share(learned, tuple(files), pseudo.share, seed)


def in_share(learned: tuple[int, ...], others: tuple[int, ...], share: float, seed: int) -> tuple[int, ...]:
    """Every scan at least once, scans of the smaller side more often: one pass of the training.

    Args:
        learned: Scans that are to have the share.
        others: The other scans.
        share: Share of ``learned`` in what is returned, met to within half a scan.
        seed: Draws which scans come once more than others of their side.
    """
    wanted = round(share / (1 - share) * len(others))
    if wanted >= len(learned):
        return repeated(learned, wanted, seed) + others
    return learned + repeated(others, max(len(others), round((1 - share) / share * len(learned))), seed)


def repeated(scans: tuple[int, ...], wanted: int, seed: int) -> tuple[int, ...]:
    """``wanted`` draws of scans, none more than once more often than another."""
    whole, left = divmod(wanted, len(scans))
    once_more = keyed_generator(seed, 0, "pseudo").permutation(len(scans))[:left]
    return scans * whole + tuple(scans[place] for place in sorted(once_more.tolist()))


def facts_of(folder: Path) -> dict[str, Any]:
    """What made the labels of a folder.

    Raises:
        UserError: Not readable.
    """
    try:
        facts: dict[str, Any] = read_json(folder / FACTS)
    except (OSError, ValueError) as error:
        message = f"{folder} has no readable {FACTS}"
        raise UserError(message, key="pseudo.labels", hint="Label the scans of a store first") from error
    return facts


def in_configuration(pseudo: PseudoLabels) -> dict[str, Any] | None:
    """Description of pseudo-labels in the configuration of a run: their teacher and share, no folder."""
    if pseudo.labels is None:
        return None
    facts = facts_of(pseudo.labels)
    return {"teacher": facts["teacher"], "confidence": facts["confidence"], "share": pseudo.share}
