"""The program: reads the words of a command, calls the function of its verb, and says on one line what is wrong."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl import __version__
from medssl.cli.help import NEED_A_RECIPE, group_help, overview, verb_help
from medssl.cli.messages import located, trouble
from medssl.cli.patience import said_when_slow
from medssl.cli.verbs import VERBS
from medssl.cli.words import check_keys, read_command
from medssl.io.configurations import config_names, verb_of
from medssl.io.console import log_to_console
from medssl.io.safe_path import protect_children
from medssl.io.suggestions import nearest
from medssl.types import UserError
from medssl.types.errors import ERROR_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medssl.cli.words import Command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 good, 1 nothing useful could be done, 2 a mistake of the user."""
    protect_children()
    log_to_console()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"medssl {__version__}")
        return 0
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # the log of a batch job wants a line now and then
    try:
        code = run(words[0], words[1:])
    except UserError as error:
        return refused(error)
    except BrokenPipeError:  # whoever read the output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, sqlite3.OperationalError) as error:
        line = trouble(error)
        if not line:
            raise
        return refused(UserError(line))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if "torch.distributed" in sys.modules:
        from medssl.training.distributed import end

        return end(code)
    return code


def refused(error: UserError) -> int:
    """Prints an error on one line, with an option in the place of its key; returns the exit code.

    Where the environment names a file for it, the error is written there as JSON, too.
    """
    text = " ".join(error.text(f"--{error.key}" if error.key else "").split())
    print(f"error: {text}", file=sys.stderr)
    if file := os.environ.get(ERROR_FILE):
        parts = {"text": text, "message": error.message, "key": error.key, "expected": error.expected}
        Path(file).write_text(json.dumps(parts | {"hint": error.hint}), encoding="utf-8")
    return 2


def run(verb: str, words: Sequence[str]) -> int:
    """Runs a verb, or prints its help; what is wrong with its words is said before its modules are imported.

    Raises:
        UserError: A mistake of the user.
    """
    if verb not in VERBS:
        message = f"unknown verb {verb!r}{nearest(verb, VERBS)}; medssl --help lists them"
        raise UserError(message)
    command = check_early(verb, words)
    if command.help is not None and command.keys is not None:
        in_group = command.help not in {"", "all"}
        everything = command.help == "all"
        text = group_help(command, command.keys) if in_group else verb_help(verb, command.keys, everything=everything)
        if text:
            print(text)
            return 0
    with said_when_slow(verb):
        function = find_verb(verb)
    return call(function, verb, command)


def check_early(verb: str, words: Sequence[str]) -> Command:
    """Reads the words behind a verb and checks what needs no import: recipe, names of keys, types, what is missing.

    Raises:
        UserError: Says what is wrong.
    """
    place = VERBS[verb].place
    command = read_command(place, words, verb)
    check_keys(command)
    if command.keys is None or command.help is not None or command.print_config:
        return command
    tops = {key.partition(".")[0] for key in command.given()}
    missing = [key for key in command.keys.required if key not in tops]
    if not command.config and NEED_A_RECIPE & set(missing):
        of = "finetune" if verb == "compare" else verb
        names = ", ".join(name for name in config_names("recipes") if verb_of(name) == of)
        message = f"medssl {verb} needs a recipe: --config NAME, out of {names}, or a YAML file of your own"
        raise UserError(message)
    if missing:
        shown = [key.upper() if key in command.keys.positional else f"--{key}" for key in missing]
        wanted = " and ".join(shown)
        message = f"medssl {verb} needs {wanted}; medssl {verb} --help describes the options"
        raise UserError(message)
    return command


def find_verb(verb: str) -> Callable[..., Any]:
    """Imports the function behind a verb."""
    import importlib

    module, name = VERBS[verb].place.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def parse(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The arguments that the words behind a verb give to its function.

    Raises:
        UserError: A key or a value is wrong.
    """
    from medssl.cli.parser import arguments_for

    return arguments_for(find_verb(verb), verb, check_early(verb, words))


def run_verb(function: Callable[..., Any], verb: str, words: Sequence[str]) -> int:
    """Parses the words behind a verb and calls a function; returns the exit code.

    Raises:
        UserError: A key or a value is wrong.
    """
    return call(function, verb, check_early(verb, words))


def call(function: Callable[..., Any], verb: str, command: Command) -> int:
    """Calls the function of a verb; returns the exit code.

    Raises:
        UserError: A value is wrong.
    """
    from medssl.cli.parser import arguments_for

    try:
        result = function(**arguments_for(function, verb, command))
    except UserError as error:
        raise located(error, command.keys) from error
    return int(getattr(result, "exit_code", result) or 0)
