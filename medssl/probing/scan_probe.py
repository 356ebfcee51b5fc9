"""Probes of whole scans: embed, fit, measure, and the tables of what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.kinds.classes import class_number
from medssl.data.store.store import Store
from medssl.metrics import scan_probe as probes
from medssl.metrics.classification import undefined
from medssl.metrics.embedding_measures import effective_rank
from medssl.metrics.embedding_measures import spread as spread_of
from medssl.metrics.probe_tables import entry
from medssl.probing.feature_cache import FeatureCache
from medssl.probing.feature_extractor import FrozenEncoder, Splits
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float


@dataclass(frozen=True)
class ProbeResults:
    """What probes measured.

    Attributes:
        entries: One for each probe, as of ``metrics.probe_tables.entry``.
        skipped: Probes that could not be fitted, with the reason.
        notes: What a reader must know.
        embedding: What is known of the features without labels.
    """

    entries: list[dict[str, Any]]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    embedding: dict[str, Any] | None = None


def refuse_kind(schema: LabelSchema) -> None:
    """Refuses labels that are no classes.

    Raises:
        UserError: Names their kind.
    """
    kind = kind_of(schema)
    if not kind.one_class:
        message = f"labels of the kind {kind.name!r}, probes are for classes"
        raise UserError(message, key="target", got=schema.name, hint="Choose another target")


def first_line(store: Store, splits: Splits, loaded: str) -> str:
    """Weights, and labeled subjects and scans of each split."""
    parts = {"learn from": splits.learned, "choose by": splits.validated, "measure on": splits.tested}
    counts = [f"{len(store.distinct_subjects(scans))} ({len(scans)}) to {what}" for what, scans in parts.items()]
    return f"{loaded}; labeled subjects (scans): {', '.join(counts)}"


def embed(frozen: FrozenEncoder, store: Store, scans: Sequence[int], out: Path) -> dict[int, Float[np.ndarray, "D"]]:
    """Features of scans by their number; those in the folder's feature cache are not computed again."""
    from tqdm.auto import tqdm

    keys = [store.key(scan) for scan in scans]
    with FeatureCache(out / "features.safetensors", frozen.made_by, {}) as cache:
        for scan, key in zip(tqdm(scans, desc="embed", unit="scan"), keys, strict=True):
            if cache.get(key) is None:
                cache.add(key, pooled=frozen.embedding(frozen.scan(store, scan)))
        return {scan: cache.arrays[key]["pooled"] for scan, key in zip(scans, keys, strict=True)}


def probe_scans(
    store: Store,
    schema: LabelSchema,
    splits: Splits,
    features: dict[int, Float[np.ndarray, "D"]],
    *,
    shots: Sequence[int],
    draws: int,
    seed: int,
) -> ProbeResults:
    """Fits all probes of whole scans and measures them.

    Raises:
        UserError: A class without a scan to learn from or to choose by, or features that are not finite.
    """
    from tqdm.auto import tqdm

    names = [name for _, name in schema.classes]
    parts = (splits.learned, splits.validated, splits.tested)
    train, validation, test = (group_of(store, schema, scans, features) for scans in parts)
    probes.refuse_not_finite(test)
    entries, skipped = [], []
    for fitted in probes.fit_probes(train, validation, names):
        metrics = probes.measure([fitted.predict(test.features)], test, names)
        best, chosen = max(auroc for _, auroc, _ in fitted.tried), f"{fitted.setting} {fitted.chosen:.3g}"
        entries.append(entry(fitted.name, chosen, best, metrics, tried=fitted.tried, note=fitted.note))
    fewest = int(np.bincount(train.truth, minlength=len(names)).min())
    for number in tqdm(sorted(set(shots)), desc="prototypes", unit="number of shots"):
        name = f"prototypes, {number} shot{'s' * (number > 1)}"
        drawn = probes.prototypes(train, len(names), number, draws=draws, seed=seed)
        if drawn is None:
            skipped.append((name, f"the rarest class has {fewest} training scan{'s' * (fewest > 1)}"))
            continue
        scores = [predict(test.features) for predict in drawn]
        deviations = probes.deviation_over_draws(scores, test, names)
        metrics = probes.measure(scores, test, names)
        entries.append(entry(name, f"{draws} draws", None, metrics, deviations=deviations))
    notes = sorted({f"{measure}: {why}" for measure, why in undefined(test.truth, names).items() if ":" not in measure})
    return ProbeResults(entries, skipped, notes, describe_embedding(features))


def group_of(
    store: Store, schema: LabelSchema, scans: tuple[int, ...], features: dict[int, Float[np.ndarray, "D"]]
) -> probes.Group:
    """The scans of a split with their classes."""
    return probes.Group(
        np.stack([features[scan] for scan in scans]).astype(np.float64),
        np.array([class_number(store.values(scan), schema) for scan in scans]),
        store.subjects(scans),
        tuple(store.scan_id(scan) for scan in scans),
    )


def describe_embedding(features: dict[int, Float[np.ndarray, "D"]]) -> dict[str, Any]:
    """Effective rank and spread of the features of all labeled scans."""
    embeddings = np.stack(list(features.values()))
    rank, spread = effective_rank(embeddings), spread_of(embeddings)
    return {"scans": len(embeddings), "features": embeddings.shape[1], "effective_rank": rank, "spread": spread}


def summarize(
    schema: LabelSchema, splits: Splits, results: ProbeResults, *, notes: list[str], by: dict[str, Any]
) -> dict[str, Any]:
    """What ``probe.json`` holds."""
    embedding = {} if results.embedding is None else {"embedding": results.embedding}
    entry_notes = [f"{entry['probe']}: {entry['note']}" for entry in results.entries if entry["note"]]
    return {
        "target": schema.name,
        "classes": [name for value, name in schema.classes if value != schema.ignore],
        "scans": {"train": len(splits.learned), "val": len(splits.validated), "test": len(splits.tested)},
        "probes": results.entries,
        "skipped": [{"probe": name, "reason": reason} for name, reason in results.skipped],
        **embedding,
        "notes": [*notes, *results.notes, *entry_notes],
        "by": by,
    }
