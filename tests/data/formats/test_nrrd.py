"""NRRD: values, geometry and every field that changes them; files that a header names."""

from __future__ import annotations

import bz2
import gzip
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from data.formats.mutants import check_mutants
from data.make_scans import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats import nrrd
from medssl.data.formats.base import FormatError, Reading, check_grid

VOLUME = noise((4, 5, 6))
SPACE = {
    "space": "left-posterior-superior", "space directions": "(0.5,0,0) (0,0.75,0) (0,0,2)", "space origin": "(1,2,3)"
}  # fmt: skip
LPS = np.array([[-0.5, 0, 0, -1], [0, -0.75, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1.0]])
TYPES = {"i2": "short", "u1": "uchar", "f4": "float", "u2": "ushort", "i4": "int", "f8": "double"}


def header(array: np.ndarray, **fields: Any) -> str:
    """Header lines for (i, j, k, ...); a field of None is left out."""
    lines: dict[str, Any] = {
        "type": TYPES[array.dtype.str[1:]], "dimension": array.ndim, "sizes": " ".join(map(str, array.shape)),
        "endian": "little", "encoding": "raw",
    } | SPACE | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    return "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None)


def scan(array: np.ndarray = VOLUME, **fields: Any) -> bytes:
    return (header(array, **fields) + "\n").encode() + array.tobytes(order="F")


def written(folder: Path, content: bytes, name: str = "x.nrrd") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def about(folder: Path, *args: Any, **fields: Any) -> Any:
    return nrrd.read_header(written(folder, scan(*args, **fields)))


def refused(folder: Path, content: bytes, message: str, name: str = "x.nrrd") -> None:
    with pytest.raises(FormatError, match=message) as caught:
        nrrd.read_header(written(folder, content, name))
    assert "\n" not in str(caught.value)


def pixels(file: Path, frame: int | None = None) -> np.ndarray:
    return nrrd.read_pixels(file, frame, Reading())[0]


def itk_affine(image: Any) -> np.ndarray:
    affine = np.eye(4)
    turn = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3] = np.diag([-1, -1, 1]) @ np.column_stack([turn, image.GetOrigin()])
    return affine


# --- against SimpleITK and pynrrd


@settings(max_examples=40, deadline=None)
@given(
    space=st.sampled_from(["left-posterior-superior", "RAS", "left-anterior-superior", "lps"]),
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    steps=st.tuples(*[st.floats(0.3, 5)] * 3),
    origin=st.tuples(*[st.floats(-90, 90)] * 3),
    dtype=st.sampled_from(["i2", "u1", "f4", "u2", "i4", "f8", ">i2", ">f8"]),
    packing=st.sampled_from(["raw", "gzip"]),
)
def test_random_headers_read_like_itk(tmp_path_factory, space, turn, steps, origin, dtype, packing):
    x, y, z = turn
    cos, sin = np.cos, np.sin
    rotation = (
        np.array([[cos(z), -sin(z), 0], [sin(z), cos(z), 0], [0, 0, 1]])
        @ np.array([[cos(y), 0, sin(y)], [0, 1, 0], [-sin(y), 0, cos(y)]])
        @ np.array([[1, 0, 0], [0, cos(x), -sin(x)], [0, sin(x), cos(x)]])
    )
    vectors = " ".join(f"({','.join(repr(float(v)) for v in column)})" for column in (rotation * steps).T)
    array = noise((3, 4, 5), np.uint8, high=120).astype(dtype)
    fields = {
        "space": space, "space_directions": vectors, "space_origin": f"({','.join(map(repr, origin))})",
        "encoding": packing, "endian": "big" if dtype[0] == ">" else "little",
    }  # fmt: skip
    lines = (header(array.astype(array.dtype.newbyteorder("<")), **fields) + "\n").encode()
    voxels = array.tobytes(order="F")
    file = written(tmp_path_factory.mktemp("x"), lines + (gzip.compress(voxels) if packing == "gzip" else voxels))
    found, image = nrrd.read_header(file), SimpleITK.ReadImage(str(file))
    np.testing.assert_allclose(found.grid.affine, itk_affine(image), atol=1e-4)
    np.testing.assert_array_equal(pixels(file)[0], SimpleITK.GetArrayFromImage(image).T)
    assert found.notes == ()


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("detached", [False, True])
def test_encodings_of_pynrrd(tmp_path, encoding, detached):
    reference = pytest.importorskip("nrrd")
    file = tmp_path / ("x.nhdr" if detached else "x.nrrd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.write(
            str(file), VOLUME, {"encoding": encoding, "spacings": [1.0, 2.0, 3.0]}, detached_header=detached
        )
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    found = nrrd.read_header(file)
    assert found.grid.spacing_mm == (1, 2, 3)
    assert len(found.details.get("companions", [])) == int(detached)


