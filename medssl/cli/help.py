"""Help texts, made of signatures and docstrings in the source text: no module of a verb is imported."""

from __future__ import annotations

import ast
import re
import textwrap
from typing import TYPE_CHECKING

from medssl.cli.keys import keys_of_class
from medssl.cli.source import definition, function_of, summary_of, value_of
from medssl.cli.values import items_of, metavar
from medssl.cli.verbs import TASKS, VERBS
from medssl.io.configurations import FRAGMENTS, class_for, config_names
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.cli.keys import Keys
    from medssl.cli.source import Parameter
    from medssl.cli.words import Command

WIDTH, INDENT = 100, 6
CONFIG = "Name of a recipe (`medssl configs` lists them) or a YAML file. Given twice, the second changes the first."
FIRST = ("phantoms", "index", "cache", "pretrain", "finetune", "evaluate")
CLASSES = ("encoder", "objective", "head")  # whose presets are classes with options of their own
NEED_A_RECIPE = {"encoder", "objective", "head", "data", "training", "stages"}


def overview() -> str:
    """What ``medssl --help`` prints."""
    width = max(map(len, VERBS))
    lines = ["usage: medssl VERB [--config RECIPE] [--KEY VALUE ...]", ""]
    lines += ["Self-supervised pretraining on medical images, and training with few labels.", ""]
    for task in TASKS:
        lines.append(f"{task}:")
        lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items() if verb.task == task]
    lines += ["", "medssl VERB --help describes a verb, medssl configs lists recipes and presets."]
    lines += ["medssl --version prints the version.", "", "First steps:"]
    return "\n".join([*lines, *(line for verb in FIRST for line in _command(f"medssl {VERBS[verb].example}"))])


def verb_help(verb: str, keys: Keys, *, everything: bool) -> str:
    """What ``medssl VERB --help`` prints.

    Args:
        verb: The verb.
        keys: What it takes.
        everything: Show all keys, not only the basic ones.
    """
    known = VERBS[verb]
    function = function_of(known.place)
    usage = " ".join([f"usage: medssl {verb}", *(_standing(keys.parameters[key]) for key in keys.positional)])
    lines = [f"{usage} [--KEY VALUE ...]", ""]
    lines += _wrapped(summary_of(function) if function else known.summary, 0, 0)
    needed = {key: item for key, item in keys.top.items() if item.default is None and key not in keys.groups}
    recipes = {key: item for key, item in needed.items() if key in NEED_A_RECIPE}
    needed = {key: item for key, item in needed.items() if key not in recipes}
    basic = {key: keys.parameters[key] for key in known.basic if key not in {**needed, **recipes}}
    lines += ["", "Required:", *_options(needed, keys)] if needed else []
    lines += ["", "Required, usually from a recipe:", *_options(recipes, keys)] if recipes else []
    lines += ["", "Options:", *_entry("--config RECIPE", CONFIG), *_options(basic, keys)]
    rest = {key: item for key, item in keys.parameters.items() if key not in {**needed, **recipes, **basic}}
    rest = {key: item for key, item in rest.items() if key not in keys.groups or key in FRAGMENTS}
    if everything and rest:
        lines += ["", "Advanced options:", *_options(rest, keys)]
    elif rest:
        lines += ["", f"{len(rest)} advanced options: medssl {verb} --help all"]
    for key in FRAGMENTS:
        if key in keys.top:
            more = f" (medssl {verb} --{key}.help NAME lists the options of one)" if key in CLASSES else ""
            lines += ["", f"Names for --{key}{more}:"]
            lines += _wrapped(", ".join(config_names(FRAGMENTS[key])), 2, 2)
    return "\n".join([*lines, "", "Example:", *_command(f"medssl {known.example}")])


def group_help(command: Command, known: Keys) -> str:
    """What ``--objective.help NAME`` or ``--training.help`` prints; "" where the text of a class is not read.

    Raises:
        UserError: There is no such group, or NAME stands for presets of several classes.
    """
    key = command.help or ""
    if key not in CLASSES:
        inside = {name: item for name, item in known.below(key).items() if name not in known.groups}
        if not inside:
            message = f"there is no group of options --{key}"
            raise UserError(message, hint="--help all lists the options.")
        return "\n".join([*_wrapped(known.parameters[key].help, 0, 0), "", "Options:", *_options(inside, known)])
    path = class_for(key, command.name, command.config)
    keys = keys_of_class(key, path)
    if keys is None:
        return ""
    module, _, name = path.rpartition(".")
    place = definition(module, name)
    about = summary_of(place[1]) if place and isinstance(place[1], ast.ClassDef) else ""
    shown = {key: item for key, item in keys.parameters.items() if key not in keys.groups}
    return "\n".join([f"{path}", *_wrapped(about, 0, 0), "", "Options:", *_options(shown, keys)])


def default_of(parameter: Parameter) -> str:
    """The default as the command line has it; "" where it is a group or there is none."""
    if parameter.default is None:
        return ""
    _, node = value_of(parameter.module, parameter.default)
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return ""
    if isinstance(value, tuple | list):
        return ",".join(_text(item) for item in value)
    return _text(value)


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _standing(parameter: Parameter) -> str:
    """A positional key in the line of usage."""
    several = items_of(parameter.annotation) is not None
    word = f"{parameter.name.upper()} ..." if several else parameter.name.upper()
    return word if parameter.default is None else f"[{word}]"


def _options(parameters: dict[str, Parameter], keys: Keys) -> list[str]:
    """Lines on keys, each with its type, its help and its default."""
    lines = []
    for key, item in parameters.items():
        group = key in keys.groups and key not in FRAGMENTS
        kind = "" if group else f" {'NAME' if key in FRAGMENTS else metavar(item.module, item.annotation)}"
        name = f"{key.upper()}, --{key}{kind}" if key in keys.positional else f"--{key}{kind}"
        default = default_of(item)
        text = f"{item.help} Default: {default}." if default not in {"", "null"} else item.help
        lines += _entry(f"--{key}.*" if group else name, text)
    return lines


def _entry(name: str, text: str) -> list[str]:
    """Lines on an option; values in it are spelled as YAML has them."""
    for python, yaml in (("``", "`"), ("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"(?<!\w){python}(?!\w)" if python.isalpha() else python, yaml, text)
    return [f"  {name}", *_wrapped(text, INDENT, INDENT)]


def _command(text: str) -> list[str]:
    """A command on lines that a shell reads as one, broken before options."""
    lines = [""]
    for part in re.split(r" (?=--)", text):
        if lines[-1] and len(lines[-1]) + len(part) > WIDTH - 8:
            lines.append("")
        lines[-1] += f" {part}" if lines[-1] else part
    return [
        f"{'      ' if number else '  '}{line}{end}"
        for number, (line, end) in enumerate(zip(lines, [*[" \\"] * (len(lines) - 1), ""], strict=True))
    ]


def _wrapped(text: str, first: int, other: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * first, subsequent_indent=" " * other, break_on_hyphens=False)
