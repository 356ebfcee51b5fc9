"""The scores of an evaluation, one row a scan (and class): ``cases.csv``, written and read back with checks.

Nothing in it names a person or a file: scans and subjects are keyed hashes. An empty cell is a score that is not
defined; numbers have every digit, so that what is read back is what was written.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from medssl.io.atomic_write import atomic_files, explain_disk_errors
from medssl.io.csv_text import as_csv
from medssl.metrics.classification import SUM_TOLERANCE
from medssl.metrics.mask_measures import MEASURES, ClassScore
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CASES = "cases.csv"
LACKS = ("absent", "missed", "invented")  # what the note of a ClassScore says, beside ""
SEGMENTATION = ("scan_id", "subject_id", "class", "dice", "hd95_mm", "true_voxels", "predicted_voxels", "note")
FURTHER_SEGMENTATION = (*SEGMENTATION, *MEASURES)  # where they were measured
CLASSIFICATION = ("scan_id", "subject_id", "truth", "predicted")
MULTI_LABEL = ("scan_id", "subject_id")
REGRESSION = ("scan_id", "subject_id", "truth", "predicted")
TOLERANCE = 1e-6  # of a file that a spreadsheet has rounded
PROBABILITY = "probability:"  # before the name of a class
TRUTH = "truth:"  # before the name of a finding


@dataclass(frozen=True)
class SegmentationRow:
    """The score of one class of one scan."""

    scan_id: str
    subject_id: str
    class_name: str
    score: ClassScore


@dataclass(frozen=True)
class ClassificationRow:
    """Names of the true and the predicted class of one scan, and a probability for each class."""

    scan_id: str
    subject_id: str
    truth: str
    predicted: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class FindingsRow:
    """For each finding whether one scan has it (1, 0, or -1 where that is not known), and its probability."""

    scan_id: str
    subject_id: str
    truth: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class NumberRow:
    """The true and the predicted number of one scan."""

    scan_id: str
    subject_id: str
    truth: float
    predicted: float


class ScanRow(Protocol):
    """A row of one scan."""

    @property
    def scan_id(self) -> str:
        """Identifier of the scan."""


def write_segmentation(path: Path, rows: Sequence[SegmentationRow]) -> None:
    """Writes the scores of a segmentation; the columns of ``MEASURES`` stand at the end where all rows have them.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
        ValueError: Some rows have further measures and others have none.
    """
    further = has_further(rows)
    cells = [
        (row.scan_id, row.subject_id, row.class_name, score.dice, score.hd95_mm, score.true_voxels,
         score.predicted_voxels, score.note, *(score.value(name) for name in (MEASURES if further else ())))
        for row in rows
        for score in [row.score]
    ]  # fmt: skip
    write_rows(path, FURTHER_SEGMENTATION if further else SEGMENTATION, cells)


def has_further(rows: Sequence[SegmentationRow]) -> bool:
    """Whether all rows have further measures.

    Raises:
        ValueError: Only some have.
    """
    count = sum(row.score.further is not None for row in rows)
    if 0 < count < len(rows):
        message = f"{count} of {len(rows)} rows have further measures: expected all or none"
        raise ValueError(message)
    return count > 0


def read_segmentation(path: Path) -> list[SegmentationRow]:
    """Reads the scores of a segmentation back, with the further measures or without any of them.

    Raises:
        UserError: No such file, no rows, a column that is missing, a score that is none (NaN, outside its range, at
            odds with the note or the counts), a class of a scan that stands twice or is missing, or a scan of two
            subjects.
    """
    rows = []
    lines = read_lines(path, SEGMENTATION, together=tuple(MEASURES))
    further = next(iter(MEASURES)) in lines[0].cells
    for line in lines:
        dice, hd95 = line.optional("dice", 1.0), line.optional("hd95_mm")
        voxels, note = (line.count("true_voxels"), line.count("predicted_voxels")), line.cells["note"]
        if note not in ("", *LACKS):
            line.refuse("note", f"nothing, {', '.join(LACKS[:-1])} or {LACKS[-1]}")
        if (dice is None) != (note == "absent"):
            line.refuse("dice", "nothing where the note is absent, a number from 0 to 1 elsewhere")
        if (hd95 is None) != bool(note):
            line.refuse("hd95_mm", "nothing where there is a note, a number from 0 elsewhere")
        score = ClassScore(dice, hd95, *voxels, note, _further(line, note) if further else None)
        rows.append(SegmentationRow(line.cells["scan_id"], line.cells["subject_id"], line.cells["class"], score))
    refuse_uneven(rows, list(dict.fromkeys(row.class_name for row in rows)), f"{path}: ")
    return rows


def write_classification(path: Path, rows: Sequence[ClassificationRow], names: Sequence[str]) -> None:
    """Writes the probabilities of a classification, whose classes are called ``names``.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    cells = [(row.scan_id, row.subject_id, row.truth, row.predicted, *row.probabilities) for row in rows]
    write_rows(path, (*CLASSIFICATION, *(PROBABILITY + name for name in names)), cells)


