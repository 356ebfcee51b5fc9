"""Which scans of a store carry labels, what the classes are, and which few subjects are learnt from."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from medssl.data.feed import population
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from medssl.data.store import Store

MASK = "mask"


def classes_of(store: Store, target: str) -> LabelSchema:
    """The classes of a target.

    Args:
        store: A store with labels.
        target: "mask", or the name of a scan-level value; its classes are the values found in any split, in the order
            of the numbers where all are numbers, else of the alphabet.

    Raises:
        UserError: The store has no such labels, their classes have no names, or there is one class only.
    """
    facts = store.records.facts
    if target == MASK:
        if not facts["label"].any():
            message = f"{store.path} has no masks: index with --labels.masks and cache again, or set data.target"
            raise UserError(message)
        if store.schema is None:
            message = (
                f"the masks of {store.path} have no class names: index with --labels.class_names "
                "0=background,1=NAME,... and cache again"
            )
            raise UserError(message)
        schema: LabelSchema = store.schema
    else:
        held = [store.records.values(number) for number in range(len(store)) if facts[number]["text"]]
        found = in_order({values[target] for values in held if values.get(target)})
        if not found:
            known = ", ".join(sorted({name for values in held for name in values})) or "none"
            message = f"no scan of {store.path} has a value {target!r}; values there are: {known}"
            raise UserError(message)
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


def labelled_scans(store: Store, axes: int, split: str, schema: LabelSchema) -> tuple[int, ...]:
    """Numbers of the scans of a split that carry the label, in the order of the store.

    Raises:
        UserError: There are none.
    """
    facts, scans = store.records.facts, population(store, axes, split).tolist()
    if schema.name == MASK:
        found = tuple(number for number in scans if facts[number]["label"])
    else:
        found = tuple(n for n in scans if facts[n]["text"] and class_number(store.records.values(n), schema) >= 0)
    if not found:
        message = f"none of the {len(scans)} scans of split {split!r} of {store.path} is labelled with {schema.name!r}"
        raise UserError(message)
    return found


def few(
    store: Store, scans: tuple[int, ...], schema: LabelSchema, *, subjects: int | None, seed: int
) -> tuple[int, ...]:
    """The scans of ``subjects`` subjects: every scan of each, fewer subjects always among more of the same seed.

    Subjects come in an order that depends on the seed and their own identifiers alone; for a scan-level target the
    classes take turns (a subject belongs to its rarest class), so that few subjects show as many classes as they can.

    Args:
        store: Where the scans are.
        scans: Labelled scans to choose from.
        schema: The classes.
        subjects: How many; None takes all.
        seed: Seed of the choice.

    Raises:
        UserError: More subjects than there are, or the chosen ones are all of one class.
    """
    of_subject: dict[str, list[int]] = {}
    for number in scans:
        of_subject.setdefault(store.records.tables["subject"][store.records.subject[number]], []).append(number)
    if subjects is not None and not 1 <= subjects <= len(of_subject):
        message = f"--labels {subjects}: there are {len(of_subject)} labelled subjects to choose from"
        raise UserError(message)
    order = sorted(of_subject, key=lambda name: _place(seed, name))
    if schema.name != MASK:
        order = _in_turns(order, {name: [_class(store, n, schema) for n in of_subject[name]] for name in order})
    chosen = sorted(number for name in order[:subjects] for number in of_subject[name])
    if schema.name != MASK:
        seen = {_class(store, number, schema) for number in chosen}
        if len(seen) == 1:
            name = schema.classes[seen.pop()][1]
            message = f"all {len(chosen)} labelled scans are {name!r}: one class only cannot be told from others"
            raise UserError(message)
    return tuple(chosen)


def subjects_of(store: Store, scans: tuple[int, ...]) -> tuple[str, ...]:
    """Keyed digests of the subjects of some scans, sorted."""
    return tuple(sorted({store.records.tables["subject"][store.records.subject[number]] for number in scans}))


def _class(store: Store, number: int, schema: LabelSchema) -> int:
    return class_number(store.records.values(number), schema)


def _place(seed: int, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=b"labels", salt=seed.to_bytes(16, "little")).digest()


def _in_turns(order: list[str], classes: dict[str, list[int]]) -> list[str]:
    """The same subjects, one of each class in turn, rarest class first."""
    counts = Counter(number for name in order for number in set(classes[name]))
    rank = {number: place for place, (number, _) in enumerate(sorted(counts.items(), key=lambda item: item[::-1]))}
    rounds: Counter[int] = Counter()
    keys = {}
    for place, name in enumerate(order):
        own = min(classes[name], key=rank.__getitem__)
        keys[name] = (rounds[own], rank[own], place)
        rounds[own] += 1
    return sorted(order, key=keys.__getitem__)
