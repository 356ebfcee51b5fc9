"""Headers of codestreams: size, bits, components, colors, and whether the codestream is complete.

References: ITU-T T.81 Annex B (JPEG), T.87 Annex C (JPEG-LS), T.800 Annex A (JPEG 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.pixels.syntaxes import JPEG, JPEG_2000, JPEG_LS

_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP"
_BOXES = 4096  # bytes of JP2 boxes that may stand before the codestream
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)  # start of frame
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length


@dataclass(frozen=True)
class Codestream:
    """Facts about a codestream.

    Attributes:
        family: Family of the transfer syntax.
        shape: Rows, columns, components.
        bits: Bits of one sample.
        signed: Whether samples are signed (stated by JPEG 2000 only).
        lossy: Whether the compression is lossy.
        colors: "rgb" or "ybr" if the codestream states it, else "".
        halved: Whether components differ in size (chroma subsampling).
    """

    family: str
    shape: tuple[int, int, int]
    bits: int
    signed: bool = False
    lossy: bool = False
    colors: str = ""
    halved: bool = False


def describe(data: bytes) -> tuple[Codestream, bytes]:
    """Facts about a codestream, and the codestream without surrounding bytes.

    Raises:
        DicomError: The bytes are not JPEG, JPEG-LS or JPEG 2000, or end too early.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    start = data.find(_J2K_START, 0, _BOXES) if data.startswith((_J2K_START[:2], _JP2_START)) else -1
    if start >= 0:
        return _jpeg_2000(data[start:])
    message = "the compressed pixels are neither JPEG, JPEG-LS nor JPEG 2000"
    raise DicomError(message)


def ends_early(family: str) -> DicomError:
    """The error for a truncated codestream."""
    return DicomError(f"truncated: the {family} codestream ends early")


def _jpeg(data: bytes) -> tuple[Codestream, bytes]:
    facts: Codestream | None = None
    colors = ""
    place = 2
    while True:
        while data[place : place + 2] == b"\xff\xff":
            place += 1
        code, length = data[place + 1 : place + 2], _number(data, place + 2, 2)
        if data[place : place + 1] != b"\xff" or not code or (length < 2 and code[0] not in _ALONE):
            raise ends_early(facts.family if facts else JPEG)
        body = data[place + 4 : place + 2 + length]
        if code[0] in _FRAMES:
            facts = _start_of_frame(code[0], body)
        elif code[0] == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            colors = "ybr" if body[11] == 1 else "rgb"
        elif code[0] == 0xE0 and body.startswith(b"JFIF"):
            colors = colors or "ybr"
        elif code[0] == 0xDA:
            break
        place += 2 if code[0] in _ALONE else 2 + length
    end = data.rfind(b"\xff\xd9")
    if facts is None or end < place:
        raise ends_early(facts.family if facts else JPEG)
    if facts.family == JPEG_LS:
        lossy = bool(body[1 + 2 * body[0]]) if len(body) > 1 + 2 * body[0] else False  # NEAR
        return replace(facts, lossy=lossy), data[: end + 2]
    return replace(facts, colors=facts.colors or colors), data[: end + 2]


def _start_of_frame(code: int, body: bytes) -> Codestream:
    if len(body) < 9 or len(body) < 6 + 3 * body[5]:
        raise ends_early(JPEG_LS if code == 0xF7 else JPEG)
    components = [body[6 + 3 * number : 9 + 3 * number] for number in range(body[5])]
    named = bytes(component[0] for component in components)
    return Codestream(
        family=JPEG_LS if code == 0xF7 else JPEG,
        shape=(_number(body, 1, 2), _number(body, 3, 2), body[5]),
        bits=body[0],
        lossy=code not in _LOSSLESS,
        colors="rgb" if named.upper() == b"RGB" else "",
        halved=len({component[1] for component in components}) > 1,
    )


def _jpeg_2000(data: bytes) -> tuple[Codestream, bytes]:
    if len(data) < 43:
        raise ends_early(JPEG_2000)
    width, height = _number(data, 8, 4) - _number(data, 16, 4), _number(data, 12, 4) - _number(data, 20, 4)
    count = _number(data, 40, 2)
    parts = [data[42 + 3 * number : 45 + 3 * number] for number in range(count)]
    if not parts or len(parts[-1]) < 3:
        raise ends_early(JPEG_2000)
    if len({part[0] for part in parts}) > 1:
        message = "the JPEG 2000 codestream has components of different bits: expected equal ones"
        raise DicomError(message)
    facts = Codestream(
        family=JPEG_2000,
        shape=(height, width, count),
        bits=(parts[0][0] & 0x7F) + 1,
        signed=parts[0][0] > 0x7F,
        halved=len({part[1:] for part in parts}) > 1,
    )
    place = 4 + _number(data, 4, 2)
    while data[place : place + 2] != b"\xff\x90":  # the main header ends at the first tile
        length = _number(data, place + 2, 2)
        if data[place : place + 1] != b"\xff" or length < 2:
            raise ends_early(JPEG_2000)
        if data[place + 1] == 0x52 and length >= 12:
            colors = "rgb" if data[place + 8] else ""  # the decoder turns these components back into RGB
            facts = replace(facts, colors=colors, lossy=data[place + 13] == 0)
        place += 2 + length
    return facts, data[: _last_tile(data, place) + 2]


def _last_tile(data: bytes, place: int) -> int:
    """Position of the end mark, by the lengths of the tile parts."""
    while data[place : place + 2] == b"\xff\x90":
        length = _number(data, place + 6, 4)
        if length == 0:  # this one reaches to the end
            place = data.rfind(b"\xff\xd9")
            break
        place += max(length, 12)
    if place < 0 or data[place : place + 2] != b"\xff\xd9":
        raise ends_early(JPEG_2000)
    return place


def _number(data: bytes, place: int, size: int) -> int:
    """A big-endian number; -1 beyond the end."""
    part = data[place : place + size]
    return int.from_bytes(part, "big") if len(part) == size else -1
