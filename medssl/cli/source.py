"""Signatures and docstrings read from the source text of medssl, without importing it.

Commands take dataclasses and classes of encoders, objectives and heads; importing those takes seconds. Here their text
is parsed instead.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOTS = {"medssl": Path(__file__).parent.parent}  # folder of each package whose text is read


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function or a field of a dataclass.

    Attributes:
        name: Its name.
        module: Module whose names its annotation and its default use.
        annotation: Its type; None where it has none.
        default: Its default; None where it must be given.
        help: Its description in the docstring; "" where there is none.
        positional: Whether it may be given without its name.
    """

    name: str
    module: str
    annotation: ast.expr | None
    default: ast.expr | None = None
    help: str = ""
    positional: bool = False


@cache
def tree_of(module: str) -> ast.Module | None:
    """The parsed text of a module; None of one outside the packages that are read."""
    first, *rest = module.split(".")
    if first not in ROOTS or not all(part.isidentifier() for part in rest):
        return None
    path = ROOTS[first].joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def function_of(place: str) -> ast.FunctionDef | None:
    """The function at ``module:name``; None where the text does not hold it."""
    module, name = place.split(":")
    tree = tree_of(module)
    nodes = (node for node in (tree.body if tree else ()) if isinstance(node, ast.FunctionDef) and node.name == name)
    return next(nodes, None)


def definition(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Module and definition of a name, through imports."""
    node = _names(module).get(name)
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else (module, node)
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return definition(node.module or "", original) if node.level == 0 else None


def class_of(module: str, annotation: ast.expr) -> tuple[str, ast.ClassDef] | None:
    """Module and definition of the class that an annotation names."""
    place = definition(module, annotation.id) if isinstance(annotation, ast.Name) else None
    return (place[0], place[1]) if place and isinstance(place[1], ast.ClassDef) else None


def value_of(module: str, node: ast.expr) -> tuple[str, ast.expr]:
    """A value, through the names of constants."""
    while isinstance(node, ast.Name) and (place := definition(module, node.id)):
        statement = place[1]
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            break
        module, node = place[0], statement.value
    return module, node


def parameters_of(module: str, function: ast.FunctionDef, document: str | None = None) -> list[Parameter]:
    """Parameters of a function, in the order of the text; those with a name alone come last."""
    helps = descriptions(document if document is not None else ast.get_docstring(function) or "")
    given = function.args
    missing = [None] * (len(given.args) - len(given.defaults))
    pairs = zip(given.args, [*missing, *given.defaults], strict=True)
    result = [Parameter(p.arg, module, p.annotation, default, helps.get(p.arg, ""), True) for p, default in pairs]
    named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return [*result, *(Parameter(p.arg, module, p.annotation, default, helps.get(p.arg, "")) for p, default in named)]


def fields_of(module: str, node: ast.ClassDef) -> list[Parameter] | None:
    """Fields of a dataclass with those of its bases; None of any other class."""
    decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    if not any(isinstance(item, ast.Name) and item.id == "dataclass" for item in decorators):
        return None
    helps = descriptions(ast.get_docstring(node) or "")
    result: dict[str, Parameter] = {}
    for base in node.bases:
        parent = class_of(module, base)
        for field in (fields_of(*parent) if parent else None) or ():
            result[field.name] = field
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name = item.target.id
            result[name] = Parameter(name, module, item.annotation, item.value, helps.get(name, ""))
    return list(result.values())


def arguments_of(module: str, name: str) -> list[Parameter] | None:
    """Arguments of a class; None where the text does not tell."""
    place = definition(module, name)
    if place is None or not isinstance(place[1], ast.ClassDef):
        return None
    module, node = place[0], place[1]
    if (fields := fields_of(module, node)) is not None:
        return fields
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            if item.args.vararg:
                return None
            document = f"{ast.get_docstring(node) or ''}\n\n{ast.get_docstring(item) or ''}"
            own = parameters_of(module, item, document)[1:]
            rest = _arguments_of_base(module, node) if item.args.kwarg else []
            names = {parameter.name for parameter in own}
            return None if rest is None else [*own, *(other for other in rest if other.name not in names)]
    return _arguments_of_base(module, node)


def _arguments_of_base(module: str, node: ast.ClassDef) -> list[Parameter] | None:
    """Arguments of the one base class, to which a class hands on those that it does not name."""
    parents = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return arguments_of(module, parents[0]) if len(parents) == 1 else None


def summary_of(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0].split())


def descriptions(document: str) -> dict[str, str]:
    """What the sections "Args" and "Attributes" of a docstring say of each name."""
    result: dict[str, str] = {}
    inside, name = False, ""
    for line in inspect.cleandoc(document).splitlines():
        if re.fullmatch(r"(Args|Attributes):", line):
            inside, name = True, ""
        elif line and not line.startswith(" "):
            inside = False
        elif inside and (start := re.match(r" {4}(\w+): (.*)", line)):
            name = start[1]
            result[name] = start[2].strip()
        elif inside and name and line.strip():
            result[name] = f"{result[name]} {line.strip()}"
    return result


def alternatives(annotation: ast.expr | None) -> Iterator[ast.expr]:
    """The parts of a union without None."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from alternatives(annotation.left)
        yield from alternatives(annotation.right)
    elif annotation is not None and not (isinstance(annotation, ast.Constant) and annotation.value is None):
        yield annotation


def takes_none(annotation: ast.expr | None) -> bool:
    """Whether None is a value of this type."""
    if isinstance(annotation, ast.BinOp):
        return takes_none(annotation.left) or takes_none(annotation.right)
    return isinstance(annotation, ast.Constant) and annotation.value is None


@cache
def _names(module: str) -> Mapping[str, ast.stmt]:
    """What a module defines or imports, by name."""
    tree = tree_of(module)
    result: dict[str, ast.stmt] = {}
    for node in [] if tree is None else _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            result[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            result |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            result |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            result[node.target.id] = node
    return result


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, with those that stand behind an ``if`` such as TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
        else:
            yield node
