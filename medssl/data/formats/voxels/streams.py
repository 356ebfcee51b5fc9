"""Reads bytes of files, compressed or plain. The first bytes determine the compression, never the name.

Checksums of gzip, zlib, bzip2 and xz are verified: reading continues to the end of the stream that holds the last
needed byte. Bytes behind that stream are ignored.
"""

from __future__ import annotations

import bz2
import lzma
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medssl.data.formats.base import FormatError

_MAGIC = {  # first bytes of packed files
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x9d": "compress",
    b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z",
}  # fmt: skip
_NOT_READ = ("zstd", "compress", "zip", "7z")
_BLOCK = 1 << 20
_MAX_FOLLOWING = 1 << 26  # largest number of bytes after the voxels that are unpacked to reach the checksum
_MAX_MEMORY = 1 << 28  # of xz: its streams say how much they need
_MAX_GZIP_RATIO = 1032  # bytes that one packed byte of gzip or zlib can stand for


@dataclass(frozen=True)
class Source:
    """Location of bytes in a file.

    Attributes:
        path: The file.
        offset: First byte in the file.
        packing: Compression from there on; "" for plain bytes.
        skip: Number of unpacked bytes to skip.
        companion: Whether the file is another one than that of the header; messages then name it.
    """

    path: Path
    offset: int = 0
    packing: str = ""
    skip: int = 0
    companion: bool = False

    @property
    def prefix(self) -> str:
        """Prefix of messages about this file."""
        return f"{self.path.name}: " if self.companion else ""


def packed_with(first: bytes) -> str:
    """Compression by the first bytes, also if it is not supported; "" for plain files."""
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), "")


def gzip_beginning(first: bytes, count: int) -> bytes:
    """The first ``count`` bytes (or fewer) inside a gzip file, from the first bytes of the file."""
    try:
        return zlib.decompressobj(31).decompress(first, count)
    except zlib.error:
        return b""


def packing_of(first: bytes) -> str:
    """Compression by the first bytes; "" for plain files.

    Raises:
        FormatError: The compression is not supported.
    """
    name = packed_with(first)
    if name in _NOT_READ:
        message = f"packed with {name}: only gzip, bzip2 and xz are read; unpack it or pack it with gzip"
        raise FormatError(message)
    return name


def first_bytes(path: Path, count: int) -> tuple[bytes, str]:
    """The first ``count`` bytes (or fewer) of a file after unpacking, and its compression."""
    with path.open("rb") as stream:
        first = stream.read(max(count, 4096))
    packing = packing_of(first)
    if not packing:
        return first[:count], ""
    if packing == "gzip":
        beginning = gzip_beginning(first, count)
        if len(beginning) == count:
            return beginning, packing
    content = bytearray()
    for block in unpacked(Source(path, 0, packing), block=4096):
        content += block
        if len(content) >= count:
            break
    return bytes(content[:count]), packing


def size_of(path: Path) -> int:
    """Size of a regular file in bytes.

    Raises:
        FormatError: The file is missing, or is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        message = f"{path.name}, which holds its voxels, is missing"
        raise FormatError(message) from error
    if not stat.S_ISREG(status.st_mode):
        message = f"{path.name}, which should hold its voxels, is not a regular file"
        raise FormatError(message)
    return status.st_size


def check_length(source: Source, count: int) -> int:
    """Checks that a file has the number of bytes that its header requires.

    Args:
        source: Location of the bytes.
        count: Required number of bytes.

    Returns:
        Number of bytes that follow in a plain file; 0 for compressed files.

    Raises:
        FormatError: There are fewer bytes, or the stream is damaged.
    """
    size, needed = size_of(source.path), source.skip + count
    if not source.packing:
        if size < source.offset + needed:
            raise FormatError(_describe_missing_bytes(source, size, source.offset + needed))
        return size - source.offset - needed
    check_possible(source, count)
    if source.packing == "gzip" and _stated_length(source.path) == needed % 2**32:
        return 0
    total = 0
    for block in unpacked(source):
        total += len(block)
        if total >= needed and (not block or total > needed + _MAX_FOLLOWING):
            return 0
    raise FormatError(_describe_short_stream(source, total, needed))


def read_into(source: Source, start: int, target: memoryview) -> None:
    """Fills ``target`` with the bytes from ``start`` on (after ``source.skip``), and verifies checksums.

    Raises:
        FormatError: The file ends too early, or is damaged.
    """
    start += source.skip
    if not source.packing:
        with source.path.open("rb") as stream:
            stream.seek(source.offset + start)
            filled = _fill(stream, target)
        if filled < len(target):
            message = f"truncated: {source.prefix}{filled:,} of {len(target):,} bytes of voxels"
            raise FormatError(message)
        return
    position = filled = 0
    for block in unpacked(source):
        offset = max(0, start + filled - position)
        piece = block[offset : offset + len(target) - filled] if filled < len(target) else b""
        target[filled : filled + len(piece)] = piece
        filled, position = filled + len(piece), position + len(block)
        if not block and filled == len(target):
            return
    if filled < len(target):
        raise FormatError(_describe_short_stream(source, position, start + len(target)))


def allocate(count: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Allocates an array of ``count`` numbers.

    Raises:
        FormatError: There is not enough memory.
    """
    try:
        return np.empty(count, dtype)
    except (MemoryError, ValueError) as error:
        message = f"{count:,} voxels of {dtype.itemsize} bytes do not fit into the memory of this machine"
        raise FormatError(message) from error


