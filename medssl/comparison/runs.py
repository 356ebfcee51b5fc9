"""The runs of a comparison as jobs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.comparison.arms import TEST, Run
from medssl.comparison.jobs import Failure, Job, run_jobs
from medssl.comparison.sources import weights_argument
from medssl.comparison.tables import STATES
from medssl.encoders.weights import CARD
from medssl.inference.predictor import Windows
from medssl.training.configuration import as_data
from medssl.training.initial_weights import Allowed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


log = logging.getLogger(__name__)

Words = tuple[tuple[str, ...], tuple[str, ...]]  # options of ``finetune``, and of ``evaluate``


def common_words(
    out: Path, store: Path, index: Path, split: str, windows: Windows, allow: Sequence[Allowed], trust: Sequence[str]
) -> Words:
    """Options that all runs share: of ``finetune``, and of ``evaluate``; their logs show whole paths."""
    train = ["--config", str(out.absolute() / "recipe.yaml"), "--store", str(store.absolute())]
    score = ["--index", str(index.absolute()), "--split", split]
    score += [f"--windows.{key}={value}" for key, value in as_data(windows).items()]
    train += ["--allow", ",".join(allow)] if allow else []
    score += ["--allow", "seen"] if "seen" in allow else []
    both = ["--trust", ",".join(trust)] if trust else []
    return (*train, *both), (*score, *both)


def with_setting(words: Words, file: Path) -> Words:
    """Options of a run with a setting of the grid: its recipe follows the shared one and changes it."""
    train, score = words
    return (*train[:2], "--config", str(file), *train[2:]), score


def job_of(run: Run, out: Path, words: Words, seed: int) -> Job:
    """Fine-tunes, then scores; runs of one number share the labeled subjects and the seed."""
    folder = run.folder(out.absolute())
    train = trained_job(run, out, words, seed)
    judge = ("evaluate", str(folder), *words[1], "--out", str(folder / TEST))
    # scoring begins after training, and checkpoints are removed after scoring: then it is only scored again
    trained = (folder / CARD).exists() and (folder / TEST).is_dir() and not (folder / STATES).exists()
    return Job(train.name, (judge,) if trained else (*train.commands, judge), train.log)


def trained_job(run: Run, out: Path, words: Words, seed: int) -> Job:
    """Fine-tunes alone: for a run whose validation score chooses a learning rate."""
    folder, arm = run.folder(out.absolute()), run.arm
    assert arm.paths  # this command names it
    place = arm.paths[run.pretraining if arm.kind != "scratch" else 0]
    random = ("--from_scratch", "true") if arm.kind == "scratch" else ()
    tune = (
        "finetune", *words[0], "--run", str(folder), "--pretrained", str(place.absolute()), *weights_argument(arm),
        *random, "--labels", str(run.labels), "--training.seed", str(seed + run.number),
    )  # fmt: skip
    return Job(str(run), (tune,), folder.with_name(f"{folder.name}.log"))


def finish(
    jobs: Mapping[str, Job], done: Callable[[str], str], *, at_once: int | None, lock: Any, title: str = "compare"
) -> dict[str, Failure] | int:
    """Runs jobs.

    Args:
        jobs: The missing jobs, by name.
        done: Called with the name of each job that ended well; returns the reason why it does not count, or nothing.
        at_once: Runs at the same time; None takes one per GPU, or one.
        lock: Held open by every process.
        title: Title of the progress bar.

    Returns:
        The failures by job, or the exit code of a signal.
    """
    import torch
    from tqdm.auto import tqdm

    failed = dict[str, Failure]()
    if not jobs:
        return failed
    with tqdm(total=len(jobs), desc=title, unit="run") as bar:

        def ended(job: Job, why: Failure | None) -> None:
            bar.update()
            if not why and (reason := done(job.name)):
                why = Failure(reason, reason)
            if why:
                failed[job.name] = why
                log.info(f"failed: {job.name}: {why.reason}")

        number = run_jobs(list(jobs.values()), ended, at_once=at_once or max(1, torch.cuda.device_count()), lock=lock)
    return 128 + number if number else failed
