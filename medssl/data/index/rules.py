"""The rules of a data set applied to its scans: subject, values, mask, split. They can be applied again at any time."""

from __future__ import annotations

import hashlib
import json
import os.path
import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from medssl.data.formats.modality import domain_of, normalized
from medssl.data.index import slides
from medssl.data.index.label_maps import CandidateFile, Recognized, recognize
from medssl.data.index.label_sources import (
    LabelOptions,
    SlideOptions,
    Table,
    folder_split,
    names_of,
    read_table,
    refuse_formula,
)
from medssl.data.index.layouts import open_layout
from medssl.data.index.layouts.base import About
from medssl.data.index.object_labels import ObjectLabels
from medssl.data.index.pairing import Mask, Pairing, of_files
from medssl.data.index.pseudonyms import SubjectRule, named_digest, patient_digest
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.split import parse_shares, split_of
from medssl.io.sqlite import transaction
from medssl.types import UserError

_PAGE = 1000
_SHOWN = 10  # folders that a message names


def apply(index: Index, key: bytes) -> tuple[str, ...]:
    """Apply the rules of every data set, if anything changed since they were applied last.

    Returns:
        Notes for the user: scans without a subject, rows of a table that fit no scan, and so on.

    Raises:
        UserError: A rule fits nothing at all: no mask exists where it looks, or no folder is named after a split.
    """
    connection = index.connection
    datasets = connection.execute("SELECT name, folder, options FROM datasets ORDER BY name").fetchall()
    state = json.dumps([[list(row), _table_state(row["options"], row["folder"])] for row in datasets])
    if index.meta("ruled") == state:
        return tuple(json.loads(index.meta("notes", "[]")))
    notes: list[str] = []
    failures: list[UserError] = []
    connection.execute("CREATE INDEX IF NOT EXISTS parts_by_file ON parts (file)")
    for row in datasets:
        dataset_rules = _DatasetRules(index, row, key)
        notes += [f"{row['name']}: {note}" for note in dataset_rules.run()]
        failures += [one.changed(message=f"{row['name']}: {one.message}") for one in dataset_rules.failures()]
    if failures:  # what was read stays; the next update raises the same until the rules are corrected
        more = f", and {len(failures) - 1} more rules fit nothing" if len(failures) > 1 else ""
        raise failures[0].changed(message=failures[0].message + more)
    notes += _split_leaks(connection)
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('notes', ?)", (json.dumps(notes),))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('ruled', ?)", (state,))
    return tuple(notes)


def _table_state(options: str, folder: str) -> list[int]:
    """Size and time of the table of values and of the layout's list: what has changed is read again."""
    saved = json.loads(options)
    files = [Path(saved["labels"]["values"]).expanduser()] if saved["labels"]["values"] else []
    files += [Path(folder) / "dataset.json"] if saved.get("layout") else []
    return [number for file in files if file.is_file() for number in (file.stat().st_size, file.stat().st_mtime_ns)]


def _split_leaks(connection: sqlite3.Connection) -> list[str]:
    """Folders and columns can put a subject on two sides; shares by subject cannot."""
    query = """
        SELECT count(*) FROM (SELECT subject_id FROM scans WHERE status = 'ok' AND split <> ''
        GROUP BY subject_id HAVING count(DISTINCT split) > 1)
    """
    leaking = connection.execute(query).fetchone()[0]
    return [f"leak: {leaking} subjects are in more than one split"] if leaking else []


def _wrong_channels(about: About, count: int) -> str:
    """What is wrong with the number of channels of a scan, or nothing."""
    if about.count in (0, count):
        return ""
    return f"{count} channels where dataset.json names {about.count} modalities: correct either of them"


@dataclass(frozen=True)
class _Beside:
    """Files of further channels, what the layout says, and columns of a slide."""

    channels: tuple[sqlite3.Row, ...] = ()
    about: About = field(default_factory=About)
    slide: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _RuledScan:
    """What the rules say of one scan."""

    subject: str
    known: bool
    split: str
    values: dict[str, str]
    status: tuple[str, str]
    masks: tuple[Mask, ...] = ()
    beside: _Beside = field(default_factory=lambda: _Beside())


