"""The text of a MetaImage header: fields, layout of the numbers, geometry, and location of the voxels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS, FormatError
from medssl.data.formats.placement import check_affine, converted_note, millimeters
from medssl.data.formats.voxels.data_files import inside, listed, numbered, other_than, plain_text
from medssl.data.formats.voxels.layout import Layout
from medssl.data.formats.voxels.streams import Source, size_of

_MAX_BYTES = 1 << 20
_MAX_LINE = 1 << 16
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "long": "i4", "ulong": "u4",
    "long_long": "i8", "ulong_long": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_SYNONYMS = {
    "position": "offset", "origin": "offset", "orientation": "transformmatrix", "rotation": "transformmatrix",
    "elementbyteordermsb": "binarydatabyteordermsb",
}  # fmt: skip
_MODALITIES = {"met_mod_ct": "CT", "met_mod_mr": "MR", "met_mod_nm": "NM", "met_mod_us": "US"}
_WITHOUT_UNIT = ("", "?", "???", "unknown", "none")


@dataclass(frozen=True)
class MetaHeader:
    """Parsed header: fields by name in lower case, names of a LIST of data files, first byte after the header."""

    fields: dict[str, str]
    files: tuple[str, ...]
    end: int
    notes: tuple[str, ...] = ()

    def need(self, name: str, field: str) -> str:
        """A required field.

        Raises:
            FormatError: The field is missing.
        """
        if field not in self.fields:
            message = f"not readable as MetaImage: no {name} in the header"
            raise FormatError(message)
        return self.fields[field]

    def true(self, field: str) -> bool:
        """Whether a field is true."""
        return self.fields.get(field, "").lower() in ("true", "t", "1", "yes", "y")

    @property
    def packed(self) -> bool:
        """Whether the voxels are compressed."""
        return self.true("compresseddata")

    @property
    def as_text(self) -> bool:
        """Whether the voxels are written as text."""
        return "binarydata" in self.fields and not self.true("binarydata")


def read_text(path: Path) -> MetaHeader:
    """Reads the header of a file; ElementDataFile is its last field.

    Raises:
        FormatError: The file has no MetaImage header.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while line := stream.readline(_MAX_LINE):
            if stream.tell() > _MAX_BYTES or (len(line) == _MAX_LINE and not line.endswith(b"\n")):
                break
            text = plain_text(line).strip()
            if not text:
                continue
            mark = next((letter for letter in text if letter in "=:"), "")
            name, _, value = text.partition(mark) if mark else (text, "", "")
            if not mark:
                message = "not readable as MetaImage: a line of the header is no name with its value"
                raise FormatError(message)
            field = _SYNONYMS.get(name.strip().lower(), name.strip().lower())
            if field in fields and fields[field] != value.strip():
                message = f"not readable as MetaImage: {name.strip()[:40]} occurs twice in the header"
                raise FormatError(message)
            fields[field] = value.strip()
            if field == "elementdatafile":
                files = _listed_names(stream.read(_MAX_BYTES)) if fields[field].upper().startswith("LIST") else ()
                return MetaHeader(fields, files, path.stat().st_size if files else stream.tell())
    message = "not readable as MetaImage: no ElementDataFile in the header"
    raise FormatError(message)


def _listed_names(text_lines: bytes) -> tuple[str, ...]:
    return tuple(text for line in text_lines.split(b"\n") if (text := plain_text(line).strip()))


