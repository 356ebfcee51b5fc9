"""Shipped recipes and presets by name, and files of the same form by path, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medssl.io.documents import read_yaml
from medssl.io.suggestions import nearest
from medssl.io.trust import refuse_config
from medssl.types import UserError

FRAGMENTS = {
    **{"encoder": "encoders", "objective": "objectives", "preprocess": "data"},
    **{"head": "heads", "optimizer": "optimizers"},
}

WRITTEN = ("config.yaml", "compare.yaml")  # of runs and comparisons, which may be another's
BESIDE = ("card.json", "checkpoints", "compare.yaml", "runs")  # tells that a file lies in such a folder


def config_folder() -> Path:
    """The shipped configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names(kind: str) -> list[str]:
    """Names of the shipped files of one kind ("recipes", "encoders", ...)."""
    return sorted(path.stem for path in (config_folder() / kind).glob("*.yaml"))


def config_file(name: str, kind: str) -> Path:
    """The file that a name or a path stands for; it may be missing."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    return config_folder() / kind / f"{name}.yaml"


def verb_of(recipe: str) -> str:
    """The verb that a recipe is for, which its key "verb" says; "" where it has none or cannot be read."""
    import yaml

    try:
        content = read_yaml(config_file(recipe, "recipes"))
    except (OSError, yaml.YAMLError):
        return ""
    return str(content.get("verb", "")) if isinstance(content, dict) else ""


def summary_of(file: Path) -> str:
    """The first sentence of the comment that a configuration begins with."""
    import re

    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#  "):
            break
        lines.append(line.removeprefix("# "))
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join(lines))[0]


def load_config(name: str, kind: str, trust: frozenset[str] = frozenset(), *, changed_by: tuple[str, ...] = ()) -> Any:
    """Reads a shipped file by name, or any file by path, and puts fragments in the place of their names.

    A recipe with the key ``base`` is that recipe with changes.

    Args:
        name: Of a shipped file, or the path of a file.
        kind: Folder of the shipped files.
        trust: Import paths that the file may name.
        changed_by: Recipes whose base this one is.

    Raises:
        UserError: Neither a name nor a file, no YAML, what a run wrote with classes that are not built of others, or a
            recipe that is its own base.
    """
    import yaml

    path = config_file(name, kind)
    try:
        content = with_fragments(read_yaml(path), trust)
    except OSError as error:
        known = config_names(kind)
        message = f"no configuration {name!r} in {kind}{nearest(name, known)}; there are {', '.join(known)}"
        raise UserError(message) from error
    except yaml.YAMLError as error:
        message = f"{path.name} is no valid YAML: {' '.join(str(error).split())}"
        raise UserError(message) from error
    if path.name in WRITTEN or any((path.parent / name).exists() for name in BESIDE):
        refuse_config(content, path.name, trust)
    if kind == "recipes" and isinstance(content, dict) and "base" in content:
        base = str(content.pop("base"))
        if base in (*changed_by, name):
            message = f"{path.name} and its base are based on each other"
            raise UserError(message, key="base", got=base, hint="Name another recipe, or write all keys into the file.")
        return merged(load_config(base, kind, trust, changed_by=(*changed_by, name)), content)
    return content


def with_fragments(content: Any, trust: frozenset[str] = frozenset()) -> Any:
    """Puts fragments in the place of their names, at any depth.

    ``encoder: resenc_3d`` takes a fragment as it is, ``encoder: {base: resenc_3d, init_args: {...}}`` changes it.
    """
    if not isinstance(content, dict):
        return content
    result = {}
    for key, value in content.items():
        if is_fragment(key, value):
            result[key] = load_config(value, FRAGMENTS[key], trust)
        elif key in FRAGMENTS and isinstance(value, dict) and "base" in value:
            changes = {name: item for name, item in value.items() if name != "base"}
            result[key] = merged(load_config(value["base"], FRAGMENTS[key], trust), changes)
        else:
            result[key] = with_fragments(value, trust)
    return result


def is_fragment(key: str, value: Any) -> bool:
    """Whether a value names a fragment: a word, or a path to a YAML file, and neither inline YAML nor a class path."""
    if key not in FRAGMENTS or not isinstance(value, str) or value.lstrip().startswith("{") or value in {"null", ""}:
        return False
    return "." not in value or value.endswith((".yaml", ".yml"))


def class_for(key: str, name: str, base: dict[str, Any]) -> str:
    """Import path of a class whose keys are asked for: by its own path, as a preset, or that of the recipe.

    "spark" stands for the presets spark_2d and spark_3d, as both are of one class.
    """
    if not name or not is_fragment(key, name):
        content = name or base.get(key)
    else:
        presets = config_names(FRAGMENTS[key])
        sizes = [] if name in presets else [preset for preset in presets if preset.startswith(f"{name}_")]
        made = [load_config(preset, FRAGMENTS[key]) for preset in sizes or [name]]
        if len({one["class_path"] for one in made}) > 1:
            message = f"several presets begin with {name!r}: give one of {', '.join(sizes)}"
            raise UserError(message)
        content = made[0]
    return str(content.get("class_path", "") if isinstance(content, dict) else content or "")


def load_recipe(name: str, trust: frozenset[str] = frozenset(), verb: str = "") -> dict[str, Any]:
    """A whole recipe, without its key "verb".

    Args:
        name: Of a shipped recipe, or the path of a file.
        trust: Import paths that the file may name.
        verb: The verb that reads it; "" takes a recipe for any verb.

    Raises:
        UserError: The file holds no keys, or is for another verb (comparisons take those of fine-tuning).
    """
    content = load_config(name, "recipes", trust)
    if not isinstance(content, dict):
        message = f"{Path(name).name} holds no keys: a recipe is a YAML mapping of arguments"
        raise UserError(message)
    content = _options_of_run(content)
    meant = str(content.pop("verb", ""))
    if meant and verb and verb != meant and (verb, meant) != ("compare", "finetune"):
        message = f"{name} is a recipe of medssl {meant}, not of medssl {verb}"
        raise UserError(message)
    return content


def _options_of_run(content: dict[str, Any]) -> dict[str, Any]:
    """Options of a verb out of ``config.yaml`` of a run, which holds what was used and not where it lay.

    Raises:
        UserError: The run learned from pseudo-labels, whose folder is not known.
    """
    options = {key: value for key, value in content.items() if key != "start"}
    if content.get("start") not in {None, "random", "pretrained"}:  # neither random weights nor the encoder's own
        options.setdefault("pretrained", content["start"])
    pseudo = options.get("pseudo", {})
    if pseudo is None:
        del options["pseudo"]
    elif isinstance(pseudo, dict) and "teacher" in pseudo:
        message = f"pseudo holds the digest {pseudo['teacher']} of the network that made the labels, and no folder"
        raise UserError(message, hint="Remove the key pseudo from the file and give pseudo.labels, their folder.")
    return options


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A configuration changed by another; a value that names its class replaces the former one as a whole."""
    result = dict(base)
    for key, value in change.items():
        former = result.get(key)
        whole = isinstance(value, dict) and ("class_path" in value or key == "preprocess")
        inside = isinstance(former, dict) and isinstance(value, dict) and not whole
        result[key] = merged(former or {}, value) if inside else value
    return result
