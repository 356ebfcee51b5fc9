"""The verb ``compare``: whether pretraining helps, and with how many labels.

Every encoder and its from-scratch baseline are fine-tuned with several numbers of labeled subjects, several times each
(other subjects, another seed), by one recipe, and scored on test subjects. Tables, pictures and verdicts are computed
from the runs each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medssl.comparison.arms import arms_of, encoders_of
from medssl.comparison.inputs import Conditions, fixed_precision, inputs_of, selection_of
from medssl.comparison.jobs import alone
from medssl.comparison.phases import Plan, Work, conduct
from medssl.comparison.record import read_recorded
from medssl.comparison.report import REPORT
from medssl.comparison.runs import common_words
from medssl.comparison.summary import summarize
from medssl.comparison.tuning import Tuning, grid_of
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.heads.base import Head
from medssl.inference.predictor import Windows
from medssl.io.atomic_write import atomic_write
from medssl.io.permissions import owner_only
from medssl.io.trust import names, others_in
from medssl.training.configuration import as_data
from medssl.training.initial_weights import Allowed
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
    tune: Tuning | None = None,
    oracle: bool = False,
    oracle_steps: int | None = None,
    against: tuple[str, ...] = (),
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
            NAME=FOLDER,FOLDER,FOLDER is one arm of several pretrainings with different seeds, which the runs take in
            turn. Encoders of different architecture have baselines of their own.
        store: Folder written by ``medssl cache``, with labels.
        index: Index file of the same scans, with the labels to score on.
        out: Folder of all runs, tables and pictures; created if missing.
        head: Head to train: a preset or an import path.
        data: Which labeled scans are used, and how.
        training: Length, batch size, precision and output of each run; the seed is that of the first run. Precision
            "auto" is fixed by the first command and stated in the results.
        labels: Numbers of labeled subjects (8), shares of them (0.25) or null for all, such as 2,4,8,null.
        runs: Runs per encoder and number of labels, at least 1, each with other labeled subjects and another seed. A
            verdict needs 5.
        optimizer: Optimizer, learning rates, layer decay and low-rank adaptation.
        tune: Grid from which each arm takes its own learning rate by validation subjects, with the same budget for
            every arm; the results then show both the rate of the recipe and the own rate. None compares at the rate of
            the recipe alone.
        oracle: Train an encoder with all labels of the training split as well: its gain over scratch is the headroom,
            and each verdict states the share of it that pretraining takes.
        oracle_steps: Optimizer steps of the oracle's encoder, at least 1; None takes those of the recipe.
        against: Weights of other programs to compare with, with commas: NAME=FILE@ENCODER with an encoder preset, or
            NAME=FILE.yaml with weights, encoder and spacing_mm.
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
    for key, count in {"runs": runs, "jobs": jobs, "labels": len(labels), "oracle_steps": oracle_steps}.items():
        if count is not None and count < 1:
            message = "at least 1 is needed"
            raise UserError(message, key=key)
    trusted, opened = names(trust), Store.open(store)
    grid = None if tune is None else grid_of(tune, optimizer, runs)
    conditions = Conditions(head, data, training, optimizer, mixing, split, windows, allow)
    inputs = inputs_of(encoders, against, opened, conditions, runs=runs, oracle=oracle, trust=trusted)
    selection = selection_of(opened, index, conditions, inputs, labels, runs=runs, oracle=oracle, grid=grid)
    recipe = conditions.recipe()
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(out / LOCK, f"{out}/") as lock:
        recorded = read_recorded(out)
        precision, precision_notes = fixed_precision(training, recorded)
        log_notes((*inputs.notes, *precision_notes))
        arms = tuple(arms_of(inputs.arms, inputs.initial_weights, recorded))
        held: dict[str, Any] = {
            "store": opened.digest,
            "split": split,
            "scored": selection.scored,
            "windows": as_data(windows),
        }
        held |= {"encoders": encoders_of(arms, inputs.initial_weights)} | recipe
        added = {"precision": precision if training.precision == "auto" != precision else None, "tune": as_data(tune)}
        added |= {"oracle": {"steps": oracle_steps} if oracle else None}
        options = {key: value for key, value in added.items() if value is not None}
        notes = (*inputs.notes, *precision_notes, *selection.notes)
        plan = Plan(held, options, arms, selection.counts, runs, grid, notes, trusted)
        atomic_write(out / "recipe.yaml", lambda file: file.write(yaml.safe_dump(recipe, sort_keys=False).encode()))
        words = common_words(out, store, index, split, windows, allow, sorted(trusted | others_in(recipe)))
        words = (*words[0], "--training.precision", precision), words[1]
        work = Work(out, words, training.seed, jobs, lock, keep=training.output.keep_every is not None)
        ended = conduct(work, plan)
    if isinstance(ended, int):
        return CompareResult(out, {}, exit_code=ended)
    summary = summarize(*ended)
    return CompareResult(out, summary, exit_code=0 if summary["compared"] else 1)


def log_notes(notes: Iterable[Note]) -> None:
    """Logs notes before anything is trained."""
    for note in notes:
        log.info(f"note: {note}")
