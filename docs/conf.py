"""Settings of the documentation; build it with ``make docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from latex2mathml.converter import convert

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tutorials")]
from notebooks import write_pages as write_tutorial_pages
from objective_pages import objectives, presets_section, write_pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "medssl"
author = "the medssl maintainers"
copyright = "2026, the medssl maintainers"
_source = (Path(__file__).parent.parent / "medssl" / "__init__.py").read_text(encoding="utf-8")
release = re.findall(r'__version__ = "([^"]+)"', _source)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "none"  # signatures show them
autodoc_class_signature = "mixed"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "news", "results"]
html_theme = "furo"
html_title = f"medssl {release}"
html_copy_source = False
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers show themselves: the pages open in a closed network."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("builder-inited", _write_objective_pages)
    app.connect("builder-inited", _write_tutorial_pages)
    app.connect("source-read", _add_presets)


def _write_objective_pages(app: Sphinx) -> None:
    write_pages(Path(app.srcdir) / "objectives", objectives())


def _write_tutorial_pages(app: Sphinx) -> None:
    write_tutorial_pages(Path(app.srcdir) / "tutorials")


def _add_presets(app: Sphinx, name: str, source: list[str]) -> None:
    """Add arguments and presets to the page of an objective."""
    for objective in objectives():
        if name == f"objectives/{objective.name}":
            source[0] += f"\n{presets_section(objective)}"


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode
