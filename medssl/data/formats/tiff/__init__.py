"""TIFF pictures: which pages make the picture, and their pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medssl.data.formats.base import (
    DAMAGE,
    FileHeader,
    FormatError,
    Frames,
    Reading,
    first_line,
    picture_grid,
    silent,
    times,
)
from medssl.data.formats.picture import jpeg, orientation
from medssl.data.formats.tiff.samples import Samples, channels_of, samples_of
from medssl.data.formats.tiff.spacing import spacing_of
from medssl.types import Grid

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
NOUN = "a TIFF picture"
NEEDS_SUFFIX = False
_REDUCED, _TRANSPARENCY = 1, 4  # bits of NewSubfileType
_PLAIN = ("generic", "uniform")  # files of which nothing but their pages says what they hold
_JPEG, _JPEG_2000 = frozenset((7, 34892, 33007)), frozenset((33003, 33004, 33005, 34712))
_MAX_RATIO = 2048  # bytes of pixels out of one byte of a file, beyond which a size is checked
_LARGE = 1 << 30  # bytes


@dataclass(frozen=True)
class _Stack:
    """The pages that are taken.

    Attributes:
        pages: For each frame and channel a page; None where a file of ImageJ has one page for all of them.
        first: The page that says what all of them hold.
        frames: Pictures.
        planes: Pages of a picture, one for each channel; more than 1 only where the file says that they are channels.
        step: Pages from one channel of a picture to the next (ahead of those from one picture to the next).
        notes: What was left out.
    """

    pages: tuple[Any, ...]
    first: Any
    frames: int = 1
    planes: int = 1
    step: int = 1
    notes: tuple[str, ...] = ()

    def of(self, frame: int) -> list[int]:
        """Numbers of the pages of a picture."""
        outer, inner = divmod(frame, self.step)
        return [(outer * self.planes + plane) * self.step + inner for plane in range(self.planes)]


def matches(first: bytes) -> bool:
    """Whether a file begins as TIFF or BigTIFF does."""
    return first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(path: Path) -> FileHeader:
    """Read shape and type, and see whether all pixels that the pages name are there.

    Raises:
        FormatError: Truncated, damaged, or of a layout that is no picture.
    """
    import tifffile

    try:
        _check_content(path)
        with silent(), tifffile.TiffFile(path) as file:
            stack = _stack(file)
            header = _header(file, stack)
            _check_bytes(stack, path.stat().st_size)
    except FormatError:
        raise
    except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
        raise _as_format_error(error, "not readable as a TIFF picture") from error
    return header


def read_pixels(path: Path, frame: int | None, reading: Reading) -> tuple[np.ndarray, Grid]:
    """Read an array [C, row, column], turned as its tag Orientation says, and its grid.

    Args:
        path: The file.
        frame: Which picture of several; None takes all as channels. Only its pages are decoded.
        reading: A label keeps its stored values: places of a palette, 0 and 1 of one bit.

    Raises:
        FormatError: Truncated or damaged.
    """
    import tifffile

    try:
        _check_content(path)
        with silent(), tifffile.TiffFile(path) as file:
            stack = _stack(file)
            header, samples = _header(file, stack), samples_of(stack.first)
            _check_bytes(stack, path.stat().st_size)
            frames = range(stack.frames) if frame is None else [frame]
            pages = [_decoded(file, stack, number) for frame_number in frames for number in stack.of(frame_number)]
            channels = np.concatenate([channels_of(page, samples, label=reading.label) for page in pages])
            array = _calibrated(channels, file)
            return orientation.turn(array, _orientation(stack.first)), header.grid
    except FormatError:
        raise
    except (OSError, *DAMAGE, tifffile.TiffFileError) as error:
        raise _as_format_error(error, "truncated or damaged") from error


def _check_content(path: Path) -> None:
    """Refuse what is no TIFF by its first bytes, naming what it is where that shows."""
    with path.open("rb") as stream:
        first = stream.read(132)
    if matches(first):
        return
    names = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp"}
    ending = next((name for magic, name in names.items() if first.startswith(magic)), "")
    ending = ".dcm" if first[128:132] == b"DICM" else ending
    advice = f"rename it to end in {ending}" if ending else "its first bytes are not those of TIFF"
    message = f"not readable as a TIFF picture: {advice}"
    raise FormatError(message)


def _as_format_error(error: BaseException, what: str) -> BaseException:
    """One line of an error of tifffile; an error of the system stays as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = first_line(error)
    if type(error).__module__.startswith("imagecodecs") or "compress" in text or "decode" in text.lower():
        text = "the compressed data of a strip or tile are damaged"
    elif "cannot be reshaped" in text or "cannot reshape" in text:
        text = "a strip or tile holds fewer pixels than its size says"
    elif text.startswith("numbers or words") or isinstance(
        error, (TypeError, AttributeError, LookupError, ArithmeticError, struct.error)
    ):
        text = "tags that contradict each other or make no sense"
    return FormatError(f"{what}: {text}")