def check_possible(source: Source, count: int) -> None:
    """Refuses a number of bytes that a file of this size cannot hold, before memory is allocated.

    Raises:
        FormatError: The file is too small.
    """
    size, needed = size_of(source.path), source.skip + count
    if source.packing in ("gzip", "zlib"):
        possible = _MAX_GZIP_RATIO * size + _BLOCK
    else:
        possible = needed if source.packing else size - source.offset
    if needed > possible:
        message = (
            f"too short: {source.prefix}the header asks for {needed:,} bytes, the file of {size:,} cannot hold them"
        )
        raise FormatError(message)


def unpacked(source: Source, block: int = _BLOCK) -> Iterator[bytes]:
    """Yields blocks of unpacked bytes, and an empty block at the end of each stream whose checksum is correct.

    Several consecutive streams are read as one.

    Raises:
        FormatError: A stream is truncated or damaged.
    """
    with source.path.open("rb") as stream:
        stream.seek(source.offset)
        packed = stream.read(block)
        while packed:
            decompressor = _decompressor(source.packing)
            while not decompressor.eof:
                try:
                    piece = bytes(decompressor.decompress(packed, 4 * block))  # a small file can unpack to any size
                except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as error:
                    message = f"truncated or damaged: {source.prefix}{_describe_damage(error, source.packing)}"
                    raise FormatError(message) from error
                if piece:
                    yield piece
                at_end = not packed and not piece and not decompressor.eof
                packed = bytes(getattr(decompressor, "unconsumed_tail", b""))  # zlib's; bz2 and lzma keep theirs inside
                if not packed and getattr(decompressor, "needs_input", True) and not decompressor.eof:
                    packed = stream.read(block)
                if at_end and not packed:
                    message = f"truncated or damaged: {source.prefix}the {source.packing} stream has no end"
                    raise FormatError(message)
            yield b""
            packed = _next_member(source, decompressor.unused_data, stream, block)


# --- one stream


def _decompressor(packing: str) -> Any:
    if packing == "bzip2":
        return bz2.BZ2Decompressor()
    if packing == "xz":
        return lzma.LZMADecompressor(memlimit=_MAX_MEMORY)
    return zlib.decompressobj(31 if packing == "gzip" else 47)  # 47: zlib, or gzip where its first bytes say so


def _next_member(source: Source, remainder: bytes, stream: BinaryIO, block: int) -> bytes:
    """First bytes of the next stream of the file; b"" if the remaining bytes are padding or something else."""
    if source.packing == "zlib":
        return b""
    remainder = remainder.lstrip(b"\0") if len(remainder) >= block else (remainder + stream.read(block)).lstrip(b"\0")
    kinds = [magic for magic, name in _MAGIC.items() if name == source.packing]
    return remainder if remainder.startswith(tuple(kinds)) else b""


def _fill(stream: BinaryIO, target: memoryview) -> int:
    filled = 0
    while filled < len(target):
        count = stream.readinto(target[filled : filled + (1 << 26)])  # type: ignore[attr-defined]  # streams have it, BinaryIO does not name it
        if not count:
            break
        filled += count
    return filled


# --- words


def _stated_length(path: Path) -> int:
    """Length of the last stream of a gzip file modulo 2**32, from its last bytes."""
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        return int.from_bytes(stream.read(4), "little")


def _describe_missing_bytes(source: Source, size: int, needed: int) -> str:
    """Message for a plain file with fewer bytes than the header requires."""
    with source.path.open("rb") as stream:
        stream.seek(min(source.offset, source.path.stat().st_size))
        first = stream.read(8)
    if name := packed_with(first):
        return f"packed with {name}: {source.prefix}the header does not say so; unpack it, or repair the header"
    return f"truncated: {source.prefix}{size:,} of {needed:,} bytes"


def _describe_short_stream(source: Source, available: int, needed: int) -> str:
    return f"too short: {source.prefix}the header asks for {needed:,} bytes, the unpacked file has {available:,}"


def _describe_damage(error: Exception, packing: str) -> str:
    """What is wrong with a compressed stream, without the text of the library's error."""
    text = str(error)
    if "incorrect data check" in text or "CRC" in text or "integrity" in text:
        return f"the checksum of the {packing} stream does not match its content"
    if "incorrect length check" in text:
        return f"the length of the {packing} stream does not match its content"
    if "header" in text or "unknown compression method" in text:
        return f"the {packing} stream begins with bytes that are not valid"
    if isinstance(error, lzma.LZMAError) and "limit" in text:
        return f"the {packing} stream needs more than {_MAX_MEMORY >> 20} MiB of memory to be unpacked"
    return f"the {packing} stream holds codes that are not valid"
