"""Results of probes and comparisons as parts of a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medssl.io.documents import read_json
from medssl.reporting.curves import Point, Series, line_chart
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROBE, STUDY = "probe.json", "compare.yaml"  # each tells what its folder is
SUMMARY = "summary.json"
PROBE_KEYS = ("target", "classes", "scans", "probes", "notes")
STUDY_KEYS = ("curves", "compared", "notes")


@dataclass(frozen=True)
class Probes:
    """Results of probes in a folder."""

    name: str
    summary: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Results of a comparison in a folder: arms with several runs each."""

    name: str
    summary: dict[str, Any]

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each arm, compared with its from-scratch baseline."""
        return [f"{arm['arm']}: {'; '.join([arm['verdict'], *arm['saved']])}." for arm in self.summary["compared"]]


def read_probes(name: str, folder: Path) -> Probes:
    """Reads the results of probes.

    Raises:
        UserError: The file is damaged.
    """
    return Probes(name, _read(folder / PROBE, PROBE_KEYS, "a probe"))


def read_study(name: str, folder: Path) -> Study:
    """Reads the results of a comparison.

    Raises:
        UserError: The comparison has not written its tables yet, or they are damaged.
    """
    return Study(name, _read(folder / SUMMARY, STUDY_KEYS, "a comparison"))


def _read(file: Path, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    try:
        summary = read_json(file)
    except (OSError, ValueError) as error:
        message = f"{file} cannot be read: {what} that has not ended? Its last step writes the file"
        raise UserError(message) from error
    missing = [key for key in keys if key not in summary] if isinstance(summary, dict) else list(keys)
    if missing:
        message = f"{file} lacks {', '.join(missing)}: expected the file of {what}"
        raise UserError(message)
    return dict(summary)


def shown_probes(probes: Probes) -> dict[str, Any]:
    """Values of the page's section on probes."""
    summary = probes.summary
    measures = list(dict.fromkeys(measure for probe in summary["probes"] for measure in probe["metrics"]))
    scans = ", ".join(f"{count} {split}" for split, count in summary["scans"].items())
    embedding = summary.get("embedding")
    notes = [f"skipped: {probe['probe']}: {probe['reason']}" for probe in summary.get("skipped", [])]
    if embedding:
        notes.append(
            f"Embedding of {embedding['scans']} scans: effective rank {embedding['effective_rank']:.1f} of at most "
            f"{min(embedding['scans'], embedding['features'])}, spread {embedding['spread']:.2f}."
        )
    return {
        "name": probes.name,
        "about": f"Frozen features, target {summary['target']} ({', '.join(summary['classes'])}); scans: {scans}.",
        "measures": measures,
        "rows": [
            (probe["probe"], probe["chosen"], [probe["metrics"].get(measure) for measure in measures])
            for probe in summary["probes"]
        ],
        "notes": [*notes, *summary["notes"]],
    }


def shown_study(study: Study) -> dict[str, Any]:
    """Values of the page's section on a comparison."""
    curves, measure = study.summary["curves"], study.summary.get("measure", "score")
    numbers = sorted({level["labels"] for levels in curves.values() for level in levels})
    rows = []
    for name, levels in curves.items():
        level_of = {level["labels"]: level for level in levels}
        rows.append((name, [level_of.get(number) for number in numbers]))
    return {
        "name": study.name,
        "what": measure,
        "verdicts": study.verdicts
        or ["Nothing can be compared: no encoder has a run in common with its from-scratch baseline."],
        "numbers": numbers,
        "rows": rows,
        "chart": _curve(curves, measure, study.summary.get("oracles", ())),
        "notes": [note["text"] if isinstance(note, dict) else note for note in study.summary["notes"]],
        "failed": list(study.summary.get("failed", {}).items()),
    }


def _curve(curves: dict[str, Any], measure: str, oracles: Sequence[str] = ()) -> str:
    """Label-efficiency curves as SVG, those of oracles dashed; "" if no score is defined."""
    from markupsafe import Markup

    series = [
        Series(
            name,
            tuple(Point(level["labels"], level["value"], level["low"], level["high"]) for level in scored_levels),
            marked=True,
            dashed=name.partition(",")[0] in oracles,
        )
        for name, levels in curves.items()
        if (scored_levels := [level for level in levels if level["value"] is not None])
    ]
    if not series:
        return ""
    title = f"{measure} over labeled subjects"
    return Markup(
        line_chart(series, title=title, x_label="labeled subjects", y_label=f"test {measure}", logarithmic=True)
    )
