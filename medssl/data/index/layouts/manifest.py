"""A CSV table that lists the scans of a data set: columns image, mask, excluded, subject, study, split, modality."""

from __future__ import annotations

import csv
import os.path
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.index.label_sources import refuse_formula
from medssl.data.index.layouts.base import About, Filled, Layout, Rows
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.index.scan_index import IndexOptions

_NAMES = ("subject", "study", "split", "modality")


def fill(options: IndexOptions, folder: Path) -> Filled:
    """Only checks the table: its rows say the rest, file by file.

    Raises:
        UserError: No table, no column image, a missing column, an image twice, or no image that exists.
    """
    rows = _rows(options, folder)
    existing = [path for path in rows if (folder / path).exists()]
    file = Path(options.labels.values).name
    if not existing:
        message = f"no image that {file} names is in {folder.name} (first: {next(iter(rows), 'none')})"
        raise UserError(message)
    masks = sum("mask" in row.masks for row in rows.values())
    summary = f"{len(rows)} rows of {file}, {masks} with a mask"
    for name in _NAMES:
        values = {row.names[name] for row in rows.values() if name in row.names}
        summary += f", {len(values)} {name} value{'s' if len(values) > 1 else ''}" if values else ""
    return Filled(options, summary)


def layout(options: IndexOptions, folder: Path) -> Layout:
    """What the table says of the files."""
    return Rows(_rows(options, folder), Path(options.labels.values).name)


def _rows(options: IndexOptions, folder: Path) -> dict[str, About]:
    """What the table says, by the path of the image below ``folder``."""
    if not options.labels.values:
        message = "the layout reads its files from a table"
        raise UserError(message, key="label.values", expected="a FILE.csv with the column image")
    file = Path(options.labels.values).expanduser().resolve()
    keep = [name.strip() for name in options.labels.columns.split(",") if name.strip()]
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            names, lines = list(reader.fieldnames), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{file.name} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(message) from error
    for name in ("image", *keep):
        if name not in names:
            message = f"{file.name} has no column {name!r}; its columns are {', '.join(names) or 'none'}"
            raise UserError(message)
    if twice := next((name for name in names if names.count(name) > 1), ""):
        message = f"{file.name} has two columns {twice!r}"
        raise UserError(message, key="label.values", hint="Remove or rename one")
    rows: dict[str, About] = {}
    for line in lines:
        cells = {name: (line.get(name) or "").strip() for name in names}
        if not cells["image"]:
            continue
        path = _below(cells["image"], folder, file)
        if path in rows:
            message = f"{file.name} has two rows of the image {cells['image']!r}"
            raise UserError(message, key="label.values", hint="Remove one")
        for name in keep:
            refuse_formula(cells[name], "label.columns", f"{file.name}, column {name!r}")
        rows[path] = About(
            masks={role: _below(cells[role], folder, file) for role in ("mask", "excluded") if cells.get(role)},
            names={name: cells[name] for name in _NAMES if cells.get(name)},
            values={name: cells[name] for name in keep},
        )
    return rows


def _below(text: str, folder: Path, file: Path) -> str:
    """A path of the table as one below ``folder``: it starts from there, from the table's folder, or from the root."""
    beside = file.parent / text
    whole = folder / text
    if not whole.exists() and beside.exists():
        whole = beside
    path = os.path.relpath(os.path.normpath(whole), folder)
    if path.startswith(".."):
        message = f"{file.name}: {Path(text).name} lies outside of {folder.name}"
        raise UserError(message)
    return Path(path).as_posix()
