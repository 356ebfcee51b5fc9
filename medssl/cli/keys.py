"""The keys of a verb, read from the source text: a mistyped key or value is found without importing torch.

What cannot be told from the text of medssl alone is left to the parser of the verb.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from medssl.cli.source import (
    Parameter,
    alternatives,
    arguments_of,
    class_of,
    fields_of,
    function_of,
    parameters_of,
    tree_of,
)
from medssl.cli.values import choices

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN = {"int", "float", "str", "bool", "Path", "tuple", "list", "Literal", "Sequence", "object"}
EVERYWHERE = {"config", "help", "print_config", "trust"}


@dataclass(frozen=True)
class Keys:
    """What a verb takes.

    Attributes:
        parameters: Every key with its type and help, and its parents: "training" and "training.steps".
        open: Keys below which anything may stand, as far as the source text tells.
        extra: Further keys that are taken, such as "encoder.class_path".
    """

    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    extra: set[str] = field(default_factory=set)

    @property
    def known(self) -> set[str]:
        """Every key by name."""
        return {*self.parameters, *self.extra}

    @property
    def top(self) -> dict[str, Parameter]:
        """The parameters of the function itself."""
        return {key: parameter for key, parameter in self.parameters.items() if "." not in key}

    @property
    def positional(self) -> list[str]:
        """Keys that may be given without their names, in order."""
        return [key for key, parameter in self.top.items() if parameter.positional]

    @property
    def required(self) -> list[str]:
        """Keys of the function that must be given: without a default, and no group whose keys all have one."""
        return [key for key in self.top if self._must_be_given(key)]

    def _must_be_given(self, key: str) -> bool:
        if self.parameters[key].default is not None:
            return False
        inside = [name for name in self.parameters if name.rpartition(".")[0] == key]
        chosen = f"{key}.class_path" in self.extra
        return chosen or not inside or any(map(self._must_be_given, inside))

    @property
    def groups(self) -> set[str]:
        """Keys with further keys below them."""
        return {parent for key in self.parameters for parent in parents_of(key)}

    def takes(self, key: str) -> bool:
        """Whether a key is known, or may be."""
        if key in self.parameters or key in self.extra or key in EVERYWHERE or key.endswith(".help"):
            return True
        return any(parent in self.open for parent in parents_of(key))

    def first_unknown(self, key: str) -> str:
        """The unknown key itself, or the first of its parents that is not known."""
        return next((parent for parent in parents_of(key) if not self.takes(parent)), key)

    def below(self, key: str) -> dict[str, Parameter]:
        """The keys inside a group, without further groups."""
        inside = {name: item for name, item in self.parameters.items() if name.startswith(f"{key}.")}
        return {
            name: item for name, item in inside.items() if not any(other.startswith(f"{name}.") for other in inside)
        }


def parents_of(key: str) -> list[str]:
    """The keys above a key, the highest first."""
    parts = key.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def keys_of(place: str, classes: Mapping[str, str]) -> Keys | None:
    """The keys of the function at ``module:name``; None where its text is not read.

    Args:
        place: Where the function is.
        classes: Import paths of the classes that a configuration names, by their key: ``{"encoder": "medssl..."}``.
    """
    function = function_of(place)
    if function is None:
        return None
    keys = Keys()
    for parameter in parameters_of(place.split(":")[0], function):
        _enter(keys, parameter.name, parameter, classes)
    return keys


def keys_of_class(key: str, path: str) -> Keys | None:
    """The keys below ``key`` that a class at an import path takes; None where its text is not read.

    Those that the program itself gives (the encoder of an objective) are left out.
    """
    module, _, name = path.rpartition(".")
    parameters = arguments_of(module, name) if tree_of(module) else None
    if parameters is None:
        return None
    keys = Keys()
    for parameter in parameters:
        if parameter.name not in {"encoder", "schema"}:
            _enter(keys, f"{key}.{parameter.name}", parameter, {})
    return keys


def _enter(keys: Keys, key: str, parameter: Parameter, classes: Mapping[str, str]) -> None:
    """Enters a key and all keys below it."""
    module = parameter.module
    keys.parameters[key] = replace(parameter, name=key)
    parts = list(alternatives(parameter.annotation))
    if len(parts) != 1:
        if any(not _is_plain(part, module) for part in parts):
            keys.open.add(key)
        return
    part = parts[0]
    if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id == "Callable":
        below = keys_of_class(key, classes.get(key, ""))
        if below is None:
            keys.open.add(key)
            return
        keys.parameters.update(below.parameters)
        keys.open.update(below.open)
        keys.extra.update((f"{key}.class_path", f"{key}.help"))
    elif (place := class_of(module, part)) is not None:
        fields = fields_of(*place)
        if fields is None:
            keys.open.add(key)
        for item in fields or ():
            _enter(keys, f"{key}.{item.name}", item, {})
    elif not _is_plain(part, module):
        keys.open.add(key)


def _is_plain(annotation: ast.expr, module: str) -> bool:
    """Whether nothing can stand below a key of this type."""
    node = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    if not isinstance(node, ast.Name):
        return False
    return node.id in PLAIN or (class_of(module, annotation) is None and choices(module, annotation) is not None)


def plain(key: str) -> str:
    """A key without the words that only say which class it is of."""
    return key.removesuffix("+").replace(".init_args", "")
