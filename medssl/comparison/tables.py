"""The tables of a comparison: ``runs.csv`` has a row for each run, ``cases.csv`` one for each run and test subject.

Nothing is read from them. They are written again from the runs, whatever was changed by hand in between.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medssl.comparison.arms import OWN_RATE, TEST, training_minutes
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
RUN_COLUMNS = ("arm", "labels", "run", "setting", "measure", "test", "validation", "best_step", "steps", "minutes")
CASE_COLUMNS = ("arm", "labels", "run", "setting", "subject_id", "score")
KEY = 4  # columns that say which run a row is of
ASIDE = ".aside"  # suffix of the folder of a run that started from other weights


def write_tables(study: Study) -> list[Trained]:
    """Writes ``runs.csv`` and ``cases.csv`` of the runs that are done, and returns their scores (``scores_of``)."""
    for name, rows in tables_of(study).items():
        write_text(study.out / name, as_csv(rows))
    return scores_of(study)


def scores_of(study: Study) -> list[Trained]:
    """Scores of the runs that are done. Those at the own rate of an arm are of an arm with ``OWN_RATE`` in its name."""
    shared = [trained_of(run, run.folder(study.out)) for run in study.done]
    tuned = [trained_of(run, run.folder(study.out)) for run in study.tuned]
    return [*shared, *(replace(one, arm=f"{one.arm}{OWN_RATE}") for one in tuned)]


def tables_of(study: Study) -> dict[str, list[tuple[Any, ...]]]:
    """Rows of both tables, the names of the columns first; a run stands once, also where both rates are the same."""
    done = list(dict.fromkeys([*study.done, *study.tuned]))
    trained = [trained_of(run, run.folder(study.out)) for run in done]
    runs = [run_row(run, one, run.folder(study.out)) for run, one in zip(done, trained, strict=True)]
    cases = [
        (one.arm, one.labels, one.run, run.setting, subject, "" if score is None else score)
        for run, one in zip(done, trained, strict=True)
        for subject, score in one.scores.items()
    ]
    order = {arm.name: place for place, arm in enumerate(study.arms)}
    tables = {RUNS: (RUN_COLUMNS, runs), SCORES: (CASE_COLUMNS, cases)}
    return {
        name: [columns, *sorted(rows, key=lambda row: (order[row[0]], *row[1:5]))]
        for name, (columns, rows) in tables.items()
    }


def set_aside(study: Study) -> list[Run]:
    """Excludes runs that are not to be used, logs the reason, and returns these runs.

    Runs that started from other weights than the comparison holds are moved away. Runs whose scores cannot be read
    count as not scored; their weights stay.
    """
    requested = {*study.requested, *study.at_own_rate(study.requested)}
    every = (*study.requested, *study.earlier, *study.tuned)
    damaged = [run for run in dict.fromkeys(every) if run.has_other_weights(study.out)]
    for run in damaged:
        again = "it is trained again" if run in requested else "it is left out until its encoder is named again"
        log.info(f"note: {run}: {move_aside(run, study.out)}; {again}")
    for run in dict.fromkeys([*study.done, *study.tuned]):
        try:
            trained_of(run, run.folder(study.out))
        except UserError as error:
            again = "is scored again" if run in requested else "is left out until its encoder is named again"
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
    aside = {words_of(run) for run in damaged}
    for name, rows in tables_of(study).items():
        file = study.out / name
        if not file.exists():
            continue
        since = file.stat().st_mtime
        later = {  # a run that ended just before a kill is in no table yet
            words_of(run)
            for run in (*study.done, *study.tuned)
            if (run.folder(study.out) / TEST / SUMMARY).stat().st_mtime > since
        }
        current = {key_of(line): line for line in as_csv(rows).splitlines()}
        text = file.read_text("utf-8-sig", errors="replace")  # as a spreadsheet may have left it
        if text.splitlines()[:1] == [",".join(column for column in rows[0] if column != "setting")]:
            continue  # of 0.1.0, whose tables had no settings
        lines = [line for line in text.splitlines() if key_of(line)[:KEY] not in aside]
        former = Counter(map(key_of, lines))
        counts = {
            "changed": sum(current.get(key_of(line), line) != line for line in lines),
            "added": sum(count - (key in current) for key, count in former.items()),
            "missing": sum(key not in former and key[:KEY] not in later for key in current),
        }
        if edits := ", ".join(f"{count} {what}" for what, count in counts.items() if count):
            log.info(f"note: {name} differs from the runs (lines: {edits}): it is written again from them")


def key_of(line: str) -> tuple[str, ...]:
    """Run and subject of a line of a table."""
    return tuple(line.split(",")[: KEY + 1])


def words_of(run: Run) -> tuple[str, ...]:
    """The first cells of the rows of a run."""
    return run.arm.name, str(run.labels), str(run.number), run.setting


def trained_of(run: Run, folder: Path) -> Trained:
    """Scores of a run that is done.

    Raises:
        UserError: Its tables were damaged.
    """
    trained = read_trained((run.arm.name, run.labels, run.number), folder / TEST)
    return replace(trained, pretraining=run.pretraining)


def clear_states(study: Study) -> None:
    """Removes the checkpoints of runs that are done: their weights stay, and they need no further training."""
    for run in (*study.requested, *study.at_own_rate(study.requested)):
        if run.done(study.out):
            shutil.rmtree(run.folder(study.out) / STATES, ignore_errors=True)


def run_row(run: Run, one: Trained, folder: Path) -> tuple[Any, ...]:
    """A row of ``runs.csv``; what is not defined or not known is empty."""
    metrics, minutes = read_log(folder / METRICS), training_minutes(folder)
    step, best = max(metrics.values(metrics.validation), key=lambda point: point[1], default=(math.nan, math.nan))
    steps = metrics.rows[-1]["step"] if metrics.rows else math.nan
    values = (round(one.value, 6), round(best, 6), step, steps, math.nan if minutes is None else round(minutes, 2))
    whole = {2, 3}  # places of numbers of steps
    shown = ["" if math.isnan(value) else int(value) if place in whole else value for place, value in enumerate(values)]
    return (one.arm, one.labels, one.run, run.setting, one.measure, *shown)