# --- numbers


SPELLINGS = {
    "i1": "signed char|int8|int8_t", "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t", "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t", "f4": "float", "f8": "double",
}  # fmt: skip


@pytest.mark.parametrize("code", SPELLINGS)
def test_every_spelling_of_a_type_is_known(tmp_path, code):
    array = noise((3, 4, 5), np.uint8, high=120).astype(code)
    for name in SPELLINGS[code].split("|"):
        text = header(array.astype("u1"), type=name)
        file = written(tmp_path, (text + "\n").encode() + array.tobytes(order="F"))
        found = pixels(file)[0]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_text_and_hexadecimal_numbers(tmp_path):
    text = " ".join(map(str, VOLUME.ravel(order="F")))
    for encoding, voxels in (("text", text.encode()), ("hex", VOLUME.tobytes(order="F").hex().encode())):
        file = written(tmp_path, (header(VOLUME, encoding=encoding) + "\n").encode() + voxels)
        np.testing.assert_array_equal(pixels(file)[0], VOLUME)
        cut = (header(VOLUME, encoding=encoding) + "\n").encode() + voxels[: len(voxels) // 2]
        refused(tmp_path, cut, "^truncated")
    refused(tmp_path, (header(VOLUME, encoding="text") + "\n").encode() + text.replace("9", "x").encode(), "no numbers")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "block"}, "^type 'block': expected whole or real numbers"), ({"type": "char"}, "^type 'char'"),
        ({"type": None}, "no field 'type'"), ({"endian": None}, "^endian '': expected little or big"),
        ({"endian": "middle"}, "^endian 'middle'"), ({"encoding": "zrl"}, "^encoding 'zrl'"),
        ({"encoding": None}, "no field 'encoding'"), ({"dimension": "-1"}, "^dimension -1: expected 1 to 16 axes"),
        ({"dimension": "nan"}, "^dimension 'nan': expected 1 whole number$"), ({"sizes": "4 5"}, "expected 3 whole"),
        ({"sizes": "4 5 0"}, "^zero-size: sizes 4 5 0"), ({"sizes": "4 5 -6"}, "sizes 4 5 -6"),
        ({"sizes": "99999999 99999999 99999999"}, "^truncated"), ({"sizes": "4 5 9" + "9" * 400}, "expected 3 whole"),
        ({"space": "somewhere"}, "^space 'somewhere' is not known"), ({"space": "3D-left-handed"}, "where left is"),
        ({"space_directions": "(1,0,0) (0,1,0)"}, "expected 3 vectors of 3 numbers"),
        ({"space_directions": "(1,0) (0,1) (1,1)"}, "expected 3 vectors of 3 numbers"),
        ({"space_directions": "(1,0,0) (0,x,0) (0,0,1)"}, "expected numbers"),
        ({"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, "^geometry unusable: .* no finite numbers"),
        ({"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, "^geometry unusable: the axes .* in one plane"),
        ({"space_directions": "(1,0,0) (0,0,0) (0,0,1)"}, "^geometry unusable: .* axis without length"),
        ({"space_units": '"mm" "furlong" "mm"'}, "^unit of length 'furlong' is not known"),
        ({"units": '"cm" "cm" "cm"'}, "expected space units in their place"),
        ({"spacings": "3 3 3"}, "spacings and space directions contradict"),
        ({"kinds": "domain domain"}, "^kinds of 2 axes: expected 3"), ({"byte_skip": "-7"}, "byte skip -7"),
        ({"line_skip": "9000"}, "fewer than 9,000 lines"), ({"kinds": "vector domain domain"}, "expected one of both"),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense_are_refused(tmp_path, fields, message):
    refused(tmp_path, scan(**fields), message)


def test_lines_that_are_no_header_are_refused(tmp_path):
    refused(tmp_path, b"NRRD0004\nwhat\n\n", "neither a field nor a key")
    refused(tmp_path, b"NRRD0004\ntype: short\n", "the header has no end")
    refused(tmp_path, b"NRRD9\n", "its first line")
    refused(tmp_path, scan().replace(b"endian", b"type: float\nendian"), "field 'type' occurs twice")
    assert "unknown field 'color'" in about(tmp_path, color="red").notes[0]


def test_old_range_is_said(tmp_path):
    assert "quantized" in "; ".join(about(tmp_path, old_min="-1", old_max="1").notes)


# --- geometry


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("mm", 1), ("microns", 1e-3), ("um", 1e-3), ("µm", 1e-3), ("nm", 1e-6), ("cm", 10), ("m", 1e3), ("", 1)],
)
def test_lengths_are_in_mm_whatever_the_unit(tmp_path, unit, factor):
    found = about(tmp_path, space_units=f'"{unit}" "{unit}" "{unit}"')
    expected = LPS.copy()
    expected[:3] *= factor
    np.testing.assert_allclose(found.grid.affine, expected)
    assert ("converted to mm" in "; ".join(found.notes)) == (factor != 1)


def test_spacings_in_micrometers(tmp_path):
    fields = dict.fromkeys(("space", "space_directions", "space_origin")) | {"spacings": "500 500 2000"}
    found = about(tmp_path, units='"um" "um" "um"', **fields)
    assert found.grid.spacing_mm == (0.5, 0.5, 2.0)
    assert found.notes[-1].startswith("orientation is a guess: no space directions")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"space": "scanner-xyz"}, "space scanner-xyz"),
        ({"space": None, "space_dimension": 3}, "a space without a name"),
    ],
)
def test_spaces_without_left_are_said_to_be_a_guess(tmp_path, fields, words):
    assert about(tmp_path, **fields).notes == (f"orientation is a guess: {words} (left-posterior-superior taken)",)


