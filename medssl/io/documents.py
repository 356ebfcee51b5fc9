"""JSON and YAML files that may be of others: plain values, of a largest size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from medssl.io.older_keys import with_present_keys, with_present_options

if TYPE_CHECKING:
    from pathlib import Path

JSON_BYTES, YAML_BYTES = 128 << 20, 4 << 20  # largest files that are parsed
YAML_VALUES = 100_000  # largest number of values, with those that aliases repeat


def read_json(file: Path) -> Any:
    """Reads a JSON file of at most ``JSON_BYTES``.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON, nested too deeply, or too large.
    """
    text = _read_small(file, JSON_BYTES)
    try:
        return json.loads(text)
    except RecursionError as error:
        message = "nested too deeply"
        raise ValueError(message) from error


def read_yaml(file: Path) -> Any:
    """Reads plain values of a YAML file of at most ``YAML_BYTES``, and ``YAML_VALUES`` with what aliases repeat.

    Keys of earlier versions become those of today (``older_keys``).

    Raises:
        OSError: It cannot be read.
        yaml.YAMLError: It is no YAML of plain values, too large, or nested too deeply.
    """
    import yaml

    try:
        content = yaml.load(_read_small(file, YAML_BYTES), _yaml_loader())
        count = _count(content, {})
    except RecursionError as error:
        message = "nested too deeply"
        raise yaml.YAMLError(message) from error
    except ValueError as error:  # not text, or values such as a 99th of May
        raise yaml.YAMLError(str(error)) from error
    if count > YAML_VALUES:
        message = f"more than {YAML_VALUES:,} values, counting those that its aliases repeat"
        raise yaml.YAMLError(message)
    return with_present_options(with_present_keys(content))


def _yaml_loader() -> Any:
    """YAML's safe loader, which also refuses a key that stands twice in one mapping: the last would win silently."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and key.tag != "tag:yaml.org,2002:merge":
                    problem = f"the key {key.value!r} stands in line {lines[name]} and again in line {line}"
                    raise yaml.constructor.ConstructorError(None, None, problem)
                lines[name] = line
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    return Loader


def _read_small(file: Path, largest: int) -> str:
    with file.open("rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        message = f"larger than {largest >> 20} MiB"
        raise ValueError(message)
    return data.decode()


def _count(content: Any, known: dict[int, int]) -> int:
    """Values in nested plain data; what several places share counts each time, but is gone through once."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = YAML_VALUES + 1  # for what holds itself
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(content)]
