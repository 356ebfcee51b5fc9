"""Transfer syntaxes of DICOM (PS3.5 chapter 10 and Annex A): the encoding of pixels."""

from __future__ import annotations

from medssl.data.formats.dicom.elements import shown

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
PLAIN = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)  # the pixels are uncompressed

RLE = "RLE"
JPEG = "JPEG"
JPEG_LS = "JPEG-LS"
JPEG_2000 = "JPEG 2000"
UNCOMPRESSED = "encapsulated uncompressed"
DEFLATED_FRAMES = "deflated frames"

_DICOM = "1.2.840.10008.1.2."
_FAMILIES = {f"{_DICOM}4.{number}": JPEG for number in (*range(50, 67), 70)}
_FAMILIES |= {f"{_DICOM}4.{number}": JPEG_LS for number in (80, 81)}
_FAMILIES |= {f"{_DICOM}4.{number}": JPEG_2000 for number in (90, 91, 201, 202, 203)}
_FAMILIES |= {f"{_DICOM}5": RLE, f"{_DICOM}1.98": UNCOMPRESSED, f"{_DICOM}8.1": DEFLATED_FRAMES}
_OTHERS = {f"{_DICOM}4.{number}": "MPEG-2 video" for number in (100, 101)}
_OTHERS |= {f"{_DICOM}4.{number}": "MPEG-4 video" for number in range(102, 107)}
_OTHERS |= {f"{_DICOM}4.{number}": "HEVC video" for number in (107, 108)}
_OTHERS |= {f"{_DICOM}4.{number}": "JPEG 2000 of several components" for number in (92, 93)}
_OTHERS |= {f"{_DICOM}4.{number}": "JPIP (the pixels lie on a server)" for number in (94, 95, 204, 205)}
_OTHERS |= {f"{_DICOM}4.{number}": "JPEG XL" for number in (110, 111, 112)}
_OTHERS |= {f"{_DICOM}7.{number}": "uncompressed video (SMPTE)" for number in (1, 2, 3)}
_OTHERS["1.2.840.113619.5.2"] = "GE's private syntax of big endian pixels"


def family_of(syntax: str) -> str:
    """Family of a compressed transfer syntax; "" for uncompressed and for unsupported ones."""
    return _FAMILIES.get(syntax, "")


def unread(syntax: str) -> str:
    """Why a transfer syntax is not supported; "" if it is."""
    if syntax in PLAIN or syntax in _FAMILIES:
        return ""
    if syntax.startswith(f"{_DICOM}4.10") or syntax.startswith(f"{_DICOM}7."):
        return f"no decoder for {_OTHERS.get(syntax, 'video')}"
    return f"no decoder for {_OTHERS.get(syntax) or f'the transfer syntax {shown(syntax)}'}: convert the files first"