@pytest.mark.parametrize(("centers", "origin", "step"), [("node node node", 10, 4), ("cell cell cell", 11.5, 3)])
def test_ends_of_axes_give_spacing_and_position(tmp_path, centers, origin, step):
    none = dict.fromkeys(("space", "space_directions", "space_origin"))
    array = noise((4, 4, 4))
    found = about(tmp_path, array, axis_mins="10 10 10", axis_maxs="22 22 22", centers=centers, **none)
    np.testing.assert_allclose(found.grid.affine[2], [0, 0, step, origin])


def test_missing_or_odd_spacings(tmp_path):
    none = dict.fromkeys(("space", "space_directions", "space_origin"))
    assert "axis 1 has no voxel size: 1 mm assumed" in about(tmp_path, **none).notes
    for spacings in ("0 1 1", "-1 1 1", "inf 1 1"):
        refused(
            tmp_path, scan(spacings=spacings, **none), "geometry unusable: voxel size .* expected a positive length"
        )


def test_sheared_axes_are_said(tmp_path):
    found = about(tmp_path, space_directions="(1,0.2,0) (0,1,0) (0,0,1)")
    assert "sheared axes" in found.notes[0]


def test_mirrored_space_is_read_as_it_is(tmp_path):
    found = about(tmp_path, space="left-anterior-superior")
    np.testing.assert_allclose(np.array(found.grid.affine)[:3, :3], np.diag([-0.5, 0.75, 2]))
    assert found.details["handedness"] == "left"


