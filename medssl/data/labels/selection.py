"""Which scans of a store carry labels, the classes of a target, and which few subjects are chosen for training."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from medssl.data.labels.kinds.base import MASK, kind_named, kind_of
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.data.index.scan_index import Index
    from medssl.types import LabeledScans, LabelSchema, Scan


def schema_of(store: LabeledScans, target: str, kind: str = "", *, key: str = "data.target") -> LabelSchema:
    """The classes of a target.

    Args:
        store: A store with labels.
        target: "mask", or the name of a scan-level value. Findings may be several names, with commas.
        kind: What is made of the target: the name of a kind; "" takes "mask" for the target "mask", else "classes".
        key: Option of the verb that names the target.

    Raises:
        UserError: The store has no such labels, their classes have no names, there is one class only, or the values are
            no findings or numbers.
    """
    return kind_named(kind or (MASK if target == MASK else "classes")).schema(store, target, key=key)


def labeled_scans(store: LabeledScans, axes: int, split: str, schema: LabelSchema) -> tuple[int, ...]:
    """Numbers of the scans of a split that carry the label, in the order of the store.

    Raises:
        UserError: There are none.
    """
    scans = store.scans(split, axes=axes).tolist()
    kind = kind_of(schema)
    labeled = tuple(number for number in scans if kind.is_labeled(store, number, schema))
    if not labeled:
        message = f"none of the {len(scans)} scans of split {split!r} of {store.path} is labeled with {schema.name!r}"
        raise UserError(message)
    return labeled


def how_many(labels: float | None, total: int, key: str = "labels") -> int:
    """How many of the labeled subjects an option asks for: a number, a share, or None for all of them.

    >>> how_many(8, 20), how_many(0.25, 20), how_many(None, 20)
    (8, 5, 20)

    Raises:
        UserError: More than there are, less than one, or neither a whole number nor a share.
    """
    if labels is None:
        return total
    share = isinstance(labels, float)
    if not (0 < labels < 1 if share else labels >= 1):
        right = "a number of subjects such as 8, or a share of them between 0 and 1 such as 0.25"
        message = "no number of subjects"
        raise UserError(message, key=key, got=labels, expected=right)
    number = round(labels * total) if share else int(labels)
    if not 1 <= number <= total:
        less = f"; {labels} of them is less than one" if share else ""
        message = f"there are {total} labeled subjects to choose from{less}"
        raise UserError(message, key=key, got=labels)
    return number


def few(
    store: LabeledScans, scans: tuple[int, ...], schema: LabelSchema, *, subjects: float | None, seed: int
) -> tuple[int, ...]:
    """The scans of some subjects: every scan of each, fewer subjects always among more of the same seed.

    Subjects come in an order that depends on the seed and their own identifiers alone; for a scan-level target the
    classes take turns (a subject belongs to its rarest class), so that few subjects show as many classes as they can.
    So do findings (a subject belongs to its rarest one, after Sechidis et al., On the stratification of multi-label
    data, ECML PKDD 2011) and the quarters of a number.

    Args:
        store: Where the scans are.
        scans: Labeled scans to choose from.
        schema: The classes.
        subjects: How many, or which share; None takes all.
        seed: Seed of the choice.

    Raises:
        UserError: More subjects than there are or less than one, or the chosen ones are all of one class or number.
    """
    of_subject: dict[str, list[int]] = {}
    for number in scans:
        of_subject.setdefault(store.subject(number), []).append(number)
    count = how_many(subjects, len(of_subject))
    order = sorted(of_subject, key=lambda name: _place(seed, name))
    kind = kind_of(schema)
    groups = dict(zip(scans, groups_of(store, scans, schema), strict=True))
    of_name = {name: [groups[n] for n in of_subject[name]] for name in order}
    of_name = {name: [group for group in each if group >= 0] or each for name, each in of_name.items()}
    order = _in_turns(order, of_name, kind.group_turns)
    selected = sorted(number for name in order[:count] for number in of_subject[name])
    kind.refuse_alike([store.values(number) for number in selected], schema)
    return tuple(selected)


def groups_of(store: LabeledScans, scans: Sequence[int], schema: LabelSchema) -> list[int]:
    """Group of each scan (``TargetKind.groups``): class number, place of the rarest finding, quarter of the number."""
    return kind_of(schema).groups([store.values(number) for number in scans], schema)


def constant_labels(store: LabeledScans, scans: Sequence[int], schema: LabelSchema) -> list[str]:
    """Findings that are present in no scan or absent in no scan: they cannot be learned or measured."""
    return kind_of(schema).constant([store.values(number) for number in scans], schema)


def _place(seed: int, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=b"labels", salt=seed.to_bytes(16, "little")).digest()


def _in_turns(order: list[str], groups: dict[str, list[int]], ranked: Sequence[int] = ()) -> list[str]:
    """The same subjects, one of each group in turn, in the order of ``ranked`` or the rarest group first."""
    counts = Counter(number for name in order for number in set(groups[name]))
    first = [number for number, _ in sorted(counts.items(), key=lambda item: item[::-1])]
    rank = {number: place for place, number in enumerate(ranked or first)}
    rounds: Counter[int] = Counter()
    keys = {}
    for place, name in enumerate(order):
        group = min(groups[name], key=rank.__getitem__)
        keys[name] = (rounds[group], rank[group], place)
        rounds[group] += 1
    return sorted(order, key=keys.__getitem__)


def labeled_scans_of_index(opened: Index, schema: LabelSchema, split: str, where: str | None) -> list[Scan]:
    """The good scans of a split that carry the label.

    Raises:
        UserError: There are none, or a scan-level value is no class.
    """
    scans = list(opened.scans(where, split=split))
    kind = kind_of(schema)
    labeled = [scan for scan in scans if kind.is_labeled_in_index(scan, schema)]
    if not labeled:
        query = "SELECT split, count(*) FROM scans WHERE status = 'ok' GROUP BY 1 ORDER BY 1"
        splits = ", ".join(f"{count} {name!r}" for name, count in opened.connection.execute(query)) or "none"
        message = (
            f"none of the {len(scans)} scans of split {split!r} is labeled with {schema.name!r}; scans by split: "
            f"{splits}; choose another split, or index with labels"
        )
        raise UserError(message)
    return labeled
