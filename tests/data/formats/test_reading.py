"""Reading one scan: the values, number type and geometry that the file holds, or one line that names the file."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from data.make_scans import Series, noise, truncate, write_itk, write_nifti, write_picture, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medssl.data.formats.masks import check_label
from medssl.data.formats.reading import ReadError, read
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import Grid, Labels, LabelSchema, Part, Scan, UserError

KEY = b"k" * 32


def scan_in(folder: Path, **options) -> tuple[Scan, Path]:
    """Index ``folder`` and give its only scan, with the root."""
    file = folder.parent / "index" / "index.sqlite"
    with Index.open(file, create=True, root=folder.parent) as index:
        update(index, [folder], IndexOptions(**options), key=KEY)
    with Index.open(file) as index:
        (scan,) = index.scans()
        return scan, index.root


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", ">i2", ">f4"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_keeps_type_values_and_affine(tmp_path, dtype, ending):
    affine = np.array([[0, -1.5, 0, 3], [0.8, 0, 0.1, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    array = noise((4, 5, 6), high=200).astype(dtype)
    image = nibabel.Nifti1Image(array, affine)
    if dtype.startswith(">"):
        image = nibabel.Nifti1Image(array, affine, nibabel.Nifti1Header(endianness=">"))
        image.set_data_dtype(np.dtype(dtype))
    (tmp_path / "d").mkdir()
    nibabel.save(image, tmp_path / "d" / f"x{ending}")
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    assert volume.image.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume.image[0], array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    np.testing.assert_allclose(volume.spacing_mm, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-6)
    assert volume.image.flags.writeable


@pytest.mark.parametrize(
    ("slope", "inter", "expected"), [(1.0, -1024.0, "int16"), (2.0, 0.0, "float32"), (1.0, 0.5, "float32")]
)
def test_nifti_scaling_stays_whole_where_it_can(tmp_path, slope, inter, expected):
    array = noise((4, 5, 6), np.uint16)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(slope, inter)
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "x.nii"
    nibabel.save(image, file)
    stored = np.asarray(nibabel.load(file).dataobj.get_unscaled())
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    np.testing.assert_allclose(volume.image[0], nibabel.load(file).get_fdata(), rtol=1e-6)
    if stored.dtype == np.uint16:
        assert volume.image.dtype == expected


@settings(max_examples=8, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 6)] * 2, st.integers(2, 6)), seed=st.integers(0, 9))
def test_nifti_reads_like_nibabel(tmp_path_factory, shape, seed):
    folder = tmp_path_factory.mktemp("x") / "d"
    write_nifti(folder / "x.nii.gz", noise(shape, seed=seed))
    scan, root = scan_in(folder)
    np.testing.assert_array_equal(read(scan, root).image[0], nibabel.load(folder / "x.nii.gz").get_fdata())


def test_flat_nifti_is_an_image_with_rows_along_j(tmp_path):
    array = noise((7, 4, 1))
    write_nifti(tmp_path / "d" / "x.nii.gz", array)
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    assert scan.source.kind == "image"
    np.testing.assert_array_equal(volume.image, array[:, :, 0].T[None])
    assert volume.spacing_mm == (1.5, 1.0)


def test_fourth_axis_becomes_channels(tmp_path):
    array = noise((4, 5, 6, 3))
    write_nifti(tmp_path / "d" / "x.nii.gz", array)
    scan, root = scan_in(tmp_path / "d", files=FileOptions(frames="channels"))
    np.testing.assert_array_equal(read(scan, root).image, array.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("name", ["x.nrrd", "x.mha", "x.mhd"])
def test_itk_formats_agree_with_nifti_of_the_same_image(tmp_path, name):
    array = write_itk(tmp_path / "d" / name, noise((4, 5, 6)))
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "d" / name)), str(tmp_path / "same.nii"))
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    assert volume.image.dtype == np.int16
    np.testing.assert_array_equal(volume.image[0], array)
    np.testing.assert_allclose(volume.affine, nibabel.load(tmp_path / "same.nii").affine, atol=1e-5)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp"])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3)])
def test_pictures_are_channels_rows_columns(tmp_path, name, shape):
    array = write_picture(tmp_path / "d" / name, noise(shape, np.uint8, high=255))
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    np.testing.assert_array_equal(volume.image, array.transpose(2, 0, 1) if len(shape) == 3 else array[None])
    assert scan.source.value_domain == ("rgb" if len(shape) == 3 else "gray")
    assert volume.affine.shape == (3, 3)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_kept(tmp_path, name):
    array = write_picture(tmp_path / "d" / name, noise((9, 8), np.uint16, high=65535))
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    np.testing.assert_array_equal(volume.image[0], array)
    assert volume.image.dtype.itemsize >= 2


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_seven_channels(tmp_path, planar):
    array = noise((7, 9, 8), np.uint16, high=60000)
    (tmp_path / "d").mkdir()
    stored = array if planar == "separate" else array.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "d" / "x.tif", stored, photometric="minisblack", planarconfig=planar)
    scan, root = scan_in(tmp_path / "d")
    np.testing.assert_array_equal(read(scan, root).image, array)
    assert scan.source.channels == tuple("0123456")


def test_transparency_is_left_out_and_said(tmp_path):
    (tmp_path / "d").mkdir()
    array = noise((6, 5, 4), np.uint8, high=255)
    Image.fromarray(array, "RGBA").save(tmp_path / "d" / "x.png")
    scan, root = scan_in(tmp_path / "d")
    np.testing.assert_array_equal(read(scan, root).image, array[..., :3].transpose(2, 0, 1))
    assert scan.status.reason == "transparency left out"


def test_dicom_lies_as_the_index_says(tmp_path):
    series, _ = write_series(tmp_path / "d")
    scan, root = scan_in(tmp_path / "d")
    volume = read(scan, root)
    np.testing.assert_array_equal(volume.image[0], series.pixels().transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, scan.grid.affine)


# --- what cannot be read


def test_gzip_damage_that_keeps_the_length_is_seen_by_its_sum(tmp_path):
    file = tmp_path / "d" / "x.nii.gz"
    write_nifti(file, noise((8, 8, 8)))
    scan, root = scan_in(tmp_path / "d")
    content = bytearray(file.read_bytes())
    content[-8] ^= 1  # the check sum
    file.write_bytes(content)
    with pytest.raises(ReadError, match=r"x\.nii\.gz: truncated or damaged: the checksum of the gzip stream"):
        read(scan, root)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "x.mha", "x.png", "x.jpg", "x.tif"])
def test_truncated_later_names_the_file(tmp_path, name):
    file = tmp_path / "d" / name
    if name.endswith((".png", ".jpg", ".tif")):
        write_picture(file, noise((64, 64), np.uint8, high=255))
    else:
        (write_nifti if ".nii" in name else write_itk)(file, noise((16, 16, 16)))
    scan, root = scan_in(tmp_path / "d")
    truncate(file)
    with pytest.raises(ReadError, match=rf"^{name}: ") as caught:
        read(scan, root)
    assert "\n" not in str(caught.value)


def test_a_slice_truncated_later_is_named(tmp_path):
    _, files = write_series(tmp_path / "d", Series(shape=(32, 32, 4)))
    scan, root = scan_in(tmp_path / "d")
    truncate(files[2])
    with pytest.raises(ReadError, match=rf"^{files[2].name}: truncated: fewer than 2,048 bytes"):
        read(scan, root)


def test_a_vanished_file_says_what_to_do(tmp_path):
    write_nifti(tmp_path / "d" / "x.nii", noise((4, 4, 4)))
    scan, root = scan_in(tmp_path / "d")
    (tmp_path / "d" / "x.nii").unlink()
    with pytest.raises(ReadError, match=r"d/x\.nii: no such file below .*: index the scans again"):
        read(scan, root)


def test_a_file_of_another_shape_than_indexed_is_refused(tmp_path):
    write_nifti(tmp_path / "d" / "x.nii", noise((4, 4, 4)))
    scan, root = scan_in(tmp_path / "d")
    write_nifti(tmp_path / "d" / "x.nii", noise((4, 4, 5)))
    with pytest.raises(ReadError, match=r"x\.nii now has shape 1x4x4x5, the index says 1x4x4x4"):
        read(scan, root)


# --- labels


def labeled(folder: Path, label: np.ndarray, affine: np.ndarray | None = None) -> tuple[Scan, Path]:
    write_nifti(folder / "images" / "x.nii.gz", noise((4, 5, 6)))
    write_nifti(folder / "labels" / "x.nii.gz", label, affine)
    return scan_in(folder, labels=LabelOptions(masks="images=labels"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_labels_are_whole_numbers_of_the_image_shape(tmp_path, dtype):
    label = noise((4, 5, 6), np.uint8, high=4)
    volume = read(*labeled(tmp_path / "d", label.astype(dtype)))
    assert volume.label.shape == volume.image.shape
    assert volume.label.dtype.kind in "iu"
    np.testing.assert_array_equal(volume.label[0], label)
    assert volume.notes == ()


def test_a_label_with_fractions_is_refused(tmp_path):
    scan, root = labeled(tmp_path / "d", np.full((4, 5, 6), 0.5, np.float32))
    with pytest.raises(ReadError, match=r"label x\.nii\.gz holds values that are not whole numbers"):
        read(scan, root)
    assert read(scan, root, with_label=False).label is None


def test_a_label_of_another_shape_is_refused(tmp_path):
    write_nifti(tmp_path / "d" / "x.nii.gz", noise((4, 5, 6)))
    scan, root = scan_in(tmp_path / "d")
    write_nifti(tmp_path / "label.nii.gz", noise((4, 5, 7), np.uint8))
    scan = replace(scan, labels=Labels(mask=(Part("label.nii.gz"),)))
    with pytest.raises(ReadError, match=r"label label\.nii\.gz has shape 4x5x7, its image x\.nii\.gz 4x5x6"):
        read(scan, root)


def test_label_values_must_be_in_the_class_map():
    schema = LabelSchema("mask", ((0, "background"), (1, "tumour")), ignore=255)
    check_label(np.array([[0, 1, 255]]), schema)
    with pytest.raises(UserError, match=r"not in the class map 0=background, 1=tumour: 7 \(2 voxels\); name it"):
        check_label(np.array([[0, 7, 7]]), schema)


def test_a_scan_without_files_is_refused(tmp_path):
    write_nifti(tmp_path / "d" / "x.nii", noise((4, 4, 4)))
    scan, root = scan_in(tmp_path / "d")
    empty = replace(scan, source=replace(scan.source, parts=()), grid=Grid((4, 4, 4), (1, 1, 1), scan.grid.affine))
    with pytest.raises(ReadError, match="a scan without files"):
        read(empty, root)


def test_gzip_in_two_members_reads_whole(tmp_path):
    write_nifti(tmp_path / "x.nii", array := noise((8, 8, 8)))
    content = (tmp_path / "x.nii").read_bytes()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.nii.gz").write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))
    scan, root = scan_in(tmp_path / "d")
    np.testing.assert_array_equal(read(scan, root).image[0], array)


# --- masks of excluded voxels


def excluded_in(folder: Path, mask: np.ndarray, affine: np.ndarray | None = None) -> tuple[Scan, Path]:
    write_nifti(folder / "images" / "x.nii.gz", noise((4, 5, 6)))
    write_nifti(folder / "excluded" / "x.nii.gz", mask, affine)
    return scan_in(folder, labels=LabelOptions(excluded="images=excluded"))


@pytest.mark.parametrize("value", [1, 255, -3, 0.25])
def test_what_is_not_zero_in_the_mask_is_excluded(tmp_path, value):
    mask = np.zeros((4, 5, 6), np.float32)
    mask[1:3, 2, 4:] = value
    scan, root = excluded_in(tmp_path / "d", mask)
    for volume in (read(scan, root), read(scan, root, with_label=False)):
        assert volume.excluded.dtype == bool
        np.testing.assert_array_equal(volume.excluded, mask[None] != 0)
        assert volume.label is None
        assert volume.notes == ()


def test_a_mask_of_zeros_excludes_nothing(tmp_path):
    assert read(*excluded_in(tmp_path / "d", np.zeros((4, 5, 6), np.uint8))).excluded is None


def test_a_mask_of_excluded_voxels_of_another_shape_is_refused(tmp_path):
    scan, root = excluded_in(tmp_path / "d", np.ones((4, 5, 6), np.uint8))
    write_nifti(tmp_path / "d" / "excluded" / "x.nii.gz", np.ones((4, 5, 7), np.uint8))
    message = r"^mask of excluded voxels x\.nii\.gz has shape 4x5x7, its image x\.nii\.gz 4x5x6: they must be equal$"
    with pytest.raises(ReadError, match=message):
        read(scan, root)
    write_nifti(tmp_path / "d" / "excluded" / "x.nii.gz", np.ones((4, 5, 6, 2), np.uint8))
    message = r"^mask of excluded voxels x\.nii\.gz has 2 channels: expected one, holding 0 where voxels count$"
    with pytest.raises(ReadError, match=message):
        read(scan, root)
