"""TIFF: samples, colors, pages, sizes of pixels, and files that are cut or damaged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from data.make_scans import noise, write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from medssl.data.formats import tiff
from medssl.data.formats.base import FormatError, Reading
from medssl.data.formats.reading import read
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import Scan

ARRAY, LABEL = Reading(), Reading(label=True)
GRAY = noise((40, 36), np.uint8, high=256)
COLORS = noise((40, 36, 4), np.uint8, seed=1, high=256)
STACK = noise((20, 40, 36), np.uint16, seed=2, high=4000)


def wrote(folder: Path, array: np.ndarray, **options) -> Path:
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / "x.tif", array, **({"metadata": None} | options))
    return folder / "x.tif"


def values(file: Path, reading: Reading = ARRAY, frame: int | None = None) -> np.ndarray:
    """Pixels of a file, whose header must say their shape and type."""
    header = tiff.read_header(file)
    array, grid = tiff.read_pixels(file, frame, reading)
    assert grid == header.grid
    assert array.shape[1:] == grid.shape
    if not reading.label:
        count = header.frames.count if frame is None else 1
        assert (len(array), array.dtype.name) == (header.channels * count, header.dtype)
    return array


def scans_of(folder: Path, **options) -> list[Scan]:
    with Index.open(folder.parent / "i.sqlite", create=True, root=folder.parent) as index:
        update(index, [folder], IndexOptions(files=FileOptions(workers=0, **options)), key=b"k" * 32)
        return [*index.scans(), *index.scans(status="rejected"), *index.scans(status="failed")]


# --- samples


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"]),
    samples=st.sampled_from([1, 2, 5, 7]),
    order=st.sampled_from("<>"),
    compression=st.sampled_from([None, "lzw", "deflate", "packbits", "zstd", "lzma"]),
    layout=st.fixed_dictionaries(
        {"planarconfig": st.sampled_from(["contig", "separate"]), "bigtiff": st.booleans()},
        optional={"tile": st.just((16, 32)), "rowsperstrip": st.just(3)},
    ),
    predictor=st.booleans(),
)
def test_samples_are_kept_whatever_their_layout(
    tmp_path_factory, dtype, samples, order, compression, layout, predictor
):
    stored = noise((samples, 21, 34), np.int16, high=120).astype(dtype)
    planar = layout["planarconfig"] == "separate"
    if samples == 1:
        stored, layout = stored[0], {**layout, "planarconfig": None}
    if "tile" in layout:
        layout = {name: value for name, value in layout.items() if name != "rowsperstrip"}
    written = stored if planar or samples == 1 else stored.transpose(1, 2, 0)
    usable = predictor and compression in ("lzw", "deflate", "zstd")
    file = wrote(
        tmp_path_factory.mktemp("t"), written, photometric="minisblack", byteorder=order, compression=compression,
        predictor=usable, **layout,
    )  # fmt: skip
    array = values(file)
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, stored.reshape(samples, 21, 34))
    assert tiff.read_header(file).value_domain == "gray"


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_packed_samples_keep_their_values(tmp_path, bits):
    array = (STACK[0] % 2**bits).astype(np.uint8 if bits < 8 else np.uint16)
    np.testing.assert_array_equal(
        values(wrote(tmp_path, array, bitspersample=bits, photometric="minisblack"))[0], array
    )


def test_one_bit_is_0_and_255_in_a_picture_and_0_and_1_in_a_label(tmp_path):
    file = wrote(tmp_path, GRAY > 99, photometric="minisblack")
    np.testing.assert_array_equal(values(file)[0], (GRAY > 99) * np.uint8(255))
    np.testing.assert_array_equal(values(file, LABEL)[0], GRAY > 99)


def test_fill_order_from_the_low_bit_is_turned(tmp_path):
    file = tmp_path / "x.tif"
    Image.fromarray(GRAY > 99).save(file, tiffinfo={266: 2})
    with tifffile.TiffFile(file) as opened:
        start, count = opened.pages[0].dataoffsets[0], opened.pages[0].databytecounts[0]
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    bits = np.unpackbits(content[start : start + count])
    content[start : start + count] = np.packbits(bits, bitorder="little")
    file.write_bytes(content.tobytes())
    np.testing.assert_array_equal(values(file)[0], (GRAY > 99) * 255)


@pytest.mark.parametrize(
    ("array", "turned"),
    [
        (GRAY, 255 - GRAY.astype(int)), (STACK[0], 65535 - STACK[0].astype(int)),
        (STACK[0].astype(np.int16) - 2000, -1 - (STACK[0].astype(int) - 2000)), (GRAY > 99, (GRAY <= 99) * 255),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_white_as_0_is_turned_round_and_said(tmp_path, array, turned, compression):
    file = wrote(tmp_path, array, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(values(file)[0], turned)
    assert tiff.read_header(file).notes == ("0 is white (MinIsWhite): values turned round",)


def test_white_as_0_of_12_bits_is_turned_in_its_range(tmp_path):
    file = wrote(tmp_path, STACK[0], photometric="miniswhite", bitspersample=12)
    np.testing.assert_array_equal(values(file)[0], 4095 - STACK[0])


def test_white_as_0_in_a_label_and_in_real_numbers_is_refused(tmp_path):
    file = wrote(tmp_path, GRAY, photometric="miniswhite")
    with pytest.raises(FormatError, match=r"^a mask in which 0 is white \(MinIsWhite\).* save it with 0 as black$"):
        tiff.read_pixels(file, None, LABEL)
    with pytest.raises(FormatError, match=r"^0 is white \(MinIsWhite\) in several samples or in real numbers"):
        tiff.read_header(wrote(tmp_path, GRAY.astype(np.float32), photometric="miniswhite"))


@pytest.mark.parametrize("packing", ["group3", "group4", "tiff_ccitt"])
def test_bits_packed_as_a_fax_are_read_like_pillow(tmp_path, packing):
    bits = np.kron(noise((10, 9), np.uint8, high=2), np.ones((4, 4), np.uint8)) > 0
    Image.fromarray(bits).save(tmp_path / "x.tif", compression=packing)
    np.testing.assert_array_equal(values(tmp_path / "x.tif")[0], bits * 255)


def test_complex_numbers_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"^complex numbers of 128 bits, sample format 6: only whole and real"):
        tiff.read_header(wrote(tmp_path, GRAY.astype(complex)))


# --- colors


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    ("kind", "note"), [("unassalpha", "left out"), ("assocalpha", "left out (colors were already")]
)
def test_transparency_is_left_out_of_the_colors_and_said(tmp_path, planar, kind, note):
    array = COLORS if planar == "contig" else COLORS.transpose(2, 0, 1)
    file = wrote(tmp_path, array, photometric="rgb", planarconfig=planar, extrasamples=[kind])
    header = tiff.read_header(file)
    assert (header.value_domain, header.channels) == ("rgb", 3)
    assert header.notes[0].startswith(f"transparency {note}")
    np.testing.assert_array_equal(values(file), COLORS[..., :3].transpose(2, 0, 1))


def test_gray_with_transparency_is_one_channel(tmp_path):
    file = wrote(
        tmp_path, COLORS[..., :2], photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"
    )
    np.testing.assert_array_equal(values(file)[0], COLORS[..., 0])


def test_a_fourth_sample_that_nothing_explains_is_a_channel(tmp_path):
    file = wrote(tmp_path, COLORS, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(values(file), COLORS.transpose(2, 0, 1))
    assert tiff.read_header(file).value_domain == "gray"
    assert "4 samples where red, green and blue are three" in tiff.read_header(file).notes[0]


def test_colors_of_16_bits_are_kept_outside_the_domain_of_colors(tmp_path):
    file = wrote(tmp_path, COLORS[..., :3].astype(np.uint16) * 257, photometric="rgb")
    header = tiff.read_header(file)
    assert (header.value_domain, header.channels, header.dtype) == ("gray", 3, "uint16")
    np.testing.assert_array_equal(values(file), COLORS[..., :3].transpose(2, 0, 1).astype(int) * 257)


@pytest.mark.parametrize("eight", [False, True])
def test_palette_is_colors_in_a_picture_and_classes_in_a_label(tmp_path, eight):
    table = noise((3, 256), np.int64, seed=4, high=256)
    written = (table if eight else table * 257).astype(np.uint16)  # some programs write 8 bits where 16 belong
    file = wrote(tmp_path, GRAY, photometric="palette", colormap=written)
    np.testing.assert_array_equal(values(file), table[:, GRAY])
    np.testing.assert_array_equal(values(file, LABEL)[0], GRAY)
    if not eight:
        with Image.open(file) as image:
            np.testing.assert_array_equal(values(file).transpose(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("photometric", "samples", "says"),
    [("separated", 4, "CMYK"), ("cielab", 3, "CIELab"), ("ycbcr", 3, "YCbCr"), ("icclab", 3, "ICCLab")],
)
def test_other_colors_are_refused_by_name(tmp_path, photometric, samples, says):
    with pytest.raises(FormatError, match=f"^{says} colors: only gray and RGB pictures are read: save it as RGB$"):
        tiff.read_header(wrote(tmp_path, COLORS[..., :samples], photometric=photometric))


def test_jpeg_inside_is_rgb_as_pillow_gives_it(tmp_path):
    rows, columns = np.mgrid[:64, :48]
    array = np.stack([rows * 3, columns * 4, rows + columns], -1).astype(np.uint8)
    file = wrote(tmp_path, array, photometric="ycbcr", compression="jpeg", tile=(32, 32))
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(values(file).transpose(1, 2, 0) - expected).max() <= 3
    assert tiff.read_header(file).value_domain == "rgb"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_orientation_is_applied_as_pillow_does(tmp_path, orientation, compression):
    extra = [(274, "H", 1, orientation, True)]
    file = wrote(tmp_path, COLORS[..., :3], photometric="rgb", extratags=extra, compression=compression)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(values(file), expected)
    assert bool(tiff.read_header(file).notes) == (orientation > 1)


# --- pages


def write_pages(file: Path, pages: list[np.ndarray], **options) -> Path:
    file.parent.mkdir(exist_ok=True)
    with tifffile.TiffWriter(file) as writer:
        for number, page in enumerate(pages):
            its = {name: value(number) if callable(value) else value for name, value in options.items()}
            writer.write(page, contiguous=False, metadata=None, **({"photometric": "minisblack"} | its))
    return file


@pytest.mark.parametrize("rows", [8, lambda number: 8 if number % 2 else 40])
def test_pages_are_frames_never_channels(tmp_path, rows):
    file = write_pages(tmp_path / "d" / "x.tif", list(STACK), rowsperstrip=rows)
    header = tiff.read_header(file)
    assert (header.frames.count, header.frames.noun, header.channels) == (20, "pages", 1)
    for frame in (0, 7, 19):
        np.testing.assert_array_equal(values(file, frame=frame)[0], STACK[frame])
    (scan,) = scans_of(tmp_path / "d")
    assert scan.status.code == "rejected"
    assert re.match(r"several frames in a file: 20 pages; take them as .* files\.frames", scan.status.reason)
    each = scans_of(tmp_path / "d", frames="scans")
    seen = {read(scan, tmp_path).image.tobytes() for scan in each}
    assert seen == {page.tobytes() for page in STACK}


def test_one_frame_is_read_without_the_pixels_of_others(tmp_path):
    file = write_pages(tmp_path / "x.tif", list(STACK[:3]), compression="lzw")
    with tifffile.TiffFile(file) as opened:
        start = opened.pages[2].dataoffsets[0]
    content = bytearray(file.read_bytes())
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)
    np.testing.assert_array_equal(values(file, frame=1)[0], STACK[1])
    with pytest.raises(
        FormatError, match=r"^truncated or damaged: the compressed data of a strip or tile are damaged$"
    ):
        tiff.read_pixels(file, 2, ARRAY)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lzma"])
def test_damage_of_packed_pages_is_told_without_the_words_of_a_library(tmp_path, compression):
    noise = np.random.default_rng(0).integers(0, 40, (64, 64), np.uint16)  # packed, but hardly predictable
    file = write_pages(tmp_path / "x.tif", [noise], compression=compression)
    with tifffile.TiffFile(file) as opened:
        start = opened.pages[0].dataoffsets[0]
    content = bytearray(file.read_bytes())
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(
        FormatError, match=r"^truncated or damaged: the compressed data of a strip or tile are damaged$"
    ):
        tiff.read_pixels(file, 0, ARRAY)


def test_a_thumbnail_is_left_out_and_said(tmp_path):
    file = write_pages(tmp_path / "x.tif", [GRAY[:10, :9], GRAY])
    np.testing.assert_array_equal(values(file)[0], GRAY)
    assert tiff.read_header(file).notes == ("smaller pages left out: 1",)


@pytest.mark.parametrize("inside", [False, True])
def test_a_pyramid_gives_its_largest_level(tmp_path, inside):
    large = np.kron(GRAY, np.ones((4, 4), np.uint8))
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(large, tile=(16, 16), metadata=None, subifds=int(inside), photometric="minisblack")
        writer.write(GRAY, tile=(16, 16), metadata=None, subfiletype=1, photometric="minisblack")
    np.testing.assert_array_equal(values(tmp_path / "x.tif")[0], large)
    header = tiff.read_header(tmp_path / "x.tif")
    assert (header.frames.count, header.notes) == (1, ())


def test_pages_of_one_size_and_different_kinds_are_refused(tmp_path):
    file = write_pages(tmp_path / "x.tif", [GRAY, STACK[0]])
    with pytest.raises(FormatError, match=r"^pages of one size but of different kinds \(1 and 2\): split the file$"):
        tiff.read_header(file)


@pytest.mark.parametrize("form", ["imagej", "ome"])
def test_hyperstacks_have_channels_and_frames(tmp_path, form):
    array = STACK.reshape(2, 5, 2, 40, 36)
    axes = "TZCYX" if form == "imagej" else "TCZYX"
    wrote(tmp_path, array, metadata={"axes": axes}, photometric="minisblack", **{form: True})
    header = tiff.read_header(tmp_path / "x.tif")
    frames = array.reshape(10, 2, 40, 36) if form == "imagej" else array.transpose(0, 2, 1, 3, 4).reshape(4, 5, 40, 36)
    assert (header.frames.count, header.channels) == frames.shape[:2]
    for frame in (0, 3, len(frames) - 1):
        np.testing.assert_array_equal(values(tmp_path / "x.tif", frame=frame), frames[frame])
    everything = values(tmp_path / "x.tif")
    np.testing.assert_array_equal(everything, frames.reshape(-1, 40, 36))


def test_axes_that_tifffile_wrote_are_channels(tmp_path):
    file = wrote(tmp_path, STACK[:5], metadata={"axes": "CYX"}, photometric="minisblack")
    header = tiff.read_header(file)
    assert (header.channels, header.frames.count, header.value_domain) == (5, 1, "gray")
    np.testing.assert_array_equal(values(file), STACK[:5])


def test_pages_that_ome_describes_and_the_file_lacks_are_refused(tmp_path):
    file = wrote(tmp_path, STACK[:3], ome=True, metadata={"axes": "ZYX"}, photometric="minisblack", compression="lzw")
    content = file.read_bytes()
    file.write_bytes(content.replace(b'SizeZ="3"', b'SizeZ="5"'))
    with pytest.raises(FormatError, match=r"^pages are missing: 2 of 5 that the file describes$"):
        tiff.read_header(file)


def test_colors_in_a_stack_of_imagej_are_frames_of_rgb(tmp_path):
    array = noise((4, 9, 8, 3), np.uint8, high=255)
    file = wrote(tmp_path, array, imagej=True, metadata={"axes": "ZYXS"})
    header = tiff.read_header(file)
    assert (header.value_domain, header.channels, header.frames.count) == ("rgb", 3, 4)
    np.testing.assert_array_equal(values(file, frame=2), array[2].transpose(2, 0, 1))


def test_what_gdal_says_of_values_is_told(tmp_path):
    about = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.1</Item></GDALMetadata>'
    extra = [(42112, "s", 0, about, True), (42113, "s", 0, "-9999", True)]
    file = wrote(tmp_path, GRAY, photometric="minisblack", extratags=extra)
    assert tiff.read_header(file).notes == (
        "scale and offset that GDAL gives are not applied",
        "values -9999 mark no data (GDAL) and are kept",
    )
    np.testing.assert_array_equal(values(file)[0], GRAY)


def test_a_page_of_voxels_is_refused(tmp_path):
    file = wrote(tmp_path, STACK[:16], volumetric=True, tile=(16, 16, 16), photometric="minisblack")
    with pytest.raises(FormatError, match=r"^a page with axes ZYX: only flat pages are read$"):
        tiff.read_header(file)


# --- sizes


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"resolution": (100, 50), "resolutionunit": "centimeter"}, (0.2, 0.1)),
        ({"resolution": (101_600, 101_600), "resolutionunit": "inch"}, (0.00025, 0.00025)),
        ({"resolution": (2, 4), "imagej": True, "metadata": {"unit": "um"}}, (0.00025, 0.0005)),
        ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "micron"}}, (0.0005, 0.0005)),
        ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "\\u00B5m"}}, (0.0005, 0.0005)),
        ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "mm"}}, (0.5, 0.5)),
        ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}}, (0.0005, 0.00025)),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "YX", "PhysicalSizeX": 2, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.3,
                    "PhysicalSizeYUnit": "mm",
                },
            },
            (0.3, 2e-6),
        ),
    ],
)  # fmt: skip
def test_a_size_of_pixels_becomes_millimeters_and_is_said(tmp_path, options, spacing):
    header = tiff.read_header(wrote(tmp_path, GRAY, photometric="minisblack", **options))
    np.testing.assert_allclose(header.grid.spacing_mm, spacing, rtol=1e-6)
    np.testing.assert_allclose(np.diag(header.grid.affine)[:2], spacing, rtol=1e-6)
    assert re.fullmatch(r"pixels of .* mm by (its resolution|ImageJ|OME-XML)", header.notes[-1])


@pytest.mark.parametrize(
    ("options", "spacing", "notes"),
    [
        ({}, (1, 1), ()),
        ({"resolution": (300, 300), "resolutionunit": "inch"}, (1, 1), ("300 dots per inch are not taken",)),
        ({"resolution": (28.35, 28.35), "resolutionunit": "centimeter"}, (1, 1), ("72.01 dots per inch are not",)),
        ({"resolution": (2, 1), "resolutionunit": "none"}, (2, 1), ("pixels are not square: 2 times as high",)),
        ({"resolution": (1, 1), "resolutionunit": "inch"}, (1, 1), ()),
    ],
)
def test_a_resolution_of_displays_is_no_size(tmp_path, options, spacing, notes):
    header = tiff.read_header(wrote(tmp_path, GRAY, photometric="minisblack", **options))
    assert header.grid.spacing_mm == spacing
    assert len(header.notes) == len(notes)
    assert all(found.startswith(note) for found, note in zip(header.notes, notes, strict=True))


def test_a_turned_picture_turns_its_spacing(tmp_path):
    extra = [(274, "H", 1, 6, True)]
    file = wrote(tmp_path, GRAY, photometric="minisblack", resolution=(100, 50), resolutionunit=3, extratags=extra)
    assert tiff.read_header(file).grid.spacing_mm == (0.1, 0.2)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"cf": 0, "c0": -32768.0, "c1": 1.0}, STACK[0].astype(int) - 32768),
        ({"cf": 0, "c0": 10.0, "c1": 0.5}, STACK[0] * 0.5 + 10),
    ],
)
def test_values_are_calibrated_as_imagej_says(tmp_path, line, expected):
    file = wrote(tmp_path, STACK[0], imagej=True, metadata=line)
    np.testing.assert_allclose(tiff.read_pixels(file, None, ARRAY)[0][0], expected)
    assert "(calibration of ImageJ)" in tiff.read_header(file).notes[0]
    assert tiff.read_header(file).dtype == tiff.read_pixels(file, None, ARRAY)[0].dtype.name


def test_a_calibration_that_is_no_line_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"^values calibrated by function 20 of ImageJ: only a straight line"):
        tiff.read_header(wrote(tmp_path, STACK[0], imagej=True, metadata={"cf": 20}))


# --- damage


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg"])
def test_a_cut_file_is_truncated(tmp_path, compression):
    file = wrote(tmp_path, np.tile(GRAY, (4, 4)), compression=compression, photometric="minisblack")
    with tifffile.TiffFile(file) as opened:
        end = opened.pages[0].dataoffsets[-1] + opened.pages[0].databytecounts[-1]
    file.write_bytes(file.read_bytes()[: end - 50])
    with pytest.raises(FormatError, match=r"^truncated: [\d,]+ of at least [\d,]+ bytes$"):
        tiff.read_header(file)


@pytest.mark.parametrize("compression", ["lzw", "deflate", "packbits", "jpeg", "zstd", "jpeg2000", "lzma"])
def test_data_that_are_cut_inside_a_whole_file_are_refused(tmp_path, compression):
    file = wrote(tmp_path, np.tile(GRAY, (3, 3)), compression=compression, rowsperstrip=200, photometric="minisblack")
    with tifffile.TiffFile(file, mode="r+") as opened:
        count = opened.pages[0].databytecounts[0]
        opened.pages[0].tags[279].overwrite(count * 6 // 10)
    tiff.read_header(file)
    with pytest.raises(FormatError, match=r"^truncated") as caught:
        tiff.read_pixels(file, None, ARRAY)
    assert "shape" not in str(caught.value)


def test_missing_tiles_are_refused(tmp_path):
    file = wrote(tmp_path, GRAY, tile=(16, 16), photometric="minisblack")
    with tifffile.TiffFile(file, mode="r+") as opened:
        counts = list(opened.pages[0].databytecounts)
        opened.pages[0].tags[325].overwrite([*counts[:-1], 0])
    with pytest.raises(FormatError, match=r"^pages with missing strips or tiles: expected 9 of them with pixels$"):
        tiff.read_header(file)


def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path):
    file = wrote(tmp_path, GRAY, photometric="minisblack", compression="deflate")
    with tifffile.TiffFile(file, mode="r+") as opened:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            opened.pages[0].tags[name].overwrite(60_000)
    with pytest.raises(FormatError, match=r"^damaged: [\d,]+ bytes cannot hold pixels of 3,600,000,000 bytes$"):
        tiff.read_header(file)


def test_a_compression_that_is_not_decoded_is_named(tmp_path):
    file = wrote(tmp_path, GRAY, photometric="minisblack", compression="deflate")
    with tifffile.TiffFile(file, mode="r+") as opened:
        opened.pages[0].tags["Compression"].overwrite(34676)
    with pytest.raises(FormatError, match=r"^compression 34676 SGILOG, predictor 1: cannot be decoded"):
        tiff.read_header(file)


def test_what_is_no_tiff_is_named(tmp_path):
    write_picture(tmp_path / "x.png", GRAY)
    (tmp_path / "x.png").rename(tmp_path / "x.tif")
    with pytest.raises(FormatError, match=r"^not readable as a TIFF picture: rename it to end in \.png$"):
        tiff.read_header(tmp_path / "x.tif")


def reasons(folder: Path, count: int) -> list[str]:
    """Read damaged files: each gives pixels or a reason, and nothing else is raised."""
    originals = []
    for options in ({}, {"compression": "lzw", "tile": (16, 16)}, {"imagej": True, "metadata": {"unit": "um"}}):
        originals.append(wrote(folder, GRAY[:20, :18], **options).read_bytes())
    originals.append(write_pages(folder / "x.tif", list(STACK[:2, :9, :9])).read_bytes())
    colors = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
    originals.append(wrote(folder, GRAY[:8, :8], **colors).read_bytes())
    random, found, file = np.random.default_rng(6), [], folder / "x.tif"
    for number in range(count):
        content = bytearray(originals[number % len(originals)])
        for _ in range(random.integers(1, 4)):
            content[int(random.integers(min(len(content), 300 if number % 2 else len(content))))] = random.integers(256)
        file.write_bytes(content[: random.integers(1, len(content) + 1)] if number % 5 == 0 else content)
        try:
            tiff.read_header(file)
            tiff.read_pixels(file, None, ARRAY if number % 2 else LABEL)
        except FormatError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_have_a_reason(tmp_path, count):
    found = reasons(tmp_path, count)
    assert len(found) > count // 3
    for reason in found:
        assert re.fullmatch(r"[^\n]{8,300}", reason)
        assert not re.search(r"object at|<class|NoneType|Traceback|\bself\b|subscriptable|argument", reason), reason


def test_strips_of_more_bytes_than_their_bits_are_refused(tmp_path):
    import tifffile

    file = wrote(tmp_path, STACK[0].astype(np.uint16), photometric="minisblack")
    with tifffile.TiffFile(file) as opened:
        place = opened.pages[0].tags[258].valueoffset
    content = bytearray(file.read_bytes())
    content[place : place + 2] = (12).to_bytes(2, "little")
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"^damaged: [\d,]+ bytes of pixels where [\d,]+ of 12 bits are expected$"):
        tiff.read_header(file)
