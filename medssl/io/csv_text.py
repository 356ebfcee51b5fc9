"""Tables as CSV text in which no cell is a formula: spreadsheets run those, and text of headers may be anyone's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

STARTS, SIGNS, CALLS = frozenset("=@\t\r"), frozenset("+-"), "(|!"  # of formulas: grades such as "++" are none
WIDE = str.maketrans("\uff1d\uff0b\uff0d\uff20", "=+-@")  # signs of full width, which some spreadsheets take alike
BORDERS = re.compile(r"([;\t\n])")  # where spreadsheets of other countries begin a cell


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would compute a cell with this text, rather than show it or call it a mistake.

    >>> [is_formula(text) for text in ("=1+1", "@SUM(A1)", "-cmd|x", "-1", "++", "- none", "1=1")]
    [True, True, True, False, False, False, False]
    """
    text = text.translate(WIDE)
    return text[:1] in STARTS or (text[:1] in SIGNS and any(mark in text for mark in CALLS))


def escape_formula(value: object) -> object:
    """A cell as it is, or with an apostrophe before what would be a formula; numbers and None stay.

    >>> [escape_formula(value) for value in ("=1+1", "a;=1+1", "-1", -1.5, None, "CT")]
    ["'=1+1", "a;'=1+1", '-1', -1.5, None, 'CT']
    """
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", " ")  # which readers take for the end of a row
    return "".join(f"'{part}" if is_formula(part) and part != "\t" else part for part in BORDERS.split(value))


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV text without formulas; None is an empty cell, numbers have every digit."""
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows([escape_formula(cell) for cell in row] for row in rows)
    return stream.getvalue()