def _stack(file: Any) -> _Stack:
    """The largest picture of a file with all pages of its size and type, by what the file says of its pages.

    Raises:
        FormatError: No pages, pages of different kinds, or axes that are no stack of pictures.
    """
    series = file.series
    if not series:
        message = "a TIFF file without pages"
        raise FormatError(message)
    if len(series) == 1 and len(series[0].pages) == 1:
        return _Stack(tuple(series[0].pages), series[0].keyframe)
    if all(entry.kind in _PLAIN for entry in series):
        return _stack_of_pages(file)
    main = max(series, key=lambda entry: entry.keyframe.imagelength * entry.keyframe.imagewidth)
    if main.is_multifile:
        message = "pixels in several files (OME): only one file is read"
        raise FormatError(message)
    notes = () if len(series) == 1 else (f"other pictures of the file left out: {len(series) - 1}",)
    return _stack_of_series(main, notes)


def _stack_of_pages(file: Any) -> _Stack:
    """Pages of a file that says nothing about them: those of the largest size are pictures of one stack."""
    pages = [file.pages.get(number, aspage=True, validate=False) for number in range(len(file.pages))]
    pages = [page for page in pages if not int(page.subfiletype) & _TRANSPARENCY] or pages
    pages = [page for page in pages if not int(page.subfiletype) & _REDUCED] or pages
    size = max((page.imagelength * page.imagewidth, page.imagelength, page.imagewidth) for page in pages)[1:]
    main = [page for page in pages if (page.imagelength, page.imagewidth) == size]
    first = main[0]
    for page in main[1:]:
        kinds = [
            (compared.dtype, compared.samplesperpixel, int(compared.photometric), _orientation(compared))
            for compared in (first, page)
        ]
        if kinds[0] != kinds[1]:
            message = f"pages of one size but of different kinds (1 and {page.index + 1}): split the file"
            raise FormatError(message)
    left_out = len(pages) - len(main)
    notes = (f"smaller pages left out: {left_out}",) if left_out else ()
    return _Stack(tuple(main), first, len(main), notes=notes)


