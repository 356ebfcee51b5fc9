"""The verb ``compare``: did pretraining help, with how many labels, and is that sure?

Every encoder and its twin from scratch are fine-tuned with several numbers of labelled subjects, several times each
(other subjects, another seed), by one recipe, and scored on subjects that none has seen. The runs are what is kept;
tables, pictures and verdicts are made of them anew each time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medssl.data.index import Index
from medssl.data.labelled import few, labelled_scans
from medssl.data.store import Store
from medssl.encoders.base import Encoder
from medssl.engine import describe, start
from medssl.engine.checkpoint import flat, write_whole
from medssl.engine.children import Job, alone, run_jobs
from medssl.engine.evaluate import labelled
from medssl.engine.inference import Windows
from medssl.engine.optim import FineTuning
from medssl.engine.outcome import note_edits, tell, write_tables
from medssl.engine.report import named
from medssl.engine.settings import Examples, Training
from medssl.engine.start import Allowed, Start
from medssl.engine.targets import schema_for
from medssl.evaluate.tables import SUMMARY
from medssl.heads.base import Head
from medssl.types import LabelSchema, UserError
from medssl.views.mixing import Mixing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medssl.types import Scan

SCRATCH = "scratch"
CONFIG, LOCK = "compare.yaml", ".lock"


@dataclass(frozen=True)
class Arm:
    """One way to start.

    Attributes:
        name: What it is called.
        folder: Run folder of its encoder, or of the encoder that it is the twin of.
        twin: Name of the arm from scratch with the same encoder; "" of such an arm itself.
    """

    name: str
    folder: Path
    twin: str = ""


@dataclass(frozen=True)
class Run:
    """One fine-tuning: an arm, a number of labelled subjects, and which of the runs it is."""

    arm: Arm
    labels: int
    number: int

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / "runs" / self.arm.name / f"{self.labels}-{self.number}"

    def done(self, out: Path) -> bool:
        """Whether it is trained and scored: the scores are written last."""
        return (self.folder(out) / "test" / SUMMARY).exists()

    def __str__(self) -> str:
        return f"{self.arm.name}, {self.labels} labelled subjects, run {self.number}"


def compare(  # noqa: PLR0913 (the keys of a command line)
    encoders: list[str],
    *,
    store: Path,
    index: Path,
    out: Path,
    head: Callable[[Encoder, LabelSchema], Head],
    data: Examples,
    training: Training,
    labels: tuple[int, ...],
    runs: int = 5,
    optimizer: FineTuning = FineTuning(),  # noqa: B008 (frozen)
    mixing: Mixing = Mixing(),  # noqa: B008 (frozen)
    split: str = "test",
    windows: Windows = Windows(),  # noqa: B008 (frozen)
    allow: tuple[Allowed, ...] = (),
    jobs: int | None = None,
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
        data: Which labelled scans are learnt from, and how.
        training: How long and how large; the seed is the one of the first run.
        labels: Numbers of labelled subjects, such as [2,4,8].
        runs: Runs of each arm and number, each with other labelled subjects and another seed; a verdict takes 5.
        optimizer: How weights move.
        mixing: Whether the samples of a batch are mixed.
        split: Split whose scans are scored.
        windows: How a scan that is scored is gone through.
        allow: "seen" scores subjects that pretraining has seen, "channels" and "preprocess" as in medssl finetune.
        jobs: Runs side by side; null takes one for each GPU, or one.

    Returns:
        0; 1 where no encoder can be compared with its twin; 128 + the signal's number where a signal stopped it.

    Raises:
        UserError: Something the user can put right before anything is trained.
    """
    os.umask(0o077)
    if min(runs, 1 if jobs is None else jobs) < 1 or not labels or min(labels) < 1:
        message = f"runs is {runs}, jobs {jobs}, labels {list(labels)}: give at least 1 of each"
        raise UserError(message)
    arms = list(arms_of(encoders))
    opened = Store.open(store)
    for arm in sorted(arms, key=lambda arm: not arm.twin):  # what is wrong with an encoder is not its twin's fault
        refuse_arm(arm, opened, allow)
    schema = schema_for(opened, data.target, head)
    refuse_few(opened, schema, data, labels, [training.seed + number for number in range(runs)])
    with Index.open(index) as known:
        scored = digest_of(labelled(known, schema, split, None), known.root)
    recipe = describe.plain(
        {"head": head, "data": data, "training": training, "optimizer": optimizer, "mixing": mixing}
    )
    held = {"store": describe.store_digest(opened), "split": split, "scored": scored}
    held |= {"windows": describe.plain(windows)} | recipe
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(out / LOCK, f"{out}/") as lock:
        hold(
            out / CONFIG, held, {arm.name: start.start_of(arm.folder, None, from_scratch=not arm.twin) for arm in arms}
        )
        write_whole(out / "recipe.yaml", lambda file: file.write(yaml.safe_dump(recipe, sort_keys=False).encode()))
        plan = [Run(arm, n, number) for number in range(runs) for n in sorted(set(labels)) for arm in arms]
        note_edits(out, arms, plan)
        words = common_words(out, store, index, split, windows, allow)
        missing = [job_of(run, out, words, training.seed) for run in plan if not run.done(out)]
        failed = finish(missing, plan, arms, out, jobs=jobs, lock=lock)
    return failed if isinstance(failed, int) else tell(out, arms, plan, failed)


