"""TIFF pictures: selection of pages, and their pixels."""

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
_PLAIN = ("generic", "uniform")  # series of files without metadata about their pages
_JPEG, _JPEG_2000 = frozenset((7, 34892, 33007)), frozenset((33003, 33004, 33005, 34712))
_MAX_RATIO = 2048  # bytes of pixels out of one byte of a file, beyond which a size is checked
_LARGE = 1 << 30  # bytes


@dataclass(frozen=True)
class _Stack:
    """The selected pages.

    Attributes:
        pages: One page for each frame and channel; None where a file of ImageJ has one page for all of them.
        first: The page that describes all of them.
        frames: Number of pictures.
        planes: Pages of a picture, one for each channel; above 1 only if the file marks them as channels.
        step: Number of pages from one channel of a picture to the next.
        notes: Notes about pages that were left out.
    """

    pages: tuple[Any, ...]
    first: Any
    frames: int = 1
    planes: int = 1
    step: int = 1
    notes: tuple[str, ...] = ()

    def of(self, frame: int) -> list[int]:
        """Numbers of the pages of one picture."""
        outer, inner = divmod(frame, self.step)
        return [(outer * self.planes + plane) * self.step + inner for plane in range(self.planes)]


def matches(first: bytes) -> bool:
    """Whether a file starts with the signature of TIFF or BigTIFF."""
    return first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(path: Path) -> FileHeader:
    """Reads shape and type, and checks that all pixels of the pages are present.

    Raises:
        FormatError: The file is truncated or damaged, or holds no picture.
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
    """Reads an array [C, row, column], reoriented by its tag Orientation, and its grid.

    Args:
        path: The file.
        frame: Number of the picture; None takes all pictures as channels. Only the pages in use are decoded.
        reading: A label keeps its stored values: palette indices, and 0 and 1 of one bit.

    Raises:
        FormatError: The file is truncated or damaged.
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
    """Refuses files of other formats by their first bytes, and names the format if it is known."""
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
    """Converts an error of tifffile to a ``FormatError``; errors of the system are returned unchanged."""
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
    """Selects the largest picture of a file, with all pages of its size and type.

    Raises:
        FormatError: There are no pages, pages have different kinds, or the axes are not those of a stack of pictures.
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
    """Stack of a file without metadata about its pages: all pages of the largest size."""
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
    """Stack of a series with named axes (ImageJ, OME, tifffile): C are channels; axes other than Y, X, S are frames."""
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
    """Facts that help to distinguish masks from pictures."""
    details: dict[str, Any] = {"bits": int(page.bitspersample)} if int(page.bitspersample) < 8 else {}
    return details | ({} if samples.palette is None else {"palette": len(samples.palette)})


def _gdal_notes(page: Any) -> tuple[str, ...]:
    """Notes about GDAL's metadata on values, which is not applied."""
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
    """Slope and intercept of ImageJ's calibration (cf=0: linear), and a note.

    Raises:
        FormatError: The calibration is not linear.
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
    """Applies ImageJ's calibration; 16-bit whole numbers with an intercept of -32768 stay whole numbers."""
    (slope, inter), _ = _calibration(file)
    if (slope, inter) == (1.0, 0.0):
        return array
    if (slope, inter) == (1.0, -32768.0) and array.dtype == np.uint16:
        return np.asarray((array.astype(np.int32) - 32768).astype(np.int16))
    return np.asarray((array.astype(np.float64) * slope + inter).astype(np.float32))


def _check_compression(page: Any) -> None:
    """Refuses a compression or predictor that cannot be decoded.

    Raises:
        FormatError: Names the compression and the predictor.
    """
    import tifffile

    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        number = int(page.compression)
        name = f"{number} {getattr(page.compression, 'name', '')}".strip()
        message = f"compression {name}, predictor {int(page.predictor)}: cannot be decoded: save it as LZW"
        raise FormatError(message) from error


def _check_bytes(stack: _Stack, size: int) -> None:
    """Checks the pages against the bytes of the file.

    Raises:
        FormatError: Pixels lie beyond the end, tiles are missing, or there are more pixels than the bytes can hold.
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
    if page is None:  # a file of ImageJ that has tags for the first page only
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
    """Checks that each JPEG inside a page is complete, since decoders silently fill in missing data."""
    compression = int(first.compression)
    if compression in _JPEG:
        for data in _segments(file, page):
            jpeg.check_segment(data, first.jpegtables)
    if compression in _JPEG_2000:
        for data in _segments(file, page):
            if b"\xff\xd9" not in data[-16:]:
                message = "truncated: the compressed data of a tile or strip end early"
                raise FormatError(message)
