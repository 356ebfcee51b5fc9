"""Slices of volumes as bags: a 2D encoder gives features of each slice, and a head of bags answers for the volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from medssl.data.bags.description import BagEncoder, BagFacts, BagRecord
from medssl.data.bags.files import Bag, Layout
from medssl.data.bags.writer import BagWriter
from medssl.heads.sliding import encode
from medssl.types import UserError
from medssl.types.provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from medssl.data.store.store import Store
    from medssl.probing.feature_extractor import FrozenEncoder


def slice_facts(frozen: FrozenEncoder, store: Store, subjects: Provenance) -> BagFacts:
    """What bags of slices have in common.

    Args:
        frozen: A 2D encoder.
        store: Volumes.
        subjects: Subjects that the encoder was trained on.

    Raises:
        UserError: The encoder is not 2D, or the store holds other scans than volumes.
    """
    if len(frozen.window) != 2:
        message = "slices of volumes need a 2D encoder"
        raise UserError(message, key="window", got=list(frozen.window), expected="two numbers, such as 96,96")
    if store.axes != {3}:
        message = f"{store.path} holds images"
        raise UserError(message, key="store", expected="volumes, whose slices make a bag")
    encoder = BagEncoder(str(frozen.made_by["weights"]), type(frozen.encoder).__name__, subjects)
    facts = BagFacts(encoder, frozen.encoder.channels[-1], frozen.window[0], None, "slice")
    return BagFacts(**{**vars(facts), "index_digest": store.index_digest, "synthetic": store.synthetic})


@torch.no_grad()
def bag_of_slices(frozen: FrozenEncoder, store: Store, number: int) -> Bag:
    """Features of the slices of a volume: of each the mean over the windows that cover it.

    Args:
        frozen: A 2D encoder.
        store: Volumes.
        number: Which volume.

    Returns:
        A row for each slice; coordinates are the number of the slice and 0.
    """
    scan = frozen.scan(store, number)
    sums: dict[int, list[torch.Tensor]] = {}
    with frozen.computing():
        windows = encode(
            frozen.encoder,
            scan.read,
            scan.shape,
            window=frozen.window,
            axis=scan.axis,
            plane=scan.plane,
            batch_size=frozen.windows.batch_size,
        )
        for start, _, features in windows:
            sums.setdefault(start[scan.axis], []).append(features.pooled[0].float().cpu())
    places = sorted(sums)
    values = torch.stack([torch.stack(sums[place]).mean(0) for place in places]).numpy()
    return Bag(values, np.array([(place, 0) for place in places], np.int64), "slice")


def bags_of_slices(
    frozen: FrozenEncoder,
    store: Store,
    scans: Sequence[int],
    out: Path,
    *,
    subjects: Provenance,
    layout: Layout = "safetensors",
) -> int:
    """Writes bags of the slices of volumes; finished ones are not computed again.

    Args:
        frozen: A 2D encoder.
        store: Volumes.
        scans: Which of them.
        out: Folder of the bags.
        subjects: Subjects that the encoder was trained on.
        layout: Of the files.

    Returns:
        How many bags are new.

    Raises:
        UserError: The encoder or the store does not fit, or the folder holds bags of another encoder.
    """
    from tqdm.auto import tqdm

    new = 0
    with BagWriter(out, slice_facts(frozen, store, subjects), layout=layout) as writer:
        for number in tqdm(scans, desc="slices", unit="scan"):
            split = store.records.tables["split"][store.records.facts[number]["split"]]
            record = BagRecord(store.scan_id(number), store.subject(number), split, store.values(number))
            if writer.has(record.scan_id):
                writer.describe(record)
                continue
            writer.write(record, bag_of_slices(frozen, store, number))
            new += 1
    return new
