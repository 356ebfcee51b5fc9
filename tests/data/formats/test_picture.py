"""PNG, JPEG and BMP: samples, palettes, transparency, orientation, and files that are cut or damaged."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from data.make_scans import noise, write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from medssl.data.formats import picture
from medssl.data.formats.base import FormatError, Reading
from medssl.data.formats.reading import read
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update

ARRAY, LABEL = Reading(), Reading(label=True)


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Pixels that JPEG keeps well: slow waves."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(rows / (7 + c)) * np.cos(columns / (9 - c)) for c in range(channels)]
    return np.stack(waves, -1).astype(np.uint8).reshape(height, width, channels)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(samples: np.ndarray, depth: int, color: int, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG written by hand: ``samples`` [row, column(, S)], chunks ahead of and behind the pixels."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    else:
        bits = np.unpackbits(flat.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :].reshape(height, -1)
        rows = [np.packbits(row).tobytes() for row in bits]
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *before, chunk(b"IDAT", packed), after, chunk(b"IEND", b"")))


def values(file: Path, reading: Reading = ARRAY) -> np.ndarray:
    """Pixels of a picture, whose header must say their shape and type."""
    header = picture.read_header(file)
    array, grid = picture.read_pixels(file, None, reading)
    assert grid == header.grid
    assert array.shape[1:] == grid.shape
    if not reading.label:
        assert (len(array), array.dtype.name) == (header.channels, header.dtype)
    return array


def written(folder: Path, content: bytes, name: str = "x.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# --- PNG


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([(0, d) for d in (1, 2, 4, 8, 16)] + [(c, d) for c in (2, 4, 6) for d in (8, 16)]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_png_samples_span_the_range_of_their_depth(tmp_path_factory, kind, shape, seed):
    color, depth = kind
    samples = noise((*shape, {0: 1, 2: 3, 4: 2, 6: 4}[color]), np.int64, seed=seed, high=2**depth)
    file = written(tmp_path_factory.mktemp("p"), png(samples, depth, color))
    array = values(file)
    kept = samples[..., : 1 if color in (0, 4) else 3].transpose(2, 0, 1)
    assert array.dtype == (np.uint16 if depth == 16 else np.uint8)
    np.testing.assert_array_equal(array, kept * (255 // (2**depth - 1) if depth < 8 else 1))
    if depth <= 8 and color in (0, 2):
        with Image.open(file) as image:
            np.testing.assert_array_equal(
                array[0] if color == 0 else array.transpose(1, 2, 0), image.convert("RGB" if color else "L")
            )


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_label_of_few_bits_keeps_its_stored_values(tmp_path, depth):
    samples = noise((6, 7, 1), np.int64, high=2**depth)
    np.testing.assert_array_equal(values(written(tmp_path, png(samples, depth, 0)), LABEL)[0], samples[..., 0])


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_png_palette_is_colors_in_a_picture_and_classes_in_a_label(tmp_path, depth):
    places = noise((6, 7, 1), np.int64, high=4)
    palette = noise((4, 3), np.uint8, seed=3, high=255)
    file = written(tmp_path, png(places, depth, 3, chunk(b"PLTE", palette.tobytes())))
    np.testing.assert_array_equal(values(file), palette[places[..., 0]].transpose(2, 0, 1))
    np.testing.assert_array_equal(values(file, LABEL)[0], places[..., 0])
    assert picture.read_header(file).details["palette"] == 4


def test_png_place_beyond_its_palette_is_refused(tmp_path):
    places = np.full((3, 3, 1), 7)
    file = written(tmp_path, png(places, 8, 3, chunk(b"PLTE", bytes(9))))
    with pytest.raises(FormatError, match=r"^damaged: place 7 of a palette of 3 colors$"):
        picture.read_pixels(file, None, ARRAY)


def test_png_colors_of_16_bits_are_kept_outside_the_domain_of_colors(tmp_path):
    header = picture.read_header(written(tmp_path, png(noise((4, 5, 3), np.int64, high=65536), 16, 2)))
    assert (header.value_domain, header.channels, header.dtype) == ("gray", 3, "uint16")
    assert header.notes == ("colors of 16 bits: kept as three channels of gray values",)


@pytest.mark.parametrize("color", [0, 2, 3])
def test_png_transparent_color_is_said(tmp_path, color):
    before = [chunk(b"PLTE", bytes(9))] * (color == 3) + [chunk(b"tRNS", bytes({0: 2, 2: 6, 3: 1}[color]))]
    samples = noise((4, 5, 3 if color == 2 else 1), np.int64, high=3)
    assert "transparency left out" in picture.read_header(written(tmp_path, png(samples, 8, color, *before))).notes


def test_png_interlaced_reads_like_plain(tmp_path):
    array = noise((19, 13, 3), np.uint8, high=256)
    file = written(tmp_path, imagecodecs.png_encode(array))
    np.testing.assert_array_equal(values(file).transpose(1, 2, 0), array)
    # Adam7, written by hand: seven small pictures, one after the other
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for r, c, dr, dc in starts for row in array[r::dr, c::dc] if row.size]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 19, 8, 2, 0, 0, 1))
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(values(written(tmp_path, content)).transpose(1, 2, 0), array)


def test_png_resolution_is_no_size_but_pixels_that_are_not_square_are_kept(tmp_path):
    samples = noise((4, 5, 1), np.int64, high=200)
    square = written(tmp_path, png(samples, 8, 0, chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))))
    assert (picture.read_header(square).grid.spacing_mm, picture.read_header(square).notes) == ((1.0, 1.0), ())
    uneven = written(tmp_path, png(samples, 8, 0, chunk(b"pHYs", struct.pack(">IIB", 2000, 1000, 0))))
    assert picture.read_header(uneven).grid.spacing_mm == (2.0, 1.0)
    assert picture.read_header(uneven).notes == ("pixels are not square: 2 times as high as wide",)


@pytest.mark.parametrize("where", ["before", "after"])
def test_png_orientation_is_looked_for_before_and_after_the_pixels(tmp_path, where):
    exif = Image.Exif()
    exif[274] = 6
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    samples = noise((4, 5, 1), np.int64, high=200)
    content = png(samples, 8, 0, block) if where == "before" else png(samples, 8, 0, after=block)
    np.testing.assert_array_equal(values(written(tmp_path, content))[0], np.rot90(samples[..., 0], -1))


def test_png_chunk_that_must_be_understood_is_refused(tmp_path):
    content = png(noise((4, 5, 1), np.int64, high=200), 8, 0, chunk(b"QUAL", b"1"))
    with pytest.raises(FormatError, match=r"^a chunk 'QUAL' that must be understood and is not in the standard$"):
        picture.read_header(written(tmp_path, content))


def test_png_damage_is_seen_by_its_check_sum(tmp_path):
    content = bytearray(png(noise((40, 50, 1), np.int64, high=200), 8, 0))
    content[len(content) // 2] ^= 1
    file = written(tmp_path, content)
    picture.read_header(file)
    with pytest.raises(FormatError, match=r"^damaged: the check sum of chunk 'IDAT' does not fit$"):
        picture.read_pixels(file, None, ARRAY)


def test_png_cut_anywhere_is_truncated(tmp_path):
    content = png(noise((9, 8, 1), np.int64, high=200), 8, 0)
    for length in range(9, len(content)):
        file = written(tmp_path, content[:length])
        with pytest.raises(FormatError, match=r"^(truncated: |not readable as a PNG picture: )"):
            picture.read_header(file)


def test_png_whose_pixels_end_early_inside_whole_chunks_is_refused(tmp_path):
    whole = png(noise((64, 64, 1), np.int64, high=256), 8, 0)
    packed = re.search(rb"IDAT(.*)....\0\0\0\0IEND", whole, re.DOTALL).group(1)
    cut = whole[:33] + chunk(b"IDAT", packed[: len(packed) * 6 // 10]) + chunk(b"IEND", b"")
    with pytest.raises(FormatError, match=r"^truncated or damaged: "):
        picture.read_pixels(written(tmp_path, cut), None, ARRAY)


def test_png_of_an_absurd_size_is_refused_before_memory_is_taken(tmp_path):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    with pytest.raises(FormatError, match=r"^damaged: 12 bytes cannot hold 2147483647 x 2147483647 pixels$"):
        picture.read_header(written(tmp_path, content))


@pytest.mark.slow
def test_png_of_400_million_pixels_is_read(tmp_path):
    content = png(np.zeros((20_000, 20_000, 1), np.uint8), 1, 0)
    assert values(written(tmp_path, content)).shape == (1, 20_000, 20_000)


def test_animated_png_is_frames(tmp_path):
    frames = [Image.fromarray(noise((6, 5, 3), np.uint8, seed=seed, high=255)) for seed in range(3)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    header = picture.read_header(tmp_path / "x.png")
    assert (header.frames.count, header.frames.noun, header.channels) == (3, "pictures of an animation", 3)
    for number, frame in enumerate(frames):
        array, _ = picture.read_pixels(tmp_path / "x.png", number, ARRAY)
        np.testing.assert_array_equal(array.transpose(1, 2, 0), np.asarray(frame))
    assert picture.read_pixels(tmp_path / "x.png", None, ARRAY)[0].shape == (9, 6, 5)
    with pytest.raises(FormatError, match="a mask is one picture"):
        picture.read_pixels(tmp_path / "x.png", None, LABEL)


# --- JPEG and EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("reading", [ARRAY, LABEL])
def test_exif_orientation_is_applied_as_pillow_does(tmp_path, orientation, ending, reading):
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / f"x{ending}"
    Image.fromarray(smooth(24, 17)).save(file, exif=exif)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(values(file, reading), expected)
    assert bool(picture.read_header(file).notes) == (orientation > 1)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    progressive=st.booleans(),
    gray=st.booleans(),
    subsampling=st.sampled_from([0, 1, 2]),
    restarts=st.integers(0, 3),
)
def test_jpeg_reads_like_pillow_whatever_its_process(tmp_path_factory, shape, progressive, gray, subsampling, restarts):
    file = tmp_path_factory.mktemp("j") / "x.jpg"
    array = smooth(*shape)
    image = Image.fromarray(array[..., 0] if gray else array)
    image.save(file, progressive=progressive, subsampling=subsampling, restart_marker_blocks=restarts)
    with Image.open(file) as opened:
        expected = np.asarray(opened)
    np.testing.assert_array_equal(values(file), expected[None] if gray else expected.transpose(2, 0, 1))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 5])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.9, 0.99])
def test_jpeg_whose_data_are_cut_inside_a_whole_file_is_refused(tmp_path, progressive, restarts, share):
    stream = io.BytesIO()
    image = Image.fromarray(noise((96, 80, 3), np.uint8, high=255))
    image.save(stream, "JPEG", progressive=progressive, restart_marker_blocks=restarts)
    content = stream.getvalue()
    start = content.rindex(b"\xff\xda") + 14
    cut = content[: start + int((len(content) - start) * share)].rstrip(b"\xff") + b"\xff\xd9"
    file = written(tmp_path, cut, "x.jpg")
    picture.read_header(file)
    with pytest.raises(FormatError, match=r"^truncated: the compressed data of the JPEG picture end early$"):
        picture.read_pixels(file, None, ARRAY)


def test_jpeg_cut_between_its_scans_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(smooth(64, 64)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    scans = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    assert len(scans) > 5
    for start in scans[2:]:
        tables = content.rindex(b"\xff\xc4", 0, start)
        file = written(tmp_path, content[:tables] + b"\xff\xd9", "x.jpg")
        with pytest.raises(FormatError, match=r"^truncated: "):
            picture.read_pixels(file, None, ARRAY)


@pytest.mark.parametrize("share", [0.05, 0.6, 0.999])
def test_jpeg_without_its_end_is_truncated(tmp_path, share):
    stream = io.BytesIO()
    Image.fromarray(smooth(64, 64)).save(stream, "JPEG")
    file = written(tmp_path, stream.getvalue()[: int(len(stream.getvalue()) * share)], "x.jpg")
    with pytest.raises(FormatError, match=r"^truncated: [\d,]+ bytes without the end mark of a JPEG picture$"):
        picture.read_header(file)


def test_jpeg_and_bmp_of_an_absurd_size_are_refused_before_memory_is_taken(tmp_path):
    Image.fromarray(smooth(40, 32)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    place = content.index(b"\xff\xc0") + 5
    large = content[:place] + struct.pack(">HH", 65_000, 65_000) + content[place + 4 :]
    with pytest.raises(FormatError, match=r"^damaged: [\d,]+ bytes cannot hold 65000 x 65000 pixels$"):
        picture.read_header(written(tmp_path, large, "x.jpg"))
    Image.fromarray(smooth(40, 32)).save(tmp_path / "x.bmp")
    content = (tmp_path / "x.bmp").read_bytes()
    large = content[:18] + struct.pack("<ii", 200_000, 200_000) + content[26:]
    with pytest.raises(FormatError, match=r"^truncated: [\d,]+ bytes cannot hold 200000 x 200000 pixels of 24 bits$"):
        picture.read_header(written(tmp_path, large, "x.bmp"))


def test_gray_that_a_jpeg_stores_as_colors_stays_three_channels(tmp_path):
    gray = smooth(40, 32, 1)[..., 0]
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / "x.jpg", quality=98)
    assert picture.read_header(tmp_path / "x.jpg").value_domain == "rgb"
    assert np.abs(values(tmp_path / "x.jpg").astype(int) - gray).max() <= 3


def test_jpeg_with_bytes_behind_its_end_is_read(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(smooth(32, 32)).save(stream, "JPEG")
    plain = values(written(tmp_path, stream.getvalue(), "x.jpg"))
    np.testing.assert_array_equal(values(written(tmp_path, stream.getvalue() + bytes(500), "y.jpg")), plain)


def test_jpeg_that_stores_red_green_and_blue_is_not_converted(tmp_path):
    array = smooth(24, 16)
    Image.fromarray(array).save(tmp_path / "x.jpg", keep_rgb=True, quality=100)
    assert np.abs(values(tmp_path / "x.jpg").transpose(1, 2, 0).astype(int) - array).max() <= 3


def test_jpeg_of_cmyk_is_refused(tmp_path):
    Image.fromarray(noise((8, 8, 4), np.uint8), "CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(FormatError, match=r"^CMYK colors: only gray and RGB pictures are read: save it as RGB$"):
        picture.read_header(tmp_path / "x.jpg")


def test_jpeg_of_12_bits_keeps_its_range(tmp_path):
    array = (smooth(40, 48, 1)[..., 0].astype(np.uint16)) * 16
    file = written(tmp_path, imagecodecs.jpeg8_encode(array, level=95), "x.jpg")
    assert np.abs(values(file)[0].astype(int) - array).max() < 80
    assert picture.read_header(file).dtype == "uint16"


def test_jpeg_lossless_is_named(tmp_path):
    file = written(tmp_path, imagecodecs.ljpeg_encode(noise((8, 8), np.uint8, high=200)), "x.jpg")
    with pytest.raises(FormatError, match=r"^a JPEG picture of a kind that is not read \(process 3, 8 bits\)"):
        picture.read_header(file)


def test_jpeg_of_several_pictures_gives_the_first_and_says_so(tmp_path):
    first, second = (Image.fromarray(smooth(24, 16)[::step]) for step in (1, -1))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert "several pictures in one file (MPO): the first is taken" in picture.read_header(tmp_path / "x.jpg").notes
    with Image.open(tmp_path / "x.jpg") as image:
        np.testing.assert_array_equal(values(tmp_path / "x.jpg").transpose(1, 2, 0), np.asarray(image))


def test_jpeg_density_is_no_size(tmp_path):
    Image.fromarray(smooth(24, 16)).save(tmp_path / "x.jpg", dpi=(300, 300))
    assert picture.read_header(tmp_path / "x.jpg").grid.spacing_mm == (1.0, 1.0)
    Image.fromarray(smooth(24, 16)).save(tmp_path / "y.jpg", dpi=(300, 150))
    assert picture.read_header(tmp_path / "y.jpg").grid.spacing_mm == (2.0, 1.0)


# --- BMP


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp_reads_like_pillow(tmp_path, kind):
    array = noise((7, 5, {"RGB": 3, "RGBA": 4}.get(kind, 1)), np.uint8, high=3)
    image = (
        Image.fromarray(array[..., 0] > 1)
        if kind == "1"
        else Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array)
    )
    if kind == "P":
        image = Image.fromarray(array[..., 0], "P")
        image.putpalette(list(range(90, 99)))
    image.save(tmp_path / "x.bmp")
    expected = np.asarray(Image.open(tmp_path / "x.bmp").convert("L" if kind in "1L" else "RGB"))
    np.testing.assert_array_equal(values(tmp_path / "x.bmp"), np.atleast_3d(expected).transpose(2, 0, 1))
    if kind in ("1", "P"):
        stored = array[..., 0] > 1 if kind == "1" else array[..., 0]
        np.testing.assert_array_equal(values(tmp_path / "x.bmp", LABEL)[0], stored)


def test_bmp_whose_first_row_is_the_top_one(tmp_path):
    array = noise((6, 8, 3), np.uint8, high=255)
    head = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54 + 6 * 24, 0, 54, 40, 8, -6, 1, 24, 0, 0, 0, 0, 0, 0)
    file = written(tmp_path, head + array[..., ::-1].tobytes(), "x.bmp")
    np.testing.assert_array_equal(values(file).transpose(1, 2, 0), array)


def test_bmp_of_run_lengths_is_unpacked(tmp_path):
    palette = b"".join(bytes((n, n, n, 0)) for n in range(256))
    runs = bytes((5, 9, 3, 7, 0, 0)) + bytes((8, 200, 0, 1))  # a row of 5 nines and 3 sevens, above it 8 of 200
    start = 54 + len(palette)
    head = b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", start + len(runs), 0, start, 40, 8, 2, 1, 8, 1, len(runs), 0, 0, 256, 0
    )
    np.testing.assert_array_equal(
        values(written(tmp_path, head + palette + runs, "x.bmp"))[0], [[200] * 8, [9] * 5 + [7] * 3]
    )


def test_bmp_that_is_cut_is_truncated(tmp_path):
    write_picture(tmp_path / "x.bmp", noise((40, 30, 3), np.uint8))
    file = written(tmp_path, (tmp_path / "x.bmp").read_bytes()[:-200], "x.bmp")
    with pytest.raises(FormatError, match=r"^truncated: 3,534 bytes cannot hold 30 x 40 pixels of 24 bits$"):
        picture.read_header(file)


# --- names and data sets


def test_a_picture_is_read_by_its_content_and_its_name_is_said(tmp_path):
    array = noise((9, 8, 3), np.uint8, high=255)
    write_picture(tmp_path / "x.png", array)
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    np.testing.assert_array_equal(values(tmp_path / "x.jpg").transpose(1, 2, 0), array)
    assert picture.read_header(tmp_path / "x.jpg").notes == ("named .jpg, but is a PNG picture",)


@pytest.mark.parametrize("ending", [".jpe", ".JFIF", ".JPEG"])
def test_other_names_of_jpeg_are_known(tmp_path, ending):
    Image.fromarray(smooth(24, 16)).save(tmp_path / f"x{ending}", "JPEG")
    assert picture.read_header(tmp_path / f"x{ending}").notes == ()


def test_a_turned_picture_is_indexed_and_read_turned(tmp_path):
    exif = Image.Exif()
    exif[274] = 8
    (tmp_path / "d").mkdir()
    Image.fromarray(smooth(24, 17)).save(tmp_path / "d" / "x.png", exif=exif)
    with Index.open(tmp_path / "i.sqlite", create=True, root=tmp_path) as index:
        update(index, [tmp_path / "d"], IndexOptions(files=FileOptions(workers=0)), key=b"k" * 32)
        (scan,) = index.scans()
    assert scan.grid.shape == (17, 24)
    assert scan.status.reason == "turned by 90 degrees counterclockwise, as its tag Orientation says"
    np.testing.assert_array_equal(read(scan, tmp_path).image.transpose(1, 2, 0), np.rot90(smooth(24, 17)))


# --- damage


def seeds() -> list[bytes]:
    """Small pictures of every kind."""
    found = []
    for form, options in (
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_blocks": 2}), ("BMP", {}),
    ):  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(smooth(20, 17)).save(stream, form, **options)
        found.append(stream.getvalue())
    return [*found, png(noise((5, 6, 1), np.int64, high=4), 2, 3, chunk(b"PLTE", bytes(12)))]


def reasons(folder: Path, count: int) -> list[str]:
    """Read damaged pictures: each gives pixels or a reason, and nothing else is raised."""
    random, originals, found = np.random.default_rng(5), seeds(), []
    file = folder / "x.png"
    for number in range(count):
        content = bytearray(originals[number % len(originals)])
        for _ in range(random.integers(1, 5)):
            content[random.integers(len(content))] = random.integers(256)
        file.write_bytes(content[: random.integers(1, len(content) + 1)] if number % 3 == 0 else content)
        try:
            picture.read_header(file)
            picture.read_pixels(file, None, ARRAY if number % 2 else LABEL)
        except FormatError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_pictures_have_a_reason(tmp_path, count):
    found = reasons(tmp_path, count)
    assert len(found) > count // 2
    for reason in found:
        assert re.fullmatch(r"[^\n]{8,300}", reason)
        assert not re.search(r"object at|<class|NoneType|Traceback|\bself\b|subscriptable|argument", reason), reason


def test_a_mask_with_transparency_is_refused(tmp_path):
    clear = np.dstack([smooth(16, 16, 1) * 0, smooth(16, 16, 1)])
    file = written(tmp_path, png(clear, 8, 4), "x.png")
    with pytest.raises(FormatError, match=r"^a mask with transparency: "):
        picture.read_pixels(file, None, LABEL)
    clear[..., 1] = 255
    assert not values(written(tmp_path, png(clear, 8, 4), "x.png"), LABEL).any()
