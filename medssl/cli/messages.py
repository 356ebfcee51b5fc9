"""What the command line says of a mistake: one line in the user's words, with the nearest name that there is."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.io.suggestions import nearest

if TYPE_CHECKING:
    from collections.abc import Collection

    from jsonargparse import ArgumentParser

GONE = {  # keys that were once there, and what does their work
    "pretrained_file": "leave it out; --pretrained FILE loads weights of a file",
}
FORMER = {  # keys of earlier versions, and what takes their place
    "allow_seen": "allow seen",
    "init": "pretrained",
    "init_minimum": "pretrained_minimum",
    "labels.": "label.",
}
PARSER_WORDS = (  # what the parser says of its own workings, and what the user reads instead
    (r"Does not validate against .*|Subtypes: .*|Errors:|Given value type: .*|Given value: NestedArg.*", ""),
    (
        r"- Expected a <class 'NoneType'>|Type collections.abc.Callable.* callable class:|\.? Got value: Namespace\(.*",
        "",
    ),
    (r"(- )?Expected a <class 'tuple'>", "Expected a list in brackets"),
    (r"(- )?Expected a typing\.Literal(\[.*?\])", r"Expected one of \2"),
    (r"(- )?Expected a <class '(.*?)'>", r"Expected a value of type \2"),
    (r"Not of type Imported:.*", "Expected an import path, or class_path and init_args"),
    (r"\s+Given value:", ". Got value:"),
)


def trouble(error: OSError | sqlite3.OperationalError) -> str:
    """One line on what the system refused (a full disk, a folder without permission), or nothing for other errors."""
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) and error.filename:
        path = Path(error.filename)
        if isinstance(error, IsADirectoryError):
            return f"{path} is a folder, a file is expected: name a file in it"
        file = next((one for one in (path, *path.parents) if one.is_file()), path)
        return f"{file} is a file, a folder is expected: choose another name"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}" if error.errno else ""
    refused = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    if error.sqlite_errorcode & 0xFF not in (*refused, sqlite3.SQLITE_BUSY):
        return ""
    return f"SQLite says: {error}; check the room on the disk, the permissions, and who else works in that folder"


def unknown_key(key: str, known: Collection[str], standing: Collection[str] = ()) -> str:
    """One line on a key that a verb does not take; ``standing`` ones are known and take no flag."""
    if (key not in known) and (now := renamed(key)):
        return f"--{key} is now --{now}"
    if remedy := GONE.get(key.rpartition(".")[2]):
        return f"unknown key {key!r}: {remedy}"
    if key in known or key in standing:
        return f"{key!r} stands without a flag: leave --{key} out, not its value"
    return f"unknown key {key!r}{nearest(key, sorted(known)) or ': --help lists the keys'}"


def renamed(key: str) -> str:
    """What takes the place of a key of an earlier version; "" of other keys."""
    if key in FORMER:
        return FORMER[key]
    group, _, rest = key.partition(".")
    return f"{FORMER[f'{group}.']}{rest}" if rest and f"{group}." in FORMER else ""


def explain(message: str, parser: ArgumentParser) -> str:
    """Turns the parser's message into one line that names the key, and the nearest known one where it is unknown."""
    import re

    patterns = (
        r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'",
        r"Option '(?P<key>[^']+)' is not accepted",
        r"unrecognized arguments: --(?P<key>[^\s=]+)",
    )
    where = re.search(r'Parser key "(?P<parent>[^"]+)"', message)
    for pattern in patterns:
        found = re.search(pattern, message)
        if found is None:
            continue
        parts = (where and where["parent"], found.groupdict().get("group"), found["key"])
        key = ".".join(part for part in parts if part)
        class_path = re.search(r"class_path[= ]'([^']+)'", message)
        known = set(parser.get_defaults().keys())
        if class_path is not None and parts[0]:
            known |= argument_names(class_path[1], parts[0])
        return unknown_key(key, known)
    *_, reason = re.split(r'Parser key "[^"]+":', message)
    keys = re.findall(r'Parser key "([^"]+)"', message)
    for pattern, replacement in PARSER_WORDS:
        reason = re.sub(pattern, replacement, reason)
    return " ".join([f'key "{".".join(keys)}":' if keys else "", *reason.split()]).strip()


def argument_names(class_path: str, key: str) -> set[str]:
    """The keys below ``key`` that a class accepts; none where it cannot be read."""
    import importlib

    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    try:
        made = getattr(importlib.import_module(module), name)
        parser.add_class_arguments(made, key, skip={"encoder", "schema"}, fail_untyped=False)
    except (ImportError, AttributeError, NameError, ValueError, TypeError):
        return set()
    return set(parser.get_defaults().keys())
