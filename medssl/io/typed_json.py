"""JSON as values of annotated types: dataclasses, tuples, mappings, literals and plain values, checked on the way."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medssl.types import UserError


def build(kind: Any, data: Any, where: str) -> Any:
    """``data`` as a value of the annotated type ``kind``; ``where`` is what messages name."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, data, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if data is None else build(next(k for k in inner if k is not NoneType), data, where)
    if origin is tuple and isinstance(data, list):
        kinds = [inner[0]] * len(data) if len(inner) == 2 and inner[1] is ... else inner
        return tuple(build(k, value, f"{where}[{n}]") for n, (k, value) in enumerate(zip(kinds, data, strict=True)))
    if origin is dict and isinstance(data, dict):
        return {key: build(inner[1], value, f"{where}.{key}") for key, value in data.items()}
    if kind is Any or (data in inner if origin is Literal else _is_plain(data, kind)):
        return data
    message = f"{where} holds {data!r}: expected {getattr(kind, '__name__', kind)}"
    raise UserError(message)


def _is_plain(data: Any, kind: Any) -> bool:
    """Whether a JSON value is of a plain type; whole numbers are numbers, truth values are not."""
    if isinstance(data, bool):
        return kind is bool
    return isinstance(data, (int, float) if kind is float else kind)


def _build_dataclass(kind: type, data: Any, where: str) -> Any:
    """A dataclass of a mapping with its field names."""
    names = [field.name for field in fields(kind)]
    if not isinstance(data, dict) or (unknown := [key for key in data if key not in names]):
        got = f"unknown key {unknown[0]}" if isinstance(data, dict) else repr(data)
        message = f"{where}: {got}; a {kind.__name__} has {', '.join(names)}"
        raise UserError(message)
    required = [entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING]
    if missing := [name for name in required if name not in data]:
        message = f"{where}: without {', '.join(missing)} this is no {kind.__name__}: expected what medssl wrote there"
        raise UserError(message)
    hints = get_type_hints(kind)
    return kind(**{key: build(hints[key], value, f"{where}: {key}") for key, value in data.items()})
