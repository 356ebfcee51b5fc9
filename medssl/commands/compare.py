"""The verb ``compare``: did pretraining help, with how many labels, and is that sure?

Every encoder and its twin from scratch are fine-tuned with several numbers of labeled subjects, several times each
(other subjects, another seed), by one recipe, and scored on subjects that none has seen. The runs are what is kept;
tables, pictures and verdicts are made of them anew each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medssl.comparison.arms import TEST, Run, Study, arms_of, encoders_of, hold, read_kept, study_of
from medssl.comparison.jobs import Failure, Job, alone, run_jobs
from medssl.comparison.summary import STATES, clear_states, note_edits, set_aside, set_aside_strange, tell, write_tables
from medssl.data.index.scan_index import Index
from medssl.data.index.split import overlap
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.selection import few, how_many, labeled_scans, labeled_scans_of_index
from medssl.data.labels.trained_on import trained_on
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.encoders.weights import CARD
from medssl.heads.base import Head
from medssl.inference.predictor import Windows
from medssl.io.atomic_write import atomic_write
from medssl.io.trust import names, others_in
from medssl.metrics.run_scores import FEWEST, judged
from medssl.training import describe
from medssl.training import initial_weights as start
from medssl.training.axes import open_store
from medssl.training.initial_weights import Allowed, Start
from medssl.training.label_targets import schema_for
from medssl.training.optim import FineTuning
from medssl.training.settings import Examples, Training
from medssl.types import LabelSchema, UserError
from medssl.views.mixing import Mixing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from medssl.types import Scan

log = logging.getLogger(__name__)

LOCK = ".lock"


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
) -> int:
    """Fine-tunes encoders and their twins from scratch with few labels, and says whether pretraining helped.

    The same command goes on where it was stopped; more encoders, numbers of labels and runs can be added later.

    Args:
        encoders: Run folders of medssl pretrain; NAME=FOLDER gives a name, else the folder's is taken. Each encoder
            that differs in its layers has a twin of its own.
        store: Folder made by medssl cache, with labels.
        index: Index of the same scans, with the labels that are scored.
        out: Folder of all runs, tables and pictures.
        head: What answers: a name in configs/heads, or a class.
        data: Which labeled scans are learned from, and how.
        training: How long and how large; the seed is the one of the first run.
        labels: Numbers of labeled subjects (8), shares of them (0.25) or null for all, such as 2,4,8,null.
        runs: Runs of each arm and number, each with other labeled subjects and another seed; a verdict takes 5.
        optimizer: How weights move.
        mixing: Whether the samples of a batch are mixed.
        split: Split whose scans are scored.
        windows: How a scan that is scored is gone through.
        allow: "seen" scores subjects that pretraining has seen, "channels" and "preprocess" as in medssl finetune.
        jobs: Runs side by side; null takes one for each GPU, or one.
        trust: Classes of cards that may run although they are none of medssl's, by import path, several with commas.

    Returns:
        0; 1 where no encoder can be compared with its twin; 128 + the signal's number where a signal stopped it.

    Raises:
        UserError: Something the user can put right before anything is trained.
    """
    os.umask(0o077)
    if min(runs, 1 if jobs is None else jobs) < 1 or not labels:
        message = f"runs is {runs}, jobs {jobs}, labels {list(labels)}: give at least 1 of each"
        raise UserError(message)
    folders, opened = encoders_of(encoders), Store.open(store)
    starts = {
        name: begin_of(name, folder, opened, optimizer, allow, names(trust), data.view.size)
        for name, folder in folders.items()
    }
    schema = schema_for(opened, data.target, head)
    seeds = [training.seed + number for number in range(runs)]
    counts = counts_of(opened, schema, data, labels, seeds)
    rare = missing_notes(opened, schema, data, counts, seeds)
    with Index.open(index) as known:
        scans = labeled_scans_of_index(known, schema, split, None)
        refuse_unscored(scans, schema, split)
        if "seen" not in allow:
            refuse_known(scans, split, known_subjects(opened, data, starts))
        scored = digest_of(scans, known.root)
    recipe = describe.plain(
        {"head": head, "data": data, "training": training, "optimizer": optimizer, "mixing": mixing}
    )
    held = {"store": opened.digest, "split": split, "scored": scored}
    held |= {"windows": describe.plain(windows)} | recipe
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(out / LOCK, f"{out}/") as lock:
        arms = list(arms_of(folders, starts, read_kept(out)))
        plan = [Run(arm, n, number) for number in range(runs) for n in counts for arm in arms]
        kept = hold(out, held, arms, starts, plan)
        study = replace(study_of(out, kept, arms, plan), notes=(*first_notes(data, optimizer), *rare))
        atomic_write(out / "recipe.yaml", lambda file: file.write(yaml.safe_dump(recipe, sort_keys=False).encode()))
        note_edits(study, set_aside(study))
        words = common_words(out, store, index, split, windows, allow, sorted(names(trust) | others_in(recipe)))
        missing = [job_of(run, out, words, training.seed) for run in plan if not run.done(out)]
        failed = finish(missing, study, jobs=jobs, lock=lock, keep=training.output.keep_every is not None)
    return failed if isinstance(failed, int) else tell(study, failed)


def begin_of(
    name: str,
    folder: Path,
    store: Store,
    optimizer: FineTuning,
    allow: Sequence[Allowed],
    trust: Collection[str] = (),
    size: Sequence[int] | None = None,
) -> Start:
    """How the runs of an encoder begin; says what is not known or allowed of the subjects that it has seen.

    Raises:
        UserError: It was pretrained on other preprocessing, has seen test subjects, or takes other channels; names it.
    """
    try:
        begin = start.with_drop_path(start.start_of(folder, None, from_scratch=False, trust=trust), optimizer.drop_path)
        assert begin.card is not None  # a folder has one, or it was refused
        open_store(store.path, begin, allow, size=size, key="data.view.size")
        begin = start.with_channels(begin, store.channels, allow)
        note = start.refuse_seen(store, begin, allow)
    except UserError as error:
        message = f"{name}: {error}"
        raise UserError(message) from error
    if note:
        log.info(f"note: {name}: {note}")
    return begin


def first_notes(data: Examples, optimizer: FineTuning) -> tuple[str, ...]:
    """What the recipe means for the results."""
    notes = []
    if data.label_seed is not None:
        notes.append(
            f"data.label_seed is {data.label_seed}: all runs learn from the same labeled subjects, so that intervals "
            "and p-values do not know the luck of that draw."
        )
    if optimizer.head_first == 1:
        notes.append("The encoder is frozen (optimizer.head_first 1): the twin's encoder stays random.")
    elif optimizer.lora.rank:
        notes.append("optimizer.lora adapts a frozen encoder: that of the twin stays random beneath what is adapted.")
    return tuple(notes)


def refuse_unscored(scans: Sequence[Scan], schema: LabelSchema, split: str) -> None:
    """Refuses scans on which the measure of the comparison is not defined, before anything is trained.

    Raises:
        UserError: No class or finding is there in two subjects and absent in two.
    """
    values, subjects = [dict(scan.labels.values) for scan in scans], [scan.subject.subject_id for scan in scans]
    columns = kind_of(schema).contrasts(values, schema)
    if columns and not any(judged(positive, subjects, known) for positive, known in columns):
        message = (
            f"nothing can be compared on split {split!r}: an AUROC takes a class of {schema.name} that at least "
            f"{FEWEST} of its {len(set(subjects))} subjects have and {FEWEST} lack; choose another --split"
        )
        raise UserError(message)


def known_subjects(store: Store, data: Examples, starts: Mapping[str, Start]) -> dict[str, Sequence[str]]:
    """Subjects whose scores would be too good, by how the networks know them."""
    found: dict[str, Sequence[str]] = {
        f"in split {data.train!r}, which is learned from": store.subjects_of_split(data.train),
        f"in split {data.validation!r}, which validates": store.subjects_of_split(data.validation),
    }
    for name, begin in starts.items():
        found[f"known to {name} from pretraining"] = begin.seen.known
    return found


def refuse_known(scans: Sequence[Scan], split: str, known: Mapping[str, Sequence[str]]) -> None:
    """Refuses to score subjects that a network learns from, is validated with or has seen, before it is trained.

    Raises:
        UserError: Counts the subjects and says how they are known.
    """
    asked = {scan.subject.subject_id for scan in scans}
    found = [f"{len(shared)} are {how}" for how, subjects in known.items() if (shared := overlap(asked, subjects))]
    if found:
        message = (
            f"of the {len(asked)} subjects of split {split!r}, {'; '.join(found)}: scores on them say nothing about "
            "new patients; choose another --split, or say --allow seen"
        )
        raise UserError(message)


def counts_of(
    store: Store, schema: LabelSchema, data: Examples, labels: Sequence[float | None], seeds: Sequence[int]
) -> list[int]:
    """Numbers of labeled subjects that the words of the user stand for, each once, the fewest first.

    Raises:
        UserError: Some run cannot have as many; says how many there are.
    """
    scans = labeled_scans(store, len(data.view.size), data.train, schema)
    there = len(store.distinct_subjects(scans))
    counts = sorted({how_many(number, there) for number in labels})
    for count in counts:
        for seed in seeds if data.label_seed is None else [data.label_seed]:
            few(store, scans, schema, subjects=count, seed=seed)
    if not all(isinstance(number, int) for number in labels):
        words = ", ".join("null" if number is None else str(number) for number in labels)
        log.info(f"labels {words} are {', '.join(map(str, counts))} of {there} labeled subjects")
    return counts


def missing_notes(
    store: Store, schema: LabelSchema, data: Examples, counts: Sequence[int], seeds: Sequence[int]
) -> list[str]:
    """What to tell, and tells, of classes that no scan has that the runs of a number of labels learn from."""
    scans, notes = labeled_scans(store, len(data.view.size), data.train, schema), []
    for count in counts:
        missing: Counter[str] = Counter()
        for seed in seeds if data.label_seed is None else [data.label_seed] * len(seeds):
            chosen = few(store, scans, schema, subjects=count, seed=seed)
            missing.update(trained_on(store, chosen, schema).missing_classes)
        if missing:
            names = ", ".join(f"{name} ({found} of {len(seeds)} runs)" for name, found in missing.items())
            notes.append(
                f"With {count} labeled subjects no scan that a network learns from has {names}: it will hardly ever "
                "give that answer."
            )
    for note in notes:
        log.info(f"note: {note}")
    return notes


def digest_of(scans: Sequence[Scan], root: Path) -> str:
    """Names scans and what is to be found in them: their values and the content of their masks, without a path."""
    state = hashlib.blake2b(digest_size=8)
    for scan in sorted(scans, key=lambda scan: scan.scan_id):
        classes = scan.labels.classes or ""  # of segments, whose objects do not say them
        state.update(f"{scan.scan_id} {sorted(scan.labels.values)}{classes}".encode())
        for path in dict.fromkeys(part.path for part in scan.labels.mask):
            file = root / path
            state.update(file.read_bytes() if file.is_file() else b"missing")
    return f"{len(scans)} scans, {state.hexdigest()}"


def common_words(
    out: Path, store: Path, index: Path, split: str, windows: Windows, allow: Sequence[Allowed], trust: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words that all runs share: of ``finetune``, and of ``evaluate``; whole paths are seen in what they say."""
    train = ["--config", str(out.absolute() / "recipe.yaml"), "--store", str(store.absolute())]
    score = ["--index", str(index.absolute()), "--split", split]
    score += [f"--windows.{key}={value}" for key, value in describe.plain(windows).items()]
    train += ["--allow", ",".join(allow)] if allow else []
    score += ["--allow", "seen"] if "seen" in allow else []
    both = ["--trust", ",".join(trust)] if trust else []
    return (*train, *both), (*score, *both)


