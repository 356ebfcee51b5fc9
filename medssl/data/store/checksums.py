"""Checksums of a store: of pieces of its files, of the rows of its table, and of the table and description as files.

A piece is what is checked when any of it is read: a chunk of a blosc2 file, 64 KiB of a raw one, an array of a pack.
All are CRC-32, which finds every error of one bit and of bursts up to 32 bits. A store of an older version has none and
is read as before.
"""

from __future__ import annotations

import json
import mmap
import os
import sqlite3
import zlib
from collections import OrderedDict
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.io.sqlite import refuse_programs
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

PIECE = 1 << 16  # bytes of a piece of a raw file
ENTRY = np.dtype([("end", "<u8"), ("sum", "<u4")])
TABLE = "CREATE TABLE IF NOT EXISTS checksums (scan_id PRIMARY KEY, row, details, image, label) WITHOUT ROWID;"
SEAL = "checksums.json"  # of the files below, written when a run of the cache ends; a run takes it away first
SEALED = ("records.sqlite", "store.json")
REMEMBERED = 4096  # files whose compared pieces a process remembers: a byte for each piece
MARKS = ".damaged"  # folder with an empty file for each scan whose bytes were damaged when they were read


class DamagedError(ValueError):
    """Bytes that are no longer those that were written."""


@cache
def _crc32() -> Callable[..., int]:
    """CRC-32 of libdeflate, ten times as fast as that of zlib, where it is there."""
    import imagecodecs

    function: Callable[..., int] = imagecodecs.deflate_crc32 if imagecodecs.DEFLATE.available else zlib.crc32
    return function


def checksum(data: Any, before: int = 0) -> int:
    """CRC-32 of bytes that follow those with the checksum ``before``."""
    return int(_crc32()(data, before)) if len(data) else before


# --- pieces of files


def entries(ends: Sequence[int], sums: Sequence[int]) -> bytes:
    """What the table holds of a file: where each piece ends, its checksum, and a checksum of all this."""
    array = np.zeros(len(ends), ENTRY)
    array["end"], array["sum"] = ends, sums
    data = array.tobytes()
    return data + checksum(data).to_bytes(4, "little")


def of_chunks(content: bytes, chunks: Iterable[bytes]) -> bytes:
    """Entries of a blosc2 file: its header, each chunk, its trailer.

    A chunk that is not stored (all zeros, say) is an empty piece; a file of another order of chunks is one piece.
    """
    ends = [int.from_bytes(content[11:15], "big")]  # length of the header: blosc2, README_CFRAME_FORMAT
    for chunk in chunks:
        stored = content.startswith(chunk, ends[-1])
        ends.append(ends[-1] + (len(chunk) if stored else 0))
    ends = [*ends, len(content)] if ends[-1] <= len(content) else [len(content)]
    view = memoryview(content)
    return entries(ends, [checksum(view[a:b]) for a, b in zip([0, *ends], ends, strict=False)])


def of_raw(head: bytes, data: NDArray[np.uint8]) -> bytes:
    """Entries of a raw file, which begins with ``head`` and goes on with ``data``."""
    size = len(head) + len(data)
    ends = [*range(PIECE, size, PIECE), size]
    view = data.data
    sums = [checksum(view[: ends[0] - len(head)], checksum(head))]
    sums += [checksum(view[a - len(head) : b - len(head)]) for a, b in pairwise(ends)]
    return entries(ends, sums)


def of_packed(data: bytes) -> bytes:
    """Entries of an array in a pack, or nothing of none."""
    return entries([len(data)], [checksum(data)]) if data else b""


class Pieces:
    """The pieces of one file; each is compared with its checksum when a process first asks for it.

    Raises:
        OSError: The file cannot be opened.
        DamagedError: It has another length, or the entries are damaged.
    """

    def __init__(self, path: Path, known: bytes) -> None:
        self.name = path.name
        self.ends, self.sums = _parsed(known, path.name)
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if not len(self.ends) or about.st_size != self.ends[-1]:
                written = self.ends[-1] if len(self.ends) else 0
                message = f"{path.name} has {about.st_size:,} bytes, {written:,} were written"
                raise DamagedError(message)
            self.view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.due = _due((about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size), len(self.ends))

    def __len__(self) -> int:
        return len(self.ends)

    def check(self, numbers: Iterable[int]) -> None:
        """Compare pieces with their checksums, as far as this process has not done it.

        Raises:
            DamagedError: One differs.
        """
        for number in numbers:
            if self.due[number]:
                self._compare(number)
                self.due[number] = 0

    def check_all(self) -> None:
        """Compare every piece, whether it was before or not."""
        for number in range(len(self)):
            self._compare(number)

    def _compare(self, number: int) -> None:
        first, end = int(self.ends[number - 1]) if number else 0, int(self.ends[number])
        if checksum(self.view[first:end]) != self.sums[number]:
            message = f"the checksum of bytes {first:,} to {end:,} of {self.name} differs"
            raise DamagedError(message)


