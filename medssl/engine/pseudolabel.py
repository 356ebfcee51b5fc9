"""``medssl pseudolabel``: a fine-tuned network labels stored scans for another one to learn from (self-training)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medssl.data import chunks
from medssl.data.feed import population
from medssl.data.labelled import MASK
from medssl.data.split import overlap
from medssl.data.store import Store
from medssl.data.trained_on import missing_note
from medssl.engine import describe
from medssl.engine.inference import Fitted, Windows, device_of, load_fitted
from medssl.engine.supervised import StoredScan
from medssl.files import read_json, refusals, whole, write_whole
from medssl.heads.sliding import slide
from medssl.ops.draws import keyed_generator
from medssl.seen import Seen, as_written
from medssl.trust import names
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

    from medssl.types import LabelSchema

FACTS = "pseudolabels.json"
IGNORED = -1  # what labels hold where nothing is known
_WINDOWS = Windows()


@dataclass(frozen=True)
class PseudoLabels:
    """Labels that a network made, to learn from beside those that people made.

    The self-training that Chaitanya et al. (Contrastive learning of global and local features for medical image
    segmentation with limited annotations, NeurIPS 2020) add to contrastive pretraining; the idea is Lee's
    (Pseudo-label, ICML workshops 2013). Repeat it by labelling again with the network that learnt from both.

    Attributes:
        labels: Folder made by ``medssl pseudolabel``; None takes none.
        share: Share of the samples that show scans which people labelled, above 0 to below 1; whichever side is too few
            for it is drawn more often.
    """

    labels: Path | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            message = f"pseudo.share is {self.share}: give a share above 0 and below 1"
            raise UserError(message)


@dataclass(frozen=True)
class Behind:
    """Keyed digests of the subjects that labels carry over: whoever learns from them has seen these, too.

    Attributes:
        labelled: Those that the teacher was trained or validated on.
        pretrained: Those that its pretraining saw.
    """

    labelled: tuple[str, ...] = ()
    pretrained: Seen = field(default_factory=Seen)


def pseudolabel(
    run: Path,
    *,
    store: Path,
    out: Path,
    split: str = "train",
    confidence: float = 0.0,
    allow_seen: bool = False,
    windows: Windows = _WINDOWS,
    trust: str = "",
) -> int:
    """Segment every stored scan of a split; the same command goes on where it was stopped.

    The labels lie on the store's grid and are not patient files: ``medssl finetune --pseudo.labels OUT`` learns from
    them, ``medssl predict`` is what writes segmentations for people.

    Args:
        run: Folder of a fine-tuned network, the teacher.
        store: Folder made by ``medssl cache`` by the rules that the teacher knows.
        out: Folder of the labels; made if it is not there.
        split: Split whose scans are labelled.
        confidence: Voxels whose best class has a lower probability are left without a label (0 labels all).
        allow_seen: Go on although the teacher has learnt from subjects of the split "test".
        windows: How a scan is gone through.
        trust: Classes of the card that may run although they are none of medssl's, by import path, several with commas.

    Returns:
        0.

    Raises:
        UserError: A teacher that does not segment, other rules or classes, or labels of another teacher in the folder.
    """
    os.umask(0o077)
    if not 0 <= confidence < 1:
        message = f"confidence is {confidence}: give a probability from 0 to below 1"
        raise UserError(message)
    teacher = load_fitted(run, device_of(windows.accelerator), names(trust))
    opened = Store.open(store, preprocess=teacher.card.preprocess)
    for note in (*refuse_teacher(teacher, opened, allow_seen=allow_seen), *missing_note(teacher.tuned.trained_on)):
        print(f"note: {note}")
    facts = {"teacher": teacher.digest, "confidence": confidence, "overlap": windows.overlap}
    facts |= {"precision": windows.precision, "store": describe.store_digest(opened)}
    facts |= {"classes": [list(pair) for pair in teacher.schema.classes], "axes": len(teacher.tuned.window)}
    facts |= {"labelled": sorted(teacher.tuned.subjects), "pretrained": _written(teacher.card.subjects)}
    begin(out, facts)
    scans = population(opened, len(teacher.tuned.window), split).tolist()
    there = label_all(teacher, opened, scans, out, confidence, windows)
    print(f"{out}: {len(scans)} scans labelled ({len(scans) - there} new, {there} there already)")
    return 0


def refuse_teacher(teacher: Fitted, store: Store, *, allow_seen: bool) -> list[str]:
    """Refuses a teacher whose labels would not fit, or that carries what it learnt of test subjects over.

    Returns:
        Notes on what was allowed and on what cannot be known.

    Raises:
        UserError: Names both sides.
    """
    if teacher.kind != "segmentation":
        message = (
            f"the run answers for {teacher.schema.name!r} of whole scans: pseudo-labels are masks, take a segmentation"
        )
        raise UserError(message)
    held, takes = store.channels, teacher.network.encoder.in_channels
    if held != takes:
        message = (
            f"the network takes {takes} channel(s), the scans of the store have {held}: choose another run or store"
        )
        raise UserError(message)
    return refuse_seen(store, Behind(teacher.tuned.subjects, teacher.card.subjects), allowed=allow_seen)


def _written(seen: Seen) -> dict[str, Any]:
    return {"known": sorted(seen.known), "complete": seen.complete}


def behind(pseudo: PseudoLabels) -> Behind:
    """The subjects behind pseudo-labels; not known of a folder that does not tell them.

    Raises:
        UserError: No readable facts.
    """
    if pseudo.labels is None:
        return Behind()
    facts = facts_of(pseudo.labels)
    pretrained = as_written(facts.get("pretrained"))
    return Behind(tuple(facts.get("labelled", ())), Seen(tuple(pretrained["known"]), pretrained["complete"]))


def refuse_seen(store: Store, subjects: Behind, *, allowed: bool) -> list[str]:
    """Refuses labels that would carry over what was learnt of subjects of the store's split "test".

    Returns:
        Notes on what was allowed and on what cannot be known.

    Raises:
        UserError: Counts the subjects.
    """
    test = describe.subjects(store, "test")
    seen = overlap(test, (*subjects.labelled, *subjects.pretrained.known))
    if seen and not allowed:
        message = (
            f"the network that labels has seen {len(seen)} of the {len(test)} subjects of split 'test', and its labels "
            "carry that over: choose another network, or allow it (medssl pseudolabel --allow_seen true, medssl "
            "finetune --allow '[seen]') and tell it with the results"
        )
        raise UserError(message)
    notes = []
    if seen:
        notes.append(
            f"the network that labels has seen {len(seen)} of the {len(test)} subjects of split 'test' (allowed): "
            "scores there of whoever learns from its labels may be too good"
        )
    if test and not subjects.pretrained.complete:
        notes.append(
            "not all subjects that the network that labels has seen in pretraining are known: a test subject may be "
            "among the others"
        )
    return notes


def begin(out: Path, facts: dict[str, Any]) -> None:
    """Makes the folder, or checks that the same teacher made what is there.

    Raises:
        UserError: Names what differs.
    """
    file = out / FACTS
    if file.exists():
        then = read_json(file)
        then["pretrained"] = as_written(then.get("pretrained"))
        differing = sorted(key for key in {*then, *facts} if then.get(key) != facts.get(key))
        if differing:
            message = f"{out} holds labels of another command ({', '.join(differing)} differ): choose another --out"
            raise UserError(message)
        return
    if out.is_dir() and any(out.iterdir()):
        message = f"{out} is a folder with other files: give an empty or a new one for the labels"
        raise UserError(message)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(file, lambda stream: stream.write(json.dumps(facts, indent=1).encode()))


def label_all(
    teacher: Fitted, store: Store, scans: Sequence[int], out: Path, confidence: float, windows: Windows
) -> int:
    """Labels the scans that have no file yet; returns how many had one."""
    from tqdm import tqdm

    there = 0
    for number in tqdm(scans, desc="pseudolabel", unit="scan"):
        file = label_file(out, store, number)
        if file.exists():
            there += 1
            continue
        label = labelled_by(teacher, store, number, confidence, windows)
        with refusals(file), whole(file) as (stream,):
            stream.write(chunks.chunked_bytes(label[None]))
    return there


@torch.no_grad()
def labelled_by(
    teacher: Fitted, store: Store, number: int, confidence: float, windows: Windows
) -> Int[np.ndarray, "*s"]:
    """Stored values of a scan's classes on the store's grid, ``IGNORED`` where the teacher is not sure."""
    window, values = teacher.tuned.window, [value for value, _ in teacher.schema.classes]
    scan = StoredScan(store, number, window, teacher.tuned.slice_axis)
    numbers, sure = np.array(values, label_type(teacher.schema)), []
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=windows.precision == "bf16"):
        blocks = slide(
            teacher.network, scan.read, scan.shape, window=window, axis=scan.axis, plane=scan.plane,
            overlap=windows.overlap, batch_size=windows.batch_size,
        )  # fmt: skip
        for _, block in blocks:
            probability, best = (part.cpu().numpy() for part in block.max(0))
            sure.append(np.where(probability >= confidence, numbers[best], numbers.dtype.type(IGNORED)))
    return np.moveaxis(np.concatenate(sure), 0, scan.axis)


def label_type(schema: LabelSchema) -> np.dtype[Any]:
    """Integer type that holds all classes and ``IGNORED``."""
    values = [value for value, _ in schema.classes]
    return np.result_type(np.int16, np.min_scalar_type(max(values)), np.min_scalar_type(min(values)))


def label_file(folder: Path, store: Store, number: int) -> Path:
    """File of a scan's label, named by the digest of the scan and its rules."""
    return folder / f"{store.records.key[number].decode()}.b2nd"


