"""What every layout gives: rules that it fills, and what it says of single files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medssl.data.formats.modality import of_channels
from medssl.data.index.label_sources import LabelOptions
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.index.scan_index import IndexOptions

HIDDEN = ("label", "")  # status of a file that belongs to another scan


@dataclass(frozen=True)
class Filled:
    """Rules of a data set, and a line that sums up what its layout gave."""

    options: IndexOptions
    summary: str = ""


@dataclass(frozen=True)
class About:
    """What a layout says of one file; empty where it says nothing. Paths are below the folder of the data set.

    Attributes:
        status: Code and reason of a file that is no scan of its own.
        masks: Path of the mask by role ("mask", "excluded").
        names: "subject", "study", "split" and "modality", where the layout knows them.
        values: Scan-level values by name.
        channels: Further files that are channels of this scan.
        count: How many channels the scan has; 0 where the layout does not know.
    """

    status: tuple[str, str] | None = None
    masks: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    count: int = 0


class Layout:
    """No layout: nothing is said of any file."""

    def about(self, path: str) -> About:
        """What is said of the file at ``path``."""
        del path
        return About()

    def notes(self) -> list[str]:
        """Notes for the user, once ``about`` was called for every file."""
        return []

    def failure(self) -> UserError | None:
        """The error of a layout that fits no file at all; None for others."""
        return None


class Rows(Layout):
    """Files by a list: each has a row of its own, all others are left out and counted.

    Args:
        rows: What is said of each scan, by path.
        source: Name of the list's file.
    """

    def __init__(self, rows: Mapping[str, About], source: str) -> None:
        self.rows, self.source = rows, source
        self.masks = {path for about in rows.values() for path in about.masks.values()}
        self.met: set[str] = set()

    def about(self, path: str) -> About:
        """The row of the file, or of a folder that it lies in (a series of slices)."""
        for key in (path, *map(str, PurePosixPath(path).parents)):
            if key in self.rows:
                self.met.add(key)
                return self.rows[key]
        return About(HIDDEN if path in self.masks else ("rejected", f"not listed in {self.source}"))

    def notes(self) -> list[str]:
        """Rows without a file that could be read."""
        lost = [path for path in self.rows if path not in self.met]
        if not lost:
            return []
        return [f"{len(lost):,} rows of {self.source} name no readable file (first: {lost[0]})"]

    def failure(self) -> UserError | None:
        """The error where no row has a file."""
        first = next(iter(self.rows), "")
        return None if self.met else UserError(f"no file that {self.source} names can be read (first: {first})")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: No such file, or no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        message = f"no {file.name} in {file.parent.name}: expected the folder of the data set itself"
        raise UserError(message) from error
    except (OSError, ValueError) as error:
        message = f"{file.name} cannot be read: {getattr(error, 'strerror', None) or 'it is not JSON'}"
        raise UserError(message) from error
    if not isinstance(content, dict):
        message = f"{file.name} holds no JSON object"
        raise UserError(message)
    return content


def need_folder(folder: Path, *names: str) -> None:
    """Refuse a folder that lacks one of ``names``.

    Raises:
        UserError: Names what is missing and what there is.
    """
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        folders = ", ".join(sorted(one.name for one in folder.iterdir() if one.is_dir())[:8]) or "none"
        message = f"{folder.name} has no folder {missing[0]}; its folders are {folders}"
        raise UserError(message)


def with_defaults(options: IndexOptions, subject: str, modality: str = "", **labels: Any) -> IndexOptions:
    """``options`` with what a layout says, where the user left the defaults."""
    plain = LabelOptions()
    given = {name: value for name, value in labels.items() if getattr(options.labels, name) == getattr(plain, name)}
    files = options.files if options.files.modality or not modality else replace(options.files, modality=modality)
    subject = subject if options.subject == "dicom" else options.subject
    return replace(options, subject=subject, files=files, labels=replace(options.labels, **given))


def class_names(labels: Mapping[str, Any]) -> tuple[str, int | None]:
    """Class names and the value to ignore of a ``dataset.json``: name -> value, or value -> name as of old.

    Raises:
        UserError: Regions (several values for a name), or values that are no whole numbers.
    """
    regions = [name for name, value in labels.items() if isinstance(value, list | tuple)]
    if regions:
        message = f"dataset.json names regions of several values ({', '.join(regions[:3])})"
        expected = "the value of each class, as in 0=background,1=edema"
        raise UserError(message, key="label.class_names", expected=expected)
    pairs = [(str(a), str(b)) for a, b in labels.items()]
    if all(value.lstrip("-").isdigit() for value, _ in pairs):
        pairs = [(name, value) for value, name in pairs]
    wrong = [name for name, value in pairs if not value.lstrip("-").isdigit() or set(name) & {",", "="}]
    if wrong:
        message = f"dataset.json: label {wrong[0]!r} has no whole number, or its name has a comma"
        raise UserError(message, key="label.class_names", hint="Give the names of the classes")
    ignore = [int(value) for name, value in pairs if name.strip().lower() == "ignore"]
    named = sorted(((int(value), name) for name, value in pairs if name.strip().lower() != "ignore"))
    return ",".join(f"{value}={name}" for value, name in named), ignore[0] if ignore else None


def modality_of(names: Any) -> str:
    """The modality that all channel names of a ``dataset.json`` agree on; nothing otherwise."""
    return of_channels(map(str, names.values() if isinstance(names, dict) else names or []))
