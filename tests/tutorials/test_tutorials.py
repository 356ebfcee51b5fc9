"""Tutorials run from top to bottom, end in a picture, and agree with their notebooks."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
DEFAULT = "01"  # runs in a few seconds; the others train networks
FOLLOW = """
import pathlib, sys
code = compile(pathlib.Path(sys.argv[1]).read_text(), sys.argv[1], "exec")
space = {"__name__": "__main__"}
exec(code, space)
picture = space["picture"]
text = getattr(picture, "_repr_svg_", lambda: None)() or ""
size = getattr(picture, "size", None)
print("PICTURE", "svg" if text.startswith("<svg") else size)
"""


@pytest.fixture(scope="module")
def notebooks():
    spec = importlib.util.spec_from_file_location("tutorial_notebooks", FOLDER / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def in_subprocess(script: Path, folder: Path) -> str:
    """Runs a tutorial in a folder of its own, as a notebook would; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, str(script)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def marked(script: Path):
    return pytest.param(script, id=script.stem, marks=[] if script.stem.startswith(DEFAULT) else [pytest.mark.slow])


def test_there_are_three():
    assert [script.stem[:2] for script in SCRIPTS] == ["01", "02", "03"]


@pytest.mark.parametrize("script", [marked(script) for script in SCRIPTS])
def test_it_runs_and_ends_in_a_picture(script: Path, tmp_path: Path):
    last = in_subprocess(script, tmp_path).splitlines()[-1]
    assert re.fullmatch(r"PICTURE (svg|\(\d{3,4}, \d{3,4}\))", last), last


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_has_the_same_cells_and_no_outputs(script: Path, notebooks):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    written = [(cell.kind, cell.text) for cell in notebooks.cells_of(script.read_text(encoding="utf-8"))]
    assert cells == written, "run python tutorials/notebooks.py"
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_shows_commands_and_says_what_to_do_on_own_data(script: Path, notebooks):
    cells = notebooks.cells_of(script.read_text(encoding="utf-8"))
    text = "\n".join(cell.text for cell in cells if cell.kind == "markdown")
    assert text.startswith("# ")
    assert len(re.findall(r"^medssl ", text, re.MULTILINE)) >= 2
    assert "## On your own data" in text
    assert cells[-1].text.startswith("## On your own data") or cells[-1].text.startswith("picture")


def test_cells_are_read_from_the_percent_format(notebooks):
    text = "# ---\n# ---\n\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n\n\ny = 2\n"
    cells = notebooks.cells_of(text)
    assert [(cell.kind, cell.text) for cell in cells] == [("markdown", "# Title\n\ntext"), ("code", "x = 1\n\n\ny = 2")]
    assert notebooks.page_of(cells) == "# Title\n\ntext\n\n```python\nx = 1\n\n\ny = 2\n```\n"
