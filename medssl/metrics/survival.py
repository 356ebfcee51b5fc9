"""How well predicted risks put the times of events in order.

    c_index   share of the pairs that can be put in order in which the scan with the earlier event has the higher risk;
              equal risks count one half (Harrell et al., Evaluating the yield of medical tests, JAMA 1982)

A pair can be put in order where the event of one was seen before the time of the other, or at that time while the other
was last seen then without it. 0.5 is chance, 1 is perfect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.metrics.bootstrap import statistic_interval
from medssl.metrics.cases import read_lines, refuse_twice, write_rows
from medssl.metrics.tables import entry, grouped, interval_notes, refuse_nothing
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float

COLUMNS = ("scan_id", "subject_id", "time", "event", "risk")


@dataclass(frozen=True)
class SurvivalRow:
    """Time, event (1 seen, 0 censored) and predicted risk of one scan."""

    scan_id: str
    subject_id: str
    time: float
    event: int
    risk: float

    @property
    def truth(self) -> tuple[float, int]:
        """Time and event."""
        return self.time, self.event


def c_index(risk: Float[np.ndarray, "N"], time: Float[np.ndarray, "N"], event: Float[np.ndarray, "N"]) -> float | None:
    """Harrell's C-index; None where no pair can be put in order.

    >>> c_index(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]))
    1.0
    """
    seen = event == 1
    later = (time[None] > time[seen][:, None]) | ((time[None] == time[seen][:, None]) & ~seen[None])
    count = int(later.sum())
    if not count:
        return None
    higher, equal = risk[seen][:, None] > risk[None], risk[seen][:, None] == risk[None]
    return float(((higher & later).sum() + 0.5 * (equal & later).sum()) / count)


def write_survival(path: Path, rows: Sequence[SurvivalRow]) -> None:
    """Writes times, events and risks.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    write_rows(path, COLUMNS, [(row.scan_id, row.subject_id, row.time, row.event, row.risk) for row in rows])


def read_survival(path: Path) -> list[SurvivalRow]:
    """Reads times, events and risks back.

    Raises:
        UserError: No such file, no rows, a column that is missing, a number that is none, or a scan that stands twice.
    """
    rows = [
        SurvivalRow(
            line.cells["scan_id"],
            line.cells["subject_id"],
            line.number("time"),
            int(line.number("event", highest=1)),
            line.number("risk", lowest=-np.inf),
        )
        for line in read_lines(path, COLUMNS)
    ]
    refuse_twice(rows, f"{path}: ")
    return rows


def arrays_of(rows: Sequence[SurvivalRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risks, times and events of rows.

    Raises:
        UserError: A risk that is not finite.
    """
    risk, time, event = (np.array([getattr(row, name) for row in rows], float) for name in ("risk", "time", "event"))
    wrong = ~np.isfinite(risk)
    if wrong.any():
        message = f"{wrong.sum()} of {len(rows)} scans have risks that are not finite "
        message += f"({rows[int(np.argmax(wrong))].scan_id}, ...)"
        raise UserError(message)
    return risk, time, event


def summarize_survival(
    rows: Sequence[SurvivalRow],
    name: str,
    *,
    skipped: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (),
    by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sums up predicted risks, as ``summary.json`` holds them.

    Args:
        rows: A row for each scan.
        name: Columns of time and event.
        skipped: Identifier and reason of each scan that was not scored.
        notes: What a reader must know.
        by: What was evaluated and on what.

    Raises:
        UserError: No rows, a scan that stands twice, or a risk that is not finite.
    """
    skipped = list(skipped)
    refuse_nothing(rows, skipped)
    refuse_twice(rows)
    risk, time, event = arrays_of(rows)
    subjects = [row.subject_id for row in rows]
    interval = statistic_interval(lambda places: c_index(risk[places], time[places], event[places]), subjects)
    undefined = {"c_index": "not defined: no two scans can be put in order"} if interval.value is None else {}
    return {
        "kind": "survival",
        "classes": [name],
        "scans": len(rows),
        "subjects": len(set(subjects)),
        "metrics": {"c_index": entry(interval)},
        "counts": {"scans": {"with event": int(event.sum()), "censored": int((1 - event).sum())}},
        "skipped": [{"scan_id": scan_id, "reason": why} for scan_id, why in skipped],
        "notes": [*notes, *grouped(undefined), *interval_notes({} if undefined else {"c_index": interval})],
        "by": dict(by or {}),
    }
