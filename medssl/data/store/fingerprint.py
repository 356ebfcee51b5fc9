"""Intensities of a collection: percentiles, mean and deviation of its foreground, measured once.

After nnU-Net's fingerprint (Isensee et al., Nature Methods 2021): the same number of voxels is drawn from each scan, so
that large scans do not weigh more. Foreground are the labeled voxels, where some scans have masks; only these scans
count then. Without masks it is what is above the background. Scans of the split "test" are left out where others exist.
Draws are keyed by the scan, and samples are kept until the store has its rules: a run that was stopped continues.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.masks import check_label
from medssl.data.formats.reading import read
from medssl.data.store import chunks, coding
from medssl.data.store.naming import scan_key
from medssl.data.store.preprocess import prepare
from medssl.data.store.spacing import significant
from medssl.data.store.unchanged import UNREADABLE, refuse_changed
from medssl.ops.draws import keyed_generator
from medssl.types import IntensityRule, IntensityRules, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from medssl.types import LabelSchema, Preprocess, Scan, ValueDomain

VOXELS = 10_000  # drawn from each scan and channel
SCANS = 500  # measured at most
FOLDER = ".fingerprint"
TERMS = {"hu": "CT", "mr": "MR", "gray": "a gray image", "rgb": "a color image"}
AS_STORED = IntensityRule("none", normalize="none")


@dataclass(frozen=True)
class Sampling:
    """How the voxels of scans are drawn.

    Attributes:
        root: Folder that paths of scans start from.
        folder: Folder of the samples.
        preprocess: Rules up to the intensities.
        schemas: Class map of each data set, or None.
        is_labeled: Whether foreground are the labeled voxels.
    """

    root: Path
    folder: Path
    preprocess: Preprocess
    schemas: dict[str, LabelSchema | None]
    is_labeled: bool

    def file(self, scan: Scan) -> Path:
        """File of a scan's sample."""
        kind = "labeled" if self.is_labeled else "foreground"
        return self.folder / f"{scan_key(scan, self.preprocess, 'raw')}.{kind}.f4"


def sampling_of(scans: Iterable[Scan], domain: ValueDomain) -> tuple[tuple[Scan, ...], bool]:
    """Scans of a domain that are measured, and whether their labeled voxels are."""
    of_domain = [scan for scan in scans if scan.source.value_domain == domain]
    chosen = [scan for scan in of_domain if scan.subject.split != "test"] or of_domain
    masked = [scan for scan in chosen if scan.labels.mask]
    ordered = sorted(masked or chosen, key=lambda scan: hashlib.blake2b(scan.scan_id.encode()).digest())
    return tuple(sorted(ordered[:SCANS], key=lambda scan: scan.scan_id)), bool(masked)


def rules_of_sample(preprocess: Preprocess) -> Preprocess:
    """The rules of a store up to the intensities, on the voxels of the file."""
    plain = IntensityRules(AS_STORED, AS_STORED, AS_STORED, AS_STORED)
    return replace(preprocess, spacing_mm=None, isotropic=None, image_size=None, intensity=plain)


def draw_samples(sampling: Sampling, scans: Sequence[Scan], tell: Callable[[int], None] = lambda _number: None) -> int:
    """Writes the samples of scans that are not there yet; returns how many scans could not be read."""
    failed = 0
    for number, scan in enumerate(scans):
        tell(number)
        if sampling.file(scan).exists():
            continue
        try:
            values = _sample(sampling, scan)
        except UNREADABLE:  # it is skipped with its reason when it is to be stored
            failed += 1
            continue
        sampling.folder.mkdir(mode=0o700, exist_ok=True)  # another run of the same store may have finished
        chunks.write_parts(sampling.file(scan), [values.astype("<f4").tobytes()])
    return failed


def _sample(sampling: Sampling, scan: Scan) -> NDArray[np.float32]:
    """Values of voxels that are drawn from the foreground of a scan, of all channels."""
    refuse_changed(scan, sampling.root)
    volume, domain, schema = (
        read(scan, sampling.root),
        scan.source.value_domain,
        sampling.schemas.get(scan.source.dataset),
    )
    if volume.label is not None:
        check_label(volume.label, schema)
    prepared = prepare(volume, sampling.preprocess, domain=domain)
    values = coding.decode(prepared.image, prepared.coding.intensity, normalize=False)
    included = prepared.image[0] != coding.EXCLUDED if prepared.coding.excluded else None
    if sampling.is_labeled:
        mask = np.zeros(values.shape[1:], bool)
        if prepared.label is not None:
            mask = prepared.label[0] > 0
            if schema is not None and schema.ignore is not None:
                mask &= prepared.label[0] != schema.ignore
    else:
        limits = coding.thresholds(values, domain, sampling.preprocess.background, included)
        mask = coding.foreground_mask(values, limits)
    places = np.flatnonzero(mask if included is None else mask & included)
    if not len(places):
        return np.empty(0, np.float32)
    generator = keyed_generator(0, 0, f"fingerprint {scan.scan_id}")
    drawn = places[generator.integers(0, len(places), VOXELS)]
    sample: NDArray[np.float32] = values.reshape(len(values), -1)[:, drawn].ravel()
    return sample


def measured(
    rule: IntensityRule, sampling: Sampling, scans: Sequence[Scan], domain: ValueDomain
) -> tuple[IntensityRule, str]:
    """The rule with numbers in place of "collection", and a line that says them.

    Raises:
        UserError: No scan of the domain, or none has a foreground voxel.
    """
    key = f"preprocess.intensity.{domain}"
    files = [sampling.file(scan) for scan in scans if sampling.file(scan).exists()]
    values = [np.frombuffer(file.read_bytes(), "<f4") for file in files]
    values = [each for each in values if len(each)]
    if not values:
        message = f"no {'labeled' if sampling.is_labeled else 'foreground'} voxel in {len(files)} of the scans"
        raise UserError(message, key=key, hint="Give a range of values instead of collection")
    pooled = np.concatenate(values).astype(np.float64)
    low, high = (significant(x) for x in np.percentile(pooled, [rule.low, rule.high]))
    mean, deviation = significant(float(pooled.mean())), significant(float(pooled.std()))
    parts, measured = [], rule
    if rule.clip == "collection":
        if low >= high:
            message = f"the foreground of the collection has one value, {low:.6g}"
            raise UserError(message, key=key, hint="Give a range of values instead of collection")
        parts.append(f"clip to {low:.6g} and {high:.6g} (percentiles {rule.low:g} and {rule.high:g})")
        measured = replace(measured, clip="range", low=low, high=high)
    if rule.normalize == "collection":
        parts.append(f"mean {mean:.6g}, deviation {deviation:.6g}")
        measured = replace(measured, normalize="fixed", mean=mean, deviation=deviation or 1.0)
    what = "labeled" if sampling.is_labeled else "foreground"
    return measured, f"{key}: {', '.join(parts)}, of {len(pooled):,} {what} voxels in {len(values)} scans"


def refuse_none(scans: Sequence[Scan], domain: ValueDomain) -> None:
    """Refuses a collection without scans of the domain that a rule is measured on.

    Raises:
        UserError: Names the domain.
    """
    if scans:
        return
    message = f"is measured on the collection, and none of the selected scans is {TERMS[domain]}"
    hint = "Choose another preset of preprocess, or set clip and normalize to rules without collection"
    raise UserError(message, key=f"preprocess.intensity.{domain}", hint=hint)
