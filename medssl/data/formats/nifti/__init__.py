"""NIfTI-1, NIfTI-2 and Analyze 7.5: ``.nii``, pairs of ``.hdr`` and ``.img``, packed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import FileHeader, FormatError, Reading, make_grid, picture_grid, times
from medssl.data.formats.nifti.affine import affine_of
from medssl.data.formats.nifti.header import HEADER_BYTES, NiftiHeader, parse
from medssl.data.formats.placement import is_left_handed
from medssl.data.formats.voxels.layout import Layout, arrange, check_sources, read_values, scaled
from medssl.data.formats.voxels.streams import Source, first_bytes, packing_of, size_of
from medssl.types import Grid, ValueDomain

_ENDINGS = (".nii", ".hdr", ".img")
_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = tuple(ending + packed for ending in (".nii", ".hdr") for packed in _PACKED)  # .img: belongs to its .hdr
NOUN = "a NIfTI file"
NEEDS_SUFFIX = False

_LABEL, _VECTOR, _RGB_VECTOR, _RGBA_VECTOR = (1002, 1003), 1007, 2003, 2004
_NO_SCAN_INTENTS = {
    1004: "a matrix in each voxel", 1005: "a tensor in each voxel", 1006: "a displacement field",
    1008: "a set of points", 1009: "a set of triangles", 1010: "a quaternion in each voxel",
    2001: "a time series of a surface",
    2002: "nodes of a surface", 2005: "a shape of a surface", 2006: "a displacement field of FNIRT",
    2007: "spline coefficients of FNIRT", 2008: "transform coefficients of FNIRT", 2009: "spline coefficients of FNIRT",
    2016: "spline coefficients of TOPUP", 2017: "spline coefficients of TOPUP", 2018: "a field of TOPUP",
}  # fmt: skip


def matches(first: bytes) -> bool:
    """Whether a file starts with a NIfTI header."""
    return first[344:348] in (b"n+1\0", b"ni1\0") or first[4:8] in (b"n+2\0", b"ni2\0")


def read_header(path: Path) -> FileHeader:
    """Reads type, shape and affine, and checks the length of the file.

    Raises:
        FormatError: The file is truncated or damaged, or holds no scan.
    """
    header, source = _open(path)
    layout = _layout(header)
    following = check_sources([source], layout)
    affine, notes = affine_of(header)
    colors = header.samples > 1 or (header.fields["intent"] in (_RGB_VECTOR, _RGBA_VECTOR) and layout.channels == 3)
    domain: ValueDomain = "rgb" if colors and layout.dtype.itemsize == 1 else "gray"
    details: dict[str, Any] = {}
    if header.fields["intent"] in _LABEL:
        details["intent"] = "label"
    if source.companion:
        details["companions"] = [source.path.name]
        if header.kind == "analyze" and path.with_name(_split(path.name)[0] + ".mat").exists():
            notes += ("the .mat file beside it (SPM) is not read: voxels may lie elsewhere",)
    notes = header.notes + _layout_notes(header, layout) + notes
    if following:
        notes += (f"{following:,} bytes after the voxels are not read",)
    noun = "volumes along the fourth axis" if header.shape[2] > 1 else "pictures along the fourth axis (time)"
    grid = _grid(header, affine)
    if len(grid.shape) == 3 and is_left_handed(affine):
        details["handedness"] = "left"
    kind: Any = "volume" if len(grid.shape) == 3 else "image"
    if kind == "image":  # a mask of it must run the same way
        details["plane"] = affine.tolist()
    name = layout.dtype.newbyteorder("=").name
    return FileHeader(kind, domain, layout.channels, grid, layout.frames(noun), name, notes, details)


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Reads stored whole numbers unchanged, and scaled numbers as float32 (float64 if float32 is too coarse).

    Args:
        path: The file.
        frame: Number of the volume; None takes all volumes as channels.
        reading: Not used.

    Returns:
        Array [C, i, j, k] or [C, row, column], and its grid.

    Raises:
        FormatError: The file is truncated or damaged.
    """
    del reading
    header, source = _open(path)
    layout = _layout(header)
    check_sources([source], layout)
    affine, _ = affine_of(header)
    values, single_frame = read_values([source], layout, frame)
    values = scaled(values, *header.scale)
    return arrange(values, layout, frame, alone=single_frame), _grid(header, affine)


