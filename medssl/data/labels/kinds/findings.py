"""Findings: any number of them for a whole scan, each present or absent, learned by multi-label heads.

They come from a column each (``1``, ``yes``, ``true``, ``positive``, ``present``, and their opposites) or from one
column that lists those of a scan (``effusion|nodule``, also with ``;`` or ``,``; ``none``, ``no finding`` list none).
An empty cell, ``-1`` (as in CheXpert's tables: Irvin et al. 2019), ``unknown``, ``uncertain``, ``nan`` and ``na`` say
that nothing is known. Case does not matter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.labels.kinds.base import MASK, UNKNOWN, TargetKind, refuse_unknown
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Int

    from medssl.data.labels.kinds.base import Contrast
    from medssl.types import LabeledScans

    Values = Mapping[str, str]

YES = frozenset({"1", "1.0", "yes", "true", "positive", "present"})
NO = frozenset({"0", "0.0", "no", "false", "negative", "absent"})
NOTHING = frozenset({"none", "no finding"})


class Findings(TargetKind):
    """Findings of a whole scan, each present, absent or not known."""

    name = "findings"
    task = "multi_label"

    def refuse_target(self, target: str) -> None:
        """Refuses "mask"; several names with commas are several findings.

        Raises:
            UserError: The target is "mask".
        """
        if target == MASK:
            super().refuse_target(target)

    def schema(self, store: LabeledScans, target: str, *, key: str) -> LabelSchema:
        """The findings that a target names: columns with commas between them, or the column that lists them.

        Raises:
            UserError: As of ``findings_schema``.
        """
        return findings_schema([store.values(n) for n in store.scans_with_values], target, str(store.path), key)

    def is_known(self, values: Values, schema: LabelSchema) -> bool:
        """Whether at least one finding is known.

        Raises:
            UserError: A cell that is neither yes nor no.
        """
        return max(findings_of(values, schema)) >= 0

    def targets(self, rows: Sequence[Values], schema: LabelSchema) -> Int[np.ndarray, "B K"]:
        """1 where the finding is present, 0 where it is absent, -1 where that is not known."""
        return np.array([findings_of(values, schema) for values in rows])

    def in_words(self, values: Values, prediction: Sequence[float], schema: LabelSchema) -> str:
        """The findings that are present, and the probability of each."""
        names = [name for _, name in schema.classes]
        truth = dict(zip(names, findings_of(values, schema), strict=True))
        present = ", ".join(name for name, known in truth.items() if known == 1) or "none"
        shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, prediction, strict=True))
        return f"label {present}, prediction {shares}"

    def groups(self, rows: Sequence[Values], schema: LabelSchema) -> list[int]:
        """Place of the rarest finding of each scan: that of the fewest of these scans; -1 without any."""
        present = self.targets(rows, schema) == 1
        counts = present.sum(0)
        return [min(np.flatnonzero(row).tolist(), key=lambda k: (counts[k], k), default=-1) for row in present]

    def refuse_alike(self, rows: Sequence[Values], schema: LabelSchema) -> None:
        """Refuses scans in which no finding differs.

        Raises:
            UserError: Counts the scans.
        """
        if len(self.constant(rows, schema)) == len(schema.classes):
            count = len(rows)
            message = f"no finding differs among all {count} labeled scans"
            raise UserError(message, hint="Take more labels")

    def constant(self, rows: Sequence[Values], schema: LabelSchema) -> list[str]:
        """Findings that are present in no scan or absent in no scan: they cannot be learned or measured."""
        truth = self.targets(rows, schema)
        both = (truth == 1).any(0) & (truth == 0).any(0)
        return [name for (_, name), differs in zip(schema.classes, both, strict=True) if not differs]

    def contrasts(self, rows: Sequence[Values], schema: LabelSchema) -> list[Contrast]:
        """Each finding, on the scans of which it is known."""
        truth = self.targets(rows, schema)
        return [(truth[:, k] == 1, truth[:, k] >= 0) for k in range(truth.shape[1])]


def findings_schema(rows: Sequence[Values], target: str, where: str, key: str = "data.target") -> LabelSchema:
    """The findings that a target names: columns with commas between them, or the column that lists them.

    Args:
        rows: Values of all scans.
        target: As of the command line.
        where: Name of the store in messages.
        key: Option that names the target.

    Raises:
        UserError: An unknown or repeated column, a cell that is neither yes nor no, or a finding that is the same in
            every scan where it is known.
    """
    columns = [name.strip() for name in target.split(",")]
    for column in columns:
        if columns.count(column) > 1:
            message = f"the target names {column!r} twice"
            raise UserError(message, key=key, got=target, hint="Name each finding once")
        refuse_unknown(column, rows, where, key)
    if len(columns) == 1 and not all(_plain(values.get(target, "")) for values in rows):
        names = sorted({item for values in rows for item in _listed(values.get(target, "")) or ()})
    else:
        names = columns
    schema = LabelSchema(",".join(columns), tuple(enumerate(names)), kind=Findings.name)
    truth = np.array([findings_of(values, schema) for values in rows])
    for number, name in enumerate(names):
        known = truth[:, number][truth[:, number] >= 0]
        if len(known) and (known == known[0]).all():
            message = (
                f"the finding {name!r} is {'yes' if known[0] else 'no'} in all {len(known)} scans where it is known"
            )
            raise UserError(message, key=key, hint="Leave it out")
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
        message = f"{name} has the value {cell!r}"
        expected = "yes or no (1, 0, true, false), or nothing, -1 or unknown where it is not known"
        raise UserError(message, expected=expected)
    return 1 if word in YES else 0 if word in NO else -1


def _listed(cell: str) -> set[str] | None:
    """What a cell lists; None where nothing is known."""
    if cell.strip().lower() in UNKNOWN:
        return None
    items = {item.strip() for item in re.split(r"[|;,]", cell)}
    return {item for item in items if item and item.lower() not in NOTHING}