def read_classification(path: Path) -> tuple[list[ClassificationRow], list[str]]:
    """Reads the probabilities of a classification back, and the names of its classes.

    Raises:
        UserError: No such file, no rows, a column that is missing, a probability that is none (NaN, outside 0 to 1, of
            a row that does not add up to 1), an unknown class, or a scan that stands twice.
    """
    lines = read_lines(path, CLASSIFICATION)
    columns = [column for column in lines[0].cells if column.startswith(PROBABILITY)]
    names = [column.removeprefix(PROBABILITY) for column in columns]
    if len(names) < 2:
        message = f"{path} has {len(names)} columns {PROBABILITY}CLASS; its columns are {', '.join(lines[0].cells)}"
        raise UserError(message)
    rows = []
    for line in lines:
        row = tuple(line.number(column, 1.0) for column in columns)
        if abs(sum(row) - 1) > SUM_TOLERANCE:
            message = f"{path} line {line.line}: probabilities add up to {sum(row):.6g}: expected 1"
            raise UserError(message)
        for column in ("truth", "predicted"):
            if line.cells[column] not in names:
                line.refuse(column, f"one of {', '.join(names)}")
        scan_id, subject_id, truth, predicted = (line.cells[column] for column in CLASSIFICATION)
        rows.append(ClassificationRow(scan_id, subject_id, truth, predicted, row))
    refuse_twice(rows, f"{path}: ")
    return rows, names


def write_multi_label(path: Path, rows: Sequence[FindingsRow], names: Sequence[str]) -> None:
    """Writes truth (empty where it is not known) and probability of each finding.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    columns = (*MULTI_LABEL, *(TRUTH + name for name in names), *(PROBABILITY + name for name in names))
    cells = [
        (row.scan_id, row.subject_id, *(None if value < 0 else value for value in row.truth), *row.probabilities)
        for row in rows
    ]
    write_rows(path, columns, cells)


def read_multi_label(path: Path) -> tuple[list[FindingsRow], list[str]]:
    """Reads truth and probabilities of findings back, and their names.

    Raises:
        UserError: No such file, no rows, a column that is missing, a truth that is none of 0, 1 and nothing, a
            probability outside 0 to 1, or a scan that stands twice.
    """
    lines = read_lines(path, MULTI_LABEL)
    names = [column.removeprefix(PROBABILITY) for column in lines[0].cells if column.startswith(PROBABILITY)]
    if not names or any(TRUTH + name not in lines[0].cells for name in names):
        shown = ", ".join(lines[0].cells)
        message = f"{path} has no pairs of columns {TRUTH}NAME and {PROBABILITY}NAME; its columns are {shown}"
        raise UserError(message)
    rows = []
    for line in lines:
        for name in names:
            if line.cells[TRUTH + name] not in ("", "0", "1"):
                line.refuse(TRUTH + name, "0, 1 or nothing")
        truth = tuple(int(line.cells[TRUTH + name] or -1) for name in names)
        probabilities = tuple(line.number(PROBABILITY + name, 1.0) for name in names)
        rows.append(FindingsRow(line.cells["scan_id"], line.cells["subject_id"], truth, probabilities))
    refuse_twice(rows, f"{path}: ")
    return rows, names


def write_regression(path: Path, rows: Sequence[NumberRow]) -> None:
    """Writes true and predicted numbers.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    write_rows(path, REGRESSION, [(row.scan_id, row.subject_id, row.truth, row.predicted) for row in rows])


def read_regression(path: Path) -> list[NumberRow]:
    """Reads true and predicted numbers back.

    Raises:
        UserError: No such file, no rows, a column that is missing, a number that is none, or a scan that stands twice.
    """
    rows = [
        NumberRow(
            line.cells["scan_id"],
            line.cells["subject_id"],
            line.number("truth", lowest=-math.inf),
            line.number("predicted", lowest=-math.inf),
        )
        for line in read_lines(path, REGRESSION)
    ]
    refuse_twice(rows, f"{path}: ")
    return rows


def scan_scores(rows: Sequence[SegmentationRow], measure: str = "dice") -> dict[str, float | None]:
    """Mean of a scan's classes that have a score ("dice", "hd95_mm", ...), by scan; None where none has one."""
    of_scan: dict[str, list[float]] = {row.scan_id: [] for row in rows}
    for row in rows:
        value = row.score.value(measure)
        if value is not None:
            of_scan[row.scan_id].append(value)
    return {scan_id: sum(values) / len(values) if values else None for scan_id, values in of_scan.items()}


