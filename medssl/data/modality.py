"""Words for modalities, and what values look like: a CT that nobody calls one, and a CT whose values are no HU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.data.index import Index
    from medssl.types import Scan

KNOWN = frozenset(
    (
        "CT MR PT NM US XA RF CR DX MG IO PX OP OPT OCT IVUS IVOCT ES XC GM SM BI BMD DG ECG EPS HC IR LS OAM OT TG VL "
        "AR BDUS CFM DMS DR FA CP CS EC LP MA MS OPM OPTENF OPTBSV PA POS ST VF DS CD RG RTIMAGE SEG"
    ).split()
)
_WORDS = {
    "CT": "cat computed_tomography computer_tomography cbct cect ldct hrct",
    "MR": "mri mrt nmr magnetic_resonance magnetic_resonance_imaging t1 t1w t2 t2w flair dwi",
    "PT": "pet positron positron_emission_tomography",
    "NM": "spect scintigraphy nuclear_medicine",
    "US": "ultrasound sonography echo echocardiography echography",
    "DX": "xr x_ray xray radiograph radiography cxr x_rays",
    "MG": "mammography mammogram mammo",
    "OP": "fundus ophthalmic_photography",
    "OPT": "oct optical_coherence_tomography",
    "ES": "endoscopy",
    "SM": "slide microscopy slide_microscopy histology histopathology pathology",
    "XC": "photo photograph photography dermoscopy",
    "XA": "angiography x_ray_angiography",
    "RF": "fluoroscopy",
    "OT": "other",
}  # fmt: skip
_BY_WORD = {word: term for term, words in _WORDS.items() for word in words.split()}
_SAMPLED = 5
_LARGEST = 64 << 20  # bytes of a file that is read for a sample
_AIR, _PADDING = (-1100, -700), -1900
_AIR_SHARE, _HIGHEST = 0.01, 32767


def modality_of(text: str) -> str:
    """A modality in DICOM's terms.

    Args:
        text: One of them, or a usual word, in any case ("MRI", "ct ", "X-ray"); empty stays empty.

    Raises:
        UserError: A word that is not known; lists those that are.
    """
    word = text.strip().upper()
    term = normalized(word)
    if term and term not in KNOWN:
        usual = "CT, MR, PT, NM, US, DX, CR, MG, XA, RF, OP, OPT, ES, XC, SM, OT"
        message = f"--files.modality {text!r} is not known: say one of {usual}, or another of DICOM's modalities"
        raise UserError(message)
    return term


def normalized(text: str) -> str:
    """A modality in DICOM's terms where it is known; otherwise the word as it is, in upper case and without padding."""
    word = text.strip().strip("\0").upper()
    return word if word in KNOWN else _BY_WORD.get(word.lower().replace("-", "_").replace(" ", "_"), word)


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


def _arrays(scans: Sequence[Scan], root: Path) -> list[np.ndarray]:
    from medssl.data.read import ReadError, read

    arrays = []
    for scan in scans:
        try:
            arrays.append(read(scan, root, with_label=False).image)
        except ReadError:  # the cache will say so
            continue
    return arrays


def _unsaid(scans: Sequence[Scan], root: Path) -> str:
    arrays = _arrays(scans, root)
    like = sum(map(looks_like_ct, arrays))
    if not like:
        return ""
    return (
        f"{like} of {len(arrays)} files that were looked into look like CT (whole numbers, air near -1000): "
        "say --files.modality CT, or their values are treated as gray without a unit"
    )


def _said(scans: Sequence[Scan], root: Path) -> str:
    arrays = _arrays(scans, root)
    without = [array for array in arrays if array.size and float(array.min()) >= 0]
    if not arrays or len(without) < len(arrays):
        return ""
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    return (
        f"{len(without)} of {len(arrays)} files that were looked into have no air (values {low:.4g} to {high:.4g}): "
        "--files.modality CT expects Hounsfield units; were 1024 added, or the values normalised?"
    )
