"""The same measures for the scans of each manufacturer, sex, age band, ...: whom the network serves worse.

Groups are the values of a column of the index. They are not adjusted for one another, and of many groups some differ by
chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from medssl.evaluate.cases import ClassificationRow, FindingsRow, NumberRow, SegmentationRow
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from medssl.data.index import Index

Row = TypeVar("Row", SegmentationRow, ClassificationRow, FindingsRow, NumberRow)
NOT_KNOWN = "not known"
OF_GROUP = ("scans", "subjects", "metrics", "counts", "notes")


def columns_of(by: str, opened: Index) -> list[str]:
    """The columns of the index that a list with commas names; "" names none.

    Raises:
        UserError: No such column; the message lists those there are.
    """
    asked = list(dict.fromkeys(name.strip() for name in by.split(","))) if by.strip() else []
    known = opened.columns()
    for column in asked:
        if column not in known:
            message = f"--by names {column!r}, which is no column of the index; there are {', '.join(known)}"
            raise UserError(message)
    return asked


def values_of(columns: Sequence[str], opened: Index, split: str, scan_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each column the value of each scan of a split, groups in ascending order, those without a value last."""
    wanted = set(scan_ids)
    quoted = split.replace("'", "''")
    rows = [row for row in opened.rows(f"split = '{quoted}'") if row["scan_id"] in wanted] if columns else []
    found = {}
    for column in columns:
        pairs = [(row[column], row["scan_id"]) for row in rows]
        pairs.sort(key=lambda pair: (pair[0] in (None, ""), isinstance(pair[0], str), pair[0] or 0, pair[1]))
        found[column] = {scan_id: _text(value) for value, scan_id in pairs}
    return found


def subgroups(
    rows: Sequence[Row], values: Mapping[str, Mapping[str, str]], summarise: Callable[[list[Row]], Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The summary of each group that has a scan, by column and value, as ``summary.json`` holds it.

    Args:
        rows: The scores.
        values: Value of each scan by column (``values_of``).
        summarise: Sums up the rows of a group; below three subjects its numbers have no interval.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column, of_scan in values.items():
        groups: dict[str, list[Row]] = {value: [] for value in of_scan.values()}
        for row in rows:
            groups[of_scan[row.scan_id]].append(row)
        whole = {value: summarise(own) for value, own in groups.items() if own}
        found[column] = {value: {key: summary[key] for key in OF_GROUP} for value, summary in whole.items()}
    return found


def _text(value: object) -> str:
    if value in (None, ""):
        return NOT_KNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)
