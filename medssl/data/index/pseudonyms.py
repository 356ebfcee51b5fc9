"""Pseudonyms: keyed hashes in place of patient and study identifiers.

The institution has one key. It is made on first use, stays in a separate file (mode 0600) away from indexes, runs and
scans, and is never printed: without it nobody can test names against the hashes (keyed BLAKE2b, RFC 7693, 2015).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medssl.types import UserError

KEY_BYTES = 32


def default_key_file() -> Path:
    """The key file where none is given."""
    return Path.home() / ".config" / "medssl" / "key"


def load_key(file: Path | None, *, away_from: Iterable[Path] = ()) -> bytes:
    """Read the institution's key; make one where none exists.

    Args:
        file: The key file; None takes ``~/.config/medssl/key``.
        away_from: Folders that travel (index, runs, scans): a key inside one of them is refused.

    Raises:
        UserError: The key lies in a folder that travels, others can read it, or it is no key.
    """
    file = (file or default_key_file()).expanduser()
    inside = [folder for folder in away_from if _inside(file, folder)]
    if inside:
        message = f"the key {file} lies inside {inside[0]}, which may be passed on"
        raise UserError(message, key="files.key", hint="Choose a file outside of it")
    try:
        if not file.exists():
            _make_key(file)
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            message = f"others can read the key {file}"
            raise UserError(message, key="files.key", hint="Run chmod 600 on it")
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        message = f"the key {file} cannot be opened ({error.strerror})"
        raise UserError(message, key="files.key", hint="Choose another file") from error
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        message, expected = f"{file} is no key", f"{2 * KEY_BYTES} hexadecimal digits"
        raise UserError(message, key="files.key", expected=expected, hint="Delete it, and a new key is made")
    return bytes.fromhex(text)


def _inside(file: Path, folder: Path) -> bool:
    """Whether ``file`` lies in ``folder``; a folder that holds the whole home directory does not count."""
    file, folder = file.resolve(), folder.resolve()
    return file.parent == folder or (file.is_relative_to(folder) and not Path.home().is_relative_to(folder))


def _make_key(file: Path) -> None:
    """Write a new key whole or not at all; the first of two processes wins."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(beside, file)
        except FileExistsError:
            return
    finally:
        beside.unlink()


def keyed_digest(key: bytes, *words: str) -> str:
    """Hash of ``words`` under ``key``: 16 hexadecimal digits; the borders between words count."""
    state = hashlib.blake2b(digest_size=8, key=key)
    for word in words:
        encoded = word.encode("utf-8", "surrogateescape")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return state.hexdigest()


def fingerprint(key: bytes) -> str:
    """What an index keeps to notice another key."""
    return keyed_digest(key, "fingerprint")


def patient_digest(key: bytes, patient_id: str) -> str:
    """Digest of a DICOM PatientID: the same patient in every data set."""
    return keyed_digest(key, "patient", patient_id.strip())


@dataclass(frozen=True)
class SubjectRule:
    """How the subject of a scan is recognized.

    ``rule`` is "dicom" (PatientID), "column:NAME" (a column of the table of values), or a regular expression with one
    group that is searched in the path below the directory that was indexed.
    """

    rule: str = "dicom"

    def __post_init__(self) -> None:
        if self.rule == "dicom" or self.column:
            return
        try:
            groups = re.compile(self.rule).groups
        except re.error as error:
            message = f"is no regular expression: {error}"
            raise UserError(message, key="subject", got=self.rule) from error
        if groups != 1:
            expected = "one group, in parentheses around the subject's name, or 'dicom', or 'column:NAME'"
            message = f"has {groups} groups"
            raise UserError(message, key="subject", got=self.rule, expected=expected)

    @property
    def column(self) -> str:
        """Name of the column, or nothing where the rule is another."""
        return self.rule.removeprefix("column:") if self.rule.startswith("column:") else ""

    def name_in(self, path: str) -> str:
        """The subject's name as it stands in ``path``, or nothing."""
        if self.rule == "dicom" or self.column:
            return ""
        match = re.search(self.rule, path)
        return (match.group(1) or "") if match else ""


def named_digest(key: bytes, dataset: str, name: str) -> str:
    """Digest of a subject that a path or a table names: such a name is unique only within its data set."""
    return keyed_digest(key, "subject", dataset, name)
