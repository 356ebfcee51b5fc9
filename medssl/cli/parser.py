"""The parser of a verb: it imports classes, makes dataclasses of keys, and prints whole configurations.

Names of keys and types of values are checked before, from the source text (``words``). What is left to the parser is
what only an import can tell: whether a class exists, what its arguments are, and the types of an objective of the
user's own.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from medssl.cli.keys import plain
from medssl.io.suggestions import nearest
from medssl.types import Imported, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jsonargparse import ArgumentParser

    from medssl.cli.words import Command


def arguments_for(function: Callable[..., Any], verb: str, command: Command) -> dict[str, Any]:
    """The arguments of a verb's function, out of its words.

    Raises:
        UserError: The parser refuses a key or a value.
    """
    check_classes(function, command)
    parser = make_parser(function, verb)
    try:
        parsed = parser.parse_args(command.words())
    except argparse.ArgumentError as error:
        raise refusal(error) from error
    parsed.pop("config", None)
    return dict(parser.instantiate(parsed).items(branches=True, nested=False))


def check_classes(function: Callable[..., Any], command: Command) -> None:
    """Imports the classes that are chosen, and checks that they are of the right kind and take their keys.

    Raises:
        UserError: Names the key of the class.
    """
    import inspect
    import typing

    hints = typing.get_type_hints(function) if command.classes else {}
    for key, path in command.classes.items():
        kind = _made_by(hints.get(key))
        if kind is None:
            continue
        made = _imported(key, path)
        if inspect.isclass(made) and not issubclass(made, kind):
            message = f"{path} is no {kind.__name__}"
            raise UserError(message, key=key, expected=f"the import path of a subclass of {kind.__name__}")
        if command.keys is None or key in command.keys.open:
            _check_arguments(key, made, command)


def _made_by(hint: Any) -> type | None:
    """What a ``Callable`` gives, also as a part of a union."""
    import collections.abc
    import typing

    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is collections.abc.Callable:
            result = typing.get_args(part)[-1]
            return result if isinstance(result, type) else None
    return None


def _imported(key: str, path: str) -> Any:
    """What stands at an import path.

    Raises:
        UserError: Nothing does.
    """
    import importlib

    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError) as error:
        message = f"the class cannot be imported: {error}"
        raise UserError(message, key=key, got=path) from error
    except AttributeError as error:
        message = f"the module {module} has no class {name}{nearest(name, vars(sys.modules[module]))}"
        raise UserError(message, key=key, got=path) from error


def _check_arguments(key: str, made: Any, command: Command) -> None:
    """Refuses keys of a class that it does not take.

    Raises:
        UserError: Names the key.
    """
    import inspect

    parameters = inspect.signature(made).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [f"{key}.{name}" for name in (*parameters, "class_path")]
    for given in map(plain, command.given()):
        parts = given.split(".")
        if parts[0] == key and len(parts) > 1 and ".".join(parts[:2]) not in known:
            message = f"unknown key {given!r}{nearest(given, known)}"
            raise UserError(message)


def make_parser(function: Callable[..., Any], verb: str) -> ArgumentParser:
    """A parser of all parameters of a function as options."""
    import dataclasses

    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # given without types
    from jsonargparse.typing import register_type

    register_type(Imported, serializer=dataclasses.asdict, deserializer=imported)
    parser = ArgumentParser(prog=f"medssl {verb}", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_function_arguments(function, as_positional=False, sub_configs=False)
    return parser


def imported(value: str | dict[str, Any]) -> Imported:
    """A class by import path alone, or with its arguments; the parser would take ``class_path`` for its own."""
    return Imported(value) if isinstance(value, str) else Imported(**value)


def refusal(error: argparse.ArgumentError) -> UserError:
    """What the parser says, as an error of the user.

    Its text is kept: of the values that reach it, only the parser knows what is wrong.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return UserError(" ".join(lines))
