"""Names and digests in a store: keys of scans, their files, digests of their contents."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.data.store.preprocess import Prepared
    from medssl.types import Preprocess, Scan

Tier = Literal["chunked", "raw", "slides"]
FORMAT = 1
SMALL = {2: 1 << 20, 3: 1 << 18}  # bytes below which an image or a volume goes into a pack and is decoded whole


def scan_key(scan: Scan, preprocess: Preprocess, tier: Tier) -> str:
    """Digest of everything that decides a scan's stored bytes: its files, those of its masks, the rules."""
    parts = [scan.scan_id, scan.digests.source, preprocess.digest(), tier, FORMAT]
    parts += [f"{part.path}#{part.frame}" for part in scan.labels.mask]
    parts += [f"excluded {part.path}#{part.frame}" for part in scan.labels.excluded]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def scan_file(path: Path, key: str, part: str, tier: Tier) -> Path:
    """File of a scan that is not packed."""
    name = f"{key}.{part}" if part else key
    return path / "scans" / key[:2] / (name + (".b2nd" if tier == "chunked" else ".npy"))


def content_digest(prepared: Prepared) -> str:
    """Digest of the stored voxels, what they mean and their label: whatever file they came from, and when."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(f"{prepared.image.shape}{prepared.image.dtype}".encode())
    digest.update(prepared.coding.intensity[:, :2].tobytes())
    if prepared.coding.excluded:
        digest.update(b"excluded")  # the same code can be a value like any other
    digest.update(np.ascontiguousarray(prepared.image).data)
    if prepared.label is not None:
        digest.update(prepared.label.dtype.name.encode())
        digest.update(np.ascontiguousarray(prepared.label).data)
    return digest.hexdigest()
