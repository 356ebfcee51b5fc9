"""The phases of a comparison: train the oracles, run the shared recipe, choose learning rates, run those."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medssl.comparison import tuning
from medssl.comparison.arms import ORACLE, SCRATCH, Arm, Run, Study, training_minutes
from medssl.comparison.jobs import Failure, Job
from medssl.comparison.record import record_plan, record_rates, study_of
from medssl.comparison.runs import Words, finish, job_of, trained_job, with_setting
from medssl.comparison.sources import weights_argument
from medssl.comparison.tables import STATES, clear_states, move_aside, note_edits, set_aside, write_tables
from medssl.encoders.weights import CARD
from medssl.training.initial_weights import read_initial_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from medssl.comparison.tuning import Grid
    from medssl.types import Note

log = logging.getLogger(__name__)

ORACLES = "oracles"  # folder of the oracles' runs


@dataclass(frozen=True)
class Work:
    """What all jobs of a comparison share.

    Attributes:
        out: Folder of the comparison.
        words: Options of all runs of ``finetune``, and of ``evaluate``.
        seed: Seed of the first run.
        jobs: Runs at the same time; None takes one per GPU, or one.
        lock: Held open by every process.
        keep: Whether the checkpoints of runs that are done stay.
    """

    out: Path
    words: Words
    seed: int
    jobs: int | None
    lock: Any
    keep: bool

    def finish(self, jobs: Mapping[str, Job], done: Callable[[str], str], title: str) -> dict[str, Failure] | int:
        """Runs jobs by their names; returns failures, or the exit code of a signal."""
        return finish(jobs, done, at_once=self.jobs, lock=self.lock, title=title)


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        held: What later commands must have alike (``record_plan``).
        options: What later commands may add, but not change.
        arms: Of this command, with their baselines.
        counts: Numbers of labeled subjects.
        runs: Runs for each arm and number of labels.
        grid: Settings to choose from; None compares the shared recipe alone.
        notes: What a reader of the results must know.
        trust: Import paths that cards may name.
    """

    held: dict[str, Any]
    options: dict[str, Any]
    arms: tuple[Arm, ...]
    counts: tuple[int, ...]
    runs: int
    grid: Grid | None
    notes: tuple[Note, ...]
    trust: Collection[str]

    def recorded_study(self, out: Path) -> Study:
        """Records the plan in ``compare.yaml``; returns its runs with those of earlier commands.

        Raises:
            UserError: The folder holds another comparison.
        """
        runs = [Run(arm, n, number) for number in range(self.runs) for n in self.counts for arm in self.arms]
        recorded = record_plan(out, self.held, self.arms, runs, self.options)
        return replace(study_of(out, recorded, self.arms, runs), notes=self.notes)


def conduct(work: Work, plan: Plan) -> tuple[Study, dict[str, Failure]] | int:
    """Does what is missing of a plan, in any state in which a former command was stopped.

    Returns:
        The study and the failures, or the exit code of a signal.
    """
    study = plan.recorded_study(work.out)
    failed: dict[str, Failure] = {}
    if "oracle" in plan.options:
        trained = train_oracles(work, study, plan.options["oracle"]["steps"], plan.trust)
        if isinstance(trained, int):
            return trained
        failed |= trained[1]
        plan = replace(plan, arms=(*plan.arms, *trained[0]))
        study = plan.recorded_study(work.out)
    if plan.grid is not None:
        plan.grid.write(work.out)
    note_edits(study, set_aside(study))
    shared = run_shared(work, study, plan.grid)
    if isinstance(shared, int):
        return shared
    failed |= shared
    if plan.grid is None:
        return study, failed
    chosen = run_chosen(work, study, plan.grid)
    return chosen if isinstance(chosen, int) else (chosen[0], failed | chosen[1])


