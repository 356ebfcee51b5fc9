"""Classes: one of several for a whole scan, learned by classification heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medssl.data.labels.kinds.base import TargetKind, refuse_one_class, values_of_scans
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Int

    from medssl.data.labels.kinds.base import Contrast
    from medssl.types import LabeledScans


class Classes(TargetKind):
    """One class of several for a whole scan."""

    name = "classes"
    task = "classification"
    one_class = True

    def schema(self, store: LabeledScans, target: str, *, key: str) -> LabelSchema:
        """The values of a name in any split: in the order of the numbers where all are numbers, else sorted.

        Raises:
            UserError: No scan has such a value, or all have the same.
        """
        rows = values_of_scans(store, target, key)
        names = in_order({values[target] for values in rows if values.get(target)})
        schema = LabelSchema(target, tuple(enumerate(names)))
        refuse_one_class(schema)
        return schema

    def is_known(self, values: Mapping[str, str], schema: LabelSchema) -> bool:
        """Whether a scan has a class.

        Raises:
            UserError: A value that is no class.
        """
        return class_number(values, schema) >= 0

    def targets(self, rows: Sequence[Mapping[str, str]], schema: LabelSchema) -> Int[np.ndarray, "B"]:
        """Class numbers, -1 where nothing is known."""
        return np.array([class_number(values, schema) for values in rows])

    def in_words(self, values: Mapping[str, str], prediction: Sequence[float], schema: LabelSchema) -> str:
        """The true class, and the most probable one with its probability."""
        share, name = max(zip(prediction, [name for _, name in schema.classes], strict=True))
        return f"label {values.get(schema.name) or 'unknown'}, prediction {name} {share:.2f}"

    def groups(self, rows: Sequence[Mapping[str, str]], schema: LabelSchema) -> list[int]:
        """Class number of each scan."""
        return [class_number(values, schema) for values in rows]

    def refuse_alike(self, rows: Sequence[Mapping[str, str]], schema: LabelSchema) -> None:
        """Refuses scans of one class.

        Raises:
            UserError: Names the class.
        """
        numbers = {class_number(values, schema) for values in rows}
        if len(numbers) == 1:
            name = schema.classes[numbers.pop()][1]
            message = f"all {len(rows)} labeled scans are {name!r}: there is nothing to distinguish"
            raise UserError(message)

    def contrasts(self, rows: Sequence[Mapping[str, str]], schema: LabelSchema) -> list[Contrast]:
        """Each class against the rest, known of every scan."""
        values, known = np.array([row[schema.name] for row in rows]), np.ones(len(rows), bool)
        return [(values == name, known) for _, name in schema.classes]

    def missing(
        self, rows: Sequence[Mapping[str, str]], voxel_values: set[int] | None, schema: LabelSchema
    ) -> tuple[str, ...]:
        """Names of classes that no scan has."""
        del voxel_values
        values = {row.get(schema.name) for row in rows}
        return tuple(name for _, name in schema.classes if name not in values)


def in_order(values: set[str]) -> list[str]:
    """Values by their number where all are numbers, else by the alphabet.

    >>> in_order({"10", "2"}), in_order({"b", "a", "10"})
    (['2', '10'], ['10', 'a', 'b'])
    """
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)


def class_number(values: Mapping[str, str], schema: LabelSchema) -> int:
    """Place of a scan's value among the classes; -1 where it has none.

    Raises:
        UserError: A value that is no class.
    """
    value = values.get(schema.name, "")
    names = [name for _, name in schema.classes]
    if value and value not in names:
        message = f"{schema.name} has the value {value!r}"
        raise UserError(message, expected=f"one of the classes {', '.join(names)}")
    return names.index(value) if value else -1
