"""What a comparison says: tables, a picture and verdicts, all made of the runs that are done.

``runs.csv`` has a row for each run, ``cases.csv`` one for each run and test subject, ``summary.json`` and
``summary.md`` the curve of each arm and its difference from its twin, ``efficiency.svg`` the curves. Nothing is read
from them: they are written anew from the runs, whatever happened to them in between.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medssl.comparison.arms import TEST, record_looks, training_minutes
from medssl.io.csv_text import as_csv
from medssl.metrics import label_efficiency as efficiency
from medssl.metrics.cases import write_text
from medssl.metrics.label_efficiency import NAMES, Trained
from medssl.metrics.run_scores import read_trained
from medssl.metrics.tables import SUMMARY
from medssl.reporting.curves import Point, Series, line_chart
from medssl.reporting.parts import METRICS, read_log
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from medssl.comparison.arms import Arm, Run, Study
    from medssl.comparison.jobs import Failure
    from medssl.metrics.comparison import Difference
    from medssl.metrics.label_efficiency import Compared, Level

log = logging.getLogger(__name__)

STATES = "checkpoints"
RUNS, SCORES, REPORT, CURVE = "runs.csv", "cases.csv", "summary.md", "efficiency.svg"
RUN_COLUMNS = ("arm", "labels", "run", "measure", "test", "validation", "best_step", "steps", "minutes")
NEGATIVE = NAMES["negative_mae"]
CASE_COLUMNS = ("arm", "labels", "run", "subject_id", "score")
SHOWN = 5  # runs that a note names
ASIDE = ".aside"  # what the folder of a run is called that started from other weights


def write_tables(study: Study) -> list[Trained]:
    """Writes ``runs.csv`` and ``cases.csv`` of the runs that are done, and returns what they score."""
    trained, tables = tables_of(study)
    for name, rows in tables.items():
        write_text(study.out / name, as_csv(rows))
    return trained


def tables_of(study: Study) -> tuple[list[Trained], dict[str, list[tuple[Any, ...]]]]:
    """What the runs that are done score, and the rows of both tables, the names of the columns first."""
    done = study.done
    trained = [trained_of(run, run.folder(study.out)) for run in done]
    runs = [run_row(one, run.folder(study.out)) for one, run in zip(trained, done, strict=True)]
    cases = [
        (one.arm, one.labels, one.run, subject, "" if score is None else score)
        for one in trained
        for subject, score in one.scores.items()
    ]
    order = {arm.name: place for place, arm in enumerate(study.arms)}
    tables = {RUNS: (RUN_COLUMNS, runs), SCORES: (CASE_COLUMNS, cases)}
    return trained, {
        name: [columns, *sorted(rows, key=lambda row: (order[row[0]], *row[1:4]))]
        for name, (columns, rows) in tables.items()
    }


def set_aside(study: Study) -> list[Run]:
    """Leaves out what is not to be used, and says so; returns these runs.

    Those that started from other weights than the comparison holds are moved away; those whose scores cannot be read
    count as not scored, their weights stay.
    """
    damaged = [run for run in (*study.requested, *study.earlier) if run.has_other_weights(study.out)]
    for run in damaged:
        again = "it is trained again" if run in study.requested else "it is left out until its encoder is named again"
        log.info(f"note: {run}: {set_aside_strange(run, study.out)}; {again}")
    for run in study.done:
        try:
            trained_of(run, run.folder(study.out))
        except UserError as error:
            again = "is scored again" if run in study.requested else "is left out until its encoder is named again"
            log.info(f"note: {run}: {error}; the run {again}")
            shutil.rmtree(run.folder(study.out) / TEST)
            (run.folder(study.out) / TEST).mkdir()  # says that it is trained
            damaged.append(run)
    return damaged


def set_aside_strange(run: Run, out: Path) -> str:
    """Moves a run that started from other weights out of the way; returns what to say, without the names of folders."""
    folder = run.folder(out)
    aside = folder.with_name(f"{folder.name}{ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    folder.rename(aside)
    return (
        "it started from other weights than those that this comparison holds (does pretraining still write them?), "
        f"so it is not used, and lies in {aside.name}"
    )


def note_edits(study: Study, damaged: Sequence[Run] = ()) -> None:
    """Says of lines of the tables that were changed, added, deleted or cut off by hand that this does not count.

    Args:
        study: What the tables are of.
        damaged: Runs whose scores were set aside: their lines are no edits.
    """
    _, tables = tables_of(study)
    aside = {(run.arm.name, str(run.labels), str(run.number)) for run in damaged}
    for name, rows in tables.items():
        file = study.out / name
        if not file.exists():
            continue
        since = file.stat().st_mtime
        later = {  # a run that ended just before a kill is in no table yet
            (run.arm.name, str(run.labels), str(run.number))
            for run in study.done
            if (run.folder(study.out) / TEST / SUMMARY).stat().st_mtime > since
        }
        current = {key_of(line): line for line in as_csv(rows).splitlines()}
        text = file.read_text("utf-8-sig", errors="replace")  # as a spreadsheet may have left it
        lines = [line for line in text.splitlines() if key_of(line)[:3] not in aside]
        former = Counter(map(key_of, lines))
        counts = {
            "changed": sum(current.get(key_of(line), line) != line for line in lines),
            "added": sum(count - (key in current) for key, count in former.items()),
            "missing": sum(key not in former and key[:3] not in later for key in current),
        }
        if edits := ", ".join(f"{count} {what}" for what, count in counts.items() if count):
            log.info(f"note: {name} is not what the runs say (lines: {edits}): it is written anew from them")


def key_of(line: str) -> tuple[str, ...]:
    """Which run a line of a table is of, and whose score."""
    return tuple(line.split(",")[:4])


def summarize(study: Study, failed: Mapping[str, Failure]) -> dict[str, Any]:
    """Writes everything and shows what there is to know; returns what ``summary.json`` holds."""
    trained, out, wanted = write_tables(study), study.out, len(study.requested) + len(study.earlier)
    for name, why in failed.items():
        log.info(f"failed: {name}: {why.reason}")
    if failed:
        log.info(f"{len(failed)} of {len(study.requested)} runs failed; the same command tries them again")
    curves = {arm.name: levels for arm in study.arms if (levels := efficiency.levels(trained, arm.name))}
    differences = differences_of(study, trained)
    minutes = {arm.name: minutes_of(study, arm) for arm in study.arms}
    notes = [*notes_of(study, trained, differences)]
    notes += [f"Failed: {name}: {why.written}" for name, why in failed.items()]
    measure = NAMES[trained[0].measure] if trained else ""
    text = markdown(curves, differences, minutes, measure, notes) if trained else "\n".join([*notes, ""])
    write_text(out / REPORT, text)
    summary: dict[str, Any] = {
        **({"measure": measure} if trained else {}),
        "curves": {name: [asdict(level) for level in levels] for name, levels in curves.items()},
        "compared": [asdict(one) for one in differences],
        "minutes": minutes,
        "notes": notes,
        "failed": {name: why.written for name, why in failed.items()},
    }
    summary = finite(summary)
    write_text(out / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    drawable = any(math.isfinite(level.value) for levels in curves.values() for level in levels)
    if drawable:
        write_text(out / CURVE, drawn(curves, measure))
    else:
        (out / CURVE).unlink(missing_ok=True)
    log.info(text if trained else "\n".join(["no run is done", *notes]))
    if not differences:
        what = "no encoder has a run in common with its twin"
        if trained and not drawable:
            what = f"{measure} is not defined on these test subjects"
        log.info(f"error: {what}: nothing can be compared")
        return summary
    log.info(f"{out}: {len(trained)} of {wanted} runs; {RUNS}, {SCORES}, {REPORT}, {SUMMARY}, {CURVE}")
    return summary


def differences_of(study: Study, trained: Sequence[Trained]) -> list[Compared]:
    """Each arm against its twin, at every number of labeled subjects of the comparison."""
    twins = {arm.name: arm.twin for arm in study.arms if arm.twin}
    every = (*study.requested, *study.earlier)
    labels = {name: sorted({run.labels for run in every if run.arm.name == name}) for name in twins}
    return efficiency.compared(trained, twins, labels) if trained else []


def notes_of(study: Study, trained: Sequence[Trained], differences: Sequence[Compared]) -> list[str]:
    """What a reader of the results must know, beside what failed."""
    notes = [*study.notes, *notes_of_runs(trained), *notes_of_looks(study, differences)]
    without = {arm.name for arm in study.arms if arm.twin} - {one.arm for one in differences}
    notes += [f"{name} has no run in common with its twin." for name in sorted(without)] if differences else []
    if missing := [str(run) for run in study.earlier if not run.done(study.out)]:
        more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        notes.append(
            f"Left out: {len(missing)} runs that earlier commands asked for and did not finish "
            f"({'; '.join(missing[:SHOWN])}{more})."
        )
    return notes


def notes_of_runs(trained: Sequence[Trained]) -> list[str]:
    """What evaluations noted, each once; with the arms that it is true of where it is not true of all."""
    arms: dict[str, set[str]] = {}
    for one in trained:
        for note in one.notes:
            arms.setdefault(note, set()).add(one.arm)
    every = {one.arm for one in trained}
    return [note if names == every else f"{', '.join(sorted(names))}: {note}" for note, names in sorted(arms.items())]


def notes_of_looks(study: Study, differences: Sequence[Compared]) -> list[str]:
    """Records after how many runs p-values are shown now, and notes after how many they were shown earlier."""
    conclusive = {
        one.arm: {n: gain.runs for n, gain in zip(one.labels, one.differences, strict=True) if gain.conclusive}
        for one in differences
    }
    if not (earlier := record_looks(study.out, conclusive)):
        return []
    return [f"Looked at after {' and '.join(map(str, earlier))} runs: p-values do not know of the earlier looks."]


def finite(value: Any) -> Any:
    """The same with null in the place of every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trained_of(run: Run, folder: Path) -> Trained:
    """What a run that is done scores.

    Raises:
        UserError: Its tables were damaged.
    """
    return read_trained((run.arm.name, run.labels, run.number), folder / TEST)


