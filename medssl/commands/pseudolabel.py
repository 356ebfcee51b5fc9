"""``medssl pseudolabel``: a fine-tuned network labels stored scans for another one to learn from (self-training)."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.trained_on import missing_note
from medssl.data.store import chunks
from medssl.data.store.store import Store
from medssl.heads.sliding import slide
from medssl.inference.predictor import Fitted, Windows, device_of, load_fitted, mirrored, settings_of
from medssl.io.atomic_write import atomic_files, atomic_write, explain_disk_errors
from medssl.io.documents import read_json
from medssl.io.permissions import owner_only
from medssl.io.trust import names
from medssl.training.pseudo_labels import (
    FACTS,
    IGNORED,
    Behind,
    _provenance_facts,
    label_file,
    label_type,
    refuse_test_subjects,
)
from medssl.training.supervised import StoredScan
from medssl.types import UserError
from medssl.types.provenance import facts_of_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

log = logging.getLogger(__name__)


_WINDOWS = Windows()


@dataclass(frozen=True)
class PseudolabelResult:
    """Labels of a network for stored scans.

    Attributes:
        out: Their folder.
        scans: How many scans have a label.
        new: How many of them this call labeled.
        exit_code: 0.
    """

    out: Path
    scans: int
    new: int
    exit_code: int = 0


@owner_only()
def pseudolabel(
    run: Path,
    *,
    store: Path,
    out: Path,
    split: str = "train",
    confidence: float = 0.0,
    allow: tuple[Literal["seen"], ...] = (),
    windows: Windows = _WINDOWS,
    trust: str = "",
) -> PseudolabelResult:
    """Segment the stored scans of a split with a fine-tuned network, to train on them.

    The labels lie on the store's grid and are not patient files: ``medssl finetune --pseudo.labels OUT`` learns from
    them, ``medssl predict`` is what writes segmentations for people.

    Args:
        run: Run folder of the fine-tuned network.
        store: Folder written by ``medssl cache`` with the rules of the network.
        out: Folder of the labels; created if missing.
        split: Split to label.
        confidence: Lowest probability of the best class, 0 to below 1; voxels below it get no label. 0 labels all
            voxels.
        allow: "seen" takes a network that was trained on subjects of the split "test".
        windows: Sliding windows: overlap, batch size, precision, device and mirroring.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        The folder, and how many scans were labeled.

    Raises:
        UserError: A teacher that does not segment, other rules or classes, or labels of another teacher in the folder.
    """
    if not 0 <= confidence < 1:
        message = "must be from 0 to below 1"
        raise UserError(message, key="confidence", got=confidence)
    teacher = load_fitted(run, device_of(windows.accelerator), names(trust))
    opened = Store.open(store, preprocess=teacher.card.preprocess)
    for note in (*refuse_teacher(teacher, opened, allow_seen="seen" in allow), *missing_note(teacher.tuned.trained_on)):
        log.info(f"note: {note}")
    facts = {"teacher": teacher.digest, "confidence": confidence, "store": opened.digest}
    facts |= settings_of(teacher.tuned, windows)
    facts |= {"classes": [list(pair) for pair in teacher.schema.classes], "axes": len(teacher.tuned.window)}
    facts |= {"labelled": sorted(teacher.tuned.subjects), "pretrained": _provenance_facts(teacher.card.subjects)}
    begin(out, facts)
    scans = opened.scans(split, axes=len(teacher.tuned.window)).tolist()
    there = label_all(teacher, opened, scans, out, confidence, windows)
    log.info(f"{out}: {len(scans)} scans labeled ({len(scans) - there} new, {there} there already)")
    return PseudolabelResult(out, len(scans), new=len(scans) - there)


def refuse_teacher(teacher: Fitted, store: Store, *, allow_seen: bool) -> list[str]:
    """Refuses a teacher whose labels would not fit, or that carries what it learned of test subjects over.

    Returns:
        Notes on what was allowed and on what cannot be known.

    Raises:
        UserError: Names both sides.
    """
    if not kind_of(teacher.schema).per_voxel:
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
    return refuse_test_subjects(store, Behind(teacher.tuned.subjects, teacher.card.subjects), allowed=allow_seen)


def begin(out: Path, facts: dict[str, Any]) -> None:
    """Makes the folder, or checks that the same teacher made what is there.

    Raises:
        UserError: Names what differs.
    """
    file = out / FACTS
    if file.exists():
        then = read_json(file)
        then["pretrained"] = facts_of_json(then.get("pretrained"))
        differing = sorted(key for key in {*then, *facts} if then.get(key) != facts.get(key))
        if differing:
            message = f"{out} holds labels of another command ({', '.join(differing)} differ)"
            raise UserError(message, key="out", hint="Choose another folder for results.")
        return
    if out.is_dir() and any(out.iterdir()):
        message = f"{out} is a folder with other files: give an empty or a new one for the labels"
        raise UserError(message)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(file, lambda stream: stream.write(json.dumps(facts, indent=1).encode()))


def label_all(
    teacher: Fitted, store: Store, scans: Sequence[int], out: Path, confidence: float, windows: Windows
) -> int:
    """Labels the scans that have no file yet; returns how many had one."""
    from tqdm.auto import tqdm

    there = 0
    for number in tqdm(scans, desc="pseudolabel", unit="scan"):
        file = label_file(out, store, number)
        if file.exists():
            there += 1
            continue
        label = labeled_by(teacher, store, number, confidence, windows)
        with explain_disk_errors(file), atomic_files(file) as (stream,):
            stream.write(chunks.chunked_bytes(label[None]))
    return there


@torch.no_grad()
def labeled_by(
    teacher: Fitted, store: Store, number: int, confidence: float, windows: Windows
) -> Int[np.ndarray, "*s"]:
    """Stored values of a scan's classes on the store's grid, ``IGNORED`` where the teacher is not sure."""
    window, values = teacher.tuned.window, [value for value, _ in teacher.schema.classes]
    scan = StoredScan(store, number, window, teacher.tuned.slice_axis)
    network = mirrored(teacher, windows, store.affine(number))
    numbers, sure = np.array(values, label_type(teacher.schema)), []
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=windows.precision == "bf16"):
        blocks = slide(
            network, scan.read, scan.shape, window=window, axis=scan.axis, plane=scan.plane,
            overlap=windows.overlap, batch_size=windows.batch_size,
        )  # fmt: skip
        for _, block in blocks:
            probability, best = (part.cpu().numpy() for part in block.max(0))
            sure.append(np.where(probability >= confidence, numbers[best], numbers.dtype.type(IGNORED)))
    return np.moveaxis(np.concatenate(sure), 0, scan.axis)
