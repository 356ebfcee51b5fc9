"""The words of a command: configurations, keys with their values, and what is asked about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medssl.cli.keys import Keys, keys_of, plain
from medssl.cli.messages import unknown_key
from medssl.cli.values import BOOLEANS, expected, fits, is_number, is_switch, is_word, items_of, takes_numbers
from medssl.io.configurations import FRAGMENTS, is_fragment, load_config, load_recipe, merged
from medssl.io.trust import names
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.cli.source import Parameter

CLASSES = ("encoder", "objective", "head")


@dataclass(frozen=True)
class Command:
    """The words behind a verb, in order.

    Attributes:
        config: What recipes and presets say together.
        values: Text of each key that the command line gives; of a key that stands twice, the last.
        keys: What the verb takes with the classes of this command; None where its text is not read.
        help: Group whose help is asked for ("" for the verb, "all" for all of its keys); None where none is.
        name: Preset or class behind ``--objective.help``.
        trust: Import paths that configurations may name.
        print_config: Word that asks for the configuration; "" where none does.
        classes: Import path of each class that is chosen, by its key.
    """

    config: dict[str, Any]
    values: dict[str, str]
    keys: Keys | None
    help: str | None = None
    name: str = ""
    trust: frozenset[str] = frozenset()
    print_config: str = ""
    classes: dict[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The words as the parser takes them: the configuration first, classes before their keys."""
        config, values = self.config, dict(self.values)
        for key in [key for key, text in values.items() if text == "null"]:
            root, _, rest = plain(key).partition(".")
            if rest and _names_class(config.get(root)):  # jsonargparse takes null inside a class for a text
                change: Any = None
                for part in reversed(["init_args", *rest.split(".")]):
                    change = {part: change}
                config = merged(config, {root: change})
                del values[key]
        first = [f"--config={json.dumps(config)}"] if config else []
        parts = sorted(values.items(), key=lambda pair: pair[0].rpartition(".")[2] not in FRAGMENTS)
        return [*first, *(f"--{key}={value}" for key, value in parts), *filter(None, [self.print_config])]

    def given(self) -> dict[str, Any]:
        """Every key that is given, by the configuration or by the command line, with its value as YAML has it.

        Of a mapping that the command line gives, the keys inside it.
        """
        result = dict(flat(self.config))
        for key, text in self.values.items():
            value = _as_yaml(text)
            is_mapping = isinstance(value, dict) and bool(value)
            if is_mapping and self._is_single_value(plain(key)):
                result[key] = text  # a text with a colon, such as a heading
            else:
                result |= dict(flat(value, key)) if is_mapping else {key: value}
        return result

    def _is_single_value(self, key: str) -> bool:
        """Whether a key has a value of its own and no keys below it."""
        keys = self.keys
        return keys is not None and key in keys.parameters and key not in keys.groups and key not in keys.open


@dataclass
class _Reading:
    """What is read of the words so far."""

    recipes: list[dict[str, Any]] = field(default_factory=list)
    presets: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    trust: frozenset[str] = frozenset()
    help: str | None = None
    name: str = ""
    paths: dict[str, str] = field(default_factory=dict)


def read_command(place: str, words: Sequence[str], verb: str = "") -> Command:
    """Reads the words behind a verb.

    Args:
        place: Module and name of the verb's function.
        words: The words.
        verb: The verb; recipes of another one are refused.

    Raises:
        UserError: No such recipe or preset, a key without its value, or more words without a key than the verb takes.
    """
    first = _read_configurations(words, verb)
    config: dict[str, Any] = {}
    for change in (*first.recipes, *first.presets):
        config = merged(config, change)
    chosen = {key: value["class_path"] for key, value in config.items() if _names_class(value)}
    chosen |= first.classes | first.paths
    keys = keys_of(place, chosen)
    values, config_word = _read_values(first.rest, keys)
    values = first.classes | values
    if first.trust and (keys is None or "trust" in keys.parameters):
        values["trust"] = ",".join(sorted(first.trust))
    return Command(config, values, keys, first.help, first.name, first.trust, config_word, chosen)


def _read_configurations(words: Sequence[str], verb: str) -> _Reading:
    """Takes recipes, presets, classes and questions out of the words, wherever they stand."""
    reading, remaining = _Reading(trust=_trusted(words)), list(words)
    while remaining:
        word = remaining.pop(0)
        key, separator, value = _key_of(word)
        last = key.rpartition(".")[2]
        if key in {"help", "-h"}:
            value = value or ("all" if remaining[:1] == ["all"] and remaining.pop(0) else "")
            reading.help = value
        elif last == "help":
            reading.help = key.rpartition(".")[0]
            reading.name = value or (remaining.pop(0) if remaining and not _is_flag(remaining[0]) else "")
        elif key not in {"config", "trust"} and last not in FRAGMENTS:
            reading.rest.append(word)
            if last == "class_path":
                path = value if separator else "".join(remaining[:1])
                reading.paths[key.removesuffix(".class_path")] = path
        else:
            _enter(reading, key, value if separator else _next(remaining, key), verb)
    return reading


