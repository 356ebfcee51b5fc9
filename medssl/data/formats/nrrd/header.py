"""The text of an NRRD header: fields, key/value pairs, and the location of the voxels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.voxels.data_files import inside, listed, numbered, other_than, plain_text
from medssl.data.formats.voxels.layout import Layout
from medssl.data.formats.voxels.streams import Source, size_of

_MAX_BYTES = 1 << 20
_MAX_LINE = 1 << 16
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_ENCODINGS = {
    "raw": "", "txt": "text", "text": "text", "ascii": "text", "hex": "hex", "gz": "gzip", "gzip": "gzip",
    "bz2": "bzip2", "bzip2": "bzip2",
}  # fmt: skip
_FIELDS = set(
    (
        "type dimension blocksize sizes spacings thicknesses axismins axismaxs spacedirections centers kinds labels "
        "units min max oldmin oldmax endian encoding lineskip byteskip datafile content sampleunits space "
        "spacedimension spaceunits spaceorigin measurementframe number"
    ).split()
)


@dataclass(frozen=True)
class NrrdHeader:
    """Parsed header.

    Attributes:
        fields: Fields by name, in lower case without spaces.
        pairs: Key/value pairs.
        files: Names of a LIST of data files.
        end: First byte after the header.
        notes: Notes for the user.
    """

    fields: dict[str, str]
    pairs: dict[str, str]
    files: tuple[str, ...]
    end: int
    notes: tuple[str, ...]

    @property
    def dimension(self) -> int:
        """Number of axes."""
        (count,) = whole_numbers(self, "dimension", 1)
        if not 1 <= count <= 16:
            message = f"dimension {count}: expected 1 to 16 axes"
            raise FormatError(message)
        return count

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the axes, fastest first."""
        sizes = whole_numbers(self, "sizes", self.dimension)
        if any(size < 1 for size in sizes):
            kind = "zero-size" if 0 in sizes else "not readable as NRRD"
            message = f"{kind}: sizes {' '.join(map(str, sizes))[:80]}"
            raise FormatError(message)
        return sizes

    @property
    def encoding(self) -> str:
        """Encoding of the voxels: "" (raw), "text", "hex", "gzip" or "bzip2"."""
        name = self.need("encoding").lower()
        if name not in _ENCODINGS:
            message = f"encoding {name[:40]!r}: expected raw, text, hex, gzip or bzip2"
            raise FormatError(message)
        return _ENCODINGS[name]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type, with its byte order."""
        name = " ".join(self.need("type").lower().split())
        code = next((code for code, names in _TYPES.items() if name in names.split("|")), "")
        if not code:
            message = f"type {name[:40]!r}: expected whole or real numbers (such as short or float)"
            raise FormatError(message)
        endian = self.fields.get("endian", "").lower()
        if endian not in ("little", "big", "") or (not endian and code[1] != "1" and self.encoding != "text"):
            message = f"endian {endian[:40]!r}: expected little or big"
            raise FormatError(message)
        return np.dtype(code).newbyteorder("<" if endian != "big" else ">")

    def need(self, name: str) -> str:
        """A required field.

        Raises:
            FormatError: The field is missing.
        """
        if name not in self.fields:
            message = f"not readable as NRRD: no field {name!r} in the header"
            raise FormatError(message)
        return self.fields[name]


def read_text(path: Path) -> NrrdHeader:
    """Reads the header of a file.

    Raises:
        FormatError: The file has no NRRD header, or a line is not valid.
    """
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    files: list[str] = []
    notes: list[str] = []
    with path.open("rb") as stream:
        if not re.fullmatch(rb"NRRD000[1-9]\r?\n", stream.readline(64)):
            message = "not readable as NRRD: its first line is not NRRD0001 to NRRD0005"
            raise FormatError(message)
        while line := stream.readline(_MAX_LINE):
            if stream.tell() > _MAX_BYTES or (len(line) == _MAX_LINE and not line.endswith(b"\n")):
                message = "not readable as NRRD: the header has no end (an empty line)"
                raise FormatError(message)
            text = plain_text(line)
            if not text and not files:
                break
            if fields.get("datafile", "").upper().startswith("LIST"):
                files.append(text)
            elif not text.startswith("#"):
                _add_line(text, fields, pairs, notes)
        else:
            if "datafile" not in fields:
                message = "not readable as NRRD: the header has no end (an empty line)"
                raise FormatError(message)
        return NrrdHeader(fields, pairs, tuple(files), stream.tell(), tuple(notes))


def _add_line(text: str, fields: dict[str, str], pairs: dict[str, str], notes: list[str]) -> None:
    """Adds a header line to the fields or pairs."""
    name, colon, value = text.partition(":")
    if not colon:
        message = "not readable as NRRD: a line of the header is neither a field nor a key with its value"
        raise FormatError(message)
    if value.startswith("="):
        pairs[name.strip()] = value[1:].strip()
        return
    short = name.replace(" ", "").lower()
    short = "centers" if short == "centerings" else short
    if short in fields:
        message = f"not readable as NRRD: field {name.strip()[:40]!r} occurs twice in the header"
        raise FormatError(message)
    if short not in _FIELDS:
        notes.append(f"unknown field {name.strip()[:40]!r} of the header not applied")
    fields[short] = value.strip()


def whole_numbers(header: NrrdHeader, name: str, count: int) -> tuple[int, ...]:
    """A field of ``count`` whole numbers.

    Raises:
        FormatError: The field is missing, or does not hold ``count`` whole numbers.
    """
    words = header.need(name).split()
    if len(words) != count or not all(re.fullmatch(r"[+-]?\d{1,15}", word) for word in words):
        message = f"{name} {' '.join(words)[:60]!r}: expected {count} whole number{'s' * (count != 1)}"
        raise FormatError(message)
    return tuple(int(word) for word in words)


def sources(path: Path, header: NrrdHeader, layout: Layout) -> tuple[Source, ...]:
    """Locations of the voxels: after the header, or in the files that it names.

    Raises:
        FormatError: A file is missing or lies elsewhere, or the numbers of skipped lines or bytes are not valid.
    """
    name = header.fields.get("datafile")
    words = (name or "").split()
    if name is None:
        files: tuple[Path, ...] = (path,)
    elif words and words[0].upper() == "LIST":
        files = listed(path.parent, header.files)
    elif "%" in name and len(words) >= 4:
        files = numbered(path.parent, words[0], words[1:4])
    else:
        files = (inside(path.parent, name),)
    files = files if name is None else other_than(path, files)
    lines = whole_numbers(header, "lineskip", 1)[0] if "lineskip" in header.fields else 0
    skip = whole_numbers(header, "byteskip", 1)[0] if "byteskip" in header.fields else 0
    if lines < 0 or skip < -1 or (skip == -1 and header.encoding):
        message = f"line skip {lines}, byte skip {skip}: expected 0 or more (byte skip -1 only with raw encoding)"
        raise FormatError(message)
    voxel_sources = []
    for file in files:
        offset = 0 if name is not None else header.end
        size = size_of(file)
        offset = _after_lines(file, offset, lines) if lines else offset
        packing = header.encoding if header.encoding in ("gzip", "bzip2") else ""
        if skip == -1:
            offset = max(offset, size - layout.bytes // len(files))
        elif not packing:
            offset += skip
        voxel_sources.append(Source(file, offset, packing, skip if packing else 0, name is not None))
    return tuple(voxel_sources)


def _after_lines(file: Path, offset: int, lines: int) -> int:
    with file.open("rb") as stream:
        stream.seek(offset)
        for _ in range(lines):
            if not stream.readline(_MAX_LINE):
                message = f"truncated: {file.name} has fewer than {lines:,} lines (line skip)"
                raise FormatError(message)
        return stream.tell()
