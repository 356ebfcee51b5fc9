"""What one file is: the part of an update that runs in other processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medssl.data.formats.base import FormatError
from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.slices import to_json
from medssl.data.formats.dicom.whole_slide import WholeSlideFound, to_dict
from medssl.data.formats.recognition import read_header, recognize
from medssl.data.index import companions
from medssl.data.index.pseudonyms import keyed_digest
from medssl.data.index.walk import FileState


@dataclass(frozen=True)
class Entry:
    """What one file is.

    Attributes:
        path: Relative to the root of the index.
        state: slice, level (of a DICOM slide), scan, ignored, rejected or failed.
        reason: Why it is not read, or notes.
        series: Digest of its series; empty where it is ignored.
        header: What it says, as JSON.
        shared: What the headers of a series have in common, as JSON.
    """

    path: str
    state: str
    reason: str = ""
    series: str = ""
    header: str = ""
    shared: str = ""


def read_files(
    batch: Sequence[FileState],
    report: Callable[[int], None] = lambda _number: None,
    *,
    root: Path,
    dataset: str,
    key: bytes,
) -> list[Entry]:
    """Say of each file what it is; ``report`` is called with its number before it is read."""
    digest = partial(keyed_digest, key)
    entries = []
    for number, one in enumerate(batch):
        report(number)
        entries.append(_entry(one, root, partial(digest, "file", dataset), digest, dataset))
    return entries


def lost_entry(one: FileState, reason: str, *, root: Path, dataset: str, key: bytes) -> Entry:
    """What is written of a file that no process could read."""
    path = relative(one, root)
    return Entry(path, "failed", reason, keyed_digest(key, "file", dataset, path))


def relative(one: FileState, root: Path) -> str:
    """Path of a file, or of a folder that could not be opened, as the index writes it."""
    return os.path.relpath(one.path, root) + ("/" if one.folder else "")


def _entry(one: FileState, root: Path, of_path: Callable[..., str], digest: Callable[..., str], dataset: str) -> Entry:
    path = relative(one, root)
    file = Path(one.path)
    if one.problem:
        return Entry(path, "ignored" if "met before" in one.problem else "failed", one.problem, of_path(path))
    try:
        kind = recognize(file)
        if kind.state:
            return Entry(path, kind.state, kind.reason, "" if kind.state == "ignored" else of_path(path))
        if kind.form == "dicom":
            series, slices = read_slices(file, path, digest)
            return Entry(path, "slice", kind.note, digest("dicom", dataset, series), *to_json(slices))
        return _scan(file, path, kind.form, kind.note, of_path(path))
    except WholeSlideFound as found:
        series, header = digest("dicom", dataset, found.series), _json(to_dict(found.file))
        if found.file.flavor != "VOLUME":
            return Entry(path, "ignored", f"not an image: {found.file.flavor.lower()} of a slide", series, header)
        return Entry(path, "level", kind.note, series, header, _json(found.facts))
    except DicomError as error:
        series = digest("dicom", dataset, error.series) if error.series else of_path(path)
        header, shared = to_json(error.slices) if error.slices else (error.label_object, "")
        return Entry(path, "rejected" if error.rejected else "failed", str(error), series, header, shared)
    except FormatError as error:
        return Entry(path, "rejected" if error.rejected else "failed", str(error), of_path(path))
    except OSError as error:
        return Entry(path, "failed", f"cannot be opened: {error.strerror}", of_path(path))


def _scan(file: Path, path: str, form: str, note: str, series: str) -> Entry:
    """Entry of a file that is a scan by itself."""
    header = asdict(read_header(file, form))
    if names := header["details"].get("companions"):
        header["details"]["companions"] = companions.states_of(file.parent, names)
    notes = "; ".join(filter(None, (note, *header["notes"])))
    return Entry(path, "scan", notes, series, _json(header))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