# --- axes


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "count", "channels"), [("vector", 1, 3), ("covariant-vector", 1, 3), ("list", 3, 1), ("time", 3, 1)]
)
def test_an_axis_outside_space_is_channels_or_frames(tmp_path, place, kind, count, channels):
    array = noise((4, 5, 6, 3))
    stored = np.moveaxis(array, 3, place)
    kinds, vectors = ["domain"] * 3, SPACE["space directions"].split()
    kinds.insert(place, kind)
    vectors.insert(place, "none")
    file = written(tmp_path, scan(stored, kinds=" ".join(kinds), space_directions=" ".join(vectors)))
    found = nrrd.read_header(file)
    assert (found.kind, found.frames.count, found.channels) == ("volume", count, channels)
    np.testing.assert_allclose(found.grid.affine, LPS)
    np.testing.assert_array_equal(pixels(file), np.moveaxis(array, -1, 0))
    if count > 1:
        np.testing.assert_array_equal(pixels(file, 2)[0], array[..., 2])


@pytest.mark.parametrize("kind", ["vector", "domain", "list"])
def test_a_measurement_frame_is_said_where_there_are_vectors(tmp_path, kind):
    fields = {"measurement_frame": "(0,1,0) (1,0,0) (0,0,1)"}
    array = VOLUME
    if kind != "domain":
        array = noise((3, 4, 5, 6))
        fields |= {"kinds": f"{kind} domain domain domain", "space directions": f"none {SPACE['space directions']}"}
    found = about(tmp_path, array, **fields)
    assert ("measurement frame not applied to the vectors" in found.notes) == (kind == "vector")
    np.testing.assert_allclose(found.grid.affine, LPS)
    values = pixels(tmp_path / "x.nrrd")
    np.testing.assert_array_equal(values if kind != "domain" else values[0], array)


@pytest.mark.parametrize(("kind", "samples"), [("RGB-color", 3), ("3-color", 3), ("RGBA-color", 4), ("4-color", 4)])
def test_colors_are_three_channels(tmp_path, kind, samples):
    array = noise((samples, 4, 5, 6), np.uint8, high=255)
    vectors = f"none {SPACE['space directions']}"
    file = written(tmp_path, scan(array, kinds=f"{kind} domain domain domain", space_directions=vectors))
    found = nrrd.read_header(file)
    assert (found.value_domain, found.channels) == ("rgb", 3)
    assert ("transparency left out" in found.notes) == (samples == 4)
    np.testing.assert_array_equal(pixels(file), array[:3])


@pytest.mark.parametrize(
    "kind", ["complex", "3D-symmetric-matrix", "2D-matrix", "quaternion", "HSV-color", "XYZ-color", "scalar"]
)
def test_what_is_no_scan_is_refused(tmp_path, kind):
    array = noise((2, 4, 5, 6))
    content = scan(array, kinds=f"{kind} domain domain domain", space_directions=f"none {SPACE['space directions']}")
    refused(tmp_path, content, f"^no scan: axis 1 of 2 values is of kind '{kind.lower()}'")


@pytest.mark.parametrize("kind", ["list", "vector"])
def test_two_axes_of_one_role_are_refused(tmp_path, kind):
    vectors = f"none none {SPACE['space directions']}"
    content = scan(noise((2, 3, 4, 5, 6)), kinds=f"{kind} {kind} domain domain domain", space_directions=vectors)
    refused(tmp_path, content, "more than one axis of frames or of channels; split the file")