def arms_of(encoders: Sequence[str]) -> Iterator[Arm]:
    """The encoders, and a twin for each kind of encoder among them.

    Raises:
        UserError: None given, two of one name, or a name that cannot be a folder's.
    """
    found = [named(word) for word in encoders]
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1 or name == SCRATCH:
            why = f"{names.count(name)} encoders are called" if name != SCRATCH else "the twin is called"
            message = f"{why} {name!r}: give each a name of its own, as NAME=FOLDER"
            raise UserError(message)
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            message = f"{name!r} cannot be the name of a folder: use letters, digits, '-', '_', '+' and '.'"
            raise UserError(message)
    kinds: dict[str, str] = {}
    for name, folder in found:
        kind = repr(start.start_of(folder, None, from_scratch=True).encoder)
        if kind not in kinds:
            kinds[kind] = SCRATCH if not kinds else f"{SCRATCH}-{name}"
            yield Arm(kinds[kind], folder)
        yield Arm(name, folder, kinds[kind])


def refuse_arm(arm: Arm, store: Store, allow: Sequence[Allowed]) -> None:
    """Refuses an encoder that was pretrained on other preprocessing, has seen test subjects, or takes other channels.

    Raises:
        UserError: Names the arm.
    """
    try:
        begin = start.start_of(arm.folder, None, from_scratch=not arm.twin)
        assert begin.card is not None  # a folder has one, or it was refused
        if "preprocess" not in allow:
            Store.open(store.path, preprocess=begin.card.preprocess)
        start.with_channels(begin, int(store.records.facts["channels"][0]), allow)
        start.refuse_seen(store, begin, allow)
    except UserError as error:
        message = f"{arm.name}: {error}"
        raise UserError(message) from error


def refuse_few(store: Store, schema: LabelSchema, data: Examples, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Refuses numbers of labelled subjects that some run cannot have.

    Raises:
        UserError: Says how many there are.
    """
    scans = labelled_scans(store, len(data.view.size), data.train, schema)
    for count in labels:
        for seed in seeds if data.label_seed is None else [data.label_seed]:
            few(store, scans, schema, subjects=count, seed=seed)


def digest_of(scans: Sequence[Scan], root: Path) -> str:
    """Names scans and what is to be found in them: their values and the content of their masks, without a path."""
    state = hashlib.blake2b(digest_size=8)
    for scan in sorted(scans, key=lambda scan: scan.scan_id):
        state.update(f"{scan.scan_id} {sorted(scan.labels.values)}".encode())
        for part in scan.labels.mask:
            file = root / part.path
            state.update(file.read_bytes() if file.is_file() else b"missing")
    return f"{len(scans)} scans, {state.hexdigest()}"


def hold(file: Path, held: dict[str, Any], starts: dict[str, Start]) -> None:
    """Keeps the recipe and the weights of each arm, or holds the command to those that are kept; arms may be added.

    Raises:
        UserError: Names the keys that differ.
    """
    arms = {name: begin.digest for name, begin in starts.items()}
    former = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {"arms": {}}
    then, now = dict(flat(former)), dict(flat(held | {"arms": former["arms"] | arms}))
    differing = [
        f"{key}: {then.get(key, 'absent')} there, {now.get(key, 'absent')} here"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not (key.startswith("arms.") and key not in then)
    ]
    if differing and file.exists():
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        message = f"{file.parent}/ holds another comparison: {'; '.join(differing[:5])}{more}; choose another --out"
        raise UserError(message)
    text = yaml.safe_dump(held | {"arms": former["arms"] | arms}, sort_keys=False)
    write_whole(file, lambda stream: stream.write(text.encode()))


def common_words(
    out: Path, store: Path, index: Path, split: str, windows: Windows, allow: Sequence[Allowed]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words that all runs share: of ``finetune``, and of ``evaluate``."""
    train = ["--config", str(out / "recipe.yaml"), "--store", str(store)]
    score = ["--index", str(index), "--split", split]
    score += [f"--windows.{key}={value}" for key, value in describe.plain(windows).items()]
    train += ["--allow", f"[{','.join(allow)}]"] if allow else []
    score += ["--allow_seen", "true"] if "seen" in allow else []
    return tuple(train), tuple(score)


def job_of(run: Run, out: Path, words: tuple[tuple[str, ...], tuple[str, ...]], seed: int) -> Job:
    """Fine-tunes, then scores; runs of one number share the labelled subjects and the seed."""
    folder, (train, score) = run.folder(out), words
    twin = () if run.arm.twin else ("--from_scratch", "true")
    tune = (
        "finetune", *train, "--run", str(folder), "--pretrained", str(run.arm.folder), *twin,
        "--labels", str(run.labels), "--training.seed", str(seed + run.number),
    )  # fmt: skip
    log = folder.with_name(f"{folder.name}.log")
    return Job(str(run), (tune, ("evaluate", str(folder), *score, "--out", str(folder / "test"))), log)


def finish(
    missing: Sequence[Job], plan: Sequence[Run], arms: Sequence[Arm], out: Path, *, jobs: int | None, lock: Any
) -> dict[str, str] | int:
    """Does the missing runs; tables are written as each ends. Returns why some failed, or the exit code of a signal."""
    import torch
    from tqdm import tqdm

    failed: dict[str, str] = {}
    with tqdm(total=len(plan), initial=len(plan) - len(missing), desc="compare", unit="run") as bar:

        def done(job: Job, why: str) -> None:
            bar.update()
            if why:
                failed[job.name] = why
                bar.write(f"failed: {job.name}: {why}")
            else:
                write_tables(out, arms, plan)

        number = run_jobs(missing, done, at_once=jobs or max(1, torch.cuda.device_count()), lock=lock)
    if not number:
        return failed
    print(f"stopped by a signal: {sum(run.done(out) for run in plan)} of {len(plan)} runs are done; "
          "run the same command to continue")  # fmt: skip
    return 128 + number
