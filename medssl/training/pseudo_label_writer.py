"""Writing pseudo-labels: a fine-tuned network segments stored scans, on the grid of the store."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.trained_on import missing_note
from medssl.data.store import chunks
from medssl.heads.sliding import slide
from medssl.inference.predictor import mirrored, settings_of
from medssl.io.atomic_write import atomic_files, atomic_write, explain_disk_errors
from medssl.io.documents import read_json
from medssl.training.initial_weights import refuse_test_subjects
from medssl.training.pseudo_labels import FACTS, IGNORED, TEACHER, label_file, label_type
from medssl.training.supervised import StoredScan
from medssl.types import UserError
from medssl.types.provenance import TrainingSubjects, facts_of_json

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from jaxtyping import Int

    from medssl.data.store.store import Store
    from medssl.inference.predictor import Fitted, Windows
    from medssl.types import Note

log = logging.getLogger(__name__)


def write_pseudo_labels(
    teacher: Fitted,
    store: Store,
    out: Path,
    *,
    split: str,
    confidence: float,
    windows: Windows,
    allow: Collection[str] = (),
) -> tuple[int, int]:
    """Labels the scans of a split that have no label yet.

    Args:
        teacher: The network.
        store: The scans, stored by the rules of the network.
        out: Folder of the labels; created if missing.
        split: Split to label.
        confidence: Lowest probability of the best class, 0 to below 1; voxels below it get no label.
        windows: Sliding windows.
        allow: "seen" allows a network that was trained on subjects of the split "test".

    Returns:
        How many scans have a label, and how many of them were labeled now.

    Raises:
        UserError: The network does not fit the store, or the folder holds labels of another command.
    """
    for note in (*refuse_teacher(teacher, store, allow), *missing_note(teacher.tuned.trained_on)):
        log.info(f"note: {note}")
    provenance = teacher.card.subjects
    facts: dict[str, Any] = {"teacher": teacher.digest, "confidence": confidence, "store": store.digest}
    facts |= settings_of(teacher.tuned, windows)
    facts |= {"classes": [list(pair) for pair in teacher.schema.classes], "axes": len(teacher.tuned.window)}
    facts |= {"labelled": sorted(teacher.tuned.subjects)}
    facts |= {"pretrained": {"known": sorted(provenance.known), "complete": provenance.complete}}
    prepare_folder(out, facts)
    scans = store.scans(split, axes=len(teacher.tuned.window)).tolist()
    new = label_missing(teacher, store, scans, out, confidence, windows)
    log.info(f"{out}: {len(scans)} scans labeled ({new} new, {len(scans) - new} labeled before)")
    return len(scans), new


def refuse_teacher(teacher: Fitted, store: Store, allow: Collection[str]) -> list[Note]:
    """Refuses a teacher whose labels would not fit, or that was trained on test subjects.

    Returns:
        Notes on what was allowed, and on subjects that are not known.

    Raises:
        UserError: Names both sides.
    """
    if not kind_of(teacher.schema).per_voxel:
        message = f"the run predicts {teacher.schema.name!r} of whole scans, pseudo-labels are masks"
        raise UserError(message, key="run", hint="Choose the run of a segmentation")
    channels, expected = store.channels, teacher.network.encoder.in_channels
    if channels != expected:
        message = f"the network takes {expected} channel(s), the scans of the store have {channels}"
        raise UserError(message, key="store", hint="Choose another run or store")
    training = TrainingSubjects(teacher.tuned.subjects, teacher.card.subjects)
    return refuse_test_subjects(store, {TEACHER: training}, allow)


def prepare_folder(out: Path, facts: dict[str, Any]) -> None:
    """Creates the folder, or checks that labels in it come from the same teacher and settings.

    Raises:
        UserError: Names what differs.
    """
    file = out / FACTS
    if file.exists():
        saved = read_json(file)
        saved["pretrained"] = facts_of_json(saved.get("pretrained"))
        differing = sorted(key for key in {*saved, *facts} if saved.get(key) != facts.get(key))
        if differing:
            message = f"{out} holds labels of another command ({', '.join(differing)} differ)"
            raise UserError(message, key="out", hint="Choose another folder for results.")
        return
    if out.is_dir() and any(out.iterdir()):
        message = f"{out} is a folder with other files"
        raise UserError(message, key="out", hint="Give an empty or a new folder for the labels")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(file, lambda stream: stream.write(json.dumps(facts, indent=1).encode()))


def label_missing(
    teacher: Fitted, store: Store, scans: Sequence[int], out: Path, confidence: float, windows: Windows
) -> int:
    """Labels the scans that have no file yet; returns how many it labeled."""
    from tqdm.auto import tqdm

    new = 0
    for number in tqdm(scans, desc="pseudolabel", unit="scan"):
        file = label_file(out, store, number)
        if file.exists():
            continue
        label = predicted_label(teacher, store, number, confidence, windows)
        with explain_disk_errors(file), atomic_files(file) as (stream,):
            stream.write(chunks.chunked_bytes(label[None]))
        new += 1
    return new


@torch.no_grad()
def predicted_label(
    teacher: Fitted, store: Store, number: int, confidence: float, windows: Windows
) -> Int[np.ndarray, "*s"]:
    """Stored values of a scan's classes on the store's grid, ``IGNORED`` below the confidence."""
    window, values = teacher.tuned.window, [value for value, _ in teacher.schema.classes]
    scan = StoredScan(store, number, window, teacher.tuned.slice_axis)
    network = mirrored(teacher, windows, store.affine(number))
    numbers, parts = np.array(values, label_type(teacher.schema)), []
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=windows.precision == "bf16"):
        blocks = slide(
            network, scan.read, scan.shape, window=window, axis=scan.axis, plane=scan.plane,
            overlap=windows.overlap, batch_size=windows.batch_size,
        )  # fmt: skip
        for _, block in blocks:
            probability, best = (tensor.cpu().numpy() for tensor in block.max(0))
            parts.append(np.where(probability >= confidence, numbers[best], numbers.dtype.type(IGNORED)))
    return np.moveaxis(np.concatenate(parts), 0, scan.axis)
