"""``medssl probe``: what a frozen encoder's features tell, without a training schedule."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.data.labels.kinds.base import MASK, kind_of
from medssl.data.labels.selection import schema_of
from medssl.encoders.base import Encoder
from medssl.inference.predictor import Windows
from medssl.io.atomic_write import atomic_write
from medssl.io.documents import read_json
from medssl.io.permissions import owner_only
from medssl.io.trust import names
from medssl.metrics.probe_tables import table, write_table
from medssl.probing.feature_extractor import freeze, initial_weights_of_run, split_scans
from medssl.probing.scan_probe import ProbeResults, embed, first_line, probe_scans, refuse_kind, summarize
from medssl.probing.voxel_probe import ON_STORED_GRID, Voxels, levels_of, probe_voxels
from medssl.training.axes import open_store
from medssl.training.initial_weights import Allowed, refuse_test_subjects, with_channels
from medssl.training.settings import refuse_below
from medssl.training.versions import package_versions
from medssl.types import UserError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

RESULT = "probe.json"


@dataclass(frozen=True)
class ProbeResult:
    """What probes of frozen features measured.

    Attributes:
        out: Folder of the features, ``probe.json`` and ``probe.csv``.
        summary: What ``probe.json`` holds: probes, classes, number of scans of each split, notes.
        exit_code: 0.
    """

    out: Path
    summary: dict[str, Any] = field(repr=False)
    exit_code: int = 0

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Value of each measure on the test scans, by probe: ``result.metrics["voxel_logistic"]["dice"]``."""
        return {
            entry["probe"]: {measure: one["value"] for measure, one in entry["metrics"].items()}
            for entry in self.summary["probes"]
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the measures must know."""
        return tuple(self.summary["notes"])

    def __str__(self) -> str:
        return table(self.summary["probes"])


@owner_only()
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
) -> ProbeResult:
    """Measure how well the features of a frozen encoder predict labels.

    Writes ``probe.json`` and ``probe.csv``. Settings are chosen on the split "val", measures are of the split "test".
    Features are kept in the folder: another target or another number of labels does not embed again.

    Args:
        run: Run folder of ``medssl pretrain`` or ``medssl finetune``, its card, or a file of weights (with
            ``encoder``).
        store: Folder written by ``medssl cache``, with labels.
        out: Folder of the features and measures of this encoder; created if missing.
        target: "mask" probes voxels; the name of a scan-level value probes whole scans.
        from_scratch: Take random weights of the same architecture: the from-scratch baseline.
        encoder: Encoder: a preset or an import path. Needed if ``run`` is a file of weights; else that of the card is
            taken.
        labels: Number of labeled subjects of the split "train" to fit on, or a share of them (0.25), chosen as in
            ``medssl finetune``; None takes all.
        validation_labels: Number of subjects of the split "val" to choose settings on, at least 1; None takes all.
        seed: Seed of the choice of subjects, shots and voxels, and of random weights, 0 or more.
        shots: Numbers of scans per class that a prototype is the mean of, at least 1 each.
        draws: Number of random draws of shots, at least 1.
        voxels: Number of voxels to fit the voxel probe on, over all scans and classes, at least 1.
        levels: Maps of the encoder to use, 0 being the finest; None takes all.
        window: Voxels per axis that the encoder sees at once; None takes the window of the card.
        slice_axis: Stored axis across which 2D encoders cut slices from volumes, 0 to 2; None takes that of the card,
            or 2.
        windows: Sliding windows: overlap, batch size, precision, device and mirroring.
        allow: Names, with commas: "seen", "channels", "preprocess", as in ``medssl finetune``.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        The measures of each probe.

    Raises:
        UserError: Something the user can put right.
    """
    if windows.mirror not in ("trained", "none"):
        message = "features of mirrored windows are not averaged"
        raise UserError(message, key="windows.mirror", got=windows.mirror, expected="trained or none")
    least = {"shots": (1, min(shots, default=1)), "draws": (1, draws), "voxels": (1, voxels), "seed": (0, seed)}
    for key, (lowest, value) in least.items():
        refuse_below(lowest, key, value)
    initial = initial_weights_of_run(run, encoder, from_scratch=from_scratch, trust=names(trust))
    opened = open_store(store, initial, allow)
    initial = with_channels(initial, opened.channels, allow)
    schema = schema_of(opened, target, key="target")
    refuse_kind(schema)
    frozen, loaded = freeze(initial, opened, windows, window=window, slice_axis=slice_axis, seed=seed)
    axes = len(frozen.window)
    splits = split_scans(opened, schema, axes, labels=labels, validation_labels=validation_labels, seed=seed)
    leaks = refuse_test_subjects(opened, {"the encoder": initial.training_subjects}, allow)
    notes = list(map(str, leaks))
    settings: dict[str, Any] = {"seed": seed, "labels": labels, "validation_labels": validation_labels}
    per_voxel = kind_of(schema).per_voxel
    maps = levels_of(frozen, levels) if per_voxel else ()
    log.info(first_line(opened, splits, loaded))
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    if per_voxel:
        settings |= {"voxels": voxels, "levels": list(maps), "overlap": windows.overlap}
        found = probe_voxels(frozen, Voxels(opened, schema, maps, voxels, seed), splits, initial, out)
        results = ProbeResults([found], notes=[ON_STORED_GRID])
    else:
        settings |= {"shots": list(shots), "draws": draws}
        features = embed(frozen, opened, splits.everything, out)
        results = probe_scans(opened, schema, splits, features, shots=shots, draws=draws, seed=seed)
    made_by = {**frozen.made_by, "step": initial.card.step if initial.card and initial.weights else None, **settings}
    made_by |= {"store": opened.digest, "versions": package_versions(synthetic=opened.synthetic)}
    summary = summarize(schema, splits, results, notes=notes, by=made_by)
    write(out, summary)
    show(summary)
    return ProbeResult(out, summary)


# --- whole scans


# --- what is left behind


def write(out: Path, summary: dict[str, Any]) -> None:
    """Writes ``probe.json`` and ``probe.csv``; says so where they are those of another question."""
    path = out / RESULT
    if path.exists():
        former = read_json(path)
        same_settings = {key: former["by"].get(key) for key in summary["by"]} == summary["by"]
        if not same_settings or former["target"] != summary["target"]:
            labels = former["by"].get("labels")
            log.info(f"the measures of target {former['target']!r}, labels {labels} there are replaced")
    write_table(out / "probe.csv", summary["probes"])
    text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def show(summary: dict[str, Any]) -> None:
    """Shows the table, what was skipped, and notes."""
    log.info(table(summary["probes"]))
    for skipped in summary["skipped"]:
        log.info(f"skipped: {skipped['probe']}: {skipped['reason']}")
    if "embedding" in summary:
        embedding = summary["embedding"]
        most = min(embedding["scans"], embedding["features"])
        log.info(
            f"embedding of {embedding['scans']} scans: effective rank {embedding['effective_rank']:.1f} of at most "
            f"{most}, spread {embedding['spread']:.2f} (0 all alike, 1 every direction alike)"
        )
    for note in summary["notes"]:
        log.info(f"note: {note}")