def taught(
    store: Store, learnt: tuple[int, ...], split: str, pseudo: PseudoLabels, schema: LabelSchema, seed: int
) -> tuple[Store, tuple[int, ...]]:
    """The store with a teacher's labels, and the scans to draw from so that people's labels have their share.

    Args:
        store: The store that the labels were made for.
        learnt: Scans whose own labels are learnt from; they keep them, as do all scans of their subjects.
        split: Split that the others are taken from.
        pseudo: Where the labels are.
        schema: Classes that are asked for.
        seed: As of ``in_share``.

    Returns:
        A store in which the other scans carry the teacher's labels, and the numbers of all scans to draw from, as often
        as the share of ``learnt`` asks for. Without pseudo-labels the store as it is, and none.

    Raises:
        UserError: No labels, or labels of other classes or another store.
    """
    folder = pseudo.labels
    if folder is None:
        return store, ()
    facts = facts_of(folder)
    if schema.name != MASK or facts["classes"] != [list(pair) for pair in schema.classes]:
        message = f"the pseudo-labels have the classes {facts['classes']}, the target {schema.name!r} has others"
        raise UserError(message)
    if facts["store"] != describe.store_digest(store):
        message = "the pseudo-labels were made for another store (or this one has changed): make them again"
        raise UserError(message)
    scans, subject = population(store, facts["axes"], split), store.records.subject
    others = scans[~np.isin(subject[scans], subject[list(learnt)])].tolist()
    files = {number: label_file(folder, store, number) for number in others}
    if not files:
        message = (
            f"all {len(scans)} scans of split {split!r} are of subjects that are learnt from by their own labels: "
            "pseudo-labels have no place; leave --pseudo.labels out, or learn from fewer with --labels"
        )
        raise UserError(message)
    missing = sum(not file.exists() for file in files.values())
    if missing:
        message = (
            f"{missing} of the {len(files)} other scans of split {split!r} have no pseudo-label: finish medssl "
            f"pseudolabel --split {split}"
        )
        raise UserError(message)
    return store.with_labels(files, label_type(schema)), in_share(learnt, tuple(files), pseudo.share, seed)