def layout_of(header: MetaHeader) -> Layout:
    """Axes and number type.

    Raises:
        FormatError: The file holds neither a picture nor a volume, or other types than whole and real numbers.
    """
    kind = header.fields.get("objecttype", "Image")
    if kind.lower() != "image":
        message = f"no scan: ObjectType {kind[:40]}: expected Image"
        raise FormatError(message)
    sizes = _whole(header, "DimSize", dimension(header))
    if any(size < 1 for size in sizes):
        reason = "zero-size" if 0 in sizes else "not readable as MetaImage"
        message = f"{reason}: DimSize {' '.join(map(str, sizes))[:80]}"
        raise FormatError(message)
    (channels,) = _whole(header, "ElementNumberOfChannels", 1) if "elementnumberofchannels" in header.fields else (1,)
    if channels < 1:
        message = f"ElementNumberOfChannels {channels}: expected 1 or more"
        raise FormatError(message)
    name = header.need("ElementType", "elementtype").lower().removeprefix("met_").removesuffix("_array")
    if name not in _TYPES:
        message = f"ElementType {header.fields['elementtype'][:40]}: expected whole or real numbers (such as MET_SHORT)"
        raise FormatError(message)
    dtype = np.dtype(_TYPES[name]).newbyteorder(">" if header.true("binarydatabyteordermsb") else "<")
    roles = "ijkt"[: len(sizes)]
    if channels == 1:
        return Layout(dtype, sizes, roles)
    keep = 3 if channels == 4 and dtype.itemsize == 1 and dtype.kind == "u" else 0
    return Layout(dtype, (channels, *sizes), "c" + roles, keep)


def dimension(header: MetaHeader) -> int:
    """Number of axes.

    Raises:
        FormatError: The number is not 2, 3 or 4.
    """
    (count,) = _whole(header, "NDims", 1)
    if count not in (2, 3, 4):
        message = f"{count} axes (NDims): expected 2 (picture), 3 (volume) or 4 (volumes in time)"
        raise FormatError(message)
    return count


def geometry(header: MetaHeader) -> tuple[np.ndarray, tuple[str, ...]]:
    """Affine in mm: (4, 4) RAS of a volume; (3, 3) of a picture, from its first pixel, columns before rows.

    Raises:
        FormatError: The geometry cannot be used.
    """
    count = dimension(header)
    notes: tuple[str, ...] = ()
    field = "elementspacing" if "elementspacing" in header.fields else "elementsize"
    if field in header.fields:
        steps = _reals(header, field, count)
    else:
        steps, notes = np.ones(count), ("does not state its voxel size: 1 mm assumed",)
    world = min(count, 3)
    if not (np.isfinite(steps[:world]) & (steps[:world] > 0)).all():
        shown = " x ".join(f"{step:g}" for step in steps[:world])
        message = f"geometry unusable: voxel sizes {shown}: expected positive lengths"
        raise FormatError(message)
    factor, unit_notes = _unit(header)
    notes += unit_notes
    if count == 2:
        return np.diag([steps[0] * factor, steps[1] * factor, 1.0]), notes
    offset = _reals(header, "offset", count)[:3] if "offset" in header.fields else np.zeros(3)
    directions, orientation_notes = _directions(header, count)
    affine = np.eye(4)
    affine[:3] = np.column_stack([directions * steps[:3], offset]) * np.array(LPS_TO_RAS)[:, None] * factor
    return affine + 0.0, notes + orientation_notes + check_affine(affine, "the affine")


def _unit(header: MetaHeader) -> tuple[float, tuple[str, ...]]:
    unit = header.fields.get("distanceunits", "")
    if unit.lower() in _WITHOUT_UNIT:
        return 1.0, ()
    factor = millimeters(unit)
    if factor is None:
        message = f"DistanceUnits {unit[:40]!r} is not known: expected mm, cm, m or um"
        raise FormatError(message)
    return factor, converted_note([unit])


