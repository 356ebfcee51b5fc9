"""What a reader of results must know, with a kind that a program can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoteKind = Literal["leak", "skipped", "precision", "guess", "missing", "memory", "other"]


@dataclass(frozen=True)
class Note:
    """A remark on a result.

    Attributes:
        kind: "leak": scans that are scored may have been trained on; "skipped": scans or parts left out;
            "precision": numbers are less exact than asked for; "guess": a value was assumed; "missing": something that
            was expected is not there; "memory": less memory than needed; "other".
        text: The remark, as one or more sentences.
    """

    kind: NoteKind
    text: str

    def __str__(self) -> str:
        return self.text
