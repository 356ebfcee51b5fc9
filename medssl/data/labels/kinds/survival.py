"""Survival: a time and whether the event was seen by then, for a whole scan, learned by Cox heads.

They come from two columns, named with a comma: ``months,death``. The time is a number of 0 or more in any unit. The
event is 1 (``yes``, ``true``, ``event``, ``dead``, ...) where it was seen at that time, and 0 (``no``, ``false``,
``censored``, ``alive``, ...) where the subject was last seen without it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.labels.kinds.base import MASK, UNKNOWN, TargetKind, refuse_unknown
from medssl.data.labels.kinds.findings import NO, YES
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

    from medssl.types import LabeledScans

    Values = Mapping[str, str]

SEEN = YES | {"event", "dead", "deceased", "died"}
CENSORED = NO | {"censored", "alive", "living"}
FORM = "TIME,EVENT: the columns of the time and of the event"


class Survival(TargetKind):
    """A time for a whole scan, and whether the event was seen then."""

    name = "survival"
    task = "survival"

    def refuse_target(self, target: str) -> None:
        """Refuses a target that does not name two columns.

        Raises:
            UserError: The target is "mask", or names one value, or more than two.
        """
        if target == MASK or len(columns_of(target)) != 2:
            message = "the head is for survival"
            raise UserError(message, key="data.target", got=target, expected=FORM)

    def schema(self, store: LabeledScans, target: str, *, key: str) -> LabelSchema:
        """The two columns that a target names.

        Raises:
            UserError: As of ``survival_schema``.
        """
        return survival_schema([store.values(n) for n in store.scans_with_values], target, str(store.path), key)

    def is_known(self, values: Values, schema: LabelSchema) -> bool:
        """Whether time and event are known.

        Raises:
            UserError: A time below 0 or that is no number, or an event that is neither yes nor no.
        """
        return not math.isnan(survival_of(values, schema)[0])

    def targets(self, rows: Sequence[Values], schema: LabelSchema) -> Float[np.ndarray, "B 2"]:
        """Time, and 1 where the event was seen; NaN where nothing is known."""
        return np.array([survival_of(values, schema) for values in rows], np.float32).reshape(-1, 2)

    def in_words(self, values: Values, prediction: Sequence[float], schema: LabelSchema) -> str:
        """Time, event and predicted risk."""
        time, event = survival_of(values, schema)
        known = "unknown" if math.isnan(time) else f"{time:g}, {'event' if event else 'censored'}"
        return f"label {known}, prediction risk {prediction[0]:.3g}"

    def groups(self, rows: Sequence[Values], schema: LabelSchema) -> list[int]:
        """1 where the event was seen, 0 where it was not: few labels then hold both."""
        pairs = [survival_of(values, schema) for values in rows]
        return [-1 if math.isnan(time) else int(event) for time, event in pairs]

    def refuse_alike(self, rows: Sequence[Values], schema: LabelSchema) -> None:
        """Refuses scans of which no two can be put in order.

        Raises:
            UserError: No event was seen, or nobody was seen after the first event.
        """
        pairs = [survival_of(values, schema) for values in rows]
        if not comparable(pairs):
            events = sum(event == 1 for _, event in pairs)
            message = f"{events} of {len(rows)} labeled scans have an event, and no two can be put in order"
            raise UserError(message, hint="Choose more labels")


def survival_schema(rows: Sequence[Values], target: str, where: str, key: str = "data.target") -> LabelSchema:
    """The columns of time and event that a target names.

    Raises:
        UserError: Not two names, an unknown name, values that cannot be, or no two scans that can be put in order.
    """
    columns = columns_of(target)
    if len(columns) != 2:
        message = "a survival has two columns"
        raise UserError(message, key=key, got=target, expected=FORM)
    for column in columns:
        refuse_unknown(column, rows, where, key)
    schema = LabelSchema(",".join(columns), ((0, "risk"),), kind=Survival.name)
    pairs = [survival_of(values, schema) for values in rows]
    if not comparable(pairs):
        events = sum(event == 1 for _, event in pairs)
        message = f"{target!r}: {events} of {len(pairs)} scans have an event, and no two can be put in order by it"
        raise UserError(message, key=key, hint="Survival needs events, and scans that were seen for longer")
    return schema


def survival_of(values: Values, schema: LabelSchema) -> tuple[float, float]:
    """Time and event (1 or 0) of a scan; both NaN where one is not known.

    Raises:
        UserError: A time below 0 or that is no number, or an event that is neither yes nor no.
    """
    time_name, event_name = columns_of(schema.name)
    time, event = (values.get(name, "").strip() for name in (time_name, event_name))
    is_unknown = time.lower() in UNKNOWN and not time.startswith("-")
    if event.lower() in UNKNOWN or is_unknown:
        return math.nan, math.nan
    try:
        number = float(time)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        message = f"{time_name} has the value {time!r}"
        raise UserError(message, expected="a time of 0 or more, such as 14.5")
    if event.lower().removesuffix(".0") not in SEEN | CENSORED:
        message = f"{event_name} has the value {event!r}"
        raise UserError(message, expected="1 where the event was seen, 0 where it was not")
    return number, float(event.lower() in SEEN)


def columns_of(target: str) -> list[str]:
    """Names in a target.

    >>> columns_of("months, death")
    ['months', 'death']
    """
    return [name.strip() for name in target.split(",") if name.strip()]


def comparable(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether some scan was seen for longer than another one's time of event."""
    events = [time for time, event in pairs if event == 1]
    return bool(events) and any(time > min(events) for time, _ in pairs)
