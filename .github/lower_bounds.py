"""Print the lower bounds of pyproject.toml as pip constraints: ``numpy>=1.26`` becomes ``numpy==1.26``.

Usage: python .github/lower_bounds.py [extra ...] > constraints.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?>=(?P<bound>[0-9][0-9.]*)")


def constraints(pyproject: Path, extras: list[str]) -> list[str]:
    """Lines of a constraints file, sorted by name.

    Args:
        pyproject: The project's description.
        extras: Extras whose requirements count beside those that are always installed.

    Raises:
        SystemExit: There is no such extra.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    if unknown := sorted(set(extras) - groups.keys()):
        sys.exit(
            f"no extra {', '.join(unknown)} in {pyproject.name}; there are {', '.join(sorted(filter(None, groups)))}"
        )
    lines = {}
    for extra in ("", *extras):
        for requirement in groups[extra]:
            if found := REQUIREMENT.fullmatch(requirement):
                lines.setdefault(found["name"].lower(), f"{found['name']}=={found['bound']}")
    return [lines[name] for name in sorted(lines)]


if __name__ == "__main__":
    print(*constraints(PYPROJECT, sys.argv[1:]), sep="\n")
