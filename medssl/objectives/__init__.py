"""Self-supervised objectives: one file for each paper. The classes are also attributes of this package."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Finds the class of an objective in the files of this folder: ``medssl.objectives.SparK``."""
    if found := None if name.startswith("_") else _classes().get(name):
        return found
    message = f"module 'medssl.objectives' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted(_classes())


def _classes() -> dict[str, type]:
    """Every objective by the name of its class."""
    import importlib
    import pkgutil

    base = importlib.import_module("medssl.objectives.base").Objective
    modules = [importlib.import_module(f"medssl.objectives.{one.name}") for one in pkgutil.iter_modules(__path__)]
    return {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and kind.__module__ == module.__name__
    }