def _stack_of_series(series: Any, notes: tuple[str, ...]) -> _Stack:
    """Pages of a series with named axes (ImageJ, OME, tifffile): C are channels, others but Y, X and S frames."""
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    inside = len([letter for letter in series.keyframe.axes if letter in "YXS"])
    lengths = list(zip(axes, shape, strict=True))
    count = int(np.prod(shape, dtype=np.int64)) // int(np.prod(series.keyframe.shape, dtype=np.int64))
    outer = [(letter, length) for letter, length in lengths if letter not in "YXS" and length > 1]
    if int(np.prod([length for _, length in outer], dtype=np.int64)) != count or inside < 2:
        message = f"layout {axes} {times(shape)}: the pages are no stack of pictures"
        raise FormatError(message)
    letters = [letter for letter, _ in outer]
    planes = dict(outer).get("C", 1)
    step = 1
    if "C" in letters:
        step = int(np.prod([length for _, length in outer[letters.index("C") + 1 :]], dtype=np.int64))
    pages = tuple(series.pages[number] for number in range(count))
    if None in pages and series.dataoffset is None:
        message = f"pages are missing: {sum(page is None for page in pages)} of {count} that the file describes"
        raise FormatError(message)
    return _Stack(pages, series.keyframe, count // planes, planes, step, notes)


def _header(file: Any, stack: _Stack) -> FileHeader:
    """Kind, channels, grid and notes."""
    page = stack.first
    if int(page.imagedepth) > 1 or not set(page.axes) <= set("YXS"):
        message = f"a page with axes {page.axes}: only flat pages are read"
        raise FormatError(message)
    samples = samples_of(page)
    if stack.planes > 1 and samples.palette is not None:
        message = "channels with a palette: whether numbers or colors are meant is not certain; save them as gray"
        raise FormatError(message)
    _check_compression(page)
    spacing, size = spacing_of(file, page)
    turn = _orientation(page)
    shape = (int(page.imagelength), int(page.imagewidth))
    grid = picture_grid(*orientation.turned_shape(shape, turn), orientation.turned_pair(spacing, turn))
    frames = Frames(stack.frames, "pages") if stack.frames > 1 else Frames()
    channels = samples.channels * stack.planes
    domain = samples.value_domain if channels in (1, 3) and stack.planes == 1 else "gray"
    notes = (*orientation.note(turn), *samples.notes, *stack.notes, *_calibration(file)[1], *size, *_gdal_notes(page))
    dtype = _calibrated(np.zeros(0, samples.dtype), file).dtype.name
    return FileHeader("image", domain, channels, grid, frames, dtype, notes, _details(page, samples))


def _details(page: Any, samples: Samples) -> dict[str, Any]:
    """What helps to tell a mask from a picture."""
    details: dict[str, Any] = {"bits": int(page.bitspersample)} if int(page.bitspersample) < 8 else {}
    return details | ({} if samples.palette is None else {"palette": len(samples.palette)})


def _gdal_notes(page: Any) -> tuple[str, ...]:
    """What GDAL says of values, which is not applied."""
    metadata, no_data = str(page.tags.valueof(42112) or ""), page.tags.valueof(42113)
    notes = (
        ("scale and offset that GDAL gives are not applied",) if re.search('role="(scale|offset)"', metadata) else ()
    )
    return (
        notes if no_data is None else (*notes, f"values {str(no_data)[:20].strip()} mark no data (GDAL) and are kept")
    )


def _orientation(page: Any) -> int:
    """The tag Orientation of a page."""
    value = page.tags.valueof(orientation.TAG) if hasattr(page, "tags") else None
    return orientation.usable(value) if isinstance(value, int) else orientation.UPRIGHT


def _calibration(file: Any) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Slope and intercept that ImageJ gives its values (cf=0: a line), and what to say of them.

    Raises:
        FormatError: Another function than a line.
    """
    metadata = (file.imagej_metadata or {}) if file.is_imagej else {}
    kind = metadata.get("cf")
    if kind is None:
        return (1.0, 0.0), ()
    if kind != 0:
        message = f"values calibrated by function {kind} of ImageJ: only a straight line (0) is read"
        raise FormatError(message)
    inter, slope = float(metadata.get("c0", 0.0)), float(metadata.get("c1", 1.0))
    if slope == 0 or not np.isfinite([slope, inter]).all():
        message = f"values calibrated by ImageJ with slope {slope:g} and intercept {inter:g}: not usable"
        raise FormatError(message)
    is_identity = (slope, inter) == (1.0, 0.0)
    return (slope, inter), () if is_identity else (f"values times {slope:g} plus {inter:g} (calibration of ImageJ)",)


def _calibrated(array: np.ndarray, file: Any) -> np.ndarray:
    """Values after ImageJ's line; 32768 below a whole number of 16 bits stays a whole number."""
    (slope, inter), _ = _calibration(file)
    if (slope, inter) == (1.0, 0.0):
        return array
    if (slope, inter) == (1.0, -32768.0) and array.dtype == np.uint16:
        return np.asarray((array.astype(np.int32) - 32768).astype(np.int16))
    return np.asarray((array.astype(np.float64) * slope + inter).astype(np.float32))


def _check_compression(page: Any) -> None:
    """Refuse a compression or predictor that cannot be undone, by its name.

    Raises:
        FormatError: Names it.
    """
    import tifffile

    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        number = int(page.compression)
        name = f"{number} {getattr(page.compression, 'name', '')}".strip()
        message = f"compression {name}, predictor {int(page.predictor)}: cannot be decoded: save it as LZW"
        raise FormatError(message.replace("  ", " ")) from error


def _check_bytes(stack: _Stack, size: int) -> None:
    """Compare what the pages name with the bytes of the file.

    Raises:
        FormatError: Pixels beyond the end, missing tiles, or more pixels than the bytes can hold.
    """
    first = stack.first
    segments = int(np.prod(first.chunked, dtype=np.int64))
    total = int(first.nbytes) * stack.frames * stack.planes
    pages = [page for page in stack.pages if page is not None]
    end = packed = 0
    for page in pages:
        offsets, counts = page.dataoffsets, page.databytecounts
        if len(offsets) < segments or len(counts) < segments or 0 in counts[:segments]:
            message = f"pages with missing strips or tiles: expected {segments} of them with pixels"
            raise FormatError(message)
        end = max(end, *(start + count for start, count in zip(offsets, counts, strict=False)))
        packed += sum(counts)
    tile = int(np.prod(first.chunks, dtype=np.int64)) * np.dtype(first.dtype).itemsize
    if tile > max(_LARGE // 16, 16 * int(first.nbytes)):
        message = f"damaged: strips or tiles of {tile:,} bytes in a page of {int(first.nbytes):,}"
        raise FormatError(message)
    if first.is_contiguous and len(pages) < stack.frames * stack.planes:
        end = max(end, first.dataoffsets[0] + total)
    elif first.is_contiguous:
        end = max(end, *(page.dataoffsets[0] + int(first.nbytes) for page in pages))
    elif total > max(_LARGE, _MAX_RATIO * packed):
        message = f"damaged: {packed:,} bytes cannot hold pixels of {total:,} bytes"
        raise FormatError(message)
    bits = first.bitspersample if isinstance(first.bitspersample, int) else 0
    page_bytes = -(-int(first.imagewidth) * bits * int(first.samplesperpixel) // 8) * int(first.imagelength)
    if (
        int(first.compression) == 1
        and not first.is_tiled
        and bits
        and packed > len(pages) * (page_bytes * 1.05 + 64 + 4 * segments)
    ):
        message = f"damaged: {packed:,} bytes of pixels where {len(pages) * page_bytes:,} of {bits} bits are expected"
        raise FormatError(message)
    if end > size:
        message = f"truncated: {size:,} of at least {end:,} bytes"
        raise FormatError(message)


def _decoded(file: Any, stack: _Stack, number: int) -> np.ndarray:
    """Samples [S, row, column] of one page."""
    first, page = stack.first, stack.pages[number]
    if page is None:  # the pages of a file of ImageJ that has tags for the first only
        dtype = np.dtype(first.dtype).newbyteorder(file.byteorder)
        file.filehandle.seek(first.dataoffsets[0] + number * int(first.nbytes))
        array = np.frombuffer(file.filehandle.read(int(first.nbytes)), dtype).reshape(first.shape)
        array = array.astype(dtype.newbyteorder("="))
    else:
        _check_segments(file, page, first)
        array = page.asarray()
    if "S" not in first.axes:
        return array.reshape(1, first.imagelength, first.imagewidth)
    order = [first.axes.index(letter) for letter in "SYX"]
    return np.ascontiguousarray(array.transpose(order))


def _segments(file: Any, page: Any) -> Iterator[bytes]:
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        file.filehandle.seek(start)
        yield file.filehandle.read(count)


def _check_segments(file: Any, page: Any, first: Any) -> None:
    """See that each JPEG inside a page is whole: decoders fill up what is missing without a word."""
    compression = int(first.compression)
    if compression in _JPEG:
        for data in _segments(file, page):
            jpeg.check_segment(data, first.jpegtables)
    if compression in _JPEG_2000:
        for data in _segments(file, page):
            if b"\xff\xd9" not in data[-16:]:
                message = "truncated: the compressed data of a tile or strip end early"
                raise FormatError(message)