# --- layout


def _layout(header: NiftiHeader) -> Layout:
    """Axes of the array: space, then time (4), then values of one voxel (5).

    Raises:
        FormatError: The intent of the header is not that of a scan, or axes 6 and 7 are in use.
    """
    intent = header.fields["intent"]
    if intent in _NO_SCAN_INTENTS or 3000 <= intent < 3100:
        what = _NO_SCAN_INTENTS.get(intent, "values of a brain surface (CIFTI)")
        message = f"no scan: it holds {what} (intent code {intent})"
        raise FormatError(message)
    if header.shape[5] * header.shape[6] > 1:
        shown = times(header.shape)
        message = f"shape {shown}: axes 6 and 7 have no meaning in NIfTI; split the file"
        raise FormatError(message)
    spatial = "ijk" if header.shape[2] > 1 else "ij-"
    shape, roles = header.shape[:5], spatial + "tc"
    keep = 0
    if header.samples > 1:
        if header.shape[4] > 1:
            message = f"{header.shape[4]} colors in each voxel: expected one"
            raise FormatError(message)
        shape, roles, keep = (header.samples, *header.shape[:4]), "c" + spatial + "t", 3
    elif header.shape[4] == 1:
        shape, roles = header.shape[:4], spatial + "t"
    elif intent == _RGBA_VECTOR and header.shape[4] == 4:
        keep = 3
    return Layout(header.dtype, shape, roles, keep)


def _layout_notes(header: NiftiHeader, layout: Layout) -> tuple[str, ...]:
    if layout.keep and layout.length("c") == 4:
        return ("transparency left out",)
    if header.shape[4] > 1 and header.fields["intent"] not in (_RGB_VECTOR, _RGBA_VECTOR):
        return (f"vectors of {header.shape[4]} values taken as channels; a displacement field would be no scan",)
    if 2 <= header.fields["intent"] <= 24:
        return (f"a statistical map by its header (intent code {header.fields['intent']}), taken as a scan",)
    return ()


def _grid(header: NiftiHeader, affine: np.ndarray) -> Grid:
    """Grid: (i, j) is an image with rows j, (i, j, k) is a volume."""
    if header.shape[2] > 1:
        return make_grid(header.shape[:3], affine)
    width, height = header.shape[:2]
    steps = np.linalg.norm(affine[:3, :2], axis=0)
    return picture_grid(height, width, (float(steps[1]), float(steps[0])))


# --- files


def _open(path: Path) -> tuple[NiftiHeader, Source]:
    """The header of a file, and the location of its voxels."""
    raw, packing = first_bytes(path, HEADER_BYTES)
    header = parse(raw)
    if not header.separate:
        return header, _source(path, packing, header.start, companion=False)
    voxels = _voxels_of(path)
    if voxels is None:
        message = f"its voxels are missing: no {_split(path.name)[0]}.img beside it"
        raise FormatError(message)
    packing = ""
    expected = header.start + _layout(header).bytes
    if _split(voxels.name)[2] or size_of(voxels) < expected:  # raw voxels may begin in any way
        with voxels.open("rb") as stream:
            packing = packing_of(stream.read(8))
    return header, _source(voxels, packing, header.start, companion=True)


def _source(path: Path, packing: str, start: int, *, companion: bool) -> Source:
    return Source(path, 0, packing, start, companion) if packing else Source(path, start, "", 0, companion)


def _voxels_of(path: Path) -> Path | None:
    return _find_sibling(path.parent, _split(path.name)[0], ".img")


def _find_sibling(folder: Path, stem: str, ending: str) -> Path | None:
    """The file with a stem and ending, in lower or upper case, compressed or not; None if there is none."""
    for packed in _PACKED:
        for name in (ending + packed, (ending + packed).upper(), ending.title() + packed):
            if (folder / (stem + name)).is_file():
                return folder / (stem + name)
    return None


def _split(name: str) -> tuple[str, str, str]:
    """Stem, ending and ending of the compression ("scan", ".img", ".gz")."""
    lower = name.lower()
    packed = next((suffix for suffix in _PACKED[1:] if lower.endswith(suffix)), "")
    stem = name[: len(name) - len(packed)]
    ending = next((suffix for suffix in _ENDINGS if stem.lower().endswith(suffix)), "")
    return stem[: len(stem) - len(ending)], ending, packed
