"""The tables of a comparison: ``runs.csv`` has a row for each run, ``cases.csv`` one for each run and test subject.

Nothing is read from them. They are written again from the runs, whatever was changed by hand in between.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

from medssl.comparison.arms import TEST, training_minutes
from medssl.io.csv_text import as_csv
from medssl.metrics.cases import write_text
from medssl.metrics.run_scores import read_trained
from medssl.metrics.tables import SUMMARY
from medssl.reporting.parts import METRICS, read_log
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from medssl.comparison.arms import Run, Study
    from medssl.metrics.label_efficiency import Trained

log = logging.getLogger(__name__)

STATES = "checkpoints"
RUNS, SCORES = "runs.csv", "cases.csv"
RUN_COLUMNS = ("arm", "labels", "run", "measure", "test", "validation", "best_step", "steps", "minutes")
CASE_COLUMNS = ("arm", "labels", "run", "subject_id", "score")
ASIDE = ".aside"  # suffix of the folder of a run that started from other weights


def write_tables(study: Study) -> list[Trained]:
    """Writes ``runs.csv`` and ``cases.csv`` of the runs that are done, and returns their scores."""
    trained, tables = tables_of(study)
    for name, rows in tables.items():
        write_text(study.out / name, as_csv(rows))
    return trained


def tables_of(study: Study) -> tuple[list[Trained], dict[str, list[tuple[Any, ...]]]]:
    """Scores of the runs that are done, and the rows of both tables, the names of the columns first."""
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
    """Excludes runs that are not to be used, logs the reason, and returns these runs.

    Runs that started from other weights than the comparison holds are moved away. Runs whose scores cannot be read
    count as not scored; their weights stay.
    """
    damaged = [run for run in (*study.requested, *study.earlier) if run.has_other_weights(study.out)]
    for run in damaged:
        again = "it is trained again" if run in study.requested else "it is left out until its encoder is named again"
        log.info(f"note: {run}: {move_aside(run, study.out)}; {again}")
    for run in study.done:
        try:
            trained_of(run, run.folder(study.out))
        except UserError as error:
            again = "is scored again" if run in study.requested else "is left out until its encoder is named again"
            log.info(f"note: {run}: {error}; the run {again}")
            shutil.rmtree(run.folder(study.out) / TEST)
            (run.folder(study.out) / TEST).mkdir()  # marks it as trained
            damaged.append(run)
    return damaged


def move_aside(run: Run, out: Path) -> str:
    """Moves away a run that started from other weights; returns the reason, without the names of folders."""
    folder = run.folder(out)
    aside = folder.with_name(f"{folder.name}{ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    folder.rename(aside)
    return (
        "it started from other weights than those that this comparison holds (does pretraining still write them?), "
        f"so it is not used, and lies in {aside.name}"
    )


def note_edits(study: Study, damaged: Sequence[Run] = ()) -> None:
    """Logs that lines of the tables that were changed, added, deleted or cut off by hand do not count.

    Args:
        study: Runs of the tables.
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
            log.info(f"note: {name} differs from the runs (lines: {edits}): it is written again from them")


def key_of(line: str) -> tuple[str, ...]:
    """Run and subject of a line of a table."""
    return tuple(line.split(",")[:4])


def trained_of(run: Run, folder: Path) -> Trained:
    """Scores of a run that is done.

    Raises:
        UserError: Its tables were damaged.
    """
    return read_trained((run.arm.name, run.labels, run.number), folder / TEST)


def clear_states(study: Study) -> None:
    """Removes the checkpoints of runs that are done: their weights stay, and they need no further training."""
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