def clear_states(study: Study) -> None:
    """Removes the trainer's states of runs that are done: their weights stay, and they need no further training."""
    for run in study.requested:
        if run.done(study.out):
            shutil.rmtree(run.folder(study.out) / STATES, ignore_errors=True)


def run_row(one: Trained, folder: Path) -> tuple[Any, ...]:
    """A row of ``runs.csv``; what is not defined or not known is empty."""
    metrics, minutes = read_log(folder / METRICS), training_minutes(folder)
    step, best = max(metrics.values(metrics.validation), key=lambda point: point[1], default=(math.nan, math.nan))
    steps = metrics.rows[-1]["step"] if metrics.rows else math.nan
    values = (round(one.value, 6), round(best, 6), step, steps, math.nan if minutes is None else round(minutes, 2))
    whole = {2, 3}  # places of numbers of steps
    shown = ["" if math.isnan(value) else int(value) if place in whole else value for place, value in enumerate(values)]
    return (one.arm, one.labels, one.run, one.measure, *shown)


def minutes_of(study: Study, arm: Arm) -> dict[str, float | None]:
    """Minutes of pretraining (0 from scratch, None where not known) and of all fine-tunings of an arm."""
    finetuning = [training_minutes(run.folder(study.out)) for run in study.done if run.arm.name == arm.name]
    return {"pretraining": arm.minutes, "finetuning": sum(one for one in finetuning if one is not None)}