def in_share(learnt: tuple[int, ...], others: tuple[int, ...], share: float, seed: int) -> tuple[int, ...]:
    """Every scan at least once, those of the side that is too few more often: one pass of the training.

    Args:
        learnt: Scans that are to have the share.
        others: The other scans.
        share: Share of ``learnt`` in what is returned, met to within half a scan.
        seed: Draws which scans come once more than others of their side.
    """
    wanted = round(share / (1 - share) * len(others))
    if wanted >= len(learnt):
        return repeated(learnt, wanted, seed) + others
    return learnt + repeated(others, max(len(others), round((1 - share) / share * len(learnt))), seed)


def repeated(scans: tuple[int, ...], wanted: int, seed: int) -> tuple[int, ...]:
    """``wanted`` draws of scans, none more than once more often than another."""
    whole, left = divmod(wanted, len(scans))
    once_more = keyed_generator(seed, 0, "pseudo").permutation(len(scans))[:left]
    return scans * whole + tuple(scans[place] for place in sorted(once_more.tolist()))


def facts_of(folder: Path) -> dict[str, Any]:
    """What made the labels of a folder.

    Raises:
        UserError: Not readable.
    """
    try:
        facts: dict[str, Any] = read_json(folder / FACTS)
    except (OSError, ValueError) as error:
        message = f"--pseudo.labels {folder}: it has no readable {FACTS}; make one with medssl pseudolabel"
        raise UserError(message) from error
    return facts


def in_configuration(pseudo: PseudoLabels) -> dict[str, Any] | None:
    """What a run's configuration says of pseudo-labels: which they are, not where."""
    if pseudo.labels is None:
        return None
    facts = facts_of(pseudo.labels)
    return {"teacher": facts["teacher"], "confidence": facts["confidence"], "share": pseudo.share}