def test_time_as_an_axis_of_the_space(tmp_path):
    array = noise((4, 5, 6, 3))
    vectors = "(0.5,0,0,0) (0,0.75,0,0) (0,0,2,0) (0,0,0,30)"
    file = written(
        tmp_path,
        scan(array, space="left-posterior-superior-time", space_directions=vectors, space_origin="(1,2,3,0)"),
    )
    found = nrrd.read_header(file)
    assert found.frames.count == 3
    np.testing.assert_allclose(found.grid.affine, LPS)
    np.testing.assert_array_equal(pixels(file, 1)[0], array[..., 1])


def test_four_axes_without_words_are_frames_and_said(tmp_path):
    none = dict.fromkeys(("space", "space_directions", "space_origin"))
    found = about(tmp_path, noise((4, 5, 6, 3)), spacings="1 1 2 nan", **none)
    assert found.frames.count == 3
    assert "axis 4 has no kind: taken as frames" in found.notes
    found = about(tmp_path, noise((3, 4, 5, 6)), spacings="nan 1 1 2", **none)
    assert (found.frames.count, found.grid.shape) == (3, (4, 5, 6))


def test_pictures_have_rows_along_the_second_axis(tmp_path):
    none = dict.fromkeys(("space", "space_directions", "space_origin"))
    array = noise((7, 4))
    file = written(tmp_path, scan(array, spacings="0.5 2", **none))
    found = nrrd.read_header(file)
    assert (found.kind, found.grid.shape, found.grid.spacing_mm) == ("image", (4, 7), (2.0, 0.5))
    np.testing.assert_array_equal(pixels(file)[0], array.T)


def test_own_keys_mark_label_maps_and_diffusion(tmp_path):
    content = header(VOLUME) + "Segment0_ID:=Segment_1\n\n"
    assert nrrd.read_header(written(tmp_path, content.encode() + VOLUME.tobytes())).details["intent"] == "label"
    array = noise((6, 4, 5, 6))
    fields = {"kinds": "list domain domain domain", "space_directions": f"none {SPACE['space directions']}"}
    content = header(array, **fields) + "modality:=DWMRI\n\n"
    found = nrrd.read_header(written(tmp_path, content.encode() + array.tobytes()))
    assert (found.frames.count, found.frames.noun) == (6, "diffusion-weighted volumes")


# --- files


def parts(folder: Path, array: np.ndarray) -> None:
    for k in range(array.shape[2]):
        (folder / f"s{k + 1:02d}.raw").write_bytes(array[:, :, k].tobytes(order="F"))


@pytest.mark.parametrize(
    "words", ["LIST\n" + "\n".join(f"s0{k}.raw" for k in range(1, 7)), "s%02d.raw 1 6 1", "s%02d.raw 1 6 1 2"]
)
def test_voxels_in_several_files(tmp_path, words):
    parts(tmp_path, VOLUME)
    file = written(tmp_path, (header(VOLUME) + f"data file: {words}\n").encode(), "x.nhdr")
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    names = [f"s{k:02d}.raw" for k in range(1, 7)]
    assert nrrd.read_header(file).details["companions"] == names
    (tmp_path / "s03.raw").unlink()
    refused(tmp_path, file.read_bytes(), r"^s03\.raw, which holds its voxels, is missing$", "x.nhdr")


@pytest.mark.parametrize("encoding", ["text", "hex"])
def test_numbers_as_text_in_several_files_are_refused(tmp_path, encoding):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("1 2 3\n" * 100)
    content = (header(VOLUME, encoding=encoding) + "data file: LIST\na.txt\nb.txt\n").encode()
    refused(tmp_path, content, f"^2 files of numbers as {encoding}: expected one$", "x.nhdr")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", r"^its voxels lie elsewhere \(passwd\): only files in the folder"), ("../x.raw", "elsewhere"),
        ("a/../../x.raw", "elsewhere"), ("C:\\x.raw", "elsewhere"), ("-", "elsewhere"), ("", "elsewhere"),
        ("sub", "not a regular file"), ("pipe", "not a regular file"), ("x%d%d.raw 1 2 1", "than one whole number"),
        ("x%s.raw 1 2 1", "other fields than one"), ("x%n.raw 1 2 1", "other fields"),
        ("x%99999d.raw 1 2 1", "other fields"), ("x%d.raw 1 999999999 1", "expected 1 to 100,000 files"),
        ("x%d.raw 1 2 0", "expected 1 to"), ("x%d.raw a b c", "the range a b c"), ("../x%d.raw 1 2 1", "elsewhere"),
        ("LIST", "a list of 0 files"), ("LIST\n/dev/zero", "elsewhere"),
        ("none.raw", r"^none\.raw, which holds its voxels, is missing"), ("LIST" + "\na.raw" * 7, "in 7 files"),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(tmp_path, name, message):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.raw").write_bytes(bytes(999))
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, (header(VOLUME) + f"data file: {name}\n").encode(), message, "x.nhdr")


