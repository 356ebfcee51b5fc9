"""NIfTI-1, NIfTI-2 and Analyze 7.5: values, geometry and every field that changes them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from data.formats.mutants import check_mutants
from data.make_scans import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats import nifti
from medssl.data.formats.base import FormatError, Reading, check_grid
from medssl.data.formats.recognition import recognize

AFFINE = np.array([[-0.9, 0, 0, 40], [0, 0.8, 0, -30], [0, 0, 2.5, 10], [0, 0, 0, 1.0]])
OFFSETS = {  # of NIfTI-1: format and place
    "sizeof_hdr": ("i", 0), "dim": ("8h", 40), "intent_code": ("h", 68), "datatype": ("h", 70), "bitpix": ("h", 72),
    "pixdim": ("8f", 76), "vox_offset": ("f", 108), "scl_slope": ("f", 112), "scl_inter": ("f", 116),
    "xyzt_units": ("B", 123), "qform_code": ("h", 252), "sform_code": ("h", 254), "quatern": ("3f", 256),
    "qoffset": ("3f", 268), "srow_x": ("4f", 280), "srow_y": ("4f", 296), "srow_z": ("4f", 312),
}  # fmt: skip


def scan(array: np.ndarray, affine: np.ndarray = AFFINE, codes: tuple[int, int] = (1, 1), **fields: Any) -> bytes:
    """A whole ``.nii`` of ``array``; ``fields`` overwrite bytes of its header."""
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    for name, value in fields.items():
        form, place = OFFSETS[name]
        raw[place : place + struct.calcsize(form)] = struct.pack("<" + form, *np.atleast_1d(value))
    return bytes(raw)


def written(folder: Path, content: bytes, name: str = "x.nii") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def notes(folder: Path, *args: Any, **fields: Any) -> str:
    return "; ".join(nifti.read_header(written(folder, scan(*args, **fields))).notes)


def pixels(file: Path, frame: int | None = None) -> np.ndarray:
    return nifti.read_pixels(file, frame, Reading())[0]


VOLUME = noise((4, 5, 6))


# --- against nibabel and SimpleITK


@st.composite
def images(draw: Any) -> tuple[Any, bytes]:
    """A nibabel image with a random header, and its bytes."""
    kind = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
    order = draw(st.sampled_from("<>"))
    dtype = np.dtype(draw(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8"])))
    shape = draw(st.tuples(*[st.integers(2, 5)] * 3)) + draw(st.sampled_from([(), (1,), (3,)]))
    angles = draw(st.tuples(*[st.floats(-3, 3)] * 3))
    steps = draw(st.tuples(*[st.floats(0.3, 5)] * 3))
    flip = draw(st.sampled_from([1, -1]))
    turn = nibabel.eulerangles.euler2mat(*angles) * steps * [1, 1, flip]
    affine = nibabel.affines.from_matvec(turn, draw(st.tuples(*[st.floats(-90, 90)] * 3)))
    high = 127 if dtype.kind in "iu" else 9
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, high, shape).astype(dtype)
    image = kind(array.astype(dtype.newbyteorder(order)), affine, kind.header_class(endianness=order), dtype=dtype)
    image.header.set_data_dtype(dtype.newbyteorder(order))
    codes = draw(st.sampled_from([(1, 1), (0, 1), (2, 0)]))
    image.set_qform(affine, codes[1])
    image.set_sform(affine, codes[0])
    image.header.set_xyzt_units(draw(st.sampled_from(["mm", "unknown"])))
    if draw(st.booleans()):
        image.header.set_slope_inter(draw(st.sampled_from([0.5, 2.0, 1e-8])), draw(st.sampled_from([0.0, -3.25])))
    if draw(st.booleans()):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * draw(st.integers(1, 99))))
    return image, image.to_bytes()


@settings(max_examples=60, deadline=None)
@given(made=images())
def test_random_headers_read_like_nibabel_and_itk(tmp_path_factory, made):
    _, content = made
    file = written(tmp_path_factory.mktemp("x"), content)
    header, array = nifti.read_header(file), pixels(file)
    reference: Any = nibabel.load(file)
    expected = reference.get_fdata().reshape(*reference.shape[:3], -1)
    np.testing.assert_allclose(np.moveaxis(array, 0, -1), expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(header.grid.affine, reference.affine, atol=2e-3)
    assert header.frames.count == expected.shape[3]
    assert header.notes == ()
    if isinstance(reference, nibabel.Nifti1Image) and not isinstance(reference, nibabel.Nifti2Image):
        itk = SimpleITK.ReadImage(str(file))
        affine = np.eye(4)
        turn = np.array(itk.GetDirection()).reshape(itk.GetDimension(), -1)[:3, :3] * itk.GetSpacing()[:3]
        affine[:3] = np.diag([-1, -1, 1]) @ np.column_stack([turn, itk.GetOrigin()[:3]])
        np.testing.assert_allclose(header.grid.affine, affine, atol=2e-3)


# --- units


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 + 8, 1), (3 + 16, 0.001)])
def test_lengths_are_in_mm_whatever_the_unit(tmp_path, code, factor):
    header = nifti.read_header(written(tmp_path, scan(VOLUME, xyzt_units=code)))
    expected = AFFINE.copy()
    expected[:3] *= factor
    np.testing.assert_allclose(header.grid.affine, expected, rtol=1e-6)
    np.testing.assert_allclose(header.grid.spacing_mm, np.array([0.9, 0.8, 2.5]) * factor, rtol=1e-6)
    assert ("converted to mm" in "; ".join(header.notes)) == (factor != 1)


def test_micrometers_agree_with_itk(tmp_path):
    file = written(tmp_path, scan(VOLUME, xyzt_units=3))
    np.testing.assert_allclose(nifti.read_header(file).grid.spacing_mm, SimpleITK.ReadImage(str(file)).GetSpacing())


def test_an_undefined_unit_is_said(tmp_path):
    assert "unit of length 5 (xyzt_units) is not defined: mm assumed" in notes(tmp_path, VOLUME, xyzt_units=5)


# --- qform and sform


def test_without_codes_the_orientation_is_said_to_be_a_guess(tmp_path):
    file = written(tmp_path, scan(VOLUME, codes=(0, 0)))
    header = nifti.read_header(file)
    assert header.notes == ("orientation is a guess: qform_code and sform_code are 0 (first axis to the left taken)",)
    np.testing.assert_allclose(header.grid.affine, nibabel.load(file).affine, rtol=1e-6)


def test_forms_that_agree_up_to_rounding_are_not_mentioned(tmp_path):
    turn = np.eye(4)
    turn[:3, :3] = nibabel.eulerangles.euler2mat(0.1, 3.0, 0.2) * [0.9, 0.8, 2.5]
    assert notes(tmp_path, noise((40, 40, 30)), turn) == ""


def test_forms_that_differ_in_position_are_said(tmp_path):
    said = notes(tmp_path, VOLUME, qoffset=(40, -30, 16))
    assert said == "qform (scanner) and sform (scanner) disagree by up to 6 mm: sform used"
    header = nifti.read_header(tmp_path / "x.nii")
    np.testing.assert_allclose(header.grid.affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"srow_x": (0.9, 0, 0, 40)}, "qform and sform disagree: one is the mirror image of the other"),
        ({"srow_x": (0.9, 0, 0, 40), "srow_y": (0, -0.8, 0, 0)}, "disagree: axis 1 points to different sides"),
        ({"srow_x": (0, -0.9, 0, 40), "srow_y": (-0.8, 0, 0, 0)}, "qform and sform disagree"),
    ],
)
def test_forms_that_differ_in_left_and_right_are_refused(tmp_path, fields, message):
    with pytest.raises(FormatError, match=message):
        nifti.read_header(written(tmp_path, scan(VOLUME, **fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_z": (0, 0, 0, 0)}, {"srow_x": (np.nan, 0, 0, 1)}, {"srow_y": (-0.9, 0, 0, 0)},
        {"srow_y": (np.inf, 0, 0, 1)}, {"srow_x": (0, 0, 0, 0), "srow_y": (0, 0, 0, 0), "srow_z": (0, 0, 0, 0)},
    ],
)  # fmt: skip
def test_an_unusable_sform_is_said_or_refused(tmp_path, fields):
    header = nifti.read_header(written(tmp_path, scan(VOLUME, **fields)))
    assert any("geometry unusable" in note and "sform" in note for note in header.notes)
    np.testing.assert_allclose(header.grid.affine, AFFINE, atol=1e-5)  # the qform's
    with pytest.raises(FormatError, match=r"geometry unusable: .*sform"):
        nifti.read_header(written(tmp_path, scan(VOLUME, codes=(1, 0), **fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quatern": (np.nan, 0, 0)}, "qform has values that are no finite numbers"),
        ({"quatern": (1, 1, 0)}, "quaternion has length 1.414: expected at most 1"),
        ({"qoffset": (np.inf, 0, 0)}, "qform has values that are no finite numbers"),
        ({"pixdim": (1, 0.9, 0, 2.5, 1, 1, 1, 1)}, "voxel sizes 0.9 x 0 x 2.5 in pixdim: expected positive lengths"),
        ({"pixdim": (1, -0.9, 0.8, 2.5, 1, 1, 1, 1)}, "voxel sizes -0.9 x 0.8 x 2.5 in pixdim"),
    ],
)
def test_an_unusable_qform_is_refused_or_said(tmp_path, fields, message):
    with pytest.raises(FormatError, match=f"geometry unusable: .*{message}"):
        nifti.read_header(written(tmp_path, scan(VOLUME, codes=(0, 1), **fields)))
    header = nifti.read_header(written(tmp_path, scan(VOLUME, **fields)))
    assert message in "; ".join(header.notes)
    np.testing.assert_allclose(header.grid.affine, AFFINE, rtol=1e-6)  # the sform's


@pytest.mark.parametrize("qfac", [-1.0, 0.0, 1.0])
def test_qfac_turns_the_third_axis(tmp_path, qfac):
    affine = np.diag([0.9, 0.8, 2.5, 1.0])
    file = written(tmp_path, scan(VOLUME, affine, codes=(0, 1), pixdim=(qfac, 0.9, 0.8, 2.5, 1, 1, 1, 1)))
    header = nifti.read_header(file)
    np.testing.assert_allclose(header.grid.affine, np.diag([0.9, 0.8, -2.5 if qfac < 0 else 2.5, 1.0]), atol=1e-6)
    assert header.details.get("handedness") == ("left" if qfac < 0 else None)


def test_left_handed_affines_are_read_as_they_are(tmp_path):
    header = nifti.read_header(written(tmp_path, scan(VOLUME)))
    assert header.details["handedness"] == "left"
    np.testing.assert_allclose(header.grid.affine, AFFINE, rtol=1e-6)


def test_voxel_sizes_that_contradict_the_sform_are_said(tmp_path):
    said = notes(tmp_path, VOLUME, codes=(1, 0), pixdim=(1, 1, 1, 1, 1, 1, 1, 1))
    assert said == "voxel sizes disagree: 1 x 1 x 1 in pixdim, 0.9 x 0.8 x 2.5 in the sform: sform used"


def test_sheared_axes_are_said(tmp_path):
    said = notes(tmp_path, VOLUME, codes=(1, 0), srow_y=(0.1, 0.8, 0, -30))
    assert "sheared axes: the affine is 6.3 degrees off right angles" in said


# --- numbers


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (0, "does not define"), (1, "single bits"), (32, "complex"), (1536, "128 bits"),
        (1792, "complex"), (2048, "complex"), (12345, "does not define"),
    ],
)  # fmt: skip
def test_types_that_are_no_scan_are_refused(tmp_path, code, message):
    with pytest.raises(FormatError, match=f"^not readable as NIfTI: voxels of datatype .*{message}"):
        nifti.read_header(written(tmp_path, scan(VOLUME, datatype=code)))


@pytest.mark.parametrize(("code", "samples"), [(128, 3), (2304, 4)])
def test_colors_are_three_channels(tmp_path, code, samples):
    array = noise((4, 5, 6, samples), np.uint8, high=255)
    content = scan(VOLUME, datatype=code, bitpix=8 * samples, scl_slope=2)[:352]
    file = written(tmp_path, content + array.transpose(2, 1, 0, 3).tobytes())
    header = nifti.read_header(file)
    assert (header.kind, header.value_domain, header.channels) == ("volume", "rgb", 3)
    assert header.notes == (() if samples == 3 else ("transparency left out",))
    np.testing.assert_array_equal(pixels(file), np.moveaxis(array[..., :3], -1, 0))
    by_nibabel = np.asarray(nibabel.load(file).dataobj.get_unscaled())
    np.testing.assert_array_equal(pixels(file)[0], by_nibabel["R"])


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_means_no_scale(tmp_path, slope):
    file = written(tmp_path, scan(VOLUME, scl_slope=slope, scl_inter=7))
    assert pixels(file).dtype == np.int16
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    if slope == 0:
        assert nifti.read_header(file).notes == ("scl_inter 7 not applied, as scl_slope is 0",)


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (1, np.nan), (2, np.inf)])
def test_a_scale_without_numbers_is_refused(tmp_path, slope, inter):
    with pytest.raises(FormatError, match=r"scale unusable: scl_slope .*: expected finite numbers"):
        nifti.read_header(written(tmp_path, scan(VOLUME, scl_slope=slope, scl_inter=inter)))


def test_scaled_numbers_of_32_bits_keep_their_digits(tmp_path):
    array = np.array([2**30 + 1, 2**30 + 3, -5, 9], np.int32).reshape(2, 2, 1).repeat(2, 2)
    file = written(tmp_path, scan(array, scl_slope=0.5))
    np.testing.assert_array_equal(pixels(file)[0], array * 0.5)


def test_tiny_slopes_leave_no_flat_image(tmp_path):
    file = written(tmp_path, scan(VOLUME, scl_slope=1e-35))
    slope = float(np.float32(1e-35))
    np.testing.assert_allclose(pixels(file)[0], VOLUME * slope, rtol=1e-6)


def test_numbers_of_64_bits_stay_exact(tmp_path):
    array = np.full((2, 2, 2), 2**53 + 1, np.int64)
    image = nibabel.Nifti1Image(array, AFFINE, dtype=np.int64)
    np.testing.assert_array_equal(pixels(written(tmp_path, image.to_bytes()))[0], array)


# --- axes


def test_axes_beyond_the_third(tmp_path):
    array = noise((3, 4, 5, 6))
    for dims, count, channels in [((6,), 6, 1), ((1, 6), 1, 6), ((2, 3), 2, 3), ((6, 1, 1, 1), 6, 1)]:
        shaped = array.reshape(3, 4, 5, *dims, order="F")
        file = written(tmp_path, scan(shaped, intent_code=1007 if len(dims) > 1 and dims[1] > 1 else 0))
        header = nifti.read_header(file)
        assert (header.frames.count, header.channels) == (count, channels)
        whole = pixels(file)
        for frame in range(count):
            expected = shaped.reshape(3, 4, 5, count, channels, order="F")[:, :, :, frame]
            np.testing.assert_array_equal(pixels(file, frame), np.moveaxis(expected, -1, 0))
            np.testing.assert_array_equal(whole[frame * channels : (frame + 1) * channels], pixels(file, frame))


def test_an_axis_of_length_0_after_the_third_is_one_and_said(tmp_path):
    file = written(tmp_path, scan(VOLUME, dim=(5, 4, 5, 6, 0, 0, 1, 1)))
    header = nifti.read_header(file)
    assert "length 0 of an axis after the third: 1 taken" in header.notes
    assert (header.frames.count, header.channels) == (1, 1)
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)


@pytest.mark.parametrize(("intent", "samples"), [(2003, 3), (2004, 4)])
def test_vectors_of_colors_are_channels(tmp_path, intent, samples):
    array = noise((3, 4, 5, 1, samples), np.uint8, high=255)
    header = nifti.read_header(written(tmp_path, scan(array, intent_code=intent)))
    assert (header.channels, header.value_domain, header.frames.count) == (3, "rgb", 1)
    np.testing.assert_array_equal(pixels(tmp_path / "x.nii"), np.moveaxis(array[..., 0, :3], -1, 0))


def test_vectors_are_channels_and_said(tmp_path):
    said = notes(tmp_path, noise((3, 4, 5, 1, 3)), intent_code=1007)
    assert said == "vectors of 3 values taken as channels; a displacement field would be no scan"


def test_one_slice_in_time_is_frames_of_a_picture(tmp_path):
    array = noise((7, 6, 1, 12))
    file = written(tmp_path, scan(array))
    header = nifti.read_header(file)
    assert (header.kind, header.channels, header.frames.count) == ("image", 1, 12)
    np.testing.assert_array_equal(pixels(file, 5), array[None, :, :, 0, 5].transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("intent", "what"),
    [
        (1006, "a displacement field"),
        (1005, "a tensor"),
        (2006, "a displacement field of FNIRT"),
        (3002, "CIFTI"),
        (1004, ""),
        (1008, ""),
        (1009, ""),
        (1010, ""),
        (2001, ""),
        (2002, ""),
        (2005, ""),
        (2016, ""),
    ],
)
def test_what_is_no_scan_by_its_intent_is_refused(tmp_path, intent, what):
    with pytest.raises(FormatError, match=rf"^no scan: it holds {what}.*intent code {intent}\)$|CIFTI"):
        nifti.read_header(written(tmp_path, scan(noise((3, 4, 5, 1, 3)), intent_code=intent)))


def test_labels_and_statistics_by_intent(tmp_path):
    assert nifti.read_header(written(tmp_path, scan(VOLUME, intent_code=1002))).details["intent"] == "label"
    assert "a statistical map" in notes(tmp_path, VOLUME, intent_code=5)


@pytest.mark.parametrize(
    ("dim", "message"),
    [
        ((0, 4, 5, 6, 1, 1, 1, 1), r"axes \(dim\[0\]\): expected 1 to 7"),
        ((3, 4, 0, 6, 1, 1, 1, 1), "^zero-size: shape 4x0x6"), ((1, 4, 1, 1, 1, 1, 1, 1), "one axis of 4 values"),
        ((3, 4, -5, 6, 1, 1, 1, 1), "negative length in shape 4x-5x6"),
        ((7, 2, 2, 2, 1, 1, 3, 5), "axes 6 and 7 have no meaning"),
        ((7, 32767, 32767, 32767, 32767, 32767, 1, 1), "truncated: 592 of "),
    ],
)  # fmt: skip
def test_shapes_that_are_no_scan(tmp_path, dim, message):
    with pytest.raises(FormatError, match=message):
        nifti.read_header(written(tmp_path, scan(VOLUME, dim=dim)))


# --- files


def test_names_say_nothing_about_packing(tmp_path):
    content = scan(VOLUME)
    packed = {
        "UPPER.NII.GZ": gzip.compress(content), "level0.NII.GZ": gzip.compress(content, 0),
        "packed.nii": gzip.compress(content),
        "plain.nii.gz": content, "x.nii.bz2": bz2.compress(content), "x.nii.xz": lzma.compress(content),
        "members.nii.gz": gzip.compress(content[:400]) + gzip.compress(content[400:]),
        "garbage.nii.gz": gzip.compress(content) + b"garbage", "padded.nii.gz": gzip.compress(content) + bytes(600),
        "second.nii.gz": gzip.compress(content) + gzip.compress(b"more")[:-3],
    }  # fmt: skip
    for name, raw in packed.items():
        file = written(tmp_path, raw, name)
        assert nifti.read_header(file).notes == (), name
        np.testing.assert_array_equal(pixels(file)[0], VOLUME, err_msg=name)


@pytest.mark.parametrize(("raw", "name"), [(b"\x28\xb5\x2f\xfd" + bytes(900), "zstd"), (b"PK\3\4" + bytes(900), "zip")])
def test_other_packing_is_named(tmp_path, raw, name):
    with pytest.raises(FormatError, match=f"packed with {name}: only gzip, bzip2 and xz are read"):
        nifti.read_header(written(tmp_path, raw))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_files_cut_off_are_refused(tmp_path, pack, cut):
    raw = pack(scan(noise((20, 20, 20))))
    file = written(tmp_path, raw[: int(len(raw) * cut)], "x.nii.gz")
    for read in (nifti.read_header, pixels):
        with pytest.raises(FormatError, match=r"truncated|too short"):
            read(file)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_flipped_byte_is_noticed(tmp_path, pack):
    raw = bytearray(pack(scan(noise((20, 20, 20)))))
    for place in range(len(raw) // 2, len(raw) - 8, len(raw) // 9):
        damaged = raw.copy()
        damaged[place] ^= 4
        with pytest.raises(FormatError, match=r"damaged|too short|no NIfTI"):
            pixels(written(tmp_path, bytes(damaged), "x.nii.gz"))


def test_a_complete_stream_with_a_larger_header_is_not_called_truncated(tmp_path):
    content = scan(VOLUME, dim=(3, 4, 5, 9, 1, 1, 1, 1))
    with pytest.raises(FormatError, match=r"^too short: the header asks for 712 bytes, the unpacked file has 592"):
        nifti.read_header(written(tmp_path, gzip.compress(content), "x.nii.gz"))


def test_sizes_beyond_what_the_file_can_hold_are_refused_before_anything_is_allocated(tmp_path):
    content = scan(VOLUME, dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))
    for raw in (content, gzip.compress(content)):
        with pytest.raises(FormatError, match=r"truncated: 592 of|too short: .* cannot hold them"):
            nifti.read_header(written(tmp_path, raw))


def test_bytes_after_the_voxels_are_said(tmp_path):
    assert nifti.read_header(written(tmp_path, scan(VOLUME) + b"12345")).notes == (
        "5 bytes after the voxels are not read",
    )


@pytest.mark.parametrize(
    ("offset", "message"),
    [(100, "inside the header"), (-4, "expected a whole number"), (np.nan, "whole number"), (400.5, "whole number"),
     (1e12, "truncated: 592 of")],
)  # fmt: skip
def test_a_start_of_voxels_that_cannot_be_is_refused(tmp_path, offset, message):
    with pytest.raises(FormatError, match=message):
        nifti.read_header(written(tmp_path, scan(VOLUME, vox_offset=offset)))


def test_odd_headers_are_read_and_said(tmp_path):
    assert notes(tmp_path, VOLUME, vox_offset=0) == "vox_offset is 0: 352 assumed"
    assert notes(tmp_path, VOLUME, sizeof_hdr=0) == "sizeof_hdr is 0, 348 taken"
    np.testing.assert_array_equal(pixels(tmp_path / "x.nii")[0], VOLUME)


def test_frames_of_a_plain_file_are_read_alone(tmp_path, monkeypatch):
    file = written(tmp_path, scan(array := noise((4, 5, 6, 7))))
    sizes = []
    monkeypatch.setattr(np, "empty", lambda count, dtype: sizes.append(count) or np.zeros(count, dtype))
    np.testing.assert_array_equal(pixels(file, 3)[0], array[..., 3])
    assert sizes == [120]


def test_a_damaged_magic_is_refused(tmp_path):
    raw = scan(VOLUME)
    with pytest.raises(FormatError, match=r"^not readable as NIfTI: its first bytes are no NIfTI or Analyze header$"):
        nifti.read_header(written(tmp_path, raw[:344] + b"nx1\0" + raw[348:]))
    second = nibabel.Nifti2Image(VOLUME, AFFINE).to_bytes()
    converted = second.replace(b"\r\n\x1a\n", b"\n\x1a\n\0", 1)
    with pytest.raises(FormatError, match=r"line ends were converted \(transferred as text\); copy the file again"):
        nifti.read_header(written(tmp_path, converted))


# --- pairs


def pair(folder: Path, content: bytes, names: tuple[str, str] = ("x.hdr", "x.img")) -> Path:
    header = bytearray(content[:348])
    header[344:348], header[108:112] = b"ni1\0", struct.pack("<f", 0)
    for name, raw in zip(names, (bytes(header), content[352:]), strict=True):
        (folder / name).write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    return folder / names[0]


@pytest.mark.parametrize(
    "names",
    [("x.hdr", "x.img"), ("x.hdr.gz", "x.img.gz"), ("x.hdr", "x.img.gz"), ("X.HDR", "X.IMG"), ("x.nii", "x.img")],
)
def test_pairs_are_one_scan(tmp_path, names):
    file = pair(tmp_path, scan(VOLUME), names)
    header = nifti.read_header(file)
    assert header.details["companions"] == [names[1]]
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    np.testing.assert_allclose(header.grid.affine, AFFINE, rtol=1e-6)


def test_packed_voxels_under_a_plain_name_are_unpacked(tmp_path):
    file = pair(tmp_path, scan(array := noise((9, 9, 9), np.uint8, high=2)))
    (tmp_path / "x.img").write_bytes(gzip.compress(array.tobytes(order="F")))
    nifti.read_header(file)
    np.testing.assert_array_equal(pixels(file)[0], array)


@pytest.mark.parametrize("name", ["x.nii.bz2", "x.nii.xz", "X.HDR", "X.NII.GZ"])
def test_names_and_packing_are_recognized(tmp_path, name):
    content = scan(VOLUME)
    packed = bz2.compress(content) if name.endswith("2") else lzma.compress(content) if "xz" in name else content
    file = written(tmp_path, packed, name)
    assert recognize(file).form == "nifti"
    assert nifti.read_header(file).grid.shape == (4, 5, 6)


def test_a_pair_without_its_voxels_is_refused(tmp_path):
    file = pair(tmp_path, scan(VOLUME))
    (tmp_path / "x.img").write_bytes(bytes(100))
    with pytest.raises(FormatError, match=r"^truncated: x\.img: 100 of 240 bytes$"):
        nifti.read_header(file)
    (tmp_path / "x.img").unlink()
    with pytest.raises(FormatError, match=r"^its voxels are missing: no x\.img beside it$"):
        nifti.read_header(file)


def analyze(folder: Path, array: np.ndarray, **values: Any) -> Path:
    image = nibabel.Spm99AnalyzeImage(array, np.diag([-0.9, 0.8, 2.5, 1.0]))
    for name, value in values.items():
        image.header[name] = value
    nibabel.save(image, folder / "x.img")
    (folder / "x.mat").unlink(missing_ok=True)
    return folder / "x.hdr"


def test_analyze_is_read_and_its_orientation_said_to_be_a_guess(tmp_path):
    file = analyze(tmp_path, VOLUME)
    header = nifti.read_header(file)
    assert "its orientation is a guess" in header.notes[0]
    assert header.details["companions"] == ["x.img"]
    np.testing.assert_array_equal(pixels(file)[0], VOLUME)
    np.testing.assert_allclose(header.grid.affine, nibabel.load(tmp_path / "x.img").affine, rtol=1e-6)


def test_the_scale_of_spm_is_applied_and_said(tmp_path):
    file = analyze(tmp_path, VOLUME)
    raw = bytearray(file.read_bytes())
    raw[112:116] = struct.pack("<f", 0.25)
    file.write_bytes(raw)
    np.testing.assert_allclose(pixels(file)[0], VOLUME * 0.25)
    assert "slope 0.25" in "; ".join(nifti.read_header(file).notes)


def test_analyze_in_another_plane_is_refused_and_a_matrix_beside_it_said(tmp_path):
    file = analyze(tmp_path, VOLUME)
    (tmp_path / "x.mat").write_bytes(b"")
    assert "the .mat file beside it (SPM) is not read" in "; ".join(nifti.read_header(file).notes)
    raw = bytearray(file.read_bytes())
    raw[252] = 2
    file.write_bytes(raw)
    with pytest.raises(FormatError, match=r"orient code 2 \(sagittal\): only transverse is read"):
        nifti.read_header(file)


@pytest.mark.parametrize(
    ("unit", "factor", "said"),
    [(b"mm", 1, ""), (b"cm", 10, "cm"), (b"um", 0.001, "um"), (b"m", 1000, "m"), (b"ell", 1, "ell")],
)
def test_lengths_of_analyze_become_mm(tmp_path, unit, factor, said):
    file = analyze(tmp_path, VOLUME)
    raw = bytearray(file.read_bytes())
    raw[56:60] = unit.ljust(4, b"\0")
    file.write_bytes(raw)
    header = nifti.read_header(file)
    np.testing.assert_allclose(header.grid.spacing_mm, np.array([0.9, 0.8, 2.5]) * factor, rtol=1e-5)
    assert said in "; ".join(header.notes[1:])


@pytest.mark.parametrize("code", [128, 2304])
def test_colors_of_analyze_are_refused(tmp_path, code):
    file = analyze(tmp_path, VOLUME)
    raw = bytearray(file.read_bytes())
    raw[70:72] = struct.pack("<h", code)
    file.write_bytes(raw)
    with pytest.raises(
        FormatError, match=r"^Analyze file with colors: their order is not defined; convert it to NIfTI$"
    ):
        nifti.read_header(file)


# --- damage


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused_in_one_line(tmp_path, count):
    contents = [scan(VOLUME), gzip.compress(scan(VOLUME)), nibabel.Nifti2Image(VOLUME, AFFINE).to_bytes()]

    def read(content: bytes) -> None:
        file = written(tmp_path, content)
        check_grid(nifti.read_header(file))
        pixels(file)

    check_mutants(contents, read, count)


def test_an_offset_beyond_all_files_is_truncation(tmp_path):
    file = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), file)
    content = bytearray(file.read_bytes())
    content[108:112] = struct.pack("<f", 1e30)
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"^truncated: 480 of [\d,]+ bytes$"):
        nifti.read_header(file)
