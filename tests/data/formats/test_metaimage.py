"""MetaImage: values, geometry and every field that changes them; files that a header names."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from data.formats.mutants import check_mutants
from data.make_scans import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats import metaimage
from medssl.data.formats.base import FormatError, Reading, check_grid

VOLUME = noise((4, 5, 6))
LPS = np.array([[-0.5, 0, 0, -1], [0, -0.75, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1.0]])
FIELDS = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "0.5 0.75 2", "DimSize": "4 5 6",
    "ElementType": "MET_SHORT",
}  # fmt: skip


def header(file: str = "LOCAL", **fields: Any) -> bytes:
    """Header lines; a field of None is left out."""
    lines = FIELDS | fields
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None)
    return f"{text}ElementDataFile = {file}\n".encode()


def scan(array: np.ndarray = VOLUME, **fields: Any) -> bytes:
    return header(**fields) + array.tobytes(order="F")


def written(folder: Path, content: bytes, name: str = "x.mha") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def about(folder: Path, array: np.ndarray = VOLUME, **fields: Any) -> Any:
    return metaimage.read_header(written(folder, scan(array, **fields)))


def refused(folder: Path, content: bytes, message: str, name: str = "x.mha") -> None:
    with pytest.raises(FormatError, match=message) as caught:
        metaimage.read_header(written(folder, content, name))
    assert "\n" not in str(caught.value)


def pixels(file: Path, frame: int | None = None) -> np.ndarray:
    return metaimage.read_pixels(file, frame, Reading())[0]


def itk_affine(image: Any) -> np.ndarray:
    affine = np.eye(4)
    turn = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3] = np.diag([-1, -1, 1]) @ np.column_stack([turn, image.GetOrigin()])
    return affine


# --- against SimpleITK


@settings(max_examples=25, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    steps=st.tuples(*[st.floats(0.3, 5)] * 3),
    origin=st.tuples(*[st.floats(-90, 90)] * 3),
    dtype=st.sampled_from(["i2", "u1", "i1", "f4", "u2", "i4", "u4", "i8", "u8", "f8"]),
    compressed=st.booleans(),
    name=st.sampled_from(["x.mha", "x.mhd"]),
    channels=st.sampled_from([1, 2, 3]),
)
def test_what_itk_writes_is_read_like_itk(tmp_path_factory, turn, steps, origin, dtype, compressed, name, channels):
    rotation = SimpleITK.Euler3DTransform((0, 0, 0), *turn).GetMatrix()
    array = noise((5, 4, 3, channels), np.uint8, high=120).astype(dtype)
    image = SimpleITK.GetImageFromArray(array if channels > 1 else array[..., 0], isVector=channels > 1)
    image.SetDirection(rotation)
    image.SetSpacing(steps)
    image.SetOrigin(origin)
    file = tmp_path_factory.mktemp("x") / name
    SimpleITK.WriteImage(image, str(file), compressed)
    found = metaimage.read_header(file)
    reference = SimpleITK.ReadImage(str(file))
    np.testing.assert_allclose(found.grid.affine, itk_affine(reference), atol=1e-4)
    np.testing.assert_array_equal(pixels(file), array.T)
    assert found.dtype == array.dtype.name
    assert len(found.details.get("companions", [])) == (name == "x.mhd")
    assert found.notes == (("three channels of 8 bits taken as red, green, blue",) * (channels == 3 and dtype == "u1"))


def test_big_endian_and_names_of_old_files(tmp_path):
    big = VOLUME.astype(">i2")
    content = scan(
        big, BinaryDataByteOrderMSB=None, ElementByteOrderMSB="True", TransformMatrix=None,
        Rotation="0 1 0 1 0 0 0 0 1", Offset=None, Position="1 2 3", ElementSpacing=None, ElementSize="0.5 0.75 2",
        CenterOfRotation="9 9 9",
    )  # fmt: skip
    file = written(tmp_path, content)
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    np.testing.assert_allclose(metaimage.read_header(file).grid.affine, itk_affine(SimpleITK.ReadImage(str(file))))


# --- numbers


@pytest.mark.parametrize(("name", "dtype"), [("MET_LONG", np.int32), ("MET_ULONG", np.uint32)])
def test_long_numbers_have_32_bits_as_in_itk(tmp_path, name, dtype):
    array = (noise((4, 5, 6)).astype(np.int64) * 1_000_000).astype(dtype)
    file = written(tmp_path, scan(array, ElementType=name))
    np.testing.assert_array_equal(pixels(file)[0], array)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).T, array)


def test_text_numbers(tmp_path):
    text = " ".join(map(str, VOLUME.ravel(order="F"))).encode()
    file = written(tmp_path, header(BinaryData="False") + text)
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    refused(tmp_path, header(BinaryData="False") + text[:-100], "^truncated: .* of 120 numbers")


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("stated", [True, False])
def test_compressed_voxels(tmp_path, pack, stated):
    packed = pack(VOLUME.tobytes(order="F"))
    size = len(packed) if stated else None
    file = written(tmp_path, header(CompressedData="True", CompressedDataSize=size) + packed)
    assert metaimage.read_header(file).notes == ()
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    refused(tmp_path, file.read_bytes()[:-9], r"^truncated or damaged|^too short")


def test_a_wrong_statement_of_the_compressed_size_is_not_called_truncated(tmp_path):
    packed = zlib.compress(VOLUME.tobytes(order="F"))
    for size in (1, len(packed) + 9, "none"):
        file = written(tmp_path, header(CompressedData="True", CompressedDataSize=size) + packed)
        metaimage.read_header(file)
        np.testing.assert_array_equal(pixels(file)[0], VOLUME)


def test_a_flipped_byte_is_noticed(tmp_path):
    array = noise((20, 20, 20))
    packed = zlib.compress(array.tobytes())
    lines = header(CompressedData="True", CompressedDataSize=len(packed), DimSize="20 20 20")
    for place in [*range(len(packed) // 9, len(packed), len(packed) // 9), len(packed) - 1]:
        damaged = bytearray(packed)
        damaged[place] ^= 4
        with pytest.raises(FormatError, match=r"damaged|too short"):
            pixels(written(tmp_path, lines + damaged))


def test_the_scale_of_the_header_is_applied_and_said(tmp_path):
    fields = {"ElementToIntensityFunctionSlope": "0.5", "ElementToIntensityFunctionOffset": "-3"}
    file = written(tmp_path, scan(**fields))
    np.testing.assert_array_equal(pixels(file)[0], VOLUME * 0.5 - 3)
    said = "values scaled by ElementToIntensityFunction (slope 0.5, offset -3)"
    assert metaimage.read_header(file).notes == (said,)
    for slope in ("0", "nan", "x"):
        refused(tmp_path, scan(ElementToIntensityFunctionSlope=slope), "scale unusable|expected 1 number")


def test_transparency_is_left_out(tmp_path):
    array = noise((4, 5, 4), np.uint8, high=255)
    fields = {"NDims": 2, "DimSize": "5 4", "ElementSpacing": "1 2", "Offset": "0 0", "TransformMatrix": "1 0 0 1"}
    content = scan(array, ElementNumberOfChannels=4, ElementType="MET_UCHAR", **fields)
    file = written(tmp_path, content)
    found = metaimage.read_header(file)
    assert (found.kind, found.value_domain, found.channels, found.grid.spacing_mm) == ("image", "rgb", 3, (2, 1))
    assert found.notes == ("transparency left out",)
    np.testing.assert_array_equal(pixels(file), array[:3].transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ObjectType": "Tube"}, "^no scan: ObjectType Tube"), ({"NDims": "-1"}, r"^-1 axes \(NDims\): expected 2"),
        ({"NDims": "nan"}, "^NDims 'nan': expected 1 whole number$"), ({"NDims": None}, "no NDims in the header"),
        ({"NDims": "99999999999"}, "axes"), ({"DimSize": "4 5"}, "^DimSize '4 5': expected 3 whole numbers"),
        ({"DimSize": "4 5 0"}, "^zero-size: DimSize 4 5 0"), ({"DimSize": "4 5 -6"}, "DimSize 4 5 -6"),
        ({"DimSize": "99999999 99999999 9999999"}, "^truncated"), ({"DimSize": "4 5 x"}, "expected 3 whole numbers"),
        ({"ElementType": "MET_STRING"}, "^ElementType MET_STRING"), ({"ElementType": None}, "no ElementType"),
        ({"ElementSpacing": "1 1"}, "expected 3 numbers"), ({"ElementSpacing": "1 0 1"}, "voxel sizes 1 x 0 x 1"),
        ({"ElementSpacing": "1 -1 1"}, "voxel sizes 1 x -1 x 1"), ({"ElementSpacing": "nan 1 1"}, "voxel sizes nan"),
        ({"Offset": "nan 1 1"}, "^geometry unusable: the affine has values that are no finite"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "^geometry unusable: the axes of the affine lie in one plane"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "^geometry unusable"), ({"TransformMatrix": "1"}, "expected 9"),
        ({"TransformMatrix": "inf 0 0 0 1 0 0 0 1"}, "no finite numbers"), ({"HeaderSize": "-2"}, "^HeaderSize -2"),
        ({"ElementNumberOfChannels": "0"}, "^ElementNumberOfChannels 0"), ({"DistanceUnits": "ell"}, "'ell'"),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense_are_refused(tmp_path, fields, message):
    refused(tmp_path, scan(**fields), message)


def test_lines_that_are_no_header_are_refused(tmp_path):
    refused(tmp_path, b"ObjectType = Image\nwhat\n", "a line of the header is no name with its value")
    refused(tmp_path, b"ObjectType = Image\nNDims = 3\n", "no ElementDataFile")
    refused(tmp_path, scan().replace(b"NDims", b"NDims = 2\nNDims"), "NDims occurs twice")


# --- geometry


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("?", 1), ("m", 1e3)])
def test_lengths_are_in_mm_whatever_the_unit(tmp_path, unit, factor):
    found = about(tmp_path, DistanceUnits=unit)
    expected = LPS.copy()
    expected[:3] *= factor
    np.testing.assert_allclose(found.grid.affine, expected)
    assert ("converted to mm" in "; ".join(found.notes)) == (factor != 1)


def test_what_is_not_said_is_said_to_be_a_guess(tmp_path):
    guess = "orientation is a guess: no TransformMatrix (left-posterior-superior taken)"
    assert about(tmp_path, TransformMatrix=None).notes == (guess,)
    assert "AnatomicalOrientation LAS not applied" in about(
        tmp_path, TransformMatrix=None, AnatomicalOrientation="LAS"
    ).notes[0]  # fmt: skip
    assert about(tmp_path, ElementSpacing=None).notes == ("does not state its voxel size: 1 mm assumed",)
    assert about(tmp_path, BinaryDataByteOrderMSB=None).notes == (
        "does not state its byte order: little endian assumed",
    )


@pytest.mark.parametrize(
    ("code", "said"), [("RAI", False), ("LPS", False), ("LAI", True), ("???", False), ("ASL", True)]
)
def test_an_orientation_that_contradicts_the_matrix_is_said(tmp_path, code, said):
    notes = about(tmp_path, AnatomicalOrientation=code).notes
    assert (f"AnatomicalOrientation {code} contradicts TransformMatrix (RAI): TransformMatrix used" in notes) == said


def test_odd_matrices_are_said(tmp_path):
    assert "not of length 1" in about(tmp_path, TransformMatrix="2 0 0 0 1 0 0 0 1").notes[0]
    assert "sheared axes" in about(tmp_path, TransformMatrix="1 0 0 0.1 0.995 0 0 0 1").notes[-1]
    assert about(tmp_path, TransformMatrix="-1 0 0 0 1 0 0 0 1").details["handedness"] == "left"


def test_modality_is_kept(tmp_path):
    assert about(tmp_path, Modality="MET_MOD_CT").details == {"modality": "CT"}
    assert about(tmp_path, Modality="MET_MOD_UNKNOWN").details == {}


def test_a_fourth_axis_is_frames(tmp_path):
    array = noise((4, 5, 6, 3))
    matrix = " ".join(map(str, np.eye(4, dtype=int).ravel()))
    fields = {"NDims": 4, "DimSize": "4 5 6 3", "ElementSpacing": "0.5 0.75 2 1", "Offset": "1 2 3 0"}
    file = written(tmp_path, scan(array, TransformMatrix=matrix, **fields))
    found = metaimage.read_header(file)
    assert (found.frames.count, found.channels) == (3, 1)
    np.testing.assert_allclose(found.grid.affine, LPS)
    np.testing.assert_array_equal(pixels(file, 1)[0], array[..., 1])
    np.testing.assert_array_equal(pixels(file), np.moveaxis(array, -1, 0))
    mixed = matrix[:6] + "1" + matrix[7:]
    refused(tmp_path, scan(array, TransformMatrix=mixed, **fields), "mixes the fourth axis with space")


# --- files


@pytest.mark.parametrize(
    "words", ["LIST\n" + "\n".join(f"s0{k}.raw" for k in range(1, 7)), "s%02d.raw 1 6 1", "s%02d.raw 1 6"]
)
def test_voxels_in_several_files(tmp_path, words):
    for k in range(6):
        (tmp_path / f"s{k + 1:02d}.raw").write_bytes(VOLUME[:, :, k].tobytes(order="F"))
    file = written(tmp_path, header(words), "x.mhd")
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    names = [f"s{k:02d}.raw" for k in range(1, 7)]
    assert metaimage.read_header(file).details["companions"] == names
    if not words.endswith("1 6"):  # without a step SimpleITK divides by zero and ends the process
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).T, VOLUME)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.raw", "C:\\x.raw", "\\\\server\\x.raw", "LIST\n../x.raw", "-"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    refused(
        tmp_path, header(name), r"^its voxels lie elsewhere \(.*\): only files in the folder of the header", "x.mhd"
    )


@pytest.mark.parametrize(
    ("size", "raw"), [(7, b"7 bytes" + VOLUME.tobytes(order="F")), (-1, b"any" + VOLUME.tobytes(order="F"))]
)
def test_voxels_after_a_foreign_header(tmp_path, size, raw):
    (tmp_path / "x.raw").write_bytes(raw)
    file = written(tmp_path, header("x.raw", HeaderSize=size), "x.mhd")
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)


def test_cut_voxels_are_refused(tmp_path):
    refused(tmp_path, scan()[:-1], r"^truncated: [\d,]+ of [\d,]+ bytes$")
    (tmp_path / "x.raw").write_bytes(VOLUME.tobytes()[:120])
    refused(tmp_path, header("x.raw"), r"^truncated: x\.raw: 120 of 240 bytes$", "x.mhd")
    (tmp_path / "x.raw").unlink()
    refused(tmp_path, header("x.raw"), r"^x\.raw, which holds its voxels, is missing$", "x.mhd")


def test_packed_voxels_that_the_header_does_not_mention_are_not_called_truncated(tmp_path):
    (tmp_path / "x.raw").write_bytes(gzip.compress(np.zeros(120, np.int16).tobytes()))
    refused(tmp_path, header("x.raw"), r"^packed with gzip: x\.raw: the header does not say so", "x.mhd")


def test_control_characters_stay_out_of_messages(tmp_path):
    refused(tmp_path, scan(ObjectType="Tube\x0b\x1b[2J"), r"^no scan: ObjectType Tube\?\?\[2J: expected Image$")
    refused(tmp_path, header("n" * 300), "^the name of the file with its voxels is longer than 255 bytes")


def test_voxels_cannot_begin_inside_the_header(tmp_path):
    refused(tmp_path, scan(HeaderSize=9), "^HeaderSize 9: expected at least the")


@pytest.mark.parametrize(
    ("first", "right"),
    [
        (b"ObjectType = Image\n", True),
        (b"NDims = 3\n", True),
        (b"Comment = x\nNDims = 3", True),
        (b"Comment = x", False),
        (b"NDims", False),
    ],
)
def test_first_bytes(first, right):
    assert metaimage.matches(first) == right


# --- damage


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused_in_one_line(tmp_path, count):
    packed = zlib.compress(VOLUME.tobytes())
    text = header(BinaryData="False") + " ".join(map(str, VOLUME.ravel())).encode()
    contents = [
        scan(), header(CompressedData="True", CompressedDataSize=len(packed)) + packed, text, header("x.raw"),
        header(CompressedData="True") + packed,
    ]  # fmt: skip
    (tmp_path / "x.raw").write_bytes(VOLUME.tobytes())

    def read(content: bytes) -> None:
        file = written(tmp_path, content)
        check_grid(metaimage.read_header(file))
        pixels(file)

    check_mutants(contents, read, count, header=300)
