"""The curves, verdicts and notes of a comparison as Markdown, and the curves as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from medssl.metrics.label_efficiency import NAMES
from medssl.reporting.curves import Point, Series, line_chart

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from medssl.metrics.comparison import Difference
    from medssl.metrics.label_efficiency import Compared, Level
    from medssl.types import Note

REPORT, CURVE = "summary.md", "efficiency.svg"
NEGATIVE = NAMES["negative_mae"]


def markdown(
    curves: Mapping[str, Sequence[Level]],
    differences: Sequence[Compared],
    minutes: Mapping[str, Any],
    measure: str,
    notes: Sequence[Note] = (),
    settings: Mapping[str, Mapping[int, str]] | None = None,
) -> str:
    """The curves as a table, each verdict, the labels saved, the minutes, and notes.

    Args:
        curves: Levels of each arm, also at its own rate.
        differences: Each arm against its baseline.
        minutes: Of each curve.
        measure: Name of the measure.
        notes: What a reader must know.
        settings: Chosen setting of each tuned arm by the number of labeled subjects; "" is the recipe.
    """
    numbers = sorted({level.labels for levels in curves.values() for level in levels})
    rows = [[f"{measure} at labeled subjects", *map(str, numbers), "minutes"], ["---"] * (len(numbers) + 2)]
    for name, levels in curves.items():
        at = {level.labels: with_interval(level.value, level.low, level.high) for level in levels}
        before, finetuning = minutes[name]["pretraining"], minutes[name]["finetuning"]
        cost = "unknown + " if before is None else f"{before:.0f} + " if before else ""
        rows.append([name, *(at.get(n, "") for n in numbers), f"{cost}{finetuning:.0f}"])
    for name, chosen in (settings or {}).items():
        rows.append([f"setting of {name}", *((chosen[n] or "recipe") if n in chosen else "" for n in numbers), ""])
    for one in differences:
        gains = dict(zip(one.labels, zip(one.differences, one.p_values, strict=True), strict=True))
        rows.append([f"{one.arm} less {one.baseline}", *(gained(*gains[n]) if n in gains else "" for n in numbers), ""])
    rows += headroom_rows(differences, numbers)
    comparisons = sum(p is not None for one in differences for p in one.p_values)
    how = f"p-values are corrected for {comparisons} comparison{'s' * (comparisons > 1)}; " if comparisons else ""
    unit = ["Negative MAE is minus the mean absolute error, in the unit of the label."] if measure == NEGATIVE else []
    return "\n".join(
        [
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            *(f"{one.arm}: {'; '.join([one.verdict, *one.saved])}." for one in differences),
            *(
                f"{one.arm}: {count} test subjects without a score in some run are left out."
                for one in differences
                if (count := max(gain.left_out for gain in one.differences))
            ),
            f"Intervals of 95 % are over runs and test subjects; {how}"
            "minutes are those of pretraining + of all fine-tunings.",
            *unit,
            *map(str, notes),
            "",
        ]
    )


def headroom_rows(differences: Sequence[Compared], numbers: Sequence[int]) -> list[list[str]]:
    """The gain of each oracle over scratch, once for each baseline."""
    rows = {}
    for one in differences:
        sizes = {share.labels: share.oracle for share in one.headroom}
        if sizes:
            cells = [
                with_interval(sizes[n].value, sizes[n].low, sizes[n].high, "+") if n in sizes else "" for n in numbers
            ]
            rows[one.baseline] = [f"oracle less {one.baseline}", *cells, ""]
    return list(rows.values())


def gained(gain: Difference, p: float | None) -> str:
    """A difference with its interval and its p-value."""
    return with_interval(gain.value, gain.low, gain.high, "+") + ("" if p is None else f", p {p:.3g}")


def with_interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A number, with its interval if there is one; "-" if it is not defined."""
    if math.isnan(value):
        return "-"
    return f"{value:{sign}.3f}" + ("" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")


def drawn(curves: Mapping[str, Sequence[Level]], measure: str, dashed: Collection[str] = ()) -> str:
    """The label-efficiency curves as SVG; those of oracles are ``dashed``."""
    series = [
        Series(
            name,
            tuple(Point(level.labels, level.value, level.low, level.high) for level in levels),
            marked=True,
            dashed=name in dashed,
        )
        for name, levels in curves.items()
    ]
    title = f"{measure} over labeled subjects"
    return line_chart(series, title=title, x_label="labeled subjects", y_label=f"test {measure}", logarithmic=True)
