"""The same measures for the scans of each manufacturer, sex, age band, ...: whom the network serves worse.

Groups are the values of a column of the index, or bands of them where they are more than ten numbers. They are not
adjusted for one another, and of many groups some differ by chance.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from medssl.metrics.cases import ClassificationRow, FindingsRow, NumberRow, SegmentationRow
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from medssl.data.index.scan_index import Index

Row = TypeVar("Row", SegmentationRow, ClassificationRow, FindingsRow, NumberRow)
NOT_KNOWN = "not known"
VALUES, BANDS = 10, 5  # of more different numbers than these, groups are this many bands at most
OF_GROUP = ("scans", "subjects", "metrics", "counts", "notes")


def columns_of(by: str, opened: Index) -> list[str]:
    """The columns of the index that a list with commas names; "" names none.

    Raises:
        UserError: No such column; the message lists those there are.
    """
    columns = list(dict.fromkeys(name.strip() for name in by.split(","))) if by.strip() else []
    known = opened.columns()
    for column in columns:
        if column not in known:
            message = f"by names {column!r}, which is no column of the index; there are {', '.join(known)}"
            raise UserError(message)
    return columns


def values_of(columns: Sequence[str], opened: Index, split: str, scan_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each column the group of each scan of a split, in ascending order, those without a value last.

    A group is a value. A column of numbers with more than ten different ones among the scans is cut into at most five
    bands of one width (1, 2 or 5 and zeros) that begin at multiples of it: "40 to 59", "0.4 to below 0.6".
    """
    wanted = set(scan_ids)
    quoted = split.replace("'", "''")
    rows = [row for row in opened.rows(f"split = '{quoted}'") if row["scan_id"] in wanted] if columns else []
    groups = {}
    for column in columns:
        pairs = [(row[column], row["scan_id"]) for row in rows]
        numbers = _numbers({value for value, _ in pairs if value not in (None, "")})
        pairs.sort(key=lambda pair: (pair[0] in (None, ""), numbers.get(pair[0], 0.0), str(pair[0]), pair[1]))
        bands = _bands(numbers) if len(set(numbers.values())) > VALUES else {}
        groups[column] = {scan_id: bands.get(value) or _text(value) for value, scan_id in pairs}
    return groups


def subgroups(
    rows: Sequence[Row], values: Mapping[str, Mapping[str, str]], summarize: Callable[[list[Row]], Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The summary of each group that has a scan, by column and value, as ``summary.json`` holds it.

    Args:
        rows: The scores.
        values: Value of each scan by column (``values_of``).
        summarize: Sums up the rows of a group; below three subjects its numbers have no interval.
    """
    summaries: dict[str, dict[str, dict[str, Any]]] = {}
    for column, of_scan in values.items():
        groups: dict[str, list[Row]] = {value: [] for value in of_scan.values()}
        for row in rows:
            groups[of_scan[row.scan_id]].append(row)
        by_value = {value: summarize(of_group) for value, of_group in groups.items() if of_group}
        summaries[column] = {value: {key: summary[key] for key in OF_GROUP} for value, summary in by_value.items()}
    return summaries


def _numbers(values: Iterable[Any]) -> dict[Any, float]:
    """The values as numbers; none where one is no number."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return {}
    return numbers if all(math.isfinite(number) for number in numbers.values()) else {}


def _bands(numbers: Mapping[Any, float]) -> dict[Any, str]:
    """The band of each value."""
    low, high = min(numbers.values()), max(numbers.values())
    power = math.floor(math.log10(high - low)) - 1
    widths = (lead * 10.0 ** (power + more) for more in range(4) for lead in (1, 2, 5))
    width = next(width for width in widths if _place(high, width) - _place(low, width) < BANDS)
    integers = all(number.is_integer() for number in numbers.values())

    def band(number: float) -> str:
        first, behind = _place(number, width) * width, (_place(number, width) + 1) * width
        return f"{first:.12g} to {behind - 1:.12g}" if integers else f"{first:.12g} to below {behind:.12g}"

    return {value: band(number) for value, number in numbers.items()}


def _place(number: float, width: float) -> int:
    return math.floor(round(number / width, 9))  # 0.6 / 0.2 is a little below 3


def _text(value: object) -> str:
    if value in (None, ""):
        return NOT_KNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)
