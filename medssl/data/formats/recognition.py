"""Recognizes the format of a file by its first bytes, and by its name where these are not sufficient."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medssl.data.formats import array, metaimage, nifti, nrrd, picture, slide, tiff, unread
from medssl.data.formats.base import FIRST_BYTES, FileHeader, Format, check_grid
from medssl.data.formats.slide.tiff_pages import is_slide
from medssl.data.formats.voxels.streams import gzip_beginning, packed_with

FORMATS: dict[str, Format] = {
    "array": array,
    "nifti": nifti,
    "nrrd": nrrd,
    "metaimage": metaimage,
    "picture": picture,
    "tiff": tiff,
    "slide": slide,
}  # DICOM: see ``dicom``
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_FIRST_REPRESENTATIONS = (b"UL", b"CS", b"DA", b"TM", b"UI", b"SH", b"LO", b"DT", b"UN")  # of elements of group 0008
_OTHER_FILES = tuple(
    (
        ".txt .json .csv .tsv .xml .html .htm .pdf .md .log .yaml .yml .xlsx .xls .doc .docx .bval .bvec .py .sqlite "
        ".db .pt .pth .safetensors .ipynb .sh .ini .cfg .pptx .rtf .exe .dll .js .css .xsl .rst .toml .pkl"
    ).split()
)
_UNOPENED = (".zip", ".tar", ".tgz", ".7z", ".rar", ".tar.gz", ".mp4", ".avi", ".mov", ".mkv", ".wmv")
_TEXT_HEADERS = (".mha", ".mhd")  # text without a signature of its own
_READ = 4096  # holds FIRST_BYTES of a gzip file, too
_OTHER_PACKING = ("bzip2", "xz", "zstd")  # whose contents the reader of NIfTI knows or names


@dataclass(frozen=True)
class Recognition:
    """Format of a file, or why it is not read.

    Attributes:
        form: A key of ``FORMATS``, or "dicom"; "" if the file is not read.
        state: "" if the file is read; else "ignored", "rejected" (a scan of an unsupported format) or "failed".
        reason: Why the file is not read.
        note: Note for the user about a file that is read.
    """

    form: str = ""
    state: Literal["", "ignored", "rejected", "failed"] = ""
    reason: str = ""
    note: str = ""


def format_of(path: Path) -> tuple[str, str]:
    """Format of a file.

    Returns:
        Name of the format (a key of ``FORMATS``, or "dicom") and ""; or "" and the reason why the file is not read.
    """
    recognition = recognize(path)
    return recognition.form, recognition.reason


def recognize(path: Path) -> Recognition:
    """Recognizes the format of a file.

    Raises:
        OSError: The file cannot be opened.
    """
    name = path.name.lower()
    if recognition := _recognize_by_name(name):
        return recognition
    first_bytes = _first_bytes(path)
    form_by_name = _form_of_name(name)
    suffix = _suffix(name)
    if not first_bytes:
        return (
            Recognition("", "failed", "empty file")
            if form_by_name
            else Recognition("", "ignored", "not an image: empty file")
        )
    if reason := unread.pointer(first_bytes):
        return Recognition("", "failed", reason)
    packing = packed_with(first_bytes)
    packed = packing == "gzip"
    content = gzip_beginning(first_bytes, FIRST_BYTES) if packed else first_bytes
    if form_by_name == "nifti" and (packing in _OTHER_PACKING or (packed and not content)):
        return Recognition(form_by_name)  # its reader unpacks it, or says where the stream is damaged
    form = _form_of_content(content, form_by_name)
    if form and packed and form != "nifti":
        return Recognition(
            "", "rejected", f"{_noun_of(form, content).partition(' ')[2]} packed with gzip; unpack it first"
        )
    if form == "tiff" and is_slide(path):
        return Recognition("slide")
    if form:
        note = f"named {suffix}, but is {_noun_of(form, content)}" if form_by_name and form != form_by_name else ""
        return Recognition(form, note=note)
    return _recognize_unread(name, form_by_name, suffix, content if packed and content else first_bytes)


def read_header(path: Path, form: str) -> FileHeader:
    """Reads the header of a file of any format except DICOM.

    Raises:
        FormatError: The file is truncated, has another format than its name says, or holds no scan.
        OSError: The file cannot be opened.
    """
    return check_grid(FORMATS[form].read_header(path))


def _recognize_by_name(name: str) -> Recognition | None:
    """Recognizes files that need not be opened, by their names."""
    if name.startswith("._"):
        return Recognition("", "ignored", "not an image: AppleDouble file")
    if name.startswith("."):
        return Recognition("", "ignored", "not an image: hidden file")
    if name.endswith(_UNOPENED):
        return Recognition("", "ignored", unread.by_name(name)[1])
    if name.endswith(_OTHER_FILES):
        return Recognition("", "ignored", f"not an image: {Path(name).suffix} file")
    return None


def _first_bytes(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, _READ)
    finally:
        os.close(file)


def _form_of_name(name: str) -> str:
    """Format by the suffix of a name; "" for other names."""
    for form, module in FORMATS.items():
        if name.endswith(module.SUFFIXES):
            return form
    return "dicom" if name.endswith(DICOM_SUFFIXES) else ""


def _form_of_content(first: bytes, form_by_name: str) -> str:
    """Format by the first bytes; the format of the name is tried first."""
    if first[128:132] == b"DICM":
        return "dicom"
    if form_by_name in FORMATS and FORMATS[form_by_name].matches(first):
        return form_by_name
    for form, module in FORMATS.items():
        if form != form_by_name and not module.NEEDS_SUFFIX and module.matches(first) and not _is_bmp_by_chance(first):
            return form
    return "dicom" if _bare_dicom(first) else ""


def _is_bmp_by_chance(first: bytes) -> bool:
    """Whether bytes start with the two letters of BMP by chance, as the numbers of a raw file may."""
    return first[:2] == b"BM" and first[6:10] != bytes(4)


def _recognize_unread(name: str, form_by_name: str, suffix: str, first: bytes) -> Recognition:
    """Recognizes a file whose first bytes belong to no supported format."""
    content = unread.by_content(first)
    if name.endswith(".hdr") and content:
        return Recognition("", "ignored", f"not an image: .hdr file that is {content}")
    if form_by_name and content and not (content == "text" and name.endswith(_TEXT_HEADERS)):
        return Recognition("", "failed", f"named {suffix}, but is {content}")
    if form_by_name:
        return Recognition(form_by_name)  # its reader says what is wrong with it
    state, reason = unread.by_name(name)
    if state == "rejected":
        return Recognition("", "rejected", reason)
    if content not in ("", "text"):
        return Recognition("", "ignored", f"not an image: {content}")
    if state == "ignored":
        return Recognition("", "ignored", reason)
    is_extension = suffix and not suffix[1:].isdigit()
    return Recognition(
        "", "ignored", f"not an image: {suffix} file" if is_extension else "not an image: no known format"
    )


def _suffix(name: str) -> str:
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _noun_of(form: str, first: bytes) -> str:
    """A format in words, with its article."""
    if form == "dicom":
        return "a DICOM file"
    pictures = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"BM": "a BMP picture"}
    if form == "picture":
        return next((noun for start, noun in pictures.items() if first.startswith(start)), picture.NOUN)
    return FORMATS[form].NOUN


def _bare_dicom(first: bytes) -> bool:
    """Whether bytes are a DICOM data set without preamble: it starts with group 0002 or group 0008."""
    if first[:2] == b"\x02\x00":
        return first[2:4] in (b"\0\0", b"\1\0", b"\2\0", b"\3\0", b"\x10\0") and first[4:6] in (b"UL", b"OB", b"UI")
    order: Literal["little", "big"] = "big" if first[:2] == b"\x00\x08" else "little"
    group, element, length = (int.from_bytes(first[a:b], order) for a, b in ((0, 2), (2, 4), (4, 8)))
    written = first[4:6] in _FIRST_REPRESENTATIONS
    return group == 8 and element <= 0x18 and (written or (order == "little" and 0 < length <= 256))
