"""The verb ``configs``: list, show, copy and check the recipes and presets that come with the package."""

from __future__ import annotations

import logging
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

from medssl.io.configurations import FRAGMENTS, config_file, config_folder, config_names, summary_of, verb_of
from medssl.io.safe_path import python_command
from medssl.io.suggestions import nearest
from medssl.types import UserError

log = logging.getLogger(__name__)

KINDS = ("recipes", *FRAGMENTS.values())
NEEDED = {"pretrain": ("encoder", "objective"), "finetune": ("head", "data"), "stages": ("stages",)}  # by verb
WIDTH = 100


@dataclass(frozen=True)
class ConfigsResult:
    """Recipes and presets.

    Attributes:
        file: The configuration that was shown, copied or checked, or its copy; None where all were listed.
        names: Names of the recipes and presets that were listed, such as "recipes/spark_3d".
        exit_code: 0; 2 where the recipe that was checked is wrong.
    """

    file: Path | None = None
    names: tuple[str, ...] = ()
    exit_code: int = 0


def configs(*, show: str = "", copy: tuple[str, Path] | None = None, validate: Path | None = None) -> ConfigsResult:
    """List recipes and presets; or show, copy or check one.

    A recipe is a whole configuration of one verb. A preset is one part of it, such as an encoder.

    Args:
        show: Print this recipe or preset. Where both have the name, a preset takes its kind: objectives/spark_3d.
        copy: Copy this recipe or preset to a new file, to change it there: NAME FILE.
        validate: Check this recipe: its keys, the types of its values, its classes. Nothing is trained.

    Returns:
        The file that was shown, copied or checked, or the names of all.

    Raises:
        UserError: No configuration has the name, the new file exists already, or the recipe has no verb.
    """
    if validate is not None:
        return ConfigsResult(validate, exit_code=check(validate))
    if copy is not None:
        name, target = copy
        if target.exists():
            message = f"{target} exists already"
            raise UserError(message, key="copy", hint="Choose another file.")
        target.write_bytes(shipped(name, "copy").read_bytes())
        log.info(f"{target}: a copy of {name}; use it with --config {target}" if is_recipe(name) else f"{target}")
        return ConfigsResult(target)
    if show:
        file = shipped(show, "show")
        log.info(file.read_text(encoding="utf-8").rstrip())
        return ConfigsResult(file)
    log.info("\n".join(listing()))
    return ConfigsResult(names=tuple(f"{kind}/{name}" for kind in KINDS for name in config_names(kind)))


def listing() -> list[str]:
    """Lines on all recipes by verb, and all presets by kind, each with the first sentence of its comment."""
    groups: dict[str, list[Path]] = {}
    for name in config_names("recipes"):
        groups.setdefault(f"Recipes for medssl {verb_of(name)} (--config NAME)", []).append(file_of("recipes", name))
    for key, kind in FRAGMENTS.items():
        title = f"Presets: {kind} (--{key} NAME)"
        groups[title] = [file_of(kind, name) for name in config_names(kind)]
    width = max(len(file.stem) for files in groups.values() for file in files)
    lines: list[str] = []
    for title, files in groups.items():
        lines += ["", title] if lines else [title]
        for file in files:
            text = textwrap.wrap(summary_of(file), WIDTH - width - 4)
            lines += [f"  {name:<{width}}  {part}" for name, part in zip([file.stem, *[""] * 9], text, strict=False)]
    return lines


def file_of(kind: str, name: str) -> Path:
    """The shipped file of a kind and name."""
    return config_folder() / kind / f"{name}.yaml"


def is_recipe(name: str) -> bool:
    """Whether a name is that of a recipe."""
    return name.removeprefix("recipes/") in config_names("recipes")


def shipped(name: str, key: str) -> Path:
    """The file that ``NAME`` or ``KIND/NAME`` stands for; a recipe comes before a preset of the same name.

    Raises:
        UserError: There is none.
    """
    kind, _, last = name.rpartition("/")
    for one in KINDS:
        if kind in {"", one} and last in config_names(one):
            return file_of(one, last)
    names = [name for one in KINDS for name in config_names(one)]
    message = f"no recipe and no preset has this name{nearest(last, names)}"
    raise UserError(message, key=key, got=name, hint="Without options, `configs` lists the names.")


def check(file: Path) -> int:
    """Checks a recipe by the parser of its verb, in a process of its own; returns its exit code.

    Raises:
        UserError: The recipe has no verb, or lacks a part that the verb needs.
    """
    import yaml

    name = str(file)
    if not config_file(name, "recipes").is_file():
        message = "no such file"
        raise UserError(message, key="validate", got=name)
    verb = verb_of(name)
    if verb not in NEEDED:
        message = f"{file.name} has no verb"
        raise UserError(message, key="validate", hint=f"Add the key `verb` with one of {', '.join(NEEDED)}.")
    command = [*python_command(), "-m", "medssl", verb, "--config", name, "--print_config"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    config = yaml.safe_load(done.stdout)
    missing = [key for key in NEEDED[verb] if not config.get(key)]
    if missing:
        message = f"{file.name} lacks {' and '.join(missing)}, which {verb} needs"
        raise UserError(message, key="validate")
    log.info(f"{file.name}: a valid recipe for {verb}")
    return 0
