"""``medssl probe``: what a frozen encoder's features tell, without a training schedule."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labelled import MASK, class_number, classes_of, subjects_of
from medssl.data.store import Store
from medssl.encoders.base import Encoder
from medssl.engine import describe, start
from medssl.engine.axes import open_store
from medssl.engine.frozen import Frozen, Splits, begin_of, freeze, scan_key, split_scans, subject_names
from medssl.engine.inference import Windows
from medssl.engine.kept import Kept
from medssl.engine.settings import refuse_below
from medssl.engine.start import Allowed
from medssl.engine.voxel_probe import ON_STORED_GRID, Voxels, levels_of, probe_voxels
from medssl.evaluate import health
from medssl.evaluate import probe as probes
from medssl.evaluate.classification import undefined
from medssl.evaluate.probe_tables import entry, table, write_table
from medssl.files import read_json, write_whole
from medssl.trust import names
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

RESULT = "probe.json"


def probe(  # noqa: PLR0913 (the keys of a command line)
    run: Path,
    *,
    store: Path,
    out: Path,
    target: str = MASK,
    from_scratch: bool = False,
    encoder: Callable[[], Encoder] | None = None,
    labels: int | float | None = None,
    validation_labels: int | None = None,
    seed: int = 0,
    shots: tuple[int, ...] = (1, 2, 5, 10, 20),
    draws: int = 20,
    voxels: int = 20_000,
    levels: tuple[int, ...] | None = None,
    window: tuple[int, ...] | None = None,
    slice_axis: int | None = None,
    windows: Windows = Windows(),  # noqa: B008 (frozen)
    allow: tuple[Allowed, ...] = (),
    trust: str = "",
) -> int:
    """Judge a frozen encoder by what its features tell; the same command goes on where it was stopped.

    Writes ``probe.json`` and ``probe.csv``. Settings are chosen on the split "val", measures are of the split "test".
    Features are kept in the folder: another target or another number of labels does not embed again.

    Args:
        run: Run folder of ``medssl pretrain`` or ``medssl finetune``, its card, or a file of weights (with an encoder).
        store: Folder made by ``medssl cache``, with labels.
        out: Folder of the features and measures of this one encoder; made if it is not there.
        target: "mask" probes voxels; the name of a scan-level value probes whole scans.
        from_scratch: Take random weights of the same architecture: the twin of a comparison.
        encoder: Another encoder than the one of the card; needed where ``run`` is a file of weights.
        labels: Labelled subjects of the split "train" to learn from, or a share of them (0.25), chosen as by
            ``medssl finetune``; null takes all.
        validation_labels: Subjects of the split "val" that settings are chosen by; null takes all.
        seed: Of the choice of subjects, shots and voxels, and of the random weights.
        shots: Scans of each class that a prototype is the mean of.
        draws: Draws of shots.
        voxels: Voxels that the probe of voxels learns from, over all scans and classes.
        levels: Maps of the encoder that it looks at, 0 the finest; null takes all.
        window: Voxels per axis that the encoder sees at once; null takes those of its card.
        slice_axis: Stored axis that slices of volumes are taken across, for 2D encoders; null takes that of the card,
            or 2.
        windows: How a scan is gone through.
        allow: As for ``medssl finetune``: "seen", "channels", "preprocess".
        trust: Classes of a card that may run although they are none of medssl's, by import path, several with commas.

    Returns:
        0.

    Raises:
        UserError: Something the user can put right.
    """
    os.umask(0o077)
    least = {"shots": (1, min(shots, default=1)), "draws": (1, draws), "voxels": (1, voxels), "seed": (0, seed)}
    for key, (lowest, value) in least.items():
        refuse_below(lowest, f"--{key}", value)
    begin = begin_of(run, encoder, from_scratch=from_scratch, trust=names(trust))
    opened = open_store(store, begin, allow)
    begin = start.with_channels(begin, opened.channels, allow)
    schema = classes_of(opened, target, key="--target")
    refuse_kind(schema)
    frozen, loaded = freeze(begin, opened, windows, window=window, slice_axis=slice_axis, seed=seed)
    axes = len(frozen.window)
    splits = split_scans(opened, schema, axes, labels=labels, validation_labels=validation_labels, seed=seed)
    notes = list(filter(None, [start.refuse_seen(opened, begin, allow)]))
    asked: dict[str, Any] = {"seed": seed, "labels": labels, "validation_labels": validation_labels}
    chosen = levels_of(frozen, levels) if target == MASK else ()
    print(first_line(opened, splits, loaded))
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    if target == MASK:
        asked |= {"voxels": voxels, "levels": list(chosen), "overlap": windows.overlap}
        found = probe_voxels(frozen, Voxels(opened, schema, chosen, voxels, seed), splits, begin, out)
        answers = Answers([found], notes=[ON_STORED_GRID])
    else:
        asked |= {"shots": list(shots), "draws": draws}
        features = embed(frozen, opened, splits.everything, out)
        answers = probe_scans(opened, schema, splits, features, shots=shots, draws=draws, seed=seed)
    made = {**frozen.made_by, "step": begin.card.step if begin.card and begin.weights else None, **asked}
    made |= {"store": describe.store_digest(opened), "versions": describe.versions(synthetic=opened.synthetic)}
    summary = summarise(schema, splits, answers, notes=notes, by=made)
    write(out, summary)
    tell(summary)
    return 0


@dataclass(frozen=True)
class Answers:
    """What probes found.

    Attributes:
        entries: A probe each, as ``evaluate.probe_tables.entry`` makes it.
        skipped: Probes that could not be, with the reason.
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
        UserError: Says what they are.
    """
    if schema.kind != "classes":
        message = f"{schema.name!r} is of the kind {schema.kind!r}: probes are for classes; choose another --target"
        raise UserError(message)


def first_line(store: Store, splits: Splits, loaded: str) -> str:
    """Weights, and labelled subjects and scans of each split."""
    parts = {"learn from": splits.learnt, "choose by": splits.validated, "measure on": splits.tested}
    counts = [f"{len(subjects_of(store, scans))} ({len(scans)}) to {what}" for what, scans in parts.items()]
    return f"{loaded}; labelled subjects (scans): {', '.join(counts)}"


# --- whole scans


def embed(frozen: Frozen, store: Store, scans: Sequence[int], out: Path) -> dict[int, Float[np.ndarray, "D"]]:
    """Features of scans by their number; those that the folder keeps are not computed again."""
    from tqdm import tqdm

    keys = [scan_key(store, scan) for scan in scans]
    with Kept(out / "features.safetensors", frozen.made_by, {}) as kept:
        for scan, key in zip(tqdm(scans, desc="embed", unit="scan"), keys, strict=True):
            if kept.get(key) is None:
                kept.add(key, pooled=frozen.embedding(frozen.scan(store, scan)))
        return {scan: kept.arrays[key]["pooled"] for scan, key in zip(scans, keys, strict=True)}


def probe_scans(
    store: Store,
    schema: LabelSchema,
    splits: Splits,
    features: dict[int, Float[np.ndarray, "D"]],
    *,
    shots: Sequence[int],
    draws: int,
    seed: int,
) -> Answers:
    """Fits all probes of whole scans and measures them.

    Raises:
        UserError: A class without a scan to learn from or to choose by, or features that are not finite.
    """
    from tqdm import tqdm

    names = [name for _, name in schema.classes]
    parts = (splits.learnt, splits.validated, splits.tested)
    train, validation, test = (group_of(store, schema, scans, features) for scans in parts)
    probes.refuse_not_finite(test)
    entries, skipped = [], []
    for fitted in probes.fit_probes(train, validation, names):
        metrics = probes.measure([fitted.answer(test.features)], test, names)
        best, chosen = max(auroc for _, auroc, _ in fitted.tried), f"{fitted.setting} {fitted.chosen:.3g}"
        entries.append(entry(fitted.name, chosen, best, metrics, tried=fitted.tried, note=fitted.note))
    fewest = int(np.bincount(train.truth, minlength=len(names)).min())
    for number in tqdm(sorted(set(shots)), desc="prototypes", unit="number of shots"):
        name = f"prototypes, {number} shot{'s' * (number > 1)}"
        drawn = probes.prototypes(train, len(names), number, draws=draws, seed=seed)
        if drawn is None:
            skipped.append((name, f"the rarest class has {fewest} training scan{'s' * (fewest > 1)}"))
            continue
        scores = [answer(test.features) for answer in drawn]
        deviations = probes.deviation_over_draws(scores, test, names)
        metrics = probes.measure(scores, test, names)
        entries.append(entry(name, f"{draws} draws", None, metrics, deviations=deviations))
    notes = sorted({f"{measure}: {why}" for measure, why in undefined(test.truth, names).items() if ":" not in measure})
    return Answers(entries, skipped, notes, describe_embedding(features))


def group_of(
    store: Store, schema: LabelSchema, scans: tuple[int, ...], features: dict[int, Float[np.ndarray, "D"]]
) -> probes.Group:
    """The scans of a split with their classes."""
    return probes.Group(
        np.stack([features[scan] for scan in scans]).astype(np.float64),
        np.array([class_number(store.records.values(scan), schema) for scan in scans]),
        subject_names(store, scans),
        tuple(store.scan_id(scan) for scan in scans),
    )


def describe_embedding(features: dict[int, Float[np.ndarray, "D"]]) -> dict[str, Any]:
    """How much of their room the features of all labelled scans use."""
    held = np.stack(list(features.values()))
    rank, spread = health.effective_rank(held), health.spread(held)
    return {"scans": len(held), "features": held.shape[1], "effective_rank": rank, "spread": spread}


# --- what is left behind


def summarise(
    schema: LabelSchema, splits: Splits, answers: Answers, *, notes: list[str], by: dict[str, Any]
) -> dict[str, Any]:
    """What ``probe.json`` holds."""
    found = {} if answers.embedding is None else {"embedding": answers.embedding}
    said = [f"{own['probe']}: {own['note']}" for own in answers.entries if own["note"]]
    return {
        "target": schema.name,
        "classes": [name for value, name in schema.classes if value != schema.ignore],
        "scans": {"train": len(splits.learnt), "val": len(splits.validated), "test": len(splits.tested)},
        "probes": answers.entries,
        "skipped": [{"probe": name, "reason": reason} for name, reason in answers.skipped],
        **found,
        "notes": [*notes, *answers.notes, *said],
        "by": by,
    }


def write(out: Path, summary: dict[str, Any]) -> None:
    """Writes ``probe.json`` and ``probe.csv``; says so where they are those of another question."""
    path = out / RESULT
    if path.exists():
        then = read_json(path)
        if {key: then["by"].get(key) for key in summary["by"]} != summary["by"] or then["target"] != summary["target"]:
            print(f"the measures of target {then['target']!r}, labels {then['by'].get('labels')} there are replaced")
    write_table(out / "probe.csv", summary["probes"])
    text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def tell(summary: dict[str, Any]) -> None:
    """Prints the table."""
    print(table(summary["probes"]))
    for skipped in summary["skipped"]:
        print(f"skipped: {skipped['probe']}: {skipped['reason']}")
    if "embedding" in summary:
        own = summary["embedding"]
        most = min(own["scans"], own["features"])
        print(
            f"embedding of {own['scans']} scans: effective rank {own['effective_rank']:.1f} of at most {most}, spread "
            f"{own['spread']:.2f} (0 all alike, 1 every direction alike)"
        )
    for note in summary["notes"]:
        print(f"note: {note}")
