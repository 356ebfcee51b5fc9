"""The runs of a comparison as jobs, and their states when they are done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.comparison.arms import TEST, Run, Study
from medssl.comparison.jobs import Failure, Job, run_jobs
from medssl.comparison.tables import STATES, clear_states, move_aside, write_tables
from medssl.encoders.weights import CARD
from medssl.inference.predictor import Windows
from medssl.training.configuration import as_data
from medssl.training.initial_weights import Allowed

if TYPE_CHECKING:
    from collections.abc import Sequence


log = logging.getLogger(__name__)


def common_words(
    out: Path, store: Path, index: Path, split: str, windows: Windows, allow: Sequence[Allowed], trust: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options that all runs share: of ``finetune``, and of ``evaluate``; their logs show whole paths."""
    train = ["--config", str(out.absolute() / "recipe.yaml"), "--store", str(store.absolute())]
    score = ["--index", str(index.absolute()), "--split", split]
    score += [f"--windows.{key}={value}" for key, value in as_data(windows).items()]
    train += ["--allow", ",".join(allow)] if allow else []
    score += ["--allow", "seen"] if "seen" in allow else []
    both = ["--trust", ",".join(trust)] if trust else []
    return (*train, *both), (*score, *both)


def job_of(run: Run, out: Path, words: tuple[tuple[str, ...], tuple[str, ...]], seed: int) -> Job:
    """Fine-tunes, then scores; runs of one number share the labeled subjects and the seed."""
    folder, (train, score) = run.folder(out.absolute()), words
    assert run.arm.folder is not None  # this command names it
    weights = () if run.arm.baseline else ("--from_scratch", "true")
    tune = (
        "finetune", *train, "--run", str(folder), "--pretrained", str(run.arm.folder.absolute()), *weights,
        "--labels", str(run.labels), "--training.seed", str(seed + run.number),
    )  # fmt: skip
    judge = ("evaluate", str(folder), *score, "--out", str(folder / TEST))
    # scoring begins after training, and checkpoints are removed after scoring: then it is only scored again
    trained = (folder / CARD).exists() and (folder / TEST).is_dir() and not (folder / STATES).exists()
    return Job(str(run), (judge,) if trained else (tune, judge), folder.with_name(f"{folder.name}.log"))


def finish(
    missing: Sequence[Job], study: Study, *, jobs: int | None, lock: Any, keep: bool
) -> dict[str, Failure] | int:
    """Runs the missing jobs and writes the tables after each.

    Args:
        missing: The jobs.
        study: The study that they belong to.
        jobs: Runs at the same time.
        lock: Held open by every process.
        keep: Whether the checkpoints of runs that are done stay.

    Returns:
        The failures by run, or the exit code of a signal.
    """
    import torch
    from tqdm.auto import tqdm

    failed, runs = dict[str, Failure](), {str(run): run for run in study.requested}
    total = len(study.requested)
    with tqdm(total=total, initial=total - len(missing), desc="compare", unit="run") as bar:

        def done(job: Job, why: Failure | None) -> None:
            bar.update()
            if not why and runs[job.name].has_other_weights(study.out):
                reason = move_aside(runs[job.name], study.out)
                why = Failure(reason, reason)
            if why:
                failed[job.name] = why
                log.info(f"failed: {job.name}: {why.reason}")
            else:
                write_tables(study)
                if not keep:
                    clear_states(study)

        number = run_jobs(missing, done, at_once=jobs or max(1, torch.cuda.device_count()), lock=lock)
    if not keep:
        clear_states(study)
    if not number:
        return failed
    finished = sum(run.done(study.out) for run in study.requested)
    counts = f"{finished} of {len(study.requested)} runs are done"
    log.info(f"stopped by a signal: {counts}; run the same command to continue")
    return 128 + number
