"""What is checked and said of a command before the modules of its verb are imported, which takes seconds."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medssl.cli.keys import keys_of
from medssl.cli.messages import renamed, unknown_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATIENCE_S = 2.0
CHOSEN_BY_RECIPES = {"encoder", "objective", "head", "data", "training", "stages"}


def check_words(place: str, verb: str, words: Sequence[str], recipes: Sequence[str]) -> str:
    """One line on the first key that is unknown, or on those that are missing; "" where nothing is wrong.

    Args:
        place: Module and name of the verb's function.
        verb: Its name.
        words: The words behind it, with the recipe as JSON in front.
        recipes: Names of the shipped recipes of the verb.
    """
    recipe: dict[str, Any] = {}
    given, asks = [], False
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config":
            recipe = json.loads(value)
        elif flag == "-h" or (flag.startswith("--") and flag.endswith(("help", "print_config"))):
            asks = True
        elif flag.startswith("--"):
            given.append(_plain(flag))
    keys = keys_of(place, _classes(recipe, words))
    if keys is None:
        return ""
    every = [*given, *_flat(recipe)]
    if unknown := next((key for key in every if not keys.takes(key)), ""):
        former = renamed(unknown) and unknown not in keys.standing
        return unknown_key(unknown if former else keys.first_unknown(unknown), keys.known, keys.standing)
    tops = {key.partition(".")[0] for key in every}
    missing = [] if asks else [key for key in keys.required if key not in tops]
    if not recipe and CHOSEN_BY_RECIPES & set(missing):
        return f"medssl {verb} needs a recipe: --config NAME, out of {', '.join(recipes)}, or a YAML file of your own"
    if missing:
        wanted = " and ".join(f"--{key}" for key in missing)
        return f"medssl {verb} needs {wanted} (required: {', '.join(missing)}); medssl {verb} --help says what they are"
    return ""


def with_lists(place: str, words: Sequence[str]) -> list[str]:
    """Words with brackets around the values of keys that take several: ``--labels=2,4`` is ``--labels=[2,4]``."""
    recipe: dict[str, Any] = next(
        (json.loads(word.partition("=")[2]) for word in words if word.startswith("--config=")), {}
    )
    keys = keys_of(place, _classes(recipe, words))
    result, flag = [], ""
    for word in words:
        name, separator, value = word.partition("=") if word.startswith("--") else (flag, "", word)
        if keys and _plain(name) in keys.lists and value and value[0] not in "[{" and value != "null":
            word = f"{name}=[{value}]" if separator else f"[{value}]"
        flag = word if word.startswith("--") and "=" not in word else ""
        result.append(word)
    return result


def _plain(flag: str) -> str:
    """The key of a flag as the listing has it."""
    return flag.removeprefix("--").removesuffix("+").replace(".init_args", "")


def _classes(recipe: dict[str, Any], words: Sequence[str]) -> dict[str, str]:
    """Import path of each class that is chosen; one that the command line names wins."""
    found = {key: value["class_path"] for key, value in recipe.items() if _names_class(value)}
    for word in words:
        flag, separator, value = word.partition("=")
        key = flag.removeprefix("--").removesuffix(".class_path")
        if separator and key in {"encoder", "objective", "head"}:
            found[key] = value
        elif key in found and flag.endswith(".class_path"):
            found[key] = ""
    return found


def _names_class(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)


def _flat(content: dict[str, Any], above: str = "") -> Iterator[str]:
    """Keys of a recipe, without the words that only say which class they are of."""
    for key, value in content.items():
        name = above if key == "init_args" else f"{above}{key}" if not above else f"{above}.{key}"
        if key == "class_path":
            yield above or key
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, name)
        else:
            yield name


@contextmanager
def said_when_slow(verb: str) -> Iterator[None]:
    """Says on the console that modules are being loaded, where that takes over two seconds."""

    def tell() -> None:
        sys.stderr.write(f"medssl {verb}: loading PyTorch, a few seconds ...\n")
        sys.stderr.flush()

    timer = threading.Timer(PATIENCE_S, tell)
    timer.daemon = True
    if os.environ.get("RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
