"""The pages of formats name the tests that show what they say, and the tests are there."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "formats").glob("*.md"))
WIDTH = 100

# words that say that nothing is done: such a row needs no test
NOTHING_DONE = re.compile(r"^ignored\b")
UNTESTED = "not tested"
SAME = "the same"


@dataclass(frozen=True)
class Row:
    """A row of a table: where it stands, what it says, and the tests that it names, as they are written."""

    place: str
    cells: dict[str, str]
    tests: tuple[str, ...] | None  # None: the table has no column of tests

    @property
    def does_nothing(self) -> bool:
        return any(NOTHING_DONE.search(cell) for cell in self.cells.values())


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def lines_outside_code(text: str) -> list[tuple[int, str]]:
    lines, inside = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            lines.append((number, line))
    return lines


def rows_of(text: str, name: str = "page") -> list[Row]:
    rows: list[Row] = []
    header: list[str] = []
    for number, line in lines_outside_code(text):
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells_of(line)
        elif not set(line) <= set("|-: "):
            cells = cells_of(line)
            assert len(cells) == len(header), f"{name}:{number} has {len(cells)} cells, expected {len(header)}"
            rows.append(_row(f"{name}:{number}", header, cells, rows))
    return rows


def _row(place: str, header: list[str], cells: list[str], before: list[Row]) -> Row:
    if not header[-1].startswith("test"):
        return Row(place, dict(zip(header, cells, strict=True)), None)
    tests = tuple(re.findall(r"`([^`]+)`", cells[-1]))
    if cells[-1].startswith(SAME) and before and before[-1].tests:
        tests = before[-1].tests + tests
    elif cells[-1] == UNTESTED:
        tests = (UNTESTED,)
    return Row(place, dict(zip(header[:-1], cells[:-1], strict=True)), tests)


@functools.cache
def functions_of(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE))


def test_files(text: str) -> list[Path]:
    """The files of tests that a page names, with those of the folders that it names."""
    files: list[Path] = []
    for name in re.findall(r"`(tests/[\w/]+(?:/|\.py))`", text):
        files += (ROOT / name).rglob("test_*.py") if name.endswith("/") else [ROOT / name]
    return sorted(set(files))


test_files.__test__ = False  # type: ignore[attr-defined]


def problem_of(name: str, files: list[Path]) -> str:
    """Why a name that a row gives is no test of the page's files, or nothing."""
    if name == UNTESTED:
        return ""
    if name.endswith(".py"):
        return "" if any(file.as_posix().endswith(f"/{name}") and file.is_file() for file in files) else "no such file"
    where, _, function = name.split("[")[0].rpartition("::")
    places = [file for file in files if function in functions_of(file) and file.as_posix().endswith(where)]
    if not places:
        return "no such test in the files that the page names"
    if len(places) > 1:
        return f"in {len(places)} files: write FILE.py::{function}"
    return ""


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request) -> Path:
    return request.param


def test_every_test_that_a_row_names_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    files = test_files(text)
    assert not [file.name for file in files if not file.is_file()]
    problems = {
        f"{row.place} {name}": problem
        for row in rows_of(text, page.name)
        for name in row.tests or ()
        if (problem := problem_of(name, files))
    }
    assert not problems


def test_every_row_that_does_something_names_a_test(page: Path):
    rows = rows_of(page.read_text(encoding="utf-8"), page.name)
    assert rows
    bare = [row for row in rows if row.tests == () and not row.does_nothing]
    assert not [f"{row.place} {' | '.join(row.cells.values())[:80]}" for row in bare]


def test_every_table_but_those_of_options_has_a_column_of_tests(page: Path):
    rows = rows_of(page.read_text(encoding="utf-8"), page.name)
    assert not [row.place for row in rows if row.tests is None and "option" not in row.cells]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "docs" / "guides" / "data.md"], ids=lambda path: path.stem)
def test_lines_of_prose_are_short(path: Path):
    lines = lines_outside_code(path.read_text(encoding="utf-8"))
    assert not [f"{path.name}:{number}" for number, line in lines if len(line) > WIDTH and not line.startswith("|")]


def test_rows_are_parsed():
    lines = ["| a | test |", "|---|---|", "| x | `test_one`, `test_two[1]` |", "| y | the same |", "| z | not tested |"]
    lines += ["| ignored | |", "", "```", "| no | table |", "```"]
    rows = rows_of("\n".join(lines))
    assert [row.tests for row in rows] == [("test_one", "test_two[1]")] * 2 + [("not tested",), ()]
    assert [row.does_nothing for row in rows] == [False, False, False, True]


def test_wrong_names_are_found():
    files = [Path(__file__)]
    assert not problem_of("test_rows_are_parsed[x]", files)
    assert not problem_of("test_format_pages.py::test_rows_are_parsed", files)
    assert not problem_of("test_format_pages.py", files)
    assert "no such test" in problem_of("test_rows_are_pars", files)
    assert "no such file" in problem_of("test_pages.py", files)
