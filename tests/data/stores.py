"""Small stores for tests: scans out of memory instead of files."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from medssl.data.formats.reading import Volume
from medssl.data.store import records, writer
from medssl.data.store.store import Store
from medssl.data.store.writer import StorePlan
from medssl.types import Digests, Grid, Labels, Part, Preprocess, Scan, Source, Subject

PLAIN = Preprocess(orientation=None, foreground_crop=False)


def volume(image, affine=None, label=None, excluded=None):
    """A scan as ``read`` gives it; ``image`` [C, *s]."""
    affine = np.eye(image.ndim) if affine is None else np.asarray(affine, float)
    return Volume(image, affine, tuple(np.linalg.norm(affine[:-1, :-1], axis=0)), label, (), excluded)


def scan_of(scan_id, held, *, subject=None, split="train", domain="mr", source="v1", values=(), dataset="set"):
    """The index's entry for a volume in memory."""
    image = held.image
    kind = "volume" if image.ndim == 4 else "image"
    affine = tuple(map(tuple, held.affine.tolist()))
    return Scan(
        scan_id,
        Subject(subject or f"subject-{scan_id}", split=split),
        Source(dataset, kind, "MR", domain, (Part(f"{scan_id}.nii"),), ("",) * len(image)),
        Grid(tuple(image.shape[1:]), held.spacing_mm, affine),
        Digests(source),
        Labels(
            (Part(f"{scan_id}.label.nii"),) if held.label is not None else (),
            tuple(values),
            (Part(f"{scan_id}.excluded.nii"),) if held.excluded is not None else (),
        ),
    )


def fill_store(path: Path, volumes: dict, monkeypatch, *, preprocess=PLAIN, tier="chunked", **scan_options) -> Store:
    """Stores volumes {scan_id: Volume}; options of ``scan_of`` may be functions of the identifier."""
    monkeypatch.setattr(writer, "read", lambda scan, root: volumes[scan.scan_id])
    Store.create(path, preprocess, tier=tier)
    plan = StorePlan(path, path, preprocess, tier, {})
    options = {name: f if callable(f) else (lambda _, f=f: f) for name, f in scan_options.items()}
    scans = [scan_of(i, v, **{k: f(i) for k, f in options.items()}) for i, v in sorted(volumes.items())]
    with closing(records.connect(path / "records.sqlite")) as connection:
        for job in writer.jobs(plan, scans, connection):
            outcome = writer.write_scans(plan, job)
            assert not outcome.skipped, outcome.skipped
            writer.record_outcome(plan, connection, outcome)
    return Store.open(path)


def numbered(shape, channels=1, dtype=np.int16, seed=0):
    """Noise with enough structure that any two boxes differ."""
    generator = np.random.default_rng(seed)
    high = 255 if dtype == np.uint8 else 3000
    return generator.integers(0, high, (channels, *shape)).astype(dtype)
