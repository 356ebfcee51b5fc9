"""Which format a file is of: by its name, or by its first bytes where the name says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medssl.data.formats import itk, nifti, picture, tiff
from medssl.data.formats.base import FIRST_BYTES, FileHeader, FormatError, check_grid

FORMATS: dict[str, Any] = {"nifti": nifti, "itk": itk, "picture": picture, "tiff": tiff}  # DICOM: see ``dicom``
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_OTHER_FILES = tuple(
    (
        ".txt .json .csv .tsv .xml .html .htm .pdf .md .log .yaml .yml .xlsx .xls .doc .docx .zip .tar .gz .raw .zraw "
        ".bval .bvec .py .sqlite .db .npy .npz .pt .pth .safetensors .ipynb .sh .ini .cfg"
    ).split()
)
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".qptiff", ".ome.tif", ".ome.tiff")


def format_of(path: Path) -> tuple[str, str]:
    """Format of a file.

    Returns:
        Name of the format (a key of ``FORMATS``, or "dicom") and nothing; or nothing and why the file is no image.
    """
    name = path.name.lower()
    if name.startswith("._"):
        return "", "not an image: AppleDouble file"
    if name.startswith("."):
        return "", "not an image: hidden file"
    if name.endswith(_SLIDES):
        return "", "whole slide: not read by this version"
    for form, module in FORMATS.items():
        if name.endswith(module.SUFFIXES):
            return form, ""
    if name.endswith(DICOM_SUFFIXES):
        return "dicom", ""
    suffix = Path(name).suffix
    if suffix in _OTHER_FILES:
        return "", f"not an image: {suffix} file"
    with path.open("rb") as stream:
        first = stream.read(FIRST_BYTES)
    if first[128:132] == b"DICM" or _bare_dicom(first):
        return "dicom", ""
    other = suffix and not suffix[1:].isdigit()
    return "", f"not an image: {suffix} file" if other else "not an image: no known format"


def read_header(path: Path, form: str) -> FileHeader:
    """Read the header of a file (all formats but DICOM).

    Raises:
        FormatError: Truncated, empty, of another content than its name says, or of a layout that is no scan.
        OSError: The file cannot be opened.
    """
    if path.stat().st_size == 0:
        message = "empty file"
        raise FormatError(message)
    header: FileHeader = FORMATS[form].read_header(path)
    return check_grid(header)


def _bare_dicom(first: bytes) -> bool:
    """A data set without the preamble starts with group 0008 and a low element, little endian."""
    group, element, length = first[:2], int.from_bytes(first[2:4], "little"), int.from_bytes(first[4:8], "little")
    return group == b"\x08\x00" and element <= 0x18 and (first[4:6].isalpha() or 0 < length <= 256)