def train_oracles(
    work: Work, study: Study, steps: int | None, trust: Collection[str]
) -> tuple[list[Arm], dict[str, Failure]] | int:
    """Trains an encoder with all labels for each from-scratch baseline of this command.

    Args:
        work: What the jobs share.
        study: Arms of the comparison.
        steps: Optimizer steps; None takes those of the recipe.
        trust: Import paths that cards may name.

    Returns:
        The arms of oracles that are trained and the failures, or the exit code of a signal.
    """
    baselines = [arm for arm in study.arms if arm.kind == "scratch" and arm.paths]
    names = {arm.name: f"{ORACLE}{arm.name.removeprefix(SCRATCH)}" for arm in baselines}
    jobs = {}
    for arm in baselines:
        folder = work.out.absolute() / ORACLES / names[arm.name]
        if (folder / CARD).exists() and not (folder / STATES).exists():
            continue
        words = (
            "finetune", *work.words[0], "--run", str(folder), "--pretrained", str(arm.paths[0].absolute()),
            "--from_scratch", "true", *weights_argument(arm), "--training.seed", str(work.seed),
        )  # fmt: skip
        words += ("--training.steps", str(steps)) if steps else ()
        jobs[names[arm.name]] = Job(names[arm.name], (words,), folder.with_name(f"{folder.name}.log"))

    def done(name: str) -> str:
        shutil.rmtree(work.out / ORACLES / name / STATES, ignore_errors=True)
        return ""

    failed = work.finish(jobs, done, "oracle")
    if isinstance(failed, int):
        return failed
    arms = []
    for arm in baselines:
        folder, name = work.out / ORACLES / names[arm.name], names[arm.name]
        if name in failed or not (folder / CARD).exists():
            continue
        initial = read_initial_weights(folder, None, from_scratch=False, trust=trust)
        arms.append(Arm(name, (folder,), arm.name, training_minutes(folder), (initial.digest,), "oracle"))
    return arms, failed


def run_shared(work: Work, study: Study, grid: Grid | None) -> dict[str, Failure] | int:
    """Runs the shared recipe, and with a grid every setting that has to be tried; tables are written after each."""
    runs: dict[str, tuple[Run, bool]] = {}  # and whether it is scored
    for run in study.requested:
        if not run.done(work.out):
            runs[str(run)] = run, True
        if grid is None or run.number >= grid.runs or run.labels in study.rates.get(run.arm.name, {}):
            continue
        for one in grid.candidates(run)[1:]:
            if not tuning.is_tried(one, work.out):
                runs[str(one)] = one, False
    jobs = {
        name: (job_of if scored else trained_job)(run, work.out, _words(work, run, grid), work.seed)
        for name, (run, scored) in runs.items()
    }

    def done(name: str) -> str:
        run, scored = runs[name]
        if not scored:
            tuning.mark_tried(run, work.out)
        return _written(work, study, run, grid)

    return _cleared(work, study, work.finish(jobs, done, "compare"))


def run_chosen(work: Work, study: Study, grid: Grid) -> tuple[Study, dict[str, Failure]] | int:
    """Chooses the setting of each arm, and trains and scores its runs with it.

    Returns:
        The study with the chosen settings and the failures, or the exit code of a signal.
    """
    chosen = tuning.choose(grid, study.requested, work.out)
    study = replace(study, rates=record_rates(work.out, chosen))
    tuning.write_tuning(grid, study.requested, study.rates, work.out)
    for arm, settings in chosen.items():
        texts = [f"{study.rates[arm][labels] or 'recipe'} at {labels}" for labels in settings]
        log.info(f"{arm}: chosen on validation subjects: {', '.join(texts)}")
    runs = {str(run): run for run in study.at_own_rate(study.requested) if run.setting and not run.done(work.out)}
    jobs = {name: job_of(run, work.out, _words(work, run, grid), work.seed) for name, run in runs.items()}
    failed = work.finish(jobs, lambda name: _written(work, study, runs[name], grid), "own rates")
    cleared = _cleared(work, study, failed)
    return cleared if isinstance(cleared, int) else (study, cleared)


def _words(work: Work, run: Run, grid: Grid | None) -> Words:
    """Options of a run, with those of its setting."""
    if not run.setting or grid is None:
        return work.words
    return with_setting(work.words, grid.file(work.out.absolute(), run.setting))


def _written(work: Work, study: Study, run: Run, grid: Grid | None) -> str:
    """Writes the tables after a run; returns the reason why the run does not count, or nothing."""
    if run.has_other_weights(work.out):
        return move_aside(run, work.out)
    write_tables(study)
    if grid is not None:
        tuning.write_tuning(grid, study.requested, study.rates, work.out)
    return ""


def _cleared(work: Work, study: Study, failed: dict[str, Failure] | int) -> dict[str, Failure] | int:
    """Removes the checkpoints of runs that are done; says how far it is if a signal stopped it."""
    if not work.keep:
        clear_states(study)
    if isinstance(failed, int):
        done = sum(run.done(work.out) for run in study.requested)
        log.info(
            f"stopped by a signal: {done} of {len(study.requested)} runs are done; run the same command to continue"
        )
    return failed