class _DatasetRules:
    """The rules of one data set."""

    def __init__(self, index: Index, dataset: sqlite3.Row, key: bytes) -> None:
        options = json.loads(dataset["options"])
        self.connection, self.key = index.connection, key
        self.name = str(dataset["name"])
        self.prefix = os.path.relpath(dataset["folder"], index.root)
        self.subject = SubjectRule(options["subject"])
        self.labels = LabelOptions(**options["labels"])
        self.folder = Path(dataset["folder"])
        files = FileOptions(modality=options["files"]["modality"], frames=options["files"]["frames"])
        whole = IndexOptions(options["subject"], self.labels, files, options.get("layout", ""))
        self.layout = open_layout(whole, self.folder)
        if whole.layout == "csv":  # its values come with its rows
            self.labels = replace(self.labels, values="", columns="")
        column = self.labels.split.removeprefix("column:") if self.labels.split.startswith("column:") else ""
        self.split_column = column
        self.table: Table = read_table(self.labels, also=[name for name in (self.subject.column, column) if name])
        self.patients = {patient_digest(key, name): name for name in self.table.rows}
        by_share = self.labels.split != "folder" and not column
        self.shares = parse_shares(self.labels.split) if by_share else {}
        self.counts: Counter[str] = Counter()
        self.folders: set[str] = set()
        self.has_layout = bool(whole.layout)
        self.maps, self.label_map_paths = Recognized(), list[str]()
        self.proposed_masks = ""
        self.pairing = Pairing(self.connection, self.prefix, self.labels)
        self.slides: slides.SlideTable | None = None
        self.slide_options = SlideOptions(**options["files"].get("slides", {}))
        self.slide_labels = LabelOptions(**options["labels"])
        self.objects = ObjectLabels(self.connection, self.name, self.labels, key)

    def run(self) -> list[str]:
        """Apply the rules, a page of scans at a time."""
        self.maps = self._label_maps()
        self.proposed_masks = shlex.quote(way) if (way := self.maps.proposal(self.labels.masks)) else ""
        for page in self._pages():
            ruled = [(row["scan_id"], self._rule(row)) for row in page]
            with transaction(self.connection):
                for scan_id, one in ruled:
                    self._write(scan_id, one)
        self.objects.finish()
        return self._notes()

    def _pages(self) -> Iterator[list[sqlite3.Row]]:
        """All scans that their files alone would allow, with the path of their first file."""
        last = ""
        query = """
            SELECT scans.*, files.path AS path, files.state AS state, parts.frame AS frame FROM scans
            JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
            JOIN files ON files.id = parts.file
            WHERE scans.dataset = ? AND scans.scan_id > ? ORDER BY scans.scan_id LIMIT ?
        """
        while page := self.connection.execute(query, (self.name, last, _PAGE)).fetchall():
            last = page[-1]["scan_id"]
            yield [row for row in page if json.loads(row["found"])["status"] in ("ok", "needs_spacing")]

    def _rule(self, row: sqlite3.Row) -> _RuledScan:
        facts: dict[str, Any] = json.loads(row["found"])
        path = os.path.relpath(row["path"], self.prefix)
        about = self.layout.about(path)
        if other_status := about.status or self.pairing.belongs(path) or self._label_map_status(path):
            return _RuledScan("", False, "", {}, other_status)
        name = self.subject.name_in(path)
        values = self.table.row([*names_of(path), name, self.patients.get(facts["subject"], "")])
        subject, known = self._subject(row, facts, name, values.get(self.subject.column, ""))
        if subject_name := about.names.get("subject"):
            subject, known = named_digest(self.key, self.name, subject_name), True
        label_values = {column: values[column] for column in self.table.columns if column in values}
        if self.labels.classes == "folder":
            label_values["class"] = PurePosixPath(path).parent.name
            refuse_formula(label_values["class"], "label.classes", "a folder")
        channels, lost = self.pairing.channels(row, about.channels)
        masks, problem = self.pairing.masks(path, row, about.masks)
        label, unusable = self.objects.mask(row)
        problem = lost or problem or unusable or _wrong_channels(about, int(row["channels"] or 1) + len(channels))
        if label is not None and any(mask.rule.role == "mask" for mask in masks):
            problem = "two labels: a file by label.masks and an object by label.objects; leave one option out"
        elif label is not None:
            masks.append(label)
        columns: dict[str, Any] = {}
        status = (str(facts["status"]), str(facts["reason"]))
        if "slide" in facts:
            by_table, columns = self._slide_table().apply(facts, path, name)
            status = (by_table.code, by_table.reason)
        status = ("failed", problem) if problem else status
        self._count(known, values)
        split = about.names.get("split") or self._split(path, subject, values.get(self.split_column, ""))
        label_values |= about.values
        return _RuledScan(
            subject, known, split, label_values, status, tuple(masks), _Beside(tuple(channels), about, columns)
        )

    def _slide_table(self) -> slides.SlideTable:
        """The table of slides, read when the first slide needs it."""
        if self.slides is None:
            self.slides = slides.SlideTable(self.slide_labels, self.slide_options)
        return self.slides

    def _label_maps(self) -> Recognized:
        """Files of the data set that look like label maps and that no rule names."""
        if self.labels.all_scans or self.has_layout:
            return Recognized()
        query = """
            SELECT files.path, size_i, size_j, size_k,
            instr(header, '"dtype":"float'), instr(header, '"intent":"label"')
            FROM scans JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
            JOIN files ON files.id = parts.file
            WHERE scans.dataset = ? AND state = 'scan' AND scans.kind <> 'slide'
            AND instr(found, '"status": "ok"') AND ifnull(frame, 0) = 0
            ORDER BY files.path
        """
        entries, ruled, beginning = [], bool(self.labels.rules()), f"{self.prefix}/"
        for row in self.connection.execute(query, (self.name,)):
            path = (
                os.path.relpath(row[0], self.prefix) if not row[0].startswith(beginning) else row[0][len(beginning) :]
            )
            if not ruled or self.pairing.belongs(path) is None:
                entries.append(CandidateFile(path, tuple(filter(None, row[1:4])), bool(row[4]), bool(row[5])))
        return recognize(entries, self.folder)

    def _label_map_status(self, path: str) -> tuple[str, str] | None:
        """Status of a file that looks like a label map; None for other files."""
        if path not in self.maps.paths:
            return None
        self.label_map_paths.append(path)
        rule = self.proposed_masks or "TEXT=TEXT"
        return "rejected", (
            f"looks like a label map: use it with label.masks {rule}, or take it as a scan with label.masks none"
        )

    def _subject(self, row: sqlite3.Row, facts: dict[str, Any], name: str, column_value: str) -> tuple[str, bool]:
        """The subject: by the rule; else its study, else the scan itself stands for it."""
        if self.subject.rule == "dicom" and facts["subject"]:
            return str(facts["subject"]), True
        if name or column_value:
            return named_digest(self.key, self.name, name or column_value), True
        return str(row["study_id"] or row["scan_id"]), False

    def _split(self, path: str, subject: str, column_value: str) -> str:
        if self.shares:
            return split_of(subject, self.shares)
        split = column_value if self.split_column else folder_split(path)
        self.counts["in a split"] += bool(split)
        if not split and len(self.folders) < _SHOWN:
            self.folders.update(PurePosixPath(path).parts[:-1])
        return split

    def _count(self, known: bool, values: Any) -> None:
        self.counts["scans"] += 1
        self.counts["unknown"] += not known
        self.counts["without row"] += bool(self.table.rows) and not values

    def failures(self) -> list[UserError]:
        """Errors of rules that fit nothing at all."""
        failures = list(filter(None, (self.layout.failure(), self.pairing.failure(), self.objects.failure())))
        if self.labels.split == "folder" and self.counts["scans"] and not self.counts["in a split"]:
            shown = ", ".join(sorted(self.folders)[:_SHOWN]) or "none"
            message = f"no folder is named train, val or test; the folders are {shown}"
            failures.append(UserError(message, key="label.split", got="folder"))
        return failures

    def _write(self, scan_id: str, one: _RuledScan) -> None:
        query = "SELECT found, study_id, modality, value_domain, channels, files FROM scans WHERE scan_id = ?"
        row = self.connection.execute(query, (scan_id,)).fetchone()
        facts: dict[str, Any] = json.loads(row["found"])
        facts["classes"] = [value for mask in one.masks for value in mask.classes]
        digest = facts["digest"]
        if one.beside.slide:
            digest = hashlib.blake2b(f"{digest} {one.beside.slide['affine']}".encode(), digest_size=8).hexdigest()
            slides.write(self.connection, scan_id, one.beside.slide)
        for channel in one.beside.channels:
            digest = hashlib.blake2b(f"{digest} {of_files(channel, 'digest')}".encode(), digest_size=8).hexdigest()
        for mask in one.masks:
            role = "" if mask.rule.role == "mask" else f"{mask.rule.role} "
            how = f" threshold {self.labels.threshold}" if self.labels.threshold is not None and not role else ""
            how += " trust" if self.labels.grid == "trust" else ""
            digest = hashlib.blake2b(f"{digest} {role}{mask.digest}{how}".encode(), digest_size=8).hexdigest()
        self.connection.execute(
            "UPDATE scans SET subject_id = ?, subject_known = ?, split = ?, labels = ?, has_mask = ?, status = ?, "
            "reason = ?, source_digest = ?, found = ? WHERE scan_id = ?",
            (
                one.subject, int(one.known), one.split, json.dumps(one.values, sort_keys=True),
                int(any(mask.rule.role == "mask" for mask in one.masks)), *one.status, digest, json.dumps(facts),
                scan_id,
            ),
        )  # fmt: skip
        self.connection.execute("DELETE FROM parts WHERE scan_id = ? AND role <> 'image'", (scan_id,))
        rows = [
            (scan_id, mask.rule.role, number, *part) for mask in one.masks for number, part in enumerate(mask.parts)
        ]
        self.connection.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", rows)
        if "base" in facts or one.beside.channels or one.beside.about.names:
            self._describe(scan_id, one, row, facts)

    def _describe(self, scan_id: str, one: _RuledScan, row: sqlite3.Row, facts: dict[str, Any]) -> None:
        """Study, modality and channels as the layout has them; ``base`` keeps what the file alone says."""
        columns = ("study_id", "modality", "value_domain", "channels", "files")
        base = facts.setdefault("base", {name: row[name] for name in columns})
        now = dict(base)
        if study := one.beside.about.names.get("study"):
            now["study_id"] = named_digest(self.key, self.name, f"study {study}")
        if modality := normalized(one.beside.about.names.get("modality", "")):
            now["modality"] = modality
            if base["value_domain"] != "rgb":
                now["value_domain"] = domain_of(modality)
        now["channels"] += sum(of_files(channel, "channels") for channel in one.beside.channels)
        now["files"] += len(one.beside.channels)
        changes = ", ".join(f"{name} = ?" for name in columns)
        values = (*(now[name] for name in columns), json.dumps(facts), scan_id)
        self.connection.execute(f"UPDATE scans SET {changes}, found = ? WHERE scan_id = ?", values)
        rows = [
            (scan_id, number, channel["file"], channel["frame"]) for number, channel in enumerate(one.beside.channels)
        ]
        self.connection.executemany("INSERT INTO parts VALUES (?, 'channel', ?, ?, ?)", rows)

    def _notes(self) -> list[str]:
        """What the user should know, with counts."""
        counts, notes = self.counts, []
        if counts["unknown"]:
            notes.append(
                f"{counts['unknown']:,} of {counts['scans']:,} scans have no subject by the rule "
                f"{self.subject.rule!r}: their split is by scan, leaks are possible. Give another rule as subject"
            )
        query = "SELECT count(DISTINCT subject_id) FROM scans WHERE dataset = ? AND status = 'ok' AND subject_known"
        subjects = self.connection.execute(query, (self.name,)).fetchone()[0]
        if subjects == 1 and counts["scans"] > 1:
            known = counts["scans"] - counts["unknown"]
            notes.append(f"all {known:,} scans with a subject have the same subject: check the rule subject")
        if counts["without row"]:
            notes.append(f"{counts['without row']:,} scans have no row in {Path(self.labels.values).name}")
        if self.table.unused:
            notes.append(f"{self.table.unused:,} rows of {Path(self.labels.values).name} fit no scan")
        if self.label_map_paths:
            rule, count = self.proposed_masks or "TEXT=TEXT", len(self.label_map_paths)
            notes.append(
                f"{count:,} files look like label maps and are not taken as scans (first: "
                f"{min(self.label_map_paths)}). Use them with label.masks {rule}, or take them as scans with "
                "label.masks none"
            )
        return notes + self.layout.notes() + self.pairing.notes(counts["scans"]) + self.objects.notes()
