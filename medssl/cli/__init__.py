"""The command line: a verb, a recipe, and overrides of its keys; ``--help`` answers without importing torch."""

from __future__ import annotations

import os
import sqlite3
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from medssl import __version__
from medssl.cli.early import check_words, said_when_slow, with_lists
from medssl.cli.keys import keys_of
from medssl.cli.messages import explain, trouble
from medssl.io.configurations import (
    FRAGMENTS,
    class_for,
    config_names,
    is_fragment,
    load_config,
    load_recipe,
    merged,
    of_another_verb,
    verb_of,
)
from medssl.io.console import log_to_console
from medssl.io.safe_path import protect_children
from medssl.io.suggestions import nearest
from medssl.io.trust import names
from medssl.types import Imported, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from jsonargparse import ArgumentParser

VERBS = {
    "phantoms": ("medssl.commands.phantoms:phantoms", "write synthetic scans to try everything on"),
    "index": ("medssl.commands.index:index", "find the scans of a folder, or ask an index"),
    "cache": ("medssl.commands.cache:cache", "preprocess the scans of an index once, into a store"),
    "pretrain": ("medssl.commands.pretrain:pretrain", "pretrain an encoder on the scans of a store"),
    "finetune": ("medssl.commands.finetune:finetune", "fine-tune an encoder with a head on a few labels"),
    "stages": ("medssl.commands.stages:stages", "do runs that build on each other, one after the other"),
    "evaluate": (
        "medssl.commands.evaluate:evaluate",
        "score a fine-tuned network on labeled scans, on their own grid",
    ),
    "probe": ("medssl.commands.probe:probe", "judge a frozen encoder by what its features tell"),
    "compare": ("medssl.commands.compare:compare", "say whether pretraining helps, and with how many labels"),
    "pseudolabel": (
        "medssl.commands.pseudolabel:pseudolabel",
        "label stored scans with a fine-tuned network, to learn from",
    ),
    "predict": ("medssl.commands.predict:predict", "segment or classify scans with a fine-tuned network"),
    "report": ("medssl.commands.report:report", "write runs and evaluations on one page"),
}


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
        check_early(words[0], words[1:])
        with said_when_slow(words[0]):
            function = find_verb(words[0])
        code = run_verb(function, words[0], words[1:])
    except UserError as error:
        text = error.text(f"--{error.key}" if error.key else "")
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, sqlite3.OperationalError) as error:
        line = trouble(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if "torch.distributed" in sys.modules:
        from medssl.training.distributed import end

        return end(code)
    return code


def overview() -> str:
    """What ``medssl --help`` prints."""
    width = max(map(len, VERBS))
    lines = ["usage: medssl VERB [--config NAME|PATH] [--key value ...]", "", "verbs:"]
    lines += [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    lines += ["", "medssl VERB --help lists the keys of a verb, medssl --version the version.", ""]
    by_verb: dict[str, list[str]] = {}
    for name in config_names("recipes"):
        by_verb.setdefault(verb_of(name), []).append(name)
    for verb in filter(by_verb.__contains__, VERBS):
        lines += textwrap.wrap(f"recipes of {verb}: {', '.join(by_verb[verb])}", 100, subsequent_indent="  ")
    return "\n".join(lines)


def check_early(verb: str, words: list[str]) -> None:
    """Checks what needs no import of the verb: its name, its recipe, the names of keys, and which ones are missing.

    Raises:
        UserError: Says what is wrong.
    """
    if verb not in VERBS:
        message = f"unknown verb {verb!r}{nearest(verb, VERBS)}; medssl --help lists them"
        raise UserError(message)
    place = VERBS[verb][0]
    keys = keys_of(place, {})
    if keys is None:
        return
    trusted, rest = with_trust(words)
    expanded = expand(spelled_out(rest, keys.switches), trusted)
    recipes = {name: verb_of(name) for name in config_names("recipes")}
    own = [name for name, of in recipes.items() if of == ("finetune" if verb == "compare" else verb)]
    if wrong := check_words(place, verb, expanded, own):
        raise UserError(of_another_verb(rest, verb) or wrong)


def find_verb(verb: str) -> Callable[..., int | None]:
    """Imports the function behind a verb."""
    import importlib

    module, name = VERBS[verb][0].split(":")
    function: Callable[..., int | None] = getattr(importlib.import_module(module), name)
    return function


def run_verb(function: Callable[..., int | None], verb: str, words: list[str]) -> int:
    """Parses the words that follow a verb and calls its function.

    Raises:
        UserError: A key or a value is wrong.
    """
    import argparse
    import inspect

    trusted, words = with_trust(words)
    parameters = inspect.signature(function).parameters
    if trusted and "trust" in parameters:
        words = [*words, f"--trust={','.join(sorted(trusted))}"]
    parser = make_parser(function, verb)
    switches = {name for name, item in parameters.items() if item.annotation == "bool"}
    expanded = with_lists(VERBS[verb][0], expand(spelled_out(words, switches), trusted))
    try:
        parsed = parser.parse_args(expanded)
    except argparse.ArgumentError as error:
        raise UserError(of_another_verb(words, verb) or explain(str(error), parser)) from error
    parsed.pop("config", None)
    values = dict(parser.instantiate(parsed).items(branches=True, nested=False))
    return function(**values) or 0


def with_trust(words: list[str]) -> tuple[frozenset[str], list[str]]:
    """Import paths of ``--trust``, which configurations need before they are parsed, and the other words."""
    text, rest = "", []
    remaining = iter(words)
    for word in remaining:
        flag, separator, value = word.partition("=")
        if flag == "--trust":
            text += f",{value if separator else next(remaining, '')}"
        else:
            rest.append(word)
    return names(text), rest


def make_parser(function: Callable[..., Any], verb: str) -> ArgumentParser:
    """A parser of a verb's parameters: keyword-only ones are options, the others stand without a flag."""
    import dataclasses
    import inspect
    import typing

    import docstring_parser
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
    from jsonargparse.typing import register_type

    register_type(Imported, serializer=dataclasses.asdict, deserializer=imported)
    document = docstring_parser.parse(inspect.getdoc(function) or "")
    helps = {parameter.arg_name: parameter.description for parameter in document.params}
    for name in {"encoder", "objective", "head"} & set(helps):
        names = ", ".join(config_names(FRAGMENTS[name]))
        helps[name] = f"{helps[name]} Names: {names}; --{name}.help NAME lists the keys of one."
    about = document.short_description
    parser = ArgumentParser(prog=f"medssl {verb}", description=about, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="name of a shipped recipe, or a YAML file")
    standing = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    hints = typing.get_type_hints(function) if standing else {}
    for parameter in standing:
        options: dict[str, Any] = {"type": hints[parameter.name], "help": helps.get(parameter.name)}
        if typing.get_origin(hints[parameter.name]) in {list, tuple}:
            needed = parameter.default is parameter.empty
            options |= {"type": typing.get_args(hints[parameter.name])[0], "nargs": "+" if needed else "*"}
        elif parameter.default is not parameter.empty:
            options |= {"nargs": "?", "default": parameter.default}
        parser.add_argument(parameter.name, **options)
    skip: set[str | int] = {parameter.name for parameter in standing}
    parser.add_function_arguments(function, as_positional=False, skip=skip, sub_configs=False)
    return parser


def imported(value: str | dict[str, Any]) -> Imported:
    """A class by import path alone, or with its arguments; the parser would take ``class_path`` for its own."""
    return Imported(value) if isinstance(value, str) else Imported(**value)


# --- words of a command


def spelled_out(words: Sequence[str], switches: Collection[str]) -> list[str]:
    """Flags as the parser knows them: ``--from-scratch`` is ``--from_scratch=true``, and so are other switches."""
    result = []
    for number, word in enumerate(words):
        flag, separator, value = word.partition("=")
        if not flag.startswith("--"):
            result.append(word)
            continue
        name = flag.removeprefix("--").replace("-", "_")
        following = words[number + 1] if number + 1 < len(words) else "--"
        alone = name in switches and not separator and following.startswith("--")
        result.append(f"--{name}=true" if alone else f"--{name}{separator}{value}")
    return result


def expand(words: Sequence[str], trust: frozenset[str] = frozenset()) -> list[str]:
    """Folds ``--config NAME`` and ``--encoder NAME`` into one configuration that stands first: overrides win.

    So do fragments, wherever they stand: they change what the recipes together say. A class by import path stands
    before its own keys. ``--objective.help NAME`` lists the keys of a fragment's class, without NAME of the recipe's.
    """
    import json

    recipes: list[dict[str, Any]] = []
    fragments: list[dict[str, Any]] = []
    classes: list[str] = []
    asked: dict[str, str] = {}
    kept: list[str] = []
    remaining = iter(with_questions_joined(words))
    for word in remaining:
        flag, separator, value = word.partition("=")
        path = flag.removeprefix("--").split(".")
        if path[0] in FRAGMENTS and path[1:] == ["help"]:
            asked[path[0]] = value
            continue
        if not flag.startswith("--") or (flag != "--config" and path[-1] not in FRAGMENTS):
            kept.append(word)
            continue
        value = value if separator else next(remaining, "")
        if flag == "--config":
            recipes.append(load_recipe(value, trust))
        elif is_fragment(path[-1], value):
            content = load_config(value, FRAGMENTS[path[-1]], trust)
            for key in reversed(path):
                content = {key: content}
            fragments.append(content)
        else:
            classes.append(f"{flag}={value}")
    base: dict[str, Any] = {}
    for change in (*recipes, *fragments):
        base = merged(base, change)
    kept = [*classes, *(f"--{key}.help={class_for(key, name, base)}" for key, name in asked.items()), *kept]
    return [f"--config={json.dumps(base)}", *kept] if base else kept


def with_questions_joined(words: Sequence[str]) -> list[str]:
    """Joins ``--objective.help`` with the name behind it, if there is one."""
    result: list[str] = []
    for word in words:
        before = result[-1] if result else ""
        asks = before.startswith("--") and before.endswith(".help") and before[2:-5] in FRAGMENTS
        if asks and not word.startswith("--"):
            result[-1] = f"{before}={word}"
        else:
            result.append(word)
    return result


if __name__ == "__main__":
    sys.exit(main())
