"""Modalities, value domains and spacings of training scans, and how a scan that is to be predicted differs from them.

A network predicts something for any image: a CT network segments an MR scan as well, wrong and without a warning.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from medssl.data.labels.kinds.base import kind_of
from medssl.data.store import grid
from medssl.types import Note, TrainedOn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.data.store.store import Store
    from medssl.types import LabelSchema, Preprocess, Scan

Difference = Literal["modality", "domain", "spacing"]  # in which a scan may differ from those of the training
NAMES: tuple[str, ...] = get_args(Difference)
WIDER = 2.0  # a spacing may be so many times finer or coarser than any of the training


def trained_on(store: Store, scans: Sequence[int], schema: LabelSchema | None = None) -> TrainedOn:
    """Modalities, value domains and spacings of some scans of a store, and classes that none of them has.

    Args:
        store: The store of the scans.
        scans: Their numbers in it.
        schema: The classes of a mask or of a scan-level value.
    """
    wanted = {store.scan_id(number) for number in scans}
    modalities, domains, spacings = set(), set(), []
    values: set[int] | None = set()
    address = f"{(store.path / 'records.sqlite').resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=120)) as connection:
        for scan_id, modality, domain, details in connection.execute(
            "SELECT scan_id, modality, domain, details FROM scans"
        ):
            if scan_id not in wanted:
                continue
            modalities.add(modality)
            domains.add(domain)
            known = json.loads(details)
            counts = known.get("classes")  # absent in stores of older versions
            values = None if values is None or counts is None else values | {int(value) for value in counts}
            affine = np.array(known["source"]["affine"], float)
            if len(affine) == 4:
                spacings.append(grid.spacing_of(affine))
    ranges = tuple((min(axis), max(axis)) for axis in zip(*spacings, strict=True))
    rows = [store.values(number) for number in scans]
    missing = () if schema is None else kind_of(schema).missing(rows, values, schema)
    return TrainedOn(tuple(sorted(modalities - {""})), tuple(sorted(domains)), ranges, missing)


def missing_note(known: TrainedOn | None) -> list[Note]:
    """A note on classes that a network was not trained on."""
    if known is None or not known.missing_classes:
        return []
    names = ", ".join(known.missing_classes)
    return [Note("missing", f"no training scan has {names}: the network will hardly ever predict that")]


def differences(scan: Scan, known: TrainedOn, preprocess: Preprocess) -> dict[str, str]:
    """How a scan differs from those of a training: a text for each of ``NAMES`` in which it does.

    Args:
        scan: A scan of an index.
        known: What the network was trained on.
        preprocess: Whose orientation puts the axes of the scan in the order of the training's.
    """
    differing = {}
    modality, domain = scan.source.modality, scan.source.value_domain
    if modality and known.modalities and modality not in known.modalities:
        differing["modality"] = f"is {modality}, the network was trained on {', '.join(known.modalities)}"
    if domain not in known.domains:
        differing["domain"] = f"has values of domain {domain}, the network was trained on {', '.join(known.domains)}"
    if scan.source.kind == "volume" and known.spacing_mm:
        spacing = _oriented(scan, preprocess)
        outside = [
            not low / WIDER <= step <= high * WIDER for step, (low, high) in zip(spacing, known.spacing_mm, strict=True)
        ]
        if any(outside):
            ours = " x ".join(f"{step:.3g}" for step in spacing)
            ranges = " x ".join(
                f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}" for low, high in known.spacing_mm
            )
            differing["spacing"] = f"has a spacing of {ours} mm, the network was trained on {ranges} mm"
    return differing


def _oriented(scan: Scan, preprocess: Preprocess) -> tuple[float, ...]:
    """Spacing of a volume along the axes as they are stored."""
    affine = np.array(scan.grid.affine, float)
    if preprocess.orientation:
        _, affine = grid.orient(np.empty((1, 1, 1, 1), np.uint8), affine, preprocess.orientation)
    return grid.spacing_of(affine)
