"""What is said of whole scans beside one class of several: findings that are there or not, and numbers.

Findings come from a column each (``1``, ``yes``, ``true``, ``positive``, ``present``, and their opposites) or from one
column that lists those of a scan (``effusion|nodule``, also with ``;`` or ``,``; ``none``, ``no finding`` list none).
An empty cell, ``-1`` (as in CheXpert's tables: Irvin et al. 2019), ``unknown``, ``uncertain``, ``nan`` and ``na`` say
that nothing is known. Case does not matter.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jaxtyping import Float, Int

    Values = Mapping[str, str]

YES = frozenset({"1", "1.0", "yes", "true", "positive", "present"})
NO = frozenset({"0", "0.0", "no", "false", "negative", "absent"})
UNKNOWN = frozenset({"", "-1", "-1.0", "unknown", "uncertain", "nan", "na", "n/a"})
NOTHING = frozenset({"none", "no finding"})
GROUPS = 4  # quarters of a number, by which few labels are spread
QUARTERS = (0, 3, 1, 2)  # in which order they take turns: lowest, highest, then between


def refuse_unknown(target: str, held: Iterable[Values], where: str) -> None:
    """Refuses the name of a value that no scan has.

    Raises:
        UserError: It is empty everywhere; or lists the names there are, and which one may be meant.
    """
    rows = list(held)
    if any(values.get(target) for values in rows):
        return
    known = sorted({name for values in rows for name in values})
    if target in known:
        message = f"{target!r} is empty for all {len(rows)} scans of {where}: fill it in, then index and cache again"
        raise UserError(message)
    near = difflib.get_close_matches(target, known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    message = f"no scan of {where} has a value {target!r}; values there are: {', '.join(known) or 'none'}{hint}"
    raise UserError(message)


# --- findings


def findings_schema(held: Sequence[Values], target: str, where: str) -> LabelSchema:
    """The findings that a target names: columns with commas between them, or the column that lists them.

    Args:
        held: Values of all scans.
        target: As of the command line.
        where: What messages name.

    Raises:
        UserError: An unknown or repeated column, a cell that is neither yes nor no, or a finding that is the same in
            every scan where it is known.
    """
    columns = [name.strip() for name in target.split(",")]
    for column in columns:
        if columns.count(column) > 1:
            message = f"the target {target!r} names {column!r} twice: name each finding once"
            raise UserError(message)
        refuse_unknown(column, held, where)
    if len(columns) == 1 and not all(_plain(values.get(target, "")) for values in held):
        names = sorted({item for values in held for item in _listed(values.get(target, "")) or ()})
    else:
        names = columns
    schema = LabelSchema(",".join(columns), tuple(enumerate(names)), kind="findings")
    found = np.array([findings_of(values, schema) for values in held])
    for number, name in enumerate(names):
        known = found[:, number][found[:, number] >= 0]
        if len(known) and (known == known[0]).all():
            message = (
                f"finding {name!r} is {'yes' if known[0] else 'no'} in all {len(known)} scans where it is known: there "
                "is nothing to tell apart; leave it out of data.target"
            )
            raise UserError(message)
    return schema


def findings_of(values: Values, schema: LabelSchema) -> tuple[int, ...]:
    """For each finding 1 where the scan has it, 0 where it has not, -1 where that is not known.

    Raises:
        UserError: A cell that is neither yes nor no, or a listed finding that is none of the schema.
    """
    names = [name for _, name in schema.classes]
    if names == schema.name.split(","):
        return tuple(_yes_or_no(name, values.get(name, "")) for name in names)
    listed = _listed(values.get(schema.name, ""))
    if listed is None:
        return (-1,) * len(names)
    if strange := sorted(listed - set(names)):
        message = f"{schema.name} lists {strange[0]!r}, which is not among the findings {', '.join(names)}"
        raise UserError(message)
    return tuple(int(name in listed) for name in names)


def _plain(cell: str) -> bool:
    return cell.strip().lower() in YES | NO | UNKNOWN


def _yes_or_no(name: str, cell: str) -> int:
    word = cell.strip().lower()
    if not _plain(cell):
        message = (
            f"{name} has the value {cell!r}: expected yes or no (1, 0, true, false), or nothing, -1 or unknown where "
            "it is not known"
        )
        raise UserError(message)
    return 1 if word in YES else 0 if word in NO else -1


def _listed(cell: str) -> set[str] | None:
    """What a cell lists; None where nothing is known."""
    if cell.strip().lower() in UNKNOWN:
        return None
    items = {item.strip() for item in re.split(r"[|;,]", cell)}
    return {item for item in items if item and item.lower() not in NOTHING}


# --- numbers


def number_schema(held: Sequence[Values], target: str, where: str) -> LabelSchema:
    """The number that a target names.

    Raises:
        UserError: An unknown name, a value that is no number, or the same number in every scan.
    """
    refuse_unknown(target, held, where)
    schema = LabelSchema(target, ((0, target),), kind="number")
    found = np.array([number_of(values, schema) for values in held])
    known = found[~np.isnan(found)]
    if len(np.unique(known)) < 2:
        what = f"{known[0]:g} in all {len(known)} scans where it is known" if len(known) else "known of no scan"
        message = f"{target!r} is {what}: there is nothing to learn"
        raise UserError(message)
    return schema


def number_of(values: Values, schema: LabelSchema) -> float:
    """The number of a scan; NaN where it is not known (-1 is a number).

    Raises:
        UserError: A value that is no finite number.
    """
    cell = values.get(schema.name, "").strip()
    if cell.lower() in UNKNOWN and not cell.startswith("-1"):
        return math.nan
    try:
        found = float(cell)
    except ValueError:
        found = math.inf
    if not math.isfinite(found):
        message = f"{schema.name} has the value {cell!r}, which is no number: a regression takes numbers such as 61.5"
        raise UserError(message)
    return found


def quarters(numbers: Float[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Which quarter of the sorted numbers each is in, 0 to 3; equal numbers are in one."""
    ranks = np.searchsorted(np.sort(numbers), numbers, "left")
    found: Int[np.ndarray, "N"] = ranks * GROUPS // max(1, len(numbers))
    return found