def job_of(run: Run, out: Path, words: tuple[tuple[str, ...], tuple[str, ...]], seed: int) -> Job:
    """Fine-tunes, then scores; runs of one number share the labeled subjects and the seed."""
    folder, (train, score) = run.folder(out.absolute()), words
    assert run.arm.folder is not None  # this command names it
    twin = () if run.arm.twin else ("--from_scratch", "true")
    tune = (
        "finetune", *train, "--run", str(folder), "--pretrained", str(run.arm.folder.absolute()), *twin,
        "--labels", str(run.labels), "--training.seed", str(seed + run.number),
    )  # fmt: skip
    judge = ("evaluate", str(folder), *score, "--out", str(folder / TEST))
    # scoring begins after training, and the trainer's states go after scoring: then it is scored, not trained again
    trained = (folder / CARD).exists() and (folder / TEST).is_dir() and not (folder / STATES).exists()
    return Job(str(run), (judge,) if trained else (tune, judge), folder.with_name(f"{folder.name}.log"))


def finish(
    missing: Sequence[Job], study: Study, *, jobs: int | None, lock: Any, keep: bool
) -> dict[str, Failure] | int:
    """Does the missing runs; tables are written as each ends.

    Args:
        missing: What is to be done.
        study: What it belongs to.
        jobs: Runs side by side.
        lock: Held open by every process.
        keep: Leaves the trainer's states of runs that are done.

    Returns:
        Why some failed, or the exit code of a signal.
    """
    import torch
    from tqdm.auto import tqdm

    failed, runs = dict[str, Failure](), {str(run): run for run in study.asked}
    with tqdm(total=len(study.asked), initial=len(study.asked) - len(missing), desc="compare", unit="run") as bar:

        def done(job: Job, why: Failure | None) -> None:
            bar.update()
            if not why and runs[job.name].strange(study.out):
                told = set_aside_strange(runs[job.name], study.out)
                why = Failure(told, told)
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
    log.info(f"stopped by a signal: {sum(run.done(study.out) for run in study.asked)} of {len(study.asked)} runs are "
          "done; run the same command to continue")  # fmt: skip
    return 128 + number
