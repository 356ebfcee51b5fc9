"""Numbers: one for a whole scan, such as an age, learned by regression heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.labels.kinds.base import UNKNOWN, TargetKind, refuse_unknown
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float, Int

    from medssl.types import LabeledScans

    Values = Mapping[str, str]

GROUPS = 4  # quarters of a number, by which few labels are spread


class Number(TargetKind):
    """A number for a whole scan."""

    name = "number"
    task = "regression"
    has_groups = False
    group_turns = (0, 3, 1, 2)  # quarters: lowest, highest, then between

    def schema(self, store: LabeledScans, target: str, *, key: str) -> LabelSchema:
        """The number that a target names.

        Raises:
            UserError: As of ``number_schema``.
        """
        return number_schema([store.values(n) for n in store.scans_with_values], target, str(store.path), key)

    def is_known(self, values: Values, schema: LabelSchema) -> bool:
        """Whether the number is known.

        Raises:
            UserError: A value is no number.
        """
        return not math.isnan(number_of(values, schema))

    def targets(self, rows: Sequence[Values], schema: LabelSchema) -> Float[np.ndarray, "B"]:
        """Numbers in single precision, NaN where nothing is known."""
        return np.array([number_of(values, schema) for values in rows], np.float64).astype(np.float32)

    def in_words(self, values: Values, prediction: Sequence[float], schema: LabelSchema) -> str:
        """The true and the predicted number."""
        return f"label {number_of(values, schema):.4g}, prediction {prediction[0]:.4g}"

    def groups(self, rows: Sequence[Values], schema: LabelSchema) -> list[int]:
        """Quarter of the sorted numbers that each scan is in."""
        places: list[int] = quarters(np.array([number_of(values, schema) for values in rows])).tolist()
        return places

    def refuse_alike(self, rows: Sequence[Values], schema: LabelSchema) -> None:
        """Refuses scans of one number.

        Raises:
            UserError: Says the number.
        """
        numbers = {number_of(values, schema) for values in rows}
        if len(numbers) == 1:
            message = f"{schema.name} is {numbers.pop():g} in all {len(rows)} labeled scans: there is nothing to learn"
            raise UserError(message)


def number_schema(rows: Sequence[Values], target: str, where: str, key: str = "data.target") -> LabelSchema:
    """The number that a target names.

    Raises:
        UserError: An unknown name, a value that is no number, or the same number in every scan.
    """
    refuse_unknown(target, rows, where, key)
    schema = LabelSchema(target, ((0, target),), kind=Number.name)
    numbers = np.array([number_of(values, schema) for values in rows])
    known = numbers[~np.isnan(numbers)]
    if len(np.unique(known)) < 2:
        what = f"{known[0]:g} in all {len(known)} scans where it is known" if len(known) else "known of no scan"
        message = f"{target!r} is {what}: there is nothing to learn"
        raise UserError(message, key=key)
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
        number = float(cell)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        message = f"{schema.name} has the value {cell!r}"
        raise UserError(message, expected="a number such as 61.5, for a regression")
    return number


def quarters(numbers: Float[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Which quarter of the sorted numbers each is in, 0 to 3; equal numbers are in one."""
    ranks = np.searchsorted(np.sort(numbers), numbers, "left")
    places: Int[np.ndarray, "N"] = ranks * GROUPS // max(1, len(numbers))
    return places
