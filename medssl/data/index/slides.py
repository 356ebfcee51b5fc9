"""Rows of whole slides: their levels, and the size of their pixels by a table, by the file, or not at all.

A slide whose pixel size nobody states has the status ``needs_spacing``: it is listed, and never used with a guess.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from medssl.data.formats.dicom.whole_slide import SlideFile, from_dict
from medssl.data.formats.slide.pixel_size import LARGEST_UM, SMALLEST_UM, checked, number
from medssl.data.index.label_sources import LabelOptions, SlideOptions, names_of
from medssl.types import Status, UserError

MODALITY = "SM"
_SPACING_COLUMNS = ("spacing_i_mm", "spacing_j_mm", "mpp_y", "mpp_x", "affine", "stain")


@dataclass(frozen=True)
class SlideRow:
    """A slide for the table of scans: its status, columns, and files in the order of its levels."""

    status: Status
    columns: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    files: tuple[sqlite3.Row, ...] = ()


def of_file(header: dict[str, Any], reason: str) -> SlideRow:
    """A slide that is one file, by its saved header."""
    slide = header["details"]["slide"]
    return _row(slide, tuple(header["grid"]["shape"]), reason)


def of_levels(files: Sequence[sqlite3.Row], *, burned_in: bool) -> SlideRow:
    """A DICOM slide from the files of its series.

    Args:
        files: All files of the series; those in state "level" hold one level or a part of one.
        burned_in: Whether slides with text in their pixels are taken.
    """
    levels = [(from_dict(json.loads(file["header"])), file) for file in files if file["state"] == "level"]
    by_size: dict[tuple[int, int], list[tuple[SlideFile, sqlite3.Row]]] = {}
    for about, file in levels:
        by_size.setdefault(about.size, []).append((about, file))
    ordered = sorted(by_size.items(), key=lambda item: -item[0][0] * item[0][1])
    parts: list[tuple[SlideFile, sqlite3.Row]] = []
    notes: list[str] = []
    for _, group in ordered:
        group.sort(key=lambda item: (item[0].concatenation[0], item[1]["path"]))
        single = group[0][0].concatenation[1] <= 1
        parts += group[:1] if single else group
        if single and len(group) > 1:
            notes.append(f"further files of one level left out: {len(group) - 1}")
    base = parts[0][0]
    problem = _problem(files, ordered) or _burned_in(parts, taken=burned_in)
    if problem is not None:
        return SlideRow(problem, files=tuple(file for _, file in parts))
    if missing := _numbers_missing(files):
        notes.append(f"a file of the series may be missing: no instance number {missing}")
    rows_um, columns_um = (None if step is None else step * 1000 for step in base.spacing_mm or (None, None))
    spacing, reason = checked(rows_um, columns_um, "PixelSpacing")
    slide = {
        "spacing_mm": spacing, "spacing_reason": reason, "levels": [size for size, _ in ordered], "vendor": "dicom",
        "scanner": base.scanner, "objective": base.objective, "stain": base.stain,
    }  # fmt: skip
    row = _row(slide, base.size, "; ".join(notes))
    return SlideRow(row.status, row.columns, row.facts, tuple(file for _, file in parts))


def _row(slide: dict[str, Any], shape: tuple[int, ...], notes: str) -> SlideRow:
    facts = {"slide": {"spacing_mm": slide["spacing_mm"], "reason": slide["spacing_reason"], "stain": slide["stain"]}}
    columns = {
        "kind": "slide", "value_domain": "rgb", "channels": 3, "volume": 1, "volumes": 1, "size_i": shape[0],
        "size_j": shape[1], "scanner": slide["scanner"], "levels": len(slide["levels"]),
        "objective": slide["objective"],
    }  # fmt: skip
    status = Status("ok", notes) if slide["spacing_mm"] else Status("needs_spacing", slide["spacing_reason"])
    return SlideRow(status, columns | _places(slide["spacing_mm"], slide["stain"]), facts)


def _places(spacing_mm: Sequence[float] | None, stain: str) -> dict[str, Any]:
    """Columns that follow from the spacing, and the stain."""
    if spacing_mm is None:
        return dict(zip(_SPACING_COLUMNS, (None, None, None, None, "[]", stain), strict=True))
    rows, columns = spacing_mm
    affine = json.dumps([[rows, 0.0, 0.0], [0.0, columns, 0.0], [0.0, 0.0, 1.0]])
    values = (rows, columns, round(rows * 1000, 9), round(columns * 1000, 9), affine, stain)
    return dict(zip(_SPACING_COLUMNS, values, strict=True))


def _problem(
    files: Sequence[sqlite3.Row], ordered: list[tuple[tuple[int, int], list[tuple[SlideFile, sqlite3.Row]]]]
) -> Status | None:
    """Why a DICOM slide cannot be used; None if it can."""
    for file in files:
        if file["state"] == "failed":
            return Status(
                "failed", f"a file of the slide cannot be read ({PurePath(file['path']).name}: {file['reason']})"
            )
    for size, group in ordered:
        for about, _ in group:
            if about.problem:
                return Status("failed" if about.problem.startswith("frames") else "rejected", about.problem)
        total = group[0][0].concatenation[1]
        present = {about.concatenation[0] for about, _ in group}
        if lost := sorted(set(range(1, total + 1)) - present):
            shown = ", ".join(map(str, lost))
            message = f"a file is missing: part {shown} of {total} of the level of {size[0]}x{size[1]}"
            return Status("failed", message)
    if all(about.resampled for _, group in ordered for about, _ in group):
        return Status("failed", "a file is missing: all levels are resampled copies of one that is not there")
    return None


def _burned_in(parts: list[tuple[SlideFile, sqlite3.Row]], *, taken: bool) -> Status | None:
    if taken or not any(json.loads(file["about"])["burned_in"] for _, file in parts):
        return None
    return Status("rejected", "burned-in annotation: files.burned_in true takes it anyway")


def _numbers_missing(files: Sequence[sqlite3.Row]) -> str:
    """Instance numbers between the first and the last of the series that no file has; "" without a gap."""
    headers = [json.loads(file["header"]) for file in files if file["header"]]
    numbers = {int(header["number"]) for header in headers if header.get("number")}
    if len(numbers) < 2 or max(numbers) - min(numbers) > 2 * len(headers):
        return ""
    return ", ".join(str(one) for one in range(min(numbers), max(numbers)) if one not in numbers)


class SlideTable:
    """Micrometers per pixel and stains of slides by a table of values.

    Raises:
        UserError: A column that an option names is not there, or the table cannot be read.
    """

    def __init__(self, labels: LabelOptions, options: SlideOptions) -> None:
        self.rows: dict[str, dict[str, str]] = {}
        self.name = Path(labels.values).name
        self.counts: Counter[str] = Counter()
        given = {"mpp": options.mpp, "stain": options.stain}
        self.columns = {name: column.removeprefix("column:") for name, column in given.items() if column}
        if not labels.values:
            for name in self.columns:
                message = "has no effect without label.values FILE.csv"
                raise UserError(message, key=f"files.slides.{name}", hint="Give both, or leave it out")
            return
        if labels.key:
            self._read(Path(labels.values).expanduser(), labels.key)

    def _read(self, file: Path, key: str) -> None:
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
                names = list(reader.fieldnames or ())
                for option, column in self.columns.items():
                    if column not in names:
                        message = f"{file.name} has no column {column!r}; its columns are {', '.join(names) or 'none'}"
                        raise UserError(message, key=f"files.slides.{option}")
                for name in ("mpp", "stain"):
                    if name in names:
                        self.columns.setdefault(name, name)
                for line in reader if self.columns else ():
                    self._add((line.get(key) or "").strip(), line)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            message = f"{file.name} cannot be read: {getattr(error, 'strerror', None) or error}"
            raise UserError(message, key="label.values") from error

    def _add(self, key: str, line: dict[str, str]) -> None:
        """Adds a row; values that differ between rows of one key say nothing about a single slide."""
        row = {name: (line.get(column) or "").strip() for name, column in self.columns.items()}
        known = self.rows.setdefault(key, row)
        for name, value in row.items():
            if known[name] != value:
                known[name] = ""

    def apply(self, facts: dict[str, Any], path: str, subject: str) -> tuple[Status, dict[str, Any]]:
        """Status and columns of a slide.

        Args:
            facts: What its files alone say ("found").
            path: Path of its first file, below the data set.
            subject: Name of the subject by the rule.
        """
        slide = facts["slide"]
        names = [*names_of(path), PurePosixPath(path).parent.name, subject]
        row = next((self.rows[name] for name in names if name and name in self.rows), {})
        spacing, reason = slide["spacing_mm"], slide["reason"]
        if text := row.get("mpp", ""):
            spacing, reason = self._stated(text)
        stain = row.get("stain", "") or slide["stain"]
        notes = facts["reason"] if facts["status"] == "ok" else ""
        status = Status("ok", notes) if spacing is not None else Status("needs_spacing", reason)
        return status, _places(spacing, stain)

    def _stated(self, text: str) -> tuple[tuple[float, float] | None, str]:
        """Spacing by a value of the table."""
        value = number(text)
        if value is None or not SMALLEST_UM <= value <= LARGEST_UM:
            shown = "not a number" if value is None else f"{value:g} um"
            limits = f"{SMALLEST_UM:g} to {LARGEST_UM:g} um"
            return (
                None,
                f"pixel size in the table is {shown} (column {self.columns['mpp']}; expected {limits}): correct it",
            )
        return (value / 1000, value / 1000), ""


def write(connection: sqlite3.Connection, scan_id: str, columns: dict[str, Any]) -> None:
    """Writes spacing and stain of a slide."""
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE scans SET {names} WHERE scan_id = ?", (*columns.values(), scan_id))