def _directions(header: MetaHeader, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Directions of the axes as columns, LPS; the header lists them axis by axis."""
    code = header.fields.get("anatomicalorientation", "").upper()
    is_valid_code = len(code) == 3 and all(len(set(code) & set(pair)) == 1 for pair in ("LR", "AP", "IS"))
    if "transformmatrix" not in header.fields:
        ignored_code = (
            f", AnatomicalOrientation {code} not applied" if is_valid_code and code not in ("RAI", "LPS") else ""
        )
        return np.eye(3), (f"orientation is a guess: no TransformMatrix (left-posterior-superior taken{ignored_code})",)
    matrix = _reals(header, "transformmatrix", count * count).reshape(count, count).T
    if count == 4 and (matrix[3, :3].any() or matrix[:3, 3].any()):
        message = "geometry unusable: TransformMatrix mixes the fourth axis with space"
        raise FormatError(message)
    matrix = matrix[:3, :3]
    if not np.isfinite(matrix).all():
        message = "geometry unusable: TransformMatrix has values that are no finite numbers"
        raise FormatError(message)
    notes: tuple[str, ...] = ()
    lengths = np.linalg.norm(matrix, axis=0)
    if (np.abs(lengths - 1) > 1e-3).any() and (lengths > 0).all():
        notes += ("rows of TransformMatrix are not of length 1: voxel sizes multiplied by their lengths",)
    if is_valid_code and (np.abs(matrix).max(axis=0) > 0.9 * lengths).all():
        strongest = np.abs(matrix).argmax(axis=0)
        starts = "".join(("RL", "AP", "IS")[row][int(matrix[row, axis] < 0)] for axis, row in enumerate(strongest))
        ends = starts.translate(str.maketrans("RLAPIS", "LRPASI"))
        if code not in (starts, ends):
            notes += (f"AnatomicalOrientation {code} contradicts TransformMatrix ({starts}): TransformMatrix used",)
    return matrix, notes


def sources(path: Path, header: MetaHeader, layout: Layout) -> tuple[Source, ...]:
    """Locations of the voxels: after the header, or in the files that it names.

    Raises:
        FormatError: A file is missing or lies elsewhere, or HeaderSize is not valid.
    """
    name = header.need("ElementDataFile", "elementdatafile")
    words = name.split()
    follows_header = name.lower() == "local"
    if follows_header:
        files: tuple[Path, ...] = (path,)
    elif words and words[0].upper() == "LIST":
        files = listed(path.parent, header.files)
    elif "%" in name and len(words) >= 3:
        files = numbered(path.parent, words[0], words[1:4])
    else:
        files = (inside(path.parent, name),)
    files = files if follows_header else other_than(path, files)
    (skip,) = _whole(header, "HeaderSize", 1) if "headersize" in header.fields else (0,)
    if skip < -1 or (skip == -1 and (header.packed or header.as_text)):
        message = f"HeaderSize {skip}: expected 0 or more, or -1 where voxels are neither compressed nor text"
        raise FormatError(message)
    if follows_header and 0 < skip < header.end:
        message = f"HeaderSize {skip}: expected at least the {header.end:,} bytes of the header itself"
        raise FormatError(message)
    voxel_sources = []
    for file in files:
        size = size_of(file)
        offset = skip or (header.end if follows_header else 0)
        if skip == -1:
            offset = max(header.end if follows_header else 0, size - layout.bytes // len(files))
        voxel_sources.append(Source(file, offset, "zlib" if header.packed else "", 0, not follows_header))
    return tuple(voxel_sources)


def details_of(header: MetaHeader) -> dict[str, Any]:
    """Modality as a detail of the file header; empty if the header does not state it."""
    name = header.fields.get("modality", "").lower()
    return {"modality": _MODALITIES[name]} if name in _MODALITIES else {}


def scale_of(header: MetaHeader) -> tuple[float, float]:
    """Slope and offset of ElementToIntensityFunction; (1, 0) without them.

    Raises:
        FormatError: A number is not finite, or the slope is 0.
    """
    names = ("elementtointensityfunctionslope", "elementtointensityfunctionoffset")
    slope, offset = (
        float(_reals(header, name, 1)[0]) if name in header.fields else default
        for name, default in zip(names, (1.0, 0.0), strict=True)
    )
    if not np.isfinite([slope, offset]).all() or slope == 0:
        message = f"scale unusable: ElementToIntensityFunction with slope {slope:g}, offset {offset:g}"
        raise FormatError(message)
    return slope, offset


def _whole(header: MetaHeader, name: str, count: int) -> tuple[int, ...]:
    words = header.need(name, name.lower()).split()
    if len(words) != count or not all(re.fullmatch(r"[+-]?\d{1,15}", word) for word in words):
        message = f"{name} {' '.join(words)[:60]!r}: expected {count} whole number{'s' * (count != 1)}"
        raise FormatError(message)
    return tuple(int(word) for word in words)


def _reals(header: MetaHeader, field: str, count: int) -> np.ndarray:
    words = header.fields[field].split()
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.array([])
    if len(values) != count:
        message = f"{field} {' '.join(words)[:60]!r}: expected {count} number{'s' * (count != 1)}"
        raise FormatError(message)
    return values
