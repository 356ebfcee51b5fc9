"""The rules of a data set applied to its scans: subject, values, mask, split. They can be applied again at any time."""

from __future__ import annotations

import hashlib
import json
import os.path
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medssl.data.identity import SubjectRule, named_digest, patient_digest
from medssl.data.index import Index
from medssl.data.labels import LabelOptions, PathRule, Table, folder_split, names_of, read_table, refuse_formula
from medssl.data.split import parse_shares, split_of

_PAGE = 1000


def apply(index: Index, key: bytes) -> tuple[str, ...]:
    """Apply the rules of every data set, if anything changed since they were applied last.

    Returns:
        What the user should know: subjects that nothing tells apart, rows of a table that fit no scan, and so on.
    """
    connection = index.connection
    datasets = connection.execute("SELECT name, folder, options FROM datasets ORDER BY name").fetchall()
    state = json.dumps([[list(row), _table_state(row["options"])] for row in datasets])
    if index.meta("ruled") == state:
        return tuple(json.loads(index.meta("notes", "[]")))
    notes: list[str] = []
    for row in datasets:
        notes += [f"{row['name']}: {note}" for note in _Ruler(index, row, key).run()]
    notes += _split_leaks(connection)
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('notes', ?)", (json.dumps(notes),))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('ruled', ?)", (state,))
    return tuple(notes)


def _table_state(options: str) -> list[int]:
    """Size and time of the table of values: a changed table is read again."""
    values = json.loads(options)["labels"]["values"]
    file = Path(values).expanduser()
    return [file.stat().st_size, file.stat().st_mtime_ns] if values and file.is_file() else []


def _split_leaks(connection: sqlite3.Connection) -> list[str]:
    """Folders and columns can put a subject on two sides; shares by subject cannot."""
    query = """
        SELECT count(*) FROM (SELECT subject_id FROM scans WHERE status = 'ok' AND split <> ''
        GROUP BY subject_id HAVING count(DISTINCT split) > 1)
    """
    leaking = connection.execute(query).fetchone()[0]
    return [f"leak: {leaking} subjects are in more than one split"] if leaking else []


@dataclass(frozen=True)
class _Ruled:
    """What the rules say of one scan."""

    subject: str
    known: bool
    split: str
    values: dict[str, str]
    status: tuple[str, str]
    masks: tuple[tuple[PathRule, sqlite3.Row], ...] = ()


