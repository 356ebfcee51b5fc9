"""The verb ``pseudolabel``: a fine-tuned network labels stored scans, for another network to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medssl.data.store.store import Store
from medssl.inference.predictor import Windows, device_of, load_fitted
from medssl.io.permissions import owner_only
from medssl.io.trust import names
from medssl.training.pseudo_label_writer import write_pseudo_labels
from medssl.types import UserError

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

    The labels lie on the store's grid and are not for clinical use: ``medssl finetune --pseudo.labels OUT`` trains on
    them. ``medssl predict`` writes segmentations on the grid of the scans.

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
    total, new = write_pseudo_labels(
        teacher, opened, out, split=split, confidence=confidence, windows=windows, allow=allow
    )
    return PseudolabelResult(out, total, new)