_REMEMBERED: OrderedDict[tuple[int, ...], bytearray] = OrderedDict()


def _due(file: tuple[int, ...], count: int) -> bytearray:
    """Which pieces of a file this process still has to compare; forgotten for files that were long not opened."""
    due = _REMEMBERED.setdefault(file, bytearray(b"\1") * count)
    _REMEMBERED.move_to_end(file)
    if len(_REMEMBERED) > REMEMBERED:
        _REMEMBERED.popitem(last=False)
    return due if len(due) == count else bytearray(b"\1") * count


def check_packed(data: bytes, known: bytes, name: str) -> None:
    """Compare an array of a pack with its entries.

    Raises:
        DamagedError: It differs.
    """
    ends, sums = _parsed(known, name)
    if len(ends) != 1 or len(data) != ends[0] or checksum(data) != sums[0]:
        message = f"the checksum of {len(data):,} bytes in {name} differs"
        raise DamagedError(message)


def _parsed(known: bytes, name: str) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    if len(known) % ENTRY.itemsize != 4 or checksum(known[:-4]) != int.from_bytes(known[-4:], "little"):
        message = f"the checksums of {name} are damaged themselves"
        raise DamagedError(message)
    array = np.frombuffer(known[:-4], ENTRY)
    return array["end"], array["sum"]


# --- the table


def of_row(row: Sequence[Any]) -> int:
    """Checksum of values of a row: texts, bytes and whole numbers."""
    return zlib.crc32(repr(tuple(row)).encode())


def has_table(connection: sqlite3.Connection) -> bool:
    """Whether a table of records has checksums beside it: an older version wrote none."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'checksums'"
    return connection.execute(query).fetchone() is not None


class Entries:
    """Reads the entries of single scans from the table of a store, with a connection of each process's own."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table, "_connection": None, "_process": 0}

    def of(self, scan_id: str, part: str) -> bytes:
        """Entries of a scan (``part`` "label": of its label), or nothing where there are none."""
        try:
            if self._process != os.getpid():
                self._connect()
            if self._connection is None:
                return b""
            query = f"SELECT {part or 'image'} FROM checksums WHERE scan_id = ?"
            row = self._connection.execute(query, (scan_id,)).fetchone()
        except sqlite3.DatabaseError as error:
            message = f"{self.table.name} cannot be read ({error})"
            raise DamagedError(message) from error
        return bytes(row[0]) if row else b""

    def _connect(self) -> None:
        self._process, where = os.getpid(), f"{self.table.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(where, uri=True, timeout=120, check_same_thread=False)
        refuse_programs(connection, self.table.name)
        self._connection = connection if has_table(connection) else None


# --- table and description as files


def seal(store: Path) -> None:
    """Write down the checksums of the table and the description, which nobody changes until the next run."""
    from medssl.io.atomic_write import atomic_write

    text = json.dumps({name: _state(store / name) for name in SEALED}, indent=1)
    atomic_write(store / SEAL, lambda file: file.write(text.encode()))


def unseal(store: Path) -> None:
    """Take the checksums of table and description away, before either is changed."""
    (store / SEAL).unlink(missing_ok=True)


def broken(store: Path, names: Sequence[str] = SEALED) -> tuple[str, ...]:
    """Which of the files are not what they were sealed as; none where there is no seal.

    The file of the checksums is named itself where it makes no sense.
    """
    try:
        text = (store / SEAL).read_bytes()
    except OSError:
        return ()
    try:
        known = json.loads(text)
        states = {name: known[name] for name in SEALED}
        whole = len(known) == len(SEALED) and json.dumps(states, indent=1).encode() == text
    except (ValueError, LookupError, TypeError):
        whole = False
    differing = (SEAL,) if not whole else tuple(name for name in names if states[name] != _state(store / name))
    with suppress(OSError):
        if differing and (store / SEAL).read_bytes() == text:  # else a run has begun meanwhile
            return differing
    return ()


def _state(path: Path) -> list[int]:
    """Size and checksum of a file."""
    try:
        content = path.read_bytes()
    except OSError:
        return [-1, 0]
    return [len(content), checksum(content)]


def refuse_broken(store: Path, name: str) -> None:
    """Refuse a store whose table or description is not what it was when the last run of the cache ended.

    Raises:
        UserError: Names the file.
    """
    if damaged := broken(store, (name,)):
        message = (
            f"{store}: {damaged[0]} is damaged (its checksum differs): cache the index again with the same index and "
            "store, which repairs it"
        )
        raise UserError(message)


# --- scans found damaged


def mark(store: Path, scan_id: str) -> None:
    """Note that a scan was damaged when it was read, for the next run of the cache; nothing on a read-only disk."""
    with suppress(OSError):
        (store / MARKS).mkdir(mode=0o700, exist_ok=True)
        (store / MARKS / scan_id).touch(mode=0o600)


def marked(store: Path) -> tuple[str, ...]:
    """Scans that were damaged when they were read."""
    try:
        return tuple(sorted(path.name for path in (store / MARKS).iterdir()))
    except OSError:
        return ()