class _Ruler:
    """The rules of one data set."""

    def __init__(self, index: Index, dataset: sqlite3.Row, key: bytes) -> None:
        options = json.loads(dataset["options"])
        self.connection, self.key = index.connection, key
        self.name = str(dataset["name"])
        self.prefix = os.path.relpath(dataset["folder"], index.root)
        self.subject = SubjectRule(options["subject"])
        self.labels = LabelOptions(**options["labels"])
        column = self.labels.split.removeprefix("column:") if self.labels.split.startswith("column:") else ""
        self.split_column = column
        self.table: Table = read_table(self.labels, also=[name for name in (self.subject.column, column) if name])
        self.patients = {patient_digest(key, name): name for name in self.table.rows}
        by_share = self.labels.split != "folder" and not column
        self.shares = parse_shares(self.labels.split) if by_share else {}
        self.told: Counter[str] = Counter()

    def run(self) -> list[str]:
        """Apply the rules, a page of scans at a time."""
        for page in self._pages():
            ruled = [(row["scan_id"], self._rule(row)) for row in page]
            self.connection.execute("BEGIN IMMEDIATE")
            for scan_id, one in ruled:
                self._write(scan_id, one)
            self.connection.execute("COMMIT")
        return self._notes()

    def _pages(self) -> Iterator[list[sqlite3.Row]]:
        """All scans that their files alone would allow, with the path of their first file."""
        last = ""
        query = """
            SELECT scans.*, files.path AS path FROM scans
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
        if its_image := self._belongs(path):
            return _Ruled("", False, "", {}, its_image)
        name = self.subject.name_in(path)
        values = self.table.row([*names_of(path), name, self.patients.get(found["subject"], "")])
        subject, known = self._who(row, found, name, values.get(self.subject.column, ""))
        kept = {column: values[column] for column in self.table.columns if column in values}
        if self.labels.classes == "folder":
            kept["class"] = PurePosixPath(path).parent.name
            refuse_formula(kept["class"], "--labels.classes folder")
        masks, status = self._masks(path, row, (found["status"], found["reason"]))
        self._count(known, values, masks)
        split = self._split(path, subject, values.get(self.split_column, ""))
        return _Ruled(subject, known, split, kept, status, masks)

    def _belongs(self, path: str) -> tuple[str, str] | None:
        """Status of a file that is no scan of its own: a mask, or one whose image is missing; None for all others."""
        missing = None
        for rule in self.labels.rules():
            image = rule.image_of(path)
            if not image or image == path:
                continue
            if self._file(image) is None:
                missing = missing or ("rejected", f"{rule.noun} without an image")
            elif rule.mask_of(image) == path:
                return "label", ""
        return missing

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
        return told if self.split_column else folder_split(path)

    def _file(self, path: str) -> sqlite3.Row | None:
        """The file at ``path`` below the data set, with its scan."""
        query = """
            SELECT files.id, files.path, scans.* FROM files
            LEFT JOIN parts ON parts.file = files.id AND parts.role = 'image' AND parts.number = 0
            LEFT JOIN scans ON scans.scan_id = parts.scan_id WHERE files.path = ?
        """
        found = self.connection.execute(query, (os.path.normpath(f"{self.prefix}/{path}"),)).fetchone()
        return None if found is None else found

    def _masks(
        self, path: str, row: sqlite3.Row, status: tuple[str, str]
    ) -> tuple[tuple[tuple[PathRule, sqlite3.Row], ...], tuple[str, str]]:
        """The masks of the image at ``path``; one that is damaged or of another shape makes the scan fail."""
        masks = []
        for rule in self.labels.rules():
            wanted = rule.mask_of(path)
            mask = self._file(wanted) if wanted and wanted != path else None
            if mask is None:
                continue
            if problem := _unusable(rule, PurePosixPath(wanted).name, row, mask):
                status = ("failed", problem)
            else:
                masks.append((rule, mask))
        return tuple(masks), status

    def _count(self, known: bool, values: Any, masks: tuple[tuple[PathRule, sqlite3.Row], ...]) -> None:
        self.told["scans"] += 1
        self.told["unknown"] += not known
        self.told["without row"] += bool(self.table.rows) and not values
        for rule in self.labels.rules():
            self.told[f"without {rule.role}"] += all(rule != other for other, _ in masks)

    def _write(self, scan_id: str, one: _Ruled) -> None:
        row = self.connection.execute("SELECT found FROM scans WHERE scan_id = ?", (scan_id,)).fetchone()
        digest = json.loads(row["found"])["digest"]
        for rule, mask in one.masks:
            role = "" if rule.role == "mask" else f"{rule.role} "
            digest = hashlib.blake2b(f"{digest} {role}{mask['source_digest']}".encode(), digest_size=8).hexdigest()
        self.connection.execute(
            "UPDATE scans SET subject_id = ?, subject_known = ?, split = ?, labels = ?, has_mask = ?, status = ?, "
            "reason = ?, source_digest = ? WHERE scan_id = ?",
            (
                one.subject, int(one.known), one.split, json.dumps(one.values, sort_keys=True),
                int(any(rule.role == "mask" for rule, _ in one.masks)), *one.status, digest, scan_id,
            ),
        )  # fmt: skip
        self.connection.execute("DELETE FROM parts WHERE scan_id = ? AND role <> 'image'", (scan_id,))
        rows = [(scan_id, rule.role, mask["id"]) for rule, mask in one.masks]
        self.connection.executemany("INSERT INTO parts VALUES (?, ?, 0, ?, NULL)", rows)

    def _notes(self) -> list[str]:
        """What the user should know, with counts."""
        told, notes = self.told, []
        if told["unknown"]:
            notes.append(
                f"nothing tells the subjects of {told['unknown']:,} of {told['scans']:,} scans apart (rule "
                f"{self.subject.rule!r}): their split is by scan: leaks are possible; say how with --subject"
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
        if told["without mask"]:
            notes.append(f"{told['without mask']:,} scans have no usable mask")
        if told["without excluded"]:
            notes.append(f"{told['without excluded']:,} scans have no usable mask of excluded voxels: all theirs count")
        return notes


def _unusable(rule: PathRule, name: str, row: sqlite3.Row, mask: sqlite3.Row) -> str:
    """Why a scan cannot be used with its mask, or nothing."""
    if mask["scan_id"] is None or json.loads(mask["found"])["status"] != "ok":
        return f"{rule.noun} unusable: {name} {mask['reason'] or 'is no image'}"
    shapes = [tuple(one[f"size_{axis}"] for axis in "ijk" if one[f"size_{axis}"]) for one in (row, mask)]
    if shapes[0] != shapes[1]:
        ours, its = ("x".join(map(str, shape)) for shape in shapes)
        return f"{rule.noun} shape differs: {name} has {its}, its image {ours}"
    return ""
