"""Types of values as the source text says them: what is expected, whether a value fits, how it reads in a help text."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from medssl.cli.source import alternatives, class_of, fields_of, takes_none, value_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTS = {"tuple", "list", "Sequence"}
NOUNS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
METAVARS = {"int": "INT", "float": "NUMBER", "bool": "true|false", "Path": "PATH", "str": "TEXT", "Callable": "NAME"}
BOOLEANS = {"true", "false", "yes", "no", "on", "off"}


def choices(module: str, annotation: ast.expr) -> list[Any] | None:
    """Values of a ``Literal``, also behind a name; None of other types."""
    _, node = value_of(module, annotation)
    if not (isinstance(node, ast.Subscript) and _name(node) == "Literal"):
        return None
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return [item.value for item in items if isinstance(item, ast.Constant)]


def items_of(annotation: ast.expr | None) -> tuple[list[ast.expr], int | None] | None:
    """Types of the items of a list and their number (None: any); None where it is no list. Words may stand for it."""
    parts = [part for part in alternatives(annotation) if _name(part) != "Literal"]
    if len(parts) != 1 or not isinstance(parts[0], ast.Subscript) or _name(parts[0]) not in LISTS:
        return None
    inside = parts[0].slice
    elements = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if _name(parts[0]) != "tuple" or _is_dots(elements[-1]):
        return elements[:1], None
    return elements, len(elements)


def is_word(module: str, annotation: ast.expr | None, text: str) -> bool:
    """Whether a text is one of the words that a value can be."""
    return any(text in (choices(module, part) or ()) for part in alternatives(annotation))


def is_switch(annotation: ast.expr | None) -> bool:
    """Whether the values are true and false."""
    return [_name(part) for part in alternatives(annotation)] == ["bool"]


def is_number(word: str) -> bool:
    """Whether a word can be an item of a list of numbers."""
    try:
        float(word)
    except ValueError:
        return word == "null"
    return True


def takes_numbers(annotation: ast.expr) -> bool:
    """Whether all values are numbers."""
    return {_name(part) for part in alternatives(annotation)} <= {"int", "float"}


def expected(module: str, annotation: ast.expr | None) -> str:
    """What a value must be, in words."""
    words = [text for part in alternatives(annotation) for text in _expected(module, part)]
    if takes_none(annotation):
        words.append("null")
    return " or ".join(dict.fromkeys(words))


def _expected(module: str, part: ast.expr) -> Iterator[str]:
    if (values := choices(module, part)) is not None:
        yield f"one of {', '.join(map(str, values))}"
    elif (items := items_of(part)) is not None:
        inner = [expected(module, item) for item in items[0]]
        if items[1] is None:
            yield f"a list (each item {inner[0]})"
        else:
            yield f"{items[1]} values: {', '.join(inner)}"
    else:
        place = class_of(module, part)
        fields = fields_of(*place) if place else None
        yield NOUNS.get(_name(part), f"{' and '.join(item.name for item in fields)}" if fields else "text")


def fits(module: str, annotation: ast.expr | None, value: Any) -> bool:
    """Whether a value may be of a type; True where the text does not tell.

    Args:
        module: Module whose names the annotation uses.
        annotation: The type.
        value: As YAML has it: a number, a text, a list, a mapping or None.
    """
    parts = list(alternatives(annotation))
    if not parts or (value is None and takes_none(annotation)):
        return True
    return any(_fits(module, part, value) for part in parts)


def _fits(module: str, part: ast.expr, value: Any) -> bool:
    if (values := choices(module, part)) is not None:
        return value in values or str(value) in map(str, values)
    if (items := items_of(part)) is not None:
        if not isinstance(value, list | tuple):
            return False
        if items[1] is None:
            return all(fits(module, items[0][0], item) for item in value)
        return len(value) == items[1] and all(fits(module, *pair) for pair in zip(items[0], value, strict=True))
    match _name(part):
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float | str) and not isinstance(value, bool) and is_number(str(value))
        case "bool":
            return isinstance(value, bool) or str(value).lower() in BOOLEANS
        case "str" | "Path":
            return not isinstance(value, dict | list) and value is not None
    place = class_of(module, part)
    fields = fields_of(*place) if place else None
    if fields is None or not isinstance(value, dict):
        return True
    return set(value) <= {item.name for item in fields}


def metavar(module: str, annotation: ast.expr | None) -> str:
    """What stands for a value in a help text."""
    words = []
    for part in alternatives(annotation):
        if (values := choices(module, part)) is not None:
            words.append("|".join(str(value) for value in values if value != ""))
        elif (items := items_of(part)) is not None:
            inner = [metavar(module, item) for item in items[0]]
            words.append(f"{inner[0]},..." if items[1] is None else ",".join(inner))
        else:
            words.append(METAVARS.get(_name(part), "..."))
    return "|".join(dict.fromkeys(words)) or "..."


def _name(annotation: ast.expr) -> str:
    node = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return node.id if isinstance(node, ast.Name) else ""


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis
