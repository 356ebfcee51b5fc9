"""Whom weights have seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seen:
    """Subjects that weights have seen in pretraining.

    Attributes:
        known: Keyed digests of those that are known.
        complete: False where there may be others: first weights do not tell theirs, or they were left out on purpose.
    """

    known: tuple[str, ...] = ()
    complete: bool = True

    def __or__(self, other: Seen) -> Seen:
        """Whom weights have seen that come from both."""
        return Seen(tuple(sorted({*self.known, *other.known})), self.complete and other.complete)


def as_written(told: Any) -> Any:
    """What JSON tells of ``Seen``; older files have a list of all subjects, or null where none is known."""
    return {"known": told or [], "complete": told is not None} if told is None or isinstance(told, list) else told
