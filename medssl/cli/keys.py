"""The keys of a verb, read from the source text: a mistyped key is found without importing torch.

Verbs take dataclasses and classes of encoders, objectives and heads; importing those takes seconds. Here their
signatures are parsed instead. What cannot be told from the text of medssl alone is left to the parser of the verb.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent
Parameters = list[tuple[str, ast.expr | None, bool]]  # name, annotation, whether it has a default


@dataclass(frozen=True)
class Keys:
    """What a verb takes.

    Attributes:
        known: Every key, with its parents: "training" and "training.steps".
        open: Keys below which anything may stand, as far as the source text tells.
        standing: Parameters that stand without a flag.
        required: Options without a default.
        switches: Options that are true or false.
        lists: Keys that take several values.
    """

    known: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    standing: list[str] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)

    def takes(self, key: str) -> bool:
        """Whether a key is known, or may be."""
        if key in self.known or key in {"config", "help", "print_config", "trust"} or key.endswith(".help"):
            return True
        return any(parent in self.open for parent in parents_of(key))

    def first_unknown(self, key: str) -> str:
        """The unknown key itself, or the first of its parents that is not known."""
        return next((parent for parent in parents_of(key) if not self.takes(parent)), key)


def parents_of(key: str) -> list[str]:
    """The keys above a key, the highest first."""
    parts = key.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def keys_of(place: str, classes: Mapping[str, str]) -> Keys | None:
    """The keys of the function at ``module:name``; None where its module is none of medssl's.

    Args:
        place: Where the function is.
        classes: Import paths of the classes that a configuration names, by their key: ``{"encoder": "medssl..."}``.
    """
    module, name = place.split(":")
    tree = _tree(module)
    function = _defined(tree, name) if tree else None
    if not isinstance(function, ast.FunctionDef):
        return None
    found = Keys()
    standing = {argument.arg for argument in function.args.args}
    for parameter, annotation, default in _parameters(function):
        if parameter in standing:
            found.standing.append(parameter)
            continue
        if not default:
            found.required.append(parameter)
        if isinstance(annotation, ast.Name) and annotation.id == "bool":
            found.switches.add(parameter)
        _enter(found, parameter, module, annotation, classes)
    return found


def _enter(found: Keys, key: str, module: str, annotation: ast.expr | None, classes: Mapping[str, str]) -> None:
    """Enters a key and all keys below it."""
    found.known.add(key)
    parts = list(_alternatives(annotation))
    if len(parts) != 1:
        if any(not _is_plain(part, module) for part in parts):
            found.open.add(key)
        return
    part = parts[0]
    if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id in LISTS:
        found.lists.add(key)
    if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id == "Callable":
        _enter_class(found, key, part, classes)
    elif (made := _class(module, part)) is not None:
        parameters = _fields(*made)
        if parameters is None:
            found.open.add(key)
        for name, below, _ in parameters or ():
            _enter(found, f"{key}.{name}", made[0], below, {})
    elif not _is_plain(part, module):
        found.open.add(key)


def _enter_class(found: Keys, key: str, annotation: ast.Subscript, classes: Mapping[str, str]) -> None:
    """Enters the arguments of the class that a configuration names, without those that the program gives."""
    module, _, name = classes.get(key, "").rpartition(".")
    given = annotation.slice.elts[0] if isinstance(annotation.slice, ast.Tuple) else None
    count = len(given.elts) if isinstance(given, ast.List) else 0
    parameters = _arguments(module, name) if _tree(module) else None
    if parameters is None:
        found.open.add(key)
        return
    found.known.update((f"{key}.class_path", f"{key}.help"))
    for parameter, below, _ in parameters[count:]:
        _enter(found, f"{key}.{parameter}", module, below, {})


def _alternatives(annotation: ast.expr | None) -> Iterator[ast.expr]:
    """The parts of a union without None."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _alternatives(annotation.left)
        yield from _alternatives(annotation.right)
    elif annotation is not None and not (isinstance(annotation, ast.Constant) and annotation.value is None):
        yield annotation


LISTS = {"tuple", "list", "Sequence"}
PLAIN = {"int", "float", "str", "bool", "Path", "tuple", "list", "Literal", "Sequence", "object"}


def _is_plain(annotation: ast.expr, module: str) -> bool:
    """Whether nothing can stand below a key of this type."""
    node = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    if not isinstance(node, ast.Name):
        return False
    return node.id in PLAIN or (_class(module, annotation) is None and _is_alias(module, node.id))


def _is_alias(module: str, name: str) -> bool:
    """Whether a name is a ``Literal`` of some module."""
    place = _followed(module, name)
    node = place and place[1]
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    return isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) and value.value.id == "Literal"


# --- source text


@cache
def _tree(module: str) -> ast.Module | None:
    """The parsed text of a module of medssl; None of any other."""
    first, *rest = module.split(".")
    if first != "medssl" or not all(part.isidentifier() for part in rest):
        return None
    path = ROOT.joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


@cache
def _names(module: str) -> Mapping[str, ast.stmt]:
    """What the module defines or imports, by name."""
    tree = _tree(module)
    found: dict[str, ast.stmt] = {}
    for node in [] if tree is None else _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, with those that stand behind an ``if`` such as TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
        else:
            yield node


def _defined(tree: ast.Module, name: str) -> ast.stmt | None:
    """A function or class of a module."""
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)
    return next(found, None)


def _followed(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Module and definition of a name, through imports."""
    node = _names(module).get(name)
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else (module, node)
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return _followed(node.module or "", original) if node.level == 0 else None


def _class(module: str, annotation: ast.expr) -> tuple[str, ast.ClassDef] | None:
    """The class of medssl that an annotation names."""
    found = _followed(module, annotation.id) if isinstance(annotation, ast.Name) else None
    return (found[0], found[1]) if found and isinstance(found[1], ast.ClassDef) else None


def _fields(module: str, made: ast.ClassDef) -> Parameters | None:
    """Fields of a dataclass with those of its bases; None of any other class."""
    decorators = [node.func if isinstance(node, ast.Call) else node for node in made.decorator_list]
    if not any(isinstance(node, ast.Name) and node.id == "dataclass" for node in decorators):
        return None
    found: dict[str, tuple[str, ast.expr | None, bool]] = {}
    for base in made.bases:
        parent = _class(module, base)
        for item in (_fields(*parent) if parent else None) or ():
            found[item[0]] = item
    for node in made.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = (node.target.id, node.annotation, node.value is not None)
    return list(found.values())


def _arguments(module: str, name: str) -> Parameters | None:
    """Arguments that make a class; None where the text does not tell."""
    followed = _followed(module, name)
    if followed is None or not isinstance(followed[1], ast.ClassDef):
        return None
    module, made = followed[0], followed[1]
    if (fields := _fields(module, made)) is not None:
        return fields
    for node in made.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return None if node.args.kwarg or node.args.vararg else _parameters(node)[1:]
    parents = [base.id for base in made.bases if isinstance(base, ast.Name)]
    return _arguments(module, parents[0]) if len(parents) == 1 else None


def _parameters(function: ast.FunctionDef) -> Parameters:
    """Names and annotations, in the order of the text."""
    given = function.args
    first = len(given.args) - len(given.defaults)
    found: Parameters = [(one.arg, one.annotation, place >= first) for place, one in enumerate(given.args)]
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return [*found, *((one.arg, one.annotation, default is not None) for one, default in pairs)]