def test_skipped_lines_and_bytes(tmp_path):
    voxels = VOLUME.tobytes(order="F")
    cases = [
        ({"byte_skip": 5}, b"12345" + voxels), ({"byte_skip": -1}, b"any" + voxels),
        ({"line_skip": 2}, b"a\nbc\n" + voxels), ({"line_skip": 1, "byte_skip": 1}, b"a\nb" + voxels),
        ({"byte_skip": 3, "encoding": "gzip"}, gzip.compress(b"abc" + voxels)),
        ({"line_skip": 1, "encoding": "bzip2"}, b"a\n" + bz2.compress(voxels)),
    ]  # fmt: skip
    for fields, raw in cases:
        (tmp_path / "x.raw").write_bytes(raw)
        file = written(tmp_path, (header(VOLUME, **fields) + "data file: x.raw\n").encode(), "x.nhdr")
        nrrd.read_header(file)
        np.testing.assert_array_equal(pixels(file)[0], VOLUME)


def test_cut_voxels_are_refused(tmp_path):
    refused(tmp_path, scan()[:-1], r"^truncated: [\d,]+ of [\d,]+ bytes$")
    (tmp_path / "x.raw").write_bytes(VOLUME.tobytes()[:-1])
    refused(
        tmp_path, (header(VOLUME) + "data file: x.raw\n").encode(), r"^truncated: x\.raw: 239 of 240 bytes$", "x.nhdr"
    )
    packed = (header(VOLUME, encoding="gzip") + "\n").encode() + gzip.compress(VOLUME.tobytes())
    refused(tmp_path, packed[:-20], r"^(truncated|too short)")


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)])
def test_a_flipped_byte_is_noticed(tmp_path, encoding, pack):
    packed = pack(noise((20, 20, 20)).tobytes())
    lines = (header(noise((20, 20, 20)), encoding=encoding) + "\n").encode()
    for place in range(len(packed) // 9, len(packed) - 8, len(packed) // 9):
        damaged = bytearray(packed)
        damaged[place] ^= 4
        with pytest.raises(FormatError, match=r"damaged|too short"):
            pixels(written(tmp_path, lines + damaged))


# --- damage


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused_in_one_line(tmp_path, count):
    fields = {"kinds": "list domain domain domain", "space_directions": f"none {SPACE['space directions']}"}
    packed = (header(VOLUME, encoding="gzip") + "\n").encode() + gzip.compress(VOLUME.tobytes())
    text = (header(VOLUME, encoding="text") + "\n").encode() + " ".join(map(str, VOLUME.ravel())).encode()
    detached = (header(VOLUME) + "data file: s%02d.raw 1 6 1\n").encode()
    parts(tmp_path, VOLUME)

    def read(content: bytes) -> None:
        file = written(tmp_path, content)
        check_grid(nrrd.read_header(file))
        pixels(file)

    check_mutants([scan(), scan(noise((3, 4, 5, 6)), **fields), packed, text, detached], read, count, header=260)


def test_a_header_that_names_itself_is_refused(tmp_path):
    refused(tmp_path, scan(data_file="x.nrrd"), "^its header names itself as the file of its voxels")
