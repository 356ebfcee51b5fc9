"""Which segmentation objects and structure sets of a data set label which of its scans, and with which classes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

from medssl.data.formats.dicom.label_objects import LabelObject
from medssl.data.index.label_sources import LabelOptions, PathRule
from medssl.data.index.pairing import Mask
from medssl.data.index.pseudonyms import keyed_digest
from medssl.io.csv_text import is_formula
from medssl.io.sqlite import transaction
from medssl.types import UserError

_SHOWN = 20  # names that a message lists
_RULE = PathRule("mask", "label.objects", "")


@dataclass(frozen=True)
class _Stored:
    """An object of the index: its file and what was noted of it."""

    file: int
    name: str
    digest: str
    about: LabelObject


class ObjectLabels:
    """The objects of one data set; none without the option ``label.objects``."""

    def __init__(self, connection: sqlite3.Connection, dataset: str, labels: LabelOptions, key: bytes) -> None:
        self.connection, self.dataset, self.labels = connection, dataset, labels
        self.classes = {name.casefold(): value for value, name in labels.named_values()}
        self.by_series: dict[str, list[_Stored]] = defaultdict(list)
        self.by_place: dict[tuple[str, str], list[_Stored]] = defaultdict(list)
        self.used: set[int] = set()
        self.unnamed: Counter[str] = Counter()
        self.by_study = 0
        self.slices: dict[str, set[str]] = {}
        self.stored = self._load() if labels.objects else []
        series_of = partial(keyed_digest, key, "dicom", dataset)
        for one in self.stored:
            for series in one.about.series:
                self.by_series[series_of(series)].append(one)
            for reference in () if one.about.series else one.about.references:
                self.by_place[one.about.study, reference].append(one)

    def _load(self) -> list[_Stored]:
        query = """
            SELECT id, path, size, modified_ns, header FROM files
            WHERE dataset = ? AND state = 'rejected' AND substr(header, 1, 1) = '{' ORDER BY path
        """
        return [
            _Stored(
                row["id"], PurePath(row["path"]).name, f"{row['size']} {row['modified_ns']} {row['header']}",
                LabelObject.from_json(row["header"]),
            )
            for row in self.connection.execute(query, (self.dataset,))
        ]  # fmt: skip

    def mask(self, row: sqlite3.Row) -> tuple[Mask | None, str]:
        """The label of a scan, and why it cannot be used (nothing where it can, or where there is none)."""
        facts: dict[str, Any] = json.loads(row["found"])
        named = self.by_series.get(row["series"], [])
        fitting = named or self.by_place.get((row["study_id"], facts.get("reference", "")), [])
        fitting = [one for one in fitting if facts["subject"] in ("", one.about.subject) or not one.about.subject]
        fitting, problem = self._of_volume(row, fitting)
        if not fitting or not self.classes:
            return None, ""
        self.used |= {one.file for one in fitting}
        problem = problem or _misplaced(row, facts.get("reference", ""), fitting)
        parts: list[tuple[int, int | None]] = []
        classes: list[int] = []
        digest = hashlib.blake2b(digest_size=8)
        owners: dict[int, str] = {}
        for one in fitting:
            segments, unusable = self._segments(one)
            problem = problem or unusable
            for segment, value in segments:
                if value and owners.setdefault(value, one.name) != one.name:
                    names = f"{owners[value]} and {one.name}"
                    problem = problem or f"label unusable: class {value} is in {names}: leave one of them in the folder"
                parts.append((one.file, segment))
                classes.append(value)
            digest.update(json.dumps([one.digest, segments]).encode())
        if problem:
            return None, problem
        self.by_study += not named
        return Mask(_RULE, digest.hexdigest(), tuple(parts), tuple(classes)), ""

    def _of_volume(self, row: sqlite3.Row, fitting: list[_Stored]) -> tuple[list[_Stored], str]:
        """Those of the objects of a series that label this volume of it, and why that is not known of one."""
        query = "SELECT count(*) FROM scans WHERE series = ? AND json_extract(found, '$.status') = 'ok'"
        volumes = self.connection.execute(query, (row["series"],)).fetchone()[0] if fitting else 0
        if volumes < 2:
            return fitting, ""
        query = """
            SELECT parts.frame, files.header FROM parts JOIN files ON files.id = parts.file
            WHERE parts.scan_id = ? AND role = 'image'
        """
        slices = {
            str(instance)
            for frame, header in self.connection.execute(query, (row["scan_id"],)).fetchall()
            for its_frame, instance, *_ in json.loads(header)
            if its_frame == frame
        }
        chosen, problem = [], ""
        for one in fitting:
            if not slices.isdisjoint(one.about.instances):
                chosen.append(one)
            elif not self._names_slices(row["series"], one):
                chosen.append(one)
                problem = f"label unusable: {one.name} labels a series of {volumes} volumes and does not say which one"
        return chosen, problem

    def _names_slices(self, series: str, one: _Stored) -> bool:
        """Whether an object names slices of a series at all: where it does not, any volume may be meant."""
        if series not in self.slices:
            query = "SELECT header FROM files WHERE series = ? AND substr(header, 1, 1) = '['"
            headers = [json.loads(row[0]) for row in self.connection.execute(query, (series,))]
            self.slices = {series: {str(facts[1]) for header in headers for facts in header}}  # of one series at a time
        return not self.slices[series].isdisjoint(one.about.instances)

    def _segments(self, one: _Stored) -> tuple[list[tuple[int, int]], str]:
        """Segments with their classes, and why they cannot be used."""
        chosen, others = [], 0
        for number, label, kind in one.about.segments:
            value = self.classes.get(label.casefold(), self.classes.get(kind.casefold()))
            if value is None:
                self.unnamed[label or kind or "(no name)"] += 1
                others += 1
            else:
                chosen.append((number, value))
        if not chosen:
            return [], f"label unusable: no segment of {one.name} has the name of a class in label.class_names"
        if others and self.labels.other_segments == "refuse":
            return chosen, (
                f"label unusable: {others} of {len(one.about.segments)} segments of {one.name} have no class: add them "
                "to label.class_names, or take them as background with label.other_segments background"
            )
        return chosen, ""

    def failure(self) -> UserError | None:
        """The error where objects have segments and no class has a name; it proposes names."""
        if not self.labels.objects or self.classes or not self.stored:
            return None
        names = Counter(label or kind for one in self.stored for _, label, kind in one.about.segments)
        shown = ", ".join(f"{name!r} ({count})" for name, count in names.most_common(_SHOWN))
        usable = [name for name, _ in names.most_common(_SHOWN) if not set(name) & set(",=") and not is_formula(name)]
        proposal = ",".join(["0=background", *(f"{value}={name}" for value, name in enumerate(usable, start=1))])
        message = f"the segments of the objects have no classes: {shown}"
        return UserError(message, key="label.class_names", expected=f"their classes, as in '{proposal}'")

    def finish(self) -> None:
        """Mark objects that are labels; the others stay rejected."""
        reset = """
            UPDATE scans SET status = 'rejected', reason = json_extract(found, '$.reason')
            WHERE dataset = ? AND status = 'label' AND json_extract(found, '$.status') = 'rejected'
        """
        label = """
            UPDATE scans SET status = 'label', reason = ''
            WHERE scan_id IN (SELECT scan_id FROM parts WHERE file = ? AND role = 'image')
        """
        with transaction(self.connection):
            self.connection.execute(reset, (self.dataset,))
            self.connection.executemany(label, [(file,) for file in sorted(self.used)])

    def notes(self) -> list[str]:
        """Notes with counts; names of segments are shown here and stored nowhere."""
        notes = []
        lost = [one for one in self.stored if one.file not in self.used]
        what = "segmentation objects and structure sets"
        if self.labels.objects and not self.stored:
            notes.append(f"no {what} for label.objects; older indexes do not list them: index into a new file")
        if lost and self.classes:
            notes.append(f"{len(lost):,} of {len(self.stored):,} {what} fit no scan (first: {lost[0].name})")
        if self.by_study:
            notes.append(f"{self.by_study:,} scans are labeled by objects that name no series: same study and place")
        if self.unnamed:
            shown = ", ".join(f"{name!r} ({count})" for name, count in self.unnamed.most_common(_SHOWN))
            left = "are background" if self.labels.other_segments == "background" else "make their scans fail"
            notes.append(f"segments without a class {left}: {shown}")
        return notes


def _misplaced(row: sqlite3.Row, reference: str, fitting: list[_Stored]) -> str:
    """Why objects cannot lie on a scan, or nothing."""
    if row["kind"] != "volume":
        return f"label unusable: {fitting[0].name} labels a series of single images: only volumes have a place in space"
    for one in fitting:
        if reference and one.about.references and reference not in one.about.references:
            return f"label unusable: {one.name} has another frame of reference than its series"
    return ""
