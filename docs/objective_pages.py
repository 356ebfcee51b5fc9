"""Pages and the README's table of objectives, from docstrings and presets.

Usage: python docs/objective_pages.py, which writes the table into README.md. Pages are written when the documentation
is built.

A module of ``medssl/objectives`` is an objective when a preset of ``configs/objectives`` names one of its classes. Its
docstring begins with its name and a colon, and has two lines for the table: ``Predicts: ...`` and ``Encoders: ...``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- objectives: written by docs/objective_pages.py -->", "<!-- end of objectives -->"
FIELD = re.compile(r"^(Predicts|Encoders): (.+?)\.?$(?=\n\n|\n[A-Z]|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Preset:
    """One file of ``configs/objectives``: its name, text, class and number of spatial axes."""

    name: str
    text: str
    class_name: str
    ndim: int


@dataclass(frozen=True)
class Objective:
    """One module of ``medssl/objectives``: its name, docstring, those of its classes, and its presets."""

    name: str
    docstring: str
    classes: dict[str, str]
    presets: tuple[Preset, ...]

    @property
    def title(self) -> str:
        """What stands before the colon of the first line."""
        return self.docstring.partition(":")[0]

    def field(self, name: str) -> str:
        """The text of one of the lines for the table.

        Raises:
            ValueError: There is no such line.
        """
        found = dict(FIELD.findall(self.docstring))
        if name not in found:
            message = f"medssl/objectives/{self.name}.py: the docstring needs a line that begins with {name}:"
            raise ValueError(message)
        return " ".join(found[name].split()).replace("``", "`")


def objectives(root: Path = ROOT) -> list[Objective]:
    """All objectives, sorted by name.

    Args:
        root: A checkout.

    Raises:
        ValueError: A preset names no class of ``medssl.objectives``.
    """
    presets: dict[str, list[Preset]] = {}
    for path in sorted((root / "configs/objectives").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        package, _, class_path = str(content.get("class_path")).partition("medssl.objectives.")
        if package or "." not in class_path:
            message = f"configs/objectives/{path.name}: class_path must lie in medssl.objectives"
            raise ValueError(message)
        module, _, class_name = class_path.partition(".")
        preset = Preset(path.stem, text, class_name, len(content["init_args"]["view"]["size"]))
        presets.setdefault(module, []).append(preset)
    return [_objective(root / f"medssl/objectives/{name}.py", found) for name, found in sorted(presets.items())]


def _objective(path: Path, presets: list[Preset]) -> Objective:
    module = ast.parse(path.read_text(encoding="utf-8"))
    shown = {preset.class_name for preset in presets}
    classes = {
        node.name: ast.get_docstring(node) or ""
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name in shown
    }
    return Objective(path.stem, ast.get_docstring(module) or "", classes, tuple(presets))


def table(found: list[Objective]) -> str:
    """The table of the README."""
    rows = ["| name | what it predicts | 2D | 3D | encoders |", "|---|---|---|---|---|"]
    for objective in found:
        sizes = {preset.ndim for preset in objective.presets}
        flat, deep = ("yes" if ndim in sizes else "no" for ndim in (2, 3))
        cells = (f"`{objective.name}`", objective.field("Predicts"), flat, deep, objective.field("Encoders"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def readme_with_table(text: str, found: list[Objective]) -> str:
    """The text of the README with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.partition(END)[2]}"


def presets_section(objective: Objective) -> str:
    """What every page ends with: the classes' arguments and the presets, as they are shipped."""
    parts = []
    for name, docstring in objective.classes.items():
        parts.append(f"## `{name}`\n\n{as_markdown(docstring)}")
    parts.append("## Presets")
    for preset in objective.presets:
        parts.append(f"`--objective {preset.name}`, {preset.ndim}D:\n\n```yaml\n{preset.text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def page(objective: Objective) -> str:
    """The page of an objective that has none of its own: its docstring, arguments and presets."""
    text = re.sub(r"\n{3,}", "\n\n", FIELD.sub("", objective.docstring.partition(":")[2].strip()))
    text = f"{text[:1].upper()}{text[1:]}"
    code = f"Code: `medssl/objectives/{objective.name}.py`."
    return f"# {objective.title}\n\n{as_markdown(text)}\n\n{code}\n\n{presets_section(objective)}"


def as_markdown(docstring: str) -> str:
    """A Google-style docstring as MyST: formulas, code, blocks after ``::``, and lists of arguments."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", docstring.strip()).replace("``", "`")
    lines: list[str] = []
    block = False  # inside lines after "::"
    for line in text.splitlines():
        if line.endswith("::"):
            lines += [line[:-1], "", "```text"]
            block = True
        elif block and line and not line.startswith(" "):
            while lines[-1] == "":
                lines.pop()
            lines += ["```", "", line]
            block = False
        elif re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line):
            lines += [f"**{line}**", ""]
        elif not block and (argument := re.match(r" {4}(\w+): (.*)", line)):
            lines.append(f"- `{argument[1]}`: {argument[2]}")
        elif not (block and line == "" and lines[-1] == "```text"):
            lines.append(line.strip() if not block and line.startswith(" " * 8) else line)
    return "\n".join([*lines, "```"] if block else lines)


def write_pages(folder: Path, found: list[Objective]) -> None:
    """Writes the pages of objectives that have no page of their own into ``generated/``.

    Args:
        folder: The folder of pages on objectives.
        found: All objectives.
    """
    generated = folder / "generated"
    generated.mkdir(exist_ok=True)
    without_page = {f"{each.name}.md": page(each) for each in found if not (folder / f"{each.name}.md").exists()}
    for path in generated.glob("*.md"):
        if path.name not in without_page:
            path.unlink()
    for name, text in without_page.items():
        (generated / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(readme_with_table(readme.read_text(encoding="utf-8"), objectives()), encoding="utf-8")
