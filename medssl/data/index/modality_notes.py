"""What values say against their modality: a CT that nobody calls one, and a CT whose values are no Hounsfield units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.modality import KNOWN

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.data.index.scan_index import Index
    from medssl.types import Scan

_SAMPLED = 5
_LARGEST = 64 << 20  # bytes of a file that is read for a sample
_AIR, _PADDING = (-1100, -700), -1900
_AIR_SHARE, _HIGHEST = 0.01, 32767


def looks_like_ct(values: np.ndarray) -> bool:
    """Whether values may be Hounsfield units: whole numbers, a part of them air, and hardly any below but padding."""
    sample = values.ravel()
    sample = sample[:: max(1, sample.size // 1_000_000)]
    if sample.dtype.kind not in "iuf" or not sample.size or not np.isfinite(sample).all():
        return False
    if sample.dtype.kind == "f" and not np.array_equal(np.rint(sample), sample):
        return False
    air = float(np.mean((sample >= _AIR[0]) & (sample <= _AIR[1])))
    odd = float(np.mean((sample < _AIR[0]) & (sample > _PADDING)))
    return air >= _AIR_SHARE and odd < _AIR_SHARE and bool(sample.max() <= _HIGHEST)


def value_notes(index: Index) -> list[str]:
    """What values of a few files say against their modality, by data set: read once for each state of a data set."""
    notes = []
    datasets = [str(row[0]) for row in index.connection.execute("SELECT name FROM datasets ORDER BY name")]
    for dataset in datasets:
        for where, judge in (("value_domain = 'gray' AND modality = ''", _unsaid), ("value_domain = 'hu'", _said)):
            scans = _sample(index, f"{where} AND kind = 'volume'", dataset)
            if scans and (note := judge(scans, index.root)):
                notes.append(f"{dataset}: {note}")
    return notes


def unknown_notes(index: Index) -> list[str]:
    """Modalities of scans that are none of DICOM's."""
    query = "SELECT modality, count(*) FROM scans WHERE status = 'ok' AND modality <> '' GROUP BY 1 ORDER BY 1"
    odd = [f"{name!r} ({count:,} scans)" for name, count in index.connection.execute(query) if name not in KNOWN]
    return [f"modalities that are not known: {', '.join(odd)}"] if odd else []


def _sample(index: Index, where: str, dataset: str) -> list[Scan]:
    """A few good scans of files that are no DICOM and not large, the same ones for the same index."""
    query = f"""
        SELECT scans.scan_id FROM scans JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
        JOIN files ON files.id = parts.file
        WHERE scans.dataset = ? AND status = 'ok' AND {where} AND state = 'scan' AND size <= ?
        ORDER BY scans.scan_id LIMIT ?
    """
    rows = index.connection.execute(query, (dataset, _LARGEST, _SAMPLED)).fetchall()
    return [index.scan(str(row[0])) for row in rows]


def _arrays(scans: Sequence[Scan], root: Path) -> Iterator[np.ndarray]:
    """Images of scans, one at a time; the cache names those that cannot be read."""
    from medssl.data.formats.reading import ReadError, read

    for scan in scans:
        try:
            yield read(scan, root, with_label=False).image
        except ReadError:
            continue


def _unsaid(scans: Sequence[Scan], root: Path) -> str:
    signs = [looks_like_ct(array) for array in _arrays(scans, root)]
    if not any(signs):
        return ""
    return (
        f"{sum(signs)} of {len(signs)} files that were looked into look like CT (whole numbers, air near -1000): "
        "say files.modality CT, or their values are treated as gray without a unit"
    )


def _said(scans: Sequence[Scan], root: Path) -> str:
    ranges = [(float(array.min()), float(array.max())) for array in _arrays(scans, root)]
    if not ranges or any(low < 0 for low, _ in ranges):
        return ""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return (
        f"{len(ranges)} of {len(ranges)} files that were looked into have no air (values {low:.4g} to {high:.4g}): "
        "files.modality CT expects Hounsfield units; were 1024 added, or the values normalized?"
    )
