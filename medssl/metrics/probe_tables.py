"""Results of probes: ``probe.json``, and the same as a table for the console and as ``probe.csv``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medssl.io.csv_text import as_csv
from medssl.metrics.cases import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from medssl.metrics.bootstrap import Interval

COLUMNS = (
    "probe", "chosen", "validation", "measure", "value", "low", "high", "subjects", "deviation_over_draws", "note",
)  # fmt: skip


def entry(
    name: str,
    chosen: str,
    validation: float | None,
    metrics: Mapping[str, Interval],
    *,
    tried: Sequence[Sequence[float]] = (),
    deviations: Mapping[str, float | None] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One probe as ``probe.json`` holds it.

    Args:
        name: Of the probe.
        chosen: What was chosen on the validation scans, in words.
        validation: What it was chosen by.
        metrics: Measures on the test scans.
        tried: Everything that could have been chosen, with its validation measure at the end.
        deviations: Standard deviation of each measure over the draws of the probe.
        note: What a reader must know.
    """
    notes = {measure: interval.note for measure, interval in metrics.items()}
    return {
        "probe": name,
        "chosen": chosen,
        "validation": validation,
        "tried": [list(row) for row in tried],
        "metrics": {
            measure: {
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "subjects": interval.subjects,
                "deviation_over_draws": (deviations or {}).get(measure),
                "note": notes[measure],
            }
            for measure, interval in metrics.items()
        },
        "note": note,
    }


def write_table(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes a row for each probe and measure; numbers have every digit, an empty cell is not defined.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    rows: list[tuple[object, ...]] = [COLUMNS]
    for one in entries:
        for measure, values in one["metrics"].items():
            chosen = {key: one[key] for key in ("probe", "chosen", "validation")}
            note = "; ".join(filter(None, [one["note"], values["note"]]))
            row = {**chosen, "measure": measure, **values, "note": note}
            rows.append(tuple(row[name] for name in COLUMNS))
    write_text(path, as_csv(rows))


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The probes as aligned lines for the console: value [95 % interval] of each measure."""
    measures = list(dict.fromkeys(name for one in entries for name in one["metrics"]))
    rows = [["probe", "chosen", "validation", *measures]]
    for one in entries:
        chosen = "" if one["validation"] is None else f"{one['validation']:.3f}"
        rows.append([one["probe"], one["chosen"], chosen, *(_shown(one["metrics"].get(m)) for m in measures)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(values: Mapping[str, Any] | None) -> str:
    if values is None or values["value"] is None:
        return "-"
    bounds = "" if values["low"] is None else f" [{values['low']:.3f}, {values['high']:.3f}]"
    return f"{values['value']:.3f}{bounds}"
