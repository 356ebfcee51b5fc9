"""The index: one SQLite file that says what every file below some directories is, and which scans they make.

It is updated in place (only new and changed files are read again) and survives a kill at any moment: whatever was
committed stays, and the next update goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from medssl.data.formats.modality import modality_of
from medssl.data.formats.units import LengthUnit
from medssl.data.index import schema as tables
from medssl.data.index.label_sources import LabelOptions, SlideOptions
from medssl.data.index.reasons import kind_of_reason
from medssl.io.csv_text import as_csv
from medssl.types import LabelSchema, Scan, StatusCode, UserError

_PAGE = 500
LayoutName = Literal["", "nnunet", "bids", "decathlon", "csv"]


@dataclass(frozen=True)
class ProcessOptions:
    """In which processes files are read, and what one file may take.

    Attributes:
        workers: Processes that read headers, 0 or more. 0 reads in this process, which a file that makes a decoder
            crash or hang then ends or blocks.
        seconds: Time limit for one file in seconds, above 0.
        memory_gb: Memory limit for one file in GB, above 0.
    """

    workers: int = 2
    seconds: float = 60.0
    memory_gb: float = 2.0


@dataclass(frozen=True)
class DicomOptions(ProcessOptions):
    """How DICOM files are read.

    Attributes:
        burned_in: Also take DICOM pictures that declare text burned into their pixels.
        slices: Take the slices of a DICOM series as one "volume", or each as an "image" of its subject.
        captures: Also take DICOM secondary captures that have position, orientation and spacing, as derived volumes.
    """

    burned_in: bool = False
    slices: Literal["volume", "image"] = "volume"
    captures: bool = False


@dataclass(frozen=True)
class ArrayOptions:
    """What the axes of arrays are (``.npy``, ``.npz``, ``.h5``), which say nothing about themselves.

    Attributes:
        axes: One letter per axis, slowest first: i, j, k for the voxel axes of a volume (a picture has rows j and
            columns i), c for channels, t for time; such as kji, ckji, ji or jic. Empty skips such files.
        spacing_mm: Voxel spacing in mm, with commas, for i, j, k in the order of ``axes``; empty takes 1.
        member: Name of the array in an ``.npz`` or ``.h5`` file. Of several with commas, the first that a file has is
            taken.
    """

    axes: str = ""
    spacing_mm: str = ""
    member: str = ""

    def __post_init__(self) -> None:
        spatial = [letter for letter in self.axes if letter in "ijk"]
        wrong = len(set(self.axes)) < len(self.axes) or set(self.axes) - set("ijkct") or not set("ij") <= set(spatial)
        if self.axes and wrong:
            expected = "each axis once: i and j; k, c (channels), t (time) if present; as in kji, ckji, ji or jic"
            message = "wrong axes"
            raise UserError(message, key="files.arrays.axes", got=self.axes, expected=expected)
        if self.spacing_mm and not _are_lengths(self.spacing_mm, len(spatial)):
            axes = ", ".join(spatial) or "the axes of files.arrays.axes"
            expected = f"{len(spatial)} lengths above 0 with commas, one for each of {axes}"
            message = "wrong spacing"
            raise UserError(message, key="files.arrays.spacing_mm", got=self.spacing_mm, expected=expected)


def _are_lengths(text: str, count: int) -> bool:
    """Whether a text is as many lengths above 0."""
    try:
        lengths = [float(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(lengths) == count and all(0 < length < float("inf") for length in lengths)


@dataclass(frozen=True)
class FileOptions(DicomOptions):
    """How files are read.

    Attributes:
        dataset: Name of the data set; empty takes the name of the folder.
        modality: Modality of files that do not state theirs (all but DICOM), such as CT or MR.
        frames: Files with several volumes or pictures (fourth axis of NIfTI, pages of TIFF): "refuse" them, take each
            as one of the "scans" of its subject, or take up to 8 of them as "channels".
        below: Also search the folders below.
        key: File with the institution's secret key; None takes ``~/.config/medssl/key``.
        arrays: Axes and spacing of arrays without a header (``.npy``, ``.npz``, ``.h5``).
        length_unit: Unit of lengths in files that do not state it, or state it wrongly (all but DICOM): um, mm, cm or
            m. "mm" also accepts an implausible spacing.
        slides: What a table says about whole slides.
    """

    dataset: str = ""
    modality: str = ""
    frames: Literal["refuse", "scans", "channels"] = "refuse"
    below: bool = True
    key: Path | None = None
    arrays: ArrayOptions = field(default_factory=ArrayOptions)
    length_unit: LengthUnit = ""
    slides: SlideOptions = field(default_factory=SlideOptions)

    def __post_init__(self) -> None:
        modality_of(self.modality)


@dataclass(frozen=True)
class IndexOptions:
    """All rules of a data set; ``layout`` names one that tools share, which fills rules left at their defaults."""

    subject: str = "dicom"
    labels: LabelOptions = field(default_factory=LabelOptions)
    files: FileOptions = field(default_factory=FileOptions)
    layout: LayoutName = ""

    def __post_init__(self) -> None:
        if self.labels.values and not self.labels.key and self.layout != "csv":
            message = f"no column of {Path(self.labels.values).name} is chosen as key"
            expected = "the column that names the scan or the subject"
            raise UserError(message, key="label.key", expected=expected)


class Index:
    """An open index.

    Use it as a context manager, or call ``close``.
    """

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self.file = file
        self.connection = connection

    @classmethod
    def open(cls, path: Path | str, *, create: bool = False, root: Path | None = None) -> Self:
        """Open an index, read-only unless ``create``.

        Args:
            path: The index file.
            create: Open for updating; make it where there is none.
            root: Folder that the paths of a new index start from; None takes the current one.

        Raises:
            UserError: No such index, or the file is none.
        """
        file = Path(path).expanduser()
        if create and not file.exists():
            tables.create(file, (root or Path.cwd()).resolve())
        return cls(file, tables.connect(file, writable=create))

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """Folder that the paths of all scans start from."""
        return Path(self.meta("root"))

    def meta(self, name: str, default: str = "") -> str:
        """A fact about the index itself."""
        row = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else str(row[0])

    def scans(self, where: str | None = None, split: str | None = None, status: StatusCode = "ok") -> Iterator[Scan]:
        """Scans ordered by identifier; memory does not grow with their number.

        Args:
            where: SQL condition on the columns of ``columns()``.
            split: Only this split.
            status: Only this status.

        Raises:
            UserError: ``where`` names an unknown column (the message lists the known ones) or is no SQL.
        """
        conditions = [f"status = '{status}'"] + ([f"({where}\n)"] if where else [])
        values: list[str] = []
        if split is not None:
            conditions.append("split = ?")
            values.append(split)
        rows = self._select(" AND ".join(conditions), values, columns="scan_id")
        identifiers = [str(row[0]) for row in rows]
        for start in range(0, len(identifiers), _PAGE):
            yield from self._page(identifiers[start : start + _PAGE])

    def scan(self, scan_id: str) -> Scan:
        """One scan, whatever its status; a beginning of the identifier that is unique will do.

        Raises:
            UserError: No such scan, or several.
        """
        rows = self.connection.execute(
            "SELECT scan_id FROM scans WHERE substr(scan_id, 1, ?) = ? LIMIT 2", (len(scan_id), scan_id)
        ).fetchall()
        if len(rows) != 1 or not scan_id:
            message = f"{'no scan' if not rows else 'several scans'} {scan_id!r} in {self.file}"
            raise UserError(message)
        return self._page([str(rows[0][0])])[0]

    def columns(self) -> list[str]:
        """Names that a condition may use."""
        return tables.listing(self.connection)[1]

    def rows(self, where: str | None = None) -> sqlite3.Cursor:
        """The scans as a table (``columns()``), all statuses, ordered by identifier."""
        return self._select(f"({where}\n)" if where else "1", [])

    def counts(self) -> list[tuple[str, str, int]]:
        """What was left out: status ("failed", "needs_spacing", ...), reason in short, how many scans or files."""
        query = """
            SELECT status, reason, count(*) FROM scans WHERE status NOT IN ('ok', 'label') GROUP BY 1, 2 UNION ALL
            SELECT state, reason, count(*) FROM files WHERE state = 'ignored' GROUP BY 1, 2
        """
        total: Counter[tuple[str, str]] = Counter()
        for status, reason, count in self.connection.execute(query):
            total[status, reason if status == "ignored" else str(reason).split(":")[0].split(" (")[0]] += count
        return sorted(((status, reason, count) for (status, reason), count in total.items()), key=_by_count)

    def schema(self, dataset: str | None = None) -> LabelSchema | None:
        """Class map of the masks; None where no data set has one.

        Raises:
            UserError: Data sets differ in their class maps and none was named.
        """
        schemas = set()
        for row in self.connection.execute("SELECT name, options FROM datasets ORDER BY name"):
            schema = LabelOptions(**json.loads(row["options"])["labels"]).schema()
            if schema is not None and dataset in (None, row["name"]):
                schemas.add(schema)
        if len(schemas) > 1:
            message = f"the data sets of {self.file.name} have different class maps: choose one data set"
            raise UserError(message)
        return schemas.pop() if schemas else None

    def digest(self) -> str:
        """Digest (16 hexadecimal digits) of all good scans, their labels and splits; paths do not count."""
        state = hashlib.blake2b(digest_size=8)
        query = """
            SELECT scan_id, source_digest, subject_id, split, labels, has_mask FROM scans
            WHERE status = 'ok' ORDER BY scan_id
        """
        for row in self.connection.execute(query):
            state.update(json.dumps(list(row)).encode())
        return state.hexdigest()

    def export(self, file: Path, where: str | None = None) -> int:
        """Write the scans as a table, CSV or Parquet by the ending, without any path or name of a file.

        Of reasons only the kind is written; ``scan`` gives the whole ones.

        Returns:
            How many rows were written.

        Raises:
            UserError: Another ending, or Parquet without pyarrow.
        """
        cursor = self.rows(where)
        names = [column[0] for column in cursor.description]
        rows = self._without_names(names, [tuple(row) for row in cursor])
        writers = {".csv": _write_csv, ".parquet": _write_parquet}
        if file.suffix.lower() not in writers:
            message = f"export {file.name}: expected a name that ends in .csv or .parquet"
            raise UserError(message)
        beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            writers[file.suffix.lower()](beside, names, rows)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
        return len(rows)

    def _without_names(self, names: Sequence[str], rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Rows of the listing in which the reason is no more than its kind."""
        who, why = names.index("scan_id"), names.index("reason")
        query = """
            SELECT parts.scan_id, path FROM parts JOIN files ON files.id = parts.file
            JOIN scans ON scans.scan_id = parts.scan_id WHERE scans.reason <> ''
        """
        paths: dict[str, set[str]] = {}
        for scan_id, path in self.connection.execute(query):
            paths.setdefault(scan_id, set()).add(path)
        return [
            (*row[:why], kind_of_reason(row[why], paths.get(row[who], ())), *row[why + 1 :]) if row[why] else row
            for row in rows
        ]

    def _select(self, condition: str, values: Sequence[str], *, columns: str = "*") -> sqlite3.Cursor:
        query, names = tables.listing(self.connection)
        self.connection.execute("PRAGMA query_only = 1")
        try:
            ordered = f"SELECT {columns} FROM ({query}) WHERE {condition} ORDER BY scan_id"
            return self.connection.execute(ordered, values)
        except (sqlite3.Error, sqlite3.Warning) as error:
            message = f"not a valid condition ({' '.join(str(error).split())})"
            expected = f"an SQL condition on the columns {', '.join(names)}"
            hint = "Put text in 'single quotes'"
            raise UserError(message, key="where", expected=expected, hint=hint) from error
        finally:
            self.connection.execute("PRAGMA query_only = 0")

    def _page(self, identifiers: Sequence[str]) -> list[Scan]:
        marks = ",".join("?" * len(identifiers))
        parts: dict[str, list[sqlite3.Row]] = {identifier: [] for identifier in identifiers}
        query = f"""
            SELECT parts.scan_id, role, path, frame, size, modified_ns,
            CASE WHEN state = 'scan' AND instr(header, '"companions":[[') > 0 THEN header END AS header
            FROM parts JOIN files ON files.id = parts.file
            WHERE parts.scan_id IN ({marks}) ORDER BY parts.scan_id, role, number
        """
        for row in self.connection.execute(query, identifiers):
            self._refuse_place(row)
            parts[row["scan_id"]].append(row)
        rows = self.connection.execute(f"SELECT * FROM scans WHERE scan_id IN ({marks}) ORDER BY scan_id", identifiers)
        options = {row["name"]: row["options"] for row in self.connection.execute("SELECT name, options FROM datasets")}
        return [tables.scan_of(row, parts[row["scan_id"]], options[row["dataset"]]) for row in rows]

    def _refuse_place(self, row: sqlite3.Row) -> None:
        """Refuses a path that leads out of the folders that were indexed.

        Raises:
            UserError: Names the scan.
        """
        path = str(row["path"])
        if ".." not in path and not path.startswith("/"):
            return
        folders = [self.root, *(Path(folder) for (folder,) in self.connection.execute("SELECT folder FROM datasets"))]
        place = Path(os.path.normpath(self.root / path))
        if path.startswith("/") or not any(place.is_relative_to(folder) for folder in folders):
            message = (
                f"scan {row['scan_id']}: its file lies outside the folders of {self.file.name}: make a new index of "
                "the scans"
            )
            raise UserError(message)


def _by_count(row: tuple[str, str, int]) -> tuple[str, int, str]:
    return row[0], -row[2], row[1]


def _write_csv(file: Path, names: list[str], rows: list[tuple[Any, ...]]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as stream:
        stream.write(as_csv([names, *rows]))
        stream.flush()
        os.fsync(stream.fileno())


def _write_parquet(file: Path, names: list[str], rows: list[tuple[Any, ...]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        message = "Parquet needs pyarrow: pip install 'medssl[parquet]', or export to .csv"
        raise UserError(message) from error
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    table = pyarrow.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    parquet.write_table(table, file)
