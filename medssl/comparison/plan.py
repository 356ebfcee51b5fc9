"""Checks and counts of a comparison before anything is trained."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import replace
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
    refuse_test_subjects,
    with_channels,
    with_drop_path,
)
from medssl.training.optim import FineTuning
from medssl.training.settings import Examples
from medssl.types import Imported, LabelSchema, Note, UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from medssl.types import Scan

log = logging.getLogger(__name__)


def initial_weights_of(
    name: str,
    folder: Path,
    store: Store,
    way: tuple[FineTuning, Imported | None],
    allow: Sequence[Allowed],
    trust: Collection[str] = (),
    size: Sequence[int] | None = None,
) -> InitialWeights:
    """Initial weights of an arm, from a run or a file; logs what is unknown or allowed of its pretraining subjects.

    Args:
        name: Of the arm.
        folder: Run folder, or file of weights.
        store: The scans.
        way: How weights move, and the encoder of a file of weights (None: that of the run folder).
        allow: As in ``medssl finetune``.
        trust: Import paths of classes that may be built.
        size: Size of the view.

    Raises:
        UserError: The preprocessing or the channels differ, or test subjects were used in pretraining; names the
            encoder.
    """
    optimizer, encoder = way
    try:
        if encoder is not None:  # the channels of the file are compared later
            encoder = replace(encoder, init_args=encoder.init_args | {"in_channels": store.channels})
        initial = read_initial_weights(folder, encoder, from_scratch=False, trust=trust)
        initial = with_drop_path(initial, optimizer.drop_path)
        open_store(store.path, initial, allow, size=size, key="data.view.size")
        initial = with_channels(initial, store.channels, allow)
        notes = refuse_test_subjects(store, {"the encoder": initial.training_subjects}, allow)
    except UserError as error:
        raise error.changed(message=f"{name}: {error.message}") from error
    for note in notes:
        log.info(f"note: {name}: {note}")
    return initial


def first_notes(data: Examples, optimizer: FineTuning) -> tuple[Note, ...]:
    """Notes on what the recipe means for the results."""
    notes = []
    if data.label_seed is not None:
        text = (
            f"data.label_seed is {data.label_seed}: all runs train on the same labeled subjects. Intervals and "
            "p-values do not include the variation between selections."
        )
        notes.append(Note("other", text))
    if optimizer.head_first == 1:
        text = "The encoder is frozen (optimizer.head_first 1): that of the from-scratch baseline keeps random weights."
        notes.append(Note("other", text))
    elif optimizer.lora.rank:
        text = "optimizer.lora adapts a frozen encoder: that of the from-scratch baseline keeps random weights below."
        notes.append(Note("other", text))
    return tuple(notes)


def refuse_useless_oracle(store: Store, schema: LabelSchema, data: Examples, counts: Sequence[int]) -> None:
    """Refuses an oracle that would be trained with no more labels than the arms.

    Raises:
        UserError: States how many labeled subjects there are.
    """
    scans = labeled_scans(store, len(data.view.size), data.train, schema)
    there = len(store.distinct_subjects(scans))
    if min(counts) >= there:
        message = (
            f"the oracle trains on all {there} labeled subjects of split {data.train!r}, and every arm has as many"
        )
        raise UserError(message, key="oracle", hint="Give fewer labels, or leave the oracle out.")


def refuse_unscored(scans: Sequence[Scan], schema: LabelSchema, split: str) -> None:
    """Refuses scans on which the measure of the comparison is not defined, before anything is trained.

    Raises:
        UserError: No class or finding is present in two subjects and absent in two.
    """
    values, subjects = [dict(scan.labels.values) for scan in scans], [scan.subject.subject_id for scan in scans]
    columns = kind_of(schema).contrasts(values, schema)
    if columns and not any(judged(positive, subjects, known) for positive, known in columns):
        message = (
            f"nothing can be compared: an AUROC takes a class of {schema.name} that at least {FEWEST} of the "
            f"{len(set(subjects))} subjects have and {FEWEST} lack"
        )
        raise UserError(message, key="split", got=split, hint="Choose another split.")


def known_subjects(
    store: Store, data: Examples, initial_weights: Mapping[str, Sequence[InitialWeights]]
) -> dict[str, Sequence[str]]:
    """Subjects whose scores would be too good, by the reason."""
    subjects: dict[str, Sequence[str]] = {
        f"in split {data.train!r}, the training split": store.subjects_of_split(data.train),
        f"in split {data.validation!r}, the validation split": store.subjects_of_split(data.validation),
    }
    for name, initial in initial_weights.items():
        known = {subject for one in initial for subject in one.provenance.known}
        subjects[f"used in the pretraining of {name}"] = sorted(known)
    return subjects


def refuse_known(scans: Sequence[Scan], split: str, known: Mapping[str, Sequence[str]]) -> None:
    """Refuses to score subjects of training, validation or pretraining, before anything is trained.

    Raises:
        UserError: Counts the subjects and names the reasons.
    """
    scored = {scan.subject.subject_id for scan in scans}
    reasons = [
        f"{len(shared)} are {reason}" for reason, subjects in known.items() if (shared := overlap(scored, subjects))
    ]
    if reasons:
        message = f"scores would be too good: of the {len(scored)} subjects, {'; '.join(reasons)}"
        hint = "Choose another split, or allow it (allow: seen)."
        raise UserError(message, key="split", got=split, hint=hint)


def label_counts(
    store: Store, schema: LabelSchema, data: Examples, labels: Sequence[float | None], seeds: Sequence[int]
) -> list[int]:
    """Numbers of labeled subjects from numbers, shares and null, each once, the fewest first.

    Raises:
        UserError: A run cannot have as many; states how many there are.
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
) -> list[Note]:
    """Notes, also logged, on classes that no training scan has in the runs of a number of labels."""
    scans, notes = labeled_scans(store, len(data.view.size), data.train, schema), []
    for count in counts:
        missing: Counter[str] = Counter()
        for seed in seeds if data.label_seed is None else [data.label_seed] * len(seeds):
            training_scans = few(store, scans, schema, subjects=count, seed=seed)
            missing.update(trained_on(store, training_scans, schema).missing_classes)
        if missing:
            names = ", ".join(f"{name} ({number} of {len(seeds)} runs)" for name, number in missing.items())
            text = f"With {count} labeled subjects no training scan has {names}: networks will rarely predict it."
            notes.append(Note("missing", text))
    for note in notes:
        log.info(f"note: {note}")
    return notes


def digest_of_scored(scans: Sequence[Scan], root: Path) -> str:
    """Digest of scans with their values and the content of their masks, without a path."""
    state = hashlib.blake2b(digest_size=8)
    for scan in sorted(scans, key=lambda scan: scan.scan_id):
        classes = scan.labels.classes or ""  # of segments, whose objects do not name them
        state.update(f"{scan.scan_id} {sorted(scan.labels.values)}{classes}".encode())
        for path in dict.fromkeys(part.path for part in scan.labels.mask):
            file = root / path
            state.update(file.read_bytes() if file.is_file() else b"missing")
    return f"{len(scans)} scans, {state.hexdigest()}"
