"""Folders of bags, and files as other programs lay them out, for tests."""

from __future__ import annotations

import csv

import numpy as np

from medssl.data.bags.description import BagEncoder, BagFacts, BagRecord
from medssl.data.bags.files import Bag
from medssl.data.bags.writer import BagWriter
from medssl.types.provenance import Provenance

SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 2


def facts(features=8, digest="abc", **changes):
    encoder = BagEncoder(digest, "toy", Provenance(("elsewhere",), complete=True))
    return BagFacts(encoder, features, **{"tile_px": 96, "spacing_mm": 0.001} | changes)


def bag(tiles=5, features=8, seed=0, shift=0.0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(tiles, features)).astype(np.float32)
    values[: max(1, tiles // 4)] += shift
    places = np.arange(tiles)
    return Bag(values, np.stack((places % 4, places // 4), 1) * 96)


def make_bags(path, count=20, *, features=8, slides_per_subject=2, seed=0, shift=3.0, digest="abc", values=None):
    """Bags with the value tumor yes or no, which a shift of some tiles shows; ten subjects."""
    with BagWriter(path, facts(features, digest)) as writer:
        for number in range(count):
            subject = number // slides_per_subject
            split = SPLITS[subject * len(SPLITS) // max(1, count // slides_per_subject)]
            positive = subject % 2
            own = {"tumor": "yes" if positive else "no"} | (values(number, positive) if values else {})
            record = BagRecord(f"s{number:03d}", f"p{subject:03d}", split, own)
            made = bag(4 + number % 5, features, seed * 1000 + number, shift * positive)
            writer.write(record, made)
    return path


def write_h5(path, features, coords, attributes=None, name="features", on="coords"):
    """A file as TRIDENT, CLAM or STAMP write it."""
    import h5py

    with h5py.File(path, "w") as file:
        file[name], file["coords"] = features, coords
        (file if on == "file" else file[on]).attrs.update(attributes or {})


def write_table(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
