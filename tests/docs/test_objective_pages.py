"""The README's table of objectives and their pages follow from docstrings and presets."""

from __future__ import annotations

from pathlib import Path

import objective_pages as pages
import pytest

ROOT = Path(__file__).parents[2]

MODULE = '''"""Near crops: crops of one place look alike.

Predicts: which crops are near, for ``B`` crops
    of a batch (Who et al. 2020).
Encoders: any.

With encoder :math:`f`::

    loss = |f(x) - f(y)|

Reference: Who et al.
"""


class Near:
    """Compares crops.

    Args:
        view: How crops are cut; the first of two lines
            and the second.

    Raises:
        UserError: Never.
    """
'''
PRESET = "class_path: medssl.objectives.near.Near\ninit_args:\n  view: {size: [8, 8]}\n"


@pytest.fixture
def root(tmp_path):
    for folder in ("medssl/objectives", "configs/objectives"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "medssl/objectives/near.py").write_text(MODULE)
    (tmp_path / "configs/objectives/near_2d.yaml").write_text(PRESET)
    return tmp_path


def test_the_readme_has_the_table_of_today():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == pages.readme_with_table(text, pages.objectives()), "run: python docs/objective_pages.py"


def test_every_module_of_an_objective_is_found():
    modules = {path.stem for path in (ROOT / "medssl/objectives").glob("*.py")} - {"__init__", "base", "contract"}
    assert [each.name for each in pages.objectives()] == sorted(modules)


def test_a_row(root):
    row = "| `near` | which crops are near, for `B` crops of a batch (Who et al. 2020) | yes | no | any |"
    assert pages.table(pages.objectives(root)).splitlines()[-1] == row
    (root / "configs/objectives/near_3d.yaml").write_text(PRESET.replace("8, 8", "8, 8, 8"))
    assert pages.table(pages.objectives(root)).splitlines()[-1] == row.replace("| no |", "| yes |")


def test_a_page(root):
    (near,) = pages.objectives(root)
    blocks = (
        *("# Near crops", "Crops of one place look alike.", "With encoder $f$:"),
        *("```text\n    loss = |f(x) - f(y)|\n```", "Reference: Who et al.", "Code: `medssl/objectives/near.py`."),
        *("## `Near`", "Compares crops.", "**Args:**"),
        "- `view`: How crops are cut; the first of two lines\nand the second.",
        *("**Raises:**", "- `UserError`: Never.", "## Presets", "`--objective near_2d`, 2D:"),
        f"```yaml\n{PRESET}```\n",
    )
    assert pages.page(near) == "\n\n".join(blocks)


def test_pages_of_your_own_are_kept(root):
    folder = root / "docs"
    folder.mkdir()
    found = pages.objectives(root)
    pages.write_pages(folder, found)
    assert (folder / "generated/near.md").read_text() == pages.page(found[0])
    (folder / "near.md").write_text("# Mine\n")
    pages.write_pages(folder, found)
    assert not (folder / "generated/near.md").exists()
    assert (folder / "near.md").read_text() == "# Mine\n"


def test_what_is_missing_is_named(root):
    module = root / "medssl/objectives/near.py"
    module.write_text(MODULE.replace("Encoders:", "Networks:"))
    with pytest.raises(ValueError, match=r"medssl/objectives/near\.py: .* needs a line that begins with Encoders:"):
        pages.table(pages.objectives(root))
    (root / "configs/objectives/near_2d.yaml").write_text(PRESET.replace("medssl.objectives.near", "elsewhere"))
    with pytest.raises(ValueError, match=r"near_2d\.yaml: class_path must lie in medssl\.objectives"):
        pages.objectives(root)
