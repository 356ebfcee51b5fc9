"""The probe of voxels over whole scans: sample, fit, choose by validation Dice, measure, keep the fitted network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medssl.data.labels.trained_on import trained_on
from medssl.heads.base import Network, class_numbers
from medssl.heads.segmentation import VoxelLinear
from medssl.heads.sliding import slide
from medssl.heads.weights import save_network
from medssl.metrics import voxel_probe
from medssl.metrics.bootstrap import mean_interval
from medssl.metrics.probe_tables import entry
from medssl.metrics.voxel_probe import Candidate, Candidates, set_weights
from medssl.ops.draws import keyed_generator
from medssl.probing.feature_cache import FeatureCache
from medssl.training.versions import package_versions
from medssl.types import Card, Imported, LabelSchema, Tuned, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.data.store.store import Store
    from medssl.probing.feature_extractor import FrozenEncoder, Splits
    from medssl.training.initial_weights import InitialWeights

PROBABILITY_BYTES = 1 << 30  # that the candidates of one pass may take
ON_STORED_GRID = "Dice is on the grid of the store; for the scans' own grids, evaluate the folder network/"


@dataclass(frozen=True)
class Voxels:
    """Scans, masks and maps of a voxel probe.

    Attributes:
        store: The scans and masks.
        schema: Classes of the masks.
        levels: Places of the encoder's maps that are used, fine to coarse.
        sampled: Voxels to fit on, over all scans and classes.
        seed: Seed of their selection.
    """

    store: Store
    schema: LabelSchema
    levels: tuple[int, ...]
    sampled: int
    seed: int

    def numbers(self, scan: int) -> Int[np.ndarray, "*s"]:
        """Class numbers of a scan's mask, negative where the class is not known."""
        shape = self.store.shape(scan)
        label = self.store.read_label(scan, (0,) * len(shape), shape)[0].astype(np.int64)
        result: Int[np.ndarray, "*s"] = class_numbers(torch.from_numpy(label), self.schema).numpy()
        return result

    def counts(self, scan: int) -> Int[np.ndarray, "K"]:
        """Voxels of each class."""
        numbers = self.numbers(scan)
        return np.bincount(numbers[numbers >= 0], minlength=len(self.schema.classes))


def levels_of(frozen: FrozenEncoder, levels: tuple[int, ...] | None) -> tuple[int, ...]:
    """Places of the encoder's maps: those that are given, or all.

    Raises:
        UserError: The encoder has no such map.
    """
    count = len(frozen.encoder.channels)
    places = tuple(range(count)) if levels is None else tuple(sorted(set(levels)))
    if not places or not 0 <= places[0] <= places[-1] < count:
        message = f"the encoder has the maps 0 (fine) to {count - 1} (coarse)"
        raise UserError(message, key="levels", got=list(levels or ()))
    return places


def probe_voxels(
    frozen: FrozenEncoder, voxels: Voxels, splits: Splits, initial: InitialWeights, out: Path
) -> dict[str, Any]:
    """Fits, chooses and measures; returns the entry of ``probe.json`` and leaves the network in ``out/network``.

    Raises:
        UserError: A class without a voxel among the training or the validation scans, or features that are not finite.
    """
    store, schema = voxels.store, voxels.schema
    in_validation = np.sum([voxels.counts(scan) for scan in splits.validated], 0)
    voxel_probe.refuse_absent("validation", in_validation, schema)
    features, truth, counts = sample(frozen, voxels, splits.learned, out)
    candidates = voxel_probe.fit_candidates(features, truth, counts.tolist(), schema)
    scores = score_candidates(frozen, voxels, splits.validated, candidates, out / "voxels_val.safetensors")
    place, dice = voxel_probe.choose(scores, store.subjects(splits.validated))
    best = candidates[place]
    head = VoxelLinear(frozen.encoder, schema)
    set_weights(head, [best.linear], voxels.levels)
    save_network(out / "network", Network(frozen.encoder, head), card_of(frozen, voxels, splits, initial))
    test_scores = score_candidates(frozen, voxels, splits.tested, [best], out / "voxels_test.safetensors")
    measured = [rows[0] for rows in test_scores]
    subjects = store.subjects(splits.tested)
    known = [[value for value in row if value is not None] for row in measured]
    metrics = {"dice": mean_interval([sum(row) / len(row) if row else None for row in known], subjects)}
    for number, (value, name) in enumerate(schema.classes[1:]):
        if value != schema.ignore:
            metrics[f"dice:{name}"] = mean_interval([row[number] for row in measured], subjects)
    end = best.penalty in (candidates[0].penalty, candidates[-1].penalty)
    return entry(
        "voxel_logistic",
        f"penalty {best.penalty:g}, prior {best.prior:g}",
        dice[place],
        metrics,
        tried=[(candidate.penalty, candidate.prior, value) for candidate, value in zip(candidates, dice, strict=True)],
        note=f"the penalty {best.penalty:g} is the end of the range that was tried" if end else "",
    )


