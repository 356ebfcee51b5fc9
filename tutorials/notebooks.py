"""Write the notebooks from the ``.py`` files beside them: ``python tutorials/notebooks.py``.

The ``.py`` files are in the percent format of jupytext: ``# %%`` begins a cell of code and ``# %% [markdown]`` a cell
of text, whose lines are comments. With jupytext installed, ``jupytext --sync`` does the same in both directions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook: Markdown or code, without the marks of the percent format."""

    kind: Literal["markdown", "code"]
    text: str


def tutorials() -> list[Path]:
    """The tutorials in their order, as ``.py`` files."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def cells_of(text: str) -> list[Cell]:
    """The cells of a file in percent format; what stands before the first mark is left out."""
    parts = re.split(r"^# %%(.*)$", text, flags=re.MULTILINE)
    cells = []
    for mark, body in zip(parts[1::2], parts[2::2], strict=True):
        if "[markdown]" in mark:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(Cell("markdown", "\n".join(lines)))
        else:
            cells.append(Cell("code", body.strip()))
    return cells


def notebook_of(cells: list[Cell]) -> dict[str, Any]:
    """A notebook (nbformat 4.5) without outputs."""
    content: list[dict[str, Any]] = []
    for number, cell in enumerate(cells, 1):
        entry: dict[str, Any] = {"cell_type": cell.kind, "id": f"cell-{number:02d}", "metadata": {}}
        entry["source"] = cell.text.splitlines(keepends=True)
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        content.append(entry)
    metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": KERNEL}
    return {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def page_of(cells: list[Cell]) -> str:
    """A page of Markdown for the documentation."""
    return "\n\n".join(f"```python\n{cell.text}\n```" if cell.kind == "code" else cell.text for cell in cells) + "\n"


def notebook_text(path: Path) -> str:
    """The notebook of a tutorial, as it stands in its file."""
    return json.dumps(notebook_of(cells_of(path.read_text(encoding="utf-8"))), indent=1) + "\n"


def write_pages(folder: Path) -> None:
    """Write every tutorial as a page of the documentation, where it has changed; links point into ``docs``."""
    folder.mkdir(exist_ok=True)
    for path in tutorials():
        text = page_of(cells_of(path.read_text(encoding="utf-8"))).replace("](../docs/", "](../")
        page = folder / f"{path.stem}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def main() -> None:
    """Write every notebook beside its ``.py`` file."""
    for path in tutorials():
        path.with_suffix(".ipynb").write_text(notebook_text(path), encoding="utf-8")


if __name__ == "__main__":
    main()
