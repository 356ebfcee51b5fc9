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
from medssl.data.index.label_maps import Entry, Recognized, recognize
from medssl.data.index.label_sources import LabelOptions, Table, folder_split, names_of, read_table, refuse_formula
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
        What the user should know: subjects that nothing tells apart, rows of a table that fit no scan, and so on.

    Raises:
        UserError: A rule fits nothing at all: masks that lie nowhere, folders of splits that there are none of.
    """
    connection = index.connection
    datasets = connection.execute("SELECT name, folder, options FROM datasets ORDER BY name").fetchall()
    state = json.dumps([[list(row), _table_state(row["options"], row["folder"])] for row in datasets])
    if index.meta("ruled") == state:
        return tuple(json.loads(index.meta("notes", "[]")))
    notes: list[str] = []
    failures: list[str] = []
    connection.execute("CREATE INDEX IF NOT EXISTS parts_by_file ON parts (file)")
    for row in datasets:
        ruler = _Ruler(index, row, key)
        notes += [f"{row['name']}: {note}" for note in ruler.run()]
        failures += [f"{row['name']}: {failure}" for failure in ruler.failures()]
    if failures:  # what was read and ruled stays; the next update says the same until the rules are put right
        more = f" (and {len(failures) - 1} more data sets)" if len(failures) > 1 else ""
        message = failures[0] + more
        raise UserError(message)
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
    return f"{count} channels where dataset.json names {about.count} modalities: put either of them right"


@dataclass(frozen=True)
class _Ruled:
    """What the rules say of one scan."""

    subject: str
    known: bool
    split: str
    values: dict[str, str]
    status: tuple[str, str]
    masks: tuple[Mask, ...] = ()
    channels: tuple[sqlite3.Row, ...] = ()
    about: About = field(default_factory=About)


class _Ruler:
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
        self.told: Counter[str] = Counter()
        self.folders: set[str] = set()
        self.laid_out = bool(whole.layout)
        self.maps, self.held = Recognized(), list[str]()
        self.way = ""
        self.pairing = Pairing(self.connection, self.prefix, self.labels)
        self.objects = ObjectLabels(self.connection, self.name, self.labels, key)

    def run(self) -> list[str]:
        """Apply the rules, a page of scans at a time."""
        self.maps = self._label_maps()
        self.way = shlex.quote(way) if (way := self.maps.proposal(self.labels.masks)) else ""
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
            yield [row for row in page if json.loads(row["found"])["status"] == "ok"]

    def _rule(self, row: sqlite3.Row) -> _Ruled:
        found: dict[str, Any] = json.loads(row["found"])
        path = os.path.relpath(row["path"], self.prefix)
        about = self.layout.about(path)
        if no_scan := about.status or self.pairing.belongs(path) or self._held_back(path):
            return _Ruled("", False, "", {}, no_scan)
        name = self.subject.name_in(path)
        values = self.table.row([*names_of(path), name, self.patients.get(found["subject"], "")])
        subject, known = self._who(row, found, name, values.get(self.subject.column, ""))
        if who := about.names.get("subject"):
            subject, known = named_digest(self.key, self.name, who), True
        kept = {column: values[column] for column in self.table.columns if column in values}
        if self.labels.classes == "folder":
            kept["class"] = PurePosixPath(path).parent.name
            refuse_formula(kept["class"], "label.classes folder")
        channels, lost = self.pairing.channels(row, about.channels)
        masks, problem = self.pairing.masks(path, row, about.masks)
        label, unusable = self.objects.mask(row)
        problem = lost or problem or unusable or _wrong_channels(about, int(row["channels"] or 1) + len(channels))
        if label is not None and any(mask.rule.role == "mask" for mask in masks):
            problem = "two labels: a file by label.masks and an object by label.objects; leave one option out"
        elif label is not None:
            masks.append(label)
        status = ("failed", problem) if problem else (found["status"], found["reason"])
        self._count(known, values)
        split = about.names.get("split") or self._split(path, subject, values.get(self.split_column, ""))
        return _Ruled(subject, known, split, kept | dict(about.values), status, tuple(masks), tuple(channels), about)

    def _label_maps(self) -> Recognized:
        """Files of the data set that look like label maps and that no rule names."""
        if self.labels.all_scans or self.laid_out:
            return Recognized()
        query = """
            SELECT files.path, size_i, size_j, size_k,
            instr(header, '"dtype":"float'), instr(header, '"intent":"label"')
            FROM scans JOIN parts ON parts.scan_id = scans.scan_id AND role = 'image' AND number = 0
            JOIN files ON files.id = parts.file
            WHERE scans.dataset = ? AND state = 'scan' AND instr(found, '"status": "ok"') AND ifnull(frame, 0) = 0
            ORDER BY files.path
        """
        entries, ruled, beginning = [], bool(self.labels.rules()), f"{self.prefix}/"
        for row in self.connection.execute(query, (self.name,)):
            path = (
                os.path.relpath(row[0], self.prefix) if not row[0].startswith(beginning) else row[0][len(beginning) :]
            )
            if not ruled or self.pairing.belongs(path) is None:
                entries.append(Entry(path, tuple(filter(None, row[1:4])), bool(row[4]), bool(row[5])))
        return recognize(entries, self.folder)

    def _held_back(self, path: str) -> tuple[str, str] | None:
        """Status of a file that looks like a label map."""
        if path not in self.maps.paths:
            return None
        self.held.append(path)
        way = f"use it with label.masks {self.way or 'TEXT=TEXT'}, or take it as a scan with label.masks none"
        return "rejected", f"looks like a label map: {way}"

    def _who(self, row: sqlite3.Row, found: dict[str, Any], name: str, told: str) -> tuple[str, bool]:
        """The subject: by the rule; else its study, else the scan itself stands for it."""
        if self.subject.rule == "dicom" and found["subject"]:
            return str(found["subject"]), True
        if name or told:
            return named_digest(self.key, self.name, name or told), True
        return str(row["study_id"] or row["scan_id"]), False

    def _split(self, path: str, subject: str, told: str) -> str:
        if self.shares:
            return split_of(subject, self.shares)
        split = told if self.split_column else folder_split(path)
        self.told["in a split"] += bool(split)
        if not split and len(self.folders) < _SHOWN:
            self.folders.update(PurePosixPath(path).parts[:-1])
        return split

    def _count(self, known: bool, values: Any) -> None:
        self.told["scans"] += 1
        self.told["unknown"] += not known
        self.told["without row"] += bool(self.table.rows) and not values

    def failures(self) -> list[str]:
        """Rules that fit nothing at all."""
        found = list(filter(None, (self.layout.failure(), self.pairing.failure(), self.objects.failure())))
        if self.labels.split == "folder" and self.told["scans"] and not self.told["in a split"]:
            shown = ", ".join(sorted(self.folders)[:_SHOWN]) or "none"
            found.append(f"label.split folder: no folder is named train, val or test; the folders are {shown}")
        return found

    def _write(self, scan_id: str, one: _Ruled) -> None:
        query = "SELECT found, study_id, modality, value_domain, channels, files FROM scans WHERE scan_id = ?"
        row = self.connection.execute(query, (scan_id,)).fetchone()
        found: dict[str, Any] = json.loads(row["found"])
        found["classes"] = [value for mask in one.masks for value in mask.classes]
        digest = found["digest"]
        for channel in one.channels:
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
                int(any(mask.rule.role == "mask" for mask in one.masks)), *one.status, digest, json.dumps(found),
                scan_id,
            ),
        )  # fmt: skip
        self.connection.execute("DELETE FROM parts WHERE scan_id = ? AND role <> 'image'", (scan_id,))
        rows = [
            (scan_id, mask.rule.role, number, *part) for mask in one.masks for number, part in enumerate(mask.parts)
        ]
        self.connection.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", rows)
        if "base" in found or one.channels or one.about.names:
            self._describe(scan_id, one, row, found)

    def _describe(self, scan_id: str, one: _Ruled, row: sqlite3.Row, found: dict[str, Any]) -> None:
        """Study, modality and channels as the layout has them; ``base`` keeps what the file alone says."""
        columns = ("study_id", "modality", "value_domain", "channels", "files")
        base = found.setdefault("base", {name: row[name] for name in columns})
        now = dict(base)
        if study := one.about.names.get("study"):
            now["study_id"] = named_digest(self.key, self.name, f"study {study}")
        if modality := normalized(one.about.names.get("modality", "")):
            now["modality"] = modality
            if base["value_domain"] != "rgb":
                now["value_domain"] = domain_of(modality)
        now["channels"] += sum(of_files(channel, "channels") for channel in one.channels)
        now["files"] += len(one.channels)
        changes = ", ".join(f"{name} = ?" for name in columns)
        values = (*(now[name] for name in columns), json.dumps(found), scan_id)
        self.connection.execute(f"UPDATE scans SET {changes}, found = ? WHERE scan_id = ?", values)
        rows = [(scan_id, number, channel["file"], channel["frame"]) for number, channel in enumerate(one.channels)]
        self.connection.executemany("INSERT INTO parts VALUES (?, 'channel', ?, ?, ?)", rows)

    def _notes(self) -> list[str]:
        """What the user should know, with counts."""
        told, notes = self.told, []
        if told["unknown"]:
            notes.append(
                f"nothing tells the subjects of {told['unknown']:,} of {told['scans']:,} scans apart (rule "
                f"{self.subject.rule!r}): their split is by scan: leaks are possible; give a rule as subject"
            )
        query = "SELECT count(DISTINCT subject_id) FROM scans WHERE dataset = ? AND status = 'ok' AND subject_known"
        subjects = self.connection.execute(query, (self.name,)).fetchone()[0]
        if subjects == 1 and told["scans"] > 1:
            notes.append(
                f"all {told['scans'] - told['unknown']:,} scans with a subject have the same one: is that true?"
            )
        if told["without row"]:
            notes.append(f"{told['without row']:,} scans have no row in {Path(self.labels.values).name}")
        if self.table.unused:
            notes.append(f"{self.table.unused:,} rows of {Path(self.labels.values).name} fit no scan")
        if self.held:
            use = (
                f"Use them with label.masks {self.way}" if self.way else "Say with label.masks TEXT=TEXT whose they are"
            )
            notes.append(
                f"{len(self.held):,} files look like label maps and are held back (first: {min(self.held)}). {use}, "
                "or take them as scans with label.masks none"
            )
        return notes + self.layout.notes() + self.pairing.notes(told["scans"]) + self.objects.notes()