def sample(
    frozen: FrozenEncoder, voxels: Voxels, scans: Sequence[int], out: Path
) -> tuple[Float[np.ndarray, "M D"], Int[np.ndarray, "M"], Int[np.ndarray, "K"]]:
    """Features and class numbers of sampled voxels, and how many voxels of each class the scans have.

    The voxels of a scan are drawn by the seed and its stored content, whatever folder or time its file has.
    """
    from tqdm.auto import tqdm

    classes = len(voxels.schema.classes)
    per_class = max(1, round(voxels.sampled / len(scans) / classes))
    settings = {"per_class": per_class, "seed": voxels.seed, "levels": voxels.levels, "schema": _plain(voxels.schema)}
    settings |= {"drawn_by": "content"}  # not the samples of versions that drew by the file's time
    keys = [voxels.store.key(scan) for scan in scans]
    with FeatureCache(out / "voxels_train.safetensors", frozen.made_by, settings) as cache:
        for scan, key in zip(tqdm(scans, desc="sample", unit="scan"), keys, strict=True):
            if cache.get(key) is None:
                numbers = voxels.numbers(scan)
                generator = keyed_generator(voxels.seed, voxels.store.content(scan) >> 16, "voxels")
                places = voxel_probe.sample_voxels(numbers, classes, per_class, generator)
                truth = numbers[tuple(places.T)]
                features = features_of_voxels(frozen, voxels, scan, places)
                cache.add(key, features=features, truth=truth, counts=voxels.counts(scan))
        arrays = [cache.arrays[key] for key in keys]
    counts: Int[np.ndarray, "K"] = np.sum([entry["counts"] for entry in arrays], 0)
    features, truth = (np.concatenate([entry[name] for entry in arrays]) for name in ("features", "truth"))
    return features, truth, counts


def features_of_voxels(
    frozen: FrozenEncoder, voxels: Voxels, scan: int, places: Int[np.ndarray, "M n"]
) -> Float[np.ndarray, "M D"]:
    """Features of voxels of a scan, each from the first window that covers it; one window is in memory at a time."""
    width = sum(frozen.encoder.channels[level] for level in voxels.levels)
    result, left = np.zeros((len(places), width), np.float32), np.ones(len(places), bool)
    for start, order, features in frozen.features(frozen.scan(voxels.store, scan)):
        box = [1] * places.shape[1]
        for axis, size in zip(order, frozen.window, strict=True):
            box[axis] = size
        offset = places - np.array(start)
        inside = np.flatnonzero(left & ((offset >= 0) & (offset < box)).all(1))
        if len(inside):
            left[inside] = False
            chosen_maps = replace(features, maps=tuple(features.maps[level] for level in voxels.levels))
            at = torch.from_numpy(offset[inside][:, list(order)]).to(chosen_maps.maps[0].device)
            result[inside] = voxel_probe.features_at(chosen_maps, frozen.window, at).cpu().numpy()
    assert not left.any(), "the windows do not cover the scan"
    return result


def score_candidates(
    frozen: FrozenEncoder, voxels: Voxels, scans: Sequence[int], candidates: Sequence[Candidate], file: Path
) -> list[voxel_probe.Scores]:
    """Dice of every candidate on every scan, by sliding windows; scans in the cache are not segmented again."""
    from tqdm.auto import tqdm

    digest = hashlib.blake2b(digest_size=8)
    for candidate in candidates:
        linear = candidate.linear
        for array in (linear.mean, linear.deviation, linear.weight, linear.bias):
            digest.update(np.ascontiguousarray(array).tobytes())
    settings = {"weights": digest.hexdigest(), "levels": voxels.levels, "overlap": frozen.windows.overlap}
    with FeatureCache(file, frozen.made_by, settings) as cache:
        for scan in tqdm(scans, desc=file.stem, unit="scan"):
            key = voxels.store.key(scan)
            if cache.get(key) is None:
                rows = dice_of(frozen, voxels, scan, candidates)
                values = [[np.nan if value is None else value for value in row] for row in rows]
                cache.add(key, dice=np.array(values))
        tables = [cache.arrays[voxels.store.key(scan)]["dice"].tolist() for scan in scans]
    return [[[None if np.isnan(value) else value for value in row] for row in rows] for rows in tables]


def dice_of(frozen: FrozenEncoder, voxels: Voxels, scan: int, candidates: Sequence[Candidate]) -> voxel_probe.Scores:
    """Dice of every candidate on a scan; as many at once as the memory for their probabilities allows."""
    stored = frozen.scan(voxels.store, scan)
    numbers: Tensor = torch.from_numpy(voxels.numbers(scan)).movedim(stored.axis, 0)
    slab = min(stored.shape[stored.axis], max(frozen.window)) * numbers[0].numel() * len(voxels.schema.classes) * 4
    at_once, rows = max(1, PROBABILITY_BYTES // slab), []
    for first in range(0, len(candidates), at_once):
        group = [candidate.linear for candidate in candidates[first : first + at_once]]
        head = Candidates(frozen.encoder, voxels.schema, group, voxels.levels)
        network = Network(frozen.encoder, head.to(next(frozen.encoder.parameters()).device)).eval()
        with frozen.computing():
            blocks = slide(
                network, stored.read, stored.shape, window=frozen.window, axis=stored.axis, plane=stored.plane,
                overlap=frozen.windows.overlap, batch_size=frozen.windows.batch_size,
            )  # fmt: skip
            rows += voxel_probe.dice_of_candidates(blocks, numbers, len(group))
    return rows


def card_of(frozen: FrozenEncoder, voxels: Voxels, splits: Splits, initial: InitialWeights) -> Card:
    """Card of the fitted network."""
    head = Imported("medssl.heads.segmentation.VoxelLinear")
    subjects = voxels.store.distinct_subjects((*splits.learned, *splits.validated))
    return Card(
        encoder=initial.encoder,
        preprocess=voxels.store.preprocess,
        objective=initial.card.objective if initial.card and initial.weights else None,
        index_digest=voxels.store.index_digest,
        subjects=initial.provenance,
        step=initial.card.step if initial.card and initial.weights else 0,
        versions=package_versions(),
        tuned=Tuned(
            head,
            voxels.schema,
            frozen.window,
            frozen.slice_axis,
            subjects,
            trained_on(voxels.store, splits.learned, voxels.schema),
        ),
    )


def _plain(schema: LabelSchema) -> list[Any]:
    return [list(map(list, schema.classes)), schema.ignore]
