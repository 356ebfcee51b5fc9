"""Which scans of a store carry labels, what the classes are, and which few subjects are learned from."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.labels.values import (
    QUARTERS,
    findings_of,
    findings_schema,
    number_of,
    number_schema,
    quarters,
    refuse_unknown,
)
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medssl.data.index.scan_index import Index
    from medssl.data.store.store import Store
    from medssl.types import LabelKind, Scan

MASK = "mask"


def classes_of(store: Store, target: str, kind: LabelKind = "classes", *, key: str = "--data.target") -> LabelSchema:
    """What a target says.

    Args:
        store: A store with labels.
        target: "mask", or the name of a scan-level value; its classes are the values found in any split, in the order
            of the numbers where all are numbers, else of the alphabet. Findings may be several names, with commas.
        kind: What is made of a scan-level value.

        key: Option of the verb that names the target.

    Raises:
        UserError: The store has no such labels, their classes have no names, there is one class only, or the values are
            no findings or numbers.
    """
    if target == MASK:
        if not store.has_masks:
            values = sorted({name for number in store.scans_with_values for name in store.values(number)})
            other = f"; or learn a value of whole scans, {key} NAME, out of {', '.join(values)}" if values else ""
            message = f"{store.path} has no masks: index with --label.masks and cache again{other}"
            raise UserError(message)
        if store.schema is None:
            message = (
                f"the masks of {store.path} have no class names: index with --label.class_names "
                "0=background,1=NAME,... and cache again"
            )
            raise UserError(message)
        schema: LabelSchema = store.schema
    else:
        held = [store.values(number) for number in store.scans_with_values]
        if kind != "classes":
            return (findings_schema if kind == "findings" else number_schema)(held, target, str(store.path))
        refuse_unknown(target, held, str(store.path))
        found = in_order({values[target] for values in held if values.get(target)})
        schema = LabelSchema(target, tuple(enumerate(found)))
    if len(schema.classes) < 2:
        message = f"{target!r} has one class only ({schema.classes[0][1]}): there is nothing to tell apart"
        raise UserError(message)
    return schema


def in_order(values: set[str]) -> list[str]:
    """Values by their number where all are numbers, else by the alphabet.

    >>> in_order({"10", "2"}), in_order({"b", "a", "10"})
    (['2', '10'], ['10', 'a', 'b'])
    """
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)


def class_number(values: dict[str, str], schema: LabelSchema) -> int:
    """Place of a scan's value among the classes; -1 where it has none.

    Raises:
        UserError: A value that is no class.
    """
    value = values.get(schema.name, "")
    names = [name for _, name in schema.classes]
    if value and value not in names:
        message = f"{schema.name} has the value {value!r}, which is not among the classes {', '.join(names)}"
        raise UserError(message)
    return names.index(value) if value else -1


def is_labeled(values: Mapping[str, str], schema: LabelSchema) -> bool:
    """Whether a scan's values say something of the target: its class, its number, or at least one of the findings.

    Raises:
        UserError: A value that cannot be.
    """
    if schema.kind == "findings":
        return max(findings_of(values, schema)) >= 0
    if schema.kind == "number":
        return not np.isnan(number_of(values, schema))
    return class_number(dict(values), schema) >= 0


def labeled_scans(store: Store, axes: int, split: str, schema: LabelSchema) -> tuple[int, ...]:
    """Numbers of the scans of a split that carry the label, in the order of the store.

    Raises:
        UserError: There are none.
    """
    scans = store.scans(split, axes=axes).tolist()
    if schema.name == MASK:
        found = tuple(number for number in scans if store.has_mask(number))
    else:
        found = tuple(n for n in scans if is_labeled(store.values(n), schema))
    if not found:
        message = f"none of the {len(scans)} scans of split {split!r} of {store.path} is labeled with {schema.name!r}"
        raise UserError(message)
    return found


def how_many(labels: float | None, there: int) -> int:
    """How many of the labeled subjects a word of the user stands for: a number, a share, or None for all of them.

    >>> how_many(8, 20), how_many(0.25, 20), how_many(None, 20)
    (8, 5, 20)

    Raises:
        UserError: More than there are, less than one, or neither a whole number nor a share.
    """
    if labels is None:
        return there
    share = isinstance(labels, float)
    if not (0 < labels < 1 if share else labels >= 1):
        message = f"--labels {labels}: give a number of subjects (8) or a share of them between 0 and 1 (0.25)"
        raise UserError(message)
    number = round(labels * there) if share else int(labels)
    if not 1 <= number <= there:
        less = f"; {labels} of them is less than one" if share else ""
        message = f"--labels {labels}: there are {there} labeled subjects to choose from{less}"
        raise UserError(message)
    return number


def few(
    store: Store, scans: tuple[int, ...], schema: LabelSchema, *, subjects: float | None, seed: int
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
    if schema.name != MASK:
        groups = dict(zip(scans, groups_of(store, scans, schema), strict=True))
        own = {name: [groups[n] for n in of_subject[name]] for name in order}
        own = {name: [group for group in held if group >= 0] or held for name, held in own.items()}
        order = _in_turns(order, own, QUARTERS if schema.kind == "number" else ())
    chosen = sorted(number for name in order[:count] for number in of_subject[name])
    if schema.name != MASK:
        _refuse_alike(store, chosen, schema)
    return tuple(chosen)


def groups_of(store: Store, scans: Sequence[int], schema: LabelSchema) -> list[int]:
    """Which scans stand for one another: class number, place of the rarest finding, or quarter of the number.

    The rarest finding is that of the fewest of these scans; scans without any are the group -1.
    """
    held = [store.values(number) for number in scans]
    if schema.kind == "number":
        found: list[int] = quarters(np.array([number_of(values, schema) for values in held])).tolist()
        return found
    if schema.kind == "classes":
        return [class_number(values, schema) for values in held]
    there = np.array([findings_of(values, schema) for values in held]) == 1
    counts = there.sum(0)
    return [min(np.flatnonzero(row).tolist(), key=lambda k: (counts[k], k), default=-1) for row in there]


def lacking(store: Store, scans: Sequence[int], schema: LabelSchema) -> list[str]:
    """Findings that are not both there and absent in some scans: nothing is learned of them, and none is judged."""
    found = np.array([findings_of(store.values(number), schema) for number in scans])
    both = (found == 1).any(0) & (found == 0).any(0)
    return [name for (_, name), good in zip(schema.classes, both, strict=True) if not good]


def _refuse_alike(store: Store, chosen: Sequence[int], schema: LabelSchema) -> None:
    """Refuses a choice of scans in which there is nothing to tell apart."""
    count, message = len(chosen), ""
    if schema.kind == "findings" and len(lacking(store, chosen, schema)) == len(schema.classes):
        message = f"no finding is there in some and absent in others of all {count} labeled scans: take more labels"
    elif schema.kind == "number":
        numbers = {number_of(store.values(number), schema) for number in chosen}
        if len(numbers) == 1:
            message = f"{schema.name} is {numbers.pop():g} in all {count} labeled scans: there is nothing to learn"
    elif schema.kind == "classes":
        seen = {class_number(store.values(number), schema) for number in chosen}
        if len(seen) == 1:
            name = schema.classes[seen.pop()][1]
            message = f"all {count} labeled scans are {name!r}: one class only cannot be told from others"
    if message:
        raise UserError(message)


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
        own = min(groups[name], key=rank.__getitem__)
        keys[name] = (rounds[own], rank[own], place)
        rounds[own] += 1
    return sorted(order, key=keys.__getitem__)


def labeled_scans_of_index(opened: Index, schema: LabelSchema, split: str, where: str | None) -> list[Scan]:
    """The good scans of a split that carry the label.

    Raises:
        UserError: There are none, or a scan-level value is no class.
    """
    scans = list(opened.scans(where, split=split))
    if schema.name == MASK:
        found = [scan for scan in scans if scan.labels.mask]
    else:
        found = [scan for scan in scans if is_labeled(dict(scan.labels.values), schema)]
    if not found:
        query = "SELECT split, count(*) FROM scans WHERE status = 'ok' GROUP BY 1 ORDER BY 1"
        splits = ", ".join(f"{count} {name!r}" for name, count in opened.connection.execute(query)) or "none"
        message = (
            f"none of the {len(scans)} scans of split {split!r} is labeled with {schema.name!r}; scans by split: "
            f"{splits}; choose another --split, or index with labels"
        )
        raise UserError(message)
    return found
