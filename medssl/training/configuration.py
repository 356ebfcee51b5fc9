"""A resolved configuration as plain data."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from medssl.types import Imported, UserError


def as_data(value: Any, name: str = "") -> Any:
    """Turns arguments into what YAML and JSON hold; a ``functools.partial`` of a class into its path and arguments.

    Raises:
        UserError: A value that cannot be written down, such as a lambda or a finished module.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_data(getattr(value, f.name), f"{name}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, type):
        return {"class_path": f"{value.__module__}.{value.__qualname__}", "init_args": {}}
    if isinstance(value, functools.partial) and (made := class_of(value)):
        arguments = {key: as_data(item, f"{name}.{key}") for key, item in value.keywords.items()}
        return as_data(made) | {"init_args": arguments}
    if isinstance(value, dict):
        return {str(key): as_data(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(item, name) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    message = f"{name.lstrip('.')} cannot be written into config.yaml: give a class, or functools.partial(class, ...)"
    raise UserError(message)


def class_of(value: Any) -> type | None:
    """The class that is a value itself, or that a ``functools.partial`` makes; None of anything else."""
    if isinstance(value, functools.partial):
        # the command line's partial holds the class among its arguments, a user's own is of the class itself
        return next((item for item in (value.func, *value.args) if isinstance(item, type)), None)
    return value if isinstance(value, type) else None


def imported(config: dict[str, Any]) -> Imported:
    """The class and arguments that a configuration names."""
    return Imported(config["class_path"], config["init_args"])