def _enter(reading: _Reading, key: str, value: str, verb: str) -> None:
    """Enters a recipe, a preset, or a class by its path."""
    last = key.rpartition(".")[2]
    if key == "config":
        reading.recipes.append(load_recipe(value, reading.trust, verb))
    elif last in FRAGMENTS:
        content = load_config(value, FRAGMENTS[last], reading.trust) if is_fragment(last, value) else _as_yaml(value)
        if is_fragment(last, value) or _names_class(content):
            for part in reversed(key.split(".")):
                content = {part: content}
            reading.presets.append(content)
        elif last in CLASSES and isinstance(content, str):
            reading.classes[key] = value
        else:
            reading.rest.append(f"--{key}={value}")


def _trusted(words: Sequence[str]) -> frozenset[str]:
    """Import paths of ``--trust``, which configurations need before they are read."""
    texts = []
    for number, word in enumerate(words):
        key, separator, value = _key_of(word)
        if key == "trust":
            texts.append(value if separator else "".join(words[number + 1 : number + 2]))
    return names(",".join(texts))


def _read_values(words: Sequence[str], keys: Keys | None) -> tuple[dict[str, str], str]:
    """Text of each key, and the word that asks for the whole configuration."""
    values: dict[str, str] = {}
    bare, config_word = [], ""
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        key, separator, value = _key_of(word)
        if not key:
            bare.append(word)
        elif key == "print_config":
            config_word = word
        else:
            parameter = keys.parameters.get(plain(key)) if keys else None
            text = value if separator else _value(remaining, key, parameter)
            values[key] = _bracketed(text, parameter)
    return values | _positional(bare, values, keys), config_word


def _value(remaining: list[str], key: str, parameter: Parameter | None) -> str:
    """Takes the value of a key from the words behind it."""
    if parameter is not None and is_switch(parameter.annotation):
        follows = bool(remaining) and remaining[0].lower() in BOOLEANS
        return remaining.pop(0) if follows else "true"
    text = _next(remaining, key)
    items = items_of(parameter.annotation) if parameter else None
    if items is None or parameter is None or text[:1] in {"[", "{", ""} or "," in text:
        return text
    if is_word(parameter.module, parameter.annotation, text):
        return text
    types, count = items
    more: list[str] = []
    while remaining and not _is_flag(remaining[0]):
        more_wanted = len(more) + 1 < count if count else takes_numbers(types[0]) and is_number(remaining[0])
        if not more_wanted:
            break
        more.append(remaining.pop(0))
    return ",".join([text, *more])


def _bracketed(text: str, parameter: Parameter | None) -> str:
    """A list in the form that the parser takes: ``2,4`` becomes ``[2,4]``."""
    if parameter is None or items_of(parameter.annotation) is None:
        return text
    is_plain = text == "null" or is_word(parameter.module, parameter.annotation, text)
    return text if is_plain or text[:1] in {"[", "{", ""} else f"[{text}]"


def _positional(bare: Sequence[str], values: dict[str, str], keys: Keys | None) -> dict[str, str]:
    """The words without a key, under the keys that they stand for, in order.

    Raises:
        UserError: There are more than the verb takes.
    """
    result: dict[str, str] = {}
    remaining = list(bare)
    for key in keys.positional if keys else ():
        if key in values or not remaining:
            continue
        several = keys is not None and items_of(keys.parameters[key].annotation) is not None
        result[key] = json.dumps(remaining) if several else remaining[0]
        remaining = [] if several else remaining[1:]
    if remaining:
        message = f"unexpected word {remaining[0]!r}"
        raise UserError(message, hint="Options begin with --; quote values that contain blanks.")
    return result


# --- checks


def check_keys(command: Command) -> None:
    """Checks the names of keys and the types of their values.

    Raises:
        UserError: Names the first key that is unknown, or whose value is of another type.
    """
    keys = command.keys
    if keys is None:
        return
    given = {plain(key): value for key, value in command.given().items()}
    for key in given:
        if not keys.takes(key):
            raise unknown_key(key, keys)
    for key, value in given.items():
        parameter = keys.parameters.get(key)
        if parameter is None or key in keys.open or key in keys.groups:
            continue
        readings = [value, *([command.values[key]] if key in command.values else [])]  # as YAML, or the text itself
        if not any(fits(parameter.module, parameter.annotation, reading) for reading in readings):
            right = expected(parameter.module, parameter.annotation)
            message = "the value has the wrong type"
            raise UserError(message, key=key, got=value, expected=right)


def _as_yaml(text: str) -> Any:
    """A value of the command line as YAML reads it; the text itself where it is no YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def flat(content: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Keys of a configuration with their values, without the words that only say which class they are of."""
    result: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = above if key == "init_args" else f"{above}.{key}" if above else key
        if key == "class_path":
            result.append((above or key, value))
        elif isinstance(value, dict) and value:
            result += flat(value, name)
        else:
            result.append((name, value))
    return result


def _key_of(word: str) -> tuple[str, str, str]:
    """Key, "=" and value of a word: ``--from-scratch=true``; no key where it is none."""
    if word == "-h":
        return "help", "", ""
    if not word.startswith("--"):
        return "", "", ""
    flag, separator, value = word.removeprefix("--").partition("=")
    return flag.replace("-", "_"), separator, value


def _is_flag(word: str) -> bool:
    return word.startswith("--") or word == "-h"


def _next(remaining: list[str], key: str) -> str:
    """The word behind a key.

    Raises:
        UserError: There is none.
    """
    if not remaining or remaining[0].startswith("--"):
        message = "the value is missing"
        raise UserError(message, key=key)
    return remaining.pop(0)


def _names_class(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)
