"""What a comparison says: tables, a picture and verdicts, all made of the runs that are done.

``runs.csv`` has a row for each run, ``cases.csv`` one for each run and test subject, ``summary.json`` and
``summary.md`` the curve of each arm and its difference from its twin, ``efficiency.svg`` the curves. Nothing is read
from them: they are written anew from the runs, whatever happened to them in between.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.evaluate import efficiency
from medssl.evaluate.bootstrap import subject_means
from medssl.evaluate.cases import (
    CASES,
    read_classification,
    read_multi_label,
    read_regression,
    read_segmentation,
    scan_scores,
    write_text,
)
from medssl.evaluate.classification import auroc, metrics
from medssl.evaluate.compare import pseudo_values
from medssl.evaluate.efficiency import NAMES, Trained
from medssl.evaluate.multi_label import findings_arrays, mean_of_findings, of_finding
from medssl.evaluate.tables import SUMMARY, read_summary
from medssl.report.curves import Point, Series, line_chart
from medssl.report.parts import METRICS, read_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from medssl.engine.compare import Arm, Run
    from medssl.evaluate.compare import Difference
    from medssl.evaluate.efficiency import Compared, Level

RUNS, SCORES, REPORT, CURVE = "runs.csv", "cases.csv", "summary.md", "efficiency.svg"
RUN_COLUMNS = ("arm", "labels", "run", "measure", "test", "validation", "best_step", "steps", "minutes")
NEGATIVE = NAMES["negative_mae"]
CASE_COLUMNS = ("arm", "labels", "run", "subject_id", "score")


def write_tables(out: Path, arms: Sequence[Arm], plan: Sequence[Run]) -> list[Trained]:
    """Writes ``runs.csv`` and ``cases.csv`` of the runs that are done, and returns what they score."""
    trained, tables = tables_of(out, arms, plan)
    for name, rows in tables.items():
        write_text(out / name, as_csv(rows))
    return trained


def tables_of(
    out: Path, arms: Sequence[Arm], plan: Sequence[Run]
) -> tuple[list[Trained], dict[str, list[tuple[Any, ...]]]]:
    """What the runs that are done score, and the rows of both tables, the names of the columns first."""
    done = [run for run in plan if run.done(out)]
    trained = [trained_of(run, run.folder(out)) for run in done]
    runs = [run_row(one, run.folder(out)) for one, run in zip(trained, done, strict=True)]
    cases = [
        (one.arm, one.labels, one.run, subject, "" if score is None else score)
        for one in trained
        for subject, score in one.scores.items()
    ]
    order = {arm.name: place for place, arm in enumerate(arms)}
    found = {RUNS: (RUN_COLUMNS, runs), SCORES: (CASE_COLUMNS, cases)}
    return trained, {
        name: [columns, *sorted(rows, key=lambda row: (order[row[0]], *row[1:4]))]
        for name, (columns, rows) in found.items()
    }


def note_edits(out: Path, arms: Sequence[Arm], plan: Sequence[Run]) -> None:
    """Says of lines of the tables that were changed by hand that they do not count."""
    _, tables = tables_of(out, arms, plan)
    for name, rows in tables.items():
        if not (out / name).exists():
            continue
        then, now = (  # by the first four columns: which run, and whose score
            {tuple(line.split(",")[:4]): line for line in text.splitlines()}
            for text in ((out / name).read_text("utf-8"), as_csv(rows))
        )
        changed = sum(key in then and then[key] != line for key, line in now.items())
        if changed:
            print(f"note: {changed} lines of {name} are not what the runs say: it is written anew from them")


def tell(out: Path, arms: Sequence[Arm], plan: Sequence[Run], failed: Mapping[str, str]) -> int:
    """Writes everything, prints what there is to know; returns the exit code."""
    trained = write_tables(out, arms, plan)
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    if failed:
        print(f"{len(failed)} of {len(plan)} runs failed; the same command tries them again")
    curves = {arm.name: own for arm in arms if (own := efficiency.levels(trained, arm.name))}
    found = efficiency.compared(trained, {arm.name: arm.twin for arm in arms if arm.twin}) if trained else []
    minutes = {arm.name: minutes_of(out, arm, plan) for arm in arms}
    text = markdown(curves, found, minutes, NAMES[trained[0].measure]) if trained else ""
    write_text(out / REPORT, text)
    summary = {
        "curves": {name: [asdict(level) for level in own] for name, own in curves.items()},
        "compared": [asdict(one) for one in found],
        "minutes": minutes,
        "failed": dict(failed),
    }
    write_text(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    if curves:
        write_text(out / CURVE, drawn(curves, NAMES[trained[0].measure]))
    print(text or "no run is done")
    if not found:
        print("error: no encoder has a run in common with its twin: nothing can be compared")
        return 1
    print(f"{out}: {len(trained)} of {len(plan)} runs; {RUNS}, {SCORES}, {REPORT}, {SUMMARY}, {CURVE}")
    return 0


def trained_of(run: Run, folder: Path) -> Trained:
    """What a run that is done scores.

    Raises:
        UserError: Its tables were damaged.
    """
    summary, file = read_summary(folder / "test" / SUMMARY), folder / "test" / CASES
    what = (run.arm.name, run.labels, run.number)
    if summary["kind"] == "segmentation":
        rows = read_segmentation(file)
        subject_of = {row.scan_id: row.subject_id for row in rows}
        scores = scan_scores(rows)
        means = subject_means(list(scores.values()), [subject_of[scan_id] for scan_id in scores])
        known = [value for value in means.values() if value is not None]
        return Trained(*what, "dice", sum(known) / len(known) if known else math.nan, means)
    if summary["kind"] == "regression":
        numbers = read_regression(file)
        errors = [-abs(row.predicted - row.truth) for row in numbers]  # more is better, as of every measure here
        means = subject_means(errors, [row.subject_id for row in numbers])
        known = [value for value in means.values() if value is not None]
        return Trained(*what, "negative_mae", sum(known) / len(known), means)
    if summary["kind"] == "multi_label":
        asked, names = read_multi_label(file)
        found = findings_arrays(asked, names)
        every = sum(of_finding(auroc, number, *found) is not None for number in range(len(names)))
        return by_auroc(what, partial(mean_of_findings, auroc, every=every), found, [row.subject_id for row in asked])
    answers, names = read_classification(file)
    truth = np.array([names.index(row.truth) for row in answers])
    probabilities, measure = np.array([row.probabilities for row in answers]), metrics(names)["auroc"]
    return by_auroc(what, measure, (probabilities, truth), [row.subject_id for row in answers])


def by_auroc(
    what: tuple[str, int, int],
    measure: Callable[..., float | None],
    found: tuple[np.ndarray, np.ndarray],
    subjects: Sequence[str],
) -> Trained:
    """What a run scores by a measure of all scans at once: what each subject adds to it.

    Args:
        what: Arm, labelled subjects and number of the run.
        measure: Of probabilities and truth.
        found: Probabilities and truth of each scan.
        subjects: Subject of each scan.
    """
    whole = measure(*found)
    added = pseudo_values(lambda places: measure(*(array[places] for array in found)), subjects)
    scores = {subject: None if math.isnan(value) else value for subject, value in added.items()}
    return Trained(*what, "auroc", math.nan if whole is None else whole, scores)


def run_row(one: Trained, folder: Path) -> tuple[Any, ...]:
    """A row of ``runs.csv``."""
    log = read_log(folder / METRICS)
    step, best = max(log.values(log.validation), key=lambda point: point[1], default=(math.nan, math.nan))
    steps = log.rows[-1]["step"] if log.rows else math.nan
    found = (round(one.value, 6), round(best, 6), int(step), int(steps), round(training_minutes(folder), 2))
    return (one.arm, one.labels, one.run, one.measure, *found)


def training_minutes(folder: Path) -> float:
    """Minutes of training: steps times the median time of one, so that a stop in between does not count."""
    log = read_log(folder / METRICS)
    seconds = [value for _, value in log.values("seconds")]
    return median(seconds) * log.rows[-1]["step"] / 60 if seconds else 0.0


def minutes_of(out: Path, arm: Arm, plan: Sequence[Run]) -> dict[str, float]:
    """Minutes of pretraining (0 from scratch) and of all fine-tunings of an arm."""
    tuned = [training_minutes(run.folder(out)) for run in plan if run.arm.name == arm.name and run.done(out)]
    return {"pretraining": training_minutes(arm.folder) if arm.twin else 0.0, "finetuning": sum(tuned)}


def markdown(
    curves: Mapping[str, Sequence[Level]], found: Sequence[Compared], minutes: Mapping[str, Any], what: str
) -> str:
    """The curves as a table, each verdict, what is saved, and the cost."""
    numbers = sorted({level.labels for own in curves.values() for level in own})
    rows = [[f"{what} at labelled subjects", *map(str, numbers), "minutes"], ["---"] * (len(numbers) + 2)]
    for name, own in curves.items():
        at = {level.labels: with_interval(level.value, level.low, level.high) for level in own}
        before, tuned = minutes[name]["pretraining"], minutes[name]["finetuning"]
        rows.append(
            [name, *(at.get(n, "") for n in numbers), f"{before:.0f} + {tuned:.0f}" if before else f"{tuned:.0f}"]
        )
    for one in found:
        gains = dict(zip(one.labels, zip(one.differences, one.p_values, strict=True), strict=True))
        rows.append([f"{one.arm} less {one.twin}", *(gained(*gains[n]) if n in gains else "" for n in numbers), ""])
    comparisons = sum(p is not None for one in found for p in one.p_values)
    return "\n".join(
        [
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            *(f"{one.arm}: {'; '.join([one.verdict, *one.saved])}." for one in found),
            *(
                f"{one.arm}: {count} test subjects without a score in some run are left out."
                for one in found
                if (count := max(gain.left_out for gain in one.differences))
            ),
            f"Intervals of 95 % are over runs and test subjects; p-values are corrected for {comparisons} comparisons; "
            "minutes are those of pretraining + of all fine-tunings.",
            *(["Negative MAE is minus the mean absolute error, in the unit of the label."] if what == NEGATIVE else []),
            "",
        ]
    )


def gained(gain: Difference, p: float | None) -> str:
    """A difference with its interval and its p-value."""
    return with_interval(gain.value, gain.low, gain.high, "+") + ("" if p is None else f", p {p:.3g}")


def with_interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A number, with its interval where there is one."""
    return f"{value:{sign}.3f}" + ("" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")


def drawn(curves: Mapping[str, Sequence[Level]], what: str) -> str:
    """The label-efficiency curves as SVG."""
    series = [
        Series(name, tuple(Point(level.labels, level.value, level.low, level.high) for level in own), marked=True)
        for name, own in curves.items()
    ]
    title = f"{what} over labelled subjects"
    return line_chart(series, title=title, x_label="labelled subjects", y_label=f"test {what}", logarithmic=True)


def as_csv(rows: Sequence[tuple[Any, ...]]) -> str:
    """A table as text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
