"""Provenance of weights: the subjects that they were trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Subjects that weights were trained on without labels.

    Attributes:
        known: Keyed digests of those that are known.
        complete: False where there may be others: first weights do not tell theirs, or they were left out on purpose.
    """

    known: tuple[str, ...] = ()
    complete: bool = True

    def __or__(self, other: Provenance) -> Provenance:
        """Provenance of weights that come from both."""
        return Provenance(tuple(sorted({*self.known, *other.known})), self.complete and other.complete)


@dataclass(frozen=True)
class TrainingSubjects:
    """Subjects that a network was trained on.

    Attributes:
        labeled: Keyed digests of those that it was trained or validated on with labels.
        pretrained: Those that it was trained on without labels.
    """

    labeled: tuple[str, ...] = ()
    pretrained: Provenance = field(default_factory=Provenance)


def facts_of_json(value: Any) -> Any:
    """Fields of ``Provenance`` in JSON; older files have a list of all subjects, or null where none is known."""
    if value is None or isinstance(value, list):
        return {"known": value or [], "complete": value is not None}
    return value
