"""What a comparison checks and counts before anything is trained."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.selection import few, how_many, labeled_scans
from medssl.data.labels.trained_on import trained_on
from medssl.data.split import overlap
from medssl.data.store.store import Store
from medssl.metrics.run_scores import FEWEST, judged
from medssl.training.axes import open_store
from medssl.training.initial_weights import (
    Allowed,
    InitialWeights,
    read_initial_weights,
    refuse_seen,
    with_channels,
    with_drop_path,
)
from medssl.training.optim import FineTuning
from medssl.training.settings import Examples
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from medssl.types import Scan

log = logging.getLogger(__name__)


def initial_weights_of(
    name: str,
    folder: Path,
    store: Store,
    optimizer: FineTuning,
    allow: Sequence[Allowed],
    trust: Collection[str] = (),
    size: Sequence[int] | None = None,
) -> InitialWeights:
    """How the runs of an encoder begin; says what is not known or allowed of the subjects that it has seen.

    Raises:
        UserError: It was pretrained on other preprocessing, has seen test subjects, or takes other channels; names it.
    """
    try:
        initial = with_drop_path(
            read_initial_weights(folder, None, from_scratch=False, trust=trust), optimizer.drop_path
        )
        assert initial.card is not None  # a folder has one, or it was refused
        open_store(store.path, initial, allow, size=size, key="data.view.size")
        initial = with_channels(initial, store.channels, allow)
        note = refuse_seen(store, initial, allow)
    except UserError as error:
        message = f"{name}: {error}"
        raise UserError(message) from error
    if note:
        log.info(f"note: {name}: {note}")
    return initial


def first_notes(data: Examples, optimizer: FineTuning) -> tuple[str, ...]:
    """What the recipe means for the results."""
    notes = []
    if data.label_seed is not None:
        notes.append(
            f"data.label_seed is {data.label_seed}: all runs learn from the same labeled subjects, so that intervals "
            "and p-values do not know the luck of that draw."
        )
    if optimizer.head_first == 1:
        notes.append("The encoder is frozen (optimizer.head_first 1): the twin's encoder stays random.")
    elif optimizer.lora.rank:
        notes.append("optimizer.lora adapts a frozen encoder: that of the twin stays random beneath what is adapted.")
    return tuple(notes)


def refuse_unscored(scans: Sequence[Scan], schema: LabelSchema, split: str) -> None:
    """Refuses scans on which the measure of the comparison is not defined, before anything is trained.

    Raises:
        UserError: No class or finding is there in two subjects and absent in two.
    """
    values, subjects = [dict(scan.labels.values) for scan in scans], [scan.subject.subject_id for scan in scans]
    columns = kind_of(schema).contrasts(values, schema)
    if columns and not any(judged(positive, subjects, known) for positive, known in columns):
        message = (
            f"nothing can be compared on split {split!r}: an AUROC takes a class of {schema.name} that at least "
            f"{FEWEST} of its {len(set(subjects))} subjects have and {FEWEST} lack; choose another split"
        )
        raise UserError(message)


def known_subjects(store: Store, data: Examples, starts: Mapping[str, InitialWeights]) -> dict[str, Sequence[str]]:
    """Subjects whose scores would be too good, by how the networks know them."""
    found: dict[str, Sequence[str]] = {
        f"in split {data.train!r}, which is learned from": store.subjects_of_split(data.train),
        f"in split {data.validation!r}, which validates": store.subjects_of_split(data.validation),
    }
    for name, initial in starts.items():
        found[f"known to {name} from pretraining"] = initial.provenance.known
    return found


def refuse_known(scans: Sequence[Scan], split: str, known: Mapping[str, Sequence[str]]) -> None:
    """Refuses to score subjects that a network learns from, is validated with or has seen, before it is trained.

    Raises:
        UserError: Counts the subjects and says how they are known.
    """
    asked = {scan.subject.subject_id for scan in scans}
    found = [f"{len(shared)} are {how}" for how, subjects in known.items() if (shared := overlap(asked, subjects))]
    if found:
        message = (
            f"of the {len(asked)} subjects of split {split!r}, {'; '.join(found)}: scores on them say nothing about "
            "new patients; choose another split, or allow it (allow: seen)"
        )
        raise UserError(message)


def label_counts(
    store: Store, schema: LabelSchema, data: Examples, labels: Sequence[float | None], seeds: Sequence[int]
) -> list[int]:
    """Numbers of labeled subjects that the words of the user stand for, each once, the fewest first.

    Raises:
        UserError: Some run cannot have as many; says how many there are.
    """
    scans = labeled_scans(store, len(data.view.size), data.train, schema)
    there = len(store.distinct_subjects(scans))
    counts = sorted({how_many(number, there) for number in labels})
    for count in counts:
        for seed in seeds if data.label_seed is None else [data.label_seed]:
            few(store, scans, schema, subjects=count, seed=seed)
    if not all(isinstance(number, int) for number in labels):
        words = ", ".join("null" if number is None else str(number) for number in labels)
        log.info(f"labels {words} are {', '.join(map(str, counts))} of {there} labeled subjects")
    return counts


def missing_notes(
    store: Store, schema: LabelSchema, data: Examples, counts: Sequence[int], seeds: Sequence[int]
) -> list[str]:
    """What to tell, and tells, of classes that no scan has that the runs of a number of labels learn from."""
    scans, notes = labeled_scans(store, len(data.view.size), data.train, schema), []
    for count in counts:
        missing: Counter[str] = Counter()
        for seed in seeds if data.label_seed is None else [data.label_seed] * len(seeds):
            chosen = few(store, scans, schema, subjects=count, seed=seed)
            missing.update(trained_on(store, chosen, schema).missing_classes)
        if missing:
            names = ", ".join(f"{name} ({found} of {len(seeds)} runs)" for name, found in missing.items())
            notes.append(
                f"With {count} labeled subjects no scan that a network learns from has {names}: it will hardly ever "
                "give that answer."
            )
    for note in notes:
        log.info(f"note: {note}")
    return notes


def digest_of_scored(scans: Sequence[Scan], root: Path) -> str:
    """Names scans and what is to be found in them: their values and the content of their masks, without a path."""
    state = hashlib.blake2b(digest_size=8)
    for scan in sorted(scans, key=lambda scan: scan.scan_id):
        classes = scan.labels.classes or ""  # of segments, whose objects do not say them
        state.update(f"{scan.scan_id} {sorted(scan.labels.values)}{classes}".encode())
        for path in dict.fromkeys(part.path for part in scan.labels.mask):
            file = root / path
            state.update(file.read_bytes() if file.is_file() else b"missing")
    return f"{len(scans)} scans, {state.hexdigest()}"
