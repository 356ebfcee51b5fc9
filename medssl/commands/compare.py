"""The verb ``compare``: whether pretraining helps, and with how many labels.

Every encoder and its from-scratch baseline are fine-tuned with several numbers of labeled subjects, several times each
(other subjects, another seed), by one recipe, and scored on test subjects. Tables, pictures and verdicts are computed
from the runs each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from medssl.comparison.arms import Run, arms_of, encoders_of
from medssl.comparison.jobs import alone
from medssl.comparison.plan import (
    digest_of_scored,
    first_notes,
    initial_weights_of,
    known_subjects,
    label_counts,
    missing_notes,
    refuse_known,
    refuse_unscored,
)
from medssl.comparison.record import read_recorded, record_plan, study_of
from medssl.comparison.report import REPORT
from medssl.comparison.runs import common_words, finish, job_of
from medssl.comparison.summary import summarize
from medssl.comparison.tables import note_edits, set_aside
from medssl.data.index.scan_index import Index
from medssl.data.labels.selection import labeled_scans_of_index
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.heads.base import Head
from medssl.inference.predictor import Windows
from medssl.io.atomic_write import atomic_write
from medssl.io.permissions import owner_only
from medssl.io.trust import names, others_in
from medssl.training.configuration import as_data
from medssl.training.initial_weights import Allowed
from medssl.training.label_targets import schema_for
from medssl.training.optim import FineTuning
from medssl.training.settings import Examples, Training
from medssl.types import LabelSchema, Note, UserError
from medssl.views.mixing import Mixing

log = logging.getLogger(__name__)

LOCK = ".lock"


@dataclass(frozen=True)
class CompareResult:
    """Curves of encoders and of their baselines from scratch.

    Attributes:
        out: Folder of all runs, tables and pictures.
        summary: What ``summary.json`` holds; empty where a signal stopped the comparison.
        exit_code: 0; 1 where no encoder can be compared; 128 + the signal's number where a signal stopped it.
    """

    out: Path
    summary: dict[str, Any] = field(repr=False)
    exit_code: int = 0

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Verdict on each encoder."""
        return tuple(f"{one['arm']}: {one['verdict']}" for one in self.summary.get("compared", ()))

    @property
    def notes(self) -> tuple[Note, ...]:
        """What a reader of the results must know."""
        return tuple(Note(**note) for note in self.summary.get("notes", ()))

    @property
    def failed(self) -> dict[str, str]:
        """Reason of each run that failed."""
        return dict(self.summary.get("failed", {}))

    def _repr_markdown_(self) -> str:
        report = self.out / REPORT
        return report.read_text("utf-8") if self.summary and report.exists() else repr(self)


@owner_only()
def compare(  # noqa: PLR0913 (the keys of a command line)
    encoders: list[str],
    *,
    store: Path,
    index: Path,
    out: Path,
    head: Callable[[Encoder, LabelSchema], Head],
    data: Examples,
    training: Training,
    labels: tuple[int | float | None, ...],
    runs: int = 5,
    optimizer: FineTuning = FineTuning(),  # noqa: B008 (frozen)
    mixing: Mixing = Mixing(),  # noqa: B008 (frozen)
    split: str = "test",
    windows: Windows = Windows(),  # noqa: B008 (frozen)
    allow: tuple[Allowed, ...] = (),
    jobs: int | None = None,
    trust: str = "",
) -> CompareResult:
    """Fine-tune encoders and their from-scratch baselines with few labels, and test whether pretraining helps.

    The same command goes on where it was stopped; more encoders, numbers of labels and runs can be added later.

    Args:
        encoders: Run folders of ``medssl pretrain``; NAME=FOLDER sets the name, else that of the folder is taken.
            Encoders of different architecture have baselines of their own.
        store: Folder written by ``medssl cache``, with labels.
        index: Index file of the same scans, with the labels to score on.
        out: Folder of all runs, tables and pictures; created if missing.
        head: Head to train: a preset or an import path.
        data: Which labeled scans are used, and how.
        training: Length, batch size, precision and output of each run; the seed is that of the first run.
        labels: Numbers of labeled subjects (8), shares of them (0.25) or null for all, such as 2,4,8,null.
        runs: Runs per encoder and number of labels, at least 1, each with other labeled subjects and another seed. A
            verdict needs 5.
        optimizer: Optimizer, learning rates, layer decay and low-rank adaptation.
        mixing: Mixing of the samples of a batch (mixup, cutmix).
        split: Split to score.
        windows: Sliding windows: overlap, batch size, precision, device and mirroring.
        allow: Names, with commas. "seen" scores subjects that pretraining has seen; "channels" and "preprocess" as in
            ``medssl finetune``.
        jobs: Runs at the same time, at least 1; None takes one per GPU, or one.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        Curves and verdicts, and what failed.

    Raises:
        UserError: Something the user can put right before anything is trained.
    """
    if min(runs, 1 if jobs is None else jobs) < 1 or not labels:
        too_few = {"runs": runs < 1, "jobs": jobs is not None and jobs < 1, "labels": not labels}
        message = "at least 1 is needed"
        raise UserError(message, key=next(key for key, wrong in too_few.items() if wrong))
    folders, opened = encoders_of(encoders), Store.open(store)
    initial_weights = {
        name: initial_weights_of(name, folder, opened, optimizer, allow, names(trust), data.view.size)
        for name, folder in folders.items()
    }
    schema = schema_for(opened, data.target, head)
    seeds = [training.seed + number for number in range(runs)]
    counts = label_counts(opened, schema, data, labels, seeds)
    missing_classes = missing_notes(opened, schema, data, counts, seeds)
    with Index.open(index) as opened_index:
        scans = labeled_scans_of_index(opened_index, schema, split, None)
        refuse_unscored(scans, schema, split)
        if "seen" not in allow:
            refuse_known(scans, split, known_subjects(opened, data, initial_weights))
        scored = digest_of_scored(scans, opened_index.root)
    recipe = as_data({"head": head, "data": data, "training": training, "optimizer": optimizer, "mixing": mixing})
    held = {"store": opened.digest, "split": split, "scored": scored}
    held |= {"windows": as_data(windows)} | recipe
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(out / LOCK, f"{out}/") as lock:
        arms = list(arms_of(folders, initial_weights, read_recorded(out)))
        plan = [Run(arm, n, number) for number in range(runs) for n in counts for arm in arms]
        recorded = record_plan(out, held, arms, initial_weights, plan)
        notes = (*first_notes(data, optimizer), *missing_classes)
        study = replace(study_of(out, recorded, arms, plan), notes=notes)
        atomic_write(out / "recipe.yaml", lambda file: file.write(yaml.safe_dump(recipe, sort_keys=False).encode()))
        note_edits(study, set_aside(study))
        words = common_words(out, store, index, split, windows, allow, sorted(names(trust) | others_in(recipe)))
        missing = [job_of(run, out, words, training.seed) for run in plan if not run.done(out)]
        failed = finish(missing, study, jobs=jobs, lock=lock, keep=training.output.keep_every is not None)
    if isinstance(failed, int):
        return CompareResult(out, {}, exit_code=failed)
    summary = summarize(study, failed)
    return CompareResult(out, summary, exit_code=0 if summary["compared"] else 1)
