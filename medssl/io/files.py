"""Files: written whole or not at all (beside their place, brought to the disk, then renamed), locked, and read.

What lies in a folder may have been put there by others: no link is followed where a file is opened for writing, and
text that is parsed has a largest size.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JSON_BYTES, YAML_BYTES = 128 << 20, 4 << 20  # largest files that are parsed
YAML_VALUES = 100_000  # largest number of values, with those that aliases repeat
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole(*paths: Path) -> Iterator[tuple[IO[bytes], ...]]:
    """Opens files that take their places when the block ends, all of them complete before the first is renamed.

    A block that raises leaves what was there before. A process that is killed leaves ``.NAME.*.part`` files besides:
    whoever owns the folder may delete them.

    Raises:
        OSError: The disk refuses a file.
    """
    parts = [path.with_name(f".{path.name}.{secrets.token_hex(4)}.part") for path in paths]
    try:
        with ExitStack() as stack:
            files = tuple(stack.enter_context(part.open("xb")) for part in parts)
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: The disk is full or refuses the file; the former file is untouched.
    """
    with refusals(path), whole(path) as (file,):
        write(file)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Says which file the disk refused, why, and what to do.

    Raises:
        UserError: The block met an OSError, or an error of torch that hides one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps a failing write into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        full = cause.errno in FULL
        room = f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free" if full else ""
        message = (
            f"{path.name} could not be written ({cause.strerror or cause}{room}): the file that was there before is "
            f"intact; {'make room' if full else 'check the folder'} and run the same command to continue"
        )
        raise UserError(message) from error


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network shares cannot do it for folders
            raise
    finally:
        os.close(handle)


# --- locks, and files that grow


def open_lock(file: Path) -> IO[str]:
    """Opens a lock file, made where there is none; neither its content nor that of another file is touched.

    Raises:
        UserError: The file is a link.
    """
    return os.fdopen(_without_links(file, os.O_RDWR | os.O_CREAT), "w")  # a descriptor is not emptied


def open_to_append(file: Path) -> IO[bytes]:
    """Opens a file for lines at its end, made where there is none.

    Raises:
        UserError: The file is a link.
    """
    return os.fdopen(_without_links(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def _without_links(file: Path, flags: int) -> int:
    try:
        return os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        message = f"{file.name} in {file.parent.name}/ is a link to another file: delete it and run the command again"
        raise UserError(message) from error


# --- text of others


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
    return content


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
