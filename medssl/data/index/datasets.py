"""Which folders and files an index covers: each data set is a folder, or some files of one, with its own rules."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medssl.data.index import layouts
from medssl.data.index.label_sources import refuse_without_effect
from medssl.data.index.scan_index import Index, IndexOptions
from medssl.io.sqlite import transaction
from medssl.types import UserError


@dataclass(frozen=True)
class Dataset:
    """A folder of scans; with ``names`` only these files of it count."""

    name: str
    folder: Path
    below: bool
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Paths of a command line: whole folders, and single files by the folder that they lie in."""

    folders: tuple[Path, ...]
    files: dict[Path, tuple[str, ...]]


def places_of(paths: Sequence[Path]) -> Places:
    """Sort paths into folders and files; files inside of a folder that is named as well are left out.

    Raises:
        UserError: A path does not exist, or is neither a folder nor a regular file.
    """
    folders: list[Path] = []
    files: defaultdict[Path, list[str]] = defaultdict(list)
    for path in paths:
        whole = path.expanduser()
        if whole.is_dir():
            folders.append(whole.resolve())
        elif whole.is_file():
            files[whole.parent.resolve()].append(whole.name)
        elif whole.is_symlink():
            message = f"no such file or folder: {path} is a broken link"
            raise UserError(message)
        elif whole.exists():
            message = f"{path} is neither a folder nor a regular file (a pipe or a device): give files or folders"
            raise UserError(message)
        else:
            message = f"no such file or folder: {path}"
            raise UserError(message)
    alone = {
        folder: tuple(sorted(set(names)))
        for folder, names in files.items()
        if not any(folder.is_relative_to(other) for other in folders)
    }
    return Places(tuple(dict.fromkeys(folders)), alone)


def known_datasets(index: Index) -> dict[str, Dataset]:
    """The data sets that an index covers, by name."""
    known = {}
    for row in index.connection.execute("SELECT name, folder, options FROM datasets ORDER BY name"):
        files = json.loads(row["options"])["files"]
        below = bool(files.get("below", True))  # an older index does not say
        known[str(row["name"])] = Dataset(row["name"], Path(row["folder"]), below, tuple(files.get("names", ())))
    return known


def register(index: Index, paths: Sequence[Path], options: IndexOptions) -> list[Dataset]:
    """Note the rules of each folder; new rules make all its scans due for grouping.

    Returns:
        The data sets to read: those of ``paths``, or all that are known where there are none.
    """
    known = known_datasets(index)
    if not paths:
        return list(known.values())
    places = places_of(paths)
    if options.layout and places.files:
        message = f"layout {options.layout} reads whole folders, not single files"
        raise UserError(message, key="layout", hint="Give the folder of the data set")
    count = len(places.folders) + len(places.files)
    if options.files.dataset and count > 1:
        message = f"names one data set, but {count} folders are given"
        raise UserError(message, key="files.dataset", got=options.files.dataset)
    wanted = [Dataset(options.files.dataset or one.name, one, options.files.below) for one in places.folders]
    wanted += [_of_files(folder, names, known, options) for folder, names in sorted(places.files.items())]
    for dataset in wanted:
        _check_apart(dataset, known)
        known[dataset.name] = dataset
        _note(index, dataset, options)
    return wanted


def _of_files(folder: Path, names: tuple[str, ...], known: dict[str, Dataset], options: IndexOptions) -> Dataset:
    """The data set of some files of a folder, joined with those of it that are known."""
    for other in known.values():
        if not other.names and (folder == other.folder or (other.below and folder.is_relative_to(other.folder))):
            message = (
                f"{names[0]} lies in data set {other.name}, which is all of {other.folder}: bring that up to date by "
                "indexing without any file"
            )
            raise UserError(message)
    before = next((other.names for other in known.values() if other.folder == folder), ())
    name = options.files.dataset or folder.name or "root"
    return Dataset(name, folder, below=False, names=tuple(sorted({*before, *names})))


def _note(index: Index, dataset: Dataset, options: IndexOptions) -> None:
    filled = layouts.fill(options, dataset.folder).options
    refuse_without_effect(filled.labels, laid_out=bool(filled.layout))
    text = json.dumps(_saved(filled, dataset), sort_keys=True)
    with transaction(index.connection):
        old = index.connection.execute("SELECT options FROM datasets WHERE name = ?", (dataset.name,)).fetchone()
        row = (dataset.name, str(dataset.folder), text)
        index.connection.execute("INSERT OR REPLACE INTO datasets VALUES (?, ?, ?)", row)
        if old is not None and old[0] != text:
            due = "INSERT OR IGNORE INTO stale SELECT DISTINCT series FROM files WHERE dataset = ? AND series <> ''"
            index.connection.execute(due, (dataset.name,))


def _saved(options: IndexOptions, dataset: Dataset) -> dict[str, object]:
    """The rules that decide about scans, without what only steers one run."""
    saved = asdict(options)
    for name in ("workers", "seconds", "memory_gb", "key", "dataset"):
        del saved["files"][name]
    saved["files"]["below"] = dataset.below
    if dataset.names:
        saved["files"]["names"] = list(dataset.names)
    return saved


def _check_apart(dataset: Dataset, known: dict[str, Dataset]) -> None:
    """Names are unique, and no file belongs to two data sets."""
    for other in known.values():
        if other.name == dataset.name and other.folder != dataset.folder:
            message = f"the data set {dataset.name} is already the folder {other.folder}"
            raise UserError(message, key="files.dataset", hint="Choose another name")
        inside = dataset.folder.is_relative_to(other.folder) and other.below
        nested = inside or (other.folder.is_relative_to(dataset.folder) and dataset.below)
        if other.folder != dataset.folder and nested:
            message = f"{dataset.folder} and {other.folder} (data set {other.name}) lie inside each other: index one"
            raise UserError(message)
        if other.folder == dataset.folder and other.name != dataset.name:
            message = f"{dataset.folder} is already the data set {other.name}"
            raise UserError(message, key="files.dataset", got=dataset.name, hint="Leave it out")


def all_phantoms(index: Index, names: Collection[str]) -> bool:
    """Whether every data set of these names is a folder of synthetic scans."""
    from medssl.data.synthetic.phantom_files import FOLDER_FILE

    rows = index.connection.execute("SELECT name, folder FROM datasets")
    folders = [Path(folder) for name, folder in rows if name in names]
    return bool(folders) and all((folder / FOLDER_FILE).is_file() for folder in folders)
