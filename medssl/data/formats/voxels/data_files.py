"""Files with voxels that a header names: one file, a list, or a numbered pattern; only in the folder of the header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from medssl.data.formats.base import FormatError

_MAX_FILES = 100_000
_CONVERSION = re.compile(r"%(0?)(\d{0,2})[diu]")


def plain_text(line: bytes) -> str:
    """A header line without line end; tabs become spaces, and other control characters question marks."""
    text = line.decode("utf-8", "replace").rstrip("\r\n").replace("\t", " ")
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", "?", text)


def other_than(header: Path, files: tuple[Path, ...]) -> tuple[Path, ...]:
    """Checks that the files that a header names are not the header itself.

    Raises:
        FormatError: The header is one of them.
    """
    if header in files:
        message = "its header names itself as the file of its voxels: name the right file, or none where they follow it"
        raise FormatError(message)
    return files


def inside(folder: Path, name: str) -> Path:
    """Path of a file in or below a folder.

    Raises:
        FormatError: The name leads outside the folder.
    """
    plain = name.strip().strip('"')
    posix, windows = PurePosixPath(plain), PureWindowsPath(plain)
    outside = posix.is_absolute() or bool(windows.anchor) or ".." in posix.parts or ".." in windows.parts
    if outside or not plain or plain == "-" or "\0" in plain or len(plain) > 1000:
        shown = re.sub(r"[^ -~]", "?", posix.name or plain)[:60]
        message = (
            f"its voxels lie elsewhere ({shown}): only files in the folder of the header are read; move them there"
        )
        raise FormatError(message)
    if any(len(part.encode()) > 255 for part in posix.parts):
        message = "the name of the file with its voxels is longer than 255 bytes: repair the header"
        raise FormatError(message)
    file = folder / plain
    if "\\" in plain and not file.exists():
        file = folder / plain.replace("\\", "/")
    return file


def listed(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Files of a list in a header.

    Raises:
        FormatError: There are none or too many, or one lies outside the folder.
    """
    names = [name for name in names if name.strip()]
    if not 1 <= len(names) <= _MAX_FILES:
        message = f"a list of {len(names):,} files with voxels: expected 1 to {_MAX_FILES:,}"
        raise FormatError(message)
    return tuple(inside(folder, name) for name in names)


def numbered(folder: Path, pattern: str, words: Sequence[str]) -> tuple[Path, ...]:
    """Files of a pattern such as ``slice%03d.raw``; ``words`` are the first number, the last number and the step.

    Raises:
        FormatError: The pattern has no single whole number, or the range has none or too many numbers.
    """
    conversions = list(_CONVERSION.finditer(pattern))
    if len(conversions) != 1 or pattern.count("%") != 1:
        message = "a pattern of file names with other fields than one whole number (such as %03d)"
        raise FormatError(message)
    try:
        first, last, step = (int(word) for word in (*words, "1")[:3])
    except ValueError as error:
        message = f"a pattern of file names with the range {' '.join(words)[:60]}: expected first, last and step"
        raise FormatError(message) from error
    if not step or not 0 <= (last - first) // step < _MAX_FILES:
        message = f"a pattern of file names from {first} to {last} by {step}: expected 1 to {_MAX_FILES:,} files"
        raise FormatError(message)
    zero, width = conversions[0].groups()
    number_format = f"{zero}{int(width)}d" if width else "d"
    numbers = range(first, last + (1 if step > 0 else -1), step)
    names = [
        f"{pattern[: conversions[0].start()]}{number:{number_format}}{pattern[conversions[0].end() :]}"
        for number in numbers
    ]
    return tuple(inside(folder, name) for name in names)