def markdown(
    curves: Mapping[str, Sequence[Level]],
    differences: Sequence[Compared],
    minutes: Mapping[str, Any],
    what: str,
    notes: Sequence[str] = (),
) -> str:
    """The curves as a table, each verdict, what is saved, the cost, and notes."""
    numbers = sorted({level.labels for levels in curves.values() for level in levels})
    rows = [[f"{what} at labeled subjects", *map(str, numbers), "minutes"], ["---"] * (len(numbers) + 2)]
    for name, levels in curves.items():
        at = {level.labels: with_interval(level.value, level.low, level.high) for level in levels}
        before, finetuning = minutes[name]["pretraining"], minutes[name]["finetuning"]
        cost = "unknown + " if before is None else f"{before:.0f} + " if before else ""
        rows.append([name, *(at.get(n, "") for n in numbers), f"{cost}{finetuning:.0f}"])
    for one in differences:
        gains = dict(zip(one.labels, zip(one.differences, one.p_values, strict=True), strict=True))
        rows.append([f"{one.arm} less {one.twin}", *(gained(*gains[n]) if n in gains else "" for n in numbers), ""])
    comparisons = sum(p is not None for one in differences for p in one.p_values)
    how = f"p-values are corrected for {comparisons} comparison{'s' * (comparisons > 1)}; " if comparisons else ""
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
            *(["Negative MAE is minus the mean absolute error, in the unit of the label."] if what == NEGATIVE else []),
            *notes,
            "",
        ]
    )


def gained(gain: Difference, p: float | None) -> str:
    """A difference with its interval and its p-value."""
    return with_interval(gain.value, gain.low, gain.high, "+") + ("" if p is None else f", p {p:.3g}")


def with_interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A number, with its interval where there is one; "-" where it is not defined."""
    if math.isnan(value):
        return "-"
    return f"{value:{sign}.3f}" + ("" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")


def drawn(curves: Mapping[str, Sequence[Level]], what: str) -> str:
    """The label-efficiency curves as SVG."""
    series = [
        Series(name, tuple(Point(level.labels, level.value, level.low, level.high) for level in levels), marked=True)
        for name, levels in curves.items()
    ]
    title = f"{what} over labeled subjects"
    return line_chart(series, title=title, x_label="labeled subjects", y_label=f"test {what}", logarithmic=True)