def refuse_uneven(rows: Sequence[SegmentationRow], classes: Sequence[str], where: str = "") -> None:
    """Refuses rows that are not one for each class of each scan; ``where`` stands before the message.

    Raises:
        UserError: A class of a scan that stands twice or is missing, or a scan of two subjects.
    """
    subject_of: dict[str, str] = {}
    classes_of_scan: dict[str, set[str]] = {}
    for row in rows:
        scored_classes = classes_of_scan.setdefault(row.scan_id, set())
        if row.class_name in scored_classes:
            message = f"{where}class {row.class_name} of scan {row.scan_id} stands twice"
            raise UserError(message)
        if subject_of.setdefault(row.scan_id, row.subject_id) != row.subject_id:
            message = f"{where}scan {row.scan_id} belongs to subjects {subject_of[row.scan_id]} and {row.subject_id}"
            raise UserError(message)
        scored_classes.add(row.class_name)
    for scan_id, scored_classes in classes_of_scan.items():
        if scored_classes != set(classes):
            named = ", ".join(sorted(scored_classes))
            message = f"{where}scan {scan_id} has the classes {named}: expected {', '.join(classes)}"
            raise UserError(message)


def refuse_twice(rows: Sequence[ScanRow], where: str = "") -> None:
    """Refuses rows that are not one for each scan; ``where`` stands before the message.

    Raises:
        UserError: A scan that stands twice.
    """
    scan_id, count = Counter(row.scan_id for row in rows).most_common(1)[0]
    if count > 1:
        message = f"{where}scan {scan_id} stands {count} times: expected one row a scan"
        raise UserError(message)


@dataclass(frozen=True)
class Line:
    """A line of a table: its cells by column, and where it stands."""

    path: Path
    line: int
    cells: dict[str, str]

    def refuse(self, column: str, expected: str) -> NoReturn:
        """Refuses a cell."""
        message = f"{self.path} line {self.line}: {column} is {self.cells[column]!r}: expected {expected}"
        raise UserError(message)

    def number(self, column: str, highest: float = math.inf, lowest: float = 0.0) -> float:
        """A finite number within bounds."""
        expected = in_words(lowest, highest)
        try:
            value = float(self.cells[column])
        except ValueError:
            self.refuse(column, expected)
        if not (math.isfinite(value) and lowest <= value <= highest):
            self.refuse(column, expected)
        return value

    def optional(self, column: str, highest: float = math.inf, lowest: float = 0.0) -> float | None:
        """A number, or None where the cell is empty."""
        return self.number(column, highest, lowest) if self.cells[column] else None

    def count(self, column: str) -> int:
        """A whole number from 0."""
        if not self.cells[column].isascii() or not self.cells[column].isdigit():
            self.refuse(column, "a whole number from 0")
        return int(self.cells[column])


def _further(line: Line, note: str) -> dict[str, float | int | None]:
    """The further measures of a row whose note is ``note``."""
    values: dict[str, float | int | None] = {}
    for name, measure in MEASURES.items():
        if measure.summed == "count":
            values[name] = line.count(name)
            continue
        value = values[name] = line.optional(name, measure.high, measure.low)
        nothing = f"nothing where the note is {' or '.join(measure.undefined)}"
        if value is not None and note in measure.undefined:
            line.refuse(name, nothing)
        if value is None and note not in measure.undefined and not measure.optional:
            line.refuse(name, f"{nothing}, {in_words(measure.low, measure.high)} elsewhere")
        expected = measure.value(None, values) if measure.derived else value
        if (value is None) != (expected is None) or abs((value or 0.0) - (expected or 0.0)) > TOLERANCE:
            line.refuse(name, f"{'nothing' if expected is None else f'{expected:.6g}'} by the other measures")
    return values


def in_words(lowest: float, highest: float) -> str:
    """A range as messages name it: "a number from 0 to 1"."""
    words = "a number" + (f" from {lowest:g}" if lowest > -math.inf else "")
    return words + (f" to {highest:g}" if highest < math.inf else "")


def read_lines(path: Path, needed: Sequence[str], together: Sequence[str] = ()) -> list[Line]:
    """Lines under the ``needed`` columns; those that stand ``together`` are there all or not at all."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(message) from error
    for column in (*needed, *(together if set(together) & set(columns) else ())):
        if column not in columns:
            message = f"{path} has no column {column!r}; its columns are {', '.join(columns) or 'none'}"
            raise UserError(message)
    for line, row in rows:
        if len(row) != len(columns):
            message = f"{path} line {line}: {len(row)} cells under {len(columns)} columns"
            raise UserError(message)
    if not rows:
        message = f"{path} has no rows: nothing was scored"
        raise UserError(message)
    return [Line(path, line, dict(zip(columns, row, strict=True))) for line, row in rows]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    """Writes a table of cells under columns."""
    write_text(path, as_csv([columns, *rows]))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        UserError: The disk refuses the file; a former file is untouched.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_files(path) as (file,):
            file.write(text.encode())
